"""The ways a provider fails, as values, and what each does to a well answer.

A fault is made by one of the functions of `KINDS`; its docstring says what a client sees. `perform`
turns a fault and a well answer into steps: bytes, the wait before them and how the connection ends.
All of it is pure; `chaos/upstream.py` plays the steps on a socket.

Where a fault speaks of tokens and events and the caller did not ask for a stream, the nearest thing
happens to the one JSON body, and the docstring says what.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Literal, get_type_hints

from gateway.wire import json

Headers = tuple[tuple[str, str], ...]
Cut = Literal["fin", "rst", "event", "chunk"]
End = Literal["", "fin", "rst", "stale"]

TOGETHER = 64  # tokens in a step when there is no gap between them
COUNT_LIMIT = 64 << 20
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"
JSON_TYPE = ("content-type", "application/json")
SSE_TYPE = ("content-type", "text/event-stream; charset=utf-8")


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to fail; `kind` is the name of the function that made it.

    Which of the other members mean something depends on the kind.
    """

    kind: str
    status: int = 200
    headers: Headers = ()
    body: bytes = b""
    after: int | None = 0
    count: int = 1
    seconds: float | None = None
    every: float | None = None
    how: str = ""

    def __post_init__(self) -> None:
        """ValueError: a number nothing can be done with."""
        if not 200 <= self.status <= 599:
            raise ValueError("status is 200 to 599")
        if (self.after or 0) < 0 or (self.seconds or 0) < 0:
            raise ValueError("tokens and seconds are at least 0")
        if not 0 <= self.count <= COUNT_LIMIT:
            raise ValueError(f"count, size and extra are 0 to {COUNT_LIMIT}")
        if self.every is not None and self.every < 0.001:
            raise ValueError("comments come at most every 0.001 s")
        if any("\n" in name + value or "\r" in name + value for name, value in self.headers):
            raise ValueError("a header is one line")


# ------------------------------------------------------------------ a whole reply instead of ours


