"""An upstream that says exactly what it is told to, byte for byte."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from gateway.core.ports import UpstreamReply

Script = Callable[["Line"], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(body: bytes) -> bytes:
    return OK + b"content-length: %d\r\n\r\n" % len(body) + body


class Line:
    """One connection at the server's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.heads: list[bytes] = []
        self.body = b""

    async def hear(self) -> bytes:
        """The next request's head; its body is read and kept."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        )
        self.body = await self._reader.readexactly(length)
        return head

    async def say(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def deaf(self, seconds: float) -> None:
        """Read nothing at all for so long."""
        transport: Any = self._writer.transport
        transport.pause_reading()
        await asyncio.sleep(seconds)
        transport.resume_reading()

    async def gone(self) -> None:
        """Back when the other side has closed."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65536):
                pass

    def reset(self) -> None:
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


class Upstream:
    def __init__(self, port: int) -> None:
        self.port = port
        self.lines: list[Line] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/chat/completions"


@contextlib.asynccontextmanager
async def upstream(script: Script) -> AsyncIterator[Upstream]:
    """A server that runs `script` for each connection."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        line = Line(reader, writer)
        here.lines.append(line)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await script(line)
        except asyncio.CancelledError:
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**24)
    here = Upstream(server.sockets[0].getsockname()[1])
    try:
        yield here
    finally:
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)


async def pieces(reply: UpstreamReply) -> AsyncIterator[bytes]:
    """The body as it comes."""
    while data := await reply.more():
        yield data
