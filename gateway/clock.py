"""The only time: every wait, timer and timestamp of the product goes through a Clock."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """What may be asked about time. Seconds everywhere."""

    def now(self) -> float:
        """Seconds since the epoch; may step."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go backwards; the zero means nothing."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    def call_at(self, when: float, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` once `monotonic()` has reached `when`; returns what cancels it."""
        ...


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment (monotonic seconds) by which something has to be over."""

    at: float

    def left(self, clock: Clock) -> float:
        """Seconds that are left, never below 0."""
        return max(0.0, self.at - clock.monotonic())


class Bell:
    """Many may wait for something to happen, each until a moment of its own."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[bool]] = []

    def ring(self) -> None:
        """It has happened: everybody who waits now goes on."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            _answer(waiter, rung=True)

    @property
    def awaited(self) -> bool:
        return bool(self._waiting)

    async def heard(self, clock: Clock, until: float) -> bool:
        """Wait for the next ring; False: `until` (monotonic seconds) came first."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        cancel = clock.call_at(until, lambda: _answer(waiter, rung=False))
        try:
            return await waiter
        finally:
            cancel()
            if waiter in self._waiting:
                self._waiting.remove(waiter)


def _answer(waiter: asyncio.Future[bool], *, rung: bool) -> None:
    if not waiter.done():
        waiter.set_result(rung)


class SystemClock:
    """The machine's clock; `call_at` needs a running event loop."""

    now = staticmethod(time.time)  # no frame of ours between: they are asked all the time
    monotonic = staticmethod(time.monotonic)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_at(self, when: float, wake: Callable[[], None]) -> Callable[[], None]:
        # The loop may keep another zero than time.monotonic (uvloop does): go by the difference.
        return asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()), wake).cancel
