"""An answer that has begun: whole, or a stream held back until its first content.

Source: gateway.md 4.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from gateway.clock import Clock
from gateway.core.attempt import Attempt, Exchange, StreamEvent
from gateway.core.plan import Facts
from gateway.core.ports import Ledger, StreamDecoder, UpstreamReply
from gateway.core.snapshot import Snapshot
from gateway.core.target import Cause, Failed, Failure
from gateway.core.usage import UNKNOWN, in_force
from gateway.pipeline.estimate import BYTES_A_TOKEN, tokens_of
from gateway.pipeline.settle import Settle
from gateway.pipeline.tell import cut, trace
from gateway.wire import json

MAX_HELD = 64 * 1024  # bytes held before the first content
AFTER_FINISH = 2.0  # seconds for usage and [DONE] after the finish
AFTER_DONE = 0.25  # seconds for the end of the body once nothing is missing
RESOLUTION = 0.001  # seconds by which a timer may be early
CHECKPOINT_TOKENS = 256
CHECKPOINT_SECONDS = 2.0


class Answer(Protocol):
    """Batches of events, one for each upstream read; a whole answer is one batch of one."""

    def __aiter__(self) -> AsyncIterator[Sequence[StreamEvent]]: ...


class Ready:
    """An answer that is here, in one batch."""

    def __init__(self, *events: StreamEvent) -> None:
        self._events: Sequence[StreamEvent] | None = events

    def __aiter__(self) -> AsyncIterator[Sequence[StreamEvent]]:
        return self

    async def __anext__(self) -> Sequence[StreamEvent]:
        events, self._events = self._events, None
        if events is None:
            raise StopAsyncIteration
        return events


class Steps(Protocol):
    """What a stream needs of the road's steps."""

    @property
    def clock(self) -> Clock: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def settle(self) -> Settle: ...
    @property
    def snapshot(self) -> Snapshot: ...


