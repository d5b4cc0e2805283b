"""A small client of the public and the admin API: for the command line, chaos and benchmarks.

It never retries: the gateway has walked its chain already, and `x-should-retry` says whether a
repeat makes sense. What the gateway answers with becomes the same exception it raised.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp

from gateway import errors
from gateway.client.stream import DONE, Frames, StreamBroken
from gateway.clock import Clock
from gateway.wire import json

MAX_ANSWER = 32 * 1024 * 1024
MAX_ERROR = 256 * 1024
CONNECT = 5.0  # seconds
PATIENCE = 610.0  # seconds for a whole answer: a chain's longest usual deadline and a little
SILENCE = 120.0  # seconds without a byte: keep-alives come every 25


class Unreachable(errors.GatewayError):
    """Nobody answered, or what answered does not speak HTTP as we know it."""

    status = 0
    type = "connection_error"
    default_code = "unreachable"


class Cut(errors.UpstreamFailed):
    """An answer ended before it was complete."""

    default_code = "cut_stream"


_BY_STATUS: Mapping[int, type[errors.GatewayError]] = {
    kind.status: kind
    for kind in (
        errors.InvalidRequest,
        errors.Unauthenticated,
        errors.NotAllowed,
        errors.NotFound,
        errors.MethodNotAllowed,
        errors.SlowRequest,
        errors.TooLarge,
        errors.UnsupportedEncoding,
        errors.RateLimited,
        errors.UpstreamFailed,
        errors.Overloaded,
        errors.UpstreamTimedOut,
    )
}


def failure(status: int, headers: Mapping[str, str], body: bytes) -> errors.GatewayError:
    """The exception that an error answer stands for; header names in lower case."""
    told = _error_of(body)
    kind = _BY_STATUS.get(status)
    if kind is None:
        kind = errors.InvalidRequest if 300 <= status < 500 else errors.GatewayError
    message = told.get("message")
    error = kind(
        message if isinstance(message, str) and message else f"The answer was HTTP {status}.",
        code=_text(told.get("code")),
        param=_text(told.get("param")),
        retry_after=_retry_after(headers, told),
        scope=_text(told.get("scope")),
    )
    error.status = status
    error.request_id = _text(told.get("request_id")) or headers.get("x-request-id", "")
    attempts = told.get("attempts")
    if isinstance(attempts, list):
        error.attempts = [a for a in attempts if isinstance(a, dict)]
    error.told = {
        name: value
        for name, value in headers.items()
        if name.startswith("x-gateway-") or name == "x-should-retry"
    }
    return error


def should_retry(error: errors.GatewayError) -> bool:
    """Whether a repeat makes sense: the header's word, else the error's own."""
    said = error.told.get("x-should-retry")
    return error.should_retry if said is None else said == "true"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. Header names in lower case; `seconds` from sending to the last byte."""

    status: int
    headers: Mapping[str, str]
    body: Any
    seconds: float

    @property
    def request_id(self) -> str:
        return self.headers.get("x-request-id", "")


