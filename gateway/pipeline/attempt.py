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
from gateway.core.budget import Purse
from gateway.core.plan import Facts, Plan, Skip, Try
from gateway.core.ports import Health, Ledger, Limiter, Provider, Transport, UpstreamReply
from gateway.core.snapshot import Snapshot
from gateway.core.target import (
    WAY_ON,
    Cause,
    Failed,
    Failure,
    Retry,
    Same,
    Target,
)
from gateway.core.usage import in_force
from gateway.errors import GatewayError
from gateway.pipeline.answer import Answer, Ready, Streaming
from gateway.pipeline.backoff import after_hint, jitter
from gateway.pipeline.budgets import demands
from gateway.pipeline.estimate import Outputs, target_demands
from gateway.pipeline.onward import onward
from gateway.pipeline.plan import MIN_ATTEMPT, NEED_SHARE, NOTHING_SPENT, Planner, ordered
from gateway.pipeline.settle import Settle
from gateway.pipeline.tell import cut, exhausted, trace
from gateway.wire import json

MAX_ANSWER = 32 * 1024 * 1024  # bytes of a whole answer
MAX_ERROR = 64 * 1024  # bytes of an error body that are read
MIN_REST = 0.05  # seconds before a target that had no room is asked for room again
NEVER = float("inf")
QUICK_FAILURE = 2.0  # seconds: a failure that took longer is no noise
PANIC_EVERY = 0.25  # seconds between probes while every target is open
# Why a target is out of the question: the others decide whether "every target is open".
UNUSABLE = frozenset(
    {Cause.EXCLUDED, Cause.UNABLE, Cause.CONTEXT_LENGTH, Cause.TOO_DEAR, Cause.KEY_ASIDE}
)


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
        self._waits_until = steps.clock.monotonic() + facts.chain.retry.max_wait
        self._refused: list[Skip] = []  # by their accounts or a probe under way, at the last moment
        self._sending: AbstractAsyncContextManager[UpstreamReply] | None = None
        self._under_way: Attempt | None = None

    async def __aenter__(self) -> Answer:
        plan = self._exchange.plan
        chosen: tuple[Try, str] | None = None
        if plan is not None:
            if plan.tries and not plan.skipped:
                first = plan.tries[0]
                chosen = first, "probe" if first.probe else "answer"
            else:
                chosen = await self._chosen(plan)
        while chosen is not None:
            candidate, kind = chosen
            attempt = await self._begin(candidate, kind)
            if isinstance(attempt, Skip):
                self._give_up(attempt)
                chosen = await self._chosen(self._replan())
                continue
            try:
                answer = await self._open(candidate, attempt)
                self._under_way = attempt
                return answer
            except Failed as failed:
                failure = attempt.failure = failed.failure
                attempt.hurried = self._hurried(attempt, failure)
                self._exchange.trail.append((attempt.target.name, attempt.outcome))
            except BaseException:
                await self._close(attempt)
                raise
            await self._close(attempt)
            chosen = await self._next(candidate, failure)
        raise self._exhausted()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._under_way is not None:
            await self._close(self._under_way, error)

    async def _close(self, attempt: Attempt, error: BaseException | None = None) -> None:
        """The upstream's socket first, then usage, cost, slots and the ledger line.

        Raises:
            UpstreamTimedOut: `error` is the deadline's doing: it came while the caller's socket
                was waited for, so it is held against nobody.
        """
        if attempt.ended is None:
            attempt.ended = self._steps.clock.monotonic()
        sending, self._sending = self._sending, None
        try:
            if sending is not None:
                trace = error.__traceback__ if error is not None else None
                await sending.__aexit__(type(error) if error is not None else None, error, trace)
        except Failed as failed:
            failure = replace(failed.failure, cause=Cause.DEADLINE)
            if not attempt.finished:
                attempt.failure = failure
                self._exchange.trail.append((attempt.target.name, attempt.outcome))
            raise cut(self._exchange, failure) from None
        finally:
            self._steps.settle.attempt(self._exchange, attempt)

    # -- which target ---------------------------------------------------------------------------

    def _replan(self, forgive: str | None = None) -> Plan:
        """The plan now, without those that had no room at the last moment."""
        now = self._steps.clock.monotonic()
        refused = [skip for skip in self._refused if skip.until is None or skip.until > now]
        spent = self._spent
        if refused:
            ids = {skip.target.id for skip in refused}
            spent = json.changed(spent, tried=spent.tried | ids)
        plan = self._steps.plan(self._facts, spent, forgive)
        if refused:
            plan = json.changed(plan, skipped=(*plan.skipped, *refused))
        self._exchange.plan = plan
        return plan

    async def _next(self, failed: Try, failure: Failure) -> tuple[Try, str] | None:
        """What follows a failed attempt."""
        self._waits_until = self._steps.clock.monotonic() + self._retry().max_wait
        if self._spent.calls >= self._retry().attempts:
            return None
        if (again := await self._once_more(failed, failure)) is not None:
            return again, "retry"
        self._remember(failed, failure)
        spent = onward(self._facts, self._spent, failed.target, failure.cause)
        if spent is None:
            return None
        self._spent = spent
        return await self._chosen(self._replan())

    def _passed_over(self, plan: Plan) -> None:
        """Write down, each once, the targets that are skipped before the one that is asked."""
        if not plan.skipped:
            return
        first = plan.tries[0].target.id if plan.tries else None
        skipped = {skip.target.id: skip for skip in plan.skipped}
        known = {(skip.target.id, skip.cause) for skip in self._exchange.skips}
        for _, target in ordered(plan.chain, self._facts.id):
            if target.id == first:
                return
            skip = skipped.get(target.id)
            if skip is None or (target.id, skip.cause) in known or target.id in self._calls:
                continue
            self._exchange.skips.append(skip)
            self._exchange.trail.append((target.name, skip.cause.value))

    async def _once_more(self, failed: Try, failure: Failure) -> Try | None:
        """Noise: the same target, at once, once; or within the chain's patience for a hint."""
        if not self._may_repeat(failed.target, failure):
            return None
        pause = self._short_pause(failed.target, failure)
        if pause is None or not self._fits(pause) or not self._steps.health.withdraw(failed.target):
            return None
        await self._pause(pause)
        return self._fresh(failed)

    def _may_repeat(self, target: Target, failure: Failure) -> bool:
        if WAY_ON[failure.cause].same is Same.NEVER or not failure.throttles or failure.redialled:
            return False
        if 300 <= (failure.status or 0) < 400:  # a redirect is no blip
            return False
        return self._calls[target.id] <= self._retry().same_target

    def _short_pause(self, target: Target, failure: Failure) -> float | None:
        """How long before the same target is asked while others are left; None: they go first."""
        hint = failure.retry_after
        if hint is not None:
            return after_hint(hint) if hint <= self._retry().patience else None
        attempt = self._exchange.attempts[-1]
        quick = (attempt.ended or attempt.started) - attempt.started <= QUICK_FAILURE
        noise = WAY_ON[failure.cause].same is Same.NOISE and self._calls[target.id] == 1
        standing = self._steps.health.standing(target.id)
        if not noise or not quick or standing.open_until or standing.half_open:
            return None
        return random.uniform(0, self._retry().backoff)  # noqa: S311 - jitter

    def _remember(self, failed: Try, failure: Failure) -> None:
        """When it may be asked once more, should nobody else be left."""
        target, hint = failed.target, failure.retry_after
        if not self._may_repeat(target, failure):
            return
        done = self._calls[target.id] - 1
        pause = jitter(self._retry(), done) if hint is None else after_hint(hint)
        self._again.append(_Again(failed, self._steps.clock.monotonic() + pause))

    async def _chosen(self, plan: Plan) -> tuple[Try, str] | None:
        """The first of the plan; if nobody can be asked now, whom it is worth waiting for."""
        self._passed_over(plan)
        while not plan.tries:
            now = self._steps.clock.monotonic()
            opening = min((s.until for s in plan.skipped if s.until and _opens(s)), default=NEVER)
            again = min(self._again, key=self._rested, default=None)
            if again is not None and (at := self._rested(again)) <= opening:
                if (repeated := await self._repeat(again, at - now)) is not None:
                    return repeated, "retry"
            elif (panic := self._panic(plan, now)) is not None:
                return panic, "probe"
            elif opening > self._waits_until or not self._fits(opening - now):
                return None
            else:
                await self._pause(max(0.001, opening - now))
            plan = self._replan()
        first = plan.tries[0]
        return first, "probe" if first.probe else "answer"

    def _rested(self, again: _Again) -> float:
        """The moment from which it may be asked: its own pause and whatever else is against it."""
        standing = self._steps.health.standing(again.candidate.target.id)
        against = (standing.open_until, standing.throttled_until, standing.aside_until)
        return max(again.at, *against)

    async def _repeat(self, again: _Again, pause: float) -> Try | None:
        """The last target that is left, once more."""
        self._again.remove(again)
        if not self._fits(pause) or not self._steps.health.withdraw(again.candidate.target):
            return None
        await self._pause(max(0.0, pause))
        return self._fresh(again.candidate)

    def _panic(self, plan: Plan, now: float) -> Try | None:
        """Every target open: the soonest may be asked all the same, a few times a second."""
        usable = [skip for skip in plan.skipped if skip.cause not in UNUSABLE]
        resting = [skip for skip in usable if skip.cause is Cause.BREAKER_OPEN]
        if not usable or len(resting) < len(usable) or self._calls:
            return None
        soonest = min(resting, key=lambda skip: skip.until or 0.0)
        probing = self._steps.health.standing(soonest.target.id).probing
        if probing or self._facts.deadline.left(self._steps.clock) < MIN_ATTEMPT:
            return None
        if not self._steps.panic.take(now):
            return None
        forgiven = self._replan(forgive=soonest.target.id)
        return json.changed(forgiven.tries[0], probe=True) if forgiven.tries else None

    def _fits(self, pause: float) -> bool:
        left = self._facts.deadline.left(self._steps.clock)
        return pause <= min(self._retry().max_wait, left - MIN_ATTEMPT)

    def _fresh(self, before: Try) -> Try | None:
        """The same try with the time that is left now; None if its breaker has opened since."""
        standing = self._steps.health.standing(before.target.id)
        left = self._facts.deadline.left(self._steps.clock)
        if standing.open_until or standing.probing or left < MIN_ATTEMPT:
            return None
        stream = self._facts.request.stream
        clock = before.timeouts.first_token if stream else before.timeouts.answer
        return json.changed(before, seconds=min(clock, left), probe=standing.half_open)

    async def _pause(self, seconds: float) -> None:
        self._exchange.paused += seconds
        await self._steps.clock.sleep(seconds)

    def _retry(self) -> Retry:
        return self._facts.chain.retry

    def _exhausted(self) -> GatewayError:
        plan = self._exchange.plan
        return exhausted(
            self._exchange, plan.skipped if plan else (), self._steps.clock.monotonic()
        )

    def _hurried(self, attempt: Attempt, failure: Failure) -> bool:
        """Whether the caller's own clock ended it before a quarter of ours was over."""
        hints, late = self._facts.hints, failure.cause in {Cause.FIRST_TOKEN, Cause.TIMEOUT}
        if not late or (hints.deadline is None and hints.first_token is None):
            return False
        chain = self._spent.chain or self._facts.chain
        clocks = next(one.timeouts for one in chain.leaves() if one.name == attempt.target.name)
        clock = clocks.first_token if self._facts.request.stream else clocks.answer
        return self._steps.clock.monotonic() - attempt.started < NEED_SHARE * clock

    # -- one attempt ----------------------------------------------------------------------------

    async def _begin(self, candidate: Try, kind: str) -> Attempt | Skip:
        """Hold the target's accounts, and say in the journal what is about to be sent.

        A Skip when it cannot be asked after all.
        """
        steps, target = self._steps, candidate.target
        if (skip := await self._hold_all(candidate)) is not None:
            return skip
        now = steps.clock.monotonic()
        if candidate.probe and not steps.health.enter(target):
            steps.limiter.release(self._reservation, target.accounts)
            return Skip(target, Cause.BREAKER_OPEN, now + MIN_ATTEMPT, "being probed")
        calls = self._spent.calls + 1
        attempt = Attempt(f"{self._facts.id}.{calls}", target, now)
        attempt.kind = kind
        attempt.probe = candidate.probe
        attempt.bound = candidate.bound
        attempt.accounts = target.accounts
        if self._facts.purse is not None:
            attempt.hold = candidate.hold.nano_usd
        try:
            steps.ledger.open(self._opening(attempt))
        except GatewayError:  # the journal cannot be written: nothing is sent
            if candidate.probe:
                steps.health.leave(target)
            raise
        attempt.opened = True
        self._exchange.prepaid -= attempt.hold or 0
        self._exchange.attempts.append(attempt)
        steps.settle.under_way.asked(target.name)
        self._spent = json.changed(self._spent, calls=calls)
        if target.id not in self._calls and not self._facts.hints.client_retry:
            steps.health.deposit(target, self._retry().budget)
        self._calls[target.id] = self._calls.get(target.id, 0) + 1
        return attempt

    async def _hold_all(self, candidate: Try) -> Skip | None:
        """The target's accounts, and what budgets lack for this attempt."""
        target = candidate.target
        if target is self._exchange.held_for:
            self._exchange.held_for = None  # once: a retry holds anew
        elif target.accounts and (refusal := await self._hold(target)) is not None:
            until = self._steps.clock.monotonic() + max(refusal.wait, MIN_REST)
            return Skip(target, Cause.NO_HEADROOM, until)
        purse = self._facts.purse
        return None if purse is None else await self._afford(candidate, purse)

    async def _afford(self, candidate: Try, purse: Purse) -> Skip | None:
        """Budgets hold this attempt too, or it is not made."""
        exchange, need = self._exchange, candidate.hold.nano_usd
        if (more := need - exchange.prepaid) <= 0:
            return None
        refusal = await self._steps.limiter.extend(self._reservation, demands(purse, more))
        if refusal is None:
            exchange.prepaid += more
            return None
        self._steps.limiter.release(self._reservation, candidate.target.accounts)
        said = f"up to ${candidate.hold.dollars()}, more than a budget has left"
        return Skip(candidate.target, Cause.TOO_DEAR, detail=said)

    def _give_up(self, skip: Skip) -> None:
        self._refused.append(skip)
        self._exchange.skips.append(skip)
        self._exchange.trail.append((skip.target.name, skip.cause.value))

    async def _hold(self, target: Target) -> Refusal | None:
        """The target's accounts; past the first step they may take a moment to be free."""
        held = self._reservation.held
        demands = [
            demand
            for demand in target_demands(self._facts, target, self._steps.outputs)
            if demand.account.id not in held
        ]
        if not demands:
            return None
        refusal = await self._steps.limiter.extend(self._reservation, demands)
        if refusal is None or not (self._calls or self._refused):
            return refusal
        if refusal.wait > MIN_ATTEMPT or not self._fits(refusal.wait):
            return refusal
        await self._pause(refusal.wait)
        return await self._steps.limiter.extend(self._reservation, demands)

    async def _open(self, candidate: Try, attempt: Attempt) -> Answer:
        """Dial, send, and hold what comes until it is content, or a whole answer."""
        steps, request = self._steps, self._facts.request
        if (purse := self._facts.purse) is not None and purse.hard:
            request = json.changed(request, cap=candidate.output // request.n)
        adapter = steps.adapters[attempt.target.id]
        upstream = adapter.request(request, attempt.id)
        if (parent := self._facts.hints.traceparent) is not None:
            headers = {**upstream.headers, "traceparent": parent}
            upstream = json.changed(upstream, headers=headers)
        sending = steps.transport.send(
            upstream, candidate.timeouts, candidate.seconds, self._facts.deadline
        )
        reply = await sending.__aenter__()
        self._sending = sending  # only what was entered has to be left
        attempt.status = reply.status
        self._exchange.dropped = upstream.dropped
        if not 200 <= reply.status < 300:
            raise Failed(adapter.failure(reply.status, reply.headers, await _error_body(reply)))
        if not request.stream:
            event = adapter.completion(request, await reply.read(MAX_ANSWER))
            return await self._whole(attempt, event)
        decoder = adapter.decoder(request)
        streaming = Streaming(self._exchange, self._facts, attempt, reply, decoder, steps)
        await streaming.until_content(self._filtered)
        if attempt.probe:
            steps.health.answered(attempt, attempt.target)
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
            self._exchange.status = 200
            told = trace(self._exchange, self._steps.snapshot, self._steps.clock)
            wire = json.join(json.split(event.wire) | {"gateway": json.raw(told)})
            event = event._replace(wire=wire)
        return Ready(event)

    def _filtered(self, event: StreamEvent) -> Failure | None:
        """An answer that a filter stopped before any content, where `on` sends it elsewhere."""
        if event.finish_reason != "content_filter" or event.size:
            return None
        chain = self._spent.chain or self._facts.chain
        if chain.on.get(Cause.CONTENT_POLICY, "stop") == "stop":
            return None
        return Failure(Cause.CONTENT_POLICY, "its filter stopped the answer", status=200)

    def _opening(self, attempt: Attempt) -> Opening:
        facts, target = self._facts, attempt.target
        now = self._steps.clock.now()
        price = in_force(target.prices, now)
        principal, tags = facts.principal, facts.hints.tags
        values = (  # in the order of `Opening`; keyword by keyword it costs five times as much
            attempt.id,
            now,
            principal.key_id,
            principal.team,
            facts.user,
            facts.session,
            ",".join(f"{name}={value}" for name, value in tags) if tags else "",
            facts.chain.name,
            target.name,
            target.provider,
            target.model,
            attempt.kind,
            price.id if price else None,
            facts.request.prompt,
            price.input if price else 0,
            price.output if price else 0,
            price.request if price else 0,
            attempt.bound.nano_usd if attempt.hold is None else attempt.hold,
            facts.purse.ids if facts.purse is not None else (),
        )
        return Opening._make(values)


async def _error_body(reply: UpstreamReply) -> bytes:
    """What an error status came with; the status alone says enough if that cannot be read."""
    try:
        return await reply.read(MAX_ERROR)
    except Failed:
        return b""


def _opens(skip: Skip) -> bool:
    """Whether waiting may help: a key that was refused needs an operator."""
    return skip.cause in {Cause.BREAKER_OPEN, Cause.THROTTLED, Cause.NO_HEADROOM}
