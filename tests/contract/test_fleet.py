"""Several workers on one store: whatever is late, lost or killed, no limit is exceeded."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.core.attempt import Demand, Reservation
from gateway.core.target import Account
from gateway.errors import Overloaded
from gateway.state.accounts import SILENT, Answer, Ask, Book, Caller, Need, StoreLost
from gateway.state.slices import HEARTBEAT, TICK, Slices
from tests.support.clock import ManualClock
from tests.unit.state.make import rpm, slots, tpm

ACCOUNTS = (rpm(48), tpm(400), slots(48), rpm(5, name="small"), tpm(40, name="small"))
Groups = Sequence[Sequence[Need]]
MOST = 3  # workers at a time


@dataclass(eq=False)
class Event:
    at: float
    n: int


class Call:
    """On its way to the store, and back."""

    def __init__(self, caller: Caller, asks: Sequence[Ask], groups: Groups) -> None:
        self.what = (caller, asks, groups)
        self.back: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.answer: Answer | StoreLost | None = None


class Wire:
    """The store as a worker sees it: whatever it says waits until the test lets it through."""

    def __init__(self) -> None:
        self.call: Call | None = None

    async def sync(self, caller: Caller, asks: Sequence[Ask], groups: Groups) -> Answer:
        self.call = Call(caller, asks, groups)
        try:
            return await self.call.back
        finally:
            self.call = None


class Skewed(ManualClock):
    """A worker's own idea of the time."""

    def __init__(self, true: ManualClock, ahead: float) -> None:
        super().__init__()
        self.monotonic = lambda: true.monotonic() + ahead  # type: ignore[method-assign]


