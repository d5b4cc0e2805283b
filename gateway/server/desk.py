"""What both ports share: a name for each request, and the boundary where failures are spelled."""

import asyncio
from abc import ABC, abstractmethod
from email.utils import formatdate
from http import HTTPStatus
from os import urandom

from gateway.clock import Clock
from gateway.core.attempt import Exchange
from gateway.core.events import RequestEnded
from gateway.core.snapshot import ServerSettings
from gateway.errors import GatewayError, Overloaded
from gateway.server.connection import Bounds, Connection
from gateway.server.doors import Current
from gateway.server.incoming import Incoming
from gateway.server.lane import Asked, Payload
from gateway.server.reply import Outgoing
from gateway.server.routes import Table
from gateway.wire import json

BOUNDS = Bounds()
DRAWN = 2048  # bytes of chance asked for at once: 256 names


class Names:
    """Names of requests that sort by time: stores append where others would touch every page."""

    __slots__ = ("_at", "_chance")

    def __init__(self) -> None:
        self._chance = ""  # hex digits; the kernel is asked for many at once
        self._at = 0

    def make(self, now: float) -> str:
        """`now` is epoch seconds; 12 hex digits of milliseconds, 16 of chance."""
        at = self._at
        if at == len(self._chance):
            self._chance = urandom(DRAWN).hex()
            at = 0
        self._at = at + 16
        return f"req_{int(now * 1000):012x}{self._chance[at : at + 16]}"


class Desk(ABC):
    """A `Port` for its connections; a port of its own says what it serves in `walk`.

    Args:
        current: where the doors of the day are found.
        settings: the bounds of the file.
        clock: the time.
        table: its routes.
        bounds: what a connection may take.
    """

    def __init__(
        self,
        current: Current,
        settings: ServerSettings,
        clock: Clock,
        table: Table,
        bounds: Bounds = BOUNDS,
    ) -> None:
        self.current = current
        self.settings = settings
        self.clock = clock
        self.bounds = bounds
        self.table = table
        self.draining = False
        self.lane = settings.lane
        self.connections: set[Connection] = set()
        self.most_body = settings.max_body
        self._names = Names()
        self._second = 0
        self._date = ""

    @abstractmethod
    async def walk(self, message: Asked, call: Incoming, reply: Outgoing) -> None:
        """Answer a request whose head is here, or raise."""

    def date(self) -> str:
        second = int(self.clock.now())
        if second != self._second:
            self._second = second
            self._date = formatdate(second, usegmt=True)
        return self._date

    async def answer(self, connection: Connection, message: Asked, payload: Payload) -> bool:
        """One request. It ends as an answer, an error, an error event, or a caller who left."""
        clock = self.clock
        call = Incoming(
            connection, payload, self._names.make(clock.now()), clock.monotonic(), self.most_body
        )
        reply = Outgoing(connection, message, payload, clock, call.id)
        try:
            await self.walk(message, call, reply)
            if not reply.finished:
                reply.fail(_mistake())
        except GatewayError as error:
            reply.fail(error)
        except asyncio.CancelledError:
            if not connection.evicted or connection.gone:
                reply.drop()
                raise
            reply.fail(_shut_down())
        except Exception as bug:  # noqa: BLE001 - the boundary: nobody above could answer
            _report(bug)
            reply.fail(_mistake())
        return not reply.close

    def refuse(self, connection: Connection, error: GatewayError) -> None:
        """Say what is wrong with bytes that are no request; the connection ends after it."""
        error.request_id = self._names.make(self.clock.now())
        body = json.dumps(error.body())
        lines = "".join(f"{name}: {value}\r\n" for name, value in error.headers().items())
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"date: {self.date()}\r\nx-request-id: {error.request_id}\r\n"
            f"{lines}connection: close\r\n\r\n"
        )
        if not connection.gone:
            connection.send(head.encode() + body)
        exchange = Exchange(error.request_id, "_other", self.clock.monotonic())
        self.say_ended(exchange, error.status, error)

    def say_ended(self, exchange: Exchange, status: int, error: GatewayError | None) -> None:
        """The event of a request that no road saw."""
        exchange.status = status
        exchange.error = error
        exchange.finished = error is None
        exchange.ended = self.clock.monotonic()
        self.current.doors.heard(RequestEnded(exchange, self.clock.now()))


def _shut_down() -> Overloaded:
    return Overloaded(
        "server_shutdown: this gateway is being stopped. Send the request again.",
        code="draining",
        retry_after=1.0,
    )


def _mistake() -> GatewayError:
    return GatewayError("Something went wrong inside the gateway; it was reported in its log.")


def _report(bug: Exception) -> None:
    """To the log by way of the loop; what formats it leaves out what must not be told."""
    asyncio.get_running_loop().call_exception_handler(
        {"message": "a request met a mistake of ours", "exception": bug}
    )
