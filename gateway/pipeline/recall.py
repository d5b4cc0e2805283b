"""Answers that are there already: under a caller's key, in the exact cache, or on their way.

What was answered once is an answer like any other, and free. A request without an Idempotency-Key
on a chain without a cache never comes here. Source: gateway.md 3.10; reliability.md b.13.
"""

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, get_args

from gateway.clock import Bell, Clock
from gateway.core.attempt import Exchange, StreamEvent
from gateway.core.kept import CacheScope, Ending, Held, Kept, Owner, Recalled
from gateway.core.plan import Facts
from gateway.core.ports import Answers, Claim, Drawer
from gateway.core.principal import Principal
from gateway.core.request import Hints, Kind, Request
from gateway.core.snapshot import Snapshot
from gateway.core.target import Cache
from gateway.errors import (
    CallEnded,
    GatewayError,
    InProgress,
    InvalidRequest,
    KeyReused,
    Overloaded,
    UpstreamTimedOut,
)
from gateway.pipeline.admit import Admit
from gateway.pipeline.answer import Answer, Ready
from gateway.pipeline.attempt import Attempts
from gateway.pipeline.detached import Detached, Relay
from gateway.pipeline.settle import INTERNAL, Settle
from gateway.pipeline.tell import tell
from gateway.wire import json
from gateway.wire.completion import Assembly, finish_of, unrolled, without

LARGEST = 1024 * 1024  # bytes of an answer that is kept
ASK_AGAIN = 1.0  # seconds: the Retry-After of a request that is still being answered
HOW = frozenset({"stream", "stream_options"})  # how an answer is handed over, not what it says
PASSING = frozenset({408, 409, 425, 429})  # what an upstream says of the moment, not the request
KINDS: tuple[str, ...] = get_args(Kind)


class Flight:
    """A request under way that identical ones wait for."""

    __slots__ = ("bell", "failed", "kept", "over")

    def __init__(self) -> None:
        self.bell = Bell()
        self.kept: Kept | None = None
        self.failed = False
        self.over = False

    def land(self, kept: Kept | None, *, failed: bool = False) -> None:
        self.kept, self.failed, self.over = kept, failed, True
        self.bell.ring()


Flights = dict[tuple[Owner, str], Flight]
"""Of one worker; as many as it has requests under way."""


@dataclass(frozen=True, slots=True)
class Recall:
    """The step between plan and admit; made once per configuration, `flights` live on."""

    answers: Answers
    flights: Flights
    detached: Detached
    admit: Admit
    attempt: Attempts
    settle: Settle
    clock: Clock
    snapshot: Snapshot

    def __call__(self, exchange: Exchange) -> AbstractAsyncContextManager[Answer]:
        if exchange.facts is None:
            raise AssertionError("recall comes after plan")
        return _Recall(self, exchange, exchange.facts)

    async def end(self, principal: Principal, hints: Hints, key: str) -> Ending | None:
        """End the detached call under a caller's own key; None: there is no such key."""
        drawer = self.answers.of(owner_of_keys(principal, hints))
        for kind in KINDS:
            ending = await drawer.end(f"{kind}:{key}")
            if ending is not None:
                return ending
        return None


def owner_of_keys(principal: Principal, hints: Hints) -> Owner:
    """Whose Idempotency-Keys they are: the key's, each of its users for himself.

    A user in the body is told apart by the fingerprint: DELETE has no body.
    """
    return Owner(f"key:{principal.key_id}", principal.user or hints.user or "")


def owner_of_cache(facts: Facts, scope: CacheScope) -> Owner:
    """With whom answers are shared; without a user or a team: with the key's other requests."""
    principal = facts.principal
    if scope == "team" and principal.team is not None:
        return Owner(f"team:{principal.team}")
    key = f"key:{principal.key_id}"
    return Owner(key, facts.user or "") if scope == "user" else Owner(key)


def _bound(facts: Facts) -> str:
    """What a hard budget has answers cut at: who has none is not to get what another's ended."""
    if facts.purse is None or not facts.purse.hard:
        return ""
    return f"bounded:{facts.principal.default_max_tokens}"


