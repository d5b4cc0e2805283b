"""Caller keys of many machines: Redis has them all, each machine a copy, which is what is asked.

So a gateway knows its callers without Redis, also at the start, and a Redis that forgot gets back
what a copy still has: a key that was made, and above all that one was revoked. Keys are never
deleted, and a revoked one stays revoked; of two other changes to one key Redis's counts.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from gateway.core.events import Event
from gateway.core.keys import Change, KeyTaken, KeyTerms
from gateway.core.ports import Register
from gateway.errors import Overloaded
from gateway.state.redis.connect import Link, RedisLost, Script, key, trouble
from gateway.wire import json

POLL = 0.5  # seconds: a change made anywhere counts everywhere within 1 s
TRIES = 5  # against others who change keys at the same moment

Record = Mapping[str, str | int | float | None]
"""A row of the table of keys, blobs as hex."""

Records = Mapping[str, Record]
"""By the key's name."""

_pull = Script("pull")
_push = Script("push")
_KEYS = [key("keys"), key("keys", "mark")]


class Copy(Protocol):
    """The keys of this machine."""

    async def read(self) -> Records: ...

    async def write(self, records: Records) -> None:
        """These as they are said here, the others as they were."""
        ...


class SharedKeys:
    """Keeps a copy and Redis alike; `follow` is for its owner."""

    def __init__(self, link: Link, copy: Copy, heard: Callable[[Event], None]) -> None:
        self._link = link
        self._copy = copy
        self._heard = heard
        self._seen = "-"  # no mark: an empty Redis is compared as well

    async def follow(self) -> None:
        """Take what has changed, and give what Redis does not know (any more)."""
        try:
            await self.level()
        except RedisLost as error:
            trouble(self._heard, "keys", error)

    async def level(self) -> None:
        """As `follow`. Raises RedisLost."""
        for _ in range(TRIES):
            mark, theirs = await self._pull(self._seen)
            if theirs is None:
                return
            ours = await self._copy.read()
            unknown = {name: one for name, one in ours.items() if _ahead(one, theirs.get(name))}
            changed = {
                name: one
                for name, one in theirs.items()
                if name not in unknown and ours.get(name) != one
            }
            if changed:
                await self._copy.write(changed)
            if not unknown or await self._push(mark, unknown):
                return
            self._seen = "-"

    async def publish(self, name: str) -> bool:
        """Tell of a change just made to the copy; False: that name was taken elsewhere meanwhile.

        Raises RedisLost.
        """
        for _ in range(TRIES):
            mark, theirs = await self._pull("-")
            ours = await self._copy.read()
            there = (theirs or {}).get(name)
            if there is not None and there["id"] != ours[name]["id"]:
                await self._copy.write({name: there})
                return False
            if await self._push(mark, {name: ours[name]}):
                return True
        raise RedisLost("busy")

    async def _pull(self, seen: str) -> tuple[str, Records | None]:
        told = await self._link.run(_pull, _KEYS, [seen])
        mark = told[0].decode()
        if len(told) == 1:
            return mark, None
        self._seen = mark
        pairs = told[1]
        return mark, {
            name.decode(): json.loads(record)
            for name, record in zip(pairs[::2], pairs[1::2], strict=True)
        }

    async def _push(self, mark: str, records: Records) -> bool:
        told: list[str | bytes] = [mark, secrets.token_hex(8)]
        for name, record in records.items():
            told += [name, json.dumps(record)]
        done = await self._link.run(_push, _KEYS, told)
        return bool(done)


class SharedRegister:
    """The port `Register` for a machine among others: nothing is changed where Redis is lost."""

    def __init__(self, local: Register, keys: SharedKeys) -> None:
        self._local = local
        self._keys = keys
        self.stored = local.stored
        self.find = local.find

    async def put(self, name: str, terms: KeyTerms, who: str, config: str) -> Change:
        return await self._tell(name, lambda: self._local.put(name, terms, who, config))

    async def rotate(self, name: str, overlap: float, who: str, config: str) -> Change:
        return await self._tell(name, lambda: self._local.rotate(name, overlap, who, config))

    async def revoke(self, name: str, who: str, config: str) -> Change:
        return await self._tell(name, lambda: self._local.revoke(name, who, config))

    async def _tell(self, name: str, change: Callable[[], Awaitable[Change]]) -> Change:
        try:
            await self._keys.level()
            done = await change()
            if not await self._keys.publish(name):
                raise KeyTaken(name)
        except RedisLost:
            raise Overloaded(
                "Redis is lost, and keys are changed only where all machines hear of it.",
                code="store_unavailable",
                retry_after=1.0,
            ) from None
        return done


def _ahead(ours: Record, theirs: Record | None) -> bool:
    """Whether we know of a key what must not be forgotten."""
    if theirs is None:
        return True
    return ours["revoked"] is not None and theirs["revoked"] is None
