"""What became of each request, for `gateway why`: the last 2,000 in memory, 24 h in the store.

The request itself only appends to a list; the store's thread tells the stories and writes them.
"""

import sqlite3
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from gateway.clock import Clock
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


_Ended = tuple[RequestEnded, str]  # and the configuration's name
_Row = tuple[str, float, bytes]  # id, epoch seconds of its end, its story


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
        self._recent: deque[_Row] = deque()  # oldest first
        self.dropped = 0

    def heard(self, event: Event) -> None:
        if type(event) is RequestEnded:
            if len(self._waiting) >= WAITING:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append((event, self._config))

    def use(self, config: str) -> None:
        """The name of the configuration that is in force from now on."""
        self._config = config

    async def find(self, id: str) -> Mapping[str, Any] | None:
        """One request's story; None: unknown, or older than a day."""
        for ended in reversed(self._waiting):
            if ended[0].exchange.id == id:
                return _told(ended)
        told = next((text for name, _, text in reversed(self._recent) if name == id), None)
        if told is None:
            told = await self._store.run(lambda db: _stored(db, id))
        found: Mapping[str, Any] | None = None if told is None else json.loads(told)
        return found

    def recent(self, n: int = 50) -> list[Mapping[str, Any]]:
        """The last `n` that ended, newest first."""
        found = [_told(ended) for _, ended in zip(range(n), reversed(self._waiting), strict=False)]
        left = n - len(found)
        stored = zip(range(left), reversed(self._recent), strict=False)
        return found + [json.loads(told) for _, (_, _, told) in stored]

    async def write(self) -> None:
        """Tell and store what has ended since."""
        batch = list(self._waiting)
        if not batch:
            return
        told: list[_Row] = []
        try:
            await self._store.run(lambda db: _write(db, batch, told))
        except sqlite3.Error as error:
            self._trouble(StateTrouble("embedded", "stories", type(error).__name__))
        recent, waiting = self._recent, self._waiting
        recent.extend(told)
        while len(recent) > RECENT:
            recent.popleft()
        for ended in batch:
            if waiting and waiting[0] is ended:
                waiting.popleft()

    async def clean(self) -> None:
        before = self._now() - KEPT
        try:
            while await self._store.run(lambda db: _clean(db, before)) >= CLEANED:
                pass
        except sqlite3.Error as error:
            self._trouble(StateTrouble("embedded", "stories", type(error).__name__))


def _told(ended: _Ended) -> Mapping[str, Any]:
    event, config = ended
    return story(event.exchange, event.now, config)


def _write(db: sqlite3.Connection, batch: list[_Ended], told: list[_Row]) -> None:
    told.extend(
        (event.exchange.id, event.now, json.dumps(story(event.exchange, event.now, config)))
        for event, config in batch
    )
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
