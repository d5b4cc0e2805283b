"""What became of each request, for `gateway why`: the last 2,000 in memory, 24 h in the store.

The request itself only appends to a list; the store's thread tells the stories and writes them.
"""

import sqlite3
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gateway.clock import Clock
from gateway.core.attempt import Exchange
from gateway.core.events import Event, RequestEnded, StateTrouble
from gateway.core.story import story
from gateway.state.embedded.sqlite import Store, transaction
from gateway.wire import json

WRITE = 0.25  # seconds between batches
RECENT = 2_000
WAITING = 2_000  # not yet written; beyond it the oldest are dropped and counted
KEPT = 86_400.0
MOST = 500_000  # rows in the store, however short the time
CLEANED = 5_000  # rows removed in one transaction


class _Ended(NamedTuple):
    exchange: Exchange
    now: float
    config: str


class Stories:
    """A Listener; `write` and `clean` are for its owner.

    Attributes:
        dropped: how many were never written because the store could not keep up.
    """

    def __init__(
        self, store: Store, config: str, clock: Clock, heard: Callable[[Event], None]
    ) -> None:
        self._store = store
        self._config = config
        self._now = clock.now
        self._trouble = heard
        self._waiting: deque[_Ended] = deque()
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self.dropped = 0

    def heard(self, event: Event) -> None:
        if type(event) is RequestEnded:
            if len(self._waiting) >= WAITING:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(_Ended(event.exchange, event.now, self._config))

    def use(self, config: str) -> None:
        """The name of the configuration that is in force from now on."""
        self._config = config

    async def find(self, id: str) -> Mapping[str, Any] | None:
        """One request's story; None: unknown, or older than a day."""
        for ended in reversed(self._waiting):
            if ended.exchange.id == id:
                return _told(ended)
        told = self._recent.get(id)
        if told is None:
            told = await self._store.run(lambda db: _stored(db, id))
        found: Mapping[str, Any] | None = None if told is None else json.loads(told)
        return found

    def recent(self, n: int = 50) -> list[Mapping[str, Any]]:
        """The last `n` that ended, newest first."""
        found = [_told(ended) for _, ended in zip(range(n), reversed(self._waiting), strict=False)]
        left = n - len(found)
        stored = zip(range(left), reversed(self._recent.values()), strict=False)
        return found + [json.loads(told) for _, told in stored]

    async def write(self) -> None:
        """Tell and store what has ended since."""
        batch = list(self._waiting)
        if not batch:
            return
        told: list[tuple[str, float, bytes]] = []
        try:
            await self._store.run(lambda db: _write(db, batch, told))
        except sqlite3.Error as error:
            self._trouble(StateTrouble("embedded", "stories", type(error).__name__))
        for name, _, text in told:
            self._recent[name] = text
            self._recent.move_to_end(name)
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        for ended in batch:
            if self._waiting and self._waiting[0] is ended:
                self._waiting.popleft()

    async def clean(self) -> None:
        before = self._now() - KEPT
        try:
            while await self._store.run(lambda db: _clean(db, before)) >= CLEANED:
                pass
        except sqlite3.Error as error:
            self._trouble(StateTrouble("embedded", "stories", type(error).__name__))


def _told(ended: _Ended) -> Mapping[str, Any]:
    return story(ended.exchange, ended.now, ended.config)


def _write(
    db: sqlite3.Connection, batch: list[_Ended], told: list[tuple[str, float, bytes]]
) -> None:
    told.extend((ended.exchange.id, ended.now, json.dumps(_told(ended))) for ended in batch)
    with transaction(db):
        db.executemany("INSERT OR REPLACE INTO request VALUES (?, ?, ?)", told)


def _stored(db: sqlite3.Connection, id: str) -> bytes | None:
    found = db.execute("SELECT story FROM request WHERE id = ?", (id,)).fetchone()
    return None if found is None else bytes(found[0])


def _clean(db: sqlite3.Connection, before: float) -> int:
    with transaction(db):
        return db.execute(
            "DELETE FROM request WHERE id IN (SELECT id FROM request WHERE at < max(?, coalesce("
            "(SELECT at FROM request ORDER BY at DESC LIMIT 1 OFFSET ?), 0)) LIMIT ?)",
            (before, MOST, CLEANED),
        ).rowcount
