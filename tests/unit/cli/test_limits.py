"""`gateway limits`: a row a limit, a row a budget."""

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
BUDGET = {
    "account": "key:bob:budget:day:2026-11-21",
    "scope": "key",
    "name": "bob",
    "per": "day",
    "hard": False,
    "limit_usd": "20",
    "used_usd": "20.000812",
    "remaining_usd": "0",
    "resets_at": "2026-11-22T00:00:00Z",
}


@pytest.mark.usefixtures("config")
def test_a_row_a_limit(run: Run, gateway: FakeGateway) -> None:
    gateway.says("/admin/limits", {"limits": [ROW], "budgets": [BUDGET], "more": True})
    done = run("limits", "bob", "--admin-url", gateway.url, env={"GATEWAY_ADMIN_KEY": "k"})
    assert done.exit_code == 0
    row = done.stdout.splitlines()[1].split()
    assert row[:6] == ["key", "bob", "tpm", "39,000", "40,000", "1,000"]
    assert done.stdout.splitlines()[3].split() == [
        "key", "bob", "day", "(soft)", "$20.000812", "$20", "$0", "2026-11-22T00:00:00Z"
    ]  # fmt: skip
    assert "more than 10000" in done.stderr
    ((_, asked, _, headers),) = gateway.asked
    assert asked == "/admin/limits?limit=10000&key=bob"
    assert headers["authorization"] == "Bearer k"
    told = run("limits", "--json", "--admin-url", gateway.url)
    assert json.loads(told.stdout)["limits"] == [ROW]
    assert json.loads(told.stdout)["budgets"] == [BUDGET]


def test_no_limit_and_no_key(run: Run, gateway: FakeGateway, config: Path) -> None:
    unread = BUDGET | {"used_usd": None, "remaining_usd": None, "per": "total", "resets_at": None}
    gateway.says("/admin/limits", {"limits": [], "budgets": [unread], "more": False})
    done = run("limits", "--admin-url", gateway.url, "-c", str(config))
    assert done.stdout.splitlines()[1].split()[-4:] == ["unknown", "$20", "unknown", "never"]
    assert "ledger cannot be read" in done.stderr
    gateway.says("/admin/limits", {"limits": [], "budgets": [], "more": False})
    done = run("limits", "--admin-url", gateway.url, "-c", str(config))
    assert (done.exit_code, done.stdout) == (0, "")
    assert "no limits" in done.stderr
    del gateway.answers["/admin/limits"]
    assert run("limits", "nobody", "--admin-url", gateway.url).exit_code == NOT_FOUND
