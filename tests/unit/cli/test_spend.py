"""`gateway spend`: exact sums out of the ledger, for eyes, spreadsheets and programs."""

import csv
import io
import json
from contextlib import closing
from pathlib import Path

import pytest

from gateway.cli.exits import NOT_FOUND, USAGE
from gateway.clock import SystemClock
from gateway.state.embedded.ledger import clean
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


@pytest.mark.usefixtures("ledger")
def test_days_of_which_only_sums_are_left_are_told(run: Run, tmp_path: Path) -> None:
    now = SystemClock().now()
    with closing(connect(tmp_path / "state")) as db:
        today = int(now // 86_400)
        row = ("INSERT INTO spent VALUES (?, 'bob', ?, 1, 1, 7, 7, 9, 0)", ("key", today - 50))
        db.execute(*row)
        clean(db, today)
    done = run("spend", "--by", "model", "--since", "90d")
    assert "--by model begins on" in done.stderr
    assert done.stdout.splitlines()[-1].split()[:2] == ["total", "5"]
    told = json.loads(run("spend", "--by", "model", "--since", "90d", "--json").stdout)
    assert told["complete"] is False
    assert told["lines_from"] in done.stderr
    done = run("spend", "--by", "day,key", "--since", "90d")
    assert "only sums are kept" in done.stderr
    assert len(done.stdout.splitlines()) == 6
    assert "sums" not in run("spend", "--by", "model", "--since", "20d").stderr


@pytest.fixture
def movers(tmp_path: Path) -> None:
    """Ann as always; bob nine times as much, and somebody new."""
    today = int(SystemClock().now() // 86_400)
    spent = [
        *(("k/ann", day, 2_000_000_000) for day in range(8)),
        *(("k/bob", day, 2_000_000_000) for day in range(1, 3)),
        *(("k/bob", 0, 18_000_000_000), ("k/=new()", 0, 1_000_000_001)),
    ]
    with closing(connect(tmp_path / "state")) as db:
        for name, ago, nano in spent:
            row = ("user", name, today - ago, nano)
            db.execute("INSERT INTO spent VALUES (?, ?, ?, 1, 1, 1, 1, ?, 0)", row)


@pytest.mark.usefixtures("movers")
def test_movers_are_those_above_what_they_usually_spend(run: Run) -> None:
    done = run("spend", "--movers")
    assert [line.split() for line in done.stdout.splitlines()[1:]] == [
        ["k", "bob", "$18", "$2", "9.0", "times,", "of", "2", "known", "days"],
        ["k", "=new()", "$1.000000001", "the", "first", "day"],
    ]
    told = json.loads(run("spend", "--movers", "--json").stdout)
    assert (told["factor"], told["floor_usd"]) == ("2", "1")
    bob = {"key": "k", "user": "bob", "today_usd": "18", "usual_usd": "2", "days": 2}
    assert told["movers"][0] == bob
    assert run("spend", "--movers", "--csv").stdout.splitlines()[2].startswith("k,'=new(),")


@pytest.mark.usefixtures("movers")
def test_the_file_says_who_is_a_mover(run: Run, config: Path) -> None:
    config.write_text(
        config.read_text() + "observe: {alerts: {spend: {factor: 9, floor_usd: 1.1}}}\n"
    )
    done = run("spend", "--movers")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "more than 9 times the mean of the 7 days before and above $1.1" in done.stderr


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
        (["--movers", "--by", "key"], USAGE, "--movers compares"),
        (["planets"], USAGE, "No such command"),
        (["-c", "other.yaml"], NOT_FOUND, "gateway init"),
    ],
)
def test_wrong_input(run: Run, args: list[str], code: int, said: str) -> None:
    done = run("spend", *args)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr
