"""Accounts of the caller and of the first target, all or none; else wait in line, or 429."""

from dataclasses import dataclass

from gateway.clock import Clock
from gateway.core.attempt import Demand, Exchange, Refusal, Reservation
from gateway.core.plan import Facts, Plan, Skip
from gateway.core.ports import Limiter
from gateway.core.target import Cause, Target
from gateway.errors import BudgetSpent, GatewayError, RateLimited
from gateway.pipeline.budgets import demands as budget_demands
from gateway.pipeline.budgets import spent
from gateway.pipeline.estimate import Outputs, caller_demands, target_demands
from gateway.pipeline.guard import ALL, Guard
from gateway.pipeline.plan import DEFAULT_OUTPUT, Planner
from gateway.pipeline.queue import CALLER, Queue, Tries, rank_of

PASSING = frozenset({Cause.NO_HEADROOM, Cause.THROTTLED, Cause.BREAKER_OPEN})  # with time alone
WHAT = {"rpm": "requests per minute", "tpm": "tokens per minute", "concurrency": "requests at once"}


@dataclass(frozen=True, slots=True)
class Admit:
    limiter: Limiter
    outputs: Outputs
    queue: Queue
    plan: Planner
    clock: Clock
    guard: Guard

    def at_once(self, exchange: Exchange) -> Reservation | None:
        """What `__call__` does where nobody stands in line and nobody has to be asked.

        Raises:
            Overloaded: this process takes no requests of this priority for now.
        """
        facts, plan = exchange.facts, exchange.plan
        if self.guard.level < ALL:
            self._sheds(facts)
        if facts is None or plan is None or self.queue.waiting or not plan.tries:
            return None
        demands = self._demands(facts, plan)
        taken = self.limiter.try_reserve(facts.id, demands, facts.told)
        if taken is not None:
            exchange.headroom = taken.headroom
            _admitted(exchange, plan, plan.tries[0].target)
        return taken

    async def __call__(self, exchange: Exchange) -> Reservation:
        """Hold the accounts of the caller, and of the first target that has room.

        Raises:
            Overloaded: as `at_once`.
            RateLimited: an account of the caller is full, or every usable target is.
            BudgetSpent: a budget does not allow it.
        """
        facts, plan = exchange.facts, exchange.plan
        if facts is None or plan is None:
            raise AssertionError("admit comes after plan")
        if self.guard.level < ALL:
            self._sheds(facts)
        try:
            taken = self._ahead(facts, plan) or await self._reserve(exchange, facts, plan)
            if isinstance(taken, Refusal):
                if facts.principal.wait <= 0 or not _worth_waiting(taken):
                    raise self._refused(exchange, facts, taken)
                taken = await self._wait(exchange, facts, taken)
        except (RateLimited, BudgetSpent):
            exchange.headroom = self.limiter.headroom(facts.told)
            raise
        exchange.headroom = taken.headroom
        return taken

    def room_in(self, facts: Facts) -> float:
        """Seconds until there is room for a request; 0: now, or only asking tells. Looks only.

        Of money there is nothing to wait for: to ask tells.
        """
        plan = self.plan(facts)
        if (ahead := self._ahead(facts, plan)) is not None:
            return ahead.wait
        if not plan.tries:
            openings = [skip.until for skip in plan.skipped if skip.cause in PASSING and skip.until]
            if openings:
                return min(openings) - self.clock.monotonic()
        demands = self._demands(facts, plan)
        return self.limiter.wait([one for one in demands if one.account.kind != "budget"])

    def over(self, exchange: Exchange) -> None:
        """A request has ended: its time is what others have to reckon with in line."""
        if exchange.reservation is not None and exchange.finished and exchange.status == 200:
            self.queue.served(exchange.chain_name, exchange.ended - exchange.planned)

    def _sheds(self, facts: Facts | None) -> None:
        if facts is not None and rank_of(facts) >= self.guard.level:
            raise self.guard.refused()

    def _ahead(self, facts: Facts, plan: Plan) -> Refusal | None:
        """Somebody already stands in line for what this request needs: no overtaking."""
        if not self.queue.waiting:
            return None
        return self.queue.ahead_of(facts.chain.name, self._demands(facts, plan))

    async def _reserve(self, exchange: Exchange, facts: Facts, plan: Plan) -> Reservation | Refusal:
        full = _every_target_full(plan)
        if full is not None:
            return self._refusal(facts, full)
        demands = self._demands(facts, plan)
        target = plan.tries[0].target if plan.tries else None
        taken = await self.limiter.reserve(facts.id, demands, facts.told)
        if isinstance(taken, Refusal) and taken.account.scope not in CALLER:
            if not plan.whole:
                return await self._reserve(exchange, facts, self.plan(facts))
            # The walk meets the full target itself and goes on to the next.
            callers = [demand for demand in demands if demand.account.scope in CALLER]
            taken = await self.limiter.reserve(facts.id, callers, facts.told)
            target = None
        if isinstance(taken, Refusal):
            exchange.plan = plan  # of which the refusal tells
        else:
            _admitted(exchange, plan, target)
        return taken

    async def _wait(self, exchange: Exchange, facts: Facts, refusal: Refusal) -> Reservation:
        async def again() -> Reservation | Refusal:
            taken = await self._reserve(exchange, facts, self.plan(facts))
            if isinstance(taken, Refusal) and not _worth_waiting(taken):
                raise self._refused(exchange, facts, taken)
            return taken

        def take() -> Reservation | None:
            plan = self.plan(facts)
            if not plan.tries:
                return None
            taken = self.limiter.try_reserve(facts.id, self._demands(facts, plan), facts.told)
            if taken is not None:  # it is the exchange's from now on, whatever becomes of the wait
                exchange.reservation = taken
                _admitted(exchange, plan, plan.tries[0].target)
            return taken

        slots = [Demand(account, 1) for account in facts.accounts if account.kind == "concurrency"]

        def room_in() -> float:
            plan = self.plan(facts)
            full = _every_target_full(plan)
            if full is not None:
                return (full.until or 0.0) - self.clock.monotonic()
            return self.limiter.wait(slots)  # of other limits `again` tells at once

        began = self.clock.monotonic()
        try:
            return await self.queue.wait(facts, refusal, Tries(room_in, take, again))
        finally:
            exchange.waited = self.clock.monotonic() - began

    def _demands(self, facts: Facts, plan: Plan) -> list[Demand]:
        """The caller's demands first, then those of the first target."""
        if not plan.tries:
            stated = facts.request.max_output or facts.principal.default_max_tokens
            return caller_demands(facts, stated or DEFAULT_OUTPUT)
        first = plan.tries[0]
        demands = caller_demands(facts, first.output)
        if facts.purse is not None:
            demands += budget_demands(facts.purse, first.hold.nano_usd)
        demands += target_demands(facts, first.target, self.outputs)
        return demands

    def _refused(self, exchange: Exchange, facts: Facts, refusal: Refusal) -> GatewayError:
        if refusal.account.kind != "budget" or facts.purse is None:
            return refused(refusal)
        tries = exchange.plan.tries if exchange.plan is not None else ()
        rooms = self.limiter.headroom(facts.purse.accounts)
        return spent(facts, tries[0] if tries else None, refusal.account, rooms)

    def _refusal(self, facts: Facts, full: Skip) -> Refusal:
        """Which account of a full target it is."""
        demands = target_demands(facts, full.target, self.outputs)
        waits = [(self.limiter.wait([demand]), demand.account) for demand in demands]
        wait, account = max(waits, key=lambda row: row[0])
        return Refusal(account, wait)


