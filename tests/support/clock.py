"""A clock that moves only when told to."""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable

from gateway.clock import SystemClock


class ManualClock:
    """`advance` moves time and fires what is due, in order; sleepers wake in the same way.

    Attributes:
        before: called whenever time is about to move: what an owner does in the background.
    """

    def __init__(self, epoch: float = 1_800_000_000.0) -> None:
        self._epoch = epoch
        self._monotonic = 1000.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._cancelled: set[int] = set()
        self.before: list[Callable[[], object]] = []

    def now(self) -> float:
        return self._epoch + self._monotonic - 1000.0

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        self.call_at(self._monotonic + seconds, lambda: woken.done() or woken.set_result(None))
        await woken

    def call_at(self, when: float, wake: Callable[[], None]) -> Callable[[], None]:
        number = next(self._order)
        heapq.heappush(self._timers, (when, number, wake))
        return lambda: self._cancelled.add(number)

    def advance(self, seconds: float) -> None:
        """Move on; timers due on the way fire at their own moments."""
        if seconds > 0:
            for work in self.before:
                work()
        end = self._monotonic + seconds
        while self._timers and self._timers[0][0] <= end:
            when, number, wake = heapq.heappop(self._timers)
            self._monotonic = max(self._monotonic, when)
            if number not in self._cancelled:
                wake()
        self._monotonic = end


def hasten(pace: float) -> None:
    """From now on `pace` monotonic seconds pass in one, in all processes of the machine alike.

    So that minutes of limits fit into a test. The calendar keeps its own time.
    """

    def monotonic() -> float:
        return time.monotonic() * pace

    async def sleep(self: SystemClock, seconds: float) -> None:
        await asyncio.sleep(seconds / pace)

    def call_at(self: SystemClock, when: float, wake: Callable[[], None]) -> Callable[[], None]:
        wait = max(0.0, when - monotonic()) / pace
        return asyncio.get_running_loop().call_later(wait, wake).cancel

    SystemClock.monotonic = staticmethod(monotonic)
    SystemClock.sleep = sleep
    SystemClock.call_at = call_at
