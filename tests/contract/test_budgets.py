"""Money over several workers on one store: whatever is killed, a hard budget is never passed."""

from collections.abc import Iterator

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

from gateway.core.attempt import Demand, Line, Opening, Reservation
from gateway.core.target import Account
from gateway.core.usage import Usage
from gateway.state.embedded.accounts import SqliteAccounts
from gateway.state.embedded.ledger import _bury, _forget, apply
from gateway.state.journal import Final, Opened, Record, Settled, charges, estimate
from gateway.state.slices import Slices
from gateway.wire import json
from tests.support.clock import ManualClock
from tests.support.limits import Inline, at_once
from tests.unit.state.make import line, opening

LIMIT = 1_000
BUDGETS = (
    Account("key:k:budget:day:2026-11-21", "key", "k", "budget", LIMIT),
    Account("team:t:budget:month:2026-11", "team", "t", "budget", 3 * LIMIT),
)


class Request:
    """One that is under way: what is held, and what its attempts came to."""

    def __init__(self, id: str, taken: Reservation, hold: int) -> None:
        self.id = id
        self.taken = taken
        self.attempts = 1
        self.unused = hold  # of the attempt that runs
        self.cost = 0


class Worker:
    def __init__(self, name: str, store: Inline, clock: ManualClock) -> None:
        self.name = name
        self.slices = Slices(SqliteAccounts(store, clock), name, clock)
        self.journal: list[Record] = []
        self.unshipped: list[Final] = []
        self.running: list[Request] = []
        self.openings: dict[str, Opening] = {}

    def open(self, request: Request, hold: int) -> None:
        found = opening(
            f"{request.id}.{request.attempts}", prompt=0, output_price=1_000_000, request_price=0,
            bound=hold, budgets=tuple(account.id for account in BUDGETS),
        )  # fmt: skip
        self.openings[found.attempt_id] = found
        self.journal.append(Opened(len(self.journal) + 1, found))

    def close(self, request: Request, cost: int) -> None:
        id = f"{request.id}.{request.attempts}"
        told = line(id, nano_usd=cost, usage=Usage())
        self.journal.append(_settled(len(self.journal) + 1, told))
        self.unshipped.append(Final(len(self.journal), self.openings.pop(id), told))
        request.cost += cost


def _settled(seq: int, told: Line) -> Settled:
    return Settled(seq, told.attempt_id, told.at, json.fields(told.usage), *told[3:])


