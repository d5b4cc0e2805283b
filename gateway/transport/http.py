"""The sockets to the providers, dialled by aiohttp (names, happy eyeballs, TLS).

Its session, request and response objects are left out: cookies, redirects, proxies, retries and
timeouts would have to be switched off one by one, and a task a request writes what one write can;
nor is its pool used, and its parser only for what is unusual (`gateway.transport.line`): a
request costs less than half without them. A `Watchdog` has the only clock.

Two pools: one dials public addresses only, one those of targets with `allow_private`, so that no
connection is lent across.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_reqrep import ClientRequest
from aiohttp.http_exceptions import ContentLengthError, HttpProcessingError
from yarl import URL

from gateway.clock import Clock, Deadline
from gateway.core.ports import UpstreamRequest
from gateway.core.target import Cause, Failed, Failure, Timeouts
from gateway.transport import resolve
from gateway.transport.line import Answer, Line
from gateway.transport.watchdog import Timers, Watchdog

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ConnectionKey

KEEPALIVE: Final = 30.0  # seconds a connection may lie idle in the pool
MOST_ORIGINS: Final = 4096
MOST_BLOCKS: Final = 32  # heads of an origin that are kept spelled

_NO_TIMEOUTS = aiohttp.ClientTimeout(total=None)


class HttpTransport:
    """Connections are kept for all targets, over reloads too; `close` it at the end."""

    def __init__(self, clock: Clock) -> None:
        self.timers = Timers(clock)
        self._loop: asyncio.AbstractEventLoop | None = None
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
        self.timers.close()
        for pool in (self._public, self._private):
            if pool is not None:
                await pool.close_all()
        self._public = self._private = None

    def task(self) -> "asyncio.Task[object]":
        """The one that makes an attempt just now."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("an attempt is made in a task")
        return task

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
        self._pool: _Connector | None = None
        self._idle: list[Line] = []
        self._blocks: dict[int, tuple[Mapping[str, str], str, bytes]] = {}  # by id of the headers

    def idle(self, pool: "_Connector") -> list[Line]:
        """The connections of `pool` that lead here; most origins only ever know one pool."""
        if self._pool is not pool:
            self._pool, self._idle = pool, pool.idle(self)
        return self._idle

    @property
    def connection_key(self) -> "ConnectionKey":
        return self._key

    def head(self, request: UpstreamRequest) -> bytes:
        """The request's head; a line break in a header would be another header."""
        headers, method = request.headers, request.method
        known = self._blocks.get(id(headers))
        if known is None or known[0] is not headers or known[1] != method:
            if len(self._blocks) >= MOST_BLOCKS:
                self._blocks.clear()
            known = self._blocks[id(headers)] = (headers, method, self._block(headers, method))
        block = known[2]
        if request.id:
            block += b"x-request-id: %b\r\n" % request.id.encode()
        if request.body or method == "POST":
            return b"%bcontent-length: %d\r\n\r\n" % (block, len(request.body))
        return block + b"\r\n"

    def _block(self, headers: Mapping[str, str], method: str) -> bytes:
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        block = "".join(
            (f"{method} {self.path} HTTP/1.1\r\n", f"host: {self.authority}\r\n", *lines)
        )
        if block.count("\n") != len(lines) + 2 or block.count("\r") != len(lines) + 2:
            raise Failed(Failure(Cause.CONNECT, "a header of ours has a line break"))
        return block.encode()


