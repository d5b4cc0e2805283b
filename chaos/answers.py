"""What the simulator says when it is well: a pure function of the messages.

Every provider says the same to the same messages unless its `Manner` has a `voice`. Tokens are
exact by definition: `prompt_tokens` is the sum over the messages of the UTF-8 bytes of their
text / 4, rounded up, at least 1; each content or tool-call event is one completion token.
"""

import base64
import itertools
import math
import random
import re
import secrets
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chaos import faults
from chaos.faults import Answer
from gateway.wire import json

_VOCABULARY = (
    "the a river stone light over under small large green quiet window garden morning letter road "
    "walks turns keeps finds follows carries opens between because while and then slowly often "
    "never again bridge winter paper number signal harbour café naïve straße 東京 field answer"
)
_WORDS = _VOCABULARY.split()


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
class Chat:
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
    def of(cls, body: Mapping[str, Any]) -> "Chat":
        """Raises Mistaken, with what OpenAI would say."""
        model, messages = body.get("model"), body.get("messages")
        if not isinstance(model, str) or not model:
            raise Mistaken("you must provide a model parameter")
        if not isinstance(messages, list) or not messages:
            raise Mistaken("Missing required parameter: 'messages'.")
        n = _whole(body, "n", 1)
        limit = _whole(body, "max_completion_tokens", _whole(body, "max_tokens", 1 << 30))
        if n > 128:
            raise Mistaken("Invalid 'n': integer above maximum value.")
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


class Mistaken(ValueError):
    """The caller's own mistake, in OpenAI's words."""


def _whole(body: Mapping[str, Any], name: str, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Mistaken(f"Invalid '{name}': expected a whole number of at least 1.")
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


def _say(chat: Chat, manner: Manner, choice: int) -> _Said:
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


def _call_tool(chat: Chat, tool: dict[str, Any], dice: random.Random) -> _Said:
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


def chat_answer(chat: Chat, manner: Manner, created: int, headers: faults.Headers) -> Answer:
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
    chat: Chat,
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


def embeddings(
    body: Mapping[str, Any], manner: Manner, headers: faults.Headers
) -> tuple[Answer, int]:
    """Unit vectors of 8 (or `dimensions`) numbers that follow from the input; prompt tokens."""
    model, given = body.get("model"), body.get("input")
    if not isinstance(model, str) or not model:
        raise Mistaken("you must provide a model parameter")
    tokens = isinstance(given, list) and bool(given) and isinstance(given[0], int)
    inputs: list[Any] = given if isinstance(given, list) and not tokens else [given]
    if not given or not all(isinstance(one, str | list) for one in inputs):
        raise Mistaken("'$.input' is invalid.")
    size = _whole(body, "dimensions", 8)
    if size > 4096:
        raise Mistaken("Invalid 'dimensions': integer above maximum value.")
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
