"""A stream's chunks put together to the completion they are, and a completion cut into chunks.

Both in OpenAI's shapes. Members nobody knows are kept: texts grow, lists are joined, the last of
everything else counts.
"""

from collections.abc import Mapping
from typing import Any

from gateway.wire import json

ONCE = frozenset({"role", "id", "type", "name"})  # texts that come whole, once
NOT_OF_THE_WHOLE = frozenset({"choices", "usage", "obfuscation", "object", "gateway"})
NOT_OF_A_CHUNK = frozenset({"choices", "usage", "object", "metadata"})
OURS = (
    "cost_usd"  # in `usage` of a stream: what it cost, which the next one to read it does not pay
)


class Assembly:
    """Fed with the chunks of one answer, in order."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._usage: dict[str, Any] | None = None

    def feed(self, chunk: Mapping[str, Any]) -> None:
        for name, value in chunk.items():
            if name not in NOT_OF_THE_WHOLE and (value is not None or name not in self._head):
                self._head.setdefault(name, value)
                if self._head[name] is None:
                    self._head[name] = value
        if chunk.get("usage"):
            self._usage = {name: value for name, value in chunk["usage"].items() if name != OURS}
        for choice in chunk.get("choices") or ():
            self._choice(choice)

    def completion(self) -> dict[str, Any]:
        """The whole answer; usage only where it was told."""
        choices = [self._whole(index) for index in sorted(self._choices)]
        whole = {**self._head, "object": "chat.completion", "choices": choices}
        if self._usage is not None:
            whole["usage"] = self._usage
        return whole

    def _choice(self, choice: Mapping[str, Any]) -> None:
        index = choice["index"]
        known = self._choices.setdefault(index, {"message": {}, "calls": {}, "logprobs": None})
        delta = dict(choice.get("delta") or {})
        for call in delta.pop("tool_calls", None) or ():
            piece = {name: value for name, value in call.items() if name != "index"}
            _grow(known["calls"].setdefault(call["index"], {}), piece)
        _grow(known["message"], delta)
        if choice.get("logprobs"):
            known["logprobs"] = _grow(known["logprobs"] or {}, choice["logprobs"])
        for name, value in choice.items():
            if name not in {"index", "delta", "logprobs"} and value is not None:
                known[name] = value

    def _whole(self, index: int) -> dict[str, Any]:
        choice: dict[str, Any] = _joined(self._choices[index])
        calls = choice.pop("calls")
        message = {"role": "assistant", "content": None, "refusal": None, **choice.pop("message")}
        if calls:
            message["tool_calls"] = [_callable(calls[at]) for at in sorted(calls)]
            message["content"] = message["content"] or None
        return {"index": index, "message": message, **choice}


def unrolled(
    whole: Mapping[str, Any], *, usage: bool, cost: str | None
) -> tuple[dict[str, Any], ...]:
    """The chunks of a stream that says `whole`: contents, finishes, and usage if it is asked for.

    `cost` is what `usage.cost_usd` says, in dollars; None: unknown.
    """
    head = {name: value for name, value in whole.items() if name not in NOT_OF_A_CHUNK}
    head["object"] = "chat.completion.chunk"
    chunks = []
    for choice in whole["choices"]:
        rest = {n: v for n, v in choice.items() if n not in {"message", "finish_reason"}}
        chunks.append({**head, "choices": [
            {**rest, "delta": _delta(choice["message"]), "finish_reason": None}
        ]})  # fmt: skip
    for choice in whole["choices"]:
        end = {"index": choice["index"], "delta": {}, "finish_reason": choice["finish_reason"]}
        chunks.append({**head, "choices": [end]})
    if usage and whole.get("usage"):
        chunks.append({**head, "choices": [], "usage": {**whole["usage"], OURS: cost}})
    return tuple(chunks)


def _delta(message: Mapping[str, Any]) -> dict[str, Any]:
    delta = dict(message)
    if delta.get("tool_calls"):
        calls = enumerate(delta["tool_calls"])
        delta["tool_calls"] = [{"index": at, **call} for at, call in calls]
    return delta


def _callable(call: dict[str, Any]) -> dict[str, Any]:
    """A call without arguments has an empty object of them: an empty text is no JSON."""
    function = call.get("function")
    if isinstance(function, dict) and not function.get("arguments"):
        function["arguments"] = "{}"
    return call


class _Text:
    """A text that grows: joined once, at the end."""

    __slots__ = ("pieces",)

    def __init__(self, first: str) -> None:
        self.pieces = [first]


def _grow(into: dict[str, Any], piece: Mapping[str, Any]) -> dict[str, Any]:
    """`piece` after what is there; it is not used by anybody else afterwards."""
    for name, value in piece.items():
        known = into.get(name)
        if isinstance(value, str) and name not in ONCE:
            if isinstance(known, _Text):
                known.pieces.append(value)
            else:
                into[name] = _Text(value)
        elif isinstance(value, dict):
            into[name] = _grow(known if isinstance(known, dict) else {}, value)
        elif isinstance(value, list) and isinstance(known, list):
            known += value
        elif known is None or (value is not None and name not in ONCE):
            into[name] = value
    return into


def _joined(value: Any) -> Any:
    if isinstance(value, _Text):
        return "".join(value.pieces)
    if isinstance(value, dict):
        return {name: _joined(inner) for name, inner in value.items()}
    return value


def finish_of(whole: Mapping[str, Any]) -> str | None:
    """Why the first choice ended."""
    choices = whole.get("choices") or ()
    found = choices[0].get("finish_reason") if choices else None
    return found if isinstance(found, str) else None


def without(body: bytes, name: str) -> bytes:
    """The same object without one of its members."""
    members = json.split(body)
    members.pop(name, None)
    return json.join(members)
