"""The ledger as it lies on disk, held against what the simulator billed and callers were told."""

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path

from chaos.upstream import Call
from gateway.state.embedded.ledger import drift
from tests.end_to_end.load import Heard

LOST = "worker_lost"


@dataclass(frozen=True, slots=True)
class Row:
    """One attempt."""

    attempt_id: str
    request_id: str
    session: str
    provider: str
    input: int
    output: int
    nano_usd: int
    flags: str
    outcome: str

    @property
    def estimated(self) -> bool:
        return "estimated" in self.flags.split(",")

    @property
    def lost(self) -> bool:
        return self.outcome == LOST


@dataclass(frozen=True, slots=True)
class Books:
    """What a state directory holds while nobody serves from it."""

    rows: Mapping[str, Row]
    drift: int
    healthy: str
    cursors: int
    spent: tuple[int, int, int, int, int]  # requests, attempts, input, output, nano_usd
    files: tuple[str, ...]

    @classmethod
    def read(cls, state: Path) -> "Books":
        db = sqlite3.connect(f"{(state / 'gateway.sqlite3').as_uri()}?mode=ro", uri=True)
        try:
            rows = db.execute(
                "SELECT attempt_id, request_id, session, provider, input, output, nano_usd, flags,"
                " outcome FROM ledger"
            ).fetchall()
            (spent,) = db.execute(
                "SELECT coalesce(sum(requests), 0), coalesce(sum(attempts), 0),"
                " coalesce(sum(input), 0), coalesce(sum(output), 0), coalesce(sum(nano_usd), 0)"
                " FROM spent WHERE scope = 'key'"
            ).fetchall()
            return cls(
                rows={row[0]: Row(*row) for row in rows},
                drift=drift(db),
                healthy=db.execute("PRAGMA integrity_check").fetchone()[0],
                cursors=db.execute("SELECT count(*) FROM cursor").fetchone()[0],
                spent=spent,
                files=tuple(sorted(path.name for path in state.iterdir())),
            )
        finally:
            db.close()


@dataclass(frozen=True, slots=True)
class Bill:
    """What one attempt was billed: all calls that carried its id."""

    prompt: int
    completion: int
    faults: frozenset[str]

    @classmethod
    def of(cls, calls: Iterable[Call]) -> dict[str, "Bill"]:
        found: defaultdict[str, list[Call]] = defaultdict(list)
        for call in calls:
            assert call.attempt_id is not None
            found[call.attempt_id].append(call)
        return {
            attempt_id: cls(
                sum(call.prompt_tokens for call in calls),
                sum(call.completion_tokens for call in calls),
                frozenset(call.fault for call in calls if call.fault),
            )
            for attempt_id, calls in found.items()
        }


Prices = Mapping[str, tuple[str, str]]  # provider: dollars per million tokens in and out


def priced(prices: Prices, provider: str, prompt: int, completion: int) -> int:
    """Nano-dollars, by the book: gateway.md 6."""
    into, out = (Fraction(dollars) * 10**9 for dollars in prices[provider])
    return ceil((prompt * into + completion * out) / 10**6)


@dataclass(slots=True)
class Found:
    """The figures of an audit."""

    rows: int = 0
    exact: int = 0
    untold: int = 0  # estimated because the upstream broke off, or told no usage
    lost: int = 0  # estimated because the worker died
    unheard: int = 0  # of them: no byte reached the upstream
    counted: int = 0  # of them: with tokens of a checkpoint
    whole: int = 0  # answers callers have from the first byte to the last
    nano_usd: int = 0


def audit(
    books: Books,
    calls: Iterable[Call],
    heard: Iterable[Heard],
    prices: Prices,
    untold: frozenset[str] = frozenset({"cut", "usage_missing"}),
) -> Found:
    """Every row explained, every call booked, every sum the sum of its parts.

    After a fault that is `untold` the upstream's own figures are not known to anybody but it.
    """
    found = Found(rows=len(books.rows))
    bills = Bill.of(calls)
    by_name = {one.ask.name: one for one in heard}
    rows_of: defaultdict[str, list[Row]] = defaultdict(list)
    due = 0
    assert not bills.keys() - books.rows.keys(), "called, and in no ledger"
    for row in books.rows.values():
        rows_of[row.session].append(row)
        bill = bills.get(row.attempt_id)
        caller = by_name[row.session]
        assert row.nano_usd == priced(prices, row.provider, row.input, row.output), row
        if row.lost:
            assert row.flags == "estimated", row
            assert caller.fate == "broken", (row, caller, "its caller has the whole answer")
            assert bill is not None or row.output == 0, (row, "tokens out of nothing")
            found.lost += 1
            found.unheard += bill is None
            found.counted += row.output > 0
            continue
        assert bill is not None, (row, "nobody was called")
        if row.estimated:
            assert bill.faults & untold, (row, bill)
            found.untold += 1
            continue
        assert (row.input, row.output) == (bill.prompt, bill.completion), (row, bill)
        due += priced(prices, row.provider, bill.prompt, bill.completion)
        found.exact += 1
        found.nano_usd += row.nano_usd
    assert found.nano_usd == due
    _told(by_name.values(), rows_of, found)
    _sums(books)
    return found


def _told(heard: Iterable[Heard], rows_of: Mapping[str, list[Row]], found: Found) -> None:
    """What callers were told is what is booked."""
    for one in heard:
        rows = sorted(rows_of.get(one.ask.name, []), key=lambda row: row.attempt_id)
        assert sum(row.lost for row in rows) <= 1, (one, rows)
        if not one.whole:
            continue
        found.whole += 1
        assert rows, (one, "was answered out of nothing")
        assert {row.request_id for row in rows} == {one.request_id}, (one, rows)
        last = rows[-1]
        assert one.good == (last.outcome == "ok"), (one, last)
        if one.usage is not None:
            assert one.usage == (last.input, last.output), (one, last)


def _sums(books: Books) -> None:
    rows = books.rows.values()
    assert books.healthy == "ok"
    assert books.drift == 0
    assert books.spent == (
        sum(row.attempt_id.endswith(".1") for row in rows),
        len(rows),
        sum(row.input for row in rows),
        sum(row.output for row in rows),
        sum(row.nano_usd for row in rows),
    )
