"""Calls that go on though their caller has left: their owner, and what their caller still hears.

Source: gateway.md 3.10.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Self

from gateway.clock import Bell, Clock
from gateway.core.attempt import StreamEvent
from gateway.errors import Overloaded

MOST = 1_000  # calls under way on this worker
HELD = 256 * 1024  # bytes a caller may be behind before the call waits for it


class Relay:
    """From a detached call to its caller, as long as that listens.

    `begun` once the caller is to be answered; iterated like any answer.
    """

    def __init__(self) -> None:
        self._held: list[StreamEvent] = []
        self._size = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._begun = False
        self._over = False
        self._error: BaseException | None = None
        self._listening = True

    # the call's side

    def begin(self) -> None:
        self._begun = True
        self._news.set()

    async def say(self, events: Sequence[StreamEvent]) -> None:
        """Hand on; a caller who is far behind is waited for."""
        if self._listening:
            self._held += events
            self._size += sum(len(event.wire) for event in events)
            self._news.set()
        while self._listening and self._size > HELD:
            self._room.clear()
            await self._room.wait()

    def end(self, error: BaseException | None = None) -> None:
        """Said twice, the first counts."""
        if not self._over:
            self._over, self._error = True, error
            self._news.set()

    # the caller's side

    async def begun(self) -> None:
        """Raises what ended the call before there was an answer."""
        while not self._begun and not self._over:
            await self._fresh()
        if not self._begun and self._error is not None:
            raise self._error

    def leave(self) -> None:
        self._listening = False
        self._held.clear()
        self._size = 0
        self._room.set()

    def __aiter__(self) -> AsyncIterator[Sequence[StreamEvent]]:
        return self

    async def __anext__(self) -> Sequence[StreamEvent]:
        while not self._held and not self._over:
            await self._fresh()
        if self._held:
            events, self._held, self._size = self._held, [], 0
            self._room.set()
            return events
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def _fresh(self) -> None:
        self._news.clear()
        await self._news.wait()


class Detached:
    """Owns the tasks; `async with` ends what is left of them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._quiet = Bell()
        self._hurried = False

    @property
    def under_way(self) -> int:
        return len(self._tasks)

    def start(self, call: Coroutine[None, None, None]) -> Callable[[], None]:
        """Run it; gives what ends it.

        Raises:
            Overloaded: too many of them.
        """
        if len(self._tasks) >= MOST:
            call.close()
            raise Overloaded(
                f"{MOST:,} detached requests are being answered already, the most this gateway"
                " takes at once.",
                retry_after=1.0,
            )
        task = asyncio.get_running_loop().create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return lambda: _cancel(task)

    async def drain(self, seconds: float) -> None:
        """Until none is under way, or `seconds` have passed, or somebody is in a hurry."""
        end = self._clock.monotonic() + seconds
        while self._tasks and not self._hurried:
            if not await self._quiet.heard(self._clock, end):
                return

    def hurry(self) -> None:
        self._hurried = True
        self._quiet.ring()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            _cancel(task)
        if tasks:
            await asyncio.wait(tasks)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a detached request met a mistake of ours", "exception": bug}
            )
        if not self._tasks:
            self._quiet.ring()


def _cancel(task: asyncio.Task[None]) -> None:
    """In the next turn: what has not begun yet would end without its clean-up."""
    asyncio.get_running_loop().call_soon(task.cancel)
