"""One connection to a provider, and what comes over it.

Two depths: what nearly every answer looks like (200, a length or whole chunks) is cut out here;
anything else goes through aiohttp's parser, from its head or from the piece where it turns odd.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import (
    ContentLengthError,
    HttpProcessingError,
    TransferEncodingError,
)
from aiohttp.streams import StreamReader

if TYPE_CHECKING:
    from aiohttp.connector import Connection

READ_BUFFER: Final = 256 * 1024  # bytes held for a reader that is slow, twice
LONGEST_LINE: Final = 16 * 1024  # of an answer's head
SMALL: Final = 64 * 1024  # a body below it is cheaper copied than sent as a second piece

_MOST_LINES: Final = 120  # of a head
_HEAD: Final = re.compile(
    rb"HTTP/1\.1 200 [^\r\n\0]*\r\n(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n)*+\r\n"
)
_DIGITS: Final = b"0123456789abcdefABCDEF"
_GO_ON: Final = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

_IDLE, _HEAD_NEXT, _LENGTH, _CHUNKED, _ODD = range(5)  # what the next bytes are


class Headers(Mapping[str, str]):
    """Of a head as it came; names in lower case, read when somebody asks."""

    __slots__ = ("_found", "_head")

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._found: dict[str, str] | None = None

    def _read(self) -> dict[str, str]:
        if self._found is None:
            lines = self._head.decode("utf-8", "surrogateescape").split("\r\n")[1:-2]
            cut = (line.partition(":") for line in lines)
            self._found = {name.lower(): value.strip(" \t") for name, _, value in cut}
        return self._found

    def __getitem__(self, name: str) -> str:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


class Answer:
    """What comes back for one request; it outlives the loan of its connection."""

    __slots__ = (
        "_done", "_ended", "_fault", "_line", "_paused", "_pieces", "_size", "_waiter", "content",
        "headers", "length", "status",
    )  # fmt: skip

    def __init__(self, line: "Line", done: Callable[[], None]) -> None:
        self._line = line
        self._done = done
        self._pieces: list[bytes] = []
        self._size = 0
        self._paused = False
        self._ended = False
        self._fault: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.content: StreamReader | None = None  # where aiohttp's parser puts the body
        self.status = 0
        self.length = -1  # -1: not told
        self.headers: Mapping[str, str] = {}

    async def begun(self) -> None:
        """Wait for the head."""
        line = self._line
        while not self.status:
            if not line.odd:
                await self.wait()
                continue
            message, content = await line.read()
            if not 100 <= message.code < 200:
                self.status = message.code
                self.headers = {k.lower(): v for k, v in message.headers.items()}
                told = self.headers.get("content-length", "")
                self.length = int(told) if told.isdigit() else -1
                self.goes_on(content)

    def take(self) -> bytes | None:
        """What is here: b"" at the end, None: it has to be waited for."""
        if self._fault is not None:
            raise self._fault
        pieces = self._pieces
        if pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            self._size = 0
            if self._paused:
                self._resume()
            return data
        return b"" if self._ended else None

    def wait(self) -> "asyncio.Future[None]":
        """Done when something came, be it the end."""
        waiter = self._waiter = self._line.loop.create_future()
        return waiter

    # ------------------------------------------------------------------ told by the connection

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def feed(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > 2 * READ_BUFFER and not self._paused and self._line.transport is not None:
            self._paused = True
            self._line.transport.pause_reading()

    def goes_on(self, content: StreamReader) -> None:
        """The rest of the body comes through aiohttp's parser."""
        self.content = content
        content.on_eof(self._line.all_here)

    def fail(self, error: BaseException) -> None:
        self._fault = error
        self.wake()

    def end(self, *, odd: bool) -> None:
        """The last byte is here, if maybe not yet taken."""
        if self._paused:
            self._resume()
        if not odd:
            self._ended = True
            self.wake()
        self._done()
        self._done = _nothing

    def forget(self) -> None:
        """Nobody wants the rest."""
        self._done = _nothing

    def _resume(self) -> None:
        self._paused = False
        if self._line.transport is not None:
            self._line.transport.resume_reading()


def _nothing() -> None:
    """What is left to do when all is done."""