@dataclass(slots=True)
class Stream:
    """An answer in pieces. `note` is the gateway's own story, known at the end.

    `first_content` and `seconds` are measured here, from sending.
    """

    status: int
    headers: Mapping[str, str]
    _response: aiohttp.ClientResponse
    _clock: Clock
    _began: float
    note: dict[str, Any] = field(default_factory=dict)
    first_content: float | None = None
    seconds: float = 0.0
    done: bool = False

    @property
    def request_id(self) -> str:
        return self.headers.get("x-request-id", "")

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The JSON events until `[DONE]`.

        Raises:
            gateway.errors.GatewayError: an error event, or an end before `[DONE]` (`Cut`).
        """
        frames = Frames()
        try:
            async for received in self._response.content.iter_any():
                for frame in frames.feed(received):
                    if frame.comment:
                        self._remark(frame.comment)
                    elif frame.data == DONE:
                        self.done = True
                    else:
                        yield self._chunk(frame.data)
        except (aiohttp.ClientError, TimeoutError, StreamBroken, ValueError):
            if not self.done:
                raise self._cut() from None
        finally:
            self.seconds = self._clock.monotonic() - self._began
        if not self.done:
            raise self._cut()

    def _remark(self, comment: str) -> None:
        kind, _, rest = comment.partition(" ")
        if kind != "gateway":
            return
        try:
            told = json.loads(rest.encode())
        except json.JSONError:
            return
        if isinstance(told, dict):
            self.note = told

    def _chunk(self, data: bytes) -> dict[str, Any]:
        chunk = json.loads(data)  # JSONError is a ValueError: a cut
        if not isinstance(chunk, dict):
            raise StreamBroken("an event is no object")
        if isinstance(chunk.get("error"), dict):
            self.done = True
            error = failure(self._status_of(chunk["error"]), self.headers, data)
            raise error
        if self.first_content is None and content_of(chunk):
            self.first_content = self._clock.monotonic() - self._began
        return chunk

    def _status_of(self, error: Mapping[str, Any]) -> int:
        for status, kind in _BY_STATUS.items():
            if error.get("type") == kind.type and status >= 500:
                return status
        return 429 if error.get("type") == errors.RateLimited.type else 500

    def _cut(self) -> Cut:
        error = Cut("The answer ended before it was complete.")
        error.request_id = self.request_id
        return error


def content_of(chunk: Mapping[str, Any]) -> str:
    """The text of the first choice of a chunk, if it has some."""
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return ""
    delta = choices[0].get("delta") or choices[0].get("message")
    text = delta.get("content") if isinstance(delta, dict) else None
    return text if isinstance(text, str) else ""


class GatewayClient:
    """One base URL, one key; use it as a context.

    Args:
        base_url: `http://127.0.0.1:8080/v1` for the public API, `http://127.0.0.1:8081` for admin.
        api_key: sent as a bearer token; empty: none is sent.
    """

    def __init__(
        self, base_url: str, api_key: str, clock: Clock, *, patience: float = PATIENCE
    ) -> None:
        self._base = base_url.rstrip("/")
        self._key = api_key.strip()
        self._clock = clock
        self._patience = patience
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"authorization": f"Bearer {self._key}"} if self._key else {},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            max_field_size=65_536,
            max_line_size=65_536,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def models(self) -> list[dict[str, Any]]:
        """What this key may use, as `GET /v1/models` lists it."""
        listed = (await self.get("/models")).body
        found = listed.get("data") if isinstance(listed, dict) else None
        return [model for model in found or [] if isinstance(model, dict)]

    async def chat(
        self, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> Answer:
        """A whole answer of `/chat/completions`."""
        return await self.post("/chat/completions", body, headers)

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> Answer:
        async with self._call("GET", path, None, {}, query) as (response, began):
            return await self._whole(response, began)

    async def post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        async with self._call("POST", path, body or {}, headers or {}, None) as (response, began):
            return await self._whole(response, began)

    @asynccontextmanager
    async def stream(
        self, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Stream]:
        """A streamed answer of `/chat/completions`; leaving the context hangs up.

        Raises:
            gateway.errors.GatewayError: refused before the first event.
        """
        asked = {**body, "stream": True}
        call = self._call("POST", "/chat/completions", asked, headers or {}, None)
        async with call as (response, began):
            yield Stream(response.status, _lower(response), response, self._clock, began)

    @asynccontextmanager
    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None,
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, float]]:
        if self._session is None:
            raise AssertionError("use the client as a context")
        streaming = body is not None and body.get("stream") is True
        timeout = aiohttp.ClientTimeout(
            total=None if streaming else self._patience,
            sock_connect=CONNECT,
            sock_read=min(SILENCE, self._patience) if streaming else None,
        )
        began = self._clock.monotonic()
        try:
            response = await self._session.request(
                method,
                self._base + path,
                data=None if body is None else json.dumps(body),
                headers={
                    **({"content-type": "application/json"} if body is not None else {}),
                    **headers,
                },
                params=query,
                timeout=timeout,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unreachable(f"{self._base} does not answer: {_why(error)}.") from None
        try:
            if response.status >= 300:
                raise failure(response.status, _lower(response), await _read(response, MAX_ERROR))
            yield response, began
        finally:
            response.close()

    async def _whole(self, response: aiohttp.ClientResponse, began: float) -> Answer:
        body = await _read(response, MAX_ANSWER)
        try:
            value = json.loads(body) if body else None
        except json.JSONError:
            raise Unreachable(f"{self._base} answered, but not in JSON.") from None
        return Answer(response.status, _lower(response), value, self._clock.monotonic() - began)


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        async for part in response.content.iter_any():
            size += len(part)
            if size > limit:
                raise Cut(f"The answer is longer than {limit} bytes.")
            parts.append(part)
    except (aiohttp.ClientError, TimeoutError):
        raise Cut("The answer ended before it was complete.") from None
    return b"".join(parts)


def _lower(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _error_of(body: bytes) -> dict[str, Any]:
    try:
        told = json.loads(body)
    except json.JSONError:
        return {}
    error = told.get("error") if isinstance(told, dict) else None
    return error if isinstance(error, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _retry_after(headers: Mapping[str, str], told: Mapping[str, Any]) -> float | None:
    """Seconds; milliseconds say it best."""
    for value, unit in (
        (told.get("retry_after_ms"), 0.001),
        (headers.get("retry-after-ms"), 0.001),
        (headers.get("retry-after"), 1.0),
    ):
        if isinstance(value, str | int | float):
            with contextlib.suppress(ValueError):
                return max(0.0, float(value) * unit)
    return None


def _why(error: Exception) -> str:
    """Our words for why nobody answered; a library's text may quote the URL's secrets."""
    if isinstance(error, aiohttp.InvalidURL | ValueError):
        return "that is not an address, or the key holds characters a header may not"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name is not known"
    if isinstance(error, aiohttp.ClientSSLError):
        return "its certificate is not trusted"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "the connection was refused"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return "the connection broke"