def status(
    status: int,
    code: str | None = None,
    message: str | None = None,
    type: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Fault:
    """Any status with OpenAI's error body; `headers` stand on it as given. Bills nothing."""
    told = error_body(message or f"simulated {status}", type or _type_of(status), code)
    return Fault("status", status, _headers(headers, JSON_TYPE), told)


def rate_limited(retry_after: float | None = 1.0, retry_after_ms: float | None = None) -> Fault:
    """429 that time cures, with `retry-after` (seconds) and `retry-after-ms` unless None."""
    headers = {}
    if retry_after is not None:
        headers["retry-after"] = f"{retry_after:g}"
    if retry_after_ms is not None:
        headers["retry-after-ms"] = f"{retry_after_ms:g}"
    return _named(
        "rate_limited",
        status(429, "rate_limit_exceeded", "Rate limit reached for requests", "requests", headers),
    )


def quota() -> Fault:
    """429 `insufficient_quota`: waiting does not cure it."""
    told = "You exceeded your current quota, please check your plan and billing details."
    return _named("quota", status(429, "insufficient_quota", told, "insufficient_quota"))


def auth() -> Fault:
    """401 `invalid_api_key`."""
    told = "Incorrect API key provided."
    return _named("auth", status(401, "invalid_api_key", told, "invalid_request_error"))


def model_gone() -> Fault:
    """404 `model_not_found`."""
    told = "The model does not exist or you do not have access to it."
    return _named("model_gone", status(404, "model_not_found", told, "invalid_request_error"))


def context_length(maximum: int = 8192) -> Fault:
    """400 `context_length_exceeded`, naming `maximum` tokens."""
    told = f"This model's maximum context length is {maximum} tokens. Please reduce the messages."
    return _named("context_length", status(400, "context_length_exceeded", told))


def content_filter() -> Fault:
    """400 `content_filter`, as Azure and OpenAI refuse a prompt."""
    told = "The response was filtered due to the prompt triggering the content management policy."
    return _named("content_filter", status(400, "content_filter", told))


def bad_request(message: str = "Invalid value.", code: str | None = None) -> Fault:
    """A plain 400: the caller's own mistake."""
    return _named("bad_request", status(400, code, message, "invalid_request_error"))


def unsupported_parameter(parameter: str = "temperature") -> Fault:
    """400 `unsupported_parameter`, naming `parameter` in message and `param`."""
    told = f"Unsupported parameter: '{parameter}' is not supported with this model."
    body = error_body(told, "invalid_request_error", "unsupported_parameter", parameter)
    return Fault("unsupported_parameter", 400, (JSON_TYPE,), body)


def server_error(status: int = 500) -> Fault:
    """5xx (500, 502, 504 ...) with OpenAI's error body."""
    told = "The server had an error while processing your request."
    body = error_body(told, "server_error", "server_error" if status == 500 else None)
    return Fault("server_error", status, (JSON_TYPE,), body)


def overloaded(status: int = 503, retry_after: float | None = None) -> Fault:
    """503 or 529: the upstream is full; `retry-after` only if given."""
    headers = None if retry_after is None else {"retry-after": f"{retry_after:g}"}
    body = error_body("The engine is currently overloaded.", "overloaded_error", "overloaded")
    return Fault("overloaded", status, _headers(headers, JSON_TYPE), body)


def redirect(location: str = "/elsewhere/v1/chat/completions", status: int = 307) -> Fault:
    """307 to `location`, empty body."""
    return Fault("redirect", status, (("location", location),))


def error_in_200(code: str | None = "server_error", message: str = "Provider error") -> Fault:
    """200 whose JSON body is an error object, streaming or not."""
    return Fault("error_in_200", 200, (JSON_TYPE,), error_body(message, "server_error", code))


def html(status: int = 200) -> Fault:
    """200 (or another status) with an HTML page, as a proxy in between answers."""
    page = b"<!doctype html><html><body><h1>Just a moment</h1></body></html>\n"
    return Fault("html", status, (("content-type", "text/html"),), page)


def empty(status: int = 200) -> Fault:
    """200 with a body of 0 bytes; the content type is the one that was asked for."""
    return Fault("empty", status)


# ------------------------------------------------------------------------ nothing, or not HTTP


def silence(seconds: float | None = None) -> Fault:
    """The request is read and not one byte is sent; after `seconds` (None: never) all is well."""
    return Fault("silence", seconds=seconds)


def slow(seconds: float = 1.0) -> Fault:
    """`seconds` of extra latency before the head; a well answer."""
    return Fault("slow", seconds=seconds)


def head_silence(seconds: float | None = None) -> Fault:
    """The 200 head at once, then nothing; after `seconds` (None: never) the rest."""
    return Fault("head_silence", seconds=seconds)


def reset() -> Fault:
    """TCP reset after the request was read, before any byte of an answer."""
    return Fault("reset")


def hang_up() -> Fault:
    """The connection is closed (FIN) after the request was read, with no byte of an answer.

    Set for the name `*` it happens at accept, before anything is read.
    """
    return Fault("hang_up")


def junk() -> Fault:
    """The bytes that come back are no HTTP; then FIN."""
    return Fault("junk", body=b"220 mail.example.com ESMTP ready\r\n\r\n")


# ----------------------------------------------------------------- before and between the tokens


def no_token(
    seconds: float | None = None, comments: float | None = 0.1, *, role: bool = True
) -> Fault:
    """Head and role frame, then a comment every `comments` seconds (None: silence), no content.

    After `seconds` (None: never) the content comes. Not streaming: `silence`.
    """
    return Fault("no_token", seconds=seconds, every=comments, count=int(role))


def role_only() -> Fault:
    """A role frame, then the body ends properly: no content, no finish, no `[DONE]`.

    Not streaming: a message with empty content and finish_reason null.
    """
    return Fault("role_only", after=0)


def stall(after: int = 20, seconds: float | None = None) -> Fault:
    """Silence after `after` tokens; after `seconds` (None: never) the rest.

    Not streaming: silence in the middle of the body.
    """
    return Fault("stall", after=after, seconds=seconds)


def cut(after: int = 20, how: Cut = "fin", linger: float = 0.02) -> Fault:
    """The connection breaks after `after` tokens, `linger` seconds after they were written.

    `fin`: closed between two events; `rst`: reset there; `event`: closed within an event at the
    end of an HTTP chunk; `chunk`: closed within an HTTP chunk. Not streaming: head and a part of
    the body, then FIN or RST.
    """
    return Fault("cut", after=after, how=how, seconds=linger)


def no_finish(after: int | None = None) -> Fault:
    """The body ends properly after `after` tokens (None: all), no finish_reason, no `[DONE]`.

    Not streaming: the whole message with finish_reason null.
    """
    return Fault("no_finish", after=after)


def done_without_finish(after: int | None = None) -> Fault:
    """`[DONE]` and a proper end after `after` tokens (None: all), but no finish_reason.

    Not streaming: as `no_finish`.
    """
    return Fault("done_without_finish", after=after)


def no_done(seconds: float | None = None) -> Fault:
    """Finish and usage, no `[DONE]`, the stream stays open for `seconds` (None: for ever).

    `seconds=0` ends the body at once and properly. Not streaming: a well answer.
    """
    return Fault("no_done", seconds=seconds)


def malformed(after: int = 20, count: int = 1) -> Fault:
    """`count` events in a row, in place of those after `after` tokens, hold half of their JSON.

    The others are well, usage counts them all. Not streaming: the body is half of its JSON.
    """
    return Fault("malformed", after=after, count=count)


def oversized(after: int = 20, size: int = (1 << 20) + 4096) -> Fault:
    """One content event (of a text) of `size` bytes after `after` tokens, the rest is well.

    Not streaming: `size` bytes of content in front of the text.
    """
    return Fault("oversized", after=after, count=size)


def error_event(
    after: int = 0, code: str | None = "server_error", message: str = "Provider returned error"
) -> Fault:
    """A `data: {"error": ...}` event after `after` tokens, then the body ends, no `[DONE]`.

    With 0 it is the very first event, before the role frame. Not streaming: `error_in_200`.
    """
    return Fault("error_event", after=after, body=error_body(message, "server_error", code))


def usage_missing() -> Fault:
    """A well answer that never tells its usage, asked or not; it is billed all the same."""
    return Fault("usage_missing")


def usage_then_cut(after: int = 20, linger: float = 0.02) -> Fault:
    """`after` tokens, a usage frame that counts them (asked or not), then FIN; no finish.

    What the frame says is billed. Not streaming: usage stands
    first in the body, and its last byte is missing.
    """
    return Fault("usage_then_cut", after=after, seconds=linger)


# --------------------------------------------------------------------------------- the transport


def wrong_length(extra: int = 100) -> Fault:
    """`content-length` is `extra` larger than the whole, well body; then FIN."""
    return Fault("wrong_length", count=extra)


def drip(seconds: float = 0.001, count: int = 1) -> Fault:
    """A well answer, `count` bytes at a time, `seconds` before each piece, head included."""
    return Fault("drip", seconds=seconds, count=count)


def gzip_lie() -> Fault:
    """`content-encoding: gzip` over a body that is not compressed."""
    return Fault("gzip_lie")


def stale(when: Literal["answer", "reuse"] = "reuse") -> Fault:
    """A well keep-alive answer on a connection that is dead for the next request.

    `answer`: closed right after the answer, unannounced; `reuse`: closed without a byte when the
    next request's first bytes arrive (that request is not a call and takes no fault).
    """
    return Fault("stale", how=when)


_MAKERS: tuple[Callable[..., Fault], ...] = (
    status,
    rate_limited,
    quota,
    auth,
    model_gone,
    context_length,
    content_filter,
    bad_request,
    unsupported_parameter,
    server_error,
    overloaded,
    redirect,
    error_in_200,
    html,
    empty,
    silence,
    slow,
    head_silence,
    reset,
    hang_up,
    junk,
    no_token,
    role_only,
    stall,
    cut,
    no_finish,
    done_without_finish,
    no_done,
    malformed,
    oversized,
    error_event,
    usage_missing,
    usage_then_cut,
    wrong_length,
    drip,
    gzip_lie,
    stale,
)
KINDS: Mapping[str, Callable[..., Fault]] = {make.__name__: make for make in _MAKERS}


class UnknownFault(ValueError):
    """No such kind of fault, or not with these options; the message says what there is."""


def of(kind: str, options: Mapping[str, Any]) -> Fault:
    """The fault named `kind` with `options`, both from outside (HTTP, YAML), checked.

    Raises:
        UnknownFault: with every kind, or every option of this kind.
    """
    make = KINDS.get(kind)
    if make is None:
        raise UnknownFault(f"no fault {kind!r}; there are: {' '.join(sorted(KINDS))}")
    hints, given = get_type_hints(make), {}
    try:
        inspect.signature(make).bind(**options)
        for name, value in options.items():
            given[name] = json.decode(json.dumps(value), hints[name])
        return make(**given)
    except (TypeError, ValueError) as error:
        raise UnknownFault(f"{kind}{inspect.signature(make)}: {error}") from None


# ------------------------------------------------------------------------- a well answer, in steps


@dataclass(frozen=True, slots=True)
class Answer:
    """A well answer in the pieces between which it may fail; waits in seconds.

    A stream has `role`, `tokens`, `finish` and `usage` (whole SSE events, `usage` the numbers for
    any count of tokens); a plain answer has `body` and `billed`.
    """

    headers: Headers
    latency: float
    ttft: float
    gap: float
    stream: bool
    role: bytes = b""
    tokens: Sequence[bytes] = ()
    finish: bytes = b""
    asked_usage: bool = False
    usage: Callable[[int], bytes] = bytes  # of a plain answer never asked
    body: Mapping[str, Any] = field(default_factory=dict)
    billed: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """Wait (inf: until the client leaves), write, end the connection.

    `tokens` are the completion tokens in `data`; `bills`: the prompt is owed from here on;
    `finished`: with this the answer is complete; `status` stands on the step with the head.
    """

    data: bytes = b""
    wait: float = 0.0
    tokens: int = 0
    bills: bool = False
    finished: bool = False
    end: End = ""
    status: int = 0


def perform(fault: Fault | None, answer: Answer) -> Iterator[Step]:
    """The steps of `answer` as `fault` spoils them; may go on for ever."""
    if fault is None:
        return _well(answer)
    act = _STREAM_ACTS.get(fault.kind) if answer.stream else _PLAIN_ACTS.get(fault.kind)
    return (act or _ACTS.get(fault.kind, _reply))(fault, answer)


def error_body(message: str, type: str, code: str | None, param: str | None = None) -> bytes:
    """OpenAI's error object, all four members."""
    return json.dumps({"error": {"message": message, "type": type, "param": param, "code": code}})


def event(value: Any) -> bytes:
    """One SSE event holding JSON."""
    return b"data: " + json.dumps(value) + b"\n\n"


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def head(status: int, headers: Sequence[tuple[str, str]]) -> bytes:
    """Status line and headers."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def reply(status: int, headers: Headers, body: bytes, wait: float = 0.0) -> Step:
    """A whole reply with its right length."""
    length = ("content-length", str(len(body)))
    return Step(head(status, (*headers, length)) + body, wait, status=status)


def _well(answer: Answer) -> Iterator[Step]:
    return _stream_to_end(answer) if answer.stream else _plain(answer, answer.body)


def _stream_to_end(answer: Answer) -> Iterator[Step]:
    yield from _begin(answer, None)
    yield from _finish(answer)
    yield Step(chunk(DONE) + LAST_CHUNK)


def _begin(answer: Answer, after: int | None) -> Iterator[Step]:
    """Head, role frame and the first `after` tokens (None: all)."""
    yield _stream_head(answer)
    yield Step(chunk(answer.role))
    yield from _tokens(answer, 0, after)


def _stream_head(answer: Answer) -> Step:
    headers = (*answer.headers, ("transfer-encoding", "chunked"))
    return Step(head(200, headers), answer.latency, status=200)


def _tokens(answer: Answer, first: int, last: int | None = None) -> Iterator[Step]:
    tokens, wait = answer.tokens[first:last], answer.gap if first else answer.ttft
    together = 1 if answer.gap else TOGETHER
    for at in range(0, len(tokens), together):
        some = tokens[at : at + together]
        data = b"".join([chunk(token) for token in some])
        yield Step(data, wait, tokens=len(some), bills=True)
        wait = answer.gap


def _finish(answer: Answer) -> Iterator[Step]:
    """Finish reason and, if asked, usage; with the last of them the answer is complete."""
    yield Step(chunk(answer.finish), bills=True, finished=not answer.asked_usage)
    if answer.asked_usage:
        yield Step(chunk(answer.usage(len(answer.tokens))), finished=True)


def _wait(answer: Answer) -> float:
    return answer.latency + answer.ttft + answer.gap * max(0, answer.billed - 1)


def _plain(
    answer: Answer, body: Mapping[str, Any], headers: Headers = (), *, finished: bool = True
) -> Iterator[Step]:
    whole = reply(200, answer.headers + headers, json.dumps(body), _wait(answer))
    yield replace(whole, tokens=answer.billed, bills=True, finished=finished)


# --------------------------------------------------------------- what the faults do, by their kind

Act = Callable[[Fault, Answer], Iterator[Step]]


def _reply(fault: Fault, answer: Answer) -> Iterator[Step]:
    headers = fault.headers
    if fault.kind == "empty":
        headers = tuple(pair for pair in answer.headers if pair[0] == "content-type")
    own = tuple(pair for pair in answer.headers if pair[0] != "content-type")
    yield reply(fault.status, own + headers, fault.body, answer.latency)


def _late(fault: Fault, answer: Answer) -> Iterator[Step]:
    yield Step(wait=_ever(fault.seconds))
    yield from _well(answer)


def _reset(_: Fault, answer: Answer) -> Iterator[Step]:
    yield Step(wait=answer.latency, end="rst")


def _hang_up(fault: Fault, answer: Answer) -> Iterator[Step]:
    yield Step(fault.body, answer.latency, end="fin")


def _drip(fault: Fault, answer: Answer) -> Iterator[Step]:
    pause, size = fault.seconds or 0.0, max(1, fault.count)
    for step in _well(answer):
        pieces = [step.data[at : at + size] for at in range(0, len(step.data), size)]
        for piece in pieces[:-1]:
            yield Step(piece, pause)
        yield replace(step, data=pieces[-1], wait=step.wait + pause)


def _gzip_lie(_: Fault, answer: Answer) -> Iterator[Step]:
    return _well(replace(answer, headers=(*answer.headers, ("content-encoding", "gzip"))))


def _stale(fault: Fault, answer: Answer) -> Iterator[Step]:
    yield from _well(answer)
    yield Step(end="fin" if fault.how == "answer" else "stale")


def _wrong_length(fault: Fault, answer: Answer) -> Iterator[Step]:
    if answer.stream:
        usage = answer.usage(len(answer.tokens)) if answer.asked_usage else b""
        data = b"".join((answer.role, *answer.tokens, answer.finish, usage, DONE))
        billed = len(answer.tokens)
    else:
        data, billed = json.dumps(answer.body), answer.billed
    headers = (*answer.headers, ("content-length", str(len(data) + fault.count)))
    yield Step(head(200, headers), _wait(replace(answer, billed=billed)), status=200)
    yield Step(data, tokens=billed, bills=True, finished=True, end="fin")


def _stream_head_silence(fault: Fault, answer: Answer) -> Iterator[Step]:
    yield _stream_head(answer)
    yield Step(wait=_ever(fault.seconds))
    yield Step(chunk(answer.role))
    yield from _tokens(answer, 0)
    yield from _finish(answer)
    yield Step(chunk(DONE) + LAST_CHUNK)


def _stream_no_token(fault: Fault, answer: Answer) -> Iterator[Step]:
    yield _stream_head(answer)
    if fault.count:
        yield Step(chunk(answer.role))
    left = _ever(fault.seconds)
    if fault.every is None:
        yield Step(wait=left)
    else:
        while left > fault.every:
            yield Step(chunk(b": SIM PROCESSING\n\n"), fault.every)
            left -= fault.every
        yield Step(wait=left)
    if not fault.count:
        yield Step(chunk(answer.role))
    yield from _tokens(answer, 0)
    yield from _finish(answer)
    yield Step(chunk(DONE) + LAST_CHUNK)


def _stream_stall(fault: Fault, answer: Answer) -> Iterator[Step]:
    yield from _begin(answer, fault.after)
    yield Step(wait=_ever(fault.seconds))
    yield from _tokens(answer, fault.after or 0)
    yield from _finish(answer)
    yield Step(chunk(DONE) + LAST_CHUNK)


def _stream_cut(fault: Fault, answer: Answer) -> Iterator[Step]:
    yield from _begin(answer, fault.after)
    following = (*answer.tokens, answer.finish)[min(fault.after or 0, len(answer.tokens))]
    half = following[: len(following) // 2]
    if fault.how == "event":
        yield Step(chunk(half))
    elif fault.how == "chunk":
        yield Step(chunk(following)[: -len(following) // 2])
    yield Step(wait=fault.seconds or 0.0, end="rst" if fault.how == "rst" else "fin")


def _stream_ends_early(fault: Fault, answer: Answer) -> Iterator[Step]:
    yield from _begin(answer, fault.after)
    yield Step(chunk(DONE) + LAST_CHUNK if fault.kind == "done_without_finish" else LAST_CHUNK)


def _stream_no_done(fault: Fault, answer: Answer) -> Iterator[Step]:
    yield from _begin(answer, None)
    yield from _finish(answer)
    yield Step(LAST_CHUNK, wait=_ever(fault.seconds))


def _stream_malformed(fault: Fault, answer: Answer) -> Iterator[Step]:
    first = fault.after or 0
    spoilt = list(answer.tokens)
    for place in range(first, min(first + fault.count, len(spoilt))):
        spoilt[place] = spoilt[place][: len(spoilt[place]) // 2] + b"\n\n"
    return _well(replace(answer, tokens=spoilt))


def _stream_oversized(fault: Fault, answer: Answer) -> Iterator[Step]:
    first = fault.after or 0
    spoilt = list(answer.tokens)
    if first < len(spoilt):
        pad = b'"content":"' + b"x" * fault.count
        spoilt[first] = spoilt[first].replace(b'"content":"', pad, 1)
    return _well(replace(answer, tokens=spoilt))


def _stream_error_event(fault: Fault, answer: Answer) -> Iterator[Step]:
    told = b"data: " + fault.body + b"\n\n"
    if fault.after:
        yield from _begin(answer, fault.after)
    else:
        yield _stream_head(answer)
    yield Step(chunk(told) + LAST_CHUNK)


def _stream_usage_missing(_: Fault, answer: Answer) -> Iterator[Step]:
    return _well(replace(answer, asked_usage=False))


def _stream_usage_then_cut(fault: Fault, answer: Answer) -> Iterator[Step]:
    yield from _begin(answer, fault.after)
    sent = len(answer.tokens[: fault.after])
    yield Step(chunk(answer.usage(sent)), bills=True)
    yield Step(wait=fault.seconds or 0.0, end="fin")


def _plain_head(answer: Answer, length: int, wait: float) -> Step:
    return Step(head(200, (*answer.headers, ("content-length", str(length)))), wait, status=200)


def _plain_head_silence(fault: Fault, answer: Answer) -> Iterator[Step]:
    data = json.dumps(answer.body)
    yield _plain_head(answer, len(data), answer.latency)
    yield Step(wait=_ever(fault.seconds))
    yield Step(data, tokens=answer.billed, bills=True, finished=True)


def _plain_stall(fault: Fault, answer: Answer) -> Iterator[Step]:
    data, sent = json.dumps(answer.body), _sent(fault, answer)
    part = len(data) * sent // max(1, answer.billed)
    yield _plain_head(answer, len(data), _wait(answer))
    yield Step(data[:part], tokens=sent, bills=sent > 0)
    yield Step(wait=_ever(fault.seconds))
    yield Step(data[part:], tokens=answer.billed - sent, bills=True, finished=True)


def _plain_cut(fault: Fault, answer: Answer) -> Iterator[Step]:
    sent = _sent(fault, answer)
    body = answer.body
    if fault.kind == "usage_then_cut" and "usage" in body:
        body = {"usage": body["usage"], **body}  # first, so that it is told before the cut
        sent = answer.billed
    data = json.dumps(body)
    part = min(len(data) - 1, len(data) * sent // max(1, answer.billed))
    yield _plain_head(answer, len(data), _wait(answer))
    yield Step(data[:part], tokens=sent, bills=sent > 0)
    yield Step(wait=fault.seconds or 0.0, end="rst" if fault.how == "rst" else "fin")


def _plain_no_finish(fault: Fault, answer: Answer) -> Iterator[Step]:
    choices = [{**choice, "finish_reason": None} for choice in answer.body.get("choices", ())]
    if fault.kind == "role_only":
        for choice in choices:
            choice["message"] = {"role": "assistant", "content": ""}
        answer = replace(answer, billed=0)
    return _plain(answer, {**answer.body, "choices": choices}, finished=False)


def _plain_malformed(_: Fault, answer: Answer) -> Iterator[Step]:
    data = json.dumps(answer.body)
    whole = reply(200, answer.headers, data[: len(data) // 2], _wait(answer))
    yield replace(whole, tokens=answer.billed, bills=True)


def _plain_oversized(fault: Fault, answer: Answer) -> Iterator[Step]:
    data = json.dumps(answer.body).replace(b'"content":"', b'"content":"' + b"x" * fault.count, 1)
    whole = reply(200, answer.headers, data, _wait(answer))
    yield replace(whole, tokens=answer.billed, bills=True, finished=True)


def _plain_error(fault: Fault, answer: Answer) -> Iterator[Step]:
    yield reply(200, answer.headers, fault.body, answer.latency)


def _plain_usage_missing(_: Fault, answer: Answer) -> Iterator[Step]:
    return _plain(answer, {name: it for name, it in answer.body.items() if name != "usage"})


def _plain_well(_: Fault, answer: Answer) -> Iterator[Step]:
    return _well(answer)


_ACTS: Mapping[str, Act] = {
    "silence": _late,
    "slow": _late,
    "reset": _reset,
    "hang_up": _hang_up,
    "junk": _hang_up,
    "drip": _drip,
    "gzip_lie": _gzip_lie,
    "stale": _stale,
    "wrong_length": _wrong_length,
}
_STREAM_ACTS: Mapping[str, Act] = {
    "head_silence": _stream_head_silence,
    "no_token": _stream_no_token,
    "role_only": _stream_ends_early,
    "stall": _stream_stall,
    "cut": _stream_cut,
    "no_finish": _stream_ends_early,
    "done_without_finish": _stream_ends_early,
    "no_done": _stream_no_done,
    "malformed": _stream_malformed,
    "oversized": _stream_oversized,
    "error_event": _stream_error_event,
    "usage_missing": _stream_usage_missing,
    "usage_then_cut": _stream_usage_then_cut,
}
_PLAIN_ACTS: Mapping[str, Act] = {
    "head_silence": _plain_head_silence,
    "no_token": _late,
    "role_only": _plain_no_finish,
    "stall": _plain_stall,
    "cut": _plain_cut,
    "no_finish": _plain_no_finish,
    "done_without_finish": _plain_no_finish,
    "no_done": _plain_well,
    "malformed": _plain_malformed,
    "oversized": _plain_oversized,
    "error_event": _plain_error,
    "usage_missing": _plain_usage_missing,
    "usage_then_cut": _plain_cut,
}


def _ever(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def _sent(fault: Fault, answer: Answer) -> int:
    return min(answer.billed, fault.after or 0)


def _named(kind: str, fault: Fault) -> Fault:
    return replace(fault, kind=kind)


def _headers(given: Mapping[str, str] | None, *more: tuple[str, str]) -> Headers:
    return (*(given or {}).items(), *more)


def _type_of(status: int) -> str:
    return _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}
