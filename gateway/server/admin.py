"""The admin port: reads and five verbs for operators. No configuration is written over HTTP."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from hmac import compare_digest
from typing import Any
from urllib.parse import parse_qs

from gateway.clock import Clock
from gateway.core.principal import OPEN_TO
from gateway.core.snapshot import ServerSettings
from gateway.core.target import Secret
from gateway.errors import InvalidRequest, NotAllowed, NotFound, Unauthenticated
from gateway.server.connection import Bounds
from gateway.server.desk import BOUNDS, Desk
from gateway.server.doors import Admin, Current, Override
from gateway.server.health import alive, readiness
from gateway.server.incoming import Incoming
from gateway.server.lane import Asked, head_of
from gateway.server.reply import Outgoing
from gateway.server.routes import ADMIN, Route, Table
from gateway.wire import json

MOST_BODY = 64 * 1024
LISTED = 50  # requests shown when nobody says how many
MOST_LISTED = 1000
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"
OVERRIDES: Mapping[str, Override] = {"open": "open", "closed": "closed", "auto": "auto"}

Answer = Mapping[str, Any]


class AdminDesk(Desk):
    """The port operators use.

    Args:
        admin_key: GATEWAY_ADMIN_KEY; "" when only keys of role admin are taken.
    """

    def __init__(
        self,
        current: Current,
        settings: ServerSettings,
        clock: Clock,
        admin_key: Secret,
        bounds: Bounds = BOUNDS,
    ) -> None:
        super().__init__(current, settings, clock, Table(ADMIN), bounds)
        self.most_body = MOST_BODY
        self.api_draining = False
        self._digest = hashlib.sha256(admin_key.reveal().encode()).digest() if admin_key else b""
        self._answers: dict[str, Callable[[Incoming, str, str], Awaitable[Answer]]] = {
            "status": self._status,
            "requests": self._requests,
            "request": self._request,
            "chains": self._chains,
            "limits": self._limits,
            "config": self._config,
            "reload": self._reload,
            "drain": self._drain,
            "breaker": self._breaker,
        }

    async def walk(self, message: Asked, call: Incoming, reply: Outgoing) -> None:
        doors = self.current.doors
        route, name = self.table.find(message.method, message.path)
        if route is not None and route.role == "anyone":
            if route.handler == "healthz":
                reply.whole(200, alive())
            else:
                reply.whole(*readiness(doors, draining=self.api_draining))
            return
        call.headed(head_of(message))
        await self._allow(call, route)
        if route is None:
            raise self.table.missing(message.method, message.path)
        if route.handler == "metrics":
            exposition = await asyncio.to_thread(doors.admin.metrics)
            reply.whole(200, exposition, content_type=EXPOSITION)
            return
        query = message.path.partition("?")[2]
        told = await self._answers[route.handler](call, name, query)
        reply.whole(200, json.dumps(told), {"cache-control": "no-store"})

    async def _allow(self, call: Incoming, route: Route | None) -> None:
        """The admin key, or a caller's key or token of the right role.

        Raises:
            Unauthenticated, NotAllowed.
        """
        doors = self.current.doors
        if route is not None and route.role == "metrics" and doors.public_metrics:
            return
        credential = call.credential
        if credential is None:
            raise Unauthenticated(
                "The admin port needs a key: send GATEWAY_ADMIN_KEY, or a key or token of role"
                " admin, as 'Authorization: Bearer <key>'."
            )
        if self._digest and compare_digest(credential.digest, self._digest):
            return
        principal = await doors.authenticate(call)
        if route is None and principal.role in OPEN_TO["admin"]:
            return
        if route is None:
            raise NotAllowed("This key has no right to the admin port: its role is not admin.")
        if not route.admits(principal.role):
            raise route.refused(principal.role)

    @property
    def _admin(self) -> Admin:
        return self.current.doors.admin

    async def _status(self, call: Incoming, name: str, query: str) -> Answer:
        return self._admin.status()

    async def _requests(self, call: Incoming, name: str, query: str) -> Answer:
        asked = parse_qs(query).get("limit", [str(LISTED)])[0]
        if not asked.isdecimal() or len(asked) > 6:
            raise InvalidRequest("'limit' must be a whole number.", param="limit")
        n = max(1, min(int(asked), MOST_LISTED))
        return {"requests": list(self._admin.recent(n))}

    async def _request(self, call: Incoming, name: str, query: str) -> Answer:
        told = await self._admin.request(name)
        if told is None:
            raise NotFound("No such request is remembered: it is unknown or too old.")
        return told

    async def _chains(self, call: Incoming, name: str, query: str) -> Answer:
        return self._admin.chains()

    async def _limits(self, call: Incoming, name: str, query: str) -> Answer:
        return self._admin.limits()

    async def _config(self, call: Incoming, name: str, query: str) -> Answer:
        return self._admin.config()

    async def _reload(self, call: Incoming, name: str, query: str) -> Answer:
        return await self._admin.reload()

    async def _drain(self, call: Incoming, name: str, query: str) -> Answer:
        await self._admin.drain()
        return {"status": "draining"}

    async def _breaker(self, call: Incoming, name: str, query: str) -> Answer:
        try:
            asked = json.loads(await call.body())
        except json.JSONError:
            asked = None
        word = asked.get("set") if isinstance(asked, dict) else None
        to = OVERRIDES.get(word) if isinstance(word, str) else None
        if to is None:
            raise InvalidRequest(
                'The body must be {"set": "open"}, "closed" or "auto".', param="set"
            )
        told = self._admin.breaker(name, to)
        if told is None:
            raise NotFound("There is no such target.")
        return told