class _Connector(aiohttp.TCPConnector):
    """Dials; what it dialled stays lent in its eyes, and lies in a pool of ours between requests.

    The connection that was used last is lent first: the others may grow old.
    """

    def __init__(self, resolver: AbstractResolver | None = None) -> None:
        super().__init__(limit=0, ttl_dns_cache=10, resolver=resolver)
        loop = asyncio.get_running_loop()
        self._factory = lambda: Line(loop)  # type: ignore[assignment]
        self._idle: dict[ConnectionKey, list[Line]] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    def idle(self, origin: "_Origin") -> list[Line]:
        """Those that lead there and are not in use; always the same list."""
        return self._idle.setdefault(origin.connection_key, [])

    def lend(self, idle: list[Line]) -> Line | None:
        """One that was used before and looks alive."""
        oldest = self._loop.time() - KEEPALIVE
        while idle:
            line = idle.pop()
            if line.usable and line.since >= oldest:
                return line
            _discard(line)
        return None

    async def dial(self, origin: "_Origin") -> Line:
        connection = await self.connect(origin, [], _NO_TIMEOUTS)
        line = connection.protocol
        if not isinstance(line, Line):
            connection.close()
            raise aiohttp.ClientConnectionResetError
        line.connection = connection
        return line

    def give_back(self, line: Line, idle: list[Line]) -> None:
        """Its answer is here: it may be lent to others, if all of the request was sent."""
        socket = line.transport
        if self._closed or not line.usable or (socket and socket.get_write_buffer_size()):
            _discard(line)
            return
        line.since = self._loop.time()
        idle.append(line)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(KEEPALIVE, self._sweep)

    async def close_all(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        await self.close()
        for idle in self._idle.values():
            while idle:
                _discard(idle.pop())

    def _sweep(self) -> None:
        """Close what lay idle for too long."""
        self._sweeping = None
        oldest = self._loop.time() - KEEPALIVE
        for idle in self._idle.values():
            kept = [line for line in idle if line.usable and line.since > oldest]
            old = set(idle).difference(kept)
            idle[:] = kept
            for line in old:
                _discard(line)
        if any(self._idle.values()):
            self._sweeping = self._loop.call_later(KEEPALIVE, self._sweep)


def _discard(line: Line) -> None:
    connection, line.connection = line.connection, None
    if connection is not None:
        connection.close()


class _PublicConnector(_Connector):
    def __init__(self) -> None:
        super().__init__(resolve.PublicResolver())

    async def _resolve_host(self, host: str, port: int, traces: Any = None) -> list[ResolveResult]:
        """Also what needs no resolving: an address in the URL."""
        return resolve.refuse_private(await super()._resolve_host(host, port, traces))


class _Sending:
    """One attempt: the context of `send`, and the reply it gives."""

    __slots__ = (
        "_answer", "_deadline", "_dog", "_idle", "_line", "_pool", "_request", "_seconds",
        "_timeouts", "_transport", "headers", "status",
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
        self._seconds = seconds
        self._deadline = deadline
        self._line: Line | None = None  # ours until the last byte is here
        self._answer: Answer | None = None
        self.status = 0
        self.headers: Mapping[str, str] = {}

    async def __aenter__(self) -> Self:
        request, transport = self._request, self._transport
        origin, pool = transport.origin(request.url), transport.pool(request)
        head = origin.head(request)
        self._pool, idle = pool, origin.idle(pool)
        self._idle = idle
        dog = self._dog = Watchdog(
            transport.timers,
            transport.task(),
            self._timeouts,
            self._seconds,
            self._deadline,
            stream=request.stream,
        )
        redialled = False
        try:
            line = pool.lend(idle)
            if line is None:
                answer = await self._ask(await pool.dial(origin), head)
            else:
                try:
                    answer = await self._ask(line, head)
                except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                    if line.heard:
                        raise
                    # The pool lent a connection that was dead already: that is nobody's failure.
                    self._abort()
                    dog.dialling()
                    redialled = True
                    answer = await self._ask(await pool.dial(origin), head)
        except BaseException as error:  # noqa: BLE001 - cancellation may be the watchdog's
            ended = self._ended(error, before_head=True)
            if redialled and isinstance(ended, Failed):
                ended = Failed(replace(ended.failure, redialled=True))
            raise ended from None
        self.status = answer.status
        self.headers = headers = answer.headers
        if type(headers) is dict and headers.get("content-encoding", "identity") != "identity":
            self._abort()
            dog.stop()
            raise Failed(Failure(Cause.MALFORMED, "answered compressed, which was not asked for"))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._dog.stop()
        if self._line is not None:
            self._abort()
        failure = self._dog.settle(error)
        if failure is not None:
            raise Failed(failure) from None

    async def read(self, limit: int) -> bytes:
        """See `gateway.core.ports.UpstreamReply`."""
        if self._answer is not None and self._answer.length > limit:
            raise self._too_long(limit)
        parts: list[bytes] = []
        size = 0
        while part := await self.more():
            parts.append(part)
            size += len(part)
            if size > limit:
                raise self._too_long(limit)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def progressed(self) -> None:
        self._dog.progressed()

    def ending(self, seconds: float) -> None:
        self._dog.ending(seconds)

    async def more(self) -> bytes:
        """See `gateway.core.ports.UpstreamReply`."""
        answer, dog = self._answer, self._dog
        if answer is None:
            raise RuntimeError("a reply is read inside its context")
        try:
            data = answer.take()
            if data is not None:
                return data
            dog.waits()
            try:
                while (data := answer.take()) is None:
                    if answer.content is not None:
                        return await answer.content.readany()
                    await answer.wait()
            finally:
                dog.rests()
            return data
        except BaseException as error:  # noqa: BLE001 - cancellation may be the watchdog's
            raise self._ended(error, before_head=False) from None

    async def _ask(self, line: Line, head: bytes) -> Answer:
        """Send, and wait for the head."""
        self._dog.connected()
        self._line = line
        answer = self._answer = line.ask(head, self._request.body, self._give_back)
        await answer.begun()
        return answer

    def _give_back(self) -> None:
        """The last byte is here."""
        line, self._line = self._line, None
        if line is not None:
            self._pool.give_back(line, self._idle)

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
        line, self._line = self._line, None
        if line is not None:
            if self._answer is not None:
                self._answer.forget()
            if line.transport is not None:
                line.transport.abort()
            _discard(line)


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
