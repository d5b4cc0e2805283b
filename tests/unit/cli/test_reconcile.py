"""`gateway spend reconcile`: the verdict, and what stands beside it."""

import csv
import io
import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.exits import FAILED, USAGE
from gateway.clock import SystemClock
from gateway.state.embedded.ledger import apply, clean
from gateway.state.embedded.sqlite import connect
from gateway.state.journal import Final
from tests.unit.cli.conftest import Run
from tests.unit.state.make import line, opening

pytestmark = pytest.mark.usefixtures("config")
NOW = SystemClock().now()
TODAY = datetime.fromtimestamp(NOW, UTC).date()
DAY = (TODAY - timedelta(days=3)).isoformat()
HEAD = "date,model,input_tokens,output_tokens,cached_tokens,cost_usd\n"
ROW = f"{DAY},gpt-5-mini-2025-08-07,900,50,100,0.000325\n"


def booked(folder: Path, *changes: dict[str, Any], days: int = 3) -> None:
    """A line for each of `changes`, so many days ago."""
    at = NOW - days * 86_400
    finals = []
    for number, change in enumerate(changes, 1):
        id = f"req_{days}.{number}"
        opened = {name: change[name] for name in change if name in {"provider", "kind", "model"}}
        settled = {name: change[name] for name in change if name not in opened}
        finals.append(Final(number, opening(id, **opened), line(id, at=at, **settled)))
    with closing(connect(folder / "state")) as db:
        apply(db, f"w{days}", finals)


def export(folder: Path, text: str) -> str:
    path = folder / "export.csv"
    path.write_text(text)
    return str(path)


def test_what_matches_is_said_and_all_is_well(run: Run, tmp_path: Path) -> None:
    booked(tmp_path, {})
    done = run("spend", "reconcile", export(tmp_path, HEAD + ROW))
    assert done.exit_code == 0
    assert [line.split() for line in done.stdout.splitlines()[1:]] == [
        [DAY, "gpt-5-mini", "provider", "900", "50", "100", "$0.000325"],
        ["answers", "1", "900", "50", "100", "$0.000325"],
        ["unexplained", "0", "0", "0", "$0"],
    ]
    assert "Nothing is unexplained" in done.stderr


def test_what_is_left_over_is_told_beside_what_may_explain_it(run: Run, tmp_path: Path) -> None:
    booked(
        tmp_path,
        {},
        {"outcome": "server_error", "usage": line().usage, "nano_usd": 5},
        {"outcome": "cancelled", "flags": "estimated,partial", "nano_usd": None},
    )
    path = export(tmp_path, HEAD + ROW)
    done = run("spend", "reconcile", path)
    assert done.exit_code == FAILED
    assert done.stdout.splitlines()[-1].split() == [
        *("unexplained", "-1,800", "-100", "-200", "-$0.000000005"),
    ]
    assert "1 of 1 days and models" in done.stderr
    assert "in 1 of them some tokens are estimates" in done.stderr
    assert "1 calls have no price" in done.stderr
    told = json.loads(run("spend", "reconcile", path, "--json").stdout)
    assert (told["format"], told["from"], told["unexplained"]) == ("plain", DAY, 1)
    (row,) = told["rows"]
    tokens = {"calls": 1, "input": 900, "output": 50, "cached": 100}
    assert row["failures"] == tokens | {"cost_usd": "0.000000005"}
    assert row["unexplained"]["cost_usd"] == "-0.000000005"
    assert row["explained"] is False
    rows = list(csv.DictReader(io.StringIO(run("spend", "reconcile", path, "--csv").stdout)))
    assert [row["part"] for row in rows] == [
        *("provider", "answers", "failures", "estimates", "unexplained"),
    ]


def test_a_day_the_provider_does_not_know_is_unexplained(run: Run, tmp_path: Path) -> None:
    booked(tmp_path, {})
    booked(tmp_path, {}, days=2)
    tomorrow = (TODAY - timedelta(days=1)).isoformat()
    path = export(tmp_path, HEAD + ROW + f"{tomorrow},gpt-5-mini,0,0,0,0\n")
    assert run("spend", "reconcile", path).exit_code == FAILED
    assert run("spend", "reconcile", path, "--until", DAY).exit_code == 0


def test_an_export_is_of_one_provider(run: Run, tmp_path: Path) -> None:
    booked(tmp_path, {}, {"provider": "alpha"})
    path = export(tmp_path, HEAD + ROW)
    done = run("spend", "reconcile", path)
    assert (done.exit_code, done.stdout) == (USAGE, "")
    assert "calls to alpha, openai" in done.stderr
    assert "--provider alpha" in done.stderr
    assert run("spend", "reconcile", path, "--provider", "openai").exit_code == 0
    both = ("--provider", "openai", "--provider", "alpha")
    assert run("spend", "reconcile", path, *both).exit_code == FAILED


def test_days_whose_lines_are_gone_cannot_be_reconciled(run: Run, tmp_path: Path) -> None:
    booked(tmp_path, {})
    with closing(connect(tmp_path / "state")) as db:
        clean(db, int(NOW // 86_400))
    oldest = TODAY - timedelta(days=30)
    early = f"{oldest - timedelta(days=1)},gpt-5-mini,1,1,1,1\n"
    done = run("spend", "reconcile", export(tmp_path, HEAD + early + ROW))
    assert (done.exit_code, done.stdout) == (USAGE, "")
    assert f"lines on {oldest}" in done.stderr
    path = export(tmp_path, HEAD + early + ROW)
    assert run("spend", "reconcile", path, "--since", oldest.isoformat()).exit_code == 0
    done = run("spend", "reconcile", export(tmp_path, HEAD + early))
    assert (done.exit_code, "kept 30 days" in done.stderr) == (USAGE, True)


def test_a_day_that_is_not_over_is_said_to_be(run: Run, tmp_path: Path) -> None:
    booked(tmp_path, {}, days=0)
    done = run("spend", "reconcile", export(tmp_path, HEAD + ROW.replace(DAY, TODAY.isoformat())))
    assert done.exit_code == 0
    assert "is not over" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--provider", "planet"], "There is no provider 'planet'; there are alpha, bravo, openai"),
        (["--since", "2001-01-02", "--until", "2001-01-01"], "no day of it is left"),
        (["--since", "7d"], "--since"),
        (["--csv", "--json"], "choose one"),
    ],
)
def test_wrong_input(run: Run, tmp_path: Path, args: list[str], said: str) -> None:
    done = run("spend", "reconcile", export(tmp_path, HEAD + ROW), *args)
    assert (done.exit_code, done.stdout) == (USAGE, "")
    assert said in done.stderr


def test_options_before_the_word_are_not_lost_in_silence(run: Run, tmp_path: Path) -> None:
    done = run("spend", "--json", "reconcile", export(tmp_path, HEAD + ROW))
    assert done.exit_code == USAGE
    assert "--json stands before reconcile" in done.stderr
