"""The limiter with an owner that does the background work on a manual clock."""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import redis

from gateway.core.target import Secret
from gateway.state.accounts import AccountStore, Answer, StoreLost
from gateway.state.embedded.sqlite import connect, migrate
from gateway.state.redis.connect import Script
from gateway.state.slices import Slices
from tests.support.clock import ManualClock

T = TypeVar("T")


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waited")


class Inline:
    """The store's tables, in memory or in a file, spoken to in the caller's own turn."""

    def __init__(self, folder: Path | None = None) -> None:
        if folder is None:
            self.db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            migrate(self.db)
        else:
            self.db = connect(folder)

    def __del__(self) -> None:
        self.db.close()

    async def within(self, seconds: float, work: Callable[[sqlite3.Connection], T]) -> T:
        return work(self.db)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return work(self.db)

    def hand(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        done = asyncio.get_running_loop().create_future()
        try:
            done.set_result(work(self.db))
        except sqlite3.Error as error:
            done.set_exception(error)
        return done


class Timed:
    """Redis in the caller's own turn and by a test's clock; the scripts are those of the product.

    Args:
        url: of a server that may be emptied.
    """

    def __init__(self, url: Secret, clock: ManualClock) -> None:
        self._clock = clock
        self._client = redis.Redis.from_url(url.reveal())
        self._client.flushall()

    async def run(
        self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int | float]
    ) -> Any:
        now = round(self._clock.monotonic() * 1_000_000)
        time = f"{{{now // 1_000_000}, {now % 1_000_000}}}"
        text = script.text.replace("redis.call('TIME')", time)
        return self._client.eval(text, len(keys), *keys, *args)

    def __del__(self) -> None:
        self._client.close()


class Dead:
    """A store that is lost."""

    async def sync(self, *_: Any) -> Answer:
        raise StoreLost("gone")


def owned(store: AccountStore, clock: ManualClock, worker: str = "w1") -> Slices:
    """A worker that reports before time moves, as its owner sees to within a second.

    The store must answer in the same turn.
    """
    limiter = Slices(store, worker, clock)
    clock.before.append(lambda: at_once(limiter.tick()))
    return limiter
