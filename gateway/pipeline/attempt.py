"""Walk the plan up to the commit point and past it.

Until the first content is in hand (without streaming: the whole body) the road may change its
mind; after it a failure is told. An upstream's failure is a value here, the caller's hang-up an
exception that passes through and counts against nobody. Source: gateway.md 3 and 4.
"""

import random
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from types import TracebackType

from gateway.clock import Clock
from gateway.core.attempt import Attempt, Exchange, Opening, Refusal, Reservation, StreamEvent
from gateway.core.plan import Facts, Plan, Skip, Try
from gateway.core.ports import Health, Ledger, Limiter, Provider, Transport, UpstreamReply
from gateway.core.snapshot import Snapshot
from gateway.core.target import (
    WAY_ON,
    Cause,
    Chain,
    Failed,
    Failure,
    Fault,
    Next,
    Retry,
    Same,
    Target,
)
from gateway.core.usage import in_force
from gateway.errors import GatewayError
from gateway.pipeline.answer import Answer, Streaming, Whole
from gateway.pipeline.backoff import after_hint, jitter
from gateway.pipeline.estimate import Outputs, target_demands
from gateway.pipeline.plan import MIN_ATTEMPT, NOTHING_SPENT, Planner
from gateway.pipeline.settle import Settle
from gateway.pipeline.tell import exhausted, trace
from gateway.wire import json

MAX_ANSWER = 32 * 1024 * 1024  # bytes of a whole answer
MAX_ERROR = 64 * 1024  # bytes of an error body that are read
QUICK_FAILURE = 2.0  # seconds: a failure that took longer is no noise
PANIC_EVERY = 0.25  # seconds between probes while every target is open


