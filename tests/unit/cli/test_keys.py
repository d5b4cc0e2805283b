"""`gateway keys`: made, listed, rotated, revoked; secrets on stdout, once."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.exits import CONFLICT, NOT_FOUND, UNAVAILABLE, USAGE
from gateway.clock import SystemClock
from gateway.core.budget import Budget
from gateway.core.keys import StoredKey, read_key
from gateway.state.embedded.keys import KeyStore
from tests.unit.cli.conftest import Run

pytestmark = pytest.mark.usefixtures("config")


def stored(tmp_path: Path) -> dict[str, StoredKey]:
    return {key.name: key for key in KeyStore(tmp_path / "state", SystemClock()).list()}


def listed(run: Run) -> list[dict[str, Any]]:
    keys = json.loads(run("keys", "list", "--json").stdout)["keys"]
    assert isinstance(keys, list)
    return keys


def test_a_key_is_made_and_its_secret_is_alone_on_stdout(run: Run, tmp_path: Path) -> None:
    done = run(
        *(
            "keys",
            "create",
            "bob",
            "--tier",
            "free",
            "--team",
            "search",
            "--chains",
            "smart, cheap",
        ),
        *("--rpm", "5", "--tpm", "1000", "--concurrency", "2", "--expires", "30d"),
        *("--role", "agent", "--budget", "0.5/day", "--budget", "20/total"),
    )
    assert done.exit_code == 0
    secret = done.stdout.strip()
    assert secret not in done.stderr
    assert "wants a key" in done.stderr
    bob = stored(tmp_path)["bob"]
    assert read_key(secret).digest == bob.digest
    assert (bob.tier, bob.team, bob.chains, bob.role) == (
        "free",
        "search",
        ("smart", "cheap"),
        "agent",
    )
    assert bob.limits == (("rpm", 5, None), ("tpm", 1000, None), ("concurrency", 2, None))
    assert bob.budgets == (Budget("day", 500_000_000), Budget("total", 20_000_000_000))
    assert "$0.5/day $20/total" in run("keys", "show", "bob").stdout
    assert bob.expires is not None
    assert 29.9 * 86_400 < bob.expires - SystemClock().now() < 30.1 * 86_400


@pytest.mark.parametrize(
    "budget", ["20", "20/week", "0/day", "-1/day", "1e3/day", "9000001/day", "0.0000000001/day"]
)
def test_a_budget_that_is_none_is_refused_with_one_that_is(run: Run, budget: str) -> None:
    done = run("keys", "create", "bob", "--budget", budget)
    assert done.exit_code == USAGE
    assert repr(budget) in done.stderr
    assert "--budget 20/day" in done.stderr
    assert listed(run) == []


def test_a_day_ends_at_its_end(run: Run, tmp_path: Path) -> None:
    run("keys", "create", "bob", "--expires", "2999-12-31")
    assert stored(tmp_path)["bob"].expires == 32_503_680_000.0  # 3000-01-01


def test_the_list_holds_no_secret(run: Run, config: Path) -> None:
    secret = run("keys", "create", "bob", "--rpm", "5").stdout.strip()
    digest = "0" * 64
    config.write_text(
        config.read_text() + f'keys: [{{name: app, team: search, hash: "sha256:{digest}"}}]\n'
    )
    done = run("keys", "list")
    assert done.exit_code == 0
    assert secret not in done.stdout
    assert digest not in done.stdout
    assert "rpm=5" in done.stdout
    app, bob = listed(run)
    assert (app["name"], app["source"], app["team"]) == ("app", "file", "search")
    assert (bob["name"], bob["source"], bob["state"]) == ("bob", "store", "active")


def test_an_empty_list(run: Run) -> None:
    done = run("keys", "list")
    assert (done.exit_code, done.stdout) == (0, "")
    assert listed(run) == []


def test_one_key_is_shown_without_its_secret(run: Run) -> None:
    secret = run("keys", "create", "bob", "--tier", "free", "--rpm", "5").stdout.strip()
    shown = run("keys", "show", "bob")
    assert shown.exit_code == 0
    assert "rpm=5" in shown.stdout
    told = json.loads(run("keys", "show", "bob", "--json").stdout)["key"]
    assert (told["tier"], told["limits"], told["state"]) == ("free", {"rpm": 5}, "active")
    assert secret[12:] not in shown.stdout + json.dumps(told)


def test_a_rotation_within_a_rotation_says_that_the_first_secret_ended(run: Run) -> None:
    run("keys", "create", "bob")
    assert "has ended" not in run("keys", "rotate", "bob").stderr
    assert "has ended" in run("keys", "rotate", "bob").stderr


def test_rotation_keeps_the_old_secret_for_a_while(run: Run) -> None:
    old = run("keys", "create", "bob").stdout
    told = json.loads(run("keys", "rotate", "bob", "--overlap", "2h", "--json").stdout)
    assert told["secret"] != old.strip()
    assert told["secret"].startswith(f"gk_{told['id']}_")
    (bob,) = listed(run)
    until = datetime.fromisoformat(bob["previous_until"]).timestamp()
    assert 7100 < until - SystemClock().now() < 7300


def test_revoking_asks_and_off_a_terminal_refuses(run: Run, tmp_path: Path) -> None:
    run("keys", "create", "bob")
    done = run("keys", "revoke", "bob")
    assert done.exit_code == USAGE
    assert "--yes" in done.stderr
    assert run("keys", "revoke", "bob", "--yes").exit_code == 0
    assert stored(tmp_path)["bob"].revoked is not None
    again = run("keys", "revoke", "bob")
    assert (again.exit_code, "already" in again.stderr) == (0, True)
    assert run("keys", "rotate", "bob").exit_code == CONFLICT
    assert "revoked" in run("keys", "create", "bob").stderr
    assert listed(run)[0]["state"] == "revoked"


def test_whoever_says_no_revokes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("keys", "create", "bob")
    monkeypatch.setattr("gateway.cli.say.interactive", lambda: True)
    assert run("keys", "revoke", "bob", input="n\n").exit_code == 130
    assert stored(tmp_path)["bob"].revoked is None
    assert run("keys", "revoke", "bob", input="y\n").exit_code == 0


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["create", "Bob Smith"], USAGE, "no name for a key"),
        (["create", "bob", "--tier", "fre"], USAGE, "did you mean free?"),
        (["create", "bob", "--team", "x"], USAGE, "no team"),
        (["create", "bob", "--chains", "smart,dumb"], USAGE, "no chain 'dumb'"),
        (["create", "bob", "--rpm", "0"], USAGE, "rpm"),
        (["create", "bob", "--tier", "free", "--rpm", "21"], USAGE, "rpm 21 is wider than the 20"),
        (["create", "bob", "--team", "search", "--rpm", "21"], USAGE, "of the team search"),
        (["show", "ther"], NOT_FOUND, "Did you mean there?"),
        (["rotate", "there", "--overlap", "91d"], USAGE, "90 days"),
        (["create", "bob", "--expires", "soon"], USAGE, "neither a span"),
        (["create", "bob", "--expires", "2001-01-01"], USAGE, "over"),
        (["create", "bob", "--role", "king"], USAGE, "king"),
        (["create", "there"], CONFLICT, "gateway keys rotate there"),
        (["rotate", "ther"], NOT_FOUND, "Did you mean there?"),
        (["rotate", "there", "--overlap", "a while"], USAGE, "no span"),
        (["revoke", "nobody", "--yes"], NOT_FOUND, "gateway keys list"),
        (["frobnicate"], USAGE, "frobnicate"),
        (["list", "-c", "other.yaml"], NOT_FOUND, "gateway init"),
    ],
)
def test_wrong_input(run: Run, args: list[str], code: int, said: str) -> None:
    assert run("keys", "create", "there").exit_code == 0
    done = run("keys", *args)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr


def test_a_key_of_the_file_is_the_files(run: Run, config: Path) -> None:
    config.write_text(config.read_text() + f'keys: [{{name: app, hash: "sha256:{"0" * 64}"}}]\n')
    for args in (["create", "app"], ["rotate", "app"], ["revoke", "app", "--yes"]):
        assert run("keys", *args).exit_code == CONFLICT


def test_a_state_directory_that_cannot_be(run: Run, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file stands in the way")
    done = run("keys", "create", "bob")
    assert done.exit_code == UNAVAILABLE
    assert "gateway doctor" in done.stderr
