"""Usage, cost, slots and ledger lines, whatever became of a request. Waits for nobody.

Plain functions called in `finally`: they cannot be cancelled, and a second call does nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.clock import Clock
from gateway.core.attempt import Attempt, Exchange, Line
from gateway.core.events import AttemptEnded, Event, RequestEnded
from gateway.core.ports import Health, Ledger, Limiter
from gateway.core.target import Cause
from gateway.core.usage import NOTHING, UNKNOWN, Cost, Usage, in_force
from gateway.pipeline.estimate import Outputs, tokens_of
from gateway.pipeline.under_way import UnderWay
from gateway.wire import json

CLIENT_CLOSED = 499  # nginx's number for a caller that left; it never reaches anybody
INTERNAL = 500  # a mistake of ours

# The upstream took the prompt and may have worked on it: it is booked though nothing came back.
PROMPT_TAKEN = frozenset(
    {Cause.TIMEOUT, Cause.FIRST_TOKEN, Cause.STALLED, Cause.CUT_STREAM, Cause.MALFORMED}
)


@dataclass(frozen=True, slots=True)
class Settle:
    limiter: Limiter
    ledger: Ledger
    health: Health
    outputs: Outputs
    under_way: UnderWay
    clock: Clock
    heard: Callable[[Event], None]

    def __call__(self, exchange: Exchange) -> None:
        """Close what is open, give back what is held, tell what happened."""
        if exchange.settled:
            return
        exchange.settled = True
        exchange.ended = self.clock.monotonic()
        for attempt in exchange.attempts:
            self.attempt(exchange, attempt)
        if exchange.error is not None:
            exchange.status = exchange.error.status
        elif not exchange.finished and exchange.status != INTERNAL:
            exchange.status = CLIENT_CLOSED
        self._give_back(exchange)
        if exchange.facts is not None:
            self.under_way.ended(exchange.chain_name)
        self.heard(RequestEnded(exchange, self.clock.now()))

    def attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """An upstream call is over: its usage, cost and ledger line are final now."""
        if attempt.closed:
            return
        attempt.closed = True
        self.under_way.answered(attempt.target.name)
        if attempt.ended is None:
            attempt.ended = self.clock.monotonic()
        attempt.usage = self._usage(exchange, attempt)
        price = in_force(attempt.target.prices, self.clock.now())
        attempt.cost = _cost(attempt, price.cost(attempt.usage) if price else UNKNOWN)
        if attempt.finished and not attempt.usage.estimated and exchange.principal is not None:
            self.outputs.learn(exchange.principal.key_id, attempt.target.id, attempt.usage.output)
        if exchange.reservation is not None and attempt.accounts:
            tokens = attempt.usage.total
            self.limiter.settle(exchange.reservation, attempt.accounts, tokens)
        self.health.record(attempt, attempt.target)
        if attempt.opened:
            self.ledger.close(_line(attempt, self.clock.now(), price.id if price else None))
        self.heard(AttemptEnded(exchange, attempt))

    def _usage(self, exchange: Exchange, attempt: Attempt) -> Usage:
        """The provider's own figures, or an honest estimate of what it did for us."""
        told, failure = attempt.usage, attempt.failure
        seen = tokens_of(attempt.delivered)
        if told is not None and told.total > 0:
            over = attempt.finished or exchange.finish_reason is not None
            if over or told.output >= seen:
                return told
            return json.changed(told, output=seen, estimated=True)  # told before the answer was cut
        answering = attempt.status is None or 200 <= attempt.status < 300
        worked = attempt.first_content is not None or (failure is None and answering)
        if failure is not None and failure.cause in PROMPT_TAKEN:
            worked = True
        if not worked or exchange.facts is None:
            return told or Usage()
        output = max(seen, 1 if attempt.first_content is not None else 0)
        return Usage(input=exchange.facts.request.prompt, output=output, estimated=True)

    def _give_back(self, exchange: Exchange) -> None:
        reservation, facts = exchange.reservation, exchange.facts
        if reservation is None or facts is None:
            return
        used = sum(attempt.usage.total for attempt in exchange.attempts if attempt.usage)
        self.limiter.settle(reservation, facts.accounts, used)
        if facts.purse is not None:
            self.limiter.settle(reservation, facts.purse.accounts, 0, exchange.cost.nano_usd)
        self.limiter.release(reservation)


def _cost(attempt: Attempt, cost: Cost) -> Cost:
    """Nothing used costs nothing, with or without a price; a price a request needs an answer.

    What we only guess at is never more than what budgets held for it.
    """
    usage = attempt.usage
    if usage is None or (usage.total == 0 and attempt.first_content is None):
        return NOTHING
    if usage.estimated and attempt.hold is not None:
        return min(cost, Cost(attempt.hold), key=lambda one: one.nano_usd) if cost.known else cost
    return cost


def _line(attempt: Attempt, now: float, price_id: str | None) -> Line:
    usage, cost, first = attempt.usage or Usage(), attempt.cost, attempt.first_content
    began = attempt.started
    flags = ""
    if usage.estimated or not cost.known or not attempt.finished:
        partial = first is not None and not attempt.finished
        told = (("estimated", usage.estimated), ("cost_unknown", not cost.known))
        flags = ",".join(name for name, holds in (*told, ("partial", partial)) if holds)
    ended = attempt.ended if attempt.ended is not None else began
    return Line(
        attempt.id,
        now,
        usage,
        cost.nano_usd if cost.known else None,
        price_id,
        flags,
        attempt.outcome,
        attempt.status,
        int((ended - began) * 1000 + 0.5),
        None if first is None else int((first - began) * 1000 + 0.5),
    )
