"""What a worker does with its slices; what it promises its callers is in the contract."""

import asyncio
from collections.abc import Sequence

import pytest

from gateway.core.attempt import Demand, Refusal, Reservation
from gateway.core.target import Account
from gateway.errors import Overloaded
from gateway.state.accounts import Answer, Ask, Book, Caller, Need
from gateway.state.slices import HEARTBEAT, LIFE, REFRESH, RETURN, SHED, TICK, Slices
from tests.support.clock import ManualClock
from tests.support.limits import Dead, at_once
from tests.unit.state.make import budget, rpm, slots, tpm

WIDE = rpm(60_000)


class Counting(Book):
    """How often it was asked, and what; it answers once `gate` is open."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.calls: list[tuple[Sequence[Ask], Sequence[Sequence[Need]]]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def sync(
        self, caller: Caller, asks: Sequence[Ask], groups: Sequence[Sequence[Need]]
    ) -> Answer:
        self.calls.append((asks, groups))
        if not self.gate.is_set():
            await self.gate.wait()
        return self.answer(caller, asks, groups)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clock: ManualClock) -> Counting:
    return Counting(clock)


@pytest.fixture
def limiter(store: Counting, clock: ManualClock) -> Slices:
    return Slices(store, "w1", clock)


async def held(limiter: Slices, *demands: Demand) -> Reservation:
    taken = await limiter.reserve("req", demands, ())
    assert isinstance(taken, Reservation)
    return taken


async def refused(limiter: Slices, *demands: Demand) -> Refusal:
    taken = await limiter.reserve("req", demands, ())
    assert isinstance(taken, Refusal)
    return taken


def left(limiter: Slices, account: Account) -> int:
    return limiter.headroom([account])[0].remaining


async def busy(limiter: Slices, clock: ManualClock, account: Account, a_second: int = 500) -> None:
    """Three seconds of steady load."""
    for _ in range(30):
        for _ in range(a_second // 10):
            await held(limiter, Demand(account, 1))
        clock.advance(0.1)
        if not round(clock.monotonic() * 10) % 9:
            await limiter.tick()
    await limiter.tick()


async def test_under_steady_load_hardly_a_request_asks(
    limiter: Slices, store: Counting, clock: ManualClock
) -> None:
    await busy(limiter, clock, WIDE)
    store.calls.clear()
    await busy(limiter, clock, WIDE)
    assert len(store.calls) <= 5  # of 1,500
    assert left(limiter, WIDE) == 60_000 - 3_000


async def test_what_was_admitted_ahead_ends_after_a_second(
    limiter: Slices, store: Counting, clock: ManualClock
) -> None:
    await busy(limiter, clock, WIDE)
    assert limiter.try_reserve("req", [Demand(WIDE, 1)]) is not None
    clock.advance(LIFE)
    assert limiter.try_reserve("req", [Demand(WIDE, 1)]) is None
    calls = len(store.calls)
    await held(limiter, Demand(WIDE, 1))
    assert len(store.calls) == calls + 1


async def test_a_reserve_that_nobody_uses_is_given_back(
    limiter: Slices, store: Counting, clock: ManualClock
) -> None:
    await busy(limiter, clock, WIDE)
    for _ in range(40):
        clock.advance(TICK)
        await limiter.tick()
    (asks, _), asked = store.calls[-1], len(store.calls)
    assert not [ask for ask in asks if ask.want]
    other = Slices(store, "w2", clock)
    clock.advance(40.0)
    for _ in range(5):
        await held(other, Demand(WIDE, 10_000))
    assert asked < 100


async def test_among_several_workers_a_small_limit_is_asked_for_each_time(
    limiter: Slices, store: Counting, clock: ManualClock
) -> None:
    other = Slices(store, "w2", clock)
    for _ in range(2):  # each is heard of, then each hears of the other
        clock.advance(HEARTBEAT)
        await other.tick()
        await limiter.tick()
    before = len(store.calls)
    for _ in range(5):
        await held(limiter, Demand(rpm(10), 1))
        await held(other, Demand(rpm(10), 1))
    assert len(store.calls) == before + 10
    await refused(limiter, Demand(rpm(10), 1))
    await refused(other, Demand(rpm(10), 1))


async def test_who_comes_while_a_call_is_out_shares_the_next(
    limiter: Slices, store: Counting
) -> None:
    store.gate.clear()
    one = rpm(25)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(limiter.reserve(f"r{number}", [Demand(one, 1)], ()))
            for number in range(40)
        ]
        await asyncio.sleep(0)
        assert len(store.calls) == 1
        store.gate.set()
    taken = [isinstance(task.result(), Reservation) for task in tasks]
    assert taken == [True] * 25 + [False] * 15  # who came first
    assert len(store.calls) <= 3


async def test_a_request_that_does_not_fit_takes_nothing_from_those_merged_with_it(
    limiter: Slices, store: Counting
) -> None:
    await held(limiter, Demand(slots(1), 1))
    store.gate.clear()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(limiter.reserve("a", [Demand(slots(5, "b"), 1)], ()))
        await asyncio.sleep(0)
        wide = [Demand(rpm(3), 3), Demand(slots(1), 1)]
        second = group.create_task(limiter.reserve("b", wide, ()))
        third = group.create_task(limiter.reserve("c", [Demand(rpm(3), 3)], ()))
        await asyncio.sleep(0)
        store.gate.set()
    assert isinstance(first.result(), Reservation)
    assert isinstance(second.result(), Refusal)
    assert isinstance(third.result(), Reservation)


async def test_while_a_call_is_out_only_what_it_asks_for_is_spent(
    limiter: Slices, store: Counting
) -> None:
    """The rest may be somebody else's by the time the answer is here."""
    wide = tpm(48_000)
    limiter.settle(await held(limiter, Demand(wide, 40_000)), [wide], 0)
    store.gate.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(limiter.tick())
        await asyncio.sleep(0)
        ((ask,), _) = store.calls[-1]
        assert ask.want < 40_000
        assert limiter.try_reserve("req", [Demand(wide, ask.want + 1)]) is None
        assert limiter.try_reserve("req", [Demand(wide, ask.want)]) is not None
        store.gate.set()


