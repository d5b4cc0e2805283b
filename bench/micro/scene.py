"""What the micro-benchmarks are played with: the configuration of the big bench, and fakes."""

import asyncio
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

BENCH = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(BENCH), str(BENCH.parent)]

from bodies import BODIES  # noqa: E402
from servers import configuration  # noqa: E402

from gateway.clock import Deadline, SystemClock  # noqa: E402
from gateway.config.load import load_text  # noqa: E402
from gateway.core.attempt import StreamEvent  # noqa: E402
from gateway.core.events import Event  # noqa: E402
from gateway.core.ports import UpstreamRequest, Voice  # noqa: E402
from gateway.core.principal import Credential  # noqa: E402
from gateway.core.request import NO_HINTS  # noqa: E402
from gateway.core.snapshot import Snapshot  # noqa: E402
from gateway.core.target import Timeouts  # noqa: E402

KEY = "sk-bench-0123456789abcdef"
FOLDER = Path(tempfile.mkdtemp(prefix="bench-micro-"))
HEADERS = (
    (b"Host", b"127.0.0.1:8080"), (b"Accept", b"application/json"),
    (b"Content-Type", b"application/json"), (b"User-Agent", b"OpenAI/Python 2.8.0"),
    (b"X-Stainless-Lang", b"python"), (b"X-Stainless-Package-Version", b"2.8.0"),
    (b"X-Stainless-OS", b"Linux"), (b"X-Stainless-Arch", b"x64"),
    (b"X-Stainless-Runtime", b"CPython"), (b"X-Stainless-Retry-Count", b"0"),
    (b"Authorization", b"Bearer " + KEY.encode()), (b"Content-Length", b"913"),
)  # fmt: skip

_USAGE = {
    "prompt_tokens": 212,
    "completion_tokens": 128,
    "total_tokens": 340,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}
_COMMON = {"id": "chatcmpl-BenchAbCdEfGhIjKlMnOpQr", "created": 1_763_640_000}
_COMMON |= {"model": "gpt-4o-mini-2024-07-18", "service_tier": "default"}


def completion() -> bytes:
    message = {"role": "assistant", "content": "The quick brown fox rests. " * 22, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return json.dumps(
        _COMMON | {"object": "chat.completion", "choices": [choice], "usage": _USAGE},
        separators=(",", ":"),
    ).encode()


def chunk(text: str, *, role: bool = False) -> bytes:
    delta = ({"role": "assistant"} if role else {}) | {"content": text}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    told = _COMMON | {"object": "chat.completion.chunk", "choices": [choice], "usage": None}
    return b"data: " + json.dumps(told, separators=(",", ":")).encode() + b"\n\n"


def snapshot() -> Snapshot:
    text = configuration(8080, 8081, 9000, FOLDER, KEY)
    return load_text(text, "micro", {"UPSTREAM_KEY": "sk-upstream"}).snapshot


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run what does not wait, without a loop."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("it waited")


class Call:
    """A request whose body is here."""

    def __init__(self, body: bytes, started: float) -> None:
        self.id = f"req_{random.getrandbits(96):024x}"
        self.api = "chat"
        self.started = started
        self.address = "127.0.0.1"
        self.credential: Credential | None = Credential(None, hashlib.sha256(KEY.encode()).digest())
        self.hints = NO_HINTS
        self._body = body

    async def body(self) -> bytes:
        return self._body


class Reply:
    """A caller who takes everything."""

    def expect(
        self, voice: Voice, keepalive: float, headers: Callable[[], Mapping[str, str]]
    ) -> None:
        self.voice = voice

    async def start(self, headers: Mapping[str, str], voice: Voice) -> None:
        self.voice = voice

    async def write(self, events: Sequence[StreamEvent]) -> None:
        for event in events:
            self.voice.say(event)

    async def finish(self, note: bytes) -> None:
        self.voice.close(note)

    def accepted(self, headers: Mapping[str, str], body: bytes) -> None:
        raise RuntimeError("nothing is parked here")


class Transport:
    """An upstream that has answered before it was asked: `pieces` are its reads."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces

    def send(
        self, request: UpstreamRequest, timeouts: Timeouts, seconds: float, deadline: Deadline
    ) -> "Answered":
        return Answered(self.pieces)


class Answered:
    status = 200
    headers: Mapping[str, str] = {"content-type": "application/json"}

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._left = list(reversed(pieces))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def read(self, limit: int) -> bytes:
        return self._left[0]

    def chunks(self) -> "Answered":
        return self

    def __aiter__(self) -> "Answered":
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()

    def progressed(self) -> None:
        pass

    def ending(self, seconds: float) -> None:
        pass


def deaf(_: Event) -> None:
    """Hears nothing."""


__all__ = [
    "BODIES", "FOLDER", "HEADERS", "KEY", "Answered", "Call", "Reply", "SystemClock", "Transport",
    "asyncio", "chunk", "completion", "deaf", "now", "snapshot",
]  # fmt: skip
