"""202 instead of 429: a request that finds all full is kept in the store, and answered later.

Only for fullness that time cures, and only where an answer can wait: not for streams. Source:
gateway.md 5.7.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from gateway.clock import Clock
from gateway.core.attempt import Exchange
from gateway.core.parked import MOST, MOST_BYTES, Order, Outcome, State, Whose
from gateway.core.plan import Facts
from gateway.core.ports import Lot, Parking, Reply
from gateway.core.principal import Principal
from gateway.core.request import Hints
from gateway.core.snapshot import Snapshot
from gateway.errors import GatewayError, NotFound, Overloaded, RateLimited
from gateway.pipeline.recall import owner_of_keys
from gateway.pipeline.tell import answer_headers
from gateway.wire import json

FULL = frozenset(
    {"rpm_exceeded", "tpm_exceeded", "concurrency_exceeded", "queue_full", "chain_exhausted"}
)
"""Codes of a 429 that says: no room now."""
LONGEST = 3600.0  # seconds a request may be parked
SOON = 1.0  # seconds: Retry-After where nobody knows better


class Envelope(json.Struct, frozen=True):
    """All of a parked request but its body."""

    whose: Whose
    api: str
    hints: Hints


class Told(NamedTuple):
    """An answer as it goes to the socket."""

    status: int
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Park:
    """The road's last word before a 429, and what callers ask about what they parked."""

    parking: Parking
    clock: Clock
    snapshot: Snapshot

    async def __call__(self, error: GatewayError, exchange: Exchange, reply: Reply) -> bool:
        """Answer 202 if this refusal may be parked; False: it stands, perhaps with a reason."""
        facts = exchange.facts
        if facts is None or error.code not in FULL or not isinstance(error, RateLimited):
            return False
        if not (facts.principal.parks or facts.hints.park) or exchange.detached:
            return False
        if facts.request.stream:
            error.message += " It was not parked: only requests without stream are."
            return False
        order = self._order(facts, error.retry_after or SOON)
        lot = self._lot(facts.principal, facts.hints)
        try:
            ticket = await lot.park(order)
        except Overloaded:
            error.message += " It was not parked: the store of parked requests cannot be used."
            return False
        if ticket is None:
            error.message += (
                f" It was not parked: of one tier {MOST:,} requests, or {MOST_BYTES >> 20} MiB of"
                " their bodies, may be at a time."
            )
            return False
        exchange.parked = ticket
        exchange.status = 202
        headers = answer_headers(exchange, self.snapshot, self.clock)
        headers["location"] = f"/v1/parked/{ticket}"
        headers["retry-after"] = _whole(order.due - self.clock.now())
        try:
            reply.accepted(headers, _named(ticket, "parked"))
        except BaseException:  # the caller has left, and nobody knows the id
            with suppress(Overloaded):
                await lot.drop(ticket)
            raise
        exchange.finished = True
        return True

    async def look(self, principal: Principal, hints: Hints, id: str) -> Told:
        """What became of a parked request: 202 while it waits or runs, then its answer.

        Raises:
            NotFound: there is none, or it is another caller's.
            Overloaded: `store_unavailable`.
        """
        seen = await self._lot(principal, hints).look(id)
        if seen is None:
            raise _unknown()
        if seen.outcome is not None:
            return Told(seen.outcome.status, seen.outcome.body, json.loads(seen.outcome.headers))
        wait = seen.due - self.clock.now() if seen.state == "parked" else SOON
        return Told(202, _named(id, seen.state), {"retry-after": _whole(wait)})

    async def drop(self, principal: Principal, hints: Hints, id: str) -> Told:
        """Forget it; one that is being answered is ended. Raises as `look`."""
        was = await self._lot(principal, hints).drop(id)
        if was is None:
            raise _unknown()
        return Told(200, _named(id, "deleted" if was == "done" else "cancelled"), {})

    def _lot(self, principal: Principal, hints: Hints) -> Lot:
        return self.parking.of(owner_of_keys(principal, hints))

    def _order(self, facts: Facts, wait: float) -> Order:
        now = self.clock.now()
        principal, hints = facts.principal, facts.hints
        patience = LONGEST if hints.deadline is None else min(LONGEST, hints.deadline)
        whose = Whose(
            principal.key_id, principal.user, principal.team, principal.own_tier, principal.role
        )
        return Order(
            lane=_lane(facts),
            tier=principal.tier or "",
            until=now + patience,
            due=now + min(wait, LONGEST),
            envelope=json.encode(Envelope(whose, facts.request.kind, replace(hints, park=False))),
            body=facts.request.body(),
        )


def outcome_of(error: GatewayError) -> Outcome:
    """A failure as its caller will find it."""
    return Outcome(error.status, kept_headers(error.headers()), json.dumps(error.body()))


def kept_headers(headers: Mapping[str, str]) -> bytes:
    """Those that say of an answer what it was; when to come back is over by then."""
    kept = {name: value for name, value in headers.items()
            if name.startswith("x-gateway-") or name == "x-should-retry"}  # fmt: skip
    return json.dumps(kept)


def _lane(facts: Facts) -> str:
    """Requests of one key for one chain meet the same accounts; so do those of one user of it."""
    within = (facts.user or "", facts.session or "") if facts.sub_accounts else ()
    return "\n".join((facts.principal.key_id, facts.chain.name, *within))


def _named(id: str, state: State | Literal["cancelled", "deleted"]) -> bytes:
    return json.dumps({"id": id, "status": state})


def _whole(seconds: float) -> str:
    return str(max(1, math.ceil(seconds)))


def _unknown() -> NotFound:
    return NotFound(
        "There is no parked request of this id: its answer was kept for 24 hours, it was deleted,"
        " or it is another caller's."
    )
