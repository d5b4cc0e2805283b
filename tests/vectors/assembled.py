"""What a caller makes of a stream, with OpenAI's own types as the judge."""

import json
from typing import Any

from openai.types.chat import ChatCompletionChunk

from gateway.core.attempt import StreamEvent
from gateway.core.target import Failure
from gateway.core.usage import Usage

FINISHES = {"stop", "length", "tool_calls", "content_filter", "function_call"}


class Assembled:
    """Fed with events; every chunk is validated and must go on with the story."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.thoughts: dict[int, str] = {}
        self.refusal = ""
        self.calls: dict[int, list[dict[str, Any]]] = {}
        self.finishes: dict[int, str] = {}
        self.roles: set[int] = set()
        self.identity: tuple[str, int, str] | None = None
        self.usage: Usage | None = None
        self.frames = 0  # of usage
        self.failure: Failure | None = None
        self.size = 0

    def take(self, event: StreamEvent) -> None:
        assert self.failure is None, "something came after the failure"
        self.failure = event.failure
        if event.usage is not None:
            self.usage = event.usage
        self.size += event.size
        if not event.wire:
            assert not event.content
            assert not event.size
            return
        assert event.failure is None
        chunk = json.loads(event.wire)
        read = ChatCompletionChunk.model_validate(chunk)
        assert read.id
        assert read.model
        identity = (read.id, read.created, read.model)
        assert self.identity in {None, identity}, "the story changed its name"
        self.identity = identity
        if not read.choices:
            assert read.usage is not None
            assert event.usage is not None or read.usage.total_tokens == 0
            assert not event.content
            self.frames += 1
            return
        assert not event.own
        assert read.usage is None, "usage stays out of frames with choices"
        said = False
        for choice, raw in zip(read.choices, chunk["choices"], strict=True):
            said |= self._choice(choice, raw["delta"])
        assert event.content is said

    def _choice(self, choice: Any, raw: dict[str, Any]) -> bool:
        k, delta = choice.index, choice.delta
        assert k not in self.finishes, "it went on after its finish"
        assert (k in self.roles) is (delta.role is None), "one role, first"
        self.roles.add(k)
        thought = raw.get("reasoning_content") or raw.get("reasoning") or ""
        self.texts[k] = self.texts.get(k, "") + (delta.content or "")
        self.thoughts[k] = self.thoughts.get(k, "") + thought
        self.refusal += delta.refusal or ""
        calls = self.calls.setdefault(k, [])
        for piece in delta.tool_calls or []:
            function = piece.function
            if piece.index == len(calls):
                assert piece.id
                assert piece.type == "function"
                assert function is not None
                assert function.name
                calls.append({"id": piece.id, "name": function.name, "arguments": ""})
            else:
                assert not piece.id
                assert function is None or not function.name
            if function is not None and function.arguments:
                calls[piece.index]["arguments"] += function.arguments
        if choice.finish_reason is not None:
            assert choice.finish_reason in FINISHES
            self.finishes[k] = choice.finish_reason
            if choice.finish_reason != "length":
                for call in calls:
                    json.loads(call["arguments"])
        return bool(
            delta.content
            or thought
            or delta.refusal
            or delta.tool_calls
            or delta.function_call is not None
            or choice.finish_reason
        )

    def said(self) -> str:
        """Everything in one text, for prefixes."""
        return json.dumps([self.texts, self.thoughts, self.refusal])
