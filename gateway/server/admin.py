"""The admin port: reads and verbs for operators. No configuration is written over HTTP.

Of several workers each answers operators, with what its siblings say folded in.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from hmac import compare_digest
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

from gateway.clock import Clock
from gateway.core.audit import FORBIDDEN, Act
from gateway.core.principal import OPEN_TO, Credential, Principal
from gateway.core.snapshot import ServerSettings
from gateway.core.target import Secret
from gateway.errors import NotAllowed, NotFound, Unauthenticated
from gateway.server import key_desk, merged, openapi
from gateway.server.asked import body_of, query_of
from gateway.server.connection import Bounds
from gateway.server.crew import PATIENCE, VERB_PATIENCE, Crew
from gateway.server.desk import BOUNDS, Desk
from gateway.server.doors import Admin, Current
from gateway.server.health import alive, readiness
from gateway.server.incoming import Incoming
from gateway.server.lane import Asked, head_of
from gateway.server.reply import Outgoing
from gateway.server.routes import ADMIN, Route, Table
from gateway.wire import json
from gateway.wire.admin import AuditQuery, BreakerBody, LimitsQuery, RequestsQuery

MOST_BODY = 64 * 1024
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"
OPERATOR = "operator"  # whoever has GATEWAY_ADMIN_KEY, in the audit log

Answer = Mapping[str, Any]


class AdminDesk(Desk):
    """The port operators use.

    Args:
        admin_key: GATEWAY_ADMIN_KEY; "" when only keys of role admin are taken.
        crew: the way to siblings; None: there are none.
    """

    def __init__(
        self,
        current: Current,
        settings: ServerSettings,
        clock: Clock,
        admin_key: Secret,
        crew: Crew | None = None,
        bounds: Bounds = BOUNDS,
    ) -> None:
        super().__init__(current, settings, clock, Table(ADMIN), bounds)
        self.most_body = MOST_BODY
        self.api_draining = False
        self._crew = crew
        self._digest = hashlib.sha256(admin_key.reveal().encode()).digest() if admin_key else b""
        self._answers: dict[str, Callable[[Incoming, str, str], Awaitable[Answer]]] = {
            "status": self._status,
            "requests": self._requests,
            "request": self._request,
            "chains": self._chains,
            "limits": self._limits,
            "config": self._config,
            "audit": self._audit,
            "openapi": self._openapi,
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
        who = await self._allow(call, route)
        if route is None:
            raise self.table.missing(message.method, message.path)
        if route.handler == "metrics":
            reply.whole(200, await self._exposition(doors.admin), content_type=EXPOSITION)
            return
        query = message.path.partition("?")[2].partition("#")[0]
        if who and route.handler == "drain":  # afterwards there may be no time to
            await doors.admin.witness(Act(who, "drain"))
        status, told = 200, None
        if route.handler in key_desk.HANDLERS:
            asked = (self.settings, route.handler, call, name, query, who)
            status, told = await key_desk.answer(doors.admin, *asked)
        else:
            told = await self._answers[route.handler](call, name, query)
        if who and (act := _verb(who, route.handler, name, told)) is not None:
            await doors.admin.witness(act)
        reply.whole(status, json.dumps(told), {"cache-control": "no-store"})

    async def _allow(self, call: Incoming, route: Route | None) -> str:
        """The admin key, or a caller's key or token of the right role: whom the audit is to name.

        Raises:
            Unauthenticated, NotAllowed.
        """
        doors = self.current.doors
        if route is not None and route.role == "metrics" and doors.public_metrics:
            return ""
        credential = call.credential
        if credential is None:
            raise Unauthenticated(
                "The admin port needs a key: send GATEWAY_ADMIN_KEY, or a key or token of role"
                " admin, as 'Authorization: Bearer <key>'."
            )
        if self._digest and compare_digest(credential.digest, self._digest):
            return OPERATOR
        principal = await doors.authenticate(call)
        who = _name(credential, principal)
        if principal.role in OPEN_TO["admin"] or (
            route is not None and route.admits(principal.role)
        ):
            return who
        doors.admin.note(Act(who, "login", f"{call.address} admin port", FORBIDDEN))
        if route is None:
            raise NotAllowed("This key has no right to the admin port: its role is not admin.")
        raise route.refused(principal.role)

    @property
    def _admin(self) -> Admin:
        return self.current.doors.admin

    async def _exposition(self, admin: Admin) -> bytes:
        crew = self._crew
        if crew is None:
            return await asyncio.to_thread(admin.metrics)
        said = await crew.ask("/metrics")
        figures = [one.body for one in said if one.status == 200]
        silent = [one.number for one in said if one.status != 200]

        def add() -> bytes:
            figures.append(own := admin.figures())
            crew.keep(own)
            return admin.summed(figures, [crew.kept(number) for number in silent])

        return await asyncio.to_thread(add)

    async def _with_siblings(
        self,
        fold: merged.Fold,
        own: Answer,
        target: str,
        body: bytes | None = None,
        patience: float = PATIENCE,
    ) -> Answer:
        """What the siblings answer to the same request, folded into our own answer."""
        crew = self._crew
        if crew is None:
            return own
        said = await crew.ask(target, body, patience)
        return fold([(crew.number, own), *((one.number, one.told) for one in said)])

    async def _status(self, call: Incoming, name: str, query: str) -> Answer:
        return await self._with_siblings(merged.status, self._admin.status(), "/admin/status")

    async def _requests(self, call: Incoming, name: str, query: str) -> Answer:
        n = query_of(query, RequestsQuery).limit
        own = {"requests": list(self._admin.recent(n))}
        fold = merged.requests(n)
        return await self._with_siblings(fold, own, f"/admin/requests?limit={n}")

    async def _request(self, call: Incoming, name: str, query: str) -> Answer:
        told = await self._admin.request(name)
        if told is None and self._crew is not None:  # ended at a sibling, and not yet stored
            said = await self._crew.ask(f"/admin/requests/{quote(name, safe='')}")
            told = next((one.told for one in said if one.told is not None), None)
        if told is None:
            raise NotFound("No such request is remembered: it is unknown or too old.")
        return told

    async def _chains(self, call: Incoming, name: str, query: str) -> Answer:
        return await self._with_siblings(merged.chains, self._admin.chains(), "/admin/chains")

    async def _limits(self, call: Incoming, name: str, query: str) -> Answer:
        asked = query_of(query, LimitsQuery)
        told = await self._admin.limits(asked.key, asked.limit)
        if told is None:
            raise NotFound("There is no such key. GET /admin/keys lists them.", param="key")
        target = f"/admin/limits?limit={asked.limit}" + (f"&key={asked.key}" if asked.key else "")
        return await self._with_siblings(merged.limits, told, target)

    async def _config(self, call: Incoming, name: str, query: str) -> Answer:
        return self._admin.config()

    async def _audit(self, call: Incoming, name: str, query: str) -> Answer:
        asked = query_of(query, AuditQuery)
        return await self._admin.audit(asked.limit, asked.before)

    async def _openapi(self, call: Incoming, name: str, query: str) -> Answer:
        return openapi.document(version("llm-gateway"))

    async def _reload(self, call: Incoming, name: str, query: str) -> Answer:
        own = await self._admin.reload()
        fold = merged.reload
        return await self._with_siblings(fold, own, "/admin/reload", b"", VERB_PATIENCE)

    async def _drain(self, call: Incoming, name: str, query: str) -> Answer:
        await self._admin.drain()
        return {"status": "draining"}

    async def _breaker(self, call: Incoming, name: str, query: str) -> Answer:
        to = (await body_of(call, BreakerBody)).set
        told = self._admin.breaker(name, to)
        if told is None:
            raise NotFound("There is no such target.")
        target, body = f"/admin/breaker/{quote(name)}", json.dumps({"set": to})
        return await self._with_siblings(merged.breaker, told, target, body)


class PrivateDesk(AdminDesk):
    """A worker's own door, for its siblings: without a key, and for this worker alone."""

    def __init__(
        self,
        current: Current,
        settings: ServerSettings,
        clock: Clock,
        keeper: Crew,
        bounds: Bounds = BOUNDS,
    ) -> None:
        super().__init__(current, settings, clock, Secret(""), None, bounds)
        self._keeper = keeper

    async def _allow(self, call: Incoming, route: Route | None) -> str:
        """Who can open the socket is this user; the sibling that was asked tells the audit."""
        return ""

    async def _exposition(self, admin: Admin) -> bytes:
        def tell() -> bytes:
            figures = admin.figures()
            self._keeper.keep(figures)
            return figures

        return await asyncio.to_thread(tell)


def _name(credential: Credential, principal: Principal) -> str:
    """The public part of a key of ours; of a foreign one its name."""
    return f"gk_{credential.id}" if credential.id is not None else principal.key_id


def _verb(who: str, handler: str, name: str, told: Answer) -> Act | None:
    """What the audit log is told of what was done; keys tell it in their own transaction.

    A drain is told before.
    """
    match handler:
        case "reload":
            result = "refused: it has mistakes" if told["problem"] else "ok"
            return Act(who, "reload", str(told["config"]), result)
        case "breaker":
            return Act(who, "breaker", name, f"ok, {told['set']}")
        case _:
            return None
