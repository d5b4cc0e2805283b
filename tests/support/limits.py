"""The limiter with an owner that does the background work on a manual clock."""

from collections.abc import Coroutine
from typing import Any, TypeVar

from gateway.state.accounts import AccountStore
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


def owned(store: AccountStore, clock: ManualClock, worker: str = "w1") -> Slices:
    """A worker that reports before time moves, as its owner sees to within a second.

    The store must answer in the same turn.
    """
    limiter = Slices(store, worker, clock)
    clock.before.append(lambda: at_once(limiter.tick()))
    return limiter
