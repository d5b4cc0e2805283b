"""`gateway status`: what the operator's side of app tells, as tables."""

import json
from pathlib import Path

from gateway.cli.exits import UNAVAILABLE
from tests.unit.cli.conftest import FakeGateway, Run

STATUS = {
    "version": "0.1.0",
    "config": "0123456789ab",
    "ready": True,
    "status": "degraded",
    "degraded": ["journal"],
    "in_flight": 3,
    "queue": 0,
    "chains": [
        {
            "name": "smart",
            "also": ["gpt-4o"],
            "targets": [
                {"target": "gpt", "key": "main", "provider": "openai", "model": "gpt-5-mini",
                 "breaker": "open", "probe_in_s": 4.2, "lacks": ["vision"]},
                {"target": "claude", "key": "main", "provider": "anthropic", "model": "c",
                 "breaker": "closed", "throttled_s": 3.0},
            ],
        }
    ],
}  # fmt: skip


def test_status_shows_chains_and_breakers(run: Run, gateway: FakeGateway) -> None:
    gateway.says("/admin/status", STATUS)
    done = run("status", "--admin-url", gateway.url)
    assert done.exit_code == 0
    for word in ("0123456789ab", "degraded", "journal", "in_flight", "smart, gpt-4o"):
        assert word in done.stdout
    (gpt,) = (line for line in done.stdout.splitlines() if "openai/gpt-5-mini" in line)
    assert "next probe in 4.2 s · lacks vision" in gpt
    assert "rate limited for 3 s" in done.stdout


def test_status_shows_each_worker_and_what_only_some_of_them_see(
    run: Run, gateway: FakeGateway
) -> None:
    (chain,) = STATUS["chains"]
    gpt = {**chain["targets"][0], "held": "open", "workers": 2}
    workers = [
        {"worker": 1, "pid": 4711, "config": "0123456789ab", "status": "ready", "in_flight": 3,
         "queue": 0},
        {"worker": 2, "status": "silent"},
    ]  # fmt: skip
    told = {**STATUS, "workers": workers, "silent": [2], "chains": [{**chain, "targets": [gpt]}]}
    gateway.says("/admin/status", told)
    shown = run("status", "--admin-url", gateway.url).stdout.splitlines()
    assert any(line.split() == ["1", "4711", "ready", "0123456789ab", "3", "0"] for line in shown)
    assert any(line.split() == ["2", "silent"] for line in shown)
    assert any("held open · in 2 of the workers" in line for line in shown)


def test_status_as_json(run: Run, gateway: FakeGateway) -> None:
    gateway.says("/admin/status", STATUS)
    assert json.loads(run("status", "--json", "--admin-url", gateway.url).stdout) == STATUS


def test_the_address_comes_from_the_configuration(
    run: Run, gateway: FakeGateway, config: Path
) -> None:
    gateway.says("/admin/status", STATUS)
    host = gateway.url.removeprefix("http://")
    config.write_text(f'server: {{admin: "{host}"}}\n' + config.read_text())
    assert run("status").exit_code == 0


def test_something_else_listens_there(run: Run, gateway: FakeGateway) -> None:
    gateway.says("/admin/status", ["not", "ours"])
    done = run("status", "--admin-url", gateway.url)
    assert done.exit_code == UNAVAILABLE
    assert "--admin-url" in done.stderr
