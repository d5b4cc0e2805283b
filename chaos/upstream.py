"""The simulator: a real HTTP server on loopback that speaks OpenAI's dialect and fails to order.

One piece of code for the demo, the tests, `gateway chaos` and `kind: sim`. Several named providers
live in one server, each below its own base URL `http://127.0.0.1:PORT/{name}/v1`:
`POST chat/completions` (streaming or not), `POST embeddings`, `GET models`.

Answers follow from the messages alone, so every provider says the same unless its `Manner` has a
`voice`. Tokens are exact by definition: `prompt_tokens` is the sum over the messages of the UTF-8
bytes of their text / 4, rounded up, at least 1; each content or tool-call event is one completion
token. Every call is logged and billed: prompt and written completion tokens if any content was
written or the answer was completed, nothing otherwise.

HTTP is spoken by hand, because a server library cannot lie about lengths, stop within a chunk or
reset. From outside: `POST /__sim/{name}/fault` with `{"kind": ..., "times": ..., options}`,
`DELETE` of the same, `GET /__sim/{name}/calls`. `python -m chaos.upstream --port 0` prints one JSON
line with the port and serves until SIGTERM.
"""

import argparse
import asyncio
import base64
import contextlib
import itertools
import math
import random
import re
import secrets
import signal
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, cast

from chaos import faults
from chaos.faults import Answer, Fault, Step
from gateway.clock import Clock, SystemClock
from gateway.wire import json

T = TypeVar("T")

HEAD_LIMIT = 64 << 10
BODY_LIMIT = 64 << 20
FLUSH = 64 << 10  # what is due at once is written together, up to about this
KEEP_CALLS = 200_000
KEEP_NAMES = 1000
KEEP_BODIES = 64 << 20  # bytes; older calls keep everything but headers and body
ANY = "*"  # the name whose fault befalls every provider without one of its own

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LINGER_ZERO = struct.pack("ii", 1, 0)  # close becomes a reset
_VOCABULARY = (
    "the a river stone light over under small large green quiet window garden morning letter road "
    "walks turns keeps finds follows carries opens between because while and then slowly often "
    "never again bridge winter paper number signal harbour café naïve straße 東京 field answer"
)
_WORDS = _VOCABULARY.split()


# ------------------------------------------------------------------------------ what is to be said


@dataclass(frozen=True, slots=True)
class Manner:
    """How a provider answers when it is well. Seconds.

    `latency`: before the head; `ttft`: from there to the first content; `gap`: between contents
    (0: as fast as the socket takes it); `tokens`: length of a text; `voice`: another voice says
    something else; `headers`: on every 200.
    """

    tokens: int = 40
    ttft: float = 0.0
    gap: float = 0.0
    latency: float = 0.0
    voice: str = ""
    headers: tuple[tuple[str, str], ...] = ()


def prompt_tokens(messages: Sequence[Any]) -> int:
    """Per message the UTF-8 bytes of its text parts / 4, rounded up; at least 1 in all."""
    return max(1, sum(_quarter(_text(message)) for message in messages))


def words(messages: Sequence[Any], manner: Manner, choice: int = 0) -> list[str]:
    """The tokens of the text that answers `messages`; a last assistant message is gone on with."""
    last = messages[-1]
    prefill = _text(last) if isinstance(last, dict) and last.get("role") == "assistant" else ""
    asked = messages[:-1] if prefill else messages
    dice = _dice(manner.voice, asked, choice)
    said = [f" {word}" for word in dice.choices(_WORDS, k=manner.tokens)]
    said[:1] = [word.strip().capitalize() for word in said[:1]]
    if prefill:
        whole = "".join(said)
        if whole.startswith(prefill):
            rest = whole[len(prefill) :]
            return re.findall(r"\s*\S+", rest)
    return said


