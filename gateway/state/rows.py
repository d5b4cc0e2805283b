"""What the ledger keeps of an attempt, and what it adds to the sums: the same in every store."""

from collections.abc import Iterable
from typing import Any

from gateway.state.journal import MOST, Final
from gateway.wire import json

DAY = 86_400
LINES = 30  # days rows are kept
SUMS = 400  # days sums are kept

Row = tuple[Any, ...]
"""The columns of `ledger` in the embedded schema, in order."""

Place = tuple[str, str, int]
"""Whose sum: scope (key, team, user), name, day. A user's name is `key/user`."""

Sums = dict[Place, list[int]]
"""requests, attempts, input, output, nano_usd, unknown"""

NONE = [0] * 6


def row_of(final: Final) -> Row:
    """The row of an attempt; figures that lie are clamped, so that no sum can overflow."""
    _, opening, line = final
    attempt_id, at, usage, nano_usd, *rest = line
    counts = json.fields(usage)[:-1]  # all but `estimated`
    request = attempt_id.rpartition(".")[0] or attempt_id
    most = max(counts), min(counts), nano_usd or 0, line.upstream_ms
    if max(most) > MOST or min(most) < -MOST:
        counts = tuple(_bounded(count) for count in counts)
        nano_usd = None if nano_usd is None else _bounded(nano_usd)
        rest[-2] = _bounded(line.upstream_ms)
    return attempt_id, request, at, int(at // DAY), *opening[2:12], *counts, nano_usd, *rest


def sums_of(rows: Iterable[Row]) -> Sums:
    """What `rows` add to the sums of their keys, teams and users."""
    whose: dict[Row, list[int]] = {}
    for row in rows:
        who = row[3:7]  # day, key, team, user
        found = whose.get(who)
        if found is None:
            found = whose[who] = [0, 0, 0, 0, 0, 0]
        nano_usd = row[22]
        if row[0].endswith(".1"):  # the request itself, not what was tried after
            found[0] += 1
        found[1] += 1
        found[2] += row[14]
        found[3] += row[15]
        if nano_usd is None:
            found[5] += 1
        else:
            found[4] += nano_usd
    sums: Sums = {}
    for (day, key, team, user), values in whose.items():
        _add(sums, ("key", key, day), values)
        if team is not None:
            _add(sums, ("team", team, day), values)
        if user is not None:
            _add(sums, ("user", f"{key}/{user}", day), values)
    return sums


def _add(sums: Sums, place: Place, values: list[int]) -> None:
    sums[place] = [a + b for a, b in zip(sums.get(place, NONE), values, strict=True)]


def _bounded(count: int) -> int:
    return max(-MOST, min(count, MOST))
