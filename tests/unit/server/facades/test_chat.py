"""What chat completions may say, what is read of it, and how answers are spelled."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.attempt import StreamEvent
from gateway.errors import InvalidRequest, UpstreamFailed
from gateway.server.facades.chat import ChatFacade, StreamVoice, WholeVoice
from gateway.wire import json

FACADE = ChatFacade()
USUAL = {"model": "default", "messages": [{"role": "user", "content": "hi"}]}


def parse(**members):
    return FACADE.parse(json.dumps({**USUAL, **members}))


def refused(body):
    with pytest.raises(InvalidRequest) as caught:
        FACADE.parse(body)
    return caught.value


def test_the_few_members_are_read_and_all_travel():
    request = parse(
        stream=True,
        max_tokens=5,
        n=2,
        user="u",
        future={"a": [1.10]},
        stream_options={"include_usage": True, "include_obfuscation": False},
    )
    assert (request.kind, request.model, request.stream) == ("chat", "default", True)
    assert (request.max_output, request.n, request.user) == (5, 2, "u")
    assert request.include_usage
    assert json.loads(request.body())["future"] == {"a": [1.10]}


def test_bytes_inside_members_travel_as_they_came():
    body = b'{"model":"m","messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}],"x":1.10e0}'
    assert b'"x":1.10e0' in FACADE.parse(body).body()
    assert b'"\\u00e9 \xc3\xa9"' in FACADE.parse(body).body()


def test_of_two_models_the_one_that_is_authorised_is_the_one_that_travels():
    body = b'{"model":"cheap","mod\\u0065l":"dear","messages":[{}]}'
    request = FACADE.parse(body)
    assert request.model == "dear"
    assert request.body().count(b"cheap") == 0


def test_the_newer_name_of_the_bound_wins():
    assert parse(max_tokens=5, max_completion_tokens=7).max_output == 7
    assert (
        parse(
            max_tokens=None,
            stream=None,
            n=None,
            user=None,
            stream_options=None,
            response_format=None,
            tools=None,
        ).max_output
        is None
    )


@pytest.mark.parametrize(
    ("members", "needs"),
    [
        ({}, set()),
        ({"tools": []}, set()),
        ({"tools": [{"type": "function"}]}, {"tools"}),
        ({"tools": [{}], "parallel_tool_calls": True}, {"tools", "parallel_tools"}),
        ({"parallel_tool_calls": False}, set()),
        ({"response_format": {"type": "json_object"}}, set()),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, {"json_schema"}),
        ({"logprobs": True}, {"logprobs"}),
        ({"n": 2}, {"n"}),
        ({"reasoning_effort": "high"}, set()),
    ],
)
def test_what_a_target_must_be_able_to_do(members, needs):
    assert parse(**members).needs == needs


@pytest.mark.parametrize(
    ("part", "need"),
    [
        ({"type": "image_url", "image_url": {"url": "https://x/y.png"}}, "vision"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "audio"),
        ({"type": "file", "file": {"file_id": "f"}}, "files"),
    ],
)
def test_parts_need_abilities_and_words_about_them_do_not(part, need):
    assert parse(messages=[{"role": "user", "content": [part]}]).needs == {need}
    talk = [
        {"role": "user", "content": json.dumps(part).decode()},
        {"role": "user", "content": [{"type": "text", "text": '"image_url"'}]},
    ]
    assert parse(messages=talk).needs == frozenset()


def test_the_prompt_is_estimated_from_bytes_messages_and_images():
    text = "x" * 3500
    plain = parse(messages=[{"role": "user", "content": text}]).prompt
    assert 1000 < plain < 1020
    two = parse(messages=[{"role": "user", "content": text}, {"role": "user", "content": ""}])
    assert two.prompt - plain in range(10, 20)
    tools = parse(tools=[{"type": "function", "function": {"name": "x" * 350}}])
    assert tools.prompt > parse().prompt + 100
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    seen = parse(messages=[{"role": "user", "content": [image]}]).prompt
    assert 1000 < seen < 1050  # not the bytes of the picture


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"[]", None),
        (b"null", None),
        (b'"x"', None),
        (b"{", None),
        (b"\xff", None),
        (b'{"model":"\xff","messages":[{}]}', None),
        (b"{}", "model"),
        (b'{"\xff":1}', None),
        (b'{"model":1,"messages":[{}]}', "model"),
        (b'{"model":"","messages":[{}]}', "model"),
        (b'{"model":null,"messages":[{}]}', "model"),
        (b"[" * 5000, None),
        (b'{"model":"' + b"m" * 257 + b'","messages":[{}]}', "model"),
        (b'{"model":"m"}', "messages"),
        (b'{"model":"m","messages":[]}', "messages"),
        (b'{"model":"m","messages":null}', "messages"),
        (b'{"model":"m","messages":"x"}', "messages"),
        (b'{"model":"m","messages":["x"]}', "messages"),
        (b'{"model":"m","messages":[' + b"{}," * 20_000 + b"{}]}", "messages"),
    ],
)
def test_what_is_no_request_is_refused(body, param):
    assert refused(body).param == param


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stream", 1),
        ("stream", "true"),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", "5"),
        ("max_tokens", 2**53 + 1),
        ("max_completion_tokens", True),
        ("n", 0),
        ("n", 9),
        ("user", 5),
        ("user", "u" * 257),
        ("stream_options", []),
        ("stream_options", {"include_usage": "yes"}),
        ("response_format", "json"),
    ],
)
def test_members_of_the_wrong_shape_are_refused_by_name(name, value):
    error = refused(json.dumps({**USUAL, name: value}))
    assert (error.status, error.param) == (400, name)


def test_integers_no_reader_agrees_on_are_refused_where_we_read():
    body = json.dumps(USUAL)[:-1] + b',"max_tokens":12345678901234567890123}'
    assert refused(body).param == "max_tokens"


@pytest.mark.parametrize(
    "name",
    [
        "api_base",
        "base_url",
        "api_key",
        "extra_headers",
        "proxy",
        "custom_llm_provider",
        "callbacks",
        "user_config",
        "callback_url",
        "callback",
    ],
)
def test_members_that_steer_the_gateway_are_refused(name):
    error = refused(json.dumps({**USUAL, name: None}))
    assert (error.param, error.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize("padding", [0, 6000])
@pytest.mark.parametrize("layer", [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth_is_bounded(layer, padding):
    def body(depth):
        inner = layer[0] * depth + b"1" + layer[1] * depth
        return json.dumps(USUAL)[:-1] + b',"x":' + inner + b',"y":"' + b" " * padding + b'"}'

    assert FACADE.parse(body(63))
    assert "deeply" in refused(body(64)).message
    assert refused(body(5000)).status == 400


def test_depth_is_bounded_in_parts_of_messages():
    deep = b"[" * 70 + b"]" * 70
    body = b'{"model":"m","pad":"%b","messages":[{"role":"user","content":%b}]}'
    assert refused(body % (b" " * 6000, deep)).param == "messages"


def test_brackets_in_strings_are_no_depth():
    assert parse(metadata={"a": "[" * 500, "b": "{[" * 500})


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.one_of(st.none(), st.integers(), st.text('[]{}\\"a')),
        lambda inner: st.lists(inner) | st.dictionaries(st.text('[]{}"a'), inner),
    )
)
def test_shallow_values_are_never_taken_for_deep_ones(value):
    try:
        body = json.dumps({**USUAL, "metadata": value})
    except TypeError:
        return
    assert FACADE.parse(body).model == "default"


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_an_invalid_one(body):
    with suppress(InvalidRequest):
        FACADE.parse(body)


def test_a_stream_is_spelled_as_events():
    voice = FACADE.voice(parse(stream=True))
    assert isinstance(voice, StreamVoice)
    assert voice.say(StreamEvent(b'{"a":1}')) == b'data: {"a":1}\n\n'
    assert voice.say(StreamEvent(b'{"usage":1}', own=True)) == b""
    assert voice.say(StreamEvent(b"")) == b""
    assert voice.close(b"{}") == b": gateway {}\n\ndata: [DONE]\n\n"
    assert voice.close(b"") == b"data: [DONE]\n\n"
    told = voice.interrupted(UpstreamFailed("no", code="cut_stream"))
    assert told.startswith(b'data: {"error":{"message":"no"')
    assert told.endswith(b"\n\n")
    assert b"[DONE]" not in told


def test_a_whole_answer_is_spelled_as_it_is():
    voice = FACADE.voice(parse())
    assert isinstance(voice, WholeVoice)
    assert voice.say(StreamEvent(b'{"a":1}')) == b'{"a":1}'
    assert voice.close(b"note") == b""