def _admitted(exchange: Exchange, plan: Plan, held_for: Target | None) -> None:
    """What is held from the start: a target's accounts, and in budgets the first one's bound."""
    exchange.plan, exchange.held_for = plan, held_for
    if exchange.facts is not None and exchange.facts.purse is not None:
        exchange.hold = exchange.prepaid = plan.tries[0].hold.nano_usd if plan.tries else 0


def _worth_waiting(refusal: Refusal) -> bool:
    """Slots come back by themselves; a minute's window is the caller's own to spread."""
    return refusal.account.kind == "concurrency" or refusal.account.scope not in CALLER


def _every_target_full(plan: Plan) -> Skip | None:
    """The soonest target when headroom is all that keeps those from being asked that could be."""
    full = [skip for skip in plan.skipped if skip.cause is Cause.NO_HEADROOM]
    if plan.tries or not full:
        return None
    return min(full, key=lambda skip: skip.until or 0.0)


def refused(refusal: Refusal) -> RateLimited:
    """The 429 of a full account: what is full, how much it holds, when to come back."""
    account = refusal.account
    whose = {
        "key": "this API key",
        "team": f"the team '{account.name}'",
        "user": f"the user '{account.name}'" if account.name else "requests that name no user",
        "session": f"the session '{account.name}'",
    }.get(account.scope, f"every target of this model ('{account.name}' is the first to be free)")
    return RateLimited(
        f"The limit of {account.limit:,} {WHAT[account.kind]} of {whose} is reached."
        f" Come back in {max(refusal.wait, 0.001):.3g} s.",
        code=f"{account.kind}_exceeded",
        retry_after=refusal.wait,
        scope=account.scope,
    )
