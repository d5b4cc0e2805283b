"""Fair, bounded waiting: who goes first, who is refused, and nobody is forgotten."""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.attempt import Refusal, Reservation
from gateway.core.principal import Principal
from gateway.core.request import Hints
from gateway.core.target import Account
from gateway.errors import RateLimited
from gateway.pipeline.queue import LOOK_AGAIN, Queue, Tries
from tests.support.clock import ManualClock
from tests.support.fakes import (
    World,
    answers,
    make_chain,
    make_facts,
    make_request,
    make_target,
    slots,
    turns,
    until,
)

CHAIN = make_chain("gpt")


class Place(Reservation):
    held: Mapping[str, int] = MappingProxyType({})


class Room:
    """One account with places, and a queue before it."""

    def __init__(self, length: int = 10, room: int = 1_000_000, limit: int = 1) -> None:
        self.clock = ManualClock()
        self.queue = Queue(self.clock, length, room)
        self.account = Account("target:gpt:concurrency", "target", "gpt", "concurrency", limit)
        self.free = 0
        self.order: list[str] = []
        self.tasks: dict[str, asyncio.Task] = {}

    def stand(self, name, key="k", priority="normal", wait=60.0, prompt=10, hint=None):
        principal = Principal(key, priority=priority, wait=wait)
        facts = make_facts(CHAIN, id=name, principal=principal, hints=Hints(priority=hint),
                           request=make_request(prompt=prompt))  # fmt: skip

        async def again():
            if self.free <= 0:
                return Refusal(self.account, 0.1)
            self.free -= 1
            self.order.append(name)
            return Place(name, ())

        refusal = Refusal(self.account, 0.1)
        tries = Tries(lambda: 0.0 if self.free > 0 else 9.0, lambda: None, again)
        waits = self.queue.wait(facts, refusal, tries)
        task = self.tasks[name] = asyncio.get_running_loop().create_task(waits)
        return task

    async def give(self, places=1):
        self.free += places
        self.queue.pump()
        await turns()

    async def end(self):
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        assert self.queue.waiting == 0
        assert self.queue._bytes == 0
        assert self.queue._finish == {}


async def stood(room, *names, **how):
    for name in names:
        room.stand(name, **how)
        await turns(3)


async def test_within_a_key_first_come_is_first_served():
    room = Room()
    await stood(room, "a", "b", "c")
    await room.give(3)
    assert room.order == ["a", "b", "c"]
    await room.end()


async def test_the_higher_class_goes_first_and_a_hint_lowers_it():
    room = Room()
    await stood(room, "low", key="k1", priority="low")
    await stood(room, "lowered", key="k2", priority="high", hint="low")
    await stood(room, "normal", key="k3")
    await stood(room, "high", key="k4", priority="high")
    await room.give(4)
    assert room.order == ["high", "normal", "low", "lowered"]
    await room.end()


async def test_keys_take_turns_weighted_with_their_tokens():
    room = Room(length=20)
    await stood(room, *(f"big{n}" for n in range(4)), key="big", prompt=200)
    await stood(room, *(f"small{n}" for n in range(4)), key="small", prompt=99)
    await room.give(8)
    assert room.order[:6] == ["small0", "small1", "big0", "small2", "small3", "big1"]
    await room.end()


async def test_one_key_holds_at_most_half_while_others_wait():
    room = Room(length=10)
    await stood(room, "other", key="other")
    await stood(room, *(f"k{n}" for n in range(5)), key="k")
    task = room.stand("k5", key="k")
    await turns()
    assert isinstance(task.exception(), RateLimited)
    assert task.exception().code == "queue_full"
    assert "5 requests of this key wait already" in task.exception().message
    assert room.queue.waiting == 6
    await room.end()


async def test_a_key_that_filled_the_line_alone_makes_room_for_others():
    room = Room(length=10)
    await stood(room, *(f"k{n}" for n in range(8)), key="k")
    await stood(room, "other", key="other")
    assert isinstance(room.tasks["k7"].exception(), RateLimited)
    assert not room.tasks["other"].done()
    await room.end()


async def test_a_fifth_of_the_places_is_kept_for_high():
    room = Room(length=10)
    for n in range(8):
        await stood(room, f"n{n}", key=f"key{n}")
    late = room.stand("n8", key="key8")
    await turns()
    assert "8 requests wait already" in late.exception().message
    await stood(room, "high", key="vip", priority="high")
    assert not room.tasks["high"].done()
    await room.end()


async def test_a_full_line_pushes_out_the_newest_of_a_lower_class():
    room = Room(length=5)
    for n, priority in enumerate(["low", "low", "normal", "normal"]):
        await stood(room, f"{priority}{n}", key=f"key{n}", priority=priority)
    await stood(room, "late", key="late")
    pushed = room.tasks["low1"].exception()
    assert (pushed.code, pushed.status) == ("queue_full", 429)
    assert "more right" in pushed.message
    assert room.queue.waiting == 4
    await room.end()