async def test_while_somebody_waits_for_more_of_an_account_nothing_of_it_is_spent(
    limiter: Slices, store: Counting
) -> None:
    wide = tpm(48_000)
    limiter.settle(await held(limiter, Demand(wide, 10_000)), [wide], 0)
    assert limiter.try_reserve("req", [Demand(wide, 1)]) is not None
    store.gate.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(limiter.reserve("more", [Demand(wide, 47_000)], ()))
        await asyncio.sleep(0)
        assert limiter.try_reserve("req", [Demand(wide, 1)]) is None
        store.gate.set()


async def test_what_was_counted_long_ago_is_not_taken_back(
    limiter: Slices, store: Counting, clock: ManualClock
) -> None:
    taken = await held(limiter, Demand(rpm(100), 1))
    await limiter.tick()
    clock.advance(RETURN - 1.0)
    limiter.release(taken)
    clock.advance(2.0)  # it could not be told in time
    await limiter.tick()
    assert [ask.back for ask in store.calls[-1][0]] == [0]
    assert left(limiter, rpm(100)) == 99


async def test_the_caller_who_asked_for_all_may_leave(limiter: Slices, store: Counting) -> None:
    store.gate.clear()
    loop = asyncio.get_running_loop()
    one = rpm(3)
    leader = loop.create_task(limiter.reserve("leader", [Demand(one, 1)], ()))
    await asyncio.sleep(0)
    others = [loop.create_task(limiter.reserve("r", [Demand(one, 1)], ())) for _ in range(4)]
    await asyncio.sleep(0)
    leader.cancel()
    store.gate.set()
    taken = await asyncio.gather(*others)
    assert [isinstance(one, Reservation) for one in taken] == [True, True, True, False]
    with pytest.raises(asyncio.CancelledError):
        await leader


async def test_who_leaves_while_waiting_gives_back_what_it_was_given(
    limiter: Slices, store: Counting
) -> None:
    store.gate.clear()
    loop = asyncio.get_running_loop()
    first = loop.create_task(limiter.reserve("a", [Demand(slots(3), 1)], ()))
    await asyncio.sleep(0)
    second = loop.create_task(limiter.reserve("b", [Demand(slots(3), 2), Demand(tpm(50), 9)], ()))
    await asyncio.sleep(0)
    store.gate.set()
    second.cancel()
    assert isinstance(await first, Reservation)
    await asyncio.wait([second])
    assert (left(limiter, slots(3)), left(limiter, tpm(50))) == (2, 50)


async def test_a_refusal_is_remembered_while_only_time_can_help(
    limiter: Slices, store: Counting, clock: ManualClock
) -> None:
    await held(limiter, Demand(rpm(1), 1))
    first = await refused(limiter, Demand(rpm(1), 1))
    calls = len(store.calls)
    for _ in range(100):
        clock.advance(0.5)
        again = await refused(limiter, Demand(rpm(1), 1))
        assert again.wait < first.wait
    assert len(store.calls) == calls


async def test_a_refusal_for_what_others_hold_stands_for_a_moment(
    limiter: Slices, store: Counting, clock: ManualClock
) -> None:
    other = Slices(store, "w2", clock)
    taken = await held(other, Demand(slots(1), 1))
    await refused(limiter, Demand(slots(1), 1))
    calls = len(store.calls)
    await refused(limiter, Demand(slots(1), 1))
    assert len(store.calls) == calls
    other.settle(taken, [slots(1)], 0)
    await other.tick()
    clock.advance(SHED + 1e-6)
    assert limiter.wait([Demand(slots(1), 1)]) == 0.0  # only asking tells
    await held(limiter, Demand(slots(1), 1))


