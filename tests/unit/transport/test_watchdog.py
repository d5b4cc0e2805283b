"""The clock of an attempt, on a clock that moves when told to."""

import asyncio
from collections.abc import Callable

import pytest

from gateway.clock import Deadline
from gateway.core.target import Cause, Failure, Timeouts
from gateway.transport.watchdog import Timers, Watchdog
from tests.support.clock import ManualClock

TIMES = Timeouts(connect=2.0, first_token=10.0, answer=90.0, idle=20.0)


class Bench:
    """A task under a watchdog, which waits for ever; `steps` are told to the dog first."""

    def __init__(self, *, stream: bool = True, seconds: float = 10.0, deadline: float = 600.0):
        self.clock = ManualClock()
        self.timers = Timers(self.clock)
        self.dog: Watchdog
        self.failure: Failure | None = None
        self.cancelled = False
        self._stream, self._seconds = stream, seconds
        self._deadline = Deadline(self.clock.monotonic() + deadline)
        self.task = asyncio.ensure_future(self._attempt())

    async def _attempt(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.dog = Watchdog(
            self.timers, task, TIMES, self._seconds, self._deadline, stream=self._stream
        )
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            self.failure = self.dog.settle(error)
            self.cancelled = self.failure is None
        finally:
            self.dog.stop()

    async def after(self, seconds: float) -> Failure | None:
        await asyncio.sleep(0)
        self.clock.advance(seconds)
        for _ in range(3):
            await asyncio.sleep(0)
        return self.failure

    async def told(self, *steps: Callable[[Watchdog], None]) -> None:
        await asyncio.sleep(0)
        for step in steps:
            step(self.dog)


def cause(failure: Failure | None) -> Cause | None:
    return failure.cause if failure is not None else None


async def test_no_connection_in_time() -> None:
    bench = Bench()
    assert await bench.after(1.9) is None
    assert cause(await bench.after(0.2)) is Cause.CONNECT
    assert bench.task.cancelling() == 0


@pytest.mark.parametrize(
    ("stream", "expected"), [(True, Cause.FIRST_TOKEN), (False, Cause.TIMEOUT)]
)
async def test_no_answer_in_time(stream: bool, expected: Cause) -> None:
    bench = Bench(stream=stream)
    await bench.told(Watchdog.connected)
    assert await bench.after(9.9) is None
    assert cause(await bench.after(0.2)) is expected


async def test_idle_counts_from_content() -> None:
    bench = Bench()
    await bench.told(Watchdog.connected, Watchdog.waits)
    await bench.after(9)
    await bench.told(Watchdog.rests, Watchdog.progressed, Watchdog.waits)
    assert await bench.after(19.9) is None
    assert cause(await bench.after(0.2)) is Cause.STALLED


async def test_idle_adds_up_over_waits_that_brought_nothing() -> None:
    bench = Bench()
    await bench.told(Watchdog.connected, Watchdog.progressed)
    for _ in range(4):
        await bench.told(Watchdog.waits)
        assert await bench.after(4.9) is None
        await bench.told(Watchdog.rests)
    await bench.told(Watchdog.waits)
    assert cause(await bench.after(0.5)) is Cause.STALLED


async def test_idle_rests_while_nobody_waits() -> None:
    bench = Bench()
    await bench.told(Watchdog.connected, Watchdog.progressed, Watchdog.waits)
    await bench.after(15)
    await bench.told(Watchdog.rests)
    assert await bench.after(300) is None
    await bench.told(Watchdog.waits)
    assert await bench.after(4.9) is None
    assert cause(await bench.after(0.2)) is Cause.STALLED


async def test_the_end_is_counted_alike() -> None:
    bench = Bench()
    await bench.told(Watchdog.connected, Watchdog.progressed, lambda dog: dog.ending(2.0))
    assert await bench.after(5) is None
    await bench.told(Watchdog.waits)
    assert await bench.after(1.9) is None
    assert cause(await bench.after(0.2)) is Cause.STALLED


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
async def test_the_deadline_ends_every_phase(steps: int) -> None:
    bench = Bench(seconds=100.0, deadline=1.5)
    walk = (Watchdog.connected, Watchdog.progressed, Watchdog.waits)
    await bench.told(*walk[:steps])
    assert await bench.after(1.4) is None
    causes = (Cause.CONNECT, Cause.FIRST_TOKEN, Cause.STALLED, Cause.STALLED)
    assert cause(await bench.after(0.2)) is causes[steps]


async def test_dialling_anew_has_its_own_time() -> None:
    bench = Bench()
    await bench.told(Watchdog.connected)
    assert await bench.after(5) is None
    await bench.told(Watchdog.dialling)
    assert await bench.after(1.9) is None
    assert cause(await bench.after(0.2)) is Cause.CONNECT


async def test_somebody_elses_cancellation_is_theirs() -> None:
    bench = Bench()
    await asyncio.sleep(0)
    bench.task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert bench.cancelled
    assert bench.task.cancelling() == 1


async def test_somebody_elses_cancellation_wins_over_ours() -> None:
    bench = Bench()
    await asyncio.sleep(0)
    bench.clock.advance(3)  # ours
    bench.task.cancel()  # theirs, before ours has surfaced
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert bench.cancelled
    assert bench.task.cancelling() == 1


async def test_a_stopped_dog_does_not_bite() -> None:
    bench = Bench()
    await bench.told(Watchdog.stop)
    assert await bench.after(1000) is None
    bench.task.cancel()
    await asyncio.sleep(0)


async def test_what_has_ended_is_forgotten_when_its_first_look_is_due() -> None:
    clock = ManualClock()
    timers = Timers(clock)
    task = asyncio.current_task()
    assert task is not None
    for _ in range(1000):
        deadline = Deadline(clock.monotonic() + 600.0)
        dog = Watchdog(timers, task, TIMES, 90.0, deadline, stream=True)
        dog.connected()
        dog.stop()
        clock.advance(0.01)
        assert len(timers) <= TIMES.connect / 0.01 + 1
    clock.advance(TIMES.connect)
    assert len(timers) == 0
    timers.close()
