"""The limiter with an owner that does the background work on a manual clock."""

import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from gateway.state.accounts import AccountStore, Answer, StoreLost
from gateway.state.embedded.sqlite import connect, migrate
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
