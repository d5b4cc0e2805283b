"""Parked requests have their turn: taken when there is room, and answered by the ordinary road.

One chore a worker looks for them; each is answered by a task of its own. Who parked it is looked
up again, so that a revoked key's request is answered 401. Source: gateway.md 5.7.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from gateway.clock import Bell, Clock
from gateway.core.attempt import StreamEvent
from gateway.core.parked import Outcome, Whose
from gateway.core.ports import Call, Lease, Parking, Voice
from gateway.core.principal import Credential, Principal
from gateway.core.request import Hints
from gateway.errors import (
    GatewayError,
    InProgress,
    Overloaded,
    Unauthenticated,
    UpstreamTimedOut,
)
from gateway.pipeline.detached import Detached
from gateway.pipeline.facts import gather
from gateway.pipeline.park import FULL, Envelope, kept_headers, outcome_of
from gateway.pipeline.plan import MIN_ATTEMPT
from gateway.pipeline.road import Road
from gateway.wire import json

LOOK = 0.5  # seconds between looks
AT_ONCE = 64  # parked requests that one worker answers at a time
LEAST_REST, MOST_REST = 0.25, 5.0  # seconds between looks at a lane that has no room
LEAST_PAUSE, MOST_PAUSE = 1.0, 60.0  # seconds after the road has refused one
MOST_LOST = 3  # workers that may die with a request in their hands before it is suspected


@dataclass(frozen=True, slots=True)
class Roads:
    """Those of one configuration, by kind of request; `again` finds who parked one."""

    by_kind: Mapping[str, Road]
    again: Callable[[Whose], Awaitable[Principal | None]]


class Unpark:
    """The chore `run`, and the tasks it started: `under_way` owns them.

    Args:
        parking: where they wait.
        under_way: the owner of what is being answered, and of nothing else.
        clock: the time.
        roads: of the configuration in force.
        name: a fresh request id: each try is a request of its own.
    """

    def __init__(
        self,
        parking: Parking,
        under_way: Detached,
        clock: Clock,
        roads: Callable[[], Roads],
        name: Callable[[], str],
    ) -> None:
        self._parking = parking
        self._under_way = under_way
        self._clock = clock
        self._roads = roads
        self._name = name
        self._bell = Bell()
        self._stopped = False

    async def run(self) -> None:
        """Until `stop`."""
        while not self._stopped:
            busy = self._under_way.under_way >= AT_ONCE
            lease = None if busy else await self._parking.take()
            if lease is None:
                await self._bell.heard(self._clock, self._clock.monotonic() + LOOK)
                continue
            try:
                await self._turn(lease)
            except asyncio.CancelledError:
                lease.back(self._clock.now())
                raise
            except Exception as bug:  # noqa: BLE001 - a boundary: one may not stop the others
                lease.finish(outcome_of(_mistake()))
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a parked request met a mistake of ours", "exception": bug}
                )

    def stop(self) -> None:
        """Take nothing more; what is being answered goes on."""
        self._stopped = True
        self._bell.ring()

    async def _turn(self, lease: Lease) -> None:
        """Begin to answer it, put it back, or say why it never will be."""
        if self._stopped:
            lease.back(self._clock.now())
            return
        try:
            road, call = await self._ready(lease)
            request = road.facade.parse(lease.order.body)
            wait = road.admit.room_in(gather(call, call.principal, request, road.snapshot))
        except GatewayError as error:
            self._failed(lease, error)
            return
        if wait > 0:
            lease.back(self._clock.now() + min(MOST_REST, max(LEAST_REST, wait)))
            return
        lease.on_end(self._under_way.start(self._answer(lease, road, call)))

    async def _ready(self, lease: Lease) -> "tuple[Road, _Turn]":
        """Raises what there is to say instead."""
        if lease.lost >= MOST_LOST:
            raise GatewayError(
                f"This request was begun {lease.lost} times, and each time the process that"
                " answered it was lost. It is not tried again."
            )
        now, until = self._clock.now(), lease.order.until
        if until - now < MIN_ATTEMPT:
            raise UpstreamTimedOut(
                "This request was parked, and until its deadline there was no room for it. Send it"
                " again, or ask for a larger limit."
            )
        envelope = json.decode(lease.order.envelope, Envelope)
        roads = self._roads()
        road = roads.by_kind[envelope.api]
        principal = await roads.again(envelope.whose)
        if principal is None:
            raise Unauthenticated(
                "The API key that parked this request is not valid any more: expired or revoked."
            )
        hints = envelope.hints
        if hints.deadline is not None:
            hints = replace(hints, deadline=until - now)
        call = _Turn(
            self._name(),
            envelope.api,
            self._clock.monotonic(),
            hints,
            replace(principal, wait=0.0, parks=False),  # who parked it waits here, not in line
            lease,
        )
        return replace(road, authenticate=_Known(call.principal), park=None, parked=lease.id), call

    async def _answer(self, lease: Lease, road: Road, call: "_Turn") -> None:
        reply = _Kept()
        try:
            await road(call, reply)
        except GatewayError as error:
            self._failed(lease, error)
        except asyncio.CancelledError:  # the process is being stopped, or its owner dropped it
            lease.back(self._clock.now())
            raise
        except BaseException:
            lease.finish(outcome_of(_mistake()))
            raise
        else:
            lease.finish(reply.outcome)

    def _failed(self, lease: Lease, error: GatewayError) -> None:
        """What passes by itself is tried again; the rest is the answer."""
        if error.code in FULL or isinstance(error, Overloaded | InProgress):
            wait = error.retry_after or LEAST_PAUSE
            lease.back(self._clock.now() + min(MOST_PAUSE, max(LEAST_PAUSE, wait)))
        else:
            lease.finish(outcome_of(error))


class _Turn:
    """The `Call` of a parked request: nobody is on the line."""

    def __init__(
        self,
        id: str,
        api: str,
        started: float,
        hints: Hints,
        principal: Principal,
        lease: Lease,
    ) -> None:
        self.id = id
        self.api = api
        self.started = started
        self.address = ""
        self.credential: Credential | None = None
        self.hints = hints
        self.principal = principal
        self._lease = lease

    async def body(self) -> bytes:
        return self._lease.order.body


class _Known:
    """The first step of a road whose caller is known."""

    def __init__(self, principal: Principal) -> None:
        self._principal = principal

    async def __call__(self, call: Call) -> Principal:
        return self._principal


class _Kept:
    """The `Reply` that takes an answer down; it is never a stream."""

    def __init__(self) -> None:
        self._headers: Mapping[str, str] = {}
        self._voice: Voice | None = None
        self._parts: list[bytes] = []

    def expect(
        self, voice: Voice, keepalive: float, headers: Callable[[], Mapping[str, str]]
    ) -> None:
        raise AssertionError("a stream was parked")

    async def start(self, headers: Mapping[str, str], voice: Voice) -> None:
        self._headers = headers
        self._voice = voice

    async def write(self, events: Sequence[StreamEvent]) -> None:
        if self._voice is None:
            raise AssertionError("write before start")
        self._parts += map(self._voice.say, events)

    async def finish(self, note: bytes) -> None:
        if self._voice is None:
            raise AssertionError("finish before start")
        self._parts.append(self._voice.close(note))

    def accepted(self, headers: Mapping[str, str], body: bytes) -> None:
        raise AssertionError("parked twice")

    @property
    def outcome(self) -> Outcome:
        return Outcome(200, kept_headers(self._headers), b"".join(self._parts))


def _mistake() -> GatewayError:
    return GatewayError("Something went wrong inside the gateway; it was reported in its log.")
