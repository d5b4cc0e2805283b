"""Our strict shapes are as strict as OpenAI's own types: what we let through, the SDK reads."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import ValidationError

from gateway.wire import json as door
from gateway.wire import openai

CHUNK = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}],
}
WHOLE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    ],
}

ODD = [
    {"id": ""},
    {"id": None},
    {"object": ""},
    {"object": "chat.completion.done"},
    {"model": ""},
    {"created": None},
    {"created": 1.5},
    {"choices": None},
    {"service_tier": "on_demand"},
    {"system_fingerprint": 5},
    {"usage": {}},
    {"usage": {"prompt_tokens": -1, "completion_tokens": 1, "total_tokens": 0}},
    {"error": {"message": "x"}},
]
CHOICES: list[dict[str, Any]] = [
    {"index": 0},
    {"index": "0", "delta": {}},
    {"delta": {}},
    {"index": 0, "delta": None},
    {"index": 0, "delta": {"content": ["x"]}},
    {"index": 0, "delta": {"role": "bot"}},
    {"index": 0, "delta": {"tool_calls": [{"id": "a"}]}},
    {"index": 0, "delta": {}, "finish_reason": "eos"},
    {"index": 0, "delta": {}, "logprobs": {"content": [{"token": "x"}]}},
]


@pytest.mark.parametrize("odd", [*ODD, *({"choices": [choice]} for choice in CHOICES)], ids=repr)
def test_an_odd_chunk_is_refused(odd: dict[str, Any]) -> None:
    with pytest.raises(door.JSONError):
        door.decode(json.dumps({**CHUNK, **odd}).encode(), openai.Chunk)


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_an_odd_answer_is_refused(odd: dict[str, Any]) -> None:
    with pytest.raises(door.JSONError):
        door.decode(json.dumps({**WHOLE, **odd}).encode(), openai.Completion)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from(["", "stop", "x", "default"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["index", "id", "type", "function", "name", "arguments", "content"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["id", "object", "created", "model", "usage", "service_tier", "system_fingerprint", "error"]
)
INSIDE = st.sampled_from(
    ["role", "content", "tool_calls", "refusal", "function_call", "audio", "annotations"]
)
BESIDE = st.sampled_from(["index", "finish_reason", "logprobs", "delta", "message"])


@given(
    st.dictionaries(NAMES, VALUES, max_size=2),
    st.dictionaries(BESIDE, VALUES, max_size=2),
    st.dictionaries(INSIDE, VALUES, max_size=2),
    st.booleans(),
)
def test_what_we_let_through_the_sdk_reads(
    around: dict[str, Any], beside: dict[str, Any], inside: dict[str, Any], streamed: bool
) -> None:
    base, part = (CHUNK, "delta") if streamed else (WHOLE, "message")
    choice = dict(base["choices"][0])  # type: ignore[index]
    choice = {**choice, part: {**choice[part], **inside}, **beside}
    body = {**base, "choices": [choice], **around}
    shape = openai.Chunk if streamed else openai.Completion
    judge = ChatCompletionChunk if streamed else ChatCompletion
    try:
        door.decode(json.dumps(body).encode(), shape)
    except door.JSONError:
        return
    try:
        judge.model_validate(body)
    except ValidationError as error:
        pytest.fail(f"we let through {body}: {error}")
