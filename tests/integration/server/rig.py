"""A gateway's front door with a scripted road behind it, on real loopback sockets."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import uvloop

from gateway.clock import SystemClock
from gateway.core.attempt import StreamEvent
from gateway.core.audit import Act
from gateway.core.events import Event, RequestEnded
from gateway.core.kept import Ending
from gateway.core.keys import KeyTerms
from gateway.core.ports import Call, Reply
from gateway.core.principal import LOCAL, Principal
from gateway.core.request import Hints
from gateway.core.snapshot import ServerSettings
from gateway.core.target import Secret
from gateway.errors import NotFound, Unauthenticated
from gateway.pipeline.guard import Guard
from gateway.server.connection import Bounds
from gateway.server.doors import Current, Doors
from gateway.server.facades.chat import ChatFacade
from gateway.server.facades.embeddings import EmbeddingsFacade
from gateway.server.serve import Servers
from gateway.wire import json

ADMIN_KEY = "admin-key-of-the-tests"
KEY = "a-foreign-key-of-32-characters-or-more"
METRICS_KEY = "a-metrics-key-of-32-characters-or-more"
OPERATOR_KEY = "an-operators-key-of-32-characters-or-more"

Script = Callable[[Call, Reply], Awaitable[None]]

WHOLE = b'{"id":"c1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'  # noqa: E501


def chunk(text: str, finish: str | None = None) -> StreamEvent:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    wire = json.dumps(
        {
            "id": "c1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [choice],
        }
    )
    return StreamEvent(wire, content=True)


def chat(**members: Any) -> bytes:
    return json.dumps(
        {"model": "default", "messages": [{"role": "user", "content": "hi"}], **members}
    )


def post(body: bytes, path: str = "/v1/chat/completions", **headers: str) -> bytes:
    lines = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items())
    if "Transfer_Encoding" not in headers:
        lines += f"content-length: {len(body)}\r\n"
    return f"POST {path} HTTP/1.1\r\nHost: g\r\n{lines}\r\n".encode() + body


def get(path: str, version: str = "1.1", **headers: str) -> bytes:
    lines = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items())
    return f"GET {path} HTTP/{version}\r\nHost: g\r\n{lines}\r\n".encode()


class FakeRoad:
    """Parses as the product does, then plays its script."""

    def __init__(self, facade: Any) -> None:
        self.facade = facade
        self.calls: list[Call] = []
        self.requests: list[Any] = []
        self.cancelled = asyncio.Event()
        self.ended = asyncio.Event()
        self.script: Script | None = None
        self.pieces: Sequence[StreamEvent] = (chunk("hel"), chunk("lo", "stop"))
        self.authenticate: Callable[[Call], Awaitable[Principal]] | None = None

    async def __call__(self, call: Call, reply: Reply) -> None:
        self.calls.append(call)
        try:
            if self.authenticate is not None:
                await self.authenticate(call)
            if self.script is not None:
                await self.script(call, reply)
            else:
                await self.play(call, reply)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.ended.set()

    async def play(self, call: Call, reply: Reply) -> None:
        request = self.facade.parse(await call.body())
        self.requests.append(request)
        voice = self.facade.voice(request)
        await reply.start({"x-gateway-chain": request.model}, voice)
        for event in self.pieces if request.stream else [StreamEvent(WHOLE)]:
            await reply.write([event])
        await reply.finish(b'{"target":"m"}' if request.stream else b"")


@dataclass
class FakeKeyRoom:
    """Every key is there; what is asked of it is told."""

    told: list[Any]

    def page(self, after: str | None, most: int) -> Mapping[str, Any]:
        return {"keys": [], "next": None}

    async def one(self, name: str) -> Mapping[str, Any] | None:
        return {"name": name}

    async def put(self, name: str, terms: KeyTerms, who: str) -> Mapping[str, Any]:
        self.told.append((name, terms, who))
        return {"key": {"name": name}, "changed": False}

    async def rotate(self, name: str, overlap: float, who: str) -> Mapping[str, Any]:
        self.told.append((name, overlap, who))
        return {"key": {"name": name}, "changed": True, "secret": "gk_x"}

    async def revoke(self, name: str, who: str) -> Mapping[str, Any]:
        self.told.append((name, who))
        return {"key": {"name": name}, "changed": True}


@dataclass
class FakeAdmin:
    told: list[Any] = field(default_factory=list)
    acts: list[Act] = field(default_factory=list)

    @property
    def keys(self) -> FakeKeyRoom:
        return FakeKeyRoom(self.told)

    def status(self) -> Mapping[str, Any]:
        return {"status": "ok"}

    def recent(self, n: int) -> Sequence[Mapping[str, Any]]:
        return [{"request_id": f"req_{i}"} for i in range(n)]

    async def request(self, id: str) -> Mapping[str, Any] | None:
        return {"request_id": id} if id == "req_1" else None

    def chains(self) -> Mapping[str, Any]:
        return {"chains": []}

    async def limits(self, key: str | None, most: int) -> Mapping[str, Any] | None:
        return None if key == "nobody" else {"limits": [], "budgets": [], "more": False}

    async def audit(self, most: int, before: int | None) -> Mapping[str, Any]:
        return {"lines": [], "next": None}

    def note(self, act: Act) -> None:
        self.acts.append(act)

    async def witness(self, act: Act) -> None:
        self.acts.append(act)

    def config(self) -> Mapping[str, Any]:
        return {"config": "abc"}

    def metrics(self) -> bytes:
        return b"# HELP x\n"

    async def reload(self) -> Mapping[str, Any]:
        self.told.append("reload")
        return {"config": "abc", "problem": ""}

    async def drain(self) -> None:
        self.told.append("drain")

    def breaker(self, target: str, to: str) -> Mapping[str, Any] | None:
        if target not in {"gpt", "openai/gpt"}:
            return None
        self.told.append((target, to))
        return {"target": target, "set": to}


class Gateway:
    """What a test talks to."""

    def __init__(self, *, keyed: bool) -> None:
        self.chat = FakeRoad(ChatFacade())
        self.embeddings = FakeRoad(EmbeddingsFacade())
        self.admin = FakeAdmin()
        self.guard = Guard()
        self.events: list[Event] = []
        self.ready = (True, {"degraded": False})
        self.keyed = keyed
        self.servers: Servers | None = None
        self.doors = Doors(
            chat=self.chat,
            embeddings=self.embeddings,
            models=lambda principal: ["default", "openai/gpt-4o"],
            usage=self.usage,
            authenticate=self.authenticate,
            end=self.end,
            parked=self,
            heard=self.events.append,
            ready=lambda: self.ready,
            admin=self.admin,
            guard=self.guard,
        )
        self.current = Current(self.doors)
        self.chat.authenticate = self.embeddings.authenticate = self.authenticate

    async def end(self, principal: Principal, hints: Hints, key: str) -> Ending | None:
        return "kept" if key == "an/odd key" else None

    async def look(
        self, principal: Principal, hints: Hints, id: str
    ) -> tuple[int, bytes, Mapping[str, str]]:
        if id != "parked_1":
            raise NotFound("There is no parked request of this id.")
        return 202, b'{"id":"parked_1","status":"parked"}', {"retry-after": "2"}

    drop = look

    async def authenticate(self, call: Call) -> Principal:
        if not self.keyed:
            return LOCAL
        if call.credential is not None:
            for key, role in ((KEY, "client"), (METRICS_KEY, "metrics"), (OPERATOR_KEY, "admin")):
                if call.credential.digest == hashlib.sha256(key.encode()).digest():
                    return replace(LOCAL, key_id=role, role=role)
        raise Unauthenticated("This API key is not valid: unknown, expired or revoked.")

    async def usage(self, principal: Principal) -> Mapping[str, Any]:
        return {"object": "usage", "key": principal.key_id}

    @property
    def port(self) -> int:
        assert self.servers is not None
        return self.servers.api_port

    @property
    def admin_port(self) -> int:
        assert self.servers is not None
        return self.servers.admin_port

    @property
    def ended(self) -> list[tuple[str, int]]:
        return [
            (e.exchange.api, e.exchange.status) for e in self.events if isinstance(e, RequestEnded)
        ]


def _shipped() -> bool:
    """The fast lane is on with uvloop, as it ships, and off with the plain loop."""
    return isinstance(asyncio.get_running_loop(), uvloop.Loop)


@asynccontextmanager
async def gateway(
    *, keyed: bool = False, bounds: Bounds | None = None, **settings: Any
) -> AsyncIterator[Gateway]:
    made = Gateway(keyed=keyed)
    servers = Servers(
        made.current,
        ServerSettings(port=0, admin_port=0, **({"lane": _shipped()} | settings)),
        SystemClock(),
        admin_key=Secret(ADMIN_KEY),
        bounds=bounds or Bounds(),
    )
    async with servers:
        made.servers = servers
        yield made


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        told = json.loads(self.body)["error"]
        assert isinstance(told, dict)
        return told


class Line:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(5):
            head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            if name:
                assert name.lower() not in headers, f"{name} twice"
                headers[name.lower()] = value.strip()
        return int(first.split(" ")[1]), headers

    async def answer(self, *, head_only: bool = False) -> Answer:
        status, headers = await self.head()
        async with asyncio.timeout(5):
            if head_only:
                body = b""
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            elif headers.get("transfer-encoding") == "chunked":
                body = b"".join([piece async for piece in self.chunks()])
            else:
                body = await self.reader.read()
        return Answer(status, headers, body)

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            size = int((await self.reader.readline()).strip() or b"0", 16)
            piece = await self.reader.readexactly(size + 2)
            assert piece.endswith(b"\r\n")
            if size == 0:
                return
            yield piece[:-2]

    async def chunk(self) -> bytes:
        async with asyncio.timeout(5):
            size = int((await self.reader.readline()).strip(), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def ask(self, data: bytes) -> Answer:
        self.send(data)
        return await self.answer()

    async def eof(self, seconds: float = 5) -> bytes:
        """What is left until the other side closes; TimeoutError when it does not."""
        async with asyncio.timeout(seconds):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@asynccontextmanager
async def dial(port: int, limit: int = 2**20) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    line = Line(reader, writer)
    try:
        yield line
    finally:
        await line.close()


async def ask(port: int, data: bytes) -> Answer:
    async with dial(port) as line:
        return await line.ask(data)


SECRET = re.compile(r"canary|" + re.escape(KEY))
