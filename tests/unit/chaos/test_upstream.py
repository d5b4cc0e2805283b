"""Each fault does what its docstring says; a well provider satisfies the openai SDK."""

import asyncio
import base64
import random
import signal
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from chaos import faults
from chaos.answers import Manner, prompt_tokens, sample, words
from chaos.faults import Fault
from chaos.upstream import Call, Invoice, Upstream, UpstreamThread
from gateway.wire import json
from tests.support.clock import ManualClock

HELLO = [{"role": "user", "content": "hello, who is there?"}]  # 20 bytes: 5 tokens
PROMPT = 5
TOKENS = 40


@pytest.fixture
async def up() -> AsyncIterator[Upstream]:
    async with Upstream() as upstream:
        yield upstream
    assert not conversations()


def conversations() -> list[str]:
    """The simulator's tasks that are not over."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith("Upstream")]


def asked(*, stream: bool = True, usage: bool = True, **more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "m", "messages": HELLO, "stream": stream, **more}
    if stream and usage:
        body["stream_options"] = {"include_usage": True}
    return body


def request(name: str, body: Any, *, last: bool = True) -> bytes:
    data = json.dumps(body)
    ending = "connection: close\r\n" if last else ""
    head = f"POST /{name}/v1/chat/completions HTTP/1.1\r\nhost: sim\r\n{ending}"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


@dataclass
class Seen:
    """What came over the socket: `end` is fin, rst or open; `whole`: the HTTP body is complete."""

    raw: bytes
    end: str

    def __post_init__(self) -> None:
        head, _, rest = self.raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split(" ")[1]) if lines[0].startswith("HTTP/1.1 ") else 0
        self.headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        self.body, self.whole = rest, False
        if "content-length" in self.headers:
            self.whole = len(rest) == int(self.headers["content-length"])
        elif "transfer-encoding" in self.headers:
            self.body, self.whole = unchunked(rest)

    @property
    def events(self) -> list[bytes]:
        """Complete SSE data events."""
        blocks = self.body.split(b"\n\n")[:-1]
        return [block.removeprefix(b"data: ") for block in blocks if block.startswith(b"data: ")]

    @property
    def parsed(self) -> list[dict[str, Any]]:
        found = []
        for event in self.events:
            try:
                found.append(json.loads(event))
            except json.JSONError:
                continue
        return found

    @property
    def tokens(self) -> list[str]:
        deltas = [choice["delta"] for it in self.parsed for choice in it.get("choices", ())]
        return [delta["content"] for delta in deltas if delta.get("content")]

    @property
    def finishes(self) -> list[str]:
        choices = [choice for it in self.parsed for choice in it.get("choices", ())]
        return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]

    @property
    def usage(self) -> dict[str, Any] | None:
        told = [it["usage"] for it in self.parsed if it.get("usage")]
        return told[-1] if told else None

    @property
    def done(self) -> bool:
        return self.events[-1:] == [b"[DONE]"]

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        assert set(found) == {"message", "type", "param", "code"}
        return found


def unchunked(data: bytes) -> tuple[bytes, bool]:
    body, at = bytearray(), 0
    while (line := data.find(b"\r\n", at)) >= 0:
        length, start = int(data[at:line], 16), line + 2
        body += data[start : start + length]
        at = start + length + 2
        if length == 0 or data[at - 2 : at] != b"\r\n":
            return bytes(body), length == 0 and at == len(data)
    return bytes(body), False


@asynccontextmanager
async def connected(
    up: Upstream,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", up.port, limit=1 << 24)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def rest_of(reader: asyncio.StreamReader, patience: float = 0.15) -> Seen:
    """What comes until a silence; the first byte may take longer, on a machine that is busy."""
    raw = b""
    try:
        async with asyncio.timeout(max(patience, 1.0)) as limit:
            while data := await reader.read(1 << 20):
                raw += data
                if b"SIM PROCESSING" in data:
                    continue  # comments go on for ever
                limit.reschedule(asyncio.get_running_loop().time() + patience)
        return Seen(raw, "fin")
    except TimeoutError:
        return Seen(raw, "open")
    except ConnectionResetError:
        return Seen(raw, "rst")


async def ask(up: Upstream, fault: Fault | None = None, body: Any = None) -> Seen:
    """One call of `p` under `fault` on a connection of its own, and what came of it."""
    up.set("p", fault)
    async with connected(up) as (reader, writer):
        writer.write(request("p", body or asked()))
        return await rest_of(reader)


async def until(true: Any) -> None:
    async with asyncio.timeout(2):
        while not true():
            await asyncio.sleep(0.001)


# ------------------------------------------------------------------------------------ well answers


async def test_a_stream_is_framed_as_openai_frames_it(up):
    seen = await ask(up)
    assert (seen.status, seen.end, seen.whole) == (200, "fin", True)
    assert seen.headers["content-type"].startswith("text/event-stream")
    assert seen.headers["x-request-id"].startswith("req_")
    assert seen.headers["openai-processing-ms"].isdigit()
    chunks = seen.parsed
    assert chunks[0]["choices"][0]["delta"] == {
        "role": "assistant",
        "content": "",
        "refusal": None,
    }
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["system_fingerprint"] for chunk in chunks} == {"sim"}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == PROMPT + TOKENS
    assert len(seen.tokens) == TOKENS
    assert seen.finishes == ["stop"]
    assert seen.done


async def test_usage_is_told_only_to_who_asks(up):
    seen = await ask(up, body=asked(usage=False))
    assert all("usage" not in chunk for chunk in seen.parsed)
    assert seen.done
    assert up.invoice("p") == Invoice(1, 1, PROMPT, TOKENS)


async def test_a_stream_and_a_body_say_the_same(up):
    streamed, plain = await ask(up), await ask(up, body=asked(stream=False))
    message = json.loads(plain.body)["choices"][0]["message"]
    assert message["content"] == "".join(streamed.tokens)
    assert streamed.tokens == words(HELLO, Manner())


async def test_every_provider_says_the_same_but_for_another_voice(up):
    up.manner("c", Manner(voice="c"))
    said = {}
    async with aiohttp.ClientSession() as session:
        for name in "abc":
            url = f"{up.base_url(name)}/chat/completions"
            async with session.post(url, json=asked(stream=False)) as response:
                answer = await response.json()
                said[name] = answer["choices"][0]["message"]["content"], answer["id"]
    assert said["a"][0] == said["b"][0] != said["c"][0]
    assert len({own for _, own in said.values()}) == 3


async def test_a_prefill_is_gone_on_with(up):
    whole = "".join(words(HELLO, Manner()))
    begun = [*HELLO, {"role": "assistant", "content": whole[:50]}]
    seen = await ask(up, body=asked(messages=begun))
    assert whole[:50] + "".join(seen.tokens) == whole


@pytest.mark.parametrize(("limit", "reason"), [(7, "length"), (40, "stop"), (4000, "stop")])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_the_limit_is_kept(up, name, limit, reason):
    seen = await ask(up, body=asked(**{name: limit}))
    assert (len(seen.tokens), seen.finishes) == (min(limit, TOKENS), [reason])
    assert seen.usage is not None
    assert seen.usage["completion_tokens"] == min(limit, TOKENS)


async def test_several_choices_differ_and_are_all_counted(up):
    seen = await ask(up, body=asked(n=3))
    by_choice = Counter(
        choice["index"]
        for it in seen.parsed
        for choice in it["choices"]
        if choice["delta"].get("content")
    )
    assert by_choice == {0: TOKENS, 1: TOKENS, 2: TOKENS}
    assert seen.finishes == ["stop"] * 3
    plain = json.loads((await ask(up, body=asked(stream=False, n=3))).body)
    assert len({choice["message"]["content"] for choice in plain["choices"]}) == 3
    assert plain["usage"]["completion_tokens"] == 3 * TOKENS


def test_the_prompt_is_counted_by_the_rule():
    parts = [{"type": "text", "text": "ééé"}, {"type": "image_url", "image_url": {"url": "x"}}]
    assert prompt_tokens([{"role": "user", "content": parts}]) == 2  # 6 bytes
    assert prompt_tokens([*HELLO, {"role": "user", "content": "x"}]) == PROMPT + 1
    assert prompt_tokens([{"role": "user"}]) == 1


TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 12},
                "kind": {"enum": ["leaf"]},
                "size": {"type": "integer", "minimum": 3},
                "tags": {"type": "array", "items": {"type": ["null", "boolean"]}},
                "child": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["name", "kind", "size", "tags", "child"],
        }
    },
}


def test_a_sample_follows_a_recursive_schema():
    value, depth = sample(TREE, random.Random(1)), 0
    while value is not None:
        assert len(value["name"]) >= 12
        assert (value["kind"], value["size"]) == ("leaf", 3)
        assert value["tags"] in ([True], [])
        value, depth = value["child"], depth + 1
    assert 1 <= depth < 10
    assert sample({"const": 4}, random.Random(1)) == 4
    assert sample(True, random.Random(1)) == "sim"


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"model": "m"},
        {"model": "m", "messages": []},
        {"messages": HELLO},
        {"model": "m", "messages": HELLO, "max_tokens": 0},
        {"model": "m", "messages": HELLO, "n": "two"},
        {"model": "m", "messages": HELLO, "n": 1000},
        {"model": "m", "messages": HELLO, "tools": 5},
        {"model": "m", "messages": HELLO, "tools": [{"function": {"parameters": {"$ref": "#"}}}]},
        {"model": "m", "messages": HELLO, "response_format": {"type": "json_schema"}, "n": []},
    ],
)
async def test_a_mistaken_request_is_a_400_and_costs_nothing(up, body):
    seen = await ask(up, body=body or [0])
    assert seen.status == 400
    assert seen.error["type"] == "invalid_request_error"
    assert up.invoice() == Invoice(1, 0, 0, 0)


# ----------------------------------------------------------------------------------------- the SDK

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}


@asynccontextmanager
async def sdk(up: Upstream) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=up.base_url("p"), api_key="k", max_retries=0) as client:
        yield client


async def test_the_sdk_reads_answers_streams_and_models(up):
    async with sdk(up) as client:
        plain = await client.chat.completions.create(model="gpt-x", messages=HELLO)
        assert plain.model == "gpt-x"
        assert plain.usage is not None
        assert plain.usage.total_tokens == PROMPT + TOKENS
        stream = await client.chat.completions.create(
            model="gpt-x", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
        assert text == plain.choices[0].message.content
        assert chunks[-1].usage == plain.usage
        assert [model.id async for model in client.models.list()] == ["sim", "p"]


@pytest.mark.parametrize("form", ["float", "base64"])
async def test_the_sdk_reads_embeddings(up, form):
    async with sdk(up) as client:
        two = await client.embeddings.create(
            model="e", input=["one", "two two"], dimensions=4, encoding_format=form
        )
        assert two.usage.prompt_tokens == 3
        vectors = [one.embedding for one in two.data]
        if form == "base64":
            vectors = [list(struct.unpack("<4f", base64.b64decode(it))) for it in vectors]
        assert vectors[0] != vectors[1]
        assert sum(number**2 for number in vectors[0]) == pytest.approx(1, abs=1e-4)
        same = await client.embeddings.create(model="e", input="one", dimensions=4)
        assert same.data[0].embedding == pytest.approx(vectors[0], abs=1e-5)
    assert up.invoice("p") == Invoice(2, 2, 4, 0)


async def test_a_tool_is_called_and_its_result_answered_in_text(up):
    async with sdk(up) as client:
        first = await client.chat.completions.create(model="m", messages=HELLO, tools=[TOOL])
        assert first.choices[0].finish_reason == "tool_calls"
        call = first.choices[0].message.tool_calls[0]
        assert call.function.name == "weather"
        arguments = json.loads(call.function.arguments.encode())
        assert set(arguments) == {"city", "days"}
        told = [
            *HELLO,
            first.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "rain"},
        ]
        second = await client.chat.completions.create(model="m", messages=told, tools=[TOOL])
        assert second.choices[0].finish_reason == "stop"
        assert second.choices[0].message.content
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            again = await client.chat.completions.create(
                model="m", messages=told, tools=[TOOL], tool_choice=choice
            )
            assert again.choices[0].finish_reason == "tool_calls"
        none = await client.chat.completions.create(
            model="m", messages=HELLO, tools=[TOOL], tool_choice="none"
        )
        assert none.choices[0].finish_reason == "stop"


async def test_a_streamed_tool_call_comes_in_pieces(up):
    seen = await ask(up, body=asked(tools=[TOOL]))
    deltas = [choice["delta"] for it in seen.parsed for choice in it["choices"]]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[0]["id"].startswith("call_")
    assert calls[0]["function"] == {"name": "weather", "arguments": ""}
    assert len(calls) > 3
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert set(json.loads(arguments.encode())) == {"city", "days"}
    assert seen.finishes == ["tool_calls"]
    assert seen.usage is not None
    assert seen.usage["completion_tokens"] == len(calls)


async def test_a_json_answer_follows_its_schema(up):
    schema = {"type": "json_schema", "json_schema": {"name": "tree", "schema": TREE}}
    async with sdk(up) as client:
        for form, member in ((schema, "kind"), ({"type": "json_object"}, "answer")):
            answer = await client.chat.completions.create(
                model="m", messages=HELLO, response_format=form
            )
            assert member in json.loads(answer.choices[0].message.content.encode())


@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        (faults.rate_limited(), openai.RateLimitError, "rate_limit_exceeded"),
        (faults.quota(), openai.RateLimitError, "insufficient_quota"),
        (faults.auth(), openai.AuthenticationError, "invalid_api_key"),
        (faults.model_gone(), openai.NotFoundError, "model_not_found"),
        (faults.context_length(), openai.BadRequestError, "context_length_exceeded"),
        (faults.server_error(502), openai.InternalServerError, None),
    ],
)
async def test_the_sdk_raises_what_it_raises_at_openai(up, fault, error, code):
    up.set("p", fault)
    async with sdk(up) as client:
        with pytest.raises(error) as raised:
            await client.chat.completions.create(model="m", messages=HELLO)
        assert raised.value.code == code


async def test_the_sdk_raises_on_an_error_event(up):
    up.set("p", faults.error_event(3))
    async with sdk(up) as client:
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="Provider returned error"):
            _ = [chunk async for chunk in stream]


# ---------------------------------------------------------------------- faults: whole replies

REPLIES = [
    (faults.status(418, "tea", "short", "pot", {"x-a": "b"}), 418, "tea", {"x-a": "b"}),
    (faults.status(529), 529, None, {}),
    (faults.rate_limited(3), 429, "rate_limit_exceeded", {"retry-after": "3"}),
    (faults.rate_limited(None, 250), 429, "rate_limit_exceeded", {"retry-after-ms": "250"}),
    (faults.quota(), 429, "insufficient_quota", {}),
    (faults.auth(), 401, "invalid_api_key", {}),
    (faults.model_gone(), 404, "model_not_found", {}),
    (faults.context_length(99), 400, "context_length_exceeded", {}),
    (faults.content_filter(), 400, "content_filter", {}),
    (faults.bad_request(), 400, None, {}),
    (faults.unsupported_parameter("top_p"), 400, "unsupported_parameter", {}),
    (faults.server_error(), 500, "server_error", {}),
    (faults.overloaded(), 503, "overloaded", {}),
    (faults.overloaded(529, 2.5), 529, "overloaded", {"retry-after": "2.5"}),
    (faults.error_in_200(), 200, "server_error", {}),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("fault", "status", "code", "headers"), REPLIES)
async def test_a_reply_with_an_error_body(up, fault, status, code, headers, stream):
    seen = await ask(up, fault, asked(stream=stream))
    assert (seen.status, seen.whole) == (status, True)
    assert seen.error["code"] == code
    assert headers.items() <= seen.headers.items()
    assert "x-request-id" in seen.headers
    assert seen.headers["content-type"] == "application/json"
    assert up.invoice("p") == Invoice(calls=1)
    (call,) = up.calls("p")
    assert (call.status, call.fault, call.finished) == (status, fault.kind, False)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fault", "status", "type", "body"),
    [
        (faults.html(), 200, "text/html", b"<!doctype"),
        (faults.html(502), 502, "text/html", b"<!doctype"),
        (faults.empty(), 200, None, b""),
        (faults.redirect("/x"), 307, "", b""),
    ],
)
async def test_a_reply_without_json(up, fault, status, type, body, stream):
    seen = await ask(up, fault, asked(stream=stream))
    assert (seen.status, seen.whole) == (status, True)
    usual = "text/event-stream; charset=utf-8" if stream else "application/json"
    assert seen.headers.get("content-type", "") == (usual if type is None else type)
    assert seen.body[:9] == body
    assert seen.headers.get("location") == ("/x" if status == 307 else None)


# ---------------------------------------------------------------------- faults: streams


@dataclass(frozen=True)
class Want:
    """What a client sees of a spoilt stream, and what it is billed."""

    tokens: int = TOKENS
    finish: bool = True
    usage: int | None = TOKENS
    done: bool = True
    whole: bool = True
    end: str = "fin"
    billed: int | None = None  # None: as many as seen; -1: nothing at all


BROKEN = {"finish": False, "usage": None, "done": False, "whole": False}
EARLY = {"finish": False, "usage": None, "done": False}
STREAMS = [
    (faults.slow(0.01), Want()),
    (faults.head_silence(), Want(0, **BROKEN, end="open", billed=-1)),
    (faults.head_silence(0.01), Want()),
    (faults.no_token(), Want(0, **BROKEN, end="open", billed=-1)),
    (faults.no_token(0.02, 0.005), Want()),
    (faults.no_token(0.01, None, role=False), Want()),
    (faults.role_only(), Want(0, **EARLY, billed=-1)),
    (faults.stall(), Want(20, **BROKEN, end="open")),
    (faults.stall(0), Want(0, **BROKEN, end="open", billed=-1)),
    (faults.stall(5, 0.01), Want()),
    (faults.cut(), Want(20, **BROKEN)),
    (faults.cut(20, "rst"), Want(20, **BROKEN, end="rst")),
    (faults.cut(20, "event"), Want(20, **BROKEN)),
    (faults.cut(20, "chunk"), Want(20, **BROKEN)),
    (faults.cut(0, "chunk"), Want(0, **BROKEN, billed=-1)),
    (faults.cut(1000, "event"), Want(40, **BROKEN)),
    (faults.no_finish(), Want(**EARLY)),
    (faults.no_finish(3), Want(3, **EARLY)),
    (faults.done_without_finish(), Want(finish=False, usage=None)),
    (faults.done_without_finish(0), Want(0, finish=False, usage=None, billed=-1)),
    (faults.no_done(), Want(done=False, whole=False, end="open")),
    (faults.no_done(0), Want(done=False)),
    (faults.malformed(), Want(39, billed=TOKENS)),
    (faults.malformed(10, 3), Want(37, billed=TOKENS)),
    (faults.oversized(2), Want()),
    (faults.error_event(), Want(0, **EARLY, billed=-1)),
    (faults.error_event(4), Want(4, **EARLY)),
    (faults.usage_missing(), Want(usage=None)),
    (faults.usage_then_cut(), Want(20, finish=False, usage=20, done=False, whole=False)),
    (faults.usage_then_cut(0), Want(0, finish=False, usage=0, done=False, whole=False, billed=0)),
    (faults.wrong_length(), Want(whole=False)),
    (faults.drip(0.0001, 512), Want()),
    (faults.gzip_lie(), Want()),
    (faults.stale("answer"), Want()),
]


@pytest.mark.parametrize(("fault", "want"), STREAMS, ids=lambda it: getattr(it, "kind", ""))
async def test_a_spoilt_stream(up, fault, want):
    seen = await ask(up, fault)
    assert (seen.status, seen.end, seen.whole) == (200, want.end, want.whole)
    assert len(seen.tokens) == want.tokens
    assert seen.finishes == ["stop"] * want.finish
    assert (seen.usage or {}).get("completion_tokens") == want.usage
    assert (b"[DONE]" in seen.events) == want.done
    billed = want.tokens if want.billed is None else want.billed
    owed = Invoice(1) if billed < 0 else Invoice(1, 1, PROMPT, billed)
    assert up.invoice("p") == owed
    (call,) = up.calls("p")
    assert (call.prompt_tokens, call.completion_tokens) == (
        owed.prompt_tokens,
        owed.completion_tokens,
    )
    assert call.finished == (want.finish and want.tokens > 0)


async def test_where_a_stream_is_spoilt(up):
    first = words(HELLO, Manner())
    seen = await ask(up, faults.malformed(20, 3))
    assert seen.tokens == first[:20] + first[23:]
    assert len(seen.events) - len(seen.parsed) == 4  # three spoilt ones and [DONE]
    seen = await ask(up, faults.cut(20, "event"))
    assert not seen.body.endswith(b"\n\n")
    assert seen.raw.endswith(b"\r\n")  # a whole chunk
    seen = await ask(up, faults.cut(20, "chunk"))
    assert not seen.raw.endswith(b"\r\n")
    seen = await ask(up, faults.oversized(2))
    assert [len(token) > 1 << 20 for token in seen.tokens] == [at == 2 for at in range(TOKENS)]
    assert seen.tokens[2].endswith(first[2])
    seen = await ask(up, faults.error_event(0, code="overloaded"))
    assert json.loads(seen.events[0])["error"]["code"] == "overloaded"
    seen = await ask(up, faults.error_event(2))
    assert json.loads(seen.events[-1])["error"]["code"] == "server_error"
    seen = await ask(up, faults.no_token(comments=0.03))
    assert seen.body.count(b": SIM PROCESSING\n\n") >= 2
    assert len(seen.parsed) == 1  # the role frame
    seen = await ask(up, faults.gzip_lie())
    assert seen.headers["content-encoding"] == "gzip"
    seen = await ask(up, faults.wrong_length(7))
    assert int(seen.headers["content-length"]) == len(seen.body) + 7


# ---------------------------------------------------------------------- faults: plain bodies

PLAIN = [
    (faults.slow(0.01), "stop", TOKENS, Want()),
    (faults.head_silence(), None, None, Want(whole=False, end="open", billed=-1)),
    (faults.no_token(), None, None, Want(whole=False, end="open", billed=-1)),
    (faults.no_token(0.01), "stop", TOKENS, Want()),
    (faults.role_only(), None, TOKENS, Want(billed=0)),
    (faults.stall(), None, None, Want(whole=False, end="open", billed=20)),
    (faults.cut(), None, None, Want(whole=False, billed=20)),
    (faults.cut(0), None, None, Want(whole=False, billed=-1)),
    (faults.cut(9, "rst"), None, None, Want(whole=False, end="rst", billed=9)),
    (faults.no_finish(), None, TOKENS, Want()),
    (faults.done_without_finish(), None, TOKENS, Want()),
    (faults.no_done(), "stop", TOKENS, Want()),
    (faults.malformed(), None, None, Want()),
    (faults.oversized(), "stop", TOKENS, Want()),
    (faults.error_event(), None, None, Want(billed=-1)),
    (faults.usage_missing(), "stop", None, Want()),
    (faults.usage_then_cut(), None, None, Want(whole=False)),
    (faults.wrong_length(), "stop", TOKENS, Want(whole=False)),
    (faults.drip(0.0001, 64), "stop", TOKENS, Want()),
    (faults.gzip_lie(), "stop", TOKENS, Want()),
    (faults.stale("answer"), "stop", TOKENS, Want()),
]


@pytest.mark.parametrize(
    ("fault", "finish", "usage", "want"), PLAIN, ids=lambda it: getattr(it, "kind", "")
)
async def test_a_spoilt_body(up, fault, finish, usage, want):
    seen = await ask(up, fault, asked(stream=False))
    assert (seen.end, seen.whole) == (want.end, want.whole)
    try:
        body = json.loads(seen.body)
    except json.JSONError:
        body = {}
    assert (body.get("choices") or [{}])[0].get("finish_reason") == finish
    assert body.get("usage", {}).get("completion_tokens") == usage
    billed = want.tokens if want.billed is None else want.billed
    assert up.invoice("p") == (Invoice(1) if billed < 0 else Invoice(1, 1, PROMPT, billed))
    assert up.calls("p")[0].finished == (finish is not None)


# ---------------------------------------------------------------------- faults: connections


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fault", "raw", "end"),
    [
        (faults.silence(), b"", "open"),
        (faults.reset(), b"", "rst"),
        (faults.hang_up(), b"", "fin"),
        (faults.junk(), b"220 mail", "fin"),
    ],
)
async def test_no_http_at_all(up, fault, raw, end, stream):
    seen = await ask(up, fault, asked(stream=stream))
    assert (seen.raw[:8], seen.end, seen.status) == (raw, end, 0)
    assert up.invoice("p") == Invoice(calls=1)
    assert up.calls("p")[0].status == 0


async def test_a_door_that_shuts_at_accept(up):
    up.set("*", faults.hang_up(), times=1)
    async with connected(up) as (reader, _):
        assert (await rest_of(reader)) == Seen(b"", "fin")
    assert up.calls() == []
    assert (await ask(up)).done
    up.set("*", faults.auth())
    async with aiohttp.ClientSession() as session:
        for name, status in (("q", 401), ("p", 503)):
            up.set("p", faults.overloaded())
            async with session.post(
                f"{up.base_url(name)}/chat/completions", json=asked()
            ) as response:
                assert response.status == status


@pytest.mark.parametrize("when", ["answer", "reuse"])
async def test_a_stale_connection_dies_for_the_next_request_only(up, when):
    up.script("p", [faults.stale(when)])
    async with connected(up) as (reader, writer):
        writer.write(request("p", asked(), last=False))
        if when == "answer":
            seen = await rest_of(reader)
            assert (seen.done, seen.whole, seen.end) == (True, True, "fin")
            assert "connection" not in seen.headers
        else:
            assert (await reader.readuntil(b"0\r\n\r\n")).endswith(b"[DONE]\n\n\r\n0\r\n\r\n")
            assert up.connections == 1
            writer.write(request("p", asked(), last=False))
            assert (await rest_of(reader)).raw == b""
    assert len(up.calls("p")) == 1
    assert (await ask(up)).done


async def test_a_connection_is_kept_alive(up):
    async with connected(up) as (reader, writer):
        for stream in (True, False, True):
            writer.write(request("p", asked(stream=stream), last=False))
            end = b"0\r\n\r\n" if stream else b'"audio_tokens":0}}}'
            await reader.readuntil(end)
    assert (len(up.calls("p")), up.connections_total) == (3, 1)


async def test_waits_are_the_clocks():
    clock = ManualClock()
    async with Upstream(Manner(tokens=3, latency=1, ttft=5, gap=2), clock=clock) as up:
        up.set("p", faults.silence(30))
        async with connected(up) as (reader, writer):
            writer.write(request("p", asked(usage=False)))
            seen = []
            for pause in (0, 30, 0.9, 0.2, 4.8, 0.2, 2, 2):
                clock.advance(pause)
                seen.append(len((await rest_of(reader, 0.01)).raw))
            head, role, first, second, third = 3, 3, 5, 6, 7
            assert [at for at, size in enumerate(seen) if size] == [head, first, second, third]
            assert role == head
        (call,) = up.calls("p")
        assert (call.ended - call.started, call.finished) == (pytest.approx(40.1), True)


# ------------------------------------------------------------------------ what was called, and owed


async def test_a_call_is_logged(up):
    async with aiohttp.ClientSession() as session:
        await (
            await session.post(
                f"{up.base_url('p')}/chat/completions",
                json=asked(stream=False),
                headers={"X-Request-ID": "try-1", "Authorization": "Bearer k"},
            )
        ).read()
    (call,) = up.calls()
    assert (call.name, call.attempt_id, call.path) == ("p", "try-1", "/p/v1/chat/completions")
    assert call.headers["authorization"] == "Bearer k"
    assert json.loads(call.body) == asked(stream=False)
    assert call.ended is not None
    assert call.ended >= call.started
    assert (call.status, call.finished, call.closed_by_client_after) == (200, True, None)
    assert up.calls("q") == []


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize(
    "fault", [faults.silence(), faults.head_silence(), faults.stall(4), faults.no_done()]
)
async def test_a_client_who_leaves_is_noticed_at_once(up, fault, how):
    up.set("p", fault)
    loop = asyncio.get_running_loop()
    async with connected(up) as (_, writer):
        writer.write(request("p", asked()))
        await until(up.calls)
        await asyncio.sleep(0.02)
        assert (up.in_flight("p"), up.connections) == (1, 1)
        raw = writer.get_extra_info("socket")
        if how == "rst":
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        left = loop.time()
        writer.transport.abort()
        (call,) = up.calls("p")
        await until(lambda: call.ended is not None)
        assert loop.time() - left < 0.1
    assert call.closed_by_client_after == pytest.approx(call.ended - call.started)
    assert 0.01 < call.closed_by_client_after < 0.2
    assert (up.in_flight("p"), up.max_in_flight("p"), up.connections) == (0, 1, 0)
    assert up.invoice("p").completion_tokens == {"stall": 4, "no_done": 40}.get(fault.kind, 0)
    assert call.finished == (fault.kind == "no_done")


async def test_a_client_who_does_not_read_holds_the_provider_back():
    async with Upstream(Manner(tokens=40_000)) as up, connected(up) as (reader, writer):
        writer.transport.pause_reading()
        writer.write(request("p", asked()))
        await until(lambda: up.invoice("p").completion_tokens)
        await asyncio.sleep(0.05)
        held = up.invoice("p").completion_tokens
        assert 0 < held < 35_000
        (call,) = up.calls()
        assert not call.finished
        writer.transport.resume_reading()
        seen = await rest_of(reader, 1)
        assert len(seen.tokens) == up.invoice("p").completion_tokens == 40_000


async def test_the_invoice_is_exact_under_load(up):
    dice = random.Random(7)
    kinds = [None, faults.cut(7, linger=0.0), faults.auth(), faults.reset(), faults.error_event(3)]
    for name in "ab":
        up.script(name, dice.choices(kinds, k=100))
    totals = dict.fromkeys("ab", 0)

    async def many(name: str) -> None:
        for _ in range(10):
            async with connected(up) as (reader, writer):
                writer.write(request(name, asked(max_tokens=dice.randint(1, 60))))
                seen = await rest_of(reader, 2)
                totals[name] += len(seen.tokens)

    await asyncio.gather(*(many(name) for name in "ab" * 10))
    for name in "ab":
        assert up.invoice(name).completion_tokens == totals[name]
        assert up.invoice(name).calls == 100
        billed = [call for call in up.calls(name) if call.completion_tokens]
        assert up.invoice(name).prompt_tokens == PROMPT * len(billed)
        assert up.invoice(name).billed_calls == len(billed)
    assert up.invoice() == up.invoice("a") + up.invoice("b")
    assert up.in_flight() == 0


async def test_the_log_is_bounded_and_the_counters_exact():
    async with Upstream(keep=3) as up:
        for _ in range(5):
            await ask(up, body=asked(max_tokens=2))
        assert len(up.calls()) == 3
        assert up.invoice() == Invoice(5, 5, 5 * PROMPT, 10)


async def test_a_script_plays_once_and_a_fault_may_be_counted(up):
    async def statuses(count: int) -> list[int]:
        found = []
        for _ in range(count):
            async with connected(up) as (reader, writer):
                writer.write(request("p", asked()))
                found.append((await rest_of(reader)).status)
        return found

    up.script("p", [faults.auth(), None, faults.overloaded()])
    assert await statuses(5) == [401, 200, 503, 200, 200]
    up.set("p", faults.quota(), times=2)
    assert await statuses(4) == [429, 429, 200, 200]
    up.set("p", faults.quota())
    assert await statuses(3) == [429] * 3
    up.set("p", None)
    assert await statuses(1) == [200]


async def test_clear_forgets_and_calls_under_way_owe_nothing(up):
    up.set("p", faults.stall(4))
    async with connected(up) as (reader, writer):
        writer.write(request("p", asked()))
        await reader.readuntil(b"\r\n\r\n")
        up.clear()
        assert (up.calls(), up.invoice(), up.in_flight("p")) == ([], Invoice(), 1)
        assert (await ask(up)).done
    await until(lambda: up.in_flight() == 0)
    assert up.in_flight("p") == 0
    assert up.invoice() == Invoice(1, 1, PROMPT, TOKENS)


# ---------------------------------------------------------------------------------- from outside


async def test_a_fault_is_asked_for_over_http(up):
    root = f"http://127.0.0.1:{up.port}"
    async with aiohttp.ClientSession(root) as session:

        async def call() -> int:
            async with session.post("/p/v1/chat/completions", json=asked()) as response:
                return response.status

        fault = {"kind": "rate_limited", "retry_after": 2, "times": 1}
        async with session.post("/__sim/p/fault", json=fault) as response:
            assert response.status == 200
        assert [await call(), await call()] == [429, 200]
        async with session.post("/__sim/p/fault", json={"kind": "auth"}) as response:
            assert response.status == 200
        assert await call() == 401
        async with session.delete("/__sim/p/fault") as response:
            assert response.status == 200
        assert await call() == 200
        async with session.get("/__sim/p/calls") as response:
            told = await response.json()
        assert [one["status"] for one in told["calls"]] == [429, 200, 401, 200]
        assert [one["fault"] for one in told["calls"]] == ["rate_limited", None, "auth", None]
        assert told["invoice"] == {
            "calls": 4,
            "billed_calls": 2,
            "prompt_tokens": 2 * PROMPT,
            "completion_tokens": 2 * TOKENS,
        }
        async with session.get("/__sim/p/what") as response:
            assert response.status == 404


@pytest.mark.parametrize(
    "asked_for",
    [
        {"kind": "nonsense"},
        {},
        [],
        {"kind": "cut", "after": "many"},
        {"kind": "cut", "how": "sawn"},
        {"kind": "cut", "colour": 1},
        {"kind": "cut", "after": -1},
        {"kind": "no_token", "comments": 0},
        {"kind": "status", "status": 99},
        {"kind": "status", "status": 400, "headers": {"a": "b\r\nc: d"}},
        {"kind": "auth", "times": -1},
        {"kind": "status"},
    ],
)
async def test_an_unknown_fault_is_a_400_with_the_list(up, asked_for):
    async with aiohttp.ClientSession(f"http://127.0.0.1:{up.port}") as session:
        async with session.post("/__sim/p/fault", json=asked_for) as response:
            assert response.status == 400
            assert (await response.json())["error"]["kinds"] == sorted(faults.KINDS)
        async with session.post("/p/v1/chat/completions", json=asked()) as response:
            assert response.status == 200


def test_every_kind_can_be_asked_for_and_is_tested_here():
    tested = {row[0].kind for row in (*REPLIES, *STREAMS, *PLAIN)}
    tested |= {"silence", "reset", "hang_up", "junk", "html", "empty", "redirect"}
    assert tested == set(faults.KINDS)
    for kind, make in faults.KINDS.items():
        assert make.__doc__
        options = {"status": 418} if kind == "status" else {}
        assert faults.of(kind, options) == make(**options)
        assert faults.of(kind, options).kind == kind


# ---------------------------------------------------------------------------------- HTTP


async def test_requests_come_in_any_pieces(up):
    data = json.dumps(asked(stream=False))
    chunks = b"".join(b"%x;x=y\r\n%b\r\n" % (7, data[at : at + 7]) for at in range(0, 70, 7))
    chunks += b"%x\r\n%b\r\n0\r\ntrailer: x\r\n\r\n" % (len(data) - 70, data[70:])
    head = b"POST /p/v1/chat/completions?a=b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    both = (head + chunks) + request("p", asked(stream=False))
    async with connected(up) as (reader, writer):
        for at in range(0, len(both), 11):
            writer.write(both[at : at + 11])
            await asyncio.sleep(0)
        raw = (await rest_of(reader)).raw
    assert raw.count(b"HTTP/1.1 200 OK") == 2
    assert [call.body for call in up.calls()] == [data, data]


async def test_a_body_may_be_waited_for(up):
    async with connected(up) as (reader, writer):
        head, _, data = request("p", asked()).partition(b"\r\n\r\n")
        writer.write(head + b"\r\nexpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(data)
        assert (await rest_of(reader)).done


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"POST /p/v1/chat/completions HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST /p/v1/chat/completions HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n",
        b"POST /p/v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"x" * 70_000,
    ],
)
async def test_what_cannot_be_read_is_a_400(up, sent):
    async with connected(up) as (reader, writer):
        writer.write(sent)
        seen = await rest_of(reader)
    assert (seen.status, seen.end) == (400, "fin")
    assert up.calls() == []


@pytest.mark.parametrize("path", ["/", "/p", "/p/v1/nothing", "/p%20q/v1/models", "/__sim/"])
async def test_an_unknown_path_is_a_404(up, path):
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{up.port}{path}") as response,
    ):
        assert response.status == 404


async def test_close_ends_everything_within_a_second():
    up = Upstream()
    await up.start()
    up.set("p", faults.silence())
    up.set("q", faults.no_token())
    pairs = [await asyncio.open_connection("127.0.0.1", up.port) for _ in range(20)]
    for at, (_, writer) in enumerate(pairs):
        writer.write(request("pq"[at % 2], asked()))
    await until(lambda: up.in_flight() == 20)
    assert len(conversations()) == 20
    before = asyncio.get_running_loop().time()
    await up.close()
    assert asyncio.get_running_loop().time() - before < 1
    assert (up.in_flight(), up.connections) == (0, 0)
    assert not conversations()
    assert {call.closed_by_client_after for call in up.calls()} == {None}
    await up.close()
    for _, writer in pairs:
        writer.transport.abort()
    await asyncio.sleep(0)


# ---------------------------------------------------------------------------------- out of the loop


def test_in_a_thread_it_is_the_same():
    with UpstreamThread(Manner(tokens=6)) as up:
        up.script("p", [faults.overloaded()])
        with openai.OpenAI(base_url=up.base_url("p"), api_key="k", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError):
                client.chat.completions.create(model="m", messages=HELLO)
            assert client.chat.completions.create(model="m", messages=HELLO).usage is not None
        assert up.invoice("p") == Invoice(2, 1, PROMPT, 6)
        assert [call.status for call in up.calls("p")] == [503, 200]
        assert all(isinstance(call, Call) and call.ended for call in up.calls())
        assert (up.in_flight(), up.max_in_flight("p")) == (0, 1)
        taken = UpstreamThread()
        with pytest.raises(OSError, match="address already in use"):
            taken.start(up.port)
        up.clear()
        assert up.calls() == []
    assert up.invoice() == Invoice()
    up.close()


def test_as_a_process_it_serves_until_told_to_stop():
    with subprocess.Popen(
        [sys.executable, "-m", "chaos.upstream", "--port", "0", "--tokens", "5"],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    ) as process:
        try:
            port = json.loads(process.stdout.readline())["port"]
            base = f"http://127.0.0.1:{port}/p/v1"
            with openai.OpenAI(base_url=base, api_key="k", max_retries=0) as client:
                answer = client.chat.completions.create(model="m", messages=HELLO)
            assert answer.usage.completion_tokens == 5
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == 0
        finally:
            process.kill()