class Line(ResponseHandler):
    """A connection; `ask` over it when the answer before is all here."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.loop = loop
        self.heard = False  # anything came since a request was sent over it
        self.odd = False  # aiohttp's parser has read of this answer
        self.since = 0.0  # it lies idle
        self.connection: Connection | None = None
        self._answer: Answer | None = None
        self._next = _IDLE
        self._left = 0

    def ask(self, head: bytes, body: bytes, done: Callable[[], None]) -> Answer:
        """Send a request; `done` is called when the last byte of its answer is here."""
        socket = self.transport
        if socket is None or socket.is_closing():
            raise aiohttp.ClientConnectionResetError
        if self.odd:
            self.odd = False
            self._parser = self._payload = None
        self.heard = False
        self._next = _HEAD_NEXT
        answer = self._answer = Answer(self, done)
        if len(body) < SMALL:
            socket.write(head + body)
        else:
            socket.writelines((head, body))
        return answer

    @property
    def usable(self) -> bool:
        """Whether another request may go over it."""
        socket = self.transport
        return (
            socket is not None and not socket.is_closing() and not (self.odd and self.should_close)
        )

    def all_here(self) -> None:
        answer, self._answer = self._answer, None
        odd = self._next == _ODD
        self._next = _IDLE
        if answer is not None:
            answer.end(odd=odd)

    # ------------------------------------------------------------------ told by the loop

    def data_received(self, data: bytes) -> None:
        self.heard = True
        coming, answer = self._next, self._answer
        if coming == _CHUNKED and answer is not None:
            self._chunks(answer, data, 0)
        elif coming == _ODD:
            super().data_received(data)
        elif not data:
            pass  # aiohttp goes on after a pause
        elif coming == _HEAD_NEXT and answer is not None:
            self._begin(answer, data)
        elif coming == _LENGTH and answer is not None:
            self._piece(answer, data)
        elif self.transport is not None:
            self.transport.abort()  # nobody asked: it must not be taken for the next answer

    def connection_lost(self, exc: BaseException | None) -> None:
        answer, coming = self._answer, self._next
        self._answer = None
        super().connection_lost(exc)
        if answer is None:
            return
        if coming == _HEAD_NEXT:
            self.odd = True  # whose queue has the error
            answer.wake()
        elif coming in {_LENGTH, _CHUNKED}:
            error = aiohttp.ClientPayloadError()
            error.__cause__ = (
                ContentLengthError("short") if coming == _LENGTH else TransferEncodingError("short")
            )
            answer.fail(error)

    # ------------------------------------------------------------------ the usual answer

    def _begin(self, answer: Answer, data: bytes) -> None:
        found = _HEAD.match(data)
        length = _framing(found[0]) if found is not None else None
        if found is None or length is None:
            self._oddly(data)
            answer.wake()
            return
        answer.headers = Headers(found[0])
        answer.status = 200
        at = found.end()
        if length >= 0:
            answer.length = self._left = length
            self._next = _LENGTH
            if at < len(data) or not length:
                self._piece(answer, data[at:])
            else:
                answer.wake()
        else:
            self._next = _CHUNKED
            if at < len(data):
                self._chunks(answer, data, at)
            answer.wake()

    def _piece(self, answer: Answer, data: bytes) -> None:
        left = self._left = self._left - len(data)
        if left > 0:
            answer.feed(data)
            answer.wake()
            return
        if left < 0:
            self.odd = self._should_close = True  # it says more than it was asked
            data = data[:left]
        if data:
            answer.feed(data)
        self.all_here()

    def _chunks(self, answer: Answer, data: bytes, at: int) -> None:
        """The chunks that lie whole in `data`; from any other on, the body is odd."""
        end = len(data)
        while at < end:
            start = data.find(b"\r\n", at, at + 10) + 2
            size = data[at : start - 2]
            if start < 2 or not size or size.translate(None, _DIGITS):
                break
            stop = start + int(size, 16)
            if data[stop : stop + 2] != b"\r\n":
                break
            if stop == start:
                if stop + 2 != end:
                    break
                self.all_here()
                return
            answer.feed(data[start:stop])
            at = stop + 2
        else:
            answer.wake()
            return
        self._oddly(_GO_ON + data[at:])
        if self._buffer:
            (_, content), _ = self._buffer.popleft()
            answer.goes_on(content)
            answer.wake()
        else:
            answer.fail(self._exception or HttpProcessingError())

    # ------------------------------------------------------------------ any other

    def _oddly(self, data: bytes) -> None:
        self.odd = True
        self._next = _ODD
        self.set_response_params(
            read_until_eof=True,
            auto_decompress=False,
            read_bufsize=READ_BUFFER,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_LINE,
        )
        super().data_received(data)


def _framing(head: bytes) -> int | None:
    """The length of the body, -1: chunked, None: something about this head is unusual."""
    if len(head) > LONGEST_LINE or head.count(b"\n") > _MOST_LINES:
        return None
    head = head.lower()
    if b"\r\ncontent-encoding:" in head or b"\r\nupgrade:" in head:
        return None
    if b"\r\nconnection:" in head and _only(head, b"\r\nconnection:") != b"keep-alive":
        return None
    if b"\r\ntransfer-encoding:" in head:
        plain = b"\r\ncontent-length:" not in head
        return -1 if plain and _only(head, b"\r\ntransfer-encoding:") == b"chunked" else None
    length = _only(head, b"\r\ncontent-length:")
    return int(length) if length.isdigit() and len(length) < 16 else None


def _only(head: bytes, name: bytes) -> bytes:
    """The value of a header that stands there once, else b""."""
    at = head.find(name)
    start = at + len(name)
    if at < 0 or head.find(name, start) >= 0:
        return b""
    return head[start : head.find(b"\r\n", start)].strip(b" \t")
