"""One caller's connection: aiohttp's parser and nothing else of it, so every byte is ours to say.

What aiohttp's own handler lacks: a clock on heads, errors in our shape, a caller that is gone
noticed in the same turn, and no task, request or response object a request.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import HttpRequestParser
from aiohttp.http_writer import HttpVersion10, HttpVersion11
from aiohttp.streams import StreamReader
from aiohttp.tcp_helpers import tcp_keepalive

from gateway.clock import Clock
from gateway.errors import GatewayError, InvalidRequest, Overloaded, SlowRequest
from gateway.pipeline.backoff import spread
from gateway.server.lane import LONGEST, MOST_HEADERS, Asked, Body, Payload, cut

HELD_PIPELINED = 8  # requests parsed ahead of the one being answered
READ_AHEAD = 2**18  # bytes of a body held before reading pauses (at twice as many)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one connection may take: bytes and seconds."""

    line: int = LONGEST  # of the request line, and of one header
    headers: int = MOST_HEADERS
    head: float = 10.0  # until a head is complete
    keepalive: float = 75.0  # idle between requests
    body: float = 30.0  # until a body is complete
    body_grace: float = 5.0  # before the rate counts
    body_rate: int = 1024  # bytes a second
    blocked: float = 30.0  # a caller that takes nothing
    linger: float = 2.0  # after an answer to a body we did not read
    low_water: int = 32 * 1024
    high_water: int = 64 * 1024  # buffered before writes wait


Item = tuple[Asked, Payload] | GatewayError


class Port(Protocol):
    """What a connection belongs to."""

    bounds: Bounds
    clock: Clock
    draining: bool
    lane: bool  # whether whole requests take the fast lane
    connections: set["Connection"]

    def date(self) -> str:
        """The Date header of this second."""
        ...

    async def answer(self, connection: "Connection", message: Asked, payload: Payload) -> bool:
        """Answer one request; whether the connection may be kept."""
        ...

    def refuse(self, connection: "Connection", error: GatewayError) -> None:
        """Answer what is no request, and close."""
        ...


