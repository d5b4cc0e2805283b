"""The public port: to the road with a request that is well formed, or to what needs no road."""

import asyncio
from collections.abc import Mapping

from gateway.clock import Clock
from gateway.core.attempt import Exchange
from gateway.core.principal import Principal
from gateway.core.request import Hints
from gateway.core.snapshot import ServerSettings
from gateway.errors import GatewayError, NotFound, Overloaded
from gateway.pipeline.backoff import spread
from gateway.pipeline.guard import Guard
from gateway.server.connection import Bounds
from gateway.server.desk import BOUNDS, Desk
from gateway.server.doors import Current, Doors
from gateway.server.health import alive, hello, readiness
from gateway.server.incoming import Incoming
from gateway.server.lane import Asked, head_of
from gateway.server.models import model_list, one_model
from gateway.server.reply import Outgoing
from gateway.server.routes import PUBLIC, Route, Table
from gateway.wire import json

GONE = 499  # the caller left before it was answered


class Edge(Desk):
    """The port callers use."""

    def __init__(
        self, current: Current, settings: ServerSettings, clock: Clock, bounds: Bounds = BOUNDS
    ) -> None:
        super().__init__(current, settings, clock, Table(PUBLIC), bounds)
        self.in_flight = 0  # requests on a road

    async def walk(self, message: Asked, call: Incoming, reply: Outgoing) -> None:
        doors = self.current.doors
        route, name = self.table.find(message.method, message.path)
        if route is None or route.api == "_other":
            await self._beside(doors, message, (route, name), call, reply)
            return
        call.api = route.api
        try:
            call.headed(head_of(message), name)
            if self.in_flight >= self.settings.max_in_flight or not doors.guard.level:
                raise self._full(doors.guard)
        except GatewayError as error:
            self._tell(call, error.status, error)
            raise
        self.in_flight += 1
        try:
            await (doors.chat if route.api == "chat" else doors.embeddings)(call, reply)
        finally:
            self.in_flight -= 1

    def _full(self, guard: Guard) -> Overloaded:
        """What a request hears before its body is read."""
        if not guard.level:
            refused = guard.refused()
        else:
            refused = Overloaded(
                f"{self.in_flight} requests are being answered already, the most this"
                " gateway takes at once (server.max_in_flight).",
                retry_after=1.0,
            )
        if refused.retry_after is not None:
            refused.retry_after = spread(refused.retry_after)
        return refused

    async def _beside(
        self,
        doors: Doors,
        message: Asked,
        found: tuple[Route | None, str],
        call: Incoming,
        reply: Outgoing,
    ) -> None:
        """What no road answers: health, lists, and paths that are not there."""
        route, name = found
        if route is not None and route.role == "anyone":
            self._for_anyone(doors, route, reply)
            return
        status = 500
        error: GatewayError | None = None
        principal: Principal | None = None
        try:
            call.headed(head_of(message))
            if not doors.guard.level:
                raise self._full(doors.guard)
            principal = await doors.authenticate(call)
            if route is None:
                raise self.table.missing(message.method, message.path)
            if not route.admits(principal.role):
                raise route.refused(principal.role)
            answer = await _told(doors, principal, route, call, name)
            reply.whole(*answer)
            status = answer[0]
        except GatewayError as failure:
            status, error = failure.status, failure
            raise
        except asyncio.CancelledError:
            status = GONE
            raise
        finally:
            self._tell(call, status, error, principal)

    def _for_anyone(self, doors: Doors, route: Route, reply: Outgoing) -> None:
        if route.handler == "hello":
            reply.whole(200, hello())
        elif route.handler == "healthz":
            reply.whole(200, alive())
        else:
            reply.whole(*readiness(doors, draining=self.draining))

    def _tell(
        self,
        call: Incoming,
        status: int,
        error: GatewayError | None,
        principal: Principal | None = None,
    ) -> None:
        exchange = Exchange(call.id, call.api, call.started)
        exchange.principal = principal
        self.say_ended(exchange, status, error)


def _models(doors: Doors, principal: Principal, route: Route, name: str) -> bytes:
    names = doors.models(principal)
    if route.handler == "models":
        return model_list(names)
    if name in names:
        return one_model(name)
    raise NotFound(
        "There is no such model here, or this key may not use it. GET /v1/models lists what it"
        " may use.",
        code="model_not_found",
        param="model",
    )


async def _told(
    doors: Doors, principal: Principal, route: Route, call: Incoming, name: str
) -> tuple[int, bytes, Mapping[str, str]]:
    """What a route beside the road answers: (status, body, headers)."""
    if route.handler == "parked":
        return await doors.parked.look(principal, call.hints, name)
    if route.handler == "drop":
        return await doors.parked.drop(principal, call.hints, name)
    if route.handler == "end":
        return 200, await _end(doors, principal, call.hints, name), {}
    if route.handler == "usage":
        return 200, json.dumps(await doors.usage(principal)), {}
    return 200, _models(doors, principal, route, name), {}


async def _end(doors: Doors, principal: Principal, hints: Hints, key: str) -> bytes:
    ending = await doors.end(principal, hints, key)
    if ending is None:
        raise NotFound(
            "There is no request with this Idempotency-Key: it is over, was never sent, or is"
            " another caller's.",
            param="idempotency-key",
        )
    return json.dumps({"object": "request", "idempotency_key": key, "state": ending})
