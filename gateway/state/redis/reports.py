"""What the ledger in Redis holds, read out for reports: rows of 30 days, sums of 400."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gateway.state.redis.connect import Link
from gateway.state.redis.ledger import COUNTS, FIGURES, rows_key, sums_key
from gateway.state.rows import DAY, SUMS, Row, Sums
from gateway.wire import json

PIECE = 20  # batches in one answer, each of what one call of a worker brought


class Stored(NamedTuple):
    """`first`: the day (since 1970-01-01) from which on all rows are there."""

    rows: list[Row]
    sums: Sums
    first: int


async def stored(link: Link, since: float, now: float) -> Stored:
    """Rows and sums of the days from `since` to `now`, both epoch seconds. Raises RedisLost."""
    told = await link.call("HGETALL", COUNTS)
    counts = {name.decode(): int(count) for name, count in _pairs(told)}
    first = counts.pop("first", 0)
    start, today = int(since // DAY), int(now // DAY)
    rows: list[Row] = []
    for day in sorted(map(int, counts)):
        if day >= max(start, first):
            rows += await _rows(link, day)
    sums: Sums = {}
    for day in range(max(start, today - SUMS), today + 2):  # a worker's clock may be ahead
        found = await link.call("HGETALL", sums_key(day))
        for name, amount in _pairs(found):
            figure, scope, whose = name.decode().split(":", 2)
            sums.setdefault((scope, whose, day), [0] * len(FIGURES))[FIGURES.index(figure)] = int(
                amount
            )
    return Stored(rows, sums, first)


async def _rows(link: Link, day: int) -> list[Row]:
    rows: list[Row] = []
    at = 0
    while batches := await link.call("LRANGE", rows_key(day), at, at + PIECE - 1):
        for batch in batches:
            rows += [tuple(row) for row in json.loads(batch)]
        at += len(batches)
    return rows


def _pairs(told: Any) -> Sequence[tuple[bytes, bytes]]:
    if isinstance(told, dict):
        return list(told.items())
    return list(zip(told[::2], told[1::2], strict=True))
