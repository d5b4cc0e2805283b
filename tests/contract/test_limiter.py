"""The port Limiter: what every limiter promises, whatever it keeps its accounts in."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from gateway.core.attempt import Demand, Headroom, Refusal, Reservation
from gateway.core.ports import Limiter
from gateway.core.target import Account
from gateway.state.slices import RETURN
from tests.support.clock import ManualClock
from tests.unit.state.make import rpm, slots, tpm

Make = Callable[[ManualClock], Limiter]


async def held(limiter: Limiter, *demands: Demand, told: Sequence[Account] = ()) -> Reservation:
    taken = await limiter.reserve("req_1", demands, told)
    assert isinstance(taken, Reservation), taken
    return taken


async def refused(limiter: Limiter, *demands: Demand) -> Refusal:
    taken = await limiter.reserve("req_1", demands, ())
    assert isinstance(taken, Refusal)
    return taken


async def test_requests_up_to_the_limit_pass_and_the_next_one_waits_for_the_window(
    make_limiter: Make,
) -> None:
    clock = ManualClock()
    limiter = make_limiter(clock)
    for _ in range(3):
        await held(limiter, Demand(rpm(3), 1))
        clock.advance(10.0)
    refusal = await refused(limiter, Demand(rpm(3), 1))
    assert refusal.account == rpm(3)
    assert 30.0 < refusal.wait <= 31.001  # a bucket leaves when all of it is older than 60 s
    clock.advance(refusal.wait)
    await held(limiter, Demand(rpm(3), 1))


async def test_a_refusal_consumes_nothing(make_limiter: Make) -> None:
    limiter = make_limiter(ManualClock())
    await held(limiter, Demand(slots(1), 1))
    wide = [Demand(rpm(5), 1), Demand(tpm(100), 40), Demand(slots(1), 1)]
    for _ in range(20):
        assert (await refused(limiter, *wide)).account == slots(1)
    assert [h.remaining for h in limiter.headroom([rpm(5), tpm(100)])] == [5, 100]


async def test_tokens_are_held_by_the_bound_and_settled_with_the_use(make_limiter: Make) -> None:
    limiter = make_limiter(ManualClock())
    reservation = await held(limiter, Demand(tpm(100), 80))
    assert limiter.headroom([tpm(100)])[0].remaining == 20
    limiter.settle(reservation, [tpm(100)], 30)
    assert limiter.headroom([tpm(100)])[0].remaining == 70


async def test_more_use_than_was_held_stays_as_debt(make_limiter: Make) -> None:
    clock = ManualClock()
    limiter = make_limiter(clock)
    limiter.settle(await held(limiter, Demand(tpm(100), 50)), [tpm(100)], 500)
    refusal = await refused(limiter, Demand(tpm(100), 1))
    assert 60.0 <= refusal.wait <= 61.001
    clock.advance(refusal.wait)
    await held(limiter, Demand(tpm(100), 100))


async def test_an_ask_above_the_limit_passes_alone(make_limiter: Make) -> None:
    limiter = make_limiter(ManualClock())
    reservation = await held(limiter, Demand(tpm(100), 1_000_000))
    await refused(limiter, Demand(tpm(100), 1))
    limiter.release(reservation, [tpm(100)])
    await held(limiter, Demand(tpm(100), 1))
    await refused(limiter, Demand(tpm(100), 1_000_000))


async def test_a_limit_of_nothing_admits_nobody(make_limiter: Make) -> None:
    limiter = make_limiter(ManualClock())
    for account in (rpm(0), rpm(0, burst=3), tpm(0), slots(0)):
        assert (await refused(limiter, Demand(account, 1))).wait > 0
        assert limiter.wait([Demand(account, 1)]) > 0


async def test_settling_twice_is_settling_once(make_limiter: Make) -> None:
    limiter = make_limiter(ManualClock())
    accounts = [rpm(10), tpm(100), slots(4)]
    reservation = await held(limiter, *(Demand(account, 1) for account in accounts))
    for _ in range(3):
        limiter.settle(reservation, accounts, 30)
        limiter.release(reservation, accounts)
    assert [h.remaining for h in limiter.headroom(accounts)] == [9, 70, 4]


async def test_all_that_is_left_may_be_given_back_at_once(make_limiter: Make) -> None:
    limiter = make_limiter(ManualClock())
    reservation = await held(limiter, Demand(rpm(10), 1), Demand(slots(4), 1))
    limiter.release(reservation)
    assert not reservation.held
    assert [h.remaining for h in limiter.headroom([rpm(10), slots(4)])] == [10, 4]


async def test_what_is_released_has_never_been(make_limiter: Make) -> None:
    limiter = make_limiter(ManualClock())
    accounts = [rpm(2), rpm(20, burst=1, name="b"), tpm(10), slots(1)]
    for _ in range(20):
        reservation = await held(limiter, *(Demand(account, 1) for account in accounts))
        limiter.release(reservation, accounts)
    assert [h.remaining for h in limiter.headroom(accounts)] == [2, 1, 10, 1]


async def test_more_can_be_held_later_all_or_none(make_limiter: Make) -> None:
    limiter = make_limiter(ManualClock())
    reservation = await held(limiter, Demand(rpm(5), 1))
    other = slots(1, name="b")
    assert await limiter.extend(reservation, [Demand(tpm(9, "b"), 9), Demand(other, 1)]) is None
    refusal = await limiter.extend(reservation, [Demand(tpm(99), 9), Demand(other, 1)])
    assert refusal is not None
    assert refusal.account == other
    assert set(reservation.held) == {a.id for a in (rpm(5), tpm(9, "b"), other)}
    limiter.settle(reservation, [tpm(9, "b"), other], 1)
    assert [h.remaining for h in limiter.headroom([tpm(99), tpm(9, "b"), other])] == [99, 8, 1]


async def test_the_same_account_twice_counts_twice(make_limiter: Make) -> None:
    limiter = make_limiter(ManualClock())
    twice = [Demand(tpm(100), 30), Demand(tpm(100), 30)]
    reservation = await held(limiter, *twice)
    assert limiter.headroom([tpm(100)])[0].remaining == 40
    assert (await refused(limiter, *twice)).account == tpm(100)
    limiter.settle(reservation, [tpm(100)], 50)
    assert limiter.headroom([tpm(100)])[0].remaining == 50
    await held(limiter, Demand(slots(3), 2), Demand(slots(3), 2))  # together above: as the limit


async def test_a_refused_extension_leaves_what_was_held(make_limiter: Make) -> None:
    limiter = make_limiter(ManualClock())
    reservation = await held(limiter, Demand(slots(3), 1))
    more = [Demand(slots(3), 1), Demand(slots(0, name="b"), 1)]
    assert await limiter.extend(reservation, more) is not None
    assert dict(reservation.held) == {slots(3).id: 1}
    assert limiter.headroom([slots(3)])[0].remaining == 2
    limiter.release(reservation)
    assert limiter.headroom([slots(3)])[0].remaining == 3


async def test_with_burst_so_many_at_once_and_then_evenly(make_limiter: Make) -> None:
    clock = ManualClock()
    limiter = make_limiter(clock)
    meter = rpm(20, burst=5)
    for _ in range(5):
        await held(limiter, Demand(meter, 1))
    refusal = await refused(limiter, Demand(meter, 1))
    assert refusal.wait == pytest.approx(3.0, abs=1e-4)
    clock.advance(refusal.wait)
    await held(limiter, Demand(meter, 1))
    await refused(limiter, Demand(meter, 1))
    clock.advance(600.0)
    assert limiter.headroom([meter]) == (Headroom(meter, 5, 0.0),)


async def test_the_limit_is_that_of_the_account_at_hand(make_limiter: Make) -> None:
    limiter = make_limiter(ManualClock())
    for _ in range(4):
        await held(limiter, Demand(rpm(4), 1))
    await held(limiter, Demand(rpm(5), 1))
    await refused(limiter, Demand(rpm(3), 1))


async def test_headroom_is_told_with_the_reservation(make_limiter: Make) -> None:
    clock = ManualClock()
    limiter = make_limiter(clock)
    reservation = await held(
        limiter, Demand(rpm(5), 1), Demand(tpm(100), 10), told=[rpm(5), tpm(100), rpm(7, name="z")]
    )
    assert [(h.account, h.remaining) for h in reservation.headroom] == [
        (rpm(5), 4),
        (tpm(100), 90),
        (rpm(7, name="z"), 7),
    ]
    assert reservation.headroom[0].reset == pytest.approx(61.0)
    assert reservation.headroom[2].reset == 0.0


async def test_looking_at_the_wait_changes_nothing(make_limiter: Make) -> None:
    clock = ManualClock()
    limiter = make_limiter(clock)
    demand = Demand(rpm(1), 1)
    assert [limiter.wait([demand]) for _ in range(3)] == [0.0, 0.0, 0.0]
    await held(limiter, demand)
    wait = limiter.wait([demand, Demand(slots(3), 1)])
    assert wait > 0
    clock.advance(wait)
    assert limiter.wait([demand]) == 0.0


async def test_a_slot_that_comes_back_wakes_once_a_turn(make_limiter: Make) -> None:
    limiter = make_limiter(ManualClock())
    woken: list[int] = []
    limiter.on_room(lambda: woken.append(1))
    first = [await held(limiter, Demand(slots(9), 1), Demand(rpm(9), 1)) for _ in range(3)]
    for reservation in first:
        limiter.settle(reservation, [rpm(9)], 0)
    await asyncio.sleep(0)
    assert not woken
    for reservation in first:
        limiter.settle(reservation, [slots(9)], 0)
    assert not woken
    await asyncio.sleep(0)
    assert len(woken) == 1
    limiter.release(await held(limiter, Demand(slots(9), 1)), [slots(9)])
    await asyncio.sleep(0)
    assert len(woken) == 2


# The theorem, against a model that knows nothing of buckets: it keeps every event.

ACCOUNTS = (rpm(4), tpm(50), slots(3), rpm(6, name="b"), tpm(70, name="b"))


class Event:
    """Something settled: when it was admitted, when it was settled, how much."""

    def __init__(self, admitted: float, settled: float, n: int) -> None:
        self.admitted = admitted
        self.settled = settled
        self.n = n


class Held:
    def __init__(self, reservation: Reservation, at: float, amounts: dict[Account, int]) -> None:
        self.reservation = reservation
        self.amounts = amounts
        self.began = at
        self.at = dict.fromkeys(amounts, at)
        self.events: dict[Account, Event] = {}


class Limits(RuleBasedStateMachine):
    """Any interleaving of the six verbs and of time.

    `events` are what happened; `counted` what a limiter may count at most: of an admission that is
    given back late it may keep the younger part of the count, or all of it.
    """

    make: Make

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.limiter = self.make(self.clock)
        self.runner = asyncio.Runner()
        self.events: dict[Account, list[Event]] = {account: [] for account in ACCOUNTS}
        self.counted: dict[Account, list[Event]] = {account: [] for account in ACCOUNTS}
        self.held: dict[Account, int] = dict.fromkeys(ACCOUNTS, 0)

    reservations = Bundle("reservations")
    asks = st.dictionaries(st.sampled_from(ACCOUNTS), st.integers(1, 60), min_size=1, max_size=4)

    def teardown(self) -> None:
        self.runner.close()

    def in_window(self, events: list[Event]) -> list[Event]:
        """By the rule: what lies in a second that is not all of it older than 60 s."""
        now = self.clock.monotonic()
        return [e for e in events if int(e.settled) + 61 > now]

    def room(self, account: Account) -> int:
        settled = sum(e.n for e in self.in_window(self.events[account]))
        return account.limit - settled - self.held[account]

    def room_at_least(self, account: Account) -> int:
        settled = sum(e.n for e in self.in_window(self.counted[account]))
        return account.limit - settled - self.held[account]

    def demands(self, ask: dict[Account, int]) -> list[Demand]:
        return [Demand(a, n if a.kind == "tpm" else 1) for a, n in ask.items()]

    def admit(self, held: Held, demands: list[Demand]) -> None:
        now = self.clock.monotonic()
        for account, asked in demands:
            n = min(asked, account.limit)
            held.amounts[account] = n
            held.at[account] = now
            if account.kind == "rpm":
                event = Event(now, now, n)
                self.events[account].append(event)
                self.counted[account].append(event)
                held.events[account] = event
            else:
                self.held[account] += n

    def judge(self, demands: list[Demand], refusal: Refusal | None) -> None:
        """Refused exactly when there is no room, and the wait is the truth."""
        if refusal is None:
            assert all(self.room(a) >= min(n, a.limit) for a, n in demands)
            return
        full = refusal.account
        n = next(min(n, a.limit) for a, n in demands if a == full)
        assert self.room_at_least(full) < n
        assert refusal.wait > 0
        if n <= full.limit - self.held[full]:  # only settled use is in the way: time is the cure
            self.clock.advance(refusal.wait - 1e-4)
            assert self.room_at_least(full) < n
            self.clock.advance(1e-4)
            assert self.room(full) >= n
            assert self.limiter.wait([Demand(full, n)]) == 0

    @rule(target=reservations, ask=asks)
    def reserve(self, ask: dict[Account, int]) -> object:
        demands = self.demands(ask)
        taken = self.runner.run(self.limiter.reserve("req", demands, ()))
        if isinstance(taken, Refusal):
            self.judge(demands, taken)
            return multiple()
        self.judge(demands, None)
        held = Held(taken, self.clock.monotonic(), {})
        self.admit(held, demands)
        return held

    @rule(held=reservations, ask=asks)
    def extend(self, held: Held, ask: dict[Account, int]) -> None:
        demands = [d for d in self.demands(ask) if d.account not in held.amounts]
        refusal = self.runner.run(self.limiter.extend(held.reservation, demands))
        self.judge(demands, refusal)
        if refusal is None:
            self.admit(held, demands)

    @rule(held=reservations, accounts=st.sets(st.sampled_from(ACCOUNTS)), part=st.floats(0, 1))
    def settle(self, held: Held, accounts: set[Account], part: float) -> None:
        """With at most what was held: then the theorem promises the limit for real use too."""
        tokens = int(part * min((held.amounts.get(a, 70) for a in accounts), default=0))
        for _ in range(2):
            self.limiter.settle(held.reservation, accounts, tokens)
        now = self.clock.monotonic()
        for account in accounts:
            n = held.amounts.pop(account, None)
            if n is None or account.kind == "rpm":
                continue
            self.held[account] -= n
            if account.kind == "tpm":
                event = Event(held.at[account], now, tokens)
                self.events[account].append(event)
                self.counted[account].append(event)

    @rule(held=consumes(reservations))
    def release(self, held: Held) -> None:
        self.limiter.release(held.reservation)
        for account, n in held.amounts.items():
            if account.kind == "rpm":
                self.events[account].remove(held.events[account])
                oldest = self.in_window(self.counted[account])[:1]
                if oldest and self.clock.monotonic() - held.began < RETURN:
                    self.counted[account].remove(oldest[0])
            else:
                self.held[account] -= n
        held.amounts.clear()

    @rule(seconds=st.one_of(st.floats(0, 3), st.sampled_from((0.5, 30.0, 59.5, 60.0, 60.5, 61.0))))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def what_is_left_is_told_exactly(self) -> None:
        for headroom in self.limiter.headroom(ACCOUNTS):
            account = headroom.account
            assert headroom.remaining >= max(0, self.room_at_least(account))
            assert headroom.remaining <= max(0, self.room(account))

    @invariant()
    def no_span_of_60_seconds_has_more_than_the_limit(self) -> None:
        for account, events in self.events.items():
            if account.kind == "concurrency":
                assert self.held[account] <= account.limit
                continue
            for moments in (
                sorted((e.settled, e.n) for e in events),
                sorted((e.admitted, e.n) for e in events),
            ):
                for place, (begin, _) in enumerate(moments):
                    inside = sum(n for at, n in moments[place:] if at <= begin + 60.0)
                    assert inside <= account.limit


def test_limits_hold_under_any_interleaving(make_limiter: Make) -> None:
    machine = type("Limits", (Limits,), {"make": staticmethod(make_limiter)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            phases=set(Phase) - {Phase.explain},  # its tracing can crash CPython 3.11
        ),
    )
