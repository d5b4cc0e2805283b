"""What was spent, by whom and on what: read-only, for the CLI, beside a running gateway.

Exact: whole nano-dollars, and beside them how many calls had no price. Lines live 30 days; of the
days before, only sums by key, user and day, and by team and day, are left.
"""

from collections.abc import Sequence
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from sqlite3 import Connection
from typing import NamedTuple

from gateway.core.reconcile import Booked, Figures
from gateway.state.embedded.sqlite import look

DIMENSIONS = (
    "key", "team", "user", "session", "chain", "target", "model", "tag", "kind", "day",
)  # fmt: skip
DAY = 86_400
SUMMED = (frozenset({"key", "user", "day"}), frozenset({"team", "day"}))  # what sums can tell
LINES = "(SELECT value FROM version WHERE name = 'lines')"
FIGURES = "requests, attempts, input, output, nano_usd, unknown"
LESS = ", ".join(f"-{name} AS {name}" for name in FIGURES.split(", "))
OF_USERS = "substr(name, 1, instr(name, '/') - 1) AS key"
PARTS = {  # by whom one asks: rows of that, and of those who have none
    "key": f"SELECT name AS key, day, {FIGURES} FROM spent WHERE scope = 'key'",  # noqa: S608
    "team": f"""SELECT name AS team, day, {FIGURES} FROM spent WHERE scope = 'team'
      UNION ALL SELECT '', day, {FIGURES} FROM spent WHERE scope = 'key'
      UNION ALL SELECT '', day, {LESS} FROM spent WHERE scope = 'team'""",  # noqa: S608
    "user": f"""SELECT {OF_USERS}, substr(name, instr(name, '/') + 1) AS user, day, {FIGURES}
      FROM spent WHERE scope = 'user'
      UNION ALL SELECT name, '', day, {FIGURES} FROM spent WHERE scope = 'key'
      UNION ALL SELECT {OF_USERS}, '', day, {LESS} FROM spent WHERE scope = 'user'""",  # noqa: S608
}
BOOKED = """SELECT day, provider, model,
  CASE WHEN instr(flags, 'estimated') THEN 'estimates'
    WHEN kind = 'hedge' THEN 'hedges'
    WHEN kind = 'drill' THEN 'drills'
    WHEN outcome = 'cancelled' THEN 'cancelled'
    WHEN outcome = 'ok' THEN 'answers'
    ELSE 'failures' END AS sort,
  count(*), sum(input), sum(output), sum(cached), coalesce(sum(nano_usd), 0),
  count(*) FILTER (WHERE nano_usd > 0), count(*) - count(nano_usd)
  FROM ledger WHERE day BETWEEN ? AND ? GROUP BY day, provider, model, sort"""
EPOCH = date(1970, 1, 1)


class Row(NamedTuple):
    """One group. `group` holds the values of `by`, in its order; "" where there is none.

    `unknown`: attempts without a price, which are not in `nano_usd`.
    """

    group: tuple[str, ...]
    requests: int
    attempts: int
    input: int
    output: int
    cached: int
    reasoning: int
    nano_usd: int
    unknown: int


def spend(folder: Path | str, by: Sequence[str], since: float) -> list[Row]:
    """Dearest first; `since` epoch seconds.

    A request with two tags stands in both groups of `tag`. A request answered over two targets
    stands in both groups of `target`. Days whose lines are gone count where their sums can tell.

    Raises:
        ValueError: a word of `by` is none of DIMENSIONS.
    """
    for word in by:
        if word not in DIMENSIONS:
            raise ValueError(f"{word} is none of {', '.join(DIMENSIONS)}")
    db = look(Path(folder))
    if db is None:
        return []
    with closing(db):
        groups: dict[tuple[str, ...], list[int]] = {}
        for group, values in (*_lines(db, by, since), *_sums(db, by, since)):
            for name in _named(group, by):
                found = groups.setdefault(name, [0] * 8)
                for place, value in enumerate(values):
                    found[place] += value
    rows = [Row(group, *values) for group, values in groups.items()]
    return sorted(rows, key=lambda row: (-row.nano_usd, row.group))


def total(folder: Path | str, since: float) -> Row:
    """Everything in one row, its group ()."""
    rows = spend(folder, (), since)
    return rows[0] if rows else Row((), 0, 0, 0, 0, 0, 0, 0, 0)


