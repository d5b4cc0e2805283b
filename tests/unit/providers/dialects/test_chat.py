"""What is sent, and what whole answers mean."""

import json
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

from gateway.core.ports import UpstreamRequest
from gateway.core.request import Request
from gateway.core.target import Cause, Params, Secret, Target
from gateway.core.usage import Usage
from gateway.providers.dialects.chat import Chat
from gateway.wire import json as door

SAID = {"model": "mine", "messages": [{"role": "user", "content": "é"}], "seed": 7}


def chat(params: Params = Params()) -> Chat:  # noqa: B008 - frozen
    target = Target(
        "t", "t", "p", "openai", "up/stream", "https://up/v1", secret=Secret("sk-own"),
        params=params,
    )  # fmt: skip
    return Chat(target, {"authorization": "Bearer sk-own"})


def asked(members: dict[str, Any], kind: Any = "chat", **more: Any) -> Request:
    raw = {name: door.raw(value) for name, value in members.items()}
    return Request(kind, "mine", raw, stream=bool(members.get("stream")), **more)


def sent(members: dict[str, Any], params: Params = Params()) -> tuple[UpstreamRequest, Any]:  # noqa: B008
    request = chat(params).request(asked(members), "req_1")
    return request, json.loads(request.body)


def raws(**members: Any) -> dict[str, door.Raw]:
    return {name: door.raw(value) for name, value in members.items()}


def test_the_model_is_the_targets_and_the_rest_the_callers() -> None:
    request, body = sent({**SAID, "next_years_field": {"a": [1]}})
    assert body == {**SAID, "model": "up/stream", "next_years_field": {"a": [1]}}
    assert request.headers["accept-encoding"] == "identity"
    assert request.id == "req_1"
    assert not request.stream
    assert request.dropped == ()


def test_attempts_do_not_spoil_each_other() -> None:
    adapter, request = chat(), asked(SAID)
    one, two = adapter.request(request, "a"), adapter.request(request, "b")
    assert one.id == "a"
    assert two.id == "b"
    assert json.loads(request.body())["model"] == "mine"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        ({"include_obfuscation": False}, {"include_obfuscation": False, "include_usage": True}),
        ("junk", {"include_usage": True}),
    ],
)
def test_streams_are_always_asked_for_usage(options: Any, expected: Any) -> None:
    members = {**SAID, "stream": True}
    if options is not None:
        members["stream_options"] = options
    request, body = sent(members)
    assert body["stream_options"] == expected
    assert request.stream
    assert request.headers["accept"] == "text/event-stream"


def test_our_own_members_stay_here() -> None:
    assert "models" not in sent({**SAID, "models": ["a", "b"]})[1]


def test_params_come_in_their_order() -> None:
    params = Params(
        default=raws(temperature=0.5, seed=1, max_tokens=100),
        cap={"temperature": 0.3, "max_tokens": 50, "n": 2},
        set=raws(user="gateway", model="nonsense"),
        drop=frozenset({"seed", "logit_bias", "top_k"}),
    )
    request, body = sent({**SAID, "n": 5, "logit_bias": {}}, params)
    assert body["temperature"] == 0.3
    assert body["max_tokens"] == 50
    assert body["n"] == 2
    assert body["user"] == "gateway"
    assert body["model"] == "up/stream"
    assert "seed" not in body
    assert request.dropped == ("logit_bias", "seed")


def test_a_cap_of_tokens_holds_under_both_names() -> None:
    params = Params(cap={"max_tokens": 50})
    assert sent({"max_completion_tokens": 99}, params)[1]["max_completion_tokens"] == 50
    assert sent({"max_completion_tokens": 49}, params)[1]["max_completion_tokens"] == 49
    assert "max_tokens" not in sent({}, params)[1]


BOTH = {"max_tokens": 9, "max_completion_tokens": 8}


@pytest.mark.parametrize(
    ("said", "params", "url", "expected"),
    [
        ({}, Params(), "https://up/v1", {"max_tokens": 7}),
        ({}, Params(), "https://api.openai.com/v1", {"max_completion_tokens": 7}),
        ({"max_tokens": 9}, Params(), "https://api.openai.com/v1", {"max_tokens": 7}),
        ({"max_tokens": 5}, Params(), "https://up/v1", {"max_tokens": 5}),
        ({"max_tokens": None}, Params(), "https://up/v1", {"max_tokens": 7}),
        (BOTH, Params(), "https://up/v1", {"max_completion_tokens": 7}),
        ({}, Params(set=raws(max_tokens=10**6)), "https://up/v1", {"max_tokens": 7}),
        ({}, Params(default=raws(max_completion_tokens=3)), "", {"max_completion_tokens": 3}),
        (
            {"max_tokens": 9},
            Params(drop=frozenset({"max_tokens"})),
            "https://up/v1",
            {"max_completion_tokens": 7},
        ),
        (
            {},
            Params(drop=frozenset({"max_completion_tokens"})),
            "https://api.openai.com/v1",
            {"max_tokens": 7},
        ),
    ],
)
def test_the_bound_a_budget_counts_on_is_sent_under_one_name(
    said: dict[str, Any], params: Params, url: str, expected: dict[str, int]
) -> None:
    target = Target("t", "t", "p", "openai", "m", url, params=params)
    made = Chat(target, {}).request(asked(said, cap=7), "req_1")
    assert json.loads(made.body) == {"model": "m", **expected}