async def test_without_a_store_a_request_hears_so_and_holds_nothing(clock: ManualClock) -> None:
    limiter = Slices(Dead(), "w1", clock)
    with pytest.raises(Overloaded) as refusal:
        await limiter.reserve("r", [Demand(rpm(5), 1)], ())
    assert (refusal.value.code, refusal.value.retry_after) == ("store_unavailable", 1.0)
    assert left(limiter, rpm(5)) == 5


async def test_an_idle_worker_is_heard_of_all_the_same(
    limiter: Slices, store: Counting, clock: ManualClock
) -> None:
    for _ in range(100):
        await limiter.tick()
        clock.advance(TICK)
    assert 90.0 / HEARTBEAT * 0.8 <= len(store.calls) <= 90.0 / HEARTBEAT + 1


async def test_what_only_lies_there_is_told_again_before_it_is_forgotten(
    limiter: Slices, store: Counting, clock: ManualClock
) -> None:
    await held(limiter, Demand(slots(3), 2))
    for _ in range(400):
        clock.advance(TICK)
        await limiter.tick()
    other = Slices(store, "w2", clock)
    await refused(other, Demand(slots(3), 2))


async def test_accounts_nobody_uses_are_forgotten(limiter: Slices, clock: ManualClock) -> None:
    for number in range(200):
        name = f"k{number}"
        demands = [Demand(rpm(5, name=name), 1), Demand(tpm(9, name), 1), Demand(slots(2, name), 1)]
        taken = await held(limiter, *demands)
        limiter.settle(taken, [demand.account for demand in demands], 3)
    await held(limiter, Demand(slots(3), 1))
    await held(limiter, Demand(rpm(60, burst=2), 1))
    assert len(limiter) == 602
    for _ in range(int((61 + REFRESH) / TICK) + 3):
        clock.advance(TICK)
        await limiter.tick()
    assert len(limiter) == 1
    assert left(limiter, slots(3)) == 2


async def test_an_account_that_was_forgotten_begins_where_it_was(
    limiter: Slices, store: Counting, clock: ManualClock
) -> None:
    for _ in range(3):
        for _ in range(4):
            limiter.release(await held(limiter, Demand(rpm(48), 1)))
            await held(limiter, Demand(rpm(48), 10))
        assert left(limiter, rpm(48)) == 8
        for _ in range(100):
            clock.advance(TICK)
            await limiter.tick()
        assert len(limiter) == 0


async def test_money_stays_held_until_its_line_is_in_the_store(
    limiter: Slices, store: Counting, clock: ManualClock
) -> None:
    day = budget(1_000)
    taken = await held(limiter, Demand(day, 600))
    limiter.settle(taken, [day], tokens=77, nano_usd=450)
    assert left(limiter, day) == 550
    await refused(limiter, Demand(day, 551))
    store.spend(day.id, 450)  # the ledger's transaction
    await limiter.tick()
    assert left(limiter, day) <= 550  # counted twice for a moment, never less than once
    limiter.shipped([(day.id, 450)])
    for _ in range(8):
        clock.advance(TICK)
        await limiter.tick()
    assert left(limiter, day) == 550
    other = Slices(store, "w2", clock)
    await held(other, Demand(day, 550))
    await refused(other, Demand(day, 1))


async def test_who_leaves_gives_back_what_it_had_ahead(
    limiter: Slices, store: Counting, clock: ManualClock
) -> None:
    for _ in range(10):
        await held(limiter, Demand(tpm(1_000), 50))
    await limiter.leave()
    other = Slices(store, "w2", clock)
    await held(other, Demand(tpm(1_000), 500))


async def test_where_a_hold_is_in_the_way_the_wait_is_the_mean_time_a_hold_lasts(
    limiter: Slices, clock: ManualClock
) -> None:
    for account in (tpm(10), slots(1)):
        taken = await held(limiter, Demand(account, account.limit))
        assert (await refused(limiter, Demand(account, 1))).wait == pytest.approx(1.0, abs=1e-3)
        for _ in range(100):
            clock.advance(5.0)
            limiter.settle(taken, [account], 0)
            taken = await held(limiter, Demand(account, account.limit))
        assert 4.9 < (await refused(limiter, Demand(account, 1))).wait <= 5.0


def test_without_a_loop_whoever_waits_is_woken_at_once(clock: ManualClock) -> None:
    limiter = Slices(Book(clock), "w1", clock)
    woken: list[int] = []
    limiter.on_room(lambda: woken.append(1))
    taken = at_once(limiter.reserve("r", [Demand(slots(1), 1)], ()))
    assert isinstance(taken, Reservation)
    limiter.settle(taken, [slots(1)], 0)
    assert woken == [1]
