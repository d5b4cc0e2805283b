"""The keys of the store for operators of a running gateway: what they change counts at once."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import TypeVar

from gateway.clock import Clock
from gateway.core.keys import Change, KeyTerms, StoredKey
from gateway.core.principal import Principal
from gateway.errors import Overloaded
from gateway.state.embedded import key_rows
from gateway.state.embedded.audit import AuditLog
from gateway.state.embedded.key_rows import By
from gateway.state.embedded.keys import EmbeddedKeys
from gateway.state.embedded.sqlite import Store

T = TypeVar("T")


class EmbeddedRegister:
    """The port `Register`.

    Args:
        store: where the keys are.
        keys: whom they open the door for in this process; siblings follow by themselves.
        log: the audit log; what it has waiting is written first, so that lines follow in time.
        clock: the time.
    """

    def __init__(self, store: Store, keys: EmbeddedKeys, log: AuditLog, clock: Clock) -> None:
        self._store = store
        self._keys = keys
        self._log = log
        self._clock = clock

    def stored(self) -> Sequence[tuple[StoredKey, Principal | None]]:
        return self._keys.stored()

    async def find(self, name: str) -> StoredKey | None:
        return await self._run(lambda db: key_rows.find(db, name))

    async def put(self, name: str, terms: KeyTerms, who: str, config: str) -> Change:
        by = self._by(who, config)
        return await self._change(lambda db: key_rows.put(db, name, terms, by))

    async def rotate(self, name: str, overlap: float, who: str, config: str) -> Change:
        by = self._by(who, config)
        return await self._change(lambda db: key_rows.rotate(db, name, overlap, by))

    async def revoke(self, name: str, who: str, config: str) -> Change:
        by = self._by(who, config)
        return await self._change(lambda db: key_rows.revoke(db, name, by))

    def _by(self, who: str, config: str) -> By:
        return By(who, self._clock.now(), config)

    async def _change(self, work: Callable[[sqlite3.Connection], Change]) -> Change:
        await self._log.write()
        change = await self._run(work)
        if change.line is not None:
            self._log.tell(change.line)
        try:
            await self._keys.load(afresh=True)
        except sqlite3.Error:
            await self._keys.poll()  # what is changed is changed; it says what is wrong
        return change

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._store.run(work)
        except sqlite3.Error:
            raise Overloaded(
                "The store of keys cannot be used now, so nothing was changed; the log says why.",
                code="store_unavailable",
                retry_after=1.0,
            ) from None