def first_line(folder: Path | str) -> date:
    """The first day of which the ledger has all lines."""
    db = look(Path(folder))
    if db is None:
        return EPOCH
    with closing(db):
        ((day,),) = db.execute(f"SELECT {LINES}").fetchall()
    return as_date(day)


def begins(folder: Path | str, by: Sequence[str], since: float) -> tuple[date, bool] | None:
    """From which day on the ledger has lines, if more than those was spent since `since`.

    Beside it, whether the days before are in `spend(folder, by, since)` by their sums, which know
    no cached and no reasoning tokens.
    """
    db = look(Path(folder))
    if db is None:
        return None
    with closing(db):
        ((lines,),) = db.execute(f"SELECT {LINES}").fetchall()
        found = db.execute(
            "SELECT 1 FROM spent WHERE day >= ? AND day < ? LIMIT 1", (int(since // DAY), lines)
        ).fetchone()
    return (as_date(lines), _summed(by)) if found else None


def booked(folder: Path | str, first: date, last: date) -> list[Booked]:
    """What the lines of these days (both included) say, by day, provider, model and sort.

    A line stands in one sort: `estimates` if its tokens are ours, else by why the call was made
    (`hedges`, `drills`), else by what became of it.
    """
    db = look(Path(folder))
    if db is None:
        return []
    with closing(db):
        days = (first - EPOCH).days, (last - EPOCH).days
        return [
            Booked(as_date(day), provider, model, sort, Figures(*figures))
            for day, provider, model, sort, *figures in db.execute(BOOKED, days)
        ]


def as_date(day: int) -> date:
    """Of days since 1970-01-01."""
    return EPOCH + timedelta(days=day)


Group = tuple[tuple[str, ...], tuple[int, ...]]


def _lines(db: Connection, by: Sequence[str], since: float) -> list[Group]:
    columns = ", ".join(f'"{"tags" if word == "tag" else word}"' for word in by)
    query = f"""SELECT {columns}{"," if by else ""}
      count(DISTINCT request_id), count(*), sum(input), sum(output), sum(cached), sum(reasoning),
      coalesce(sum(nano_usd), 0), count(*) - count(nano_usd)
      FROM ledger WHERE day >= max(?, {LINES}) AND at >= ? {"GROUP BY " + columns if by else ""}"""  # noqa: S608 - words of DIMENSIONS
    return _groups(db.execute(query, (int(since // DAY), since)).fetchall(), len(by))


def _sums(db: Connection, by: Sequence[str], since: float) -> list[Group]:
    """The days before the oldest line, from their sums.

    Sums of users and teams leave out who has none: that is what the keys' sums have beyond them.
    """
    if not _summed(by):
        return []
    scope = next((word for word in ("team", "user") if word in by), "key")
    columns = ", ".join(by)
    query = f"""SELECT {columns}{"," if by else ""}
      sum(requests), sum(attempts), sum(input), sum(output), 0, 0, sum(nano_usd), sum(unknown)
      FROM ({PARTS[scope]}) WHERE day >= ? AND day < {LINES}
      {"GROUP BY " + columns if by else ""}"""  # noqa: S608 - words of DIMENSIONS
    return _groups(db.execute(query, (int(since // DAY),)).fetchall(), len(by))


def _summed(by: Sequence[str]) -> bool:
    """Whether sums can tell of these groups."""
    return any(known.issuperset(by) for known in SUMMED)


def _groups(rows: Sequence[Sequence[str | int | None]], width: int) -> list[Group]:
    """Names and figures apart; a sum over nothing is no group."""
    return [
        (
            tuple("" if value is None else str(value) for value in row[:width]),
            tuple(int(value or 0) for value in row[width:]),
        )
        for row in rows
        if row[width + 1]
    ]


def _named(group: tuple[str, ...], by: Sequence[str]) -> list[tuple[str, ...]]:
    """Days as dates; one group for each of a line's tags."""
    names: list[tuple[str, ...]] = [()]
    for word, value in zip(by, group, strict=True):
        values = [value]
        if word == "tag":
            values = sorted(set(value.split(",")))
        elif word == "day":
            values = [as_date(int(value)).isoformat()]
        names = [(*name, one) for name in names for one in values]
    return names