class Fleet(RuleBasedStateMachine):
    """Workers that join, hold, try again, settle, ship, tick and die."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.store = Inline()
        self.workers: list[Worker] = []
        self.dead: list[Worker] = []
        self.born = self.asked = self.admitted = 0

    @initialize()
    def begin(self) -> None:
        self.join()
        self.join()

    @precondition(lambda self: len(self.workers) < 4)
    @rule()
    def join(self) -> None:
        self.born += 1
        self.workers.append(Worker(f"w{self.born}", self.store, self.clock))

    def pick(self, which: int) -> Worker:
        return self.workers[which % len(self.workers)]

    @rule(which=st.integers(0, 9), hold=st.integers(1, 2 * LIMIT), times=st.integers(1, 20))
    def ask(self, which: int, hold: int, times: int) -> None:
        worker = self.pick(which)
        for _ in range(times):
            self.asked += 1
            id = f"req_{self.asked}"
            demands = [Demand(account, hold) for account in BUDGETS]
            taken = at_once(worker.slices.reserve(id, demands, ()))
            if not isinstance(taken, Reservation):
                return
            self.admitted += 1
            request = Request(id, taken, hold)
            worker.running.append(request)
            worker.open(request, hold)

    @rule(which=st.integers(0, 9), one=st.integers(0, 99), part=st.floats(0, 1))
    def fail_and_try_another(self, which: int, one: int, part: float) -> None:
        worker = self.pick(which)
        if not worker.running:
            return
        request = worker.running[one % len(worker.running)]
        again = max(1, int(request.unused * 1.5))
        worker.close(request, int(part * request.unused))
        request.unused = 0
        demands = [Demand(account, again) for account in BUDGETS]
        if at_once(worker.slices.extend(request.taken, demands)) is None:
            request.attempts += 1
            request.unused = again
            worker.open(request, again)
        else:
            self.finish(worker, request)

    @rule(which=st.integers(0, 9), one=st.integers(0, 99), part=st.floats(0, 1))
    def settle(self, which: int, one: int, part: float) -> None:
        worker = self.pick(which)
        if worker.running:
            request = worker.running[one % len(worker.running)]
            worker.close(request, int(part * request.unused))
            self.finish(worker, request)

    def finish(self, worker: Worker, request: Request) -> None:
        worker.running.remove(request)
        worker.slices.settle(request.taken, BUDGETS, 0, request.cost)
        worker.slices.release(request.taken)

    @rule(which=st.integers(0, 9), told=st.booleans())
    def ship(self, which: int, told: bool) -> None:
        """`told`: else the worker is killed before it hears that its lines are booked."""
        worker = self.pick(which)
        finals, worker.unshipped = worker.unshipped, []
        if finals:
            apply(self.store.db, worker.name, finals)
        if told or len(self.workers) == 1:
            worker.slices.shipped(charges(finals).items())
        else:
            self.kill(which)

    @rule(which=st.integers(0, 9))
    def tick(self, which: int) -> None:
        at_once(self.pick(which).slices.tick())

    @rule(seconds=st.sampled_from((0.1, 0.9, 1.1, 5.0, 20.0, 130.0)))
    def advance(self, seconds: float) -> None:
        for worker in self.workers:
            at_once(worker.slices.tick())
        self.clock.advance(seconds)

    @precondition(lambda self: len(self.workers) > 1)
    @rule(which=st.integers(0, 9))
    def kill(self, which: int) -> None:
        if len(self.workers) > 1:
            worker = self.pick(which)
            self.workers.remove(worker)
            self.dead.append(worker)

    @precondition(lambda self: self.dead)
    @rule()
    def sweep(self) -> None:
        worker = self.dead.pop(0)
        _bury(self.store.db, worker.name, worker.journal)
        _forget(self.store.db, worker.name)

    def open_costs(self) -> Iterator[int]:
        """What is not in the store yet: settled lines, and the most that open attempts cost."""
        for worker in (*self.workers, *self.dead):
            yield from (final.line.nano_usd or 0 for final in worker.unshipped)
            yield from (found.bound for found in worker.openings.values())
            for found in worker.openings.values():
                assert (estimate(found, 10**9).nano_usd or 0) <= found.bound

    @invariant()
    def spent_and_held_are_within_the_budget(self) -> None:
        open_now = sum(self.open_costs())
        for account in BUDGETS:
            assert self.spent(account) + open_now <= account.limit

    @invariant()
    def spent_is_the_sum_of_the_lines(self) -> None:
        (lines,) = self.store.db.execute("SELECT coalesce(sum(nano_usd), 0) FROM ledger").fetchone()
        assert [self.spent(account) for account in BUDGETS] == [lines] * len(BUDGETS)

    def spent(self, account: Account) -> int:
        query = "SELECT nano_usd FROM budget WHERE account = ?"
        found = self.store.db.execute(query, (account.id,)).fetchone()
        return 0 if found is None else int(found[0])

    def teardown(self) -> None:
        """Once all is settled and swept, what is left can be spent to the last nano-dollar."""
        while len(self.workers) > 1:
            self.kill(0)
        while self.dead:
            self.sweep()
        if not self.workers:
            return
        last = self.workers[0]
        for request in list(last.running):
            last.close(request, 0)
            self.finish(last, request)
        self.ship(0, told=True)
        self.clock.advance(20.0)
        at_once(last.slices.tick())
        self.clock.advance(20.0)
        if rest := LIMIT - self.spent(BUDGETS[0]):
            demands = [Demand(account, rest) for account in BUDGETS]
            assert isinstance(at_once(last.slices.reserve("last", demands, ())), Reservation)


def test_whatever_is_killed_no_hard_budget_is_passed_and_nothing_of_it_is_lost() -> None:
    run_state_machine_as_test(
        Fleet,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            phases=set(Phase) - {Phase.explain},
        ),
    )


def test_an_attempt_that_is_told_twice_is_charged_once() -> None:
    store = Inline()
    first = Final(1, opening(budgets=("key:k:budget:total",)), line(nano_usd=5))
    other = Final(2, opening("b.1", budgets=("key:k:budget:total",)), line("b.1"))
    apply(store.db, "w1", [first])
    apply(store.db, "w2", [first, other])
    ((found,),) = store.db.execute("SELECT nano_usd FROM budget").fetchall()
    assert found == 5 + (line().nano_usd or 0)
