"""What a key has spent on all machines, and what of budgets, by the sums of the ledger."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar

from gateway.clock import Clock
from gateway.core.usage import Spending, Spent
from gateway.errors import Overloaded
from gateway.state.redis.connect import Link, RedisLost, Script
from gateway.state.redis.ledger import FIGURES, sums_key
from gateway.state.redis.spent import BUDGETS
from gateway.state.rows import SUMS

EPOCH = date(1970, 1, 1)
WAITING = 16  # callers at a time; each costs Redis a millisecond
CHUNK = 1_000  # budgets asked for in one call

_usage = Script("usage")

T = TypeVar("T")


class RedisBooks:
    """The port `Books`."""

    def __init__(self, link: Link, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._waiting = 0

    async def spending(self, key: str) -> Spending:
        today = datetime.fromtimestamp(self._clock.now(), UTC).date()
        days = [(today - EPOCH).days - ago for ago in range(SUMS, -1, -1)]
        fields = [f"{figure}:key:{key}" for figure in FIGURES]
        keys = [sums_key(day) for day in days]
        found = await self._read(lambda: self._link.run(_usage, keys, fields))
        sums = [(days[place], [int(one) for one in figures]) for place, *figures in found]
        first = EPOCH + timedelta(days=sums[0][0]) if sums else EPOCH
        return Spending(
            _since(today, sums), _since(today.replace(day=1), sums), _since(first, sums)
        )

    async def budgets(self, ids: Sequence[str]) -> dict[str, int]:
        return await self._read(lambda: self._budgets(ids))

    async def _budgets(self, ids: Sequence[str]) -> dict[str, int]:
        spent: dict[str, int] = {}
        for begin in range(0, len(ids), CHUNK):
            some = ids[begin : begin + CHUNK]
            found = await self._link.call("HMGET", BUDGETS, *some)
            pairs = zip(some, found, strict=True)
            spent.update((name, int(n)) for name, n in pairs if n is not None)
        return spent

    async def _read(self, look: Callable[[], Awaitable[T]]) -> T:
        if self._waiting >= WAITING:
            raise Overloaded(f"{WAITING} callers ask for their usage already.", retry_after=1.0)
        self._waiting += 1
        try:
            return await look()
        except RedisLost:
            raise Overloaded(
                "The ledger cannot be read now.", code="store_unavailable", retry_after=1.0
            ) from None
        finally:
            self._waiting -= 1


def _since(first: date, sums: Sequence[tuple[int, Sequence[int]]]) -> Spent:
    start = (first - EPOCH).days
    counted = [figures for day, figures in sums if day >= start]
    totals = [sum(column) for column in zip(*counted, strict=True)] or [0] * len(FIGURES)
    return Spent(first, *totals)