def fingerprint(request: Request, *beside: str) -> bytes:
    """SHA-256 of what a request asks, and of what else an answer depends on.

    Every member counts with every byte of it, but for the order of the members, the white space
    between their parts, and what only says how the answer is handed over.
    """
    asked = {name: value for name, value in sorted(request.members.items()) if name not in HOW}
    told = json.join(asked)
    with suppress(json.JSONError):  # what the reader of requests took and this one does not
        told = json.squeezed(told)
    head = json.dumps([request.kind, *beside])
    return hashlib.sha256(b"%d\0%b%b" % (len(head), head, told)).digest()


class _Place(NamedTuple):
    """Where the cache keeps the answer to a request."""

    owner: Owner
    drawer: Drawer
    name: str
    seconds: float  # how long it is kept, and how old it may be


class _Duties:
    """Who gets the answer besides its caller: a key of the caller's, the cache, those who wait."""

    def __init__(self, steps: Recall, exchange: Exchange, facts: Facts) -> None:
        self._steps = steps
        self._exchange = exchange
        self._facts = facts
        self.claim: Claim | None = None
        self.place: _Place | None = None
        self.flight: Flight | None = None

    def over(self, kept: Kept | None, *, fresh: bool = True, failed: bool = False) -> None:
        """There is an answer to keep, or none. `fresh`: it did not come from the cache."""
        claim, self.claim = self.claim, None
        place, self.place = self.place, None
        flight, self.flight = self.flight, None
        good = kept if kept is not None and kept.status == 200 else None
        if claim is not None:
            if kept is not None:
                claim.keep(kept)
            else:
                claim.release()
        if place is not None and fresh and good is not None and place.seconds > 0:
            place.drawer.put(place.name, good, place.seconds)
        if place is not None and flight is not None:
            self._steps.flights.pop((place.owner, place.name), None)
            flight.land(good, failed=failed)

    def failed(self, error: BaseException | None) -> None:
        """The call came to nothing; what an upstream finds wrong with the request stays wrong."""
        told = isinstance(error, GatewayError)
        lasting = _lasting(error) if self._exchange.attempts else None
        self.over(lasting, failed=told)


class _Call(AbstractAsyncContextManager[Answer]):
    """Asks an upstream after all, and takes down what it says."""

    def __init__(self, steps: Recall, exchange: Exchange, facts: Facts, duties: _Duties) -> None:
        self._steps = steps
        self._exchange = exchange
        self._facts = facts
        self._duties = duties
        self._recording = _Recording(facts)
        self._walk: AbstractAsyncContextManager[Answer] | None = None

    async def __aenter__(self) -> Answer:
        steps, exchange = self._steps, self._exchange
        try:
            if exchange.paused:  # it waited for another: what was planned before is old
                exchange.plan = steps.attempt.plan.first(self._facts)
            exchange.reservation = await steps.admit(exchange)
            exchange.planned = steps.clock.monotonic()
            walk = steps.attempt(exchange)
            answer = await walk.__aenter__()
        except BaseException as error:
            self._duties.failed(error)
            raise
        self._walk = walk
        self._recording.answer = answer
        return self._recording

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._walk is not None:
                await self._walk.__aexit__(kind, error, trace)
        finally:
            self._hand_over(error)

    def _hand_over(self, error: BaseException | None) -> None:
        if not self._recording.whole:
            self._duties.failed(error)
            return
        kept: Kept | None = None
        try:
            kept = self._recording.kept(self._exchange)
        finally:  # whatever comes: a key that nobody answers any more must not stay taken
            self._duties.over(kept, failed=kept is None)


