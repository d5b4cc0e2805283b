"""What others send where OpenAI sends something else, put right (wire-mapping.md 3 and 4).

Only read values are touched here; what comes out is looked at strictly again before it leaves.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from gateway.core.target import Cause, Failure
from gateway.providers.dialects import errors
from gateway.providers.dialects import usage as usages
from gateway.wire import json, openai

_FINISHES = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "function_call": "function_call",
    "eos": "stop",  # Together
    "eos_token": "stop",  # TGI
    "stop_sequence": "stop",
    "end_turn": "stop",
    "complete": "stop",
    "model_length": "length",  # Mistral
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "tool_call": "tool_calls",
    "safety": "content_filter",
    "recitation": "content_filter",
    "sensitive": "content_filter",  # z.ai
}
_FAILURES = {
    "error": Cause.SERVER_ERROR,  # Mistral, OpenRouter
    "network_error": Cause.SERVER_ERROR,  # z.ai
    "insufficient_system_resource": Cause.OVERLOADED,  # DeepSeek
    "abort": Cause.CUT_STREAM,  # SGLang
    "cancelled": Cause.CUT_STREAM,
}
_TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast"})
_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


class Broken(Exception):
    """Beyond repair: a malformed event or body."""


class Ended(Exception):
    """The answer says of itself that it failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.cause.value)
        self.failure = failure


def made_id(prefix: str) -> str:
    """An id where the upstream gave none."""
    return f"{prefix}{os.urandom(12).hex()}"


def error_in(value: Any) -> Any:
    """The error an answer under a 200 holds, in whatever shape; None: it holds none."""
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return None
    if value.get("error") or value.get("object") == "error" or value.get("type") == "error":
        return value
    groq = value.get("x_groq")
    if isinstance(groq, dict) and groq.get("error"):
        return {"error": {"code": groq["error"], "message": groq["error"]}}
    choices = value.get("choices")
    if isinstance(choices, list):
        for choice in choices:
            if isinstance(choice, dict) and choice.get("error"):
                return {"error": choice["error"]}
    elif choices is None and "usage" not in value and ("detail" in value or "message" in value):
        return value
    return None


def readable(body: bytes, secret: str) -> dict[str, Any]:
    """A JSON object that is no error.

    Raises:
        Broken: it is no JSON object.
        Ended: it is, or holds, an error.
    """
    try:
        value = json.loads(body)
    except json.JSONError:
        raise Broken from None
    error = error_in(value)
    if error is not None:
        raise Ended(errors.in_band(error, secret))
    return _dict(value)


# ---------------------------------------------------------------------- a chunk


