"""The sockets to the providers, over aiohttp's client.

Two pools: one dials public addresses only, one those of targets with `allow_private`, so that no
connection is lent across. aiohttp's own timeouts are all off: a `Watchdog` has the only clock.
"""

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
from aiohttp import payload
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import ContentLengthError, HttpProcessingError
from yarl import URL

from gateway.clock import Clock, Deadline
from gateway.core.ports import UpstreamRequest
from gateway.core.target import Cause, Failed, Failure, Timeouts
from gateway.transport import resolve
from gateway.transport.watchdog import Watchdog

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ClientRequest, ConnectionKey
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

KEEPALIVE: Final = 30.0  # seconds a connection may lie idle in the pool
READ_BUFFER: Final = 256 * 1024  # bytes held for a reader that is slow, twice
MOST_URLS: Final = 4096

_NO_TIMEOUTS = aiohttp.ClientTimeout(total=None)
_attempt: ContextVar["_Sending"] = ContextVar("attempt")


class HttpTransport:
    """Connections are kept for all targets, over reloads too; `close` it at the end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._public: aiohttp.ClientSession | None = None
        self._private: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}
        self._closed = False

    def send(
        self, request: UpstreamRequest, timeouts: Timeouts, seconds: float, deadline: Deadline
    ) -> "_Sending":
        """See `gateway.core.ports.Transport`. Enter and leave it in the same task."""
        return _Sending(self, request, timeouts, seconds, deadline)

    async def close(self) -> None:
        """Close every connection; what is under way fails."""
        self._closed = True
        for session in (self._public, self._private):
            if session is not None:
                await session.close()
        self._public = self._private = None

    @property
    def clock(self) -> Clock:
        return self._clock

    def session(self, *, allow_private: bool) -> aiohttp.ClientSession:
        """The pool for such addresses; made when it is first needed, in the running loop."""
        session = self._private if allow_private else self._public
        if session is None:
            if self._closed:
                raise Failed(Failure(Cause.CONNECT, "the transport is closed"))
            session = _session(_Connector() if allow_private else _PublicConnector())
            if allow_private:
                self._private = session
            else:
                self._public = session
        return session

    def url(self, text: str) -> URL:
        """Parsed once; there are as many as targets."""
        url = self._urls.get(text)
        if url is None:
            if len(self._urls) >= MOST_URLS:
                self._urls.clear()
            url = self._urls[text] = URL(text, encoded=True)
        return url


def _session(connector: "_Connector") -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        timeout=_NO_TIMEOUTS,
        trust_env=False,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=READ_BUFFER,
        max_line_size=16 * 1024,
        max_field_size=16 * 1024,
    )


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

    async def connect(
        self,
        req: "ClientRequest",
        traces: list["Trace"],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> "Connection":
        connection = await super().connect(req, traces, timeout)
        _attempt.get().dialled(connection)
        return connection

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


class _Body(payload.BytesPayload):
    """Bytes of any size: aiohttp's own warns above 1 MiB, where it is already too late."""

    def __init__(self, value: bytes) -> None:
        payload.Payload.__init__(self, value, content_type="application/json")
        self._size = len(value)


class _Sending:
    """One attempt: the context of `send`, and the reply it gives."""

    __slots__ = (
        "_dog", "_handler", "_limits", "_request", "_response", "_socket", "_timeouts",
        "_transport", "fresh", "headers", "reused", "status",
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
        self._response: aiohttp.ClientResponse | None = None
        self.fresh = False  # no pooled connection this time
        self.reused = False
        self.status = 0
        self.headers: Mapping[str, str] = {}

    def dialled(self, connection: "Connection") -> None:
        """The connector has a connection for us."""
        self._socket = connection.transport
        handler = connection.protocol
        if isinstance(handler, _Handler):
            handler.heard = False
            self._handler = handler
        self._dog.connected()

    async def __aenter__(self) -> Self:
        request, transport = self._request, self._transport
        session = transport.session(allow_private=request.allow_private)
        seconds, deadline = self._limits
        self._dog = Watchdog(
            transport.clock, self._timeouts, seconds, deadline, stream=request.stream
        )
        token = _attempt.set(self)
        try:
            try:
                response = await self._ask(session)
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                if not self._was_stale():
                    raise
                # The pool lent a connection that was dead already: that is nobody's failure.
                self.fresh = True
                self._dog.dialling()
                response = await self._ask(session)
        except BaseException as error:  # noqa: BLE001 - cancellation may be the watchdog's
            raise self._ended(error, before_head=True) from None
        finally:
            _attempt.reset(token)
        self._response = response
        self.status = response.status
        self.headers = headers = {k.lower(): v for k, v in response.headers.items()}
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
        dog = self._dog
        dog.stop()
        response = self._response
        if response is not None and response.connection is not None:
            self._abort()
        failure = dog.settle(error)
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
        response, dog = self._response, self._dog
        if response is None:
            raise RuntimeError("a reply is read inside its context")
        dog.waits()
        try:
            return await response.content.readany()
        except BaseException as error:  # noqa: BLE001 - cancellation may be the watchdog's
            raise self._ended(error, before_head=False) from None
        finally:
            dog.rests()

    async def _ask(self, session: aiohttp.ClientSession) -> aiohttp.ClientResponse:
        request = self._request
        return await session.request(
            request.method,
            self._transport.url(request.url),
            data=_Body(request.body) if request.body else None,
            headers=request.headers,
            allow_redirects=False,
        )

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
        """Cut the socket in this very turn of the loop, whatever waits in its buffers."""
        if self._socket is not None:
            self._socket.abort()
            self._socket = None
        if self._response is not None:
            self._response.close()


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
