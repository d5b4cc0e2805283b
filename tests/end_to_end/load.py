"""Callers that ask without a pause, byte for byte sure of what they were answered."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

PATIENCE = 30.0  # seconds for any answer


@dataclass(frozen=True, slots=True)
class Ask:
    """A question: `name` is its session, which stands on every ledger row it causes."""

    name: str
    model: str
    prompt: str
    stream: bool
    usage: bool = False
    limit: int | None = None
    user: str | None = None

    def wire(self) -> bytes:
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompt}],
            "stream": self.stream,
        }
        if self.usage:
            asked["stream_options"] = {"include_usage": True}
        if self.limit is not None:
            asked["max_tokens"] = self.limit
        if self.user is not None:
            asked["user"] = self.user
        body = json.dumps(asked).encode()
        return (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
            f"content-type: application/json\r\nx-gateway-session: {self.name}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode() + body


@dataclass(slots=True)
class Heard:
    """What became of a question.

    Args:
        whole: every byte of an answer is here, up to its proper end.
        good: and it is a completion, not an error (of a stream: `[DONE]` came).
        usage: (prompt, completion) tokens, as far as told.
        fate: the error's code, or `broken`, `refused`.
    """

    ask: Ask
    began: float
    ended: float = 0.0
    status: int = 0
    request_id: str = ""
    whole: bool = False
    good: bool = False
    usage: tuple[int, int] | None = None
    fate: str = ""

    def read(self, head: bytes, body: bytes) -> None:
        lines = head.decode().split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        self.request_id = headers["x-request-id"]
        if not headers["content-type"].startswith("text/event-stream"):
            told = json.loads(body)
            self._learn(told)
            self.good = "choices" in told
            return
        for line in body.split(b"\n"):
            if line == b"data: [DONE]":
                self.good = True
            elif line.startswith(b"data: {") and (b'"usage"' in line or b'"error"' in line):
                self._learn(json.loads(line[6:]))

    def _learn(self, told: Any) -> None:
        if usage := told.get("usage"):
            self.usage = usage["prompt_tokens"], usage["completion_tokens"]
        if error := told.get("error"):
            self.fate = error["code"]


class Connection(asyncio.Protocol):
    """One question at a time."""

    def __init__(self, last_byte: Callable[[], None]) -> None:
        self._last_byte = last_byte
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[bytes, bytes]] | None = None
        self._buffer = bytearray()
        self._body = 0  # where it begins; 0: its head is not here
        self._length: int | None = None  # of the body; None: in chunks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._body:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self._body = end + 4
            head = bytes(buffer[:end]).lower()
            _, found, told = head.partition(b"\r\ncontent-length: ")
            self._length = int(told.partition(b"\r\n")[0]) if found else None
        if self._length is None:
            whole = buffer.endswith(b"\r\n0\r\n\r\n")
        else:
            whole = len(buffer) - self._body >= self._length
        if whole and self._answer is not None and not self._answer.done():
            self._last_byte()
            head, body = bytes(buffer[: self._body - 4]), bytes(buffer[self._body :])
            self._answer.set_result((head, unchunked(body) if self._length is None else body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError())
        self._answer = None

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, wire: bytes) -> tuple[bytes, bytes]:
        """Head and body. Raises ConnectionError."""
        if self._transport is None or not self.usable:
            raise ConnectionResetError
        self._buffer.clear()
        self._body = 0
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(wire)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def unchunked(data: bytes) -> bytes:
    parts, at = [], 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end], 16)
        if not size:
            return b"".join(parts)
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 4 + size


@dataclass
class Load:
    """`callers` ask at once, each one thing after the other (or `once`).

    What is asked, `mix` says: of a name, the number of the caller and `rng`. `last_byte` is called
    in the very turn an answer is whole.
    """

    callers: int
    mix: Callable[[str, int, random.Random], Ask]
    rng: random.Random
    once: bool = False
    heard: list[Heard] = field(default_factory=list)
    last_byte: Callable[[], None] = lambda: None
    _asked: int = 0
    _over: bool = False

    @asynccontextmanager
    async def on(self, port: int) -> AsyncIterator[None]:
        """Ask until the block ends, then let those who wait have their answer (or its loss)."""
        self._over = False
        async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as group:
            for caller in range(self.callers):
                group.create_task(self._call(port, caller))
            try:
                yield
            finally:
                self._over = True
                limit.reschedule(asyncio.get_running_loop().time() + PATIENCE)

    async def _call(self, port: int, caller: int) -> None:
        """Until the load is over, or nobody listens any more."""
        connection: Connection | None = None
        loop = asyncio.get_running_loop()
        try:
            asked = 0
            while not asked or not (self._over or self.once):
                asked += 1
                self._asked += 1
                ask = self.mix(f"q{self._asked}", caller, self.rng)
                heard = Heard(ask, time.monotonic())
                self.heard.append(heard)
                try:
                    if connection is None or not connection.usable:
                        _, connection = await loop.create_connection(
                            lambda: Connection(self.last_byte), "127.0.0.1", port
                        )
                    head, body = await connection.ask(ask.wire())
                except ConnectionRefusedError:
                    heard.fate = "refused"
                    return
                except ConnectionError:
                    heard.fate = "broken"
                    return
                finally:
                    heard.ended = time.monotonic()
                heard.whole = True
                heard.read(head, body)
        finally:
            if connection is not None:
                connection.close()
