"""Calls that outlive their callers: who owns them, and what a caller hears of them."""

import asyncio

import pytest

from gateway.core.attempt import StreamEvent
from gateway.errors import Overloaded
from gateway.pipeline import detached
from gateway.pipeline.detached import HELD, Detached, Relay
from tests.support.clock import ManualClock
from tests.support.fakes import turns, until

BIG = StreamEvent(b"x" * (HELD + 1))


async def listen(relay: Relay) -> list[bytes]:
    return [event.wire async for events in relay for event in events]


async def test_a_caller_hears_everything_in_order_and_then_the_end() -> None:
    relay = Relay()
    hearing = asyncio.ensure_future(listen(relay))
    for word in (b"a", b"b", b"c"):
        await relay.say([StreamEvent(word)])
        await turns(3)
    relay.end()
    relay.end(Overloaded("too late to matter"))
    assert await hearing == [b"a", b"b", b"c"]


async def test_a_slow_caller_is_waited_for_and_one_who_left_is_not() -> None:
    relay = Relay()
    saying = asyncio.ensure_future(relay.say([BIG]))
    await turns()
    assert not saying.done()
    assert await anext(relay) == [BIG]
    await saying
    saying = asyncio.ensure_future(relay.say([BIG]))
    await turns()
    relay.leave()
    await saying
    await relay.say([BIG])
    assert relay._size == 0


async def test_what_was_said_before_a_failure_is_heard_before_it() -> None:
    relay = Relay()
    relay.begin()
    await relay.say([StreamEvent(b"a")])
    relay.end(Overloaded("gone"))
    await relay.begun()
    assert await anext(relay) == [StreamEvent(b"a")]
    with pytest.raises(Overloaded):
        await anext(relay)


async def test_the_end_waits_for_calls_until_its_time_is_over_and_ends_the_rest() -> None:
    clock, ended = ManualClock(), []

    async def call(seconds: float) -> None:
        try:
            await clock.sleep(seconds)
        finally:
            ended.append((seconds, clock.monotonic()))

    async with Detached(clock) as calls:
        for seconds in (1.0, 5.0, 60.0):
            calls.start(call(seconds))
        await turns()
        await until(clock, asyncio.ensure_future(calls.drain(10.0)))
        assert (clock.monotonic(), calls.under_way) == (1010.0, 1)
        calls.hurry()
        await calls.drain(10.0)
    assert ended == [(1.0, 1001.0), (5.0, 1005.0), (60.0, 1010.0)]


async def test_a_call_that_is_ended_before_it_began_still_cleans_up() -> None:
    cleaned = []

    async def call() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cleaned.append(True)

    async with Detached(ManualClock()) as calls:
        calls.start(call())()
    assert cleaned == [True]


async def test_there_are_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detached, "MOST", 1)
    clock = ManualClock()
    async with Detached(clock) as calls:
        calls.start(clock.sleep(1))
        with pytest.raises(Overloaded, match="detached requests"):
            calls.start(clock.sleep(1))
