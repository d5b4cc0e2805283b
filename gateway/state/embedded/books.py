"""What a key has spent, and what of budgets, by the sums of the ledger."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar

from gateway.clock import Clock
from gateway.core.usage import Spending, Spent
from gateway.errors import Overloaded
from gateway.state.embedded.sqlite import Store
from gateway.wire import json

DAY = 86_400
EPOCH = date(1970, 1, 1)
WAITING = 64  # callers at a time who may wait for the store's thread
SUMS = """SELECT min(day), sum(requests), sum(attempts), sum(input), sum(output), sum(nano_usd),
  sum(unknown) FROM spent WHERE scope = 'key' AND name = ? AND day >= ?"""
BUDGETS = """SELECT account, nano_usd FROM budget
  WHERE account IN (SELECT value FROM json_each(?))"""

T = TypeVar("T")


class EmbeddedBooks:
    """The port `Books`."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiting = 0

    async def spending(self, key: str) -> Spending:
        today = datetime.fromtimestamp(self._clock.now(), UTC).date()
        return await self._read(lambda db: _spending(db, key, today))

    async def budgets(self, ids: Sequence[str]) -> dict[str, int]:
        asked = json.dumps(list(ids)).decode()
        return await self._read(lambda db: dict(db.execute(BUDGETS, (asked,)).fetchall()))

    async def _read(self, look: Callable[[sqlite3.Connection], T]) -> T:
        if self._waiting >= WAITING:
            raise Overloaded(f"{WAITING} callers ask for their usage already.", retry_after=1.0)
        self._waiting += 1
        try:
            return await self._store.run(look)
        except sqlite3.Error:
            raise Overloaded(
                "The ledger cannot be read now.", code="store_unavailable", retry_after=1.0
            ) from None
        finally:
            self._waiting -= 1


def _spending(db: sqlite3.Connection, key: str, today: date) -> Spending:
    return Spending(*(_sum(db, key, since) for since in (today, today.replace(day=1), EPOCH)))


def _sum(db: sqlite3.Connection, key: str, since: date) -> Spent:
    found = db.execute(SUMS, (key, (since - EPOCH).days)).fetchone()
    first = since if since > EPOCH or found[0] is None else EPOCH + timedelta(days=found[0])
    return Spent(first, *_whole(found[1:]))


def _whole(sums: Iterable[int | None]) -> Iterable[int]:
    return (int(value or 0) for value in sums)
