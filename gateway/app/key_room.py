"""Caller keys for operators: what the file and the store have, and what may become of them."""

from collections.abc import Callable

from gateway.clock import Clock
from gateway.core.key_told import declared_told, stored_told
from gateway.core.keys import Change, KeyTaken, KeyTerms, NoSuchKey
from gateway.core.ports import Register
from gateway.core.snapshot import Snapshot
from gateway.core.terms import declared, objection
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.wire.admin import ChangedKeyTold, KeysTold, KeyTold, MadeKeyTold


class KeyRoom:
    """Implements `gateway.server.doors.KeyRoom`.

    Args:
        register: the keys of the store.
        snapshot: the configuration in force.
        clock: the time.
    """

    def __init__(self, register: Register, snapshot: Callable[[], Snapshot], clock: Clock) -> None:
        self._register = register
        self._snapshot = snapshot
        self._clock = clock

    def page(self, after: str | None, most: int) -> KeysTold:
        now = self._clock.now()
        told = {key.name: stored_told(key, now) for key, _ in self._register.stored()}
        told |= {key.name: declared_told(key, now) for key in self._snapshot().keys}
        names = sorted(name for name in told if name > (after or ""))
        page = names[:most]
        return {
            "keys": [told[name] for name in page],
            "next": page[-1] if len(names) > most else None,
        }

    async def one(self, name: str) -> KeyTold | None:
        now = self._clock.now()
        for key in self._snapshot().keys:
            if key.name == name:
                return declared_told(key, now)
        stored = await self._register.find(name)
        return None if stored is None else stored_told(stored, now)

    async def put(self, name: str, terms: KeyTerms, who: str) -> MadeKeyTold:
        snapshot = self._snapshot()
        self._must_be_stored(name)
        before = await self._register.find(name)
        as_it_is = before is not None and before.revoked is None and before.terms == terms
        if not as_it_is:
            wrong = objection(name, terms, snapshot, self._clock.now())
            if wrong is not None:
                said = f"{wrong.message} What to do: {wrong.remedy}."
                raise InvalidRequest(said, param=wrong.field)
        try:
            change = await self._register.put(name, terms, who, snapshot.config)
        except KeyTaken:
            raise Conflict(
                f"The key {name} was revoked, and what is revoked stays so: the ledger knows it by"
                " this name. Choose another name.",
                param="name",
            ) from None
        return self._made(change)

    async def rotate(self, name: str, overlap: float, who: str) -> MadeKeyTold:
        self._must_be_stored(name)
        try:
            return self._made(
                await self._register.rotate(name, overlap, who, self._snapshot().config)
            )
        except NoSuchKey:
            raise _missing() from None

    async def revoke(self, name: str, who: str) -> ChangedKeyTold:
        self._must_be_stored(name)
        try:
            change = await self._register.revoke(name, who, self._snapshot().config)
        except NoSuchKey:
            raise _missing() from None
        told = stored_told(change.key, self._clock.now())
        return {"key": told, "changed": change.what == "revoked"}

    def _must_be_stored(self, name: str) -> None:
        if declared(name, self._snapshot()):
            raise Conflict(
                f"The key {name} is declared in the file: change keys: there, and reload.",
                param="name",
            )

    def _made(self, change: Change) -> MadeKeyTold:
        told: MadeKeyTold = {
            "key": stored_told(change.key, self._clock.now()),
            "changed": change.what != "unchanged",
        }
        if change.made is not None:
            told["secret"] = change.made.secret.reveal()
        return told


def _missing() -> NotFound:
    return NotFound(
        "There is no such key, or it was revoked. GET /admin/keys lists them.", param="name"
    )