class Connection(BaseProtocol):
    """Requests in, in order; one task walks them all."""

    __slots__ = (
        "_alarm", "_arrived", "_cancelled", "_deaf", "_due", "_full", "_half_since", "_items",
        "_lane", "_last", "_payload", "_port", "_task", "_wake", "address", "busy", "evicted",
    )  # fmt: skip

    def __init__(self, port: Port, loop: asyncio.AbstractEventLoop, *, full: bool = False) -> None:
        bounds = port.bounds
        parser = HttpRequestParser(
            self,
            loop,
            READ_AHEAD,
            max_line_size=bounds.line,
            max_field_size=bounds.line,
            max_headers=bounds.headers,
            auto_decompress=False,
            max_msg_queue_size=HELD_PIPELINED,
        )
        super().__init__(loop, parser)
        self._port = port
        self._items: deque[Item] = deque()
        self._payload: StreamReader | None = None  # of the last head that came
        self._task: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._alarm: Callable[[], None] | None = None  # cancels the timer
        self._due = 0.0
        self._lane = port.lane and bounds.line >= LONGEST and bounds.headers >= MOST_HEADERS
        self._full = full  # too many connections: this one is told so
        self._half_since: float | None = None  # when an unfinished head began
        self._arrived = False  # whether any byte came
        self._deaf = False  # nothing that comes is read any more
        self._cancelled = False
        self._last = False  # the connection ends after what is being answered
        self.busy = False  # a request is being answered
        self.evicted = False  # cancelled by us, not by the caller
        self.address = ""

    # --- what the socket says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        port = self._port
        if self.transport is not None:
            self.transport.set_write_buffer_limits(
                high=port.bounds.high_water, low=port.bounds.low_water
            )
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else "local"
        port.connections.add(self)
        tcp_keepalive(cast("asyncio.Transport", transport))
        if self._full:
            self._deaf = True
            self._items.append(
                Overloaded(
                    "This gateway process has too many connections or files open to take another"
                    " connection. Come back in 1 s.",
                    retry_after=spread(1.0),
                )
            )
            self._go()
            return
        self._arm(port.clock.monotonic() + port.bounds.head)

    def data_received(self, data: bytes) -> None:
        if self._deaf or self._parser is None:
            return
        if self._lane and not self.busy and not self._items and self._half_since is None:
            payload = self._payload
            if payload is None or payload.is_eof():
                whole = cut(data)
                if whole is not None:
                    self._items.append(whole)
                    self._go()
                    return
        try:
            messages, upgraded, _ = self._parser.feed_data(data)
        except HttpProcessingError as error:
            self._broken(error)
            return
        if upgraded:  # to what we do not speak: answered as if not asked for, and the last
            self._deaf = self._last = True
        if messages:
            self._half_since = None
            self._payload = messages[-1][1]
            self._items.extend(messages)
            self._go()
        elif data.strip() and (self._payload is None or self._payload.is_eof()):
            self._half_a_head()
        if len(self._items) >= HELD_PIPELINED and not self._buffer_paused:
            self._pause_reading_for_buffer()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's
        """Of a body that was not held up there is nothing to resume: most are whole at once."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def eof_received(self) -> None:
        """The caller closed its half: it has left (documented), whatever it still could read."""
        if self.busy or self._items:
            self._leave()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._deaf = True
        self._port.connections.discard(self)
        super().connection_lost(exc)
        if self._alarm is not None:
            self._alarm()
            self._alarm = None
        self._cancel()
        self._parser = None

    # --- what the server does with it

    @property
    def gone(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    @property
    def clock(self) -> Clock:
        return self._port.clock

    @property
    def bounds(self) -> Bounds:
        return self._port.bounds

    @property
    def may_keep(self) -> bool:
        """Whether another request may follow on this connection."""
        return not (self._last or self._port.draining)

    def date(self) -> str:
        return self._port.date()

    def send(self, data: bytes) -> None:
        """Hand bytes to the socket.

        Raises:
            asyncio.CancelledError: the caller is gone.
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            raise asyncio.CancelledError
        transport.write(data)

    async def flushed(self) -> None:
        """Until the socket takes bytes again; a caller that takes none for long is cut off.

        Raises:
            asyncio.CancelledError: the caller is gone.
        """
        cancel = self._watch_blocked()
        try:
            while self.writing_paused:
                await self._drain_helper()
        except ConnectionError:
            raise asyncio.CancelledError from None
        finally:
            cancel[0]()

    def evict(self) -> None:
        """End what is being answered: the drain has no time left."""
        if self.busy:
            self.evicted = True
            self._cancel()
        else:
            self.retire()

    def retire(self) -> None:
        """Close as soon as nothing is being answered."""
        self._last = True
        if not self.busy and not self._items:
            self._close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    # --- inside

    def _leave(self) -> None:
        self._deaf = True
        self.abort()
        self._cancel()

    def _cancel(self) -> None:
        """Once only: what cleans up after the first must not be cancelled by a second."""
        if self._task is not None and not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    def _go(self) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._serve())
        elif self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _serve(self) -> None:
        """Answer what comes, in order, until the connection ends."""
        try:
            while True:
                if not self._items:
                    self._wake = self._loop.create_future()
                    try:
                        await self._wake
                    finally:
                        self._wake = None
                if not await self._answer_next():
                    return
        except asyncio.CancelledError:
            self._deaf = True
            self.abort()
        except BaseException:
            self.abort()
            raise

    async def _answer_next(self) -> bool:
        """One request, which is here; whether another may follow."""
        item = self._items.popleft()
        if isinstance(item, GatewayError):
            self._port.refuse(self, item)
            self._hang_up()
            return False
        message, payload = item
        if not isinstance(payload, Body):
            if self._parser is not None:
                self._parser.message_consumed()
            if self._buffer_paused:
                self._read_on()
        if message.version is not HttpVersion11 and message.version != HttpVersion10:
            self._port.refuse(self, InvalidRequest("HTTP/1.1 is spoken here, and HTTP/1.0."))
            self._hang_up()
            return False
        self.busy = True
        keep = await self._port.answer(self, message, payload)
        self.busy = False
        if self._paused:
            await self.flushed()
        if not payload.is_eof():
            self._hang_up()
            return False
        if not keep or (self._last and not self._items):
            self._close()
            return False
        self._arrived = True
        if not self._items:
            port = self._port
            self._due = port.clock.monotonic() + port.bounds.keepalive
        return True

    def _read_on(self) -> None:
        """Requests left the queue: parse on, read on."""
        if len(self._items) <= HELD_PIPELINED // 2:
            self.data_received(b"")
            if len(self._items) < HELD_PIPELINED:
                self._resume_reading_for_buffer()

    def _broken(self, error: HttpProcessingError) -> None:
        """What came is not HTTP. A library's text may quote it: ours does not."""
        self._deaf = True
        bounds = self._port.bounds
        if isinstance(error, LineTooLong):
            message = f"The request line or a header is longer than {bounds.line} bytes."
        elif "Too many headers" in str(error.message):
            message = f"The request has more than {bounds.headers} headers."
        else:
            message = "This is not a valid HTTP/1.1 request."
        refusal = InvalidRequest(message)
        payload = self._payload
        if payload is not None and not payload.is_eof():
            payload.set_exception(InvalidRequest("The body is not what its headers say."))
            self._last = True
            return
        self._items.append(refusal)
        self._go()

    def _half_a_head(self) -> None:
        """Part of a head came: from now on it has `head` seconds."""
        if self._half_since is None:
            self._half_since = self._port.clock.monotonic()
            if self._arrived and not self.busy:
                self._arm(self._half_since + self._port.bounds.head)
        self._arrived = True

    def _arm(self, due: float) -> None:
        if self._alarm is not None:
            self._alarm()
        self._due = due
        self._alarm = self._port.clock.call_at(due, self._ring)

    def _ring(self) -> None:
        """The one timer of the connection; it looks what is due, and sets itself again."""
        self._alarm = None
        if self._deaf or self.transport is None:
            return
        now = self._port.clock.monotonic()
        bounds = self._port.bounds
        if self.busy or self._items:
            self._arm(now + bounds.head)
            return
        due = self._due
        if self._half_since is not None:
            due = self._half_since + bounds.head
        if now < due:
            self._arm(due)
        elif self._half_since is None:
            self._close()
        else:
            self._deaf = True
            self._items.append(
                SlowRequest(f"The head of the request did not arrive within {bounds.head:g} s.")
            )
            self._go()

    def _watch_blocked(self) -> list[Callable[[], None]]:
        """A timer that cuts the caller off when its buffer did not shrink; [its cancel]."""
        clock, seconds = self._port.clock, self._port.bounds.blocked
        held = [self.transport.get_write_buffer_size() if self.transport else 0]
        cancel: list[Callable[[], None]] = []

        def look() -> None:
            left = self.transport.get_write_buffer_size() if self.transport else 0
            if left >= held[0]:
                self.abort()
                return
            held[0] = left
            cancel[0] = clock.call_at(clock.monotonic() + seconds, look)

        cancel.append(clock.call_at(clock.monotonic() + seconds, look))
        return cancel

    def _close(self) -> None:
        """Close once what was handed over is out; a caller who never takes it is cut off."""
        self._deaf = True
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size():
            self._abort_after(self._port.bounds.blocked)
        transport.close()

    def _abort_after(self, seconds: float) -> None:
        if self._alarm is not None:
            self._alarm()
        clock = self._port.clock
        self._alarm = clock.call_at(clock.monotonic() + seconds, self.abort)

    def _hang_up(self) -> None:
        """Close towards a caller that may still be sending, so that it can read our answer.

        Closing at once would answer its next bytes with a reset, and that could overtake us.
        """
        self._deaf = True
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self._reading_paused or self._buffer_paused:
            self._reading_paused = self._buffer_paused = False
            self._resume_transport_reading()
        if transport.can_write_eof():
            transport.write_eof()
        self._abort_after(self._port.bounds.linger)
