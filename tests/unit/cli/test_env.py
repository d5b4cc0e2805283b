"""`gateway env`: lines a shell can run, and a plain no to clients we cannot serve yet."""

from pathlib import Path

import pytest

from gateway.cli.env import lines
from gateway.cli.exits import USAGE
from tests.unit.cli.conftest import Run


def test_openai_is_the_default(run: Run) -> None:
    done = run("env")
    assert done.stdout == run("env", "openai").stdout
    assert done.stdout.splitlines() == [
        "export OPENAI_BASE_URL=http://127.0.0.1:8080/v1",
        'export OPENAI_API_KEY="${GATEWAY_API_KEY:-local}"',
    ]


def test_azure_has_no_v1(run: Run) -> None:
    done = run("env", "azure", env={"GATEWAY_URL": "http://gw:9/v1/"})
    assert "export AZURE_OPENAI_ENDPOINT=http://gw:9\n" in done.stdout


def test_the_address_comes_from_the_configuration(run: Run, config: Path) -> None:
    for listen, shown in (("127.0.0.1:18080", "127.0.0.1:18080"), ("[::1]:18080", "[::1]:18080")):
        config.write_text(f'server: {{listen: "{listen}"}}\nproviders: {{a: {{kind: sim}}}}\n'
                          "chains: {c: [a/x]}\n")  # fmt: skip
        assert f"http://{shown}/v1" in run("env").stdout


def test_no_key_is_ever_printed(run: Run) -> None:
    done = run("env", env={"GATEWAY_API_KEY": "gk_mine"})
    assert "gk_mine" not in done.stdout + done.stderr


def test_a_strange_url_is_quoted() -> None:
    assert lines("openai", "http://h/$(rm)")[0] == "export OPENAI_BASE_URL='http://h/$(rm)'"


@pytest.mark.parametrize("client", ["anthropic", "claude", "codex", "agents", "nonsense"])
def test_other_clients_are_refused_by_name(run: Run, client: str) -> None:
    done = run("env", client)
    assert (done.exit_code, done.stdout) == (USAGE, "")
    assert client in done.stderr
    assert "gateway env openai" in done.stderr
