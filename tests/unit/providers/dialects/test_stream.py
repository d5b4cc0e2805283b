"""The reader of streams: what passes untouched, what is put right, what ends it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.attempt import StreamEvent
from gateway.core.request import Request
from gateway.core.target import Cause
from gateway.core.usage import Usage
from gateway.providers.dialects.stream import Decoder
from tests.vectors.assembled import Assembled

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chunk(delta: Any = None, finish: Any = None, *, index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": {} if delta is None else delta, "finish_reason": finish}
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [choice], **more,
    }  # fmt: skip


def usage_frame(**more: Any) -> dict[str, Any]:
    return {**chunk(), "choices": [], "usage": USAGE, **more}


def sse(*events: Any) -> bytes:
    return b"".join(
        b"data: %b\n\n" % (e if isinstance(e, bytes) else json.dumps(e).encode()) for e in events
    )


HEAD = chunk({"role": "assistant", "content": ""})
DONE = b"[DONE]"
END = (chunk({}, "stop"), usage_frame(), DONE)


def decoder(**request: Any) -> Decoder:
    return Decoder(Request("chat", "m", {}, stream=True, **request), "upstream-model", "sk-x")


def run(*events: Any, **request: Any) -> list[StreamEvent]:
    reader = decoder(**request)
    return [*reader.feed(sse(*events)), *reader.close()]


def story(*events: Any, **request: Any) -> Assembled:
    told = Assembled()
    for event in run(*events, **request):
        told.take(event)
    return told


def cause(events: list[StreamEvent]) -> Cause | None:
    assert all(event.failure is None for event in events[:-1])
    failure = events[-1].failure if events else None
    return failure.cause if failure is not None else None


# ---------------------------------------------------------------------- what passes


def test_valid_events_pass_byte_for_byte() -> None:
    events = [HEAD, *(chunk({"content": t}) for t in ("a", "b", "é", 'q"', "\\", "c", "d")), *END]
    out = run(*events)
    assert [event.wire for event in out] == [json.dumps(e).encode() for e in events[:-1]]
    assert [event.content for event in out] == [False, *[True] * 7, True, False]
    assert [event.size for event in out] == [0, 1, 1, 2, 2, 1, 1, 1, 0, 0]
    assert out[-2].finish_reason == "stop"
    assert out[-1].usage == Usage(3, 2)
    assert [event.own for event in out] == [*[False] * 9, True]


def test_padding_as_openai_sends_it_passes() -> None:
    events = [HEAD, *(chunk({"content": f"w{n}"}, obfuscation="x" * n) for n in range(9)), *END]
    for spaces in ((",", ":"), (", ", ": ")):
        raw = [e if e is DONE else json.dumps(e, separators=spaces).encode() for e in events]
        assert [event.wire for event in run(*raw)] == raw[:-1]


def test_the_usage_frame_is_the_callers_when_it_asked() -> None:
    *_, last = run(HEAD, *END, include_usage=True)
    assert not last.own
    assert json.loads(last.wire)["usage"] == USAGE


@pytest.mark.parametrize(
    ("delta", "size"),
    [
        ({"content": "né"}, 3),
        ({"reasoning_content": "hm"}, 2),
        ({"reasoning": "hm"}, 2),
        ({"refusal": "no"}, 2),
        ({"function_call": {"arguments": "{}"}}, 2),
    ],
)
def test_this_is_content(delta: dict[str, Any], size: int) -> None:
    event = run(HEAD, chunk(delta), *END)[1]
    assert (event.content, event.size) == (True, size)


@pytest.mark.parametrize(
    "delta", [{}, {"content": ""}, {"content": None}, {"role": "assistant"}, {"tool_calls": []}]
)
def test_this_is_no_content(delta: dict[str, Any]) -> None:
    assert not any(event.content for event in run(HEAD, chunk(delta))[:-1])


# ---------------------------------------------------------------------- what is put right


@pytest.mark.parametrize(
    "events",
    [
        [chunk({"content": "a"}), chunk({"content": "b"})],  # no role
        [HEAD, *[chunk({"role": "assistant", "content": t}) for t in "ab"]],  # a role each time
        [HEAD, chunk({"content": "a"}, id="other"), chunk({"content": "b"}, created=9, model="x")],
        [{**HEAD, "id": "", "model": "", "object": "", "created": None}, chunk({"content": "ab"})],
        [{**chunk(), "id": "", "choices": [], "prompt_filter_results": []}, HEAD,
         chunk({"content": "ab"})],
        [HEAD, chunk({"content": "ab"}, service_tier="on_demand", x_groq={"id": "x"})],
        [HEAD, chunk({"content": "ab"}, system_fingerprint=4, obfuscation=[])],
        [HEAD, {**chunk(), "choices": [{"index": 0, "content_filter_results": {}}]},
         chunk({"content": "ab"})],
        [HEAD, {**chunk(), "choices": [{"delta": {"content": "ab"}}]}],
        [HEAD, chunk({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})],
        [HEAD, {**chunk({"content": "ab"}), "choices": [
            {**chunk({"content": "ab"})["choices"][0], "logprobs": {"tokens": []}}]}],
        [HEAD, chunk({"content": "ab", "reasoning": {"x": 1}, "refusal": 5})],
        [HEAD, chunk({"content": "a"}, error=None), chunk({"content": "b"}, error={})],
        [HEAD, chunk({"content": "a"}, usage={}), chunk({"content": "b"}, usage=USAGE)],
        [{**HEAD, "choices": [{"index": 0, "message": {"role": "assistant", "content": "ab"}}]}],
    ],
    ids=lambda events: json.dumps(events)[-60:],
)  # fmt: skip
def test_an_odd_stream_becomes_one_story(events: list[Any]) -> None:
    for end in (END, (chunk({}, "eos", id="x"), usage_frame(id="x", model="y"), DONE)):
        told = story(*events, *end)
        assert told.failure is None
        assert told.texts[0] == "ab"
        assert told.finishes == {0: "stop"}
        assert told.usage == Usage(3, 2)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("stop", "stop"), ("eos", "stop"), ("end_turn", "stop"), ("STOP", "stop"),
        ("length", "length"), ("model_length", "length"), ("tool_use", "tool_calls"),
        ("content_filter", "content_filter"), ("sensitive", "content_filter"),
    ],
)  # fmt: skip
def test_finishes_are_of_the_closed_set(theirs: str, ours: str) -> None:
    assert story(HEAD, chunk({"content": "x"}), chunk({}, theirs), DONE).finishes == {0: ours}


def test_an_empty_finish_is_none() -> None:
    assert cause(run(HEAD, chunk({"content": "x"}, ""), DONE)) is Cause.CUT_STREAM


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("error", Cause.SERVER_ERROR),
        ("insufficient_system_resource", Cause.OVERLOADED),
        ("abort", Cause.CUT_STREAM),
        ("who knows", Cause.MALFORMED),
        (5, Cause.MALFORMED),
    ],
)
def test_a_bad_finish_is_a_failure(reason: Any, expected: Cause) -> None:
    assert cause(run(HEAD, chunk({"content": "x"}, reason), *END)) is expected


def test_mistrals_thoughts_are_reasoning() -> None:
    part = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    told = story(HEAD, chunk({"content": [part]}), chunk({"content": "yes"}), *END)
    assert (told.thoughts[0], told.texts[0]) == ("hm", "yes")


# ---------------------------------------------------------------------- usage


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(
    "events",
    [
        [chunk({}, "stop", usage=USAGE), DONE],  # Mistral, Together
        [chunk({"content": "y"}, usage=USAGE), chunk({}, "stop", usage=USAGE), DONE],
        [chunk({}, "stop", x_groq={"usage": USAGE}), DONE],
        [chunk({}, "stop", x_groq={"usage": USAGE}), usage_frame(), DONE],
        [chunk({}, "stop", usage=USAGE), {**usage_frame(), "object": "x"}, DONE],
        [chunk({}, "stop"), {"usage": USAGE}, DONE],
        [chunk({}, "stop"), usage_frame(choices=None), DONE],
        [chunk({}, "stop"), usage_frame(), usage_frame(), DONE],
        [chunk({"content": "y"}, usage=USAGE), chunk({}, "stop"), DONE],
        [{**chunk(), "choices": [{**chunk({}, "stop")["choices"][0], "usage": USAGE}]}, DONE],
        [chunk({}, "stop"), chunk({}, None, usage=USAGE), DONE],
        [chunk({}, "stop", usage=USAGE), chunk({}, "stop", usage=USAGE)],
    ],
    ids=lambda events: json.dumps(events[:-1])[-60:] if isinstance(events, list) else str(events),
)
def test_usage_is_shown_once_wherever_it_came(events: list[Any], asked: bool) -> None:
    out = run(HEAD, chunk({"content": "x"}), *events, include_usage=asked)
    told = Assembled()
    for event in out:
        told.take(event)
    assert told.failure is None
    assert told.usage == Usage(3, 2)
    assert told.frames == 1
    frames = [e for e in out if e.wire and not json.loads(e.wire)["choices"]]
    assert [frame.own for frame in frames] == [not asked]


def test_the_last_usage_wins() -> None:
    more = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
    told = story(HEAD, chunk({"content": "x"}, "stop", usage=USAGE), usage_frame(usage=more), DONE)
    assert told.usage == Usage(3, 9)
    assert told.frames == 1


def test_usage_is_inclusive_for_the_caller_too() -> None:
    xai = {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 334}
    out = run(HEAD, chunk({"content": "x"}, "stop"), usage_frame(usage=xai), DONE)
    assert out[-1].usage == Usage(12, 322)
    assert json.loads(out[-1].wire)["usage"]["completion_tokens"] == 322


def test_usage_of_zero_is_not_known() -> None:
    zero = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert story(HEAD, chunk({"content": "x"}, "stop"), usage_frame(usage=zero), DONE).usage is None


# ---------------------------------------------------------------------- tool calls


def piece(index: Any = 0, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {} if index is None else {"index": index}
    if "arguments" in more or "name" in more:
        found["function"] = {k: more.pop(k) for k in ("name", "arguments") if k in more}
    return {**found, **more}


def calls(*pieces: dict[str, Any]) -> dict[str, Any]:
    return chunk({"tool_calls": list(pieces)})


CALL = {"id": "a", "type": "function", "name": "f", "arguments": ""}
CALL_B = {"id": "b", "type": "function", "name": "g", "arguments": ""}


@pytest.mark.parametrize(
    "events",
    [
        [calls(piece(0, **CALL)), calls(piece(0, arguments='{"x"')),
         calls(piece(0, arguments=":1}")),
         calls(piece(1, **CALL_B)), calls(piece(1, arguments="{}"))],
        [calls(piece(1, **CALL)), calls(piece(1, arguments='{"x":1}')),  # from 1
         calls(piece(2, **CALL_B)), calls(piece(2, arguments="{}"))],
        [calls(piece(None, **{**CALL, "arguments": '{"x":1}'})),  # no index
         calls(piece(None, **{**CALL_B, "arguments": "{}"}))],
        [calls(piece(None, **CALL)), calls(piece(None, arguments='{"x":1}')),
         calls(piece(None, **CALL_B)), calls(piece(None, arguments="{}"))],
        [calls(piece(0, **{**CALL, "arguments": '{"x":1}'})),  # 0 for all (Ollama)
         calls(piece(0, **{**CALL_B, "arguments": "{}"}))],
        [calls(piece(0, **{**CALL, "arguments": '{"x":1}'}),
               piece(0, **{**CALL_B, "arguments": "{}"}))],
        [calls(piece(0, **CALL)),
         calls(piece(0, id="a", type="function", name="", arguments='{"x":1}')),
         calls(piece(1, **CALL_B))],  # the id each time; no arguments at all
        [calls(piece(0, **CALL)), calls(piece(0, **{**CALL, "arguments": '{"x":1}'})),
         calls(piece(1, **CALL_B))],  # the name each time
        [calls(piece(0, **CALL)), calls(piece(0, id="null", arguments='{"x":1}')),
         calls(piece(1, **CALL_B))],
        [calls(piece(0, id="a", name="f", arguments={"x": 1})),  # an object, no type
         calls(piece(1, id="b", name="g", arguments=None))],
        [calls(piece(0, id="a", type="x", name="f", arguments='{"x":1}')),
         calls(piece(1, id="b", type="function", name="g"))],
    ],
    ids=lambda events: json.dumps([e["choices"][0]["delta"] for e in events])[:70],
)  # fmt: skip
def test_tool_calls_are_numbered_headed_and_have_arguments(events: list[Any]) -> None:
    for end in (END, (chunk({}, "tool_calls"), DONE)):
        told = story(HEAD, *events, *end)
        assert told.failure is None
        assert [(c["id"], c["name"], json.loads(c["arguments"])) for c in told.calls[0]] == [
            ("a", "f", {"x": 1}),
            ("b", "g", {}),
        ]


def test_a_call_and_its_finish_in_one_event() -> None:
    whole = chunk({"tool_calls": [piece(0, **CALL)]}, "tool_calls")
    told = story(HEAD, whole, DONE)
    assert [json.loads(c["arguments"]) for c in told.calls[0]] == [{}]


def test_a_call_without_an_id_gets_one() -> None:
    told = story(HEAD, calls(piece(0, name="f", arguments="{}")), *END)
    assert told.calls[0][0]["id"].startswith("call_")


def test_a_call_cut_by_length_keeps_its_half() -> None:
    told = story(HEAD, calls(piece(0, **CALL)), chunk({}, "length"), DONE)
    assert told.calls[0][0]["arguments"] == ""


def test_valid_tool_calls_pass_byte_for_byte() -> None:
    events = [HEAD, calls(piece(0, **CALL)), calls(piece(0, arguments='{"é":1}')), *END]
    out = run(*events)
    assert [event.wire for event in out] == [json.dumps(e).encode() for e in events[:-1]]
    assert [event.size for event in out[1:3]] == [1, 8]


def test_what_a_call_carries_besides_travels() -> None:
    extra = {"google": {"thought_signature": "abc"}}
    out = run(HEAD, calls(piece(1, **CALL, extra_content=extra)), *END)
    call = json.loads(out[1].wire)["choices"][0]["delta"]["tool_calls"][0]
    assert call["extra_content"] == extra


# ---------------------------------------------------------------------- several choices


def test_choices_are_told_apart() -> None:
    told = story(
        chunk({"role": "assistant", "content": "a"}),
        chunk({"role": "assistant", "content": "b"}, index=1),
        chunk({"content": "A"}), chunk({"content": "B"}, index=1),
        chunk({}, "stop"), chunk({}, "length", index=1), usage_frame(), DONE, n=2,
    )  # fmt: skip
    assert told.texts == {0: "aA", 1: "bB"}
    assert told.finishes == {0: "stop", 1: "length"}


def test_one_choice_without_its_finish_is_a_cut() -> None:
    begun = [chunk({"role": "assistant"}), chunk({"role": "assistant"}, index=1)]
    assert cause(run(*begun, chunk({}, "stop"), DONE, n=2)) is Cause.CUT_STREAM


def test_a_choice_that_never_came_is_a_cut_unless_the_end_was_said() -> None:
    assert cause(run(HEAD, chunk({}, "stop"), n=2)) is Cause.CUT_STREAM
    assert cause(run(HEAD, chunk({}, "stop"), DONE, n=2)) is None


# ---------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], Cause.MALFORMED),
        ([DONE], Cause.MALFORMED),
        ([HEAD], Cause.CUT_STREAM),
        ([HEAD, DONE], Cause.CUT_STREAM),
        ([HEAD, chunk({"content": "x"})], Cause.CUT_STREAM),
        ([HEAD, chunk({"content": "x"}), DONE], Cause.CUT_STREAM),
        ([HEAD, chunk({"content": "x"}), usage_frame(), DONE], Cause.CUT_STREAM),
        ([HEAD, chunk({"content": "x"}, "stop")], None),
        ([HEAD, *END], None),
        ([usage_frame(), DONE], Cause.CUT_STREAM),
        ([HEAD, chunk({}, "stop"), chunk({"content": "more"}), DONE], Cause.MALFORMED),
        ([HEAD, chunk({}, "stop"), chunk({"content": ""}), chunk({}, "stop"), DONE], None),
        ([HEAD, b"junk", chunk({"content": "x"}, "stop"), DONE], None),
        ([HEAD, b"junk", b"{", b"[]", *END], Cause.MALFORMED),
        ([HEAD, b"junk", b"{", chunk({"content": "x"}), b"5", b"{}", *END], None),
        ([HEAD, b"x" * (1024 * 1024 + 1), *END], Cause.MALFORMED),
        ([b"[" * 90_000, HEAD, *END], None),
        ([HEAD, b'"\xff"', *END], None),
    ],
    ids=lambda events: repr(events)[-60:],
)
def test_only_a_finish_for_each_choice_is_an_end(events: list[Any], expected: Cause | None) -> None:
    assert cause(run(*events)) is expected


def test_skipped_events_are_counted() -> None:
    reader = decoder()
    reader.feed(sse(HEAD, b"junk", chunk({"content": "x"}), b"{}"))
    assert reader.malformed == 2


def test_a_hot_event_between_makes_junk_not_in_a_row() -> None:
    words = [chunk({"content": w}) for w in "abc"]
    assert cause(run(HEAD, *words, b"junk", b"junk", words[0], b"junk", *END)) is None


def test_complete_says_when_nothing_more_is_needed() -> None:
    reader = decoder()
    states = []
    for event in (HEAD, chunk({"content": "x"}), chunk({}, "stop"), usage_frame(), DONE):
        reader.feed(sse(event))
        states.append(reader.complete)
    assert states == [False, False, False, True, True]
    plain = decoder()
    plain.feed(sse(HEAD, chunk({}, "stop")))
    assert not plain.complete
    assert plain.close() == []
    assert plain.complete
    two = decoder(n=2)
    two.feed(sse(HEAD, chunk({}, "stop", usage=USAGE)))
    assert not two.complete


def test_nothing_comes_after_the_end_or_a_failure() -> None:
    for end in (DONE, {"error": {"message": "x"}}):
        reader = decoder()
        reader.feed(sse(HEAD, chunk({"content": "x"}, "stop"), end))
        assert not reader.feed(sse(chunk({"content": "y"}), {"error": "x"}))
        assert not reader.close()


def test_a_failure_is_never_complete() -> None:
    reader = decoder()
    reader.feed(sse(HEAD, chunk({"content": "x"}, "stop"), usage_frame(), {"error": "x"}))
    assert not reader.complete


# ---------------------------------------------------------------------- errors under a 200


@pytest.mark.parametrize("before", [[], [HEAD], [HEAD, chunk({"content": "x"})]])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"error": {"message": "x", "type": "server_error"}}, Cause.SERVER_ERROR),
        ({"error": {"message": "x", "code": 429}}, Cause.RATE_LIMITED),
        ({"error": "over", "code": "overloaded"}, Cause.OVERLOADED),
        ({**chunk({}, "error"), "error": {"code": 502}}, Cause.SERVER_ERROR),
        (chunk({"content": "x"}, x_groq={"error": "over_capacity"}), Cause.OVERLOADED),
        ({"object": "error", "message": "x", "type": "invalid_request_error"}, Cause.BAD_REQUEST),
        ({"detail": "x"}, Cause.SERVER_ERROR),
        ([{"error": {"code": 400, "message": "x"}}], Cause.BAD_REQUEST),
    ],
    ids=repr,
)
def test_an_error_event_is_judged_as_its_status(
    before: list[Any], error: Any, expected: Cause
) -> None:
    out = run(*before, error, *END)
    assert cause(out) is expected
    assert out[-1].wire == b""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":{"message":"x","code":"context_length_exceeded"}}', Cause.CONTEXT_LENGTH),
        (b'  \n {"error":"x"}', Cause.SERVER_ERROR),
        (b'[{"error":{"code":429}}]', Cause.RATE_LIMITED),
        (b"<html>busy</html>", Cause.MALFORMED),
        (json.dumps({**chunk(), "object": "chat.completion"}).encode(), Cause.MALFORMED),
        (b"{", Cause.MALFORMED),
        (b"Internal Server Error", Cause.MALFORMED),
        (b" \n\n ", Cause.MALFORMED),
        (b"{" + b" " * 70_000 + b"}", Cause.MALFORMED),
        (b": comment\n\n", Cause.MALFORMED),
    ],
    ids=lambda body: repr(body)[:40],
)
@pytest.mark.parametrize("width", [1, 1000, 100_000])
def test_a_200_that_is_no_stream(body: bytes, expected: Cause, width: int) -> None:
    if width == 1 and len(body) > 1000:
        return
    reader = decoder()
    out = [e for at in range(0, len(body), width) for e in reader.feed(body[at : at + width])]
    out += reader.close()
    assert cause(out) is expected
    assert len(out) == 1


# ---------------------------------------------------------------------- anything at all

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.sampled_from(["", "a", "stop", "x" * 9]),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(
        st.sampled_from(["index", "id", "function", "name", "arguments", "type", "text"]),
        inner, max_size=3,
    ),
    max_leaves=5,
)  # fmt: skip
AROUND = st.dictionaries(
    st.sampled_from(["id", "model", "created", "usage", "choices", "x_groq", "service_tier"]),
    VALUES, max_size=1,
)  # fmt: skip
DELTAS = st.dictionaries(
    st.sampled_from(["role", "content", "tool_calls", "reasoning", "function_call", "audio"]),
    VALUES, max_size=2,
)  # fmt: skip
EVENTS = st.one_of(
    st.builds(
        lambda delta, finish, index, around: {**chunk(delta, finish, index=index), **around},
        DELTAS,
        st.sampled_from([None, None, None, "stop", "tool_calls", "eos"]),
        st.sampled_from([0, 0, 0, 1]),
        AROUND,
    ),
    st.sampled_from(
        [HEAD, chunk({"content": "hot"}), usage_frame(), b"junk", calls(piece(0, **CALL))]
    ),
)


@given(st.lists(EVENTS, max_size=8), st.booleans(), st.integers(1, 400))
def test_whatever_comes_what_leaves_is_one_story(events: list[Any], done: bool, width: int) -> None:
    data = sse(HEAD, *events, *([DONE] if done else []))
    whole, cut = decoder(), decoder()
    told = Assembled()
    for event in (*whole.feed(data), *whole.close()):
        told.take(event)
    assert (told.failure is None) is whole.complete
    if whole.complete:
        assert set(told.finishes) == set(told.roles) | set(told.finishes)
        assert told.finishes
    out = [e for at in range(0, len(data), width) for e in cut.feed(data[at : at + width])]
    out += cut.close()
    assert cut.complete == whole.complete
    failure = out[-1].failure if out else None
    assert (failure and failure.cause) == (told.failure and told.failure.cause)
