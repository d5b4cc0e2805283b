"""Every recorded answer of everyone who speaks OpenAI, judged by OpenAI's own types."""

import json

import pytest
from openai.types.chat import ChatCompletion

from gateway.core.request import Request
from gateway.core.target import Cause, Secret, Target
from gateway.core.usage import Usage
from gateway.providers import registry
from tests.vectors import cases
from tests.vectors.assembled import Assembled

pytestmark = pytest.mark.skipif(not cases.SHARED.exists(), reason="../shared/vectors is not here")

TARGET = Target("t", "t", "p", "openai", "upstream-model", "https://up", secret=Secret("sk-x"))
CHAT = registry.adapter(TARGET)
STREAM = Request("chat", "m", {}, stream=True)
ASKED = Request("chat", "m", {}, stream=True, include_usage=True)
WHOLE = Request("chat", "m", {})


def run(body: bytes, request: Request = STREAM) -> tuple[Assembled, bool]:
    decoder = CHAT.decoder(request)
    story = Assembled()
    for event in (*decoder.feed(body), *decoder.close()):
        story.take(event)
    return story, decoder.complete


def as_expected(usage: Usage | None, expected: dict[str, int] | None) -> None:
    if expected is None:
        assert usage is None
        return
    assert usage is not None
    assert usage.input == expected["prompt_tokens"]
    assert usage.output == expected["completion_tokens"]
    assert usage.cached == min(expected["cached_tokens"], usage.input)
    assert usage.reasoning == expected["reasoning_tokens"]


FINISH = {"eos": "stop", "model_length": "length"}


@pytest.mark.parametrize("case", cases.wholes(), ids=repr)
def test_a_whole_answer_is_one_the_sdk_reads(case: cases.Case) -> None:
    event = CHAT.completion(WHOLE, case.body)
    assert event.failure is None
    assert event.content
    answer = ChatCompletion.model_validate(json.loads(event.wire))
    expect = case.expect
    assert expect is not None
    choice = answer.choices[0]
    assert (choice.message.content or "") == expect["text"]
    raw = json.loads(event.wire)["choices"][0]["message"]
    thoughts = raw.get("reasoning_content") or raw.get("reasoning") or ""
    assert thoughts == expect["reasoning"]
    calls = [
        {"id": c.id, "name": c.function.name, "arguments": json.loads(c.function.arguments)}
        for c in choice.message.tool_calls or []
        if c.type == "function"
    ]
    assert calls == expect["tool_calls"]
    finish = expect["openai_finish_reason"]
    assert choice.finish_reason == event.finish_reason == FINISH.get(finish, finish)
    as_expected(event.usage, expect["openai_usage"])
    assert answer.usage is not None
    assert answer.usage.total_tokens == (
        answer.usage.prompt_tokens + answer.usage.completion_tokens
    )