async def test_of_lower_classes_the_lowest_goes_first():
    room = Room(length=5)
    for n, priority in enumerate(["low", "normal", "low", "normal", "high"]):
        await stood(room, f"{priority}{n}", key=f"key{n}", priority=priority)
    await stood(room, "late", key="late", priority="high")
    assert [name for name, task in room.tasks.items() if task.done()] == ["low2"]
    await room.end()


async def test_nobody_is_pushed_out_for_one_who_does_not_fit_all_the_same():
    room = Room(room=100)
    await stood(room, "high", key="a", prompt=20, priority="high")
    await stood(room, "low", key="b", prompt=5, priority="low")
    late = room.stand("late", key="c", prompt=20, priority="normal")
    await turns()
    assert isinstance(late.exception(), RateLimited)
    assert not room.tasks["low"].done()
    await room.end()


async def test_the_bytes_that_wait_are_bounded_too():
    room = Room(room=100)
    await stood(room, "a", key="a", prompt=20)
    late = room.stand("b", key="b", prompt=20)
    await turns()
    assert isinstance(late.exception(), RateLimited)
    await room.end()


async def test_a_body_that_never_fits_pushes_nobody_out():
    room = Room(room=100)
    await stood(room, "low", key="a", prompt=20, priority="low")
    late = room.stand("huge", key="b", prompt=2000, priority="high")
    await turns()
    assert isinstance(late.exception(), RateLimited)
    assert not room.tasks["low"].done()
    await room.end()


async def test_who_would_wait_too_long_is_refused_on_arrival():
    room = Room()
    room.queue.served("smart", 4.0)
    await stood(room, "a", wait=5.0)
    late = room.stand("b", wait=5.0)
    await turns()
    assert isinstance(late.exception(), RateLimited)
    assert late.exception().retry_after >= 8.0
    await stood(room, "patient", wait=9.0)
    await stood(room, "high", key="h", wait=5.0, priority="high")  # nobody is ahead of it
    assert not room.tasks["patient"].done()
    assert not room.tasks["high"].done()
    await room.end()


async def test_only_those_are_ahead_who_would_be_served_before():
    """Else one key with a long line of its own would keep all others out."""
    room = Room(length=100)
    room.queue.served("smart", 1.0)
    await stood(room, *(f"greedy{n}" for n in range(20)), key="greedy", wait=60.0)
    await stood(room, "other", key="other", wait=3.0)
    assert not room.tasks["other"].done()
    late = room.stand("greedy20", key="greedy", wait=3.0)
    await turns()
    assert "its turn would come in 22 s, and it may wait 3 s" in late.exception().message
    await room.end()


async def test_patience_ends_with_429():
    room = Room()
    task = room.stand("a", wait=5.0)
    await turns()
    room.clock.advance(4.9)
    await turns()
    assert not task.done()
    room.clock.advance(0.2)
    await turns()
    assert task.exception().code == "queue_full"
    assert "the 5 s it may wait are over" in task.exception().message
    assert room.queue.waiting == 0
    await room.end()


async def test_who_leaves_is_forgotten_and_the_next_gets_the_place():
    room = Room()
    await stood(room, "a", "b")
    room.free = 1
    room.queue.pump()  # a is called, and leaves before it runs
    room.tasks["a"].cancel()
    await turns()
    assert room.order == ["b"]
    await room.end()


async def test_one_that_is_called_and_refused_all_the_same_does_not_block_the_rest():
    room = Room()
    await stood(room, "a", "b")
    room.free = 1
    room.queue.pump()
    room.free = 0  # somebody else was faster
    await turns()
    assert room.order == []
    room.clock.advance(0.2)
    await room.give(2)
    assert room.order == ["a", "b"]
    await room.end()


async def test_one_whose_time_ends_while_it_tries_does_not_wait_again():
    room = Room()
    gate = asyncio.get_running_loop().create_future()

    async def again():
        await gate
        return Refusal(room.account, 0.1)

    facts = make_facts(CHAIN, principal=Principal("k", wait=5.0))
    tries = Tries(lambda: 0.0, lambda: None, again)
    looks = room.queue.wait(facts, Refusal(room.account, 0.1), tries)
    task = asyncio.get_running_loop().create_task(looks)
    await turns()
    room.clock.advance(6.0)
    gate.set_result(None)
    await turns()
    assert task.exception().code == "queue_full"
    await room.end()


async def test_two_places_that_come_at_once_serve_two():
    room = Room()
    await stood(room, "a", "b", "c")
    await room.give(2)
    assert room.order == ["a", "b"]
    await room.end()


