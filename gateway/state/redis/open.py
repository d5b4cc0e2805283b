"""Opens the Redis wing for one worker, and knows what is to be done in the background."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from gateway.clock import Clock
from gateway.core.events import Event
from gateway.core.ports import Answers, Books, Register
from gateway.core.snapshot import ServerSettings
from gateway.core.target import Secret
from gateway.errors import Overloaded
from gateway.state.accounts import AccountStore, Answer, Ask, Caller, Need, StoreLost
from gateway.state.journal import Final, Journal
from gateway.state.redis.accounts import RedisAccounts
from gateway.state.redis.answers import RedisAnswers
from gateway.state.redis.books import RedisBooks
from gateway.state.redis.connect import LOOK, Link
from gateway.state.redis.gossip import TELL, Gossip
from gateway.state.redis.keys import POLL, Copy, SharedKeys, SharedRegister
from gateway.state.redis.ledger import BEAT, RedisLedger
from gateway.state.redis.spent import Spent
from gateway.state.wing import Breakers


class RedisWing:
    """Implements `gateway.state.wing.Wing`."""

    def __init__(
        self,
        link: Link,
        keys_dir: Path,
        keys: SharedKeys,
        clock: Clock,
        heard: Callable[[Event], None],
        *,
        reject: bool,
    ) -> None:
        self._spent = Spent()
        accounts = RedisAccounts(link, self._spent)
        self.keys_dir = keys_dir
        self.accounts: AccountStore = Refusing(accounts) if reject else accounts
        self.books: Books = RedisBooks(link, clock)
        self.chores: list[tuple[float, Callable[[], Awaitable[object]]]] = [
            (LOOK, link.look),
            (POLL, keys.follow),
        ]
        self._link = link
        self._keys = keys
        self._clock = clock
        self._heard = heard
        self._rejects = reject
        self._leaving: list[Callable[[], Awaitable[None]]] = []

    def ledger(self, journal: Journal, booked: Callable[[Sequence[Final]], object]) -> RedisLedger:
        made = RedisLedger(journal, self._link, self._clock, self._heard, booked, self._spent)
        self.chores.append((BEAT, made.beat))
        return made

    def join(self, worker: str, breakers: Breakers) -> None:
        gossip = Gossip(self._link, worker, breakers, self._heard)
        self.chores.append((TELL, gossip.exchange))

    def register(self, local: Register) -> SharedRegister:
        return SharedRegister(local, self._keys)

    def answers(self, local: Answers) -> RedisAnswers:
        made = RedisAnswers(self._link, local, self._clock, self._heard)
        self._leaving.append(made.leave)
        return made

    async def leave(self) -> None:
        for leave in self._leaving:
            await leave()

    @property
    def troubles(self) -> Sequence[str]:
        if not self._link.lost:
            return ()
        what = "each worker keeps 1/N of every limit"
        if self._rejects:
            what = "whatever has a limit is refused"
        return (f"Redis is lost ({self._link.why}): {what}",)


class Refusing:
    """The port `AccountStore` for `when_lost: reject`: without the store no answer."""

    def __init__(self, store: AccountStore) -> None:
        self._store = store

    async def sync(
        self, caller: Caller, asks: Sequence[Ask], groups: Sequence[Sequence[Need]]
    ) -> Answer:
        try:
            return await self._store.sync(caller, asks, groups)
        except StoreLost:
            raise Overloaded(
                "The store of limits is lost, and this gateway answers nothing without it.",
                code="store_unavailable",
                retry_after=1.0,
            ) from None


def copy_dir(state_dir: Path, url: Secret) -> Path:
    """Where a machine keeps its copy of the keys in the Redis at `url`: one folder for each."""
    parts = urlsplit(url.reveal())
    place = f"{parts.hostname}:{parts.port or 6379}/{parts.path.strip('/') or 0}"
    return state_dir / f"redis-{hashlib.sha256(place.encode()).hexdigest()[:12]}"


@asynccontextmanager
async def open_wing(
    settings: ServerSettings,
    keys_dir: Path,
    copy: Copy,
    clock: Clock,
    heard: Callable[[Event], None],
) -> AsyncIterator[RedisWing]:
    """Raises gateway.state.redis.connect.RedisUnfit; a Redis that is away is waited for."""
    if settings.redis is None:
        raise AssertionError("no Redis is named")
    link = Link(settings.redis, clock, heard)
    try:
        keys = SharedKeys(link, copy, heard)
        if await link.greet():
            await keys.follow()
        reject = settings.when_lost == "reject"
        yield RedisWing(link, keys_dir, keys, clock, heard, reject=reject)
    finally:
        await link.close()
