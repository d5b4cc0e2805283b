"""An answer on the caller's socket: once begun it cannot be taken back.

One write for a whole answer, one for the head and the first events of a stream, one for each
batch after it. A stream that is silent gets comments; the timer for them is re-armed lazily.
"""

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

from aiohttp.http_writer import HttpVersion11

from gateway.clock import Clock
from gateway.core.attempt import StreamEvent
from gateway.core.ports import Voice
from gateway.errors import GatewayError
from gateway.server.connection import Connection
from gateway.server.lane import Asked, Payload
from gateway.wire import json

EVENT_STREAM = "text/event-stream"
KEEPALIVE = b": keepalive\n\n"
SLICE = 128 * 1024  # bytes handed to the socket before looking whether it takes them
COPIED = 64 * 1024  # a longer body is written beside its head instead of behind it
LAST_CHUNK = b"0\r\n\r\n"

_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_NOTHING: Mapping[str, str] = {}


class Outgoing:
    """The `Reply` of one request, and the edge's `fail` and `whole`."""

    __slots__ = (
        "_alarm", "_chunked", "_clock", "_connection", "_early", "_headers", "_keepalive",
        "_message", "_parts", "_payload", "_spoken", "_stream", "_voice", "begun", "close",
        "finished", "id", "status",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        message: Asked,
        payload: Payload,
        clock: Clock,
        id: str,
    ) -> None:
        self._connection = connection
        self._message = message
        self._payload = payload
        self._clock = clock
        self._voice: Voice | None = None
        self._stream = False
        self._chunked = False
        self._headers = _NOTHING
        self._early: Callable[[], Mapping[str, str]] | None = None
        self._parts: list[bytes] = []
        self._keepalive = 0.0
        self._spoken = 0.0  # when the caller got the last byte
        self._alarm: Callable[[], None] | None = None
        self.id = id
        self.status = 0
        self.close = message.should_close  # the connection ends after this answer
        self.begun = False  # the head is out
        self.finished = False

    # --- the road's

    def expect(
        self, voice: Voice, keepalive: float, headers: Callable[[], Mapping[str, str]]
    ) -> None:
        self._voice = voice
        self._early = headers
        self._keepalive = keepalive
        if keepalive > 0:
            self._spoken = self._clock.monotonic()
            self._alarm = self._clock.call_at(self._spoken + keepalive, self._silent)

    async def start(self, headers: Mapping[str, str], voice: Voice) -> None:
        self._voice = voice
        self._headers = headers
        self._stream = voice.content_type == EVENT_STREAM

    async def write(self, events: Sequence[StreamEvent]) -> None:
        voice = self._voice
        if voice is None:
            raise RuntimeError("write before start")
        data = voice.say(events[0]) if len(events) == 1 else b"".join(map(voice.say, events))
        if not self._stream:
            self._parts.append(data)
            return
        if not data:
            return
        if len(data) > SLICE:
            await self._in_slices(data)
            return
        self._say(data)
        if self._connection.writing_paused:
            await self._connection.flushed()

    async def finish(self, note: bytes) -> None:
        voice = self._voice
        if voice is None:
            raise RuntimeError("finish before start")
        end = voice.close(note)
        if self._stream:
            self._end(end)
            return
        body = (
            self._parts[0] if len(self._parts) == 1 and not end else b"".join([*self._parts, end])
        )
        self.whole(200, body, self._headers, voice.content_type)

    def accepted(self, headers: Mapping[str, str], body: bytes) -> None:
        self.whole(202, body, headers)

    # --- the edge's

    def whole(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] = _NOTHING,
        content_type: str = "application/json",
    ) -> None:
        """An answer in one piece.

        Raises:
            asyncio.CancelledError: the caller is gone.
        """
        self._quiet()
        head = self._head(status, content_type, headers, f"content-length: {len(body)}\r\n")
        self.finished = True
        if self._message.method == "HEAD":
            body = b""
        if len(body) <= COPIED:
            self._connection.send(head + body)
        else:
            self._connection.send(head)
            self._connection.send(body)

    def fail(self, error: GatewayError) -> None:
        """Say an error: as the answer, or as the last event of a stream that has begun.

        Raises:
            asyncio.CancelledError: the caller is gone.
        """
        if self.finished:
            return
        error.request_id = self.id
        if self.begun and self._voice is not None:
            self._end(self._voice.interrupted(error))
        else:
            self.whole(error.status, json.dumps(error.body()), error.headers())

    def drop(self) -> None:
        """The caller is gone: no timer stays behind."""
        self._quiet()
        self.finished = True

    # --- inside

    def _head(self, status: int, content_type: str, headers: Mapping[str, str], size: str) -> bytes:
        """Status line and headers. One line a header, whatever is in its value."""
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
            lines = "".join(
                [
                    f"{name}: {value}\r\n"
                    for name, value in headers.items()
                    if value.isprintable() and name.isprintable()
                ]
            )
        if not self._connection.may_keep or not self._payload.is_eof():
            self.close = True
        ending = ""
        if self.close:
            ending = "connection: close\r\n"
        elif self._message.version != HttpVersion11:
            ending = "connection: keep-alive\r\n"
        self.begun = True
        self.status = status
        return (
            f"{_STATUS.get(status) or f'HTTP/1.1 {status} Error' + chr(13) + chr(10)}"
            f"content-type: {content_type}\r\n{size}date: {self._connection.date()}\r\n"
            f"x-request-id: {self.id}\r\n{lines}{ending}\r\n"
        ).encode("utf-8", "replace")

    def _begin(self, headers: Mapping[str, str]) -> bytes:
        """The head of a stream. HTTP/1.0 has no chunks: there the end of the connection ends it."""
        self._chunked = self._message.version == HttpVersion11
        if not self._chunked:
            self.close = True
        size = "transfer-encoding: chunked\r\n" if self._chunked else ""
        size += "cache-control: no-cache\r\nx-accel-buffering: no\r\n"
        return self._head(200, EVENT_STREAM, headers, size)

    def _say(self, data: bytes) -> None:
        if self.begun:
            if self._chunked:
                data = b"%x\r\n%b\r\n" % (len(data), data)
        else:
            head = self._begin(self._headers)
            data = b"%b%x\r\n%b\r\n" % (head, len(data), data) if self._chunked else head + data
        if self._alarm is not None:
            self._spoken = self._clock.monotonic()
        self._connection.send(data)

    async def _in_slices(self, data: bytes) -> None:
        for at in range(0, len(data), SLICE):
            self._say(data[at : at + SLICE])
            if self._connection.writing_paused:
                await self._connection.flushed()

    def _end(self, data: bytes) -> None:
        self._quiet()
        head = b"" if self.begun else self._begin(self._headers)
        self.finished = True
        if self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            self._connection.send(head + chunk + LAST_CHUNK)
        elif head or data:
            self._connection.send(head + data)

    def _silent(self) -> None:
        """`keepalive` seconds have passed since the timer was set: has the caller heard nothing?"""
        self._alarm = None
        connection = self._connection
        if self.finished or connection.gone:
            return
        now = self._clock.monotonic()
        if now - self._spoken >= self._keepalive:
            self._spoken = now
            if not connection.writing_paused:
                self._comment()
        self._alarm = self._clock.call_at(self._spoken + self._keepalive, self._silent)

    def _comment(self) -> None:
        head = b""
        if not self.begun:
            head = self._begin(self._early() if self._early is not None else _NOTHING)
            self._stream = True
        if self._chunked:
            self._connection.send(head + b"%x\r\n%b\r\n" % (len(KEEPALIVE), KEEPALIVE))
        else:
            self._connection.send(head + KEEPALIVE)

    def _quiet(self) -> None:
        if self._alarm is not None:
            self._alarm()
            self._alarm = None