@pytest.mark.parametrize("wait", [0.1, 0.2])
async def test_nobody_waits_for_what_the_deadline_leaves_no_time_for(wait):
    world = World(
        make_chain(make_target("gpt", accounts=(slots(1),)), deadline=wait + 0.2),
        {"gpt": answers(delay=wait)},
        principal=Principal("k", wait=60.0),
    )
    going = [world.begin() for _ in range(2)]
    told = [await one.end() for one in going]
    assert world.clock.monotonic() <= 1000.0 + wait + 0.2 + 0.25
    assert told[1].refusal.status in {429, 504}


arrivals = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.1, 0.7]),  # seconds since the one before
        st.sampled_from(["x", "y", "z"]),  # key
        st.sampled_from(["high", "normal", "low"]),
        st.sampled_from([None, None, None, 0.0, 0.5]),  # hangs up after so long
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=120, deadline=None)
@given(arrivals, st.integers(1, 3), st.integers(1, 3), st.integers(2, 12), st.booleans())
def test_nobody_waits_while_there_is_room_and_all_end(
    arriving, per_key, per_target, length, minute
):
    accounts = [slots(per_target, name="gpt")]
    if minute:
        accounts.append(Account("target:gpt:rpm", "target", "gpt", "rpm", 120, burst=2))

    async def go() -> None:
        chain = make_chain(make_target("gpt", accounts=tuple(accounts)), deadline=30.0)
        world = World(chain, {"gpt": answers(delay=0.4)}, queue=(length, 10**6))
        mine = {key: slots(per_key, "key", key) for key in "xyz"}
        going = []

        def settled() -> None:
            """Nobody in line has room: the first for whom there is some was called."""
            now = world.clock.monotonic()
            line = world.queue._waiters
            assert len(line) <= length
            if any(waiter.turn.done() for waiter in line):
                return
            if any(w.not_before <= now and w.tries.room_in() <= 0 for w in line):
                clock = world.clock
                looks = [
                    when
                    for when, number, wake in clock._timers
                    if number not in clock._cancelled and wake == world.queue.pump
                ]
                assert min(looks) <= now + LOOK_AGAIN

        for pause, key, priority, leaves in arriving:
            world.clock.advance(pause)
            await turns()
            settled()
            principal = Principal(key, accounts=(mine[key],), wait=10.0, priority=priority)
            world.keys.principal = principal
            one = world.begin()
            going.append(one)
            await turns(4)
            if leaves is not None:
                world.clock.call_at(world.clock.monotonic() + leaves, one.task.cancel)
            await turns()
            settled()
        await until(world.clock, *(one.task for one in going))
        for one in going:
            told = await one.end()
            assert told.exchange.status in {200, 429, 499}
            assert world.clock.monotonic() <= 1060.0
        assert world.queue.waiting == 0
        assert world.held([accounts[0], *mine.values()]) == 0
        assert world.upstreams.open == 0

    asyncio.run(go())


async def test_a_key_that_asks_fifty_times_as_much_harms_no_other():
    """Four slots of 0.4 s serve ten a second: one key asks twice a second, another a hundred."""
    gpt = make_target("gpt", accounts=(slots(4),))
    world = World(make_chain(gpt), {"gpt": answers(delay=0.4)})
    keys = {name: Principal(name, wait=1.0) for name in ("greedy", "modest")}
    going = {"greedy": [], "modest": []}
    for step in range(1000):
        for key in ("greedy", "modest") if step % 50 == 49 else ("greedy",):
            world.keys.principal = keys[key]
            going[key].append(world.begin())
            await turns(6)
        world.clock.advance(0.01)
        await turns(6)
    told = {key: [await one.end() for one in ones] for key, ones in going.items()}
    assert len(told["greedy"]) == 50 * len(told["modest"]) == 1000
    assert [one.exchange.status for one in told["modest"]] == [200] * 20
    solo = 0.4
    assert max(one.exchange.ended - one.exchange.started for one in told["modest"]) <= 2 * solo
    served = [one.exchange for one in told["greedy"] if one.exchange.status == 200]
    assert 70 <= len(served) <= 90  # and no slot was idle: what is left over is the greedy one's
    for one in told["modest"]:  # at most one of the greedy key's was served while it waited
        mine = one.exchange
        between = [e for e in served if mine.started < e.planned < mine.planned]
        assert len(between) <= 1


async def test_who_leaves_in_the_very_turn_it_is_given_a_slot_gives_it_back():
    gpt = slots(1)
    world = World(
        make_chain(make_target("gpt", accounts=(gpt,))),
        {"gpt": answers(delay=1.0)},
        principal=Principal("k", wait=9.0),
    )
    first, second, third = (world.begin() for _ in range(3))
    await turns()
    assert world.queue.waiting == 2
    world.clock.advance(1.0)
    while world.queue.waiting == 2:
        await turns(1)
    assert world.held([gpt]) == 1
    await second.leave()
    assert [(await one.end()).exchange.status for one in (first, third)] == [200, 200]
    assert second.reply.headers is None
    assert world.held([gpt]) == 0
