"""The state a configuration asks for: of one machine, or shared by many over Redis.

The Redis wing is loaded by name, when a configuration names one: redis-py takes 0.2 s to import.
"""

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from gateway.clock import Clock, SystemClock
from gateway.core.events import Event
from gateway.core.keys import KeyTaken, MadeKey, StoredKey
from gateway.core.snapshot import ServerSettings, Snapshot
from gateway.core.target import Secret
from gateway.state.embedded.key_copy import KeyCopy
from gateway.state.embedded.keys import KeyStore
from gateway.state.embedded.ledger import fill
from gateway.state.embedded.open import EmbeddedState, open_state
from gateway.state.embedded.sqlite import Store, connect, prepare

T = TypeVar("T")

PATIENCE = 5.0  # seconds an answer may take where a person waits, not a request


class StoreUnfit(Exception):
    """This Redis must not be used; the text says why and what to change on it."""


class StoreAway(Exception):
    """Redis does not answer; the text says why, in a word."""


@asynccontextmanager
async def open_rooms(
    snapshot: Snapshot,
    clock: Clock,
    heard: Callable[[Event], None],
    rng: random.Random,
    workers: int = 1,
) -> AsyncIterator[EmbeddedState]:
    """See `open_state`. Raises also StoreUnfit; a Redis that is away is waited for."""
    settings = snapshot.server
    folder = Path(settings.state_dir)
    async with AsyncExitStack() as stack:
        wing = None
        if settings.redis is not None:
            room = import_module("gateway.state.redis.open")
            keys_dir = room.copy_dir(folder, settings.redis)
            prepare(keys_dir)
            copy = Store(keys_dir)
            stack.push_async_callback(copy.close)
            opening = room.open_wing(settings, keys_dir, KeyCopy(copy), clock, heard)
            try:
                wing = await stack.enter_async_context(opening)
            except import_module("gateway.state.redis.connect").RedisUnfit as error:
                raise StoreUnfit(str(error)) from None
        yield await stack.enter_async_context(
            open_state(folder, snapshot, clock, heard, rng, workers, wing=wing)
        )


# For the command line, beside a running gateway


async def examine(url: Secret) -> str:
    """What a Redis says of itself: `6.2.14, 0.4 ms`. Raises StoreUnfit, StoreAway."""
    room = import_module("gateway.state.redis.connect")

    async def look(link: Any) -> str:
        clock = SystemClock()
        try:
            told = await link.examine()
        except room.RedisUnfit as error:
            raise StoreUnfit(str(error)) from None
        began = clock.monotonic()
        await link.call("PING")
        return f"{told}, {(clock.monotonic() - began) * 1000:.1f} ms"

    return await _linked(url, look)


@contextmanager
def books(settings: ServerSettings, since: float) -> Iterator[Path]:
    """A folder with the ledger from `since` (epoch seconds) on: the state directory, or a copy.

    Raises StoreAway.
    """
    if settings.redis is None:
        yield Path(settings.state_dir)
        return
    reports = import_module("gateway.state.redis.reports")
    found = asyncio.run(
        _linked(settings.redis, lambda link: reports.stored(link, since, SystemClock().now()))
    )
    with tempfile.TemporaryDirectory(prefix="gateway-spend-") as name:
        folder = Path(name)
        with closing(connect(folder)) as db:
            fill(db, found.rows, found.sums, found.first)
        yield folder


def shared_dir(settings: ServerSettings) -> Path:
    """Where this machine keeps caller keys and the audit log: with Redis a folder for each."""
    folder = Path(settings.state_dir)
    if settings.redis is None:
        return folder
    found: Path = import_module("gateway.state.redis.open").copy_dir(folder, settings.redis)
    return found


class SharedKeyStore(KeyStore):
    """Each method first takes what other machines did, then tells them. Raises StoreAway."""

    def __init__(
        self, settings: ServerSettings, url: Secret, who: str = "operator", config: str = ""
    ) -> None:
        self._dir = shared_dir(settings)
        self._url = url
        super().__init__(self._dir, SystemClock(), who, config)

    def create(self, name: str, **terms: Any) -> MadeKey:
        self.shared(lambda keys: keys.level())
        made = super().create(name, **terms)
        if not self.shared(lambda keys: keys.publish(name)):
            raise KeyTaken(name)
        return made

    def list(self) -> "list[StoredKey]":
        self.shared(lambda keys: keys.level())
        return super().list()

    def revoke(self, name: str) -> bool:
        self.shared(lambda keys: keys.level())
        told = super().revoke(name)
        self.shared(lambda keys: keys.publish(name))
        return told

    def rotate(self, name: str, overlap: float = 86_400.0) -> MadeKey:
        self.shared(lambda keys: keys.level())
        made = super().rotate(name, overlap)
        self.shared(lambda keys: keys.publish(name))
        return made

    def shared(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        """What `work` does with the keys of Redis and of this machine. Raises StoreAway."""
        room = import_module("gateway.state.redis.keys")

        async def run(link: Any) -> Any:
            prepare(self._dir)
            copy = Store(self._dir)
            try:
                return await work(room.SharedKeys(link, KeyCopy(copy), lambda _: None))
            finally:
                await copy.close()

        return asyncio.run(_linked(self._url, run))


async def _linked(url: Secret, work: Callable[[Any], Awaitable[T]]) -> T:
    """What `work` does with a link of its own. Raises StoreAway."""
    room = import_module("gateway.state.redis.connect")
    link = room.Link(url, SystemClock(), lambda _: None, PATIENCE)
    try:
        return await work(link)
    except room.RedisLost as error:
        raise StoreAway(str(error)) from None
    finally:
        await link.close()