class Panic:
    """At most one request each PANIC_EVERY seconds goes to a target whose breaker is open."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def take(self, now: float) -> bool:
        if now - self._last < PANIC_EVERY:
            return False
        self._last = now
        return True


@dataclass(frozen=True, slots=True)
class Attempts:
    """The step `attempt`: made once per configuration; `adapters` by target id."""

    adapters: Mapping[str, Provider]
    transport: Transport
    limiter: Limiter
    ledger: Ledger
    health: Health
    outputs: Outputs
    plan: Planner
    settle: Settle
    panic: Panic
    clock: Clock
    snapshot: Snapshot

    def __call__(self, exchange: Exchange) -> AbstractAsyncContextManager[Answer]:
        facts, reservation = exchange.facts, exchange.reservation
        if facts is None or reservation is None:
            raise AssertionError("attempt comes after admit")
        return _Walk(self, exchange, facts, reservation)


@dataclass(slots=True)
class _Again:
    """A target that failed in a way that may pass: it may be asked once more at `at`."""

    candidate: Try
    at: float


class _Walk(AbstractAsyncContextManager[Answer]):
    """One request's way along its targets; entered, it has an answer that has begun."""

    def __init__(
        self, steps: Attempts, exchange: Exchange, facts: Facts, reservation: Reservation
    ) -> None:
        self._steps = steps
        self._exchange = exchange
        self._facts = facts
        self._reservation = reservation
        self._spent = NOTHING_SPENT
        self._calls: dict[str, int] = {}  # by target id
        self._again: list[_Again] = []
        self._refused: list[Skip] = []  # by their accounts or a probe under way, at the last moment
        self._sending: AbstractAsyncContextManager[UpstreamReply] | None = None
        self._under_way: Attempt | None = None

    async def __aenter__(self) -> Answer:
        plan = self._exchange.plan
        chosen = await self._first(plan) if plan else None
        while chosen is not None:
            candidate, kind = chosen
            attempt = await self._begin(candidate, kind)
            if isinstance(attempt, Skip):
                self._give_up(attempt)
                chosen = await self._next(None)
                continue
            try:
                answer = await self._open(candidate, attempt)
                self._under_way = attempt
                return answer
            except Failed as failed:
                attempt.failure = failed.failure
                self._exchange.trail.append((attempt.target.name, attempt.outcome))
            except BaseException:
                await self._close(attempt)
                raise
            await self._close(attempt)
            chosen = await self._next(candidate)
        raise self._exhausted()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._under_way is not None:
            await self._close(self._under_way)

    async def _close(self, attempt: Attempt) -> None:
        """The upstream's socket first, then usage, cost, slots and the ledger line."""
        if attempt.ended is None:
            attempt.ended = self._steps.clock.monotonic()
        sending, self._sending = self._sending, None
        try:
            if sending is not None:
                await sending.__aexit__(None, None, None)
        finally:
            self._steps.settle.attempt(self._exchange, attempt)

    # -- which target ---------------------------------------------------------------------------

    async def _first(self, plan: Plan) -> tuple[Try, str] | None:
        self._passed_over(plan)
        if plan.tries:
            return self._chosen(plan)
        return await self._wait_for(plan)

    async def _next(self, failed: Try | None) -> tuple[Try, str] | None:
        """What follows a failed attempt, or (None) one that could not be made."""
        if self._spent.calls >= self._retry().attempts:
            return None
        if failed is not None:
            if (again := await self._once_more(failed)) is not None:
                return again, "retry"
            if not self._may_go_on(failed):
                return None
        plan = self._steps.plan(self._facts, self._spent)
        self._passed_over(plan)
        if plan.tries:
            return self._chosen(plan)
        return await self._wait_for(plan)

    def _chosen(self, plan: Plan) -> tuple[Try, str]:
        first = plan.tries[0]
        return first, "probe" if first.probe else "answer"

    def _passed_over(self, plan: Plan) -> None:
        """Remember each skipped target once, in the order of the chain."""
        self._exchange.plan = plan
        first = plan.tries[0].target.id if plan.tries else None
        known = {(skip.target.id, skip.cause) for skip in self._exchange.skips}
        for skip in plan.skipped:
            if (skip.target.id, skip.cause) in known or skip.target.id in self._calls:
                continue
            self._exchange.skips.append(skip)
            if first is None or _stands_before(plan.chain, skip.target, first):
                self._exchange.trail.append((skip.target.name, skip.cause.value))

    async def _once_more(self, failed: Try) -> Try | None:
        """Noise: the same target, at once, once; or within the caller's patience for a hint."""
        attempt = self._exchange.attempts[-1]
        failure = attempt.failure
        if failure is None:
            return None
        retry = self._retry()
        way = WAY_ON[failure.cause]
        if self._calls[failed.target.id] > retry.same_target:
            return None
        quick = (attempt.ended or 0.0) - attempt.started <= QUICK_FAILURE
        if way.same is Same.NOISE and quick and self._closed(failed.target):
            pause = random.uniform(0, retry.backoff)  # noqa: S311 - jitter
        elif way.same is Same.HINT and failure.retry_after and failure.throttles:
            if failure.retry_after > retry.patience:
                return None
            pause = after_hint(failure.retry_after)
        else:
            return None
        if not self._fits(pause) or not self._steps.health.withdraw(failed.target):
            return None
        await self._steps.clock.sleep(pause)
        return self._fresh(failed)

    def _may_go_on(self, failed: Try) -> bool:
        """Write down what is used up; False when the cause ends the walk."""
        failure = self._exchange.attempts[-1].failure
        if failure is None:
            return False
        way = WAY_ON[failure.cause]
        said = (self._spent.chain or self._facts.chain).on.get(failure.cause)
        self._use_up(failed, way.fault, failure)
        if isinstance(said, Chain):
            if self._spent.chain is said:
                return False
            self._spent = replace(self._spent, chain=said)
            return True
        if said is not None:
            return said == "next"
        if way.next is Next.LARGER:
            context = failed.target.context
            self._spent = replace(self._spent, larger_than=context)
            return context is not None
        return way.next is Next.YES

    def _use_up(self, failed: Try, fault: Fault, failure: Failure) -> None:
        """This target is done; unless its key was at fault, so are its other keys."""
        target = failed.target
        gone = {target.id}
        if fault not in {Fault.KEY, Fault.THROTTLE}:
            chain = self._spent.chain or self._facts.chain
            gone |= {other.id for other in chain.targets if other.name == target.name}
        self._spent = replace(self._spent, tried=self._spent.tried | gone)
        way = WAY_ON[failure.cause]
        retry = self._retry()
        if way.same is Same.NEVER or self._calls[target.id] > retry.same_target:
            return
        if failure.cause is Cause.RATE_LIMITED and not failure.throttles:
            return
        now = self._steps.clock.monotonic()
        hint = failure.retry_after
        pause = jitter(retry, self._calls[target.id] - 1) if hint is None else after_hint(hint)
        self._again.append(_Again(failed, now + pause))

    async def _wait_for(self, plan: Plan) -> tuple[Try, str] | None:
        """Nobody can be asked now: wait for the soonest if that is worth it."""
        while not plan.tries:
            now = self._steps.clock.monotonic()
            opening = min((s.until for s in plan.skipped if s.until and _opens(s)), default=None)
            soonest = min(self._again, key=lambda again: again.at, default=None)
            if soonest is not None and (opening is None or soonest.at <= opening):
                return await self._repeat(soonest, now)
            if (panic := self._panic(plan, now)) is not None:
                return panic, "probe"
            if opening is None or not self._fits(opening - now):
                return None
            await self._steps.clock.sleep(max(0.001, opening - now))
            plan = self._steps.plan(self._facts, self._spent)
            self._exchange.plan = plan
        return self._chosen(plan)

    async def _repeat(self, soonest: _Again, now: float) -> tuple[Try, str] | None:
        """The last target that is left, once more."""
        self._again.remove(soonest)
        pause = soonest.at - now
        if not self._fits(pause) or not self._steps.health.withdraw(soonest.candidate.target):
            return None
        await self._steps.clock.sleep(max(0.0, pause))
        again = self._fresh(soonest.candidate)
        return None if again is None else (again, "retry")

    def _panic(self, plan: Plan, now: float) -> Try | None:
        """Every target open: the soonest may be asked all the same, a few times a second."""
        if any(skip.cause is not Cause.BREAKER_OPEN for skip in plan.skipped):
            return None
        if self._calls or not self._steps.panic.take(now):
            return None
        soonest = min(plan.skipped, key=lambda skip: skip.until or 0.0)
        forgiven = self._steps.plan(self._facts, self._spent, forgive=soonest.target.id)
        return forgiven.tries[0] if forgiven.tries else None

    def _fits(self, pause: float) -> bool:
        left = self._facts.deadline.left(self._steps.clock)
        return pause <= min(self._retry().max_wait, left - MIN_ATTEMPT)

    def _fresh(self, before: Try) -> Try | None:
        """The same try with the time that is left now."""
        left = self._facts.deadline.left(self._steps.clock)
        clock = (
            before.timeouts.first_token if self._facts.request.stream else before.timeouts.answer
        )
        seconds = min(clock, left)
        return replace(before, seconds=seconds, probe=False) if seconds >= MIN_ATTEMPT else None

    def _closed(self, target: Target) -> bool:
        standing = self._steps.health.standing(target.id)
        return not standing.open_until and not standing.half_open and not standing.aside_until

    def _retry(self) -> Retry:
        return self._facts.chain.retry

    def _exhausted(self) -> GatewayError:
        plan = self._exchange.plan
        skipped = [*self._refused, *(plan.skipped if plan else ())]
        return exhausted(self._exchange, skipped, self._steps.clock.monotonic())

    # -- one attempt ----------------------------------------------------------------------------

    async def _begin(self, candidate: Try, kind: str) -> Attempt | Skip:
        """Hold the target's accounts; a Skip when it cannot be asked after all."""
        target = candidate.target
        if candidate.probe and not self._steps.health.enter(target):
            return Skip(target, Cause.BREAKER_OPEN, detail="being probed")
        refusal = await self._hold(target)
        if refusal is not None:
            if candidate.probe:
                self._steps.health.leave(target)
            until = self._steps.clock.monotonic() + refusal.wait
            return Skip(target, Cause.NO_HEADROOM, until)
        calls = self._spent.calls + 1
        attempt = Attempt(f"{self._facts.id}.{calls}", target, self._steps.clock.monotonic())
        attempt.kind = kind
        attempt.probe = candidate.probe
        attempt.bound = candidate.bound
        attempt.accounts = target.accounts
        self._exchange.attempts.append(attempt)
        self._spent = replace(self._spent, calls=calls)
        if target.id not in self._calls and not self._facts.hints.client_retry:
            self._steps.health.deposit(target)
        self._calls[target.id] = self._calls.get(target.id, 0) + 1
        return attempt

    def _give_up(self, skip: Skip) -> None:
        self._refused.append(skip)
        self._exchange.skips.append(skip)
        self._exchange.trail.append((skip.target.name, skip.cause.value))
        self._spent = replace(self._spent, tried=self._spent.tried | {skip.target.id})

    async def _hold(self, target: Target) -> Refusal | None:
        """The target's accounts; past the first step they may take a moment to be free."""
        if not target.accounts:
            return None
        held = self._reservation.held
        demands = [
            demand
            for demand in target_demands(self._facts, target, self._steps.outputs)
            if demand.account not in held
        ]
        if not demands:
            return None
        refusal = await self._steps.limiter.extend(self._reservation, demands)
        if refusal is None or refusal.wait > MIN_ATTEMPT or not self._fits(refusal.wait):
            return refusal
        await self._steps.clock.sleep(refusal.wait)
        return await self._steps.limiter.extend(self._reservation, demands)

    async def _open(self, candidate: Try, attempt: Attempt) -> Answer:
        """Dial, send, and hold what comes until it is content, or a whole answer."""
        steps, request = self._steps, self._facts.request
        adapter = steps.adapters[attempt.target.id]
        upstream = adapter.request(request, attempt.id)
        steps.ledger.open(self._opening(candidate, attempt))
        attempt.opened = True
        self._sending = steps.transport.send(
            upstream, candidate.timeouts, candidate.seconds, self._facts.deadline
        )
        reply = await self._sending.__aenter__()
        attempt.status = reply.status
        self._exchange.dropped = upstream.dropped
        if not 200 <= reply.status < 300:
            body = await reply.read(MAX_ERROR)
            raise Failed(adapter.failure(reply.status, reply.headers, body))
        if not request.stream:
            event = adapter.completion(request, await reply.read(MAX_ANSWER))
            return await self._whole(attempt, event)
        decoder = adapter.decoder(request)
        streaming = Streaming(self._exchange, self._facts, attempt, reply, decoder, steps)
        await streaming.until_content(self._filtered)
        return streaming

    async def _whole(self, attempt: Attempt, event: StreamEvent) -> Answer:
        attempt.usage = event.usage
        attempt.delivered = event.size
        failure = event.failure or self._filtered(event)
        if failure is not None:
            raise Failed(failure)
        attempt.first_content = self._steps.clock.monotonic()
        attempt.finished = True
        self._exchange.finish_reason = event.finish_reason
        await self._close(attempt)
        if self._facts.hints.trace:
            told = trace(self._exchange, self._steps.snapshot, self._steps.clock)
            members = json.split(event.wire) | {"gateway": json.raw(told)}
            event = event._replace(wire=json.join(members))
        return Whole(event)

    def _filtered(self, event: StreamEvent) -> Failure | None:
        """An answer that a filter stopped before any content, where `on` sends it elsewhere."""
        if event.finish_reason != "content_filter" or event.size:
            return None
        chain = self._spent.chain or self._facts.chain
        if chain.on.get(Cause.CONTENT_POLICY, "stop") == "stop":
            return None
        return Failure(Cause.CONTENT_POLICY, "its filter stopped the answer", status=200)

    def _opening(self, candidate: Try, attempt: Attempt) -> Opening:
        facts, target = self._facts, attempt.target
        now = self._steps.clock.now()
        price = in_force(target.prices, now)
        return Opening(
            attempt_id=attempt.id,
            at=now,
            key_id=facts.principal.key_id,
            team=facts.principal.team,
            user=facts.user,
            session=facts.session,
            tags=",".join(f"{name}={value}" for name, value in facts.hints.tags),
            chain=facts.chain.name,
            target=target.name,
            provider=target.provider,
            model=target.model,
            kind=attempt.kind,
            price_id=price.id if price else None,
            prompt=facts.request.prompt,
            input_price=price.input if price else 0,
            output_price=price.output if price else 0,
            request_price=price.request if price else 0,
            bound=candidate.bound.nano_usd,
        )


def _stands_before(chain: Chain, target: Target, first: str) -> bool:
    """Whether a skipped target would have been asked before the one that is."""
    for candidate in chain.targets:
        if candidate.id == first:
            return False
        if candidate.id == target.id:
            return True
    return False


def _opens(skip: Skip) -> bool:
    """Whether waiting may help: a key that was refused needs an operator."""
    return skip.cause in {Cause.BREAKER_OPEN, Cause.THROTTLED, Cause.NO_HEADROOM}