class _Recall(AbstractAsyncContextManager[Answer]):
    """One request: the answer that is there, or a call of its own."""

    def __init__(self, steps: Recall, exchange: Exchange, facts: Facts) -> None:
        self._steps = steps
        self._exchange = exchange
        self._facts = facts
        self._duties = _Duties(steps, exchange, facts)
        self._call: _Call | None = None
        self._relay: Relay | None = None

    async def __aenter__(self) -> Answer:
        duties, exchange = self._duties, self._exchange
        try:
            if self._facts.hints.idempotency_key is not None:
                kept = await self._claim(self._facts.hints.idempotency_key)
                if kept is not None:
                    exchange.recalled = Recalled(kept=kept, replayed=True)
                    return self._answer(kept, kept.cost)
            kept = await self._cached()
            if kept is not None:
                duties.over(kept, fresh=False)
                return self._answer(kept, "0")
        except BaseException:
            duties.over(None)
            raise
        call = _Call(self._steps, exchange, self._facts, duties)
        if self._facts.hints.detach:
            return await self._send_off(call)
        answer = await call.__aenter__()
        self._call = call
        return answer

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._relay is not None:
            self._relay.leave()
        if self._call is not None:
            await self._call.__aexit__(kind, error, trace)

    # -- under the caller's own key

    async def _claim(self, key: str) -> Kept | None:
        """What is kept under the key; None: it is ours to answer."""
        steps, facts = self._steps, self._facts
        drawer = steps.answers.of(owner_of_keys(facts.principal, facts.hints))
        name = f"{facts.request.kind}:{key}"
        asked = fingerprint(facts.request)
        while True:
            found = await drawer.claim(name, asked, detached=facts.hints.detach)
            if isinstance(found, Kept):
                return found
            if not isinstance(found, Held):
                self._duties.claim = found
                return None
            if found is Held.OTHER:
                raise KeyReused(
                    "This Idempotency-Key stands for another request: its body was different."
                    " Use a new key for a new request.",
                    param="idempotency-key",
                )
            if found is Held.ENDED:
                raise _ended()
            if facts.deadline.left(steps.clock) <= 0:
                raise InProgress(
                    "The request with this Idempotency-Key is still being answered. Ask again"
                    " with the same key.",
                    retry_after=ASK_AGAIN,
                )
            began = steps.clock.monotonic()
            await drawer.changed(name, facts.deadline.at)
            self._exchange.paused += steps.clock.monotonic() - began

    # -- in the cache

    async def _cached(self) -> Kept | None:
        """An answer to an identical request, kept or on its way; None: there is none."""
        facts, exchange = self._facts, self._exchange
        cache, hints = facts.chain.cache, facts.hints
        if cache is None:
            return None
        if hints.cache == "off" or hints.skip or not hints.fallback:
            exchange.recalled = Recalled("off")
            return None
        place = self._duties.place = self._place(cache, facts)
        if cache.join and hints.cache != "refresh":
            kept = await self._joined(place)
            if kept is not None:
                self._duties.place = None
                exchange.recalled = Recalled("shared", kept)
                return kept
        if place.seconds > 0 and hints.cache != "refresh":
            kept = await place.drawer.get(place.name, place.seconds)
            if kept is not None:
                exchange.recalled = Recalled("hit", kept)
                return kept
        exchange.recalled = Recalled("miss")
        return None

    def _place(self, cache: Cache, facts: Facts) -> _Place:
        owner = owner_of_cache(facts, cache.scope)
        asked = fingerprint(
            facts.request, facts.chain.name, self._steps.snapshot.config, _bound(facts)
        )
        drawer = self._steps.answers.of(owner)
        seconds = facts.hints.cache
        return _Place(
            owner,
            drawer,
            f"exact:{asked.hex()}",
            seconds if isinstance(seconds, float) else cache.seconds,
        )

    async def _joined(self, place: _Place) -> Kept | None:
        """The answer of an identical request under way; None: this one has to run.

        If the other's caller left, one of those who wait takes its place; if it failed, all run.
        """
        steps, deadline = self._steps, self._facts.deadline
        where = (place.owner, place.name)
        while (flight := steps.flights.get(where)) is not None:
            began = steps.clock.monotonic()
            in_time = await flight.bell.heard(steps.clock, deadline.at)
            self._exchange.paused += steps.clock.monotonic() - began
            if not in_time:
                raise UpstreamTimedOut(
                    "An identical request is still being answered, and this one's deadline is over."
                )
            if flight.kept is not None:
                return flight.kept
            if flight.failed:
                return None
        self._duties.flight = steps.flights[where] = Flight()
        return None

    # -- the answer

    def _answer(self, kept: Kept, cost: str) -> Answer:
        """What is kept, in the form that is asked for. Raises it where it is an error."""
        if kept.status != 200:
            raise _error(kept)
        self._exchange.finish_reason = kept.finish_reason
        if not self._facts.request.stream:
            return Ready(StreamEvent(kept.body, content=True))
        usage = self._facts.request.include_usage
        known = None if cost == "unknown" else cost
        chunks = unrolled(json.loads(kept.body), usage=usage, cost=known)
        return Ready(*(StreamEvent(json.dumps(chunk), content=True) for chunk in chunks))

    async def _send_off(self, call: _Call) -> Answer:
        """Run on though the caller leaves; it hears what is said while it stays."""
        steps, exchange = self._steps, self._exchange
        relay, claim = Relay(), self._duties.claim
        try:
            cancel = steps.detached.start(_detached(steps, exchange, call, relay))
        except Overloaded:
            self._duties.over(None)
            raise
        exchange.detached = True

        def end() -> None:
            relay.end(tell(_ended(), exchange, steps.snapshot, steps.clock))
            cancel()

        if claim is not None:
            claim.on_end(end)
        try:
            await relay.begun()
        except BaseException:
            relay.leave()
            raise
        self._relay = relay
        return relay


