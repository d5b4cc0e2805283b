"""`gateway spend`: exact sums out of the ledger, for eyes, spreadsheets and programs."""

import csv
import io
import json
from contextlib import closing
from pathlib import Path

import pytest

from gateway.cli.exits import NOT_FOUND, USAGE
from gateway.clock import SystemClock
from gateway.state.embedded.sqlite import connect
from tests.unit.cli.conftest import Run

pytestmark = pytest.mark.usefixtures("config")


@pytest.fixture
def ledger(tmp_path: Path) -> None:
    """Four calls: two of bob (one without a price), one of a formula, one of last month."""
    now = SystemClock().now()
    rows = (
        ("req_1.1", now - 60, "bob", 120_000, "gpt"),
        ("req_2.1", now - 60, "bob", None, "llama"),
        ("req_3.1", now - 86_400 * 3, "=cmd()", 1, "gpt"),
        ("req_4.1", now - 86_400 * 25, "bob", 5_000_000_000, "gpt"),
    )
    with closing(connect(tmp_path / "state")) as db:
        for attempt, at, key, nano, model in rows:
            db.execute(
                "INSERT INTO ledger (attempt_id, request_id, at, day, key, tags, chain, target,"
                " provider, model, kind, input, output, cached, cache_write_5m, cache_write_1h,"
                " reasoning, audio_input, audio_output, nano_usd, flags, outcome, upstream_ms)"
                " VALUES (?, ?, ?, ?, ?, '', 'smart', 'gpt', 'openai', ?, 'answer',"
                " 1000, 20, 3, 0, 0, 12, 0, 0, ?, '', 'ok', 5)",
                (attempt, attempt[:-2], at, int(at // 86_400), key, model, nano),
            )


@pytest.mark.usefixtures("ledger")
def test_the_table_is_exact_and_tells_what_has_no_price(run: Run) -> None:
    done = run("spend")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[1].split() == [
        *("bob", "2", "2", "2,000", "40", "6", "24", "$0.00012"),
        *("+", "1", "calls", "without", "a", "price"),
    ]
    assert lines[-1].split()[:8] == ["total", "3", "3", "3,000", "60", "9", "36", "$0.000120001"]


@pytest.mark.usefixtures("ledger")
def test_json_groups_by_what_was_said(run: Run) -> None:
    told = json.loads(run("spend", "--by", "key,model", "--json").stdout)
    assert told["by"] == ["key", "model"]
    told_rows = [
        (r["key"], r["model"], r["cost_usd"], r["unpriced_attempts"]) for r in told["rows"]
    ]
    assert told_rows == [
        ("bob", "gpt", "0.00012", 0),
        ("=cmd()", "gpt", "0.000000001", 0),
        ("bob", "llama", "0", 1),
    ]
    assert told["total"]["cost_usd"] == "0.000120001"


@pytest.mark.usefixtures("ledger")
def test_since_may_be_a_span_or_a_day(run: Run) -> None:
    for since in ("30d", "2001-01-01"):
        told = json.loads(run("spend", "--since", since, "--json").stdout)
        assert told["total"]["cost_usd"] == "5.000120001"
    assert json.loads(run("spend", "--since", "1h", "--json").stdout)["total"]["requests"] == 2


@pytest.mark.usefixtures("ledger")
def test_csv_is_read_by_a_spreadsheet_and_not_run(run: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(run("spend", "--csv").stdout)))
    assert [(row["key"], row["cost_usd"]) for row in rows] == [
        ("bob", "0.00012"),
        ("'=cmd()", "0.000000001"),
    ]


def test_nothing_was_spent(run: Run) -> None:
    done = run("spend")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "Nothing was spent" in done.stderr
    assert json.loads(run("spend", "--json").stdout)["rows"] == []


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--by", "planet"], USAGE, "there are key, team"),
        (["--by", ","], USAGE, "--by"),
        (["--since", "ever"], USAGE, "neither a span"),
        (["--csv", "--json"], USAGE, "choose one"),
        (["-c", "other.yaml"], NOT_FOUND, "gateway init"),
    ],
)
def test_wrong_input(run: Run, args: list[str], code: int, said: str) -> None:
    done = run("spend", *args)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr
