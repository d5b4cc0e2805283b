"""The sockets to the providers, over aiohttp's connection pool and parser.

Its session, request and response objects are left out: cookies, redirects, proxies, retries and
timeouts would have to be switched off one by one, and a task a request writes what one write can;
without them a request costs 40 % less. A `Watchdog` has the only clock.

Two pools: one dials public addresses only, one those of targets with `allow_private`, so that no
connection is lent across.
"""

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.http_exceptions import ContentLengthError, HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader
from yarl import URL

from gateway.clock import Clock, Deadline
from gateway.core.ports import UpstreamRequest
from gateway.core.target import Cause, Failed, Failure, Timeouts
from gateway.transport import resolve
from gateway.transport.watchdog import Watchdog

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ConnectionKey
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

KEEPALIVE: Final = 30.0  # seconds a connection may lie idle in the pool
READ_BUFFER: Final = 256 * 1024  # bytes held for a reader that is slow, twice
MOST_ORIGINS: Final = 4096
LONGEST_LINE: Final = 16 * 1024  # of an answer's head
SMALL: Final = 64 * 1024  # a body below it is cheaper copied than sent as a second piece

_NO_TIMEOUTS = aiohttp.ClientTimeout(total=None)
_attempt: ContextVar["_Sending"] = ContextVar("attempt")


class HttpTransport:
    """Connections are kept for all targets, over reloads too; `close` it at the end."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._public: _Connector | None = None
        self._private: _Connector | None = None
        self._origins: dict[str, _Origin] = {}
        self._closed = False

    def send(
        self, request: UpstreamRequest, timeouts: Timeouts, seconds: float, deadline: Deadline
    ) -> "_Sending":
        """See `gateway.core.ports.Transport`. Enter and leave it in the same task."""
        return _Sending(self, request, timeouts, seconds, deadline)

    async def close(self) -> None:
        """Close every connection; what is under way fails."""
        self._closed = True
        for pool in (self._public, self._private):
            if pool is not None:
                await pool.close()
        self._public = self._private = None

    def pool(self, request: UpstreamRequest) -> "_Connector":
        """The connections it may use; made when first needed, in the running loop."""
        allow_private = request.allow_private
        pool = self._private if allow_private else self._public
        if pool is None:
            if self._closed:
                raise Failed(Failure(Cause.CONNECT, "the transport is closed"))
            if allow_private:
                pool = self._private = _Connector()
            else:
                pool = self._public = _PublicConnector()
        return pool

    def origin(self, url: str) -> "_Origin":
        """Parsed once; there are as many as targets."""
        origin = self._origins.get(url)
        if origin is None:
            if len(self._origins) >= MOST_ORIGINS:
                self._origins.clear()
            try:
                origin = self._origins[url] = _Origin(url)
            except (ValueError, aiohttp.InvalidURL):
                raise Failed(Failure(Cause.CONNECT, "its address cannot be dialled")) from None
        return origin


class _Origin(ClientRequest):
    """Where a URL leads: all that the pool wants to know of a request, made once."""

    def __init__(self, url: str) -> None:
        parsed = URL(url, encoded=True)
        if parsed.scheme not in {"http", "https"}:
            raise ValueError("neither http nor https")
        super().__init__("POST", parsed, loop=asyncio.get_running_loop())
        self._key = super().connection_key
        self.path = self.url.raw_path_qs
        self.authority = self.headers["host"]

    @property
    def connection_key(self) -> "ConnectionKey":
        return self._key

    def head(self, request: UpstreamRequest) -> bytes:
        """The request's head; a line break in a header would be another header."""
        lines = [f"{name}: {value}" for name, value in request.headers.items()]
        if request.body or request.method == "POST":
            lines.append(f"content-length: {len(request.body)}")
        head = "\r\n".join(
            (f"{request.method} {self.path} HTTP/1.1", f"host: {self.authority}", *lines, "\r\n")
        )
        if head.count("\n") != len(lines) + 3 or head.count("\r") != len(lines) + 3:
            raise Failed(Failure(Cause.CONNECT, "a header of ours has a line break"))
        return head.encode()


class _Handler(ResponseHandler):
    """Knows whether anything came since a request was sent over it."""

    heard = False

    def data_received(self, data: bytes) -> None:
        self.heard = True
        super().data_received(data)


class _Connector(aiohttp.TCPConnector):
    """Tells the attempt how its connection came about."""

    def __init__(self, resolver: AbstractResolver | None = None) -> None:
        super().__init__(limit=0, keepalive_timeout=KEEPALIVE, ttl_dns_cache=10, resolver=resolver)
        loop = asyncio.get_running_loop()
        self._factory = lambda: _Handler(loop)  # type: ignore[assignment]

    async def _get(self, key: "ConnectionKey", traces: list["Trace"]) -> "Connection | None":
        attempt = _attempt.get()
        if attempt.fresh:
            return None
        connection = await super()._get(key, traces)
        attempt.reused = connection is not None
        return connection


class _PublicConnector(_Connector):
    def __init__(self) -> None:
        super().__init__(resolve.PublicResolver())

    async def _resolve_host(self, host: str, port: int, traces: Any = None) -> list[ResolveResult]:
        """Also what needs no resolving: an address in the URL."""
        return resolve.refuse_private(await super()._resolve_host(host, port, traces))


class _Sending:
    """One attempt: the context of `send`, and the reply it gives."""

    __slots__ = (
        "_connection", "_content", "_dog", "_handler", "_limits", "_request", "_socket",
        "_timeouts", "_transport", "fresh", "headers", "reused", "status",
    )  # fmt: skip

    def __init__(
        self,
        transport: HttpTransport,
        request: UpstreamRequest,
        timeouts: Timeouts,
        seconds: float,
        deadline: Deadline,
    ) -> None:
        self._transport = transport
        self._request = request
        self._timeouts = timeouts
        self._limits = (seconds, deadline)
        self._handler: _Handler | None = None
        self._socket: asyncio.Transport | None = None
        self._connection: Connection | None = None  # ours until the last byte is here
        self._content: StreamReader | None = None
        self.fresh = False  # no pooled connection this time
        self.reused = False
        self.status = 0
        self.headers: Mapping[str, str] = {}

    async def __aenter__(self) -> Self:
        request, transport = self._request, self._transport
        origin, pool = transport.origin(request.url), transport.pool(request)
        head = origin.head(request)
        seconds, deadline = self._limits
        self._dog = Watchdog(
            transport.clock, self._timeouts, seconds, deadline, stream=request.stream
        )
        token = _attempt.set(self)
        try:
            try:
                message, content = await self._ask(pool, origin, head)
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                if not self._was_stale():
                    raise
                # The pool lent a connection that was dead already: that is nobody's failure.
                self._abort()
                self.fresh = True
                self._dog.dialling()
                message, content = await self._ask(pool, origin, head)
        except BaseException as error:  # noqa: BLE001 - cancellation may be the watchdog's
            raise self._ended(error, before_head=True) from None
        finally:
            _attempt.reset(token)
        self._content = content
        self.status = message.code
        self.headers = headers = {k.lower(): v for k, v in message.headers.items()}
        content.on_eof(self._give_back)
        if headers.get("content-encoding", "identity") != "identity":
            self._abort()
            self._dog.stop()
            raise Failed(Failure(Cause.MALFORMED, "answered compressed, which was not asked for"))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._dog.stop()
        self._abort()
        failure = self._dog.settle(error)
        if failure is not None:
            raise Failed(failure) from None

    async def read(self, limit: int) -> bytes:
        """See `gateway.core.ports.UpstreamReply`."""
        told = self.headers.get("content-length", "")
        if told.isdigit() and int(told) > limit:
            raise self._too_long(limit)
        parts: list[bytes] = []
        size = 0
        async for part in self.chunks():
            parts.append(part)
            size += len(part)
            if size > limit:
                raise self._too_long(limit)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def chunks(self) -> "_Chunks":
        """See `gateway.core.ports.UpstreamReply`."""
        return _Chunks(self)

    def progressed(self) -> None:
        self._dog.progressed()

    def ending(self, seconds: float) -> None:
        self._dog.ending(seconds)

    async def more(self) -> bytes:
        """What the next read brings; b"" at the end."""
        content, dog = self._content, self._dog
        if content is None:
            raise RuntimeError("a reply is read inside its context")
        dog.waits()
        try:
            return await content.readany()
        except BaseException as error:  # noqa: BLE001 - cancellation may be the watchdog's
            raise self._ended(error, before_head=False) from None
        finally:
            dog.rests()

    async def _ask(
        self, pool: "_Connector", origin: "_Origin", head: bytes
    ) -> tuple[RawResponseMessage, StreamReader]:
        """Dial, send, and wait for the head."""
        connection = self._connection = await pool.connect(origin, [], _NO_TIMEOUTS)
        self._dog.connected()
        handler, socket = connection.protocol, connection.transport
        if not isinstance(handler, _Handler) or socket is None or socket.is_closing():
            raise aiohttp.ClientConnectionResetError
        self._handler, self._socket = handler, socket
        handler.heard = False
        handler.set_response_params(
            read_until_eof=True,
            auto_decompress=False,
            read_bufsize=READ_BUFFER,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_LINE,
        )
        body = self._request.body
        if len(body) < SMALL:
            socket.write(head + body)
        else:
            socket.writelines((head, body))
        while True:
            message, content = await handler.read()
            if not 100 <= message.code < 200:
                return message, content

    def _give_back(self) -> None:
        """The last byte is here: the pool may lend the connection to others, if all was sent."""
        connection, socket = self._connection, self._socket
        self._connection = self._socket = None
        if connection is not None:
            if socket is not None and socket.get_write_buffer_size():
                connection.close()
            else:
                connection.release()

    def _was_stale(self) -> bool:
        """Whether the connection came from the pool and not a byte came over it."""
        return self.reused and self._handler is not None and not self._handler.heard

    def _too_long(self, limit: int) -> Failed:
        self._abort()
        return Failed(Failure(Cause.MALFORMED, f"answered more than {limit} bytes"))

    def _ended(self, error: BaseException, *, before_head: bool) -> BaseException:
        """What leaves instead of `error`: nothing of a library's."""
        self._abort()
        if before_head:
            self._dog.stop()
        failure = self._dog.settle(error)
        if failure is not None:
            return Failed(failure)
        if isinstance(error, Failed | asyncio.CancelledError):
            return error
        told = failed_dialling(error) if before_head else failed_reading(error, self._request)
        return Failed(told) if told is not None else error

    def _abort(self) -> None:
        """Cut the socket in this very turn of the loop, whatever waits in its buffers.

        Nothing happens when the connection has gone back to the pool.
        """
        connection, socket = self._connection, self._socket
        self._connection = self._socket = None
        if socket is not None:
            socket.abort()
        if connection is not None:
            connection.close()


class _Chunks:
    """The body as it comes: one read, one chunk."""

    __slots__ = ("_reply",)

    def __init__(self, reply: _Sending) -> None:
        self._reply = reply

    def __aiter__(self) -> "_Chunks":
        return self

    async def __anext__(self) -> bytes:
        data = await self._reply.more()
        if not data:
            raise StopAsyncIteration
        return data


# ------------------------------------------------- aiohttp's exceptions, translated here only


def failed_dialling(error: BaseException) -> Failure | None:
    """What an exception before the head means; None: it is a mistake of ours."""
    for kinds, cause, message in _DIALLING:
        if isinstance(error, kinds):
            refused = isinstance(error.__cause__, resolve.AddressRefused)
            return Failure(
                cause, "its address is not public (allow_private)" if refused else message
            )
    return None


_DIALLING: Final[tuple[tuple[tuple[type[BaseException], ...], Cause, str], ...]] = (
    ((aiohttp.ClientConnectorDNSError,), Cause.CONNECT, "its name was not found"),
    ((aiohttp.ClientSSLError,), Cause.CONNECT, "TLS failed"),
    ((aiohttp.ClientConnectorError,), Cause.CONNECT, "no connection"),
    (
        (aiohttp.ClientConnectionError, OSError),
        Cause.CONNECT,
        "the connection closed before an answer",
    ),
    ((aiohttp.InvalidURL,), Cause.CONNECT, "its address cannot be dialled"),
    (
        (aiohttp.ClientResponseError, aiohttp.ClientPayloadError, HttpProcessingError),
        Cause.MALFORMED,
        "answered no HTTP",
    ),
)


def failed_reading(error: BaseException, request: UpstreamRequest) -> Failure | None:
    """What an exception after the head means; None: it is a mistake of ours."""
    if (
        isinstance(error, aiohttp.ClientPayloadError)
        and isinstance(error.__cause__, ContentLengthError)
        and not request.stream
    ):
        return Failure(Cause.MALFORMED, "answered with a wrong length")
    if isinstance(error, aiohttp.ClientError | HttpProcessingError | OSError):
        return Failure(Cause.CUT_STREAM, "the answer was cut off")
    return None
