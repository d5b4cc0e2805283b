"""Kept answers of many machines: a hash in Redis for each, which forgets itself.

The clock is Redis' own. While Redis is lost, the store of this machine takes its place: a key that
is repeated on another machine meanwhile is answered twice.
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

from gateway.clock import Clock
from gateway.core.events import Event
from gateway.core.kept import Ending, Held, Kept, Owner
from gateway.core.ports import Answers, Claim, Drawer
from gateway.state.claims import Claims, OwnClaim, Place
from gateway.state.redis.connect import Link, RedisLost, Script, key, trouble

LEASE = 15.0  # seconds a call under way is another's no more after its worker was last heard of
RENEW = 5.0
KEPT = 86_400.0  # seconds the answer under a caller's key is kept
ENDED = 60.0  # seconds it is remembered that a caller ended a call
MOST = 10_000  # answers of one account; beyond it those go whose time is nearest
MOST_BYTES = 64 * 1024 * 1024  # of their bodies
MOST_IN_ALL = 1024 * 1024 * 1024  # bytes of all accounts
WAITING = 64 * 1024 * 1024  # bytes of bodies on their way to Redis; beyond it none is kept
HANDED = 1_000  # calls of Redis that nobody waits for

CLAIM, KEEP, RELEASE, END, RENEWAL, GET = (
    Script(f"answer_{name}") for name in ("claim", "keep", "release", "end", "renew", "get")
)
_HELD = {b"running": Held.RUNNING, b"other": Held.OTHER, b"ended": Held.ENDED}


class RedisAnswers:
    """The port `Answers`; `renew`, `look` and `leave` are for its owner.

    Args:
        local: of this machine, for as long as Redis is lost.
    """

    def __init__(
        self, link: Link, local: Answers, clock: Clock, heard: Callable[[Event], None]
    ) -> None:
        self._link = link
        self._local = local
        self._heard = heard
        self._handed: set[asyncio.Task[None]] = set()
        self._waiting = 0  # bytes
        self.claims = Claims(clock)

    def of(self, owner: Owner) -> "RedisDrawer":
        return RedisDrawer(self, owner, self._local.of(owner))

    async def renew(self) -> None:
        """Keep the leases of calls under way."""
        await self._renew(self.claims.under_way(), LEASE)

    async def look(self) -> None:
        """End what a caller has ended on another worker."""
        await self._renew(self.claims.under_way(detached=True), 0.0)

    async def leave(self) -> None:
        """Until what was handed over is done."""
        while self._handed:
            await asyncio.wait(self._handed)

    async def _renew(self, claims: Sequence[OwnClaim], lease: float) -> None:
        if not claims:
            return
        names = [name_of(claim.place) for claim in claims]
        tokens = [claim.token for claim in claims]
        for token in await self.ask("renew", RENEWAL, names, [_ms(lease), *tokens], ()):
            self.claims.ended(token.decode())

    # -- for drawers and claims

    async def run(self, script: Script, names: Sequence[str], args: Sequence[Any]) -> Any:
        """As the link. Raises RedisLost."""
        return await self._link.run(script, names, args)

    async def ask(
        self, op: str, script: Script, names: Sequence[str], args: Sequence[Any], otherwise: Any
    ) -> Any:
        try:
            return await self._link.run(script, names, args)
        except RedisLost as error:
            self.lost(op, error)
            return otherwise

    def lost(self, op: str, error: RedisLost) -> None:
        trouble(self._heard, op, error)

    def room_for(self, size: int) -> bool:
        return len(self._handed) < HANDED and self._waiting + size <= WAITING

    def hand(self, call: Coroutine[Any, Any, Any], size: int, place: Place) -> None:
        """Let it be done; whoever waits at the place is told when it is."""
        self._waiting += size
        task = asyncio.get_running_loop().create_task(call)
        self._handed.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._handed.discard(task)
            self._waiting -= size
            self.claims.ring(place)

        task.add_done_callback(done)


class RedisDrawer:
    """The port `Drawer`."""

    __slots__ = ("_answers", "_local", "_owner")

    def __init__(self, answers: RedisAnswers, owner: Owner, local: Drawer) -> None:
        self._answers = answers
        self._local = local
        self._owner = owner

    async def get(self, name: str, seconds: float) -> Kept | None:
        try:
            row = await self._answers.run(GET, [self._name(name)], [_ms(seconds)])
        except RedisLost as error:
            self._answers.lost("get", error)
            return await self._local.get(name, seconds)
        return _kept(row) if row and row[0] is not None else None

    def put(self, name: str, kept: Kept, seconds: float) -> None:
        answers, place = self._answers, (*self._owner, name)
        size = len(kept.body)
        if answers.room_for(size):
            answers.hand(
                answers.ask("put", KEEP, _names(place), _keeping("", seconds, kept), 0), size, place
            )

    async def claim(self, name: str, fingerprint: bytes, *, detached: bool) -> Claim | Kept | Held:
        answers = self._answers
        claim = RedisClaim(answers, (*self._owner, name), detached=detached)
        asked = [fingerprint, claim.token, int(detached), _ms(LEASE)]
        try:
            found = await answers.run(CLAIM, [self._name(name)], asked)
        except RedisLost as error:
            answers.lost("claim", error)
            claim.release()  # it may stand there all the same
            return await self._local.claim(name, fingerprint, detached=detached)
        except BaseException:
            claim.release()
            raise
        if found[0] == b"ours":
            answers.claims.began(claim)
            return claim
        return _kept(found[1:]) if found[0] == b"kept" else _HELD[found[0]]

    async def changed(self, name: str, until: float) -> None:
        await self._answers.claims.wait((*self._owner, name), until)

    async def end(self, name: str) -> Ending | None:
        answers = self._answers
        try:
            found = await answers.run(END, [self._name(name)], [_ms(ENDED)])
        except RedisLost as error:
            answers.lost("end", error)
            found = b""
        if found == b"ended":
            answers.claims.ended_at((*self._owner, name))
        if found:
            return cast("Ending", found.decode())
        return await self._local.end(name)  # of a time when Redis was lost

    def _name(self, name: str) -> str:
        return name_of((*self._owner, name))


class RedisClaim(OwnClaim):
    """The port `Claim`: a hash with our token."""

    __slots__ = ("_answers",)

    def __init__(self, answers: RedisAnswers, place: Place, *, detached: bool) -> None:
        super().__init__(place, detached=detached)
        self._answers = answers

    def keep(self, kept: Kept) -> None:
        answers, size = self._answers, len(kept.body)
        if not answers.room_for(size):
            self.release()
            return
        answers.claims.over(self)
        keeping = _keeping(self.token, KEPT, kept)
        answers.hand(answers.ask("keep", KEEP, _names(self.place), keeping, 0), size, self.place)

    def release(self) -> None:
        """A lease that cannot be given back for want of room runs out by itself."""
        answers = self._answers
        answers.claims.over(self)
        if answers.room_for(0):
            names = [name_of(self.place)]
            answers.hand(answers.ask("release", RELEASE, names, [self.token], 0), 0, self.place)


def name_of(place: Place) -> str:
    """The key of an answer: its owner's first, so that no name can reach into another's."""
    account, user, name = place
    return key("answer", _digest(account), _digest(user), _digest(name))


def _names(place: Place) -> list[str]:
    account = _digest(place[0])
    return [
        name_of(place),
        key("answers", account), key("answers-size", account),
        key("answers"), key("answers-size"),
    ]  # fmt: skip


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _keeping(token: str, seconds: float, kept: Kept) -> list[Any]:
    return [
        token, _ms(seconds), MOST, MOST_BYTES, MOST_IN_ALL, kept.status, kept.body, kept.target,
        kept.model, kept.cost, kept.finish_reason or "",
    ]  # fmt: skip


def _kept(row: Sequence[bytes]) -> Kept:
    status, body, target, model, cost, reason = row
    return Kept(
        int(status), body, target.decode(), model.decode(), cost.decode(), reason.decode() or None
    )