class Streaming:
    """A stream: `until_content` first, then iterated to its end.

    An iterator class, not a generator: one left half-way ends here and now, not when it is
    collected.
    """

    def __init__(
        self,
        exchange: Exchange,
        facts: Facts,
        attempt: Attempt,
        reply: UpstreamReply,
        decoder: StreamDecoder,
        steps: Steps,
    ) -> None:
        self._exchange = exchange
        self._facts = facts
        self._attempt = attempt
        self._reply = reply
        self._decoder = decoder
        self._steps = steps
        self._more_bytes = reply.more
        self._held: list[StreamEvent] = []
        self._finishes = 0
        self._closed = False  # upstream's body has ended
        self._over = False
        self._ending = 0  # how much of the end was seen: 1 every finish, 2 nothing is missing
        self._last = b""  # the last frame the caller was given
        self._broken: Failure | None = None
        self._checked = attempt.started
        self._check_at = CHECKPOINT_TOKENS * BYTES_A_TOKEN  # bytes delivered

    async def until_content(self, filtered: Callable[[StreamEvent], Failure | None]) -> None:
        """Hold what comes until one event is content: from then on there is no way back.

        Raises:
            Failed: it ended, broke or was filtered before any content.
        """
        while data := await self._more_bytes():
            if self._hold(self._decoder.feed(data), filtered):
                break
        else:
            self._closed = True
            if not self._hold(self._decoder.close(), filtered):
                raise Failed(Failure(Cause.MALFORMED, "it ended without an answer", status=200))
        self._attempt.first_content = self._steps.clock.monotonic()
        self._reply.progressed()

    def _hold(
        self, events: Sequence[StreamEvent], filtered: Callable[[StreamEvent], Failure | None]
    ) -> bool:
        """Keep them; whether the answer may begin now."""
        begun = False
        for event in events:
            failure = None if begun else event.failure or filtered(event)
            self._note_usage(event)
            if failure is not None:
                raise Failed(failure)
            self._held.append(event)
            begun = begun or event.content
        return begun or sum(len(event.wire) for event in self._held) > MAX_HELD

    def __aiter__(self) -> AsyncIterator[Sequence[StreamEvent]]:
        return self

    async def __anext__(self) -> Sequence[StreamEvent]:
        if self._held:
            events, self._held = self._held, []
            return self._end(events) if self._closed else self._learn(events)
        if self._broken is not None:
            raise self._cut(self._broken)
        if self._over:
            raise StopAsyncIteration
        return await self._more()

    async def _more(self) -> Sequence[StreamEvent]:
        while True:
            try:
                data = await self._more_bytes()
            except Failed as failed:
                if self._whole:
                    return self._end(())
                raise self._cut(self._blamed(failed.failure)) from None
            if not data:
                return self._end(self._decoder.close())
            if events := self._decoder.feed(data):
                return self._learn(events)

    def _blamed(self, failure: Failure) -> Failure:
        """An upstream that was speaking when the request's time was over is not to blame."""
        left = self._facts.deadline.left(self._steps.clock)
        if failure.cause is not Cause.STALLED or left > RESOLUTION:
            return failure
        return Failure(Cause.DEADLINE, failure.message, failure.status)

    def _learn(self, events: Sequence[StreamEvent]) -> Sequence[StreamEvent]:
        """Take down what the events say; what follows a failure is dropped."""
        attempt = self._attempt
        content = False
        for place, event in enumerate(events):
            if event.failure is not None:
                if not self._whole:  # else the answer is here: what else went wrong is no matter
                    self._broken = event.failure
                events = events[:place]
                break
            attempt.delivered += event.size
            content = content or event.content
            if event.finish_reason is not None:
                self._finishes += 1
                self._exchange.finish_reason = event.finish_reason
            if event.wire and not event.own:
                self._last = event.wire
            if event.usage is not None:
                events = self._priced(events, place, event)
        if content:
            self._reply.progressed()
            self._checkpoint()
        if self._finishes:
            self._wind_up()
        if not events and self._broken is not None:
            raise self._cut(self._broken)
        return events

    @property
    def _whole(self) -> bool:
        """Every choice is finished: only the trimmings may be missing."""
        return self._finishes >= self._facts.request.n

    def _wind_up(self) -> None:
        """Once the answer is whole its upstream has not much longer."""
        seen = 0 if not self._whole else 2 if self._decoder.complete else 1
        if seen > self._ending:
            self._ending = seen
            self._reply.ending(AFTER_DONE if seen == 2 else AFTER_FINISH)

    def _end(self, events: Sequence[StreamEvent]) -> Sequence[StreamEvent]:
        """The upstream has closed: whole, or cut."""
        self._over = True
        events = self._learn(events)
        if self._broken is None:
            self._complete()
            if self._facts.hints.trace:
                return [*events, self._traced()]
        return events

    def _complete(self) -> None:
        attempt = self._attempt
        attempt.finished = True
        attempt.ended = self._steps.clock.monotonic()
        self._steps.settle.attempt(self._exchange, attempt)

    def _cut(self, failure: Failure) -> Exception:
        self._attempt.failure = failure
        self._exchange.trail.append((self._attempt.target.name, failure.cause.value))
        return cut(self._exchange, failure)

    def _note_usage(self, event: StreamEvent) -> None:
        if event.usage is not None:
            self._attempt.usage = event.usage

    def _priced(
        self, events: Sequence[StreamEvent], place: int, event: StreamEvent
    ) -> Sequence[StreamEvent]:
        """The usage frame a caller asked for carries what the request cost, all attempts in."""
        self._note_usage(event)
        if event.own or event.content or not event.wire or event.usage is None:
            return events
        price = in_force(self._attempt.target.prices, self._steps.clock.now())
        cost = self._exchange.cost + (price.cost(event.usage) if price else UNKNOWN)
        frame = json.loads(event.wire)
        frame["usage"]["cost_usd"] = cost.dollars() if cost.known else None
        changed = event._replace(wire=json.dumps(frame))
        return [*events[:place], changed, *events[place + 1 :]]

    def _checkpoint(self) -> None:
        """What a lost worker leaves: tokens so far, every 256 tokens or 2 s."""
        attempt = self._attempt
        now = self._steps.clock.monotonic()
        if attempt.delivered >= self._check_at or now - self._checked >= CHECKPOINT_SECONDS:
            self._check_at = attempt.delivered + CHECKPOINT_TOKENS * BYTES_A_TOKEN
            self._checked = now
            self._steps.ledger.checkpoint(attempt.id, tokens_of(attempt.delivered))

    def _traced(self) -> StreamEvent:
        """One more frame of the same answer, with the story of the request."""
        told = trace(self._exchange, self._steps.snapshot, self._steps.clock)
        last = json.loads(self._last) if self._last else {}
        frame = {name: last[name] for name in ("id", "object", "created", "model") if name in last}
        return StreamEvent(json.dumps({**frame, "choices": [], "gateway": told}))
