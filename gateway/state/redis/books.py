"""What a key has spent on all machines, by the sums of the ledger: for the caller itself."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from gateway.clock import Clock
from gateway.core.usage import Spending, Spent
from gateway.errors import Overloaded
from gateway.state.redis.connect import Link, RedisLost, Script
from gateway.state.redis.ledger import FIGURES, sums_key
from gateway.state.rows import SUMS

EPOCH = date(1970, 1, 1)
WAITING = 16  # callers at a time; each costs Redis a millisecond

_usage = Script("usage")


class RedisBooks:
    """The port `Books`."""

    def __init__(self, link: Link, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._waiting = 0

    async def spending(self, key: str) -> Spending:
        if self._waiting >= WAITING:
            raise Overloaded(f"{WAITING} callers ask for their usage already.", retry_after=1.0)
        today = datetime.fromtimestamp(self._clock.now(), UTC).date()
        days = [(today - EPOCH).days - ago for ago in range(SUMS, -1, -1)]
        fields = [f"{figure}:key:{key}" for figure in FIGURES]
        self._waiting += 1
        try:
            found = await self._link.run(_usage, [sums_key(day) for day in days], fields)
        except RedisLost:
            raise Overloaded(
                "The ledger cannot be read now.", code="store_unavailable", retry_after=1.0
            ) from None
        finally:
            self._waiting -= 1
        sums = [(days[place], [int(one) for one in figures]) for place, *figures in found]
        first = EPOCH + timedelta(days=sums[0][0]) if sums else EPOCH
        return Spending(
            _since(today, sums), _since(today.replace(day=1), sums), _since(first, sums)
        )


def _since(first: date, sums: Sequence[tuple[int, Sequence[int]]]) -> Spent:
    start = (first - EPOCH).days
    counted = [figures for day, figures in sums if day >= start]
    totals = [sum(column) for column in zip(*counted, strict=True)] or [0] * len(FIGURES)
    return Spent(first, *totals)