@pytest.mark.parametrize("value", ["many", None, True, [9e9]])
def test_what_is_no_number_is_not_capped(value: Any) -> None:
    assert sent({"n": value}, Params(cap={"n": 1}))[1]["n"] == value


def test_stream_options_can_be_dropped_for_servers_that_refuse_them() -> None:
    request, body = sent({"stream": True}, Params(drop=frozenset({"stream_options"})))
    assert "stream_options" not in body
    assert request.dropped == ()


def test_embeddings_go_to_their_own_address() -> None:
    request = chat().request(asked({"model": "mine", "input": "x"}, "embeddings"), "req_1")
    assert request.url == "https://up/v1/embeddings"


# ---------------------------------------------------------------------- whole answers

WHOLE: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "né"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


def answer(**changed: Any) -> Any:
    return chat().completion(asked(SAID), json.dumps({**WHOLE, **changed}).encode())


def choice(**changed: Any) -> list[dict[str, Any]]:
    return [{**WHOLE["choices"][0], **changed}]


def test_a_valid_answer_goes_on_byte_for_byte() -> None:
    body = json.dumps({**WHOLE, "x_new": 1}, indent=3).encode()
    event = chat().completion(asked(SAID), body)
    assert event.wire is body
    assert (event.content, event.size, event.finish_reason) == (True, 3, "stop")
    assert event.usage == Usage(input=3, output=2)
    assert not event.own


@pytest.mark.parametrize(
    "changed",
    [
        {"id": ""}, {"id": None}, {"object": ""}, {"model": ""}, {"created": None},
        {"created": 1.5}, {"service_tier": "on_demand"}, {"x_groq": {"id": "a"}},
        {"error": None}, {"error": {}}, {"system_fingerprint": 4}, {"usage": None},
        {"usage": {"prompt_tokens": 3}}, {"metadata": {"a": 1}},
        {"choices": choice(index=None)}, {"choices": choice(logprobs={"tokens": []})},
        {"choices": choice(finish_reason="eos")},
        {"choices": choice(message={"content": "x"})},
        {"choices": choice(message={"content": "x", "annotations": [{"type": "other"}]})},
        {"choices": choice(message={"content": None, "reasoning_content": {"a": 1}})},
        {"choices": choice(finish_reason="content_filter", message=None)},
    ],
    ids=repr,
)  # fmt: skip
def test_an_odd_answer_is_put_right(changed: dict[str, Any]) -> None:
    event = answer(**changed)
    assert event.failure is None
    read = ChatCompletion.model_validate(json.loads(event.wire))
    assert read.id
    assert read.model
    assert event.finish_reason == read.choices[0].finish_reason


def test_mistrals_list_is_text_and_thoughts() -> None:
    content = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm "}], "closed": True},
        {"type": "text", "text": "yes"},
        {"type": "reference", "reference_ids": [1]},
    ]
    event = answer(choices=choice(message={"role": "assistant", "content": content}))
    message = json.loads(event.wire)["choices"][0]["message"]
    assert message["content"] == "yes"
    assert message["reasoning_content"] == "hm "
    assert event.size == 6