def chunk(value: dict[str, Any]) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Put an event right in place; its usage and its choices, which are the caller's to fit in.

    Raises:
        Broken: it is no event of this dialect.
        Ended: a choice ended in an error.
    """
    told = _usage(value)
    raw = value.get("choices")
    if raw is None:
        if told is None:
            raise Broken
        raw = []
    _around(value, "chat.completion.chunk")
    return told, [_chunk_choice(choice, place) for place, choice in enumerate(_list(raw))]


def _chunk_choice(value: Any, place: int) -> dict[str, Any]:
    choice = _dict(value)
    message = choice.pop("message", None)
    given = choice.get("delta")
    if given is None:
        given = message if isinstance(message, dict) else {}
    delta = _dict(given)
    choice["delta"] = delta
    _text(delta)
    calls = delta.get("tool_calls")
    if calls is not None:
        delta["tool_calls"] = [_dict(call) for call in _list(calls)]
    _ending(choice, place)
    return choice


def says_something(delta: dict[str, Any]) -> bool:
    """Whether a delta has any content."""
    return any(delta.get(name) for name in (*_TEXTS, "tool_calls", "function_call"))


def renumbered(call: dict[str, Any], known: Sequence[Any]) -> int | None:
    """The place of the known call (`upstream`, `id`) that a piece goes on with; None: a new one.

    Indices may be missing, start at 1, or be 0 for all.
    """
    index, told, name = call.get("index"), call.get("id"), _function(call).get("name")
    if isinstance(index, int):
        place = _last(known, lambda other: other.upstream == index)
        if place is not None and told and name and known[place].id != told:
            return None
        return place
    place = _last(known, lambda other: bool(told) and other.id == told)
    if place is None and known and not name:
        return len(known) - 1
    return place


def _last(known: Sequence[Any], fits: Callable[[Any], bool]) -> int | None:
    return next((k for k in reversed(range(len(known))) if fits(known[k])), None)


def call_head(call: dict[str, Any], place: int) -> dict[str, Any]:
    """The first piece of a tool call: id, type and name are here and nowhere else."""
    function = _function(call)
    told, name = call.get("id"), function.get("name")
    return {
        **call,
        "index": place,
        "id": told if told and isinstance(told, str) else made_id("call_"),
        "type": "function",
        "function": {
            **function,
            "name": name if isinstance(name, str) else "",
            "arguments": _arguments(function.get("arguments")),
        },
    }


def call_piece(call: dict[str, Any], place: int) -> dict[str, Any]:
    """A later piece: arguments only."""
    rest = {name: value for name, value in call.items() if name not in {"id", "type"}}
    arguments = _arguments(_function(call).get("arguments"))
    return {**rest, "index": place, "function": {"arguments": arguments}}


def give_arguments(delta: dict[str, Any], given: Sequence[bool]) -> None:
    """At the finish a call without arguments gets `{}`: an empty text is no JSON."""
    pieces = delta.get("tool_calls") or []
    for place, some in enumerate(given):
        here = [piece for piece in pieces if piece["index"] == place]
        if some or any(piece["function"]["arguments"] for piece in here):
            continue
        if here:
            here[-1]["function"]["arguments"] = "{}"
        else:
            pieces.append({"index": place, "function": {"arguments": "{}"}})
    if pieces:
        delta["tool_calls"] = pieces


# ---------------------------------------------------------------------- a whole answer


def completion(body: Any, model: str) -> dict[str, Any]:
    """Put a whole chat answer right.

    Raises:
        Broken: it is none, or has no finish_reason.
        Ended: a choice ended in an error.
    """
    value = _dict(body)
    told = _usage(value)
    choices = [
        _whole_choice(choice, place) for place, choice in enumerate(_list(value.get("choices")))
    ]
    _around(value, "chat.completion")
    value["choices"] = choices
    _named(value, model)
    if told is None:
        value.pop("usage", None)
    else:
        value["usage"] = told
    metadata = value.get("metadata")
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    ):
        del value["metadata"]
    return value


def _whole_choice(value: Any, place: int) -> dict[str, Any]:
    choice = _dict(value)
    _ending(choice, place)
    given = choice.get("message")
    if given is None and choice["finish_reason"] == "content_filter":  # Azure
        given = {"content": None, "refusal": None}
    message = _dict(given)
    choice["message"] = message
    message["role"] = "assistant"
    _text(message)
    calls = message.get("tool_calls")
    if calls is not None:
        message["tool_calls"] = [_whole_call(_dict(call)) for call in _list(calls)]
    annotations = message.get("annotations")
    if annotations is not None and not _fits(annotations, list[openai.Annotation]):
        del message["annotations"]
    return choice


def _whole_call(call: dict[str, Any]) -> dict[str, Any]:
    if call.get("type") == "custom":
        return call
    head = call_head(call, 0)
    head["function"]["arguments"] = head["function"]["arguments"] or "{}"
    del head["index"]
    return {**{name: value for name, value in call.items() if name == "index"}, **head}


def embeddings(body: Any, model: str) -> dict[str, Any]:
    """Put an answer of vectors right.

    Raises:
        Broken: it is none.
    """
    value = _dict(body)
    data = [_dict(item) for item in _list(value.get("data"))]
    for place, item in enumerate(data):
        item["object"] = "embedding"
        item.setdefault("index", place)
        if not isinstance(item.get("embedding"), list | str):
            raise Broken
    value["object"] = "list"
    if not (value.get("model") and isinstance(value["model"], str)):
        value["model"] = model
    told = usages.mended(value.get("usage"))
    value["usage"] = {"prompt_tokens": 0, "total_tokens": 0} if told is None else told
    value.pop("error", None)
    return value


# ---------------------------------------------------------------------- what both have


def _around(value: dict[str, Any], kind: str) -> None:
    """The members beside the choices."""
    value["object"] = kind
    value.pop("error", None)
    value.pop("x_groq", None)
    tier = value.get("service_tier")
    if tier is not None and not (isinstance(tier, str) and tier in _TIERS):
        del value["service_tier"]
    for name in ("system_fingerprint", "obfuscation"):
        if not isinstance(value.get(name), str | None):
            del value[name]


def _named(value: dict[str, Any], model: str) -> None:
    if not (value.get("id") and isinstance(value["id"], str)):
        value["id"] = made_id("chatcmpl-")
    if not (value.get("model") and isinstance(value["model"], str)):
        value["model"] = model
    value["created"] = moment(value.get("created"))


def moment(created: Any) -> int:
    """Whole seconds; 0 where the upstream does not say: there is no clock here."""
    if isinstance(created, int | float) and not isinstance(created, bool):
        return int(created)
    return 0


def _usage(value: dict[str, Any]) -> dict[str, Any] | None:
    """Where usage may stand: in its place, in Groq's own member, inside a choice (Moonshot)."""
    found = [value.get("usage")]
    if isinstance(groq := value.get("x_groq"), dict):
        found.append(groq.get("usage"))
    choices = value.get("choices")
    if isinstance(choices, list):
        found += [choice.pop("usage", None) for choice in choices if isinstance(choice, dict)]
    return next((told for one in found if (told := usages.mended(one)) is not None), None)


