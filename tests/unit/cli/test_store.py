"""Commands over Redis: what it says where it is away, and that no secret is told."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.redis import RedisServer
from tests.unit.cli.conftest import Run

PASSWORD = "c4n4ry-password"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis", "--requirepass", PASSWORD) as found:
        yield found


@pytest.fixture
def shared(config: Path, server: RedisServer) -> Path:
    url = f"redis://:{PASSWORD}@127.0.0.1:{server.port}"
    config.write_text(config.read_text() + f'state: {{dir: state, redis: "{url}"}}\n')
    return config


def test_keys_and_spending_are_those_in_redis(run: Run, shared: Path) -> None:
    assert run("keys", "create", "job", "-c", str(shared)).exit_code == 0
    again = run("keys", "create", "job", "-c", str(shared))
    assert again.exit_code == 5
    assert "job" in run("keys", "list", "-c", str(shared)).stdout
    assert run("keys", "revoke", "job", "--yes", "-c", str(shared)).exit_code == 0
    assert "revoked" in run("keys", "list", "-c", str(shared)).stdout
    assert "Nothing was spent" in run("spend", "-c", str(shared)).stderr
    doctor = run("doctor", "-c", str(shared), "--json")
    assert '"redis"' in doctor.stdout
    assert PASSWORD not in doctor.stdout


@pytest.mark.parametrize("command", [("keys", "list"), ("keys", "create", "job"), ("spend",)])
def test_a_redis_that_is_away_is_said_in_a_line(
    run: Run, shared: Path, server: RedisServer, command: tuple[str, ...]
) -> None:
    server.kill()
    told = run(*command, "-c", str(shared))
    assert told.exit_code == 6
    assert "Redis (state.redis) does not answer: connection." in told.stderr
    assert PASSWORD not in told.stderr