@pytest.mark.parametrize(
    ("function", "arguments"),
    [({}, "{}"), ({"arguments": ""}, "{}"), ({"arguments": {"a": 1}}, '{"a":1}')],
)
def test_tool_calls_have_arguments_an_id_and_a_type(function: Any, arguments: str) -> None:
    call = {"function": {"name": "f", **function}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    event = answer(choices=choice(message=message, finish_reason="tool_calls"))
    read = ChatCompletion.model_validate(json.loads(event.wire))
    calls = read.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert calls[0].id.startswith("call_")
    assert calls[0].function.arguments == arguments


def test_usage_is_inclusive_also_for_the_caller() -> None:
    event = answer(
        usage={
            "prompt_tokens": 12,
            "completion_tokens": 2,
            "total_tokens": 334,
            "completion_tokens_details": {"reasoning_tokens": 320},
        }
    )
    assert event.usage == Usage(input=12, output=322, reasoning=320)
    assert json.loads(event.wire)["usage"]["completion_tokens"] == 322


@pytest.mark.parametrize(
    "body",
    [
        b"", b"  \n", b"<html>502</html>", b"{", b"[]", b"null", b"{}", b'"ok"', b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({**WHOLE, "choices": None}).encode(),
        json.dumps({**WHOLE, "choices": []}).encode(),
        json.dumps({k: v for k, v in WHOLE.items() if k != "choices"}).encode(),
        json.dumps({**WHOLE, "choices": choice(finish_reason=None)}).encode(),
        json.dumps({**WHOLE, "choices": choice(message=None)}).encode(),
        json.dumps({**WHOLE, "choices": choice(message="hi")}).encode(),
        json.dumps({**WHOLE, "choices": ["hi"]}).encode(),
        json.dumps({**WHOLE, "choices": choice(message={"content": 5})}).encode(),
        json.dumps({**WHOLE, "choices": choice(finish_reason="no idea")}).encode(),
    ],
    ids=lambda body: body[:40].decode(errors="replace"),
)  # fmt: skip
def test_what_is_no_answer_is_malformed(body: bytes) -> None:
    for kind in ("chat", "embeddings"):
        event = chat().completion(asked(SAID, kind), body)
        assert event.failure is not None
        assert event.failure.cause is Cause.MALFORMED
        assert event.wire == b""


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ({"error": {"message": "x", "type": "server_error"}}, Cause.SERVER_ERROR),
        ({"error": {"message": "x", "code": 429}}, Cause.RATE_LIMITED),
        ({"error": {"message": "x", "code": "429"}}, Cause.RATE_LIMITED),
        ({"error": "overloaded", "code": "overloaded"}, Cause.OVERLOADED),
        ({"error": {"code": "context_length_exceeded"}}, Cause.CONTEXT_LENGTH),
        ({"error": {"type": "insufficient_quota"}}, Cause.QUOTA),
        ({"error": {"type": "authentication_error"}}, Cause.AUTH),
        ({"object": "error", "message": "x", "type": "NotFoundError"}, Cause.MODEL_GONE),
        ({"detail": "Not Found"}, Cause.SERVER_ERROR),
        ([{"error": {"code": 503, "message": "x"}}], Cause.OVERLOADED),
        ({"choices": [{"error": {"code": 502}, "message": {}}]}, Cause.SERVER_ERROR),
    ],
    ids=repr,
)
def test_an_error_under_a_200_is_judged_as_its_status(error: Any, cause: Cause) -> None:
    event = chat().completion(asked(SAID), json.dumps(error).encode())
    assert event.failure is not None
    assert event.failure.cause is cause


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("error", Cause.SERVER_ERROR),
        ("insufficient_system_resource", Cause.OVERLOADED),
        ("abort", Cause.CUT_STREAM),
        ("who knows", Cause.MALFORMED),
        (7, Cause.MALFORMED),
    ],
)
def test_a_bad_end_is_a_failure(reason: Any, cause: Cause) -> None:
    event = answer(choices=choice(finish_reason=reason))
    assert event.failure is not None
    assert event.failure.cause is cause


# ---------------------------------------------------------------------- embeddings

VECTORS: dict[str, Any] = {
    "object": "list",
    "model": "m",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}],
    "usage": {"prompt_tokens": 3, "total_tokens": 3},
}


def vectors(**changed: Any) -> Any:
    body = json.dumps({**VECTORS, **changed}).encode()
    return chat().completion(asked({}, "embeddings"), body), body


def test_vectors_go_on_byte_for_byte() -> None:
    event, body = vectors()
    assert event.wire == body
    assert event.usage == Usage(input=3)
    assert event.content
    base64 = [{"object": "embedding", "index": 0, "embedding": "AAAA"}]
    assert vectors(data=base64)[0].failure is None


def test_odd_vectors_are_put_right() -> None:
    event, _ = vectors(object="", model=None, usage=None, data=[{"embedding": [1]}])
    CreateEmbeddingResponse.model_validate(json.loads(event.wire))
    assert event.usage is None
    assert json.loads(event.wire)["model"] == "up/stream"


@pytest.mark.parametrize("data", [None, [], [{}], [{"index": 0, "embedding": None}], ["x"]])
def test_no_vectors_are_malformed(data: Any) -> None:
    event, _ = vectors(data=data)
    assert event.failure is not None
    assert event.failure.cause is Cause.MALFORMED