def sample(schema: Any, dice: random.Random, root: Any = None, depth: int = 0) -> Any:
    """A small value that a JSON schema allows (what structured outputs support of it)."""
    root = schema if root is None else root
    if not isinstance(schema, dict):
        return "sim"
    if "$ref" in schema:
        return sample(_resolved(str(schema["$ref"]), root), dice, root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return dice.choice(schema["enum"])
    for several in ("anyOf", "oneOf", "allOf"):
        options = schema.get(several)
        if options:
            # Deep down the way out of a recursive schema, which is null.
            ends = [one for one in options if depth > 4 and one.get("type") == "null"]
            return sample((ends or options)[0], dice, root, depth + 1)
    return _sample_of_type(schema, dice, root, depth)


def _sample_of_type(schema: dict[str, Any], dice: random.Random, root: Any, depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    match kind:
        case "object":
            members = schema.get("properties", {})
            wanted = schema.get("required", members) if depth > 4 else members
            return {name: sample(members.get(name), dice, root, depth + 1) for name in wanted}
        case "array":
            count = min(max(int(schema.get("minItems", 0)), 0 if depth > 4 else 1), 100)
            return [sample(schema.get("items"), dice, root, depth + 1) for _ in range(count)]
        case "integer" | "number":
            low = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
            return min(low, schema.get("maximum", low))
        case "boolean":
            return True
        case "null":
            return None
        case _:
            word = dice.choice(_WORDS[:30])
            return word.ljust(min(int(schema.get("minLength", 0)), 10_000), "x")


def _resolved(ref: str, root: Any) -> Any:
    found = root
    for part in ref.removeprefix("#").strip("/").split("/"):
        found = found.get(part) if part and isinstance(found, dict) else found
    return found


def _dice(voice: str, messages: Sequence[Any], choice: int) -> random.Random:
    return random.Random(b"%s\0%d\0%s" % (voice.encode(), choice, json.dumps(messages)))


def _quarter(text: str) -> int:
    return -(-len(text.encode()) // 4)


def _text(message: Any) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))


@dataclass(frozen=True, slots=True)
class _Chat:
    """A chat request, as far as it matters here."""

    model: str
    messages: list[Any]
    stream: bool
    include_usage: bool
    limit: int
    n: int
    tool: dict[str, Any] | None  # the function to be called instead of a text
    schema: Any  # of a JSON answer; None: words

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "_Chat":
        """Raises _Mistaken, with what OpenAI would say."""
        model, messages = body.get("model"), body.get("messages")
        if not isinstance(model, str) or not model:
            raise _Mistaken("you must provide a model parameter")
        if not isinstance(messages, list) or not messages:
            raise _Mistaken("Missing required parameter: 'messages'.")
        n = _whole(body, "n", 1)
        limit = _whole(body, "max_completion_tokens", _whole(body, "max_tokens", 1 << 30))
        if n > 128:
            raise _Mistaken("Invalid 'n': integer above maximum value.")
        options = body.get("stream_options") or {}
        return cls(
            model,
            messages,
            stream=body.get("stream") is True,
            include_usage=isinstance(options, dict) and options.get("include_usage") is True,
            limit=limit,
            n=n,
            tool=_tool(body, messages),
            schema=_schema(body.get("response_format")),
        )


class _Mistaken(ValueError):
    """The caller's own mistake, in OpenAI's words."""


def _whole(body: Mapping[str, Any], name: str, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _Mistaken(f"Invalid '{name}': expected a whole number of at least 1.")
    return value


def _tool(body: Mapping[str, Any], messages: list[Any]) -> dict[str, Any] | None:
    """The function to call: the named one, else the first; after a tool's result none (auto)."""
    offered: list[dict[str, Any]] = [
        tool["function"]
        for tool in body.get("tools") or []
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
    ]
    choice = body.get("tool_choice", "auto")
    if not offered or choice == "none":
        return None
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        return next((one for one in offered if one.get("name") == name), offered[0])
    answered = isinstance(messages[-1], dict) and messages[-1].get("role") == "tool"
    return None if answered and choice != "required" else offered[0]


def _schema(wanted: Any) -> Any:
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    if kind == "json_schema":
        return (wanted.get("json_schema") or {}).get("schema") or {"type": "object"}
    return None


@dataclass(frozen=True, slots=True)
class _Said:
    """One choice: its deltas, each a completion token, and how it ends."""

    deltas: list[dict[str, Any]]
    message: dict[str, Any]
    finish: str


def _say(chat: _Chat, manner: Manner, choice: int) -> _Said:
    dice = _dice(manner.voice, chat.messages, choice)
    if chat.tool is not None:
        return _call_tool(chat, chat.tool, dice)
    if chat.schema is not None:
        pieces = _pieces(json.dumps(sample(chat.schema, dice)).decode())
    else:
        pieces = words(chat.messages, manner, choice)
    kept = pieces[: chat.limit]
    return _Said(
        [{"content": piece} for piece in kept],
        {"role": "assistant", "content": "".join(kept), "refusal": None},
        "stop" if len(kept) == len(pieces) else "length",
    )


def _call_tool(chat: _Chat, tool: dict[str, Any], dice: random.Random) -> _Said:
    arguments = json.dumps(sample(tool.get("parameters") or {"type": "object"}, dice)).decode()
    pieces = _pieces(arguments)
    kept = pieces[: chat.limit - 1]
    call = {"id": f"call_{secrets.token_hex(12)}", "type": "function"}
    name = str(tool.get("name", ""))
    opening = {"index": 0, **call, "function": {"name": name, "arguments": ""}}
    deltas: list[dict[str, Any]] = [{"tool_calls": [opening]}]
    deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": it}}]} for it in kept]
    whole = {**call, "function": {"name": name, "arguments": "".join(kept)}}
    return _Said(
        deltas,
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [whole]},
        "tool_calls" if len(kept) == len(pieces) else "length",
    )


def _pieces(text: str) -> list[str]:
    return [text[at : at + 4] for at in range(0, len(text), 4)]


def _usage(prompt: int, completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _chat_answer(chat: _Chat, manner: Manner, created: int, headers: faults.Headers) -> Answer:
    said = [_say(chat, manner, choice) for choice in range(chat.n)]
    prompt = prompt_tokens(chat.messages)
    common: dict[str, Any] = {
        "id": f"chatcmpl-{secrets.token_hex(14)}",
        "object": "chat.completion",
        "created": created,
        "model": chat.model,
        "system_fingerprint": "sim",
    }
    if chat.stream:
        return _stream_answer(chat, manner, headers, said, common)
    billed = sum(len(one.deltas) for one in said)
    choices = [
        {"index": at, "message": one.message, "logprobs": None, "finish_reason": one.finish}
        for at, one in enumerate(said)
    ]
    return Answer(
        (faults.JSON_TYPE, *headers),
        manner.latency,
        manner.ttft,
        manner.gap,
        stream=False,
        body={**common, "choices": choices, "usage": _usage(prompt, billed)},
        billed=billed,
    )


def _stream_answer(
    chat: _Chat,
    manner: Manner,
    headers: faults.Headers,
    said: list[_Said],
    common: dict[str, Any],
) -> Answer:
    common["object"] = "chat.completion.chunk"
    tail: dict[str, Any] = {"usage": None} if chat.include_usage else {}

    def told(at: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": at, "delta": delta, "logprobs": None, "finish_reason": finish}
        return faults.event({**common, "choices": [choice], **tail})

    # Texts are poured into one shell per choice: four times as fast as a whole chunk per token.
    shells = [told(at, {"content": "\0"}).rpartition(b'"\\u0000"') for at in range(len(said))]

    def token(at: int, delta: dict[str, Any]) -> bytes:
        if "content" not in delta:
            return told(at, delta)
        before, _, after = shells[at]
        return before + json.dumps(delta["content"]) + after

    rows = itertools.zip_longest(*(one.deltas for one in said))
    tokens = [token(at, delta) for row in rows for at, delta in enumerate(row) if delta is not None]
    prompt = prompt_tokens(chat.messages)
    content = "" if chat.tool is None else None
    role = {"role": "assistant", "content": content, "refusal": None}
    return Answer(
        (faults.SSE_TYPE, *headers),
        manner.latency,
        manner.ttft,
        manner.gap,
        stream=True,
        role=b"".join(told(at, role) for at in range(len(said))),
        tokens=tokens,
        finish=b"".join(told(at, {}, one.finish) for at, one in enumerate(said)),
        asked_usage=chat.include_usage,
        usage=lambda sent: faults.event({**common, "choices": [], "usage": _usage(prompt, sent)}),
    )


def _embeddings(
    body: Mapping[str, Any], manner: Manner, headers: faults.Headers
) -> tuple[Answer, int]:
    """Unit vectors of 8 (or `dimensions`) numbers that follow from the input; prompt tokens."""
    model, given = body.get("model"), body.get("input")
    if not isinstance(model, str) or not model:
        raise _Mistaken("you must provide a model parameter")
    tokens = isinstance(given, list) and bool(given) and isinstance(given[0], int)
    inputs: list[Any] = given if isinstance(given, list) and not tokens else [given]
    if not given or not all(isinstance(one, str | list) for one in inputs):
        raise _Mistaken("'$.input' is invalid.")
    size = _whole(body, "dimensions", 8)
    if size > 4096:
        raise _Mistaken("Invalid 'dimensions': integer above maximum value.")
    prompt = sum(len(one) if isinstance(one, list) else _quarter(one) for one in inputs)
    data = []
    for at, one in enumerate(inputs):
        vector = _vector(one, size)
        told: Any = vector
        if body.get("encoding_format") == "base64":
            told = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        data.append({"object": "embedding", "index": at, "embedding": told})
    usage = {"prompt_tokens": prompt, "total_tokens": prompt}
    whole = {"object": "list", "data": data, "model": model, "usage": usage}
    head = (faults.JSON_TYPE, *headers)
    return Answer(head, manner.latency, manner.ttft, 0.0, stream=False, body=whole), prompt


def _vector(given: Any, size: int) -> list[float]:
    dice = random.Random(json.dumps(given))
    numbers = [dice.uniform(-1, 1) for _ in range(size)]
    length = math.hypot(*numbers)
    return [round(number / length, 6) for number in numbers]


# --------------------------------------------------------------------------------- what was called


@dataclass(slots=True)
class Call:
    """One call of a provider, filled in as it goes; times are the clock's monotonic seconds.

    `prompt_tokens` and `completion_tokens` are the billed ones. `finished`: the whole answer was
    written. `closed_by_client_after`: seconds from the whole request being read (`started`) to the
    client closing while the call was open, else None; that moment is `ended`. `status` is the one
    sent, 0 as long as no head was.
    """

    name: str
    attempt_id: str | None
    path: str
    headers: dict[str, str]
    body: bytes
    started: float
    fault: str | None = None
    status: int = 0
    ended: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finished: bool = False
    closed_by_client_after: float | None = None
    forgotten: bool = field(default=False, repr=False)  # `clear` came after it began


@dataclass(frozen=True, slots=True)
class Invoice:
    """What is owed: exact over all calls, also those no longer kept."""

    calls: int = 0
    billed_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Invoice") -> "Invoice":
        return Invoice(
            self.calls + other.calls,
            self.billed_calls + other.billed_calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(slots=True)
class _Provider:
    """One name: its manner, its faults to come, its counters."""

    manner: Manner | None = None
    script: deque[Fault | None] = field(default_factory=deque)
    standing: Fault | None = None
    times: int | None = None  # how often `standing` is still to happen; None: for ever
    invoice: Invoice = field(default_factory=Invoice)
    in_flight: int = 0
    max_in_flight: int = 0

    def next(self) -> Fault | None:
        if self.script:
            return self.script.popleft()
        if self.times is not None:
            if self.times <= 0:
                self.standing = self.times = None
                return None
            self.times -= 1
        return self.standing

    def forget(self) -> None:
        self.script.clear()
        self.manner = self.standing = self.times = None
        self.invoice, self.max_in_flight = Invoice(), self.in_flight

    @property
    def troubled(self) -> bool:
        return bool(self.script) or (self.standing is not None and self.times != 0)


# -------------------------------------------------------------------------------------- connection


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class _Unreadable(ValueError):
    """Not HTTP/1.1, or beyond a limit."""


class _Connection(asyncio.Protocol):
    """One accepted connection: reads requests, writes what it is told, knows when it is left."""

    def __init__(self, upstream: "Upstream") -> None:
        self._upstream = upstream
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
        self._upstream.joined(self)

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
        self._upstream.parted(self)

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

    async def request(self) -> _Request:
        """The next request, whole.

        Raises:
            _Unreadable: not HTTP, or too large.
        """
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > HEAD_LIMIT:
                raise _Unreadable("head too large")
            await self._fed()
        first, *lines = self._take(end + 4)[:-4].decode("latin-1").split("\r\n")
        line = first.split(" ")
        if len(line) != 3 or not line[2].startswith("HTTP/1."):
            raise _Unreadable("not HTTP/1.1")
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
                raise _Unreadable("bad content-length")
            body = await self._exactly(int(length))
        return _Request(line[0], line[1].partition("?")[0], headers, body)

    async def _chunked(self) -> bytes:
        body = bytearray()
        while True:
            try:
                size = int((await self._line()).partition(b";")[0], 16)
            except ValueError:
                raise _Unreadable("bad chunk") from None
            if size < 0 or len(body) + size > BODY_LIMIT:
                raise _Unreadable("body too large")
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
                raise _Unreadable("line too long")
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


# -------------------------------------------------------------------------------------- the server


class Upstream:
    """The simulator in the caller's event loop; see the module.

    A name needs no registration: it is well until something else is asked for it.
    """

    def __init__(
        self, manner: Manner | None = None, *, clock: Clock | None = None, keep: int = KEEP_CALLS
    ) -> None:
        self._manner = manner or Manner()
        self._clock = clock or SystemClock()
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._providers: dict[str, _Provider] = {}
        self._calls: deque[Call] = deque(maxlen=keep)
        self._heavy: deque[Call] = deque()
        self._weight = 0
        self._in_flight = self._max_in_flight = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self.port = 0
        self.connections_total = 0

    async def start(self, port: int = 0) -> None:
        """Listen on 127.0.0.1; port 0 takes a free one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", port, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening, reset what is open, end every task. The log stays readable."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for connection in list(self._open):
            connection.reset()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._empty.wait()  # aborted transports are lost in the next turns
        if server is not None:
            await server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def base_url(self, name: str) -> str:
        """What a client or a configuration calls `base_url`."""
        return f"http://127.0.0.1:{self.port}/{name}/v1"

    def set(self, name: str, fault: Fault | None, *, times: int | None = None) -> None:
        """`fault` on every call of `name` from now on, or on the next `times`; None: well.

        Ends a script. The name `*` stands for every provider with no fault of its own.
        """
        provider = self._provider(name)
        provider.script.clear()
        provider.standing, provider.times = fault, times

    def script(self, name: str, faults: Iterable[Fault | None]) -> None:
        """One of `faults` per call (None: a well one), in order; then well again."""
        self.set(name, None)
        self._provider(name).script.extend(faults)

    def manner(self, name: str, manner: Manner | None) -> None:
        """How `name` answers from now on; None: like all the others."""
        self._provider(name).manner = manner

    def calls(self, name: str | None = None) -> list[Call]:
        """The calls of `name` or of all, oldest first, those under way included; live objects."""
        return [call for call in self._calls if name is None or call.name == name]

    def invoice(self, name: str | None = None) -> Invoice:
        """What `name` or all of them have billed so far, those under way included."""
        if name is not None:
            return self._provider(name).invoice
        return sum((one.invoice for one in self._providers.values()), Invoice())

    def in_flight(self, name: str | None = None) -> int:
        """Calls read and not yet over."""
        return self._in_flight if name is None else self._provider(name).in_flight

    def max_in_flight(self, name: str | None = None) -> int:
        """The most there were at once."""
        return self._max_in_flight if name is None else self._provider(name).max_in_flight

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._open)

    def clear(self) -> None:
        """Forget faults, manners, calls and invoices.

        Calls under way go on and stay in flight, but appear in no list and no invoice any more.
        """
        for call in self._calls:
            call.forgotten = True
        for provider in self._providers.values():
            provider.forget()
        self._calls.clear()
        self._heavy.clear()
        self._weight, self._max_in_flight = 0, self._in_flight
        self.connections_total = len(self._open)

    # what connections call

    def joined(self, connection: _Connection) -> None:
        self.connections_total += 1
        self._open.add(connection)
        self._empty.clear()
        if self._server is None:  # accepted while we closed
            connection.reset()
            return
        door = self._providers.get(ANY)
        if door is not None and self._at_the_door(door):
            door.next()
            connection.close()
            return
        # Owned: `close` ends every task of this set, and `_over` reports what one dies of.
        task = asyncio.get_running_loop().create_task(self._converse(connection))
        connection.task = task
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def parted(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._empty.set()

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            told = {"message": "the simulator is broken", "exception": error, "task": task}
            task.get_loop().call_exception_handler(told)

    @staticmethod
    def _at_the_door(door: _Provider) -> bool:
        coming = door.script[0] if door.script else door.standing if door.troubled else None
        return coming is not None and coming.kind == "hang_up"

    async def _converse(self, connection: _Connection) -> None:
        try:
            while not connection.closing:
                request = await connection.request()
                if not await self._answer(connection, request):
                    break
                if request.headers.get("connection", "").lower() == "close":
                    break
        except _Unreadable as error:
            connection.write(_error(400, str(error)))
        finally:
            if not connection.stale:
                connection.close()

    async def _answer(self, connection: _Connection, request: _Request) -> bool:
        """Whether the connection may be used again."""
        first, _, rest = request.path.strip("/").partition("/")
        if first == "__sim":
            name, _, what = rest.partition("/")
            connection.write(self._controlled(request, name, what))
        elif not _NAME.fullmatch(first) or self._full(first):
            connection.write(_error(404, "no such provider"))
        elif (request.method, rest) == ("GET", "v1/models"):
            connection.write(_models(first))
        elif request.method == "POST" and rest in ("v1/chat/completions", "v1/embeddings"):
            return await self._called(connection, request, first, rest)
        else:
            connection.write(_error(404, f"Invalid URL ({request.method} {request.path})"))
        return True

    async def _called(
        self, connection: _Connection, request: _Request, name: str, path: str
    ) -> bool:
        provider = self._provider(name)
        fault = provider.next() if provider.troubled else self._provider(ANY).next()
        started = self._clock.monotonic()
        sent_id = request.headers.get("x-request-id")
        call = Call(name, sent_id, request.path, request.headers, request.body, started)
        call.fault = None if fault is None else fault.kind
        self._began(provider, call)
        try:
            manner = provider.manner or self._manner
            try:
                answer, prompt = self._composed(path, request.body, manner)
            except _Mistaken as mistake:
                fault, prompt = faults.bad_request(str(mistake)), 0
                answer = Answer(_identity(manner), manner.latency, 0.0, 0.0, stream=False)
            return await self._play(connection, faults.perform(fault, answer), call, prompt)
        finally:
            call.ended = self._clock.monotonic()
            if connection.left:
                call.closed_by_client_after = call.ended - started
            provider.in_flight -= 1
            self._in_flight -= 1

    def _began(self, provider: _Provider, call: Call) -> None:
        provider.invoice += Invoice(calls=1)
        provider.in_flight += 1
        provider.max_in_flight = max(provider.max_in_flight, provider.in_flight)
        self._in_flight += 1
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        self._calls.append(call)
        self._heavy.append(call)
        self._weight += len(call.body) + 1024
        while self._weight > KEEP_BODIES and len(self._heavy) > 1:
            old = self._heavy.popleft()
            self._weight -= len(old.body) + 1024
            old.body, old.headers = b"", {}

    def _composed(self, path: str, body: bytes, manner: Manner) -> tuple[Answer, int]:
        """The well answer and its prompt tokens; raises _Mistaken."""
        try:
            asked = json.loads(body)
        except json.JSONError:
            raise _Mistaken("We could not parse the JSON body of your request.") from None
        if not isinstance(asked, dict):
            raise _Mistaken("Invalid type for the body: expected an object.")
        headers = _identity(manner)
        try:
            if path == "v1/embeddings":
                return _embeddings(asked, manner, headers)
            chat = _Chat.of(asked)
            answer = _chat_answer(chat, manner, int(self._clock.now()), headers)
            return answer, prompt_tokens(chat.messages)
        except _Mistaken:
            raise
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            raise _Mistaken("A member of the body has the wrong shape.") from None

    async def _play(
        self, connection: _Connection, steps: Iterator[Step], call: Call, prompt: int
    ) -> bool:
        """Write the steps; what is due at once goes out together and is billed as it goes."""
        due, tokens, bills, finished = bytearray(), 0, False, False

        async def flush() -> None:
            nonlocal due, tokens, bills, finished
            await connection.room()
            if bills:
                self._bill(call, prompt, tokens)
            call.finished = call.finished or finished
            connection.write(bytes(due))
            due, tokens, bills, finished = bytearray(), 0, False, False

        end: faults.End = ""
        for step in steps:
            if due and (step.wait or len(due) > FLUSH):
                await flush()
            if step.wait:
                await self._wait(step.wait)
            due += step.data
            tokens, bills, finished = (
                tokens + step.tokens,
                bills or step.bills,
                finished or step.finished,
            )
            call.status = step.status or call.status
            end = step.end
        if due:
            await flush()
        return connection.end(end)

    async def _wait(self, seconds: float) -> None:
        if seconds == math.inf:
            await asyncio.get_running_loop().create_future()  # until the client or `close` ends it
        await self._clock.sleep(seconds)

    def _bill(self, call: Call, prompt: int, tokens: int) -> None:
        """The prompt once, the tokens as they go."""
        if call.forgotten:
            return
        first = call.prompt_tokens == 0 and call.completion_tokens == 0
        owed = Invoice(0, int(first), prompt if first else 0, tokens)
        call.prompt_tokens += owed.prompt_tokens
        call.completion_tokens += tokens
        self._provider(call.name).invoice += owed

    def _provider(self, name: str) -> _Provider:
        found = self._providers.get(name)
        if found is None:
            found = self._providers[name] = _Provider()
        return found

    def _full(self, name: str) -> bool:
        return name not in self._providers and len(self._providers) >= KEEP_NAMES

    # asked from outside

    def _controlled(self, request: _Request, name: str, what: str) -> bytes:
        if (name != ANY and not _NAME.fullmatch(name)) or self._full(name):
            return _error(404, "no such provider")
        match request.method, what:
            case "POST", "fault":
                return self._fault_asked(name, request.body)
            case "DELETE", "fault":
                self.set(name, None)
                return _json(200, {"fault": None})
            case "GET", "calls":
                return _json(200, self._told_calls(name))
            case _:
                return _error(404, "there are: POST and DELETE fault, GET calls")

    def _fault_asked(self, name: str, body: bytes) -> bytes:
        try:
            asked = json.loads(body)
            if not isinstance(asked, dict) or not isinstance(asked.get("kind"), str):
                raise faults.UnknownFault(f"'kind' is one of: {' '.join(sorted(faults.KINDS))}")
            times = asked.pop("times", None)
            if times is not None and (not isinstance(times, int) or times < 0):
                raise faults.UnknownFault("'times' is a whole number")
            kind = asked.pop("kind")
            self.set(name, faults.of(kind, asked), times=times)
        except ValueError as error:
            return _error(400, str(error), kinds=sorted(faults.KINDS))
        return _json(200, {"fault": kind, "times": times})

    def _told_calls(self, name: str) -> dict[str, Any]:
        invoice = self.invoice(name)
        return {
            "calls": [
                {
                    "attempt_id": call.attempt_id,
                    "path": call.path,
                    "started": call.started,
                    "ended": call.ended,
                    "fault": call.fault,
                    "status": call.status,
                    "prompt_tokens": call.prompt_tokens,
                    "completion_tokens": call.completion_tokens,
                    "finished": call.finished,
                    "closed_by_client_after": call.closed_by_client_after,
                }
                for call in self.calls(name)
            ],
            "invoice": {
                "calls": invoice.calls,
                "billed_calls": invoice.billed_calls,
                "prompt_tokens": invoice.prompt_tokens,
                "completion_tokens": invoice.completion_tokens,
            },
            "in_flight": self.in_flight(name),
            "max_in_flight": self.max_in_flight(name),
        }


def _identity(manner: Manner) -> faults.Headers:
    spent = f"{(manner.latency + manner.ttft) * 1000:.0f}"
    own = f"req_{secrets.token_hex(16)}"
    return (("x-request-id", own), ("openai-processing-ms", spent), *manner.headers)


def _json(status: int, value: Any) -> bytes:
    return faults.reply(status, (faults.JSON_TYPE,), json.dumps(value)).data


def _error(status: int, message: str, **more: Any) -> bytes:
    told = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return _json(status, {"error": {**told, **more}})


def _models(name: str) -> bytes:
    models = [
        {"id": model, "object": "model", "created": 1_700_000_000, "owned_by": "sim"}
        for model in ("sim", name)
    ]
    return _json(200, {"object": "list", "data": models})


# ------------------------------------------------------------------------------ in its own loop


class UpstreamThread:
    """An `Upstream` in a thread with its own loop: the same words, to be called from any thread."""

    def __init__(self, manner: Manner | None = None, *, keep: int = KEEP_CALLS) -> None:
        self._upstream = Upstream(manner, keep=keep)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def start(self, port: int = 0) -> None:
        """Returns when it listens."""
        up = threading.Event()
        failed: list[OSError] = []

        async def live() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            try:
                await self._upstream.start(port)
            except OSError as error:
                failed.append(error)
                return
            finally:
                up.set()
            try:
                await self._stop.wait()
            finally:
                await self._upstream.close()

        self._thread = threading.Thread(
            target=lambda: asyncio.run(live()), name="simulator", daemon=True
        )
        self._thread.start()
        up.wait()
        if failed:
            self._thread.join()
            raise failed[0]

    def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None and self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        return self._upstream.port

    @property
    def connections(self) -> int:
        return self._upstream.connections

    @property
    def connections_total(self) -> int:
        return self._upstream.connections_total

    def base_url(self, name: str) -> str:
        return self._upstream.base_url(name)

    def set(self, name: str, fault: Fault | None, *, times: int | None = None) -> None:
        self._do(lambda: self._upstream.set(name, fault, times=times))

    def script(self, name: str, faults: Iterable[Fault | None]) -> None:
        self._do(lambda: self._upstream.script(name, faults))

    def manner(self, name: str, manner: Manner | None) -> None:
        self._do(lambda: self._upstream.manner(name, manner))

    def calls(self, name: str | None = None) -> list[Call]:
        return self._do(lambda: self._upstream.calls(name))

    def invoice(self, name: str | None = None) -> Invoice:
        return self._do(lambda: self._upstream.invoice(name))

    def in_flight(self, name: str | None = None) -> int:
        return self._do(lambda: self._upstream.in_flight(name))

    def max_in_flight(self, name: str | None = None) -> int:
        return self._do(lambda: self._upstream.max_in_flight(name))

    def clear(self) -> None:
        self._do(self._upstream.clear)

    def _do(self, act: Callable[[], T]) -> T:
        """`act` between two turns of the simulator's loop; directly before and after its life."""
        if self._thread is None or self._loop is None:
            return act()

        async def done() -> T:
            return act()

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(timeout=10)


# ------------------------------------------------------------------------------ as a process


async def _serve(port: int, manner: Manner) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    upstream = Upstream(manner)
    await upstream.start(port)
    try:
        sys.stdout.write(json.dumps({"port": upstream.port}).decode() + "\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await upstream.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m chaos.upstream`."""
    usual = Manner()
    parser = argparse.ArgumentParser(prog="python -m chaos.upstream", description="The simulator.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--tokens", type=int, default=usual.tokens, help="length of an answer")
    parser.add_argument("--latency", type=float, default=usual.latency, help="s before the head")
    parser.add_argument("--ttft", type=float, default=usual.ttft, help="s to the first content")
    parser.add_argument("--gap", type=float, default=usual.gap, help="s between contents")
    asked = parser.parse_args(arguments)
    manner = Manner(asked.tokens, asked.ttft, asked.gap, asked.latency)
    asyncio.run(_serve(asked.port, manner))


if __name__ == "__main__":
    main()
