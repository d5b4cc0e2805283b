"""HTTP/1.1 by hand: a server library cannot lie about lengths, stop within a chunk or reset."""

import asyncio
import socket
import struct
from dataclasses import dataclass
from typing import Protocol, cast

from chaos import faults

HEAD_LIMIT = 64 << 10
BODY_LIMIT = 64 << 20
_LINGER_ZERO = struct.pack("ii", 1, 0)  # close becomes a reset


class Server(Protocol):
    """Who is told of connections."""

    def joined(self, connection: "Connection") -> None: ...

    def parted(self, connection: "Connection") -> None: ...


@dataclass(frozen=True, slots=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Unreadable(ValueError):
    """Not HTTP/1.1, or beyond a limit."""


class Connection(asyncio.Protocol):
    """One accepted connection: reads requests, writes what it is told, knows when it is left."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._buffer = bytearray()
        self._more: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self.task: asyncio.Task[None] | None = None
        self.left = False  # by the client
        self.closing = False  # by us
        self.stale = False  # the next request finds it dead

    # what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # TCP; uvloop's is none of asyncio's
        self._transport = transport
        self._server.joined(self)

    def data_received(self, data: bytes) -> None:
        if self.stale:
            self.close()
        if self.closing:
            return
        self._buffer += data
        if len(self._buffer) > HEAD_LIMIT + BODY_LIMIT:
            self.reset()
        _wake(self._more)

    def eof_received(self) -> None:
        self._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._server.parted(self)

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        _wake(self._writable)
        self._writable = None

    def _leave(self) -> None:
        if self.closing or self.left:
            return
        self.left = True
        if self.task is not None:
            self.task.cancel()

    # what the conversation calls

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self.closing:
            self._transport.write(data)

    async def room(self) -> None:
        """Wait until the client has read enough of what was written."""
        if self._writable is not None:
            await self._writable

    def close(self) -> None:
        """FIN, after what was written."""
        if not self.closing and self._transport is not None:
            self.closing = True
            self._transport.close()

    def reset(self) -> None:
        """RST, now."""
        if self._transport is None:
            return
        self.closing = True
        raw = self._transport.get_extra_info("socket")
        if raw is not None and not self._transport.is_closing():
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._transport.abort()

    def end(self, how: faults.End) -> bool:
        """What an answer leaves behind; whether another request may come."""
        match how:
            case "rst":
                self.reset()
            case "fin":
                self.close()
            case "stale":
                self.stale = True
            case "":
                return True
        return False

    async def request(self) -> Asked:
        """The next request, whole.

        Raises:
            Unreadable: not HTTP, or too large.
        """
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > HEAD_LIMIT:
                raise Unreadable("head too large")
            await self._fed()
        first, *lines = self._take(end + 4)[:-4].decode("latin-1").split("\r\n")
        line = first.split(" ")
        if len(line) != 3 or not line[2].startswith("HTTP/1."):
            raise Unreadable("not HTTP/1.1")
        headers: dict[str, str] = {}
        for each in lines:
            name, _, value = each.partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in headers.get("transfer-encoding", "").lower():
            body = await self._chunked()
        else:
            length = headers.get("content-length", "0")
            if not length.isdigit() or int(length) > BODY_LIMIT:
                raise Unreadable("bad content-length")
            body = await self._exactly(int(length))
        return Asked(line[0], line[1].partition("?")[0], headers, body)

    async def _chunked(self) -> bytes:
        body = bytearray()
        while True:
            try:
                size = int((await self._line()).partition(b";")[0], 16)
            except ValueError:
                raise Unreadable("bad chunk") from None
            if size < 0 or len(body) + size > BODY_LIMIT:
                raise Unreadable("body too large")
            if size == 0:
                break
            body += await self._exactly(size)
            await self._line()
        while await self._line():
            pass  # trailers
        return bytes(body)

    async def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > HEAD_LIMIT:
                raise Unreadable("line too long")
            await self._fed()
        return self._take(end + 2)[:-2]

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._fed()
        return self._take(size)

    async def _fed(self) -> None:
        self._more = asyncio.get_running_loop().create_future()
        await self._more

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
