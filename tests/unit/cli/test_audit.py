"""`gateway audit`: who did what, and whether the log is whole."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.cli.exits import FAILED, UNAVAILABLE
from gateway.state.embedded.sqlite import FILE
from tests.unit.cli.conftest import Run

pytestmark = pytest.mark.usefixtures("config")


def tamper(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / "state" / FILE, isolation_level=None)) as db:
        for statement in ("DROP TRIGGER audit_stays", "DROP TRIGGER audit_ages", *statements):
            db.execute(statement)


def test_every_change_of_a_key_is_a_line_that_names_the_user(run: Run) -> None:
    assert "Nothing yet" in run("audit").stderr
    run("keys", "create", "bob", "--rpm", "5")
    run("keys", "rotate", "bob", "--overlap", "1h")
    run("keys", "revoke", "bob", "--yes")
    done = run("audit")
    assert done.exit_code == 0
    assert "cli:" in done.stdout
    lines = json.loads(run("audit", "--json", "--last", "2").stdout)["lines"]
    assert [(line["seq"], line["verb"], line["object"]) for line in lines] == [
        (3, "key.revoke", "bob"),
        (2, "key.rotate", "bob"),
    ]
    assert all(len(line["config"]) == 12 for line in lines)


def test_a_whole_log_holds_and_says_its_last_hash(run: Run) -> None:
    secret = run("keys", "create", "bob").stdout.strip()
    done = run("audit", "--verify")
    assert (done.exit_code, "lines 1 to 1" in done.stdout) == (0, True)
    told = json.loads(run("audit", "--verify", "--json").stdout)
    assert (told["holds"], told["last"]) == (True, 1)
    assert run("audit", "--holds", told["hash"]).exit_code == 0
    assert run("audit", "--holds", "0" * 64).exit_code == FAILED
    assert secret[12:] not in done.stdout + json.dumps(told) + run("audit").stdout


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE audit SET result = 'no' WHERE seq = 1", "line 1 was changed"),
        ("DELETE FROM audit WHERE seq = 2", "line 2 is missing"),
    ],
)
def test_a_changed_or_missing_line_is_named(
    run: Run, tmp_path: Path, statement: str, said: str
) -> None:
    for name in ("bob", "eve", "joe"):
        run("keys", "create", name)
    tamper(tmp_path, statement)
    done = run("audit", "--verify")
    assert done.exit_code == FAILED
    assert said in done.stderr
    told = run("audit", "--verify", "--json")
    assert (told.exit_code, json.loads(told.stdout)["faults"]) == (FAILED, [said])


def test_a_store_that_is_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / FILE).write_bytes(b"this is no database, whatever its name says" * 50)
    done = run("audit")
    assert done.exit_code == UNAVAILABLE
    assert "not a database" in done.stderr
    assert run("keys", "list").exit_code == UNAVAILABLE
    assert run("keys", "create", "bob").exit_code == UNAVAILABLE
