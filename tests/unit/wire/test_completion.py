"""A stream put together, and an answer cut into a stream: what a caller reads is the same."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from gateway.core.request import Request
from gateway.core.target import Secret, Target
from gateway.providers import registry
from gateway.wire import json, openai
from gateway.wire.completion import Assembly, finish_of, unrolled, without
from tests.vectors import cases
from tests.vectors.assembled import Assembled

TARGET = Target("t", "t", "p", "openai", "upstream-model", "https://up", secret=Secret("sk-x"))


def assembled(*chunks: dict[str, Any]) -> dict[str, Any]:
    assembly = Assembly()
    for chunk in chunks:
        assembly.feed(chunk)
    return assembly.completion()


def streamed(body: bytes) -> tuple[list[dict[str, Any]], Assembled]:
    decoder = registry.adapter(TARGET).decoder(Request("chat", "m", {}, stream=True))
    story, chunks = Assembled(), []
    for event in (*decoder.feed(body), *decoder.close()):
        story.take(event)
        if event.wire:
            chunks.append(json.loads(event.wire))
    return chunks, story if decoder.complete else Assembled()


@pytest.mark.skipif(not cases.SHARED.exists(), reason="../shared/vectors is not here")
@pytest.mark.parametrize("case", cases.streams() if cases.SHARED.exists() else [], ids=repr)
def test_every_recorded_stream_becomes_the_answer_it_is(case: cases.Case) -> None:
    chunks, story = streamed(case.body)
    if not story.finishes:
        pytest.skip("it never finished")
    whole = assembled(*chunks)
    json.decode(json.dumps(whole), openai.Completion)
    read = ChatCompletion.model_validate(whole)
    for choice in read.choices:
        assert (choice.message.content or "") == story.texts[choice.index]
        assert choice.finish_reason == story.finishes[choice.index]
        calls = [
            {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
            for call in choice.message.tool_calls or []
            if call.type == "function"
        ]
        expected = [
            {**call, "arguments": call["arguments"] or "{}"} for call in story.calls[choice.index]
        ]
        assert calls == expected
    again = unrolled(whole, usage=True, cost="0")
    assert {**assembled(*again)} == whole


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, **more}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [choice]}  # fmt: skip


@given(st.lists(st.text(max_size=8), min_size=1, max_size=8))
def test_texts_and_arguments_grow_however_they_are_cut(pieces: list[str]) -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f"}}
    said = [chunk({"role": "assistant", "tool_calls": [call]})]
    for piece in pieces:
        argument = {"index": 0, "function": {"arguments": piece}}
        thought = {"reasoning_content": piece, "tool_calls": [argument]}
        said.append(chunk(thought, logprobs={"content": [{"token": piece}]}))
    message = assembled(*said, chunk({}, "tool_calls"))["choices"][0]
    text = "".join(pieces)
    assert message["message"]["reasoning_content"] == text
    (made,) = message["message"]["tool_calls"]
    assert made == {"id": "call_1", "type": "function",
                    "function": {"name": "f", "arguments": text or "{}"}}  # fmt: skip
    assert [entry["token"] for entry in message["logprobs"]["content"]] == pieces


def test_what_an_answer_cost_is_told_once() -> None:
    usage = {**chunk({}), "choices": [], "usage": {"prompt_tokens": 1, "cost_usd": "0.5"}}
    whole = assembled(chunk({"content": "hi"}, "stop"), usage)
    assert whole["usage"] == {"prompt_tokens": 1}
    assert unrolled(whole, usage=True, cost="0")[-1]["usage"]["cost_usd"] == "0"
    assert all("usage" not in one for one in unrolled(whole, usage=False, cost="0"))
    assert finish_of(whole) == "stop"


def test_a_member_is_taken_out_and_the_others_keep_every_byte() -> None:
    assert without(b'{"a": 1.00,"gateway": {}, "b":[ ]}', "gateway") == b'{"a":1.00,"b":[ ]}'