async def _detached(steps: Recall, exchange: Exchange, call: _Call, relay: Relay) -> None:
    """The rest of a road whose caller may leave: it ends as a `Road` does."""
    try:
        async with call as answer:
            exchange.status = 200
            relay.begin()
            async for events in answer:
                await relay.say(events)
            exchange.finished = True
        relay.end()
    except GatewayError as error:
        relay.end(tell(error, exchange, steps.snapshot, steps.clock))
    except Exception as bug:
        exchange.status = INTERNAL
        relay.end(bug)
        raise
    finally:
        relay.end(Overloaded("server_shutdown: this gateway is being stopped.", code="draining"))
        steps.settle(exchange)
        steps.admit.over(exchange)


class _Recording(Answer):
    """An answer that passes through and is put together on its way."""

    def __init__(self, facts: Facts) -> None:
        self._streamed = facts.request.stream
        self._traced = facts.hints.trace
        self._assembly: Assembly | None = Assembly()
        self._body = b""
        self._size = 0
        self._events: AsyncIterator[Sequence[StreamEvent]] | None = None
        self.answer: Answer | None = None
        self.whole = False  # nothing is missing

    def __aiter__(self) -> AsyncIterator[Sequence[StreamEvent]]:
        return self

    async def __anext__(self) -> Sequence[StreamEvent]:
        if self._events is None:
            if self.answer is None:
                raise AssertionError("an answer that has not begun")
            self._events = aiter(self.answer)
        try:
            events = await anext(self._events)
        except StopAsyncIteration:
            self.whole = True
            raise
        if self._streamed:
            self._take(events)
        else:
            self._body = events[0].wire
            self.whole = True
        return events

    def kept(self, exchange: Exchange) -> Kept | None:
        """What is kept of it; None: it is not whole, or too large."""
        if not self.whole:
            return None
        body, reason = self._body, exchange.finish_reason
        if self._streamed and self._assembly is not None:
            whole = self._assembly.completion()
            body, reason = json.dumps(whole), finish_of(whole)
        elif self._traced and body:
            body = without(body, "gateway")
        if not body or len(body) > LARGEST:
            return None
        served = exchange.served_by
        return Kept(
            200,
            body,
            served.target.name if served else "",
            served.target.model if served else "",
            exchange.cost.dollars(),
            reason,
        )

    def _take(self, events: Sequence[StreamEvent]) -> None:
        for event in events:
            self._size += event.size
            if self._assembly is not None and event.wire:
                self._assembly.feed(json.loads(event.wire))
        if self._size > LARGEST:
            self._assembly = None


def _lasting(error: BaseException | None) -> Kept | None:
    """An error that the same request would meet again."""
    if not isinstance(error, InvalidRequest) or error.status in PASSING:
        return None
    told: Mapping[str, str | None] = {
        "message": error.message,
        "code": error.code,
        "param": error.param,
    }
    body = json.dumps(told)
    return Kept(error.status, body) if len(body) <= LARGEST else None


def _error(kept: Kept) -> GatewayError:
    told = json.loads(kept.body)
    error = InvalidRequest(told["message"], code=told["code"], param=told["param"])
    error.status = kept.status
    return error


def _ended() -> CallEnded:
    return CallEnded(
        "The request with this Idempotency-Key was ended by DELETE. Use a new key to ask again.",
        param="idempotency-key",
    )
