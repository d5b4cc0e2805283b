"""`gateway limits`: a row a limit."""

import json
from pathlib import Path

import pytest

from gateway.cli.exits import NOT_FOUND
from tests.unit.cli.conftest import FakeGateway, Run

ROW = {
    "account": "key:bob:tpm",
    "scope": "key",
    "name": "bob",
    "kind": "tpm",
    "limit": 40_000,
    "used": 39_000,
    "remaining": 1_000,
    "reset_s": 61.5,
}


@pytest.mark.usefixtures("config")
def test_a_row_a_limit(run: Run, gateway: FakeGateway) -> None:
    money = ROW | {"kind": "budget", "limit": 20 * 10**9, "used": 5 * 10**8, "remaining": 0}
    gateway.says("/admin/limits", {"limits": [ROW, money], "more": True})
    done = run("limits", "bob", "--admin-url", gateway.url, env={"GATEWAY_ADMIN_KEY": "k"})
    assert done.exit_code == 0
    row = done.stdout.splitlines()[1].split()
    assert row[:6] == ["key", "bob", "tpm", "39,000", "40,000", "1,000"]
    assert done.stdout.splitlines()[2].split()[3:6] == ["$0.5", "$20", "$0"]
    assert "more than 10000" in done.stderr
    ((_, asked, _, headers),) = gateway.asked
    assert asked == "/admin/limits?limit=10000&key=bob"
    assert headers["authorization"] == "Bearer k"
    told = run("limits", "--json", "--admin-url", gateway.url)
    assert json.loads(told.stdout)["limits"] == [ROW, money]


def test_no_limit_and_no_key(run: Run, gateway: FakeGateway, config: Path) -> None:
    gateway.says("/admin/limits", {"limits": [], "more": False})
    done = run("limits", "--admin-url", gateway.url, "-c", str(config))
    assert (done.exit_code, done.stdout) == (0, "")
    assert "no limits" in done.stderr
    del gateway.answers["/admin/limits"]
    assert run("limits", "nobody", "--admin-url", gateway.url).exit_code == NOT_FOUND
