"""What was spent, by whom and on what: read-only, for the CLI, beside a running gateway.

Exact: whole nano-dollars, and beside them how many calls had no price. Lines live 30 days; of the
days before, only sums by key, by team, by user and by day are left.
"""

from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from sqlite3 import Connection
from typing import NamedTuple

from gateway.state.embedded.sqlite import look

DIMENSIONS = (
    "key", "team", "user", "session", "chain", "target", "model", "tag", "kind", "day",
)  # fmt: skip
DAY = 86_400
SUMMED = ("key", "team", "user")
LINES = "(SELECT value FROM version WHERE name = 'lines')"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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


Group = tuple[tuple[str, ...], tuple[int, ...]]


def _lines(db: Connection, by: Sequence[str], since: float) -> list[Group]:
    columns = ", ".join(f'"{"tags" if word == "tag" else word}"' for word in by)
    query = f"""SELECT {columns}{"," if by else ""}
      count(DISTINCT request_id), count(*), sum(input), sum(output), sum(cached), sum(reasoning),
      coalesce(sum(nano_usd), 0), count(*) - count(nano_usd)
      FROM ledger WHERE day >= max(?, {LINES}) AND at >= ? {"GROUP BY " + columns if by else ""}"""  # noqa: S608 - words of DIMENSIONS
    return _groups(db.execute(query, (int(since // DAY), since)).fetchall(), len(by))


def _sums(db: Connection, by: Sequence[str], since: float) -> list[Group]:
    """The days before the oldest line, from their sums."""
    scopes = [word for word in by if word in SUMMED]
    if len(scopes) > 1 or any(word not in (*SUMMED, "day") for word in by):
        return []
    columns = ", ".join("name" if word in SUMMED else "day" for word in by)
    query = f"""SELECT {columns}{"," if by else ""}
      sum(requests), sum(attempts), sum(input), sum(output), 0, 0, sum(nano_usd), sum(unknown)
      FROM spent WHERE scope = ? AND day >= ? AND day < {LINES}
      {"GROUP BY " + columns if by else ""}"""  # noqa: S608 - two words of ours
    scope = scopes[0] if scopes else "key"
    rows = db.execute(query, (scope, int(since // DAY))).fetchall()
    groups = _groups(rows, len(by))
    if scope != "user":
        return groups
    place = by.index("user")
    return [
        ((*group[:place], group[place].partition("/")[2], *group[place + 1 :]), values)
        for group, values in groups
    ]


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
            values = [(EPOCH + timedelta(days=int(value))).date().isoformat()]
        names = [(*name, one) for name in names for one in values]
    return names