class Worker:
    def __init__(self, name: str, clock: ManualClock, ahead: float) -> None:
        self.wire = Wire()
        self.slices = Slices(self.wire, name, Skewed(clock, ahead))
        self.held: list[tuple[Reservation, dict[Account, int], list[Event]]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.heard = clock.monotonic()


class Fleet(RuleBasedStateMachine):
    """Workers that join, ask, spend, settle, tick, stall and die, over a slow and lossy wire."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.store = Book(self.clock)
        self.runner = asyncio.Runner()
        self.loop = self.runner.get_loop()
        self.workers: list[Worker] = []
        self.born = 0
        self.late: list[Call] = []
        self.admitted: dict[Account, list[Event]] = {account: [] for account in ACCOUNTS}
        self.settled: dict[Account, list[Event]] = {account: [] for account in ACCOUNTS}
        self.stalled = False  # a living worker was taken for dead
        self.ghost = False  # the store heard of a worker after its death

    def teardown(self) -> None:
        for worker in self.workers:
            for task in worker.tasks:
                task.cancel()
        self.turn()
        self.runner.close()

    def turn(self) -> None:
        """Let everybody run who can."""

        async def turns() -> None:
            for _ in range(6):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    @initialize(
        aheads=st.lists(st.sampled_from((-5000.0, 0.0, 0.3, 86_400.7)), min_size=2, max_size=3)
    )
    def begin(self, aheads: list[float]) -> None:
        for ahead in aheads:
            self.join(ahead)

    @precondition(lambda self: len(self.workers) < MOST)
    @rule(ahead=st.sampled_from((0.0, 77.7)))
    def join(self, ahead: float) -> None:
        self.born += 1
        self.workers.append(Worker(f"w{self.born}", self.clock, ahead))

    def pick(self, which: int) -> Worker:
        return self.workers[which % len(self.workers)]

    # what a worker does

    @rule(
        which=st.integers(0, 9),
        ask=st.dictionaries(st.sampled_from(ACCOUNTS), st.integers(1, 45), min_size=1, max_size=4),
        times=st.integers(1, 30),
    )
    def spend(self, which: int, ask: dict[Account, int], times: int) -> None:
        """So many requests, one after the other, until one has to wait for the store."""
        worker = self.pick(which)
        demands = [Demand(a, n if a.kind == "tpm" else 1) for a, n in ask.items()]

        async def requests() -> None:
            for _ in range(times):
                try:
                    taken = await worker.slices.reserve("req", demands, ())
                except Overloaded:
                    return
                if not isinstance(taken, Reservation):
                    return
                self.admit(worker, taken, demands)

        worker.tasks.append(self.loop.create_task(requests()))
        self.turn()

    def admit(self, worker: Worker, taken: Reservation, demands: list[Demand]) -> None:
        now = self.clock.monotonic()
        events = []
        for account, n in demands:
            event = Event(now, min(n, account.limit))
            self.admitted[account].append(event)
            events.append(event)
        amounts = {account: min(n, account.limit) for account, n in demands}
        worker.held.append((taken, amounts, events))

    @rule(which=st.integers(0, 9), which_one=st.integers(0, 99), part=st.floats(0, 1))
    def settle(self, which: int, which_one: int, part: float) -> None:
        worker = self.pick(which)
        if not worker.held:
            return
        taken, amounts, events = worker.held.pop(which_one % len(worker.held))
        tokens = int(part * min((n for a, n in amounts.items() if a.kind == "tpm"), default=0))
        worker.slices.settle(taken, amounts, tokens)
        now = self.clock.monotonic()
        for account, event in zip(amounts, events, strict=True):
            if account.kind == "concurrency":
                self.admitted[account].remove(event)
            elif account.kind == "tpm":
                event.n = tokens
                self.settled[account].append(Event(now, tokens))
            else:
                self.settled[account].append(event)

    @rule(which=st.integers(0, 9), which_one=st.integers(0, 99))
    def release(self, which: int, which_one: int) -> None:
        worker = self.pick(which)
        if worker.held:
            taken, amounts, events = worker.held.pop(which_one % len(worker.held))
            worker.slices.release(taken)
            for account, event in zip(amounts, events, strict=True):
                self.admitted[account].remove(event)

    @rule(which=st.integers(0, 9))
    def hang_up(self, which: int) -> None:
        """A caller leaves while its request waits for the store."""
        for task in self.pick(which).tasks[-1:]:
            task.cancel()
        self.turn()

    @rule(which=st.integers(0, 9))
    def tick(self, which: int) -> None:
        worker = self.pick(which)

        async def ticking() -> None:
            try:
                await worker.slices.tick()
            except Overloaded:
                return

        worker.tasks.append(self.loop.create_task(ticking()))
        self.turn()

    @precondition(lambda self: len(self.workers) > 1)
    @rule(which=st.integers(0, 9))
    def kill(self, which: int) -> None:
        worker = self.pick(which)
        self.workers.remove(worker)
        if worker.wire.call is not None and worker.wire.call.answer is None:
            self.late.append(worker.wire.call)  # it may have been sent
        for task in worker.tasks:
            task.cancel()
        self.turn()
        for _, amounts, events in worker.held:  # its slots end with it
            for account, event in zip(amounts, events, strict=True):
                if account.kind == "concurrency":
                    self.admitted[account].remove(event)

    @rule(account=st.sampled_from(ACCOUNTS[:3]), n=st.integers(1, 12), first=st.integers(0, 9))
    def flood(self, account: Account, n: int, first: int) -> None:
        """Everybody takes what there is, over a wire that works."""
        for which in range(first, first + len(self.workers)):
            self.answer(which)
            self.spend(which, {account: n}, 60)
            for _ in range(60):
                if self.pick(which).wire.call is None:
                    break
                self.answer(which)

    # what the wire does

    @rule(which=st.integers(0, 9))
    def deliver(self, which: int) -> None:
        call = self.pick(which).wire.call
        if call is not None and call.answer is None:
            self.carry_out(call)

    def carry_out(self, call: Call) -> None:
        try:
            call.answer = self.store.answer(*call.what)
        except StoreLost as error:
            call.answer = error
            return
        name, now = call.what[0].worker, self.clock.monotonic()
        for worker in self.workers:
            if worker.slices._worker == name:
                self.stalled = self.stalled or now - worker.heard > SILENT
                worker.heard = now
                return
        self.ghost = True

    @rule(which=st.integers(0, 9))
    def answer(self, which: int) -> None:
        call = self.pick(which).wire.call
        if call is not None and not call.back.done():
            if call.answer is None:
                self.carry_out(call)
            if isinstance(call.answer, StoreLost):
                call.back.set_exception(call.answer)
            elif call.answer is not None:
                call.back.set_result(call.answer)
            self.turn()

    @rule(which=st.integers(0, 9), later=st.booleans())
    def lose(self, which: int, later: bool) -> None:
        """No reply; the call itself may have been carried out, or be carried out much later."""
        call = self.pick(which).wire.call
        if call is not None and not call.back.done():
            if later and call.answer is None:
                self.late.append(call)
            call.back.set_exception(StoreLost("lost"))
            self.turn()

    @precondition(lambda self: self.late)
    @rule()
    def arrive_late(self) -> None:
        self.carry_out(self.late.pop(0))

    @rule(seconds=st.one_of(st.floats(0, 1.1), st.sampled_from((TICK, 1.0, HEARTBEAT, 20.0, 58.0))))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(rounds=st.integers(1, 8))
    def all_is_well(self, rounds: int) -> None:
        """As it usually is: everybody ticks, every call is answered, and a while goes by."""
        for _ in range(rounds):
            for which in range(len(self.workers)):
                self.answer(which)
                self.tick(which)
                self.answer(which)
            self.clock.advance(TICK)

    @invariant()
    def no_span_of_60_seconds_has_more_than_the_limit(self) -> None:
        for account in ACCOUNTS:
            if account.kind == "concurrency":
                running = sum(event.n for event in self.admitted[account])
                assert running <= account.limit or self.stalled
                continue
            for events in (self.admitted[account], self.settled[account]):
                moments = sorted((event.at, event.n) for event in events)
                for place, (begin, _) in enumerate(moments):
                    inside = sum(n for at, n in moments[place:] if at <= begin + 60.0)
                    assert inside <= account.limit

    @invariant()
    def the_store_never_has_more_out_than_the_limit(self) -> None:
        now = self.clock.monotonic()
        for account in ACCOUNTS:
            tally = self.store._tallies.get(account.id)
            if tally is not None and not self.stalled and not self.ghost:
                tally.window.age(now)
                assert tally.window.settled + sum(tally.held.values()) <= account.limit


def test_a_fleet_keeps_its_limits_whatever_is_lost() -> None:
    run_state_machine_as_test(
        Fleet,
        settings=settings(
            max_examples=100,
            stateful_step_count=50,
            deadline=None,
            phases=set(Phase) - {Phase.explain},  # its tracing can crash CPython 3.11
        ),
    )