@pytest.mark.parametrize("case", cases.streams(), ids=repr)
def test_a_stream_is_one_story_the_sdk_reads(case: cases.Case) -> None:
    story, complete = run(case.body)
    expect = case.expect
    finish = expect["openai_finish_reason"] if expect is not None else None
    if expect is None or finish is None or finish == "error":
        assert not complete
        assert story.failure is not None
        return
    assert story.failure is None
    assert complete
    text = expect["text"]
    if case.name == "perplexity/chat-stream":  # that reader adds the summary at its end again
        text = text[: len(text) // 2]
    assert story.texts[0] == text
    assert story.thoughts[0] == expect["reasoning"]
    assert [
        {**call, "arguments": json.loads(call["arguments"])} for call in story.calls[0]
    ] == expect["tool_calls"]
    assert story.finishes[0] == FINISH.get(finish, finish)
    as_expected(story.usage, expect["openai_usage"])
    asked, _ = run(case.body, ASKED)
    assert asked.frames == (1 if expect["openai_usage"] else 0)


@pytest.mark.parametrize("case", cases.streams(), ids=repr)
def test_any_cut_between_reads_gives_the_same(case: cases.Case) -> None:
    whole = CHAT.decoder(STREAM)
    truth = [*whole.feed(case.body), *whole.close()]
    for width in (1, 7, 100, 1000):
        decoder = CHAT.decoder(STREAM)
        body = case.body if width > 1 else case.body[:4000]
        if width == 1 and len(case.body) > 4000:
            continue
        got = [
            event
            for at in range(0, len(body), width)
            for event in decoder.feed(body[at : at + width])
        ]
        got += decoder.close()
        assert [e._replace(wire=b"") for e in got] == [e._replace(wire=b"") for e in truth]
        assert decoder.complete == whole.complete


CAUSES = {
    "azure/error-401": Cause.AUTH,
    "azure/error-404-01": Cause.MODEL_GONE,
    "azure/error-429-01": Cause.RATE_LIMITED,
    "azure/error-content-filter-01": Cause.CONTENT_POLICY,
    "deepseek/error-401": Cause.AUTH,
    "groq/error-400-01": Cause.MALFORMED,
    "groq/error-404-01": Cause.MODEL_GONE,
    "local-llamacpp/error-context": Cause.CONTEXT_LENGTH,
    "local-llamacpp/error-context-stream": Cause.CONTEXT_LENGTH,
    "local-llamacpp/error-empty": Cause.BAD_REQUEST,
    "local-llamacpppython/error-context": Cause.CONTEXT_LENGTH,
    "local-llamacpppython/error-key": Cause.AUTH,
    "local-llamacpppython/json-schema": Cause.SERVER_ERROR,
    "local-transformers/error-empty": Cause.SERVER_ERROR,
    "mistral/error-401": Cause.AUTH,
    "ollama/error-400": Cause.CONTEXT_LENGTH,
    "ollama/error-401": Cause.AUTH,
    "openai/error-400-01": Cause.BAD_REQUEST,
    "openai/error-400-03": Cause.BAD_REQUEST,
    "openai/error-400-04": Cause.UNABLE,
    "openai/error-400-06": Cause.UNABLE,
    "openai/error-400-07": Cause.BAD_REQUEST,
    "openai/error-401-01": Cause.AUTH,
    "openai/error-401-03": Cause.AUTH,
    "openai/error-401-04": Cause.AUTH,
    "openai/error-401-06": Cause.AUTH,
    "openai/error-404-01": Cause.MODEL_GONE,
    "openai/error-404-03": Cause.MODEL_GONE,
    "openai/error-404-04": Cause.MODEL_GONE,
    "openai/error-404-06": Cause.MODEL_GONE,
    "openai/error-429-01": Cause.RATE_LIMITED,
    "openai/error-429-03": Cause.RATE_LIMITED,
    "openai/error-429-04": Cause.QUOTA,
    "openai/error-500": Cause.SERVER_ERROR,
    "openai/error-502": Cause.SERVER_ERROR,
    "openai/error-524": Cause.SERVER_ERROR,
    "openai/error-context": Cause.CONTEXT_LENGTH,
    "openai/v-reasoning-model-legacy-parameter-error": Cause.UNABLE,
    "openai/x-function-tools-with-reasoning-effort-error": Cause.UNABLE,
    "openai/x-simple-truncated-error": Cause.BAD_REQUEST,
    "openai/x-top-p-reasoning-model-error": Cause.UNABLE,
    "openrouter/error-401-01": Cause.AUTH,
    "openrouter/error-429": Cause.RATE_LIMITED,
    "perplexity/error-400": Cause.CONTEXT_LENGTH,
    "perplexity/error-401": Cause.AUTH,
    # under a 200
    "openai/midstream-cut-no-done": Cause.CUT_STREAM,
    "openai/midstream-error-after-text": Cause.SERVER_ERROR,
    "openai/midstream-error-first": Cause.SERVER_ERROR,
    "local-llamacpppython/error-context-stream": Cause.MALFORMED,
    "openai/stream-done-only": Cause.MALFORMED,
    "openai/stream-empty": Cause.MALFORMED,
    "openrouter/midstream-error": Cause.SERVER_ERROR,
}
FEATURES = {
    "openai/error-400-04": "max_tokens",
    "openai/error-400-06": "stop",
    "openai/v-reasoning-model-legacy-parameter-error": "max_tokens",
    "openai/x-top-p-reasoning-model-error": "top_p",
}
WAITS = {"azure/error-429-01": 1.0, "openai/error-429-01": 1.0}


@pytest.mark.parametrize("case", cases.refusals(), ids=repr)
def test_an_error_has_the_cause_we_stand_for(case: cases.Case) -> None:
    failure = CHAT.failure(case.status, case.headers, case.body)
    assert failure.cause is CAUSES[case.name]
    assert failure.status == case.status
    assert failure.feature == FEATURES.get(case.name)
    assert failure.retry_after == WAITS.get(case.name)
    assert failure.throttles is (case.name != "openai/error-429-03")
    relayed = failure.cause in {Cause.BAD_REQUEST, Cause.CONTEXT_LENGTH, Cause.CONTENT_POLICY}
    assert bool(failure.body) is relayed
    if relayed:
        json.loads(failure.body)


@pytest.mark.parametrize("case", cases.streams(), ids=repr)
def test_a_broken_stream_has_the_cause_we_stand_for(case: cases.Case) -> None:
    story, _ = run(case.body)
    cause = story.failure.cause if story.failure is not None else None
    assert cause is CAUSES.get(case.name)