def _ending(choice: dict[str, Any], place: int) -> None:
    """Index, finish_reason, logprobs."""
    index = choice.get("index")
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        choice["index"] = place
    choice.pop("error", None)
    finish = choice.get("finish_reason") or None
    if finish is not None:
        known = _FINISHES.get(finish.lower()) if isinstance(finish, str) else None
        if known is None:
            cause = _FAILURES.get(finish, Cause.MALFORMED) if isinstance(finish, str) else None
            raise Ended(Failure(cause or Cause.MALFORMED, "ended with an error as finish_reason"))
        finish = known
    choice["finish_reason"] = finish
    logprobs = choice.get("logprobs")
    if logprobs is not None and not _fits(logprobs, openai.Logprobs):
        del choice["logprobs"]


def _text(said: dict[str, Any]) -> None:
    """Texts are texts or null; Mistral's content may be a list of thinking and text."""
    content = said.get("content")
    if isinstance(content, list):
        thoughts = "".join(_thought(part) for part in content if isinstance(part, dict))
        said["content"] = "".join(
            part if isinstance(part, str) else _plain(part) for part in content
        )
        if thoughts:
            said["reasoning_content"] = thoughts
    elif not isinstance(content, str | None):
        raise Broken
    for name in _TEXTS:
        if name in said and not isinstance(said[name], str | None):
            del said[name]
    if "function_call" in said and not isinstance(said["function_call"], dict):
        del said["function_call"]


def _plain(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    return ""


def _thought(part: dict[str, Any]) -> str:
    thinking = part.get("thinking") if part.get("type") == "thinking" else None
    if isinstance(thinking, str):
        return thinking
    return "".join(_plain(piece) for piece in thinking) if isinstance(thinking, list) else ""


def _function(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    return function if isinstance(function, dict) else {}


def _arguments(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value).decode()


def _fits(value: Any, shape: Any) -> bool:
    try:
        json.decode(json.dumps(value), shape)
    except json.JSONError:
        return False
    return True


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Broken
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Broken
    return value
