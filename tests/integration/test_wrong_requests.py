"""Wrong requests: a clear answer in OpenAI's shape, the SDK's right exception, nothing sent on.

Then anything at all is sent: never a 500, never a wait without end, never a connection left in
doubt.
"""

import contextlib
import gzip
import json
import socket
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.upstream import UpstreamThread
from tests.integration.rig import (
    HEAD,
    Ears,
    Gateway,
    Leaping,
    Line,
    ask,
    chat,
    digest,
    get,
    post,
    provider,
    until,
)

TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 405: "invalid_request_error", 413: "invalid_request_error",
    415: "invalid_request_error", 429: "rate_limit_error",
}  # fmt: skip
CLASSES = {
    400: openai.BadRequestError, 401: openai.AuthenticationError, 403: openai.PermissionDeniedError,
    404: openai.NotFoundError, 429: openai.RateLimitError,
}  # fmt: skip
CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
MOST_BODY = 64 * 1024
HI = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True)
class Wrong:
    """One wrong request and what is to be said of it; `says`: words of the message."""

    body: Any
    code: str = "invalid_request"
    param: str | None = None
    says: tuple[str, ...] = ()
    status: int = 400
    path: str = CHAT
    headers: dict[str, str] = field(default_factory=dict)
    key: str | None = "plain"
    method: str = "POST"


def chatted(param, *says, **members):
    """A chat request that is well but for these members."""
    return Wrong({"model": "smart", "messages": HI, **members}, param=param, says=says)


def embedded(*says, **members):
    body = {"model": "smart", **members}
    return Wrong(body, param="input", says=says, path=EMBEDDINGS)


def headed(header, value, *says, code="invalid_request", status=400, **more):
    body = {"model": "smart", "messages": HI}
    return Wrong(body, code, header, (header, *says), status, headers={header: value}, **more)


def deep(depth):
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


NOT_JSON = ("The body must be a JSON object",)
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y"}}]}]
WRONG = {
    # the body as a whole
    "empty body": Wrong(b"", says=NOT_JSON),
    "no JSON": Wrong(b"model=smart", says=NOT_JSON),
    "half of a JSON": Wrong(b'{"model": "smart", "mess', says=NOT_JSON),
    "a list": Wrong(b"[1, 2]", says=NOT_JSON),
    "a string": Wrong(b'"smart"', says=NOT_JSON),
    "null": Wrong(b"null", says=NOT_JSON),
    "NaN": Wrong(b'{"model": "smart", "messages": NaN}', says=NOT_JSON),
    "not UTF-8": Wrong(b'{"model": "sm\xe4rt", "messages": []}', says=NOT_JSON),
    "two objects": Wrong(b'{"model": "smart"}{}', says=NOT_JSON),
    "an empty object": Wrong({}, param="model", says=("'model' is missing", "/v1/models")),
    "nested too deeply": chatted(None, "nested", "64", metadata=deep(70)),
    "messages nested too deeply": Wrong(
        {"model": "smart", "messages": [{"role": "user", "content": deep(200)}]},
        says=("nested", "64"),
    ),
    # members
    "no model": Wrong({"messages": HI}, param="model", says=("'model' is missing",)),
    "model is a number": chatted("model", "must be a string", model=4),
    "model is null": chatted("model", "must be a string", model=None),
    "model is empty": chatted("model", "1 to 256 characters", model=""),
    "model is endless": chatted("model", "1 to 256 characters", model="x" * 257),
    "no messages": Wrong({"model": "smart"}, param="messages", says=("is missing",)),
    "messages are a string": chatted("messages", "list of messages", messages="hi"),
    "messages are null": chatted("messages", "list of messages", messages=None),
    "messages are strings": chatted("messages", "list of messages", messages=["hi"]),
    "messages are empty": chatted("messages", "is empty", messages=[]),
    "20,001 messages": Wrong(
        b'{"model": "smart", "messages": [%b]}' % b",".join([b"{}"] * 20_001),
        param="messages", says=("more than 20000 messages",),
    ),
    "n is 0": chatted("n", "from 1 to 8", n=0),
    "n is 9": chatted("n", "from 1 to 8", n=9),
    "n is a word": chatted("n", "whole number", n="two"),
    "n is a fraction": chatted("n", "whole number", n=1.5),
    "max_tokens is 0": chatted("max_tokens", "from 1 to", max_tokens=0),
    "max_tokens is negative": chatted("max_tokens", "from 1 to", max_tokens=-5),
    "max_tokens is huge": chatted("max_tokens", "from 1 to", max_tokens=2**60),
    "max_tokens is text": chatted("max_tokens", "whole number", max_tokens="many"),
    "max_completion_tokens is 0": chatted(
        "max_completion_tokens", "from 1 to", max_completion_tokens=0
    ),
    "stream is a word": chatted("stream", "true or false", stream="yes"),
    "stream is 1": chatted("stream", "true or false", stream=1),
    "stream_options is a list": chatted("stream_options", "an object", stream_options=[]),
    "include_usage is a word": chatted(
        "stream_options", "an object", stream=True, stream_options={"include_usage": "yes"}
    ),
    "response_format is a word": chatted("response_format", "object", response_format="json"),
    "user is a number": chatted("user", "must be a string", user=7),
    "user is endless": chatted("user", "at most 256", user="u" * 257),
    # what would lead a request elsewhere
    **{
        f"{name} is sent": Wrong(
            {"model": "smart", "messages": HI, name: "https://evil.example"},
            "unsupported_parameter", name, (name, "configuration"),
        )
        for name in ("api_base", "base_url", "api_key", "extra_headers", "proxy",
                     "custom_llm_provider", "callbacks", "user_config")
    },
    # models
    "no such model": Wrong(
        chat("smarter"), "model_not_found", "model", ("'smarter'", "Did you mean smart"), 404
    ),
    "a model unlike any": Wrong(
        chat("zzz"), "model_not_found", "model", ("'zzz'", "There are:", "smart"), 404
    ),
    "the model of another key": Wrong(
        chat("secret"), "model_not_allowed", "model", ("'secret'",), 403
    ),
    "a target without the right": Wrong(
        chat("p/m"), "model_not_found", "model", ("'p/m'",), 404
    ),
    "models/nothing": Wrong(
        None, "model_not_found", "model", ("/v1/models",), 404, "/v1/models/nothing", method="GET"
    ),
    "models/of another key": Wrong(
        None, "model_not_found", "model", ("/v1/models",), 404, "/v1/models/secret", method="GET"
    ),
    # what no target can do
    "an image": Wrong(
        {"model": "blind", "messages": IMAGE}, "no_capable_target", None, ("'blind'", "vision"),
    ),
    "tools": Wrong(
        chat("blind", tools=[{"type": "function", "function": {"name": "f"}}]),
        "no_capable_target", None, ("'blind'", "tools"),
    ),
    "too long a prompt": Wrong(
        {"model": "blind", "messages": [{"role": "user", "content": "x" * 40_000}]},
        "context_length_exceeded", "messages", ("2,000 tokens", "'blind'"),
    ),
    "too dear": Wrong(
        chat("smart"), "no_capable_target", None, ("cost",),
        headers={"x-gateway-max-cost-usd": "0.000000001"},
    ),
    # embeddings
    "no input": embedded("is missing"),
    "input is empty": embedded("is empty", input=""),
    "input is an empty list": embedded("is empty", input=[]),
    "input is a number": embedded("a string or a list", input=7),
    "input is null": embedded("a string or a list", input=None),
    "input is an object": embedded("a string or a list", input={}),
    "2,049 inputs": embedded("more than 2048", input=["x"] * 2049),
    "input nested too deeply": Wrong(
        {"model": "smart", "input": deep(90)}, says=("nested", "64"), path=EMBEDDINGS
    ),
    # headers
    "a deadline that is none": headed("x-gateway-deadline", "soon", "30s"),
    "a deadline without unit": headed("x-gateway-deadline", "30", "30s"),
    "a deadline of 0": headed("x-gateway-deadline", "0s", "duration"),
    "a deadline of 25 h": headed("x-gateway-deadline", "25h", "24h"),
    "a first-token that is none": headed("x-gateway-first-token", "-1s", "duration"),
    "a cost that is none": headed("x-gateway-max-cost-usd", "cheap", "dollars"),
    "a cost of 10 decimals": headed("x-gateway-max-cost-usd", "0.0000000001", "9 decimals"),
    "a priority that is none": headed("x-gateway-priority", "urgent", "high, normal or low"),
    "an empty session": headed("x-gateway-session", "", "1 to 256"),
    "an endless user": headed("x-gateway-user", "u" * 257, "1 to 256"),
    "tags without value": headed("x-gateway-tags", "team", "team=a"),
    "nine tags": headed("x-gateway-tags", ",".join(f"t{n}=v" for n in range(9)), "8 at most"),
    "fallback: on": headed("x-gateway-fallback", "on", "off", key="may"),
    "trace: yes": headed("x-gateway-trace", "yes", "1", key="may"),
    "skip of nothing": headed("x-gateway-skip", ",", "list of targets", key="may"),
    "skip of a stranger": headed("x-gateway-skip", "claude", "no target 'claude'", key="may"),
    "target is a stranger": headed("x-gateway-target", "claude", "no target 'claude'", key="may"),
    "a header nobody reads": headed("x-gateway-dead-line", "30s", "nobody would read it"),
    # rights
    "skip without the right": headed(
        "x-gateway-skip", "p/m", "'skip'", "tiers", code="override_not_allowed", status=403
    ),
    "target without the right": headed(
        "x-gateway-target", "p/m", "'target'", code="override_not_allowed", status=403
    ),
    "fallback without the right": headed(
        "x-gateway-fallback", "off", "'skip'", code="override_not_allowed", status=403
    ),
    "trace without the right": headed(
        "x-gateway-trace", "1", "'trace'", code="override_not_allowed", status=403
    ),
    "priority above one's own": headed(
        "x-gateway-priority", "high", "only lower", "'normal'",
        code="override_not_allowed", status=403,
    ),
    # who
    "no key": Wrong(
        chat("smart"), "invalid_api_key", None, ("Authorization: Bearer",), 401, key=None
    ),
    "a wrong key": Wrong(chat("smart"), "invalid_api_key", None, ("not valid",), 401, key="wrong"),
    "a mistyped key": Wrong(
        chat("smart"), "invalid_api_key", None, ("not valid",), 401, key="gk_abcdefgh_" + "x" * 50
    ),
    "an expired key": Wrong(chat("smart"), "invalid_api_key", None, ("expired",), 401, key="old"),
    "two keys": Wrong(
        chat("smart"), "invalid_request", "authorization", ("Two API keys",),
        headers={"x-api-key": "other"},
    ),
    "no key for models": Wrong(
        None, "invalid_api_key", None, (), 401, "/v1/models", key=None, method="GET"
    ),
    "no key and no such path": Wrong(
        None, "invalid_api_key", None, (), 401, "/v1/nothing", key=None, method="GET"
    ),
    # where and how
    "no such path": Wrong(
        chat("smart"), "not_found", None, ("/v1/chat/completion", "Did you mean"), 404,
        "/v1/chat/completion",
    ),
    "a path of another API": Wrong(chat("smart"), "not_found", None, (), 404, "/v1/messages"),
    "GET of chat": Wrong(
        None, "method_not_allowed", None, ("takes POST",), 405, CHAT, method="GET"
    ),
    "PUT of chat": Wrong(
        chat("smart"), "method_not_allowed", None, ("takes POST",), 405, CHAT, method="PUT"
    ),
    "DELETE of models": Wrong(
        None, "method_not_allowed", None, ("takes GET",), 405, "/v1/models", method="DELETE"
    ),
    "a compressed body": Wrong(
        gzip.compress(json.dumps(chat("smart")).encode()), "unsupported_encoding", None,
        ("without Content-Encoding",), 415, headers={"content-encoding": "gzip"},
    ),
    "too large a body": Wrong(
        {"model": "smart", "messages": [{"role": "user", "content": "x" * MOST_BODY}]},
        "body_too_large", None, (f"{MOST_BODY} bytes", "server.max_body"), 413,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def sim():
    with UpstreamThread() as running:
        yield running


@pytest.fixture(scope="module")
def ears():
    return Ears()


@pytest.fixture(scope="module")
def gateway(sim, ears, tmp_path_factory):
    text = f"""
providers:
{provider(sim, "p")}{provider(sim, "f")}
targets:
  narrow: {{model: p/m, context: 2000, can: [json_schema]}}
chains:
  smart: [p/m, f/m]
  secret: [p/m]
  blind: [narrow]
tiers:
  plain: {{may: []}}
  may: {{may: [skip, target, trace], priority: high}}
keys:
  - {{name: plain, tier: plain, chains: [smart, blind], hash: "sha256:{digest("plain")}"}}
  - {{name: may, tier: may, hash: "sha256:{digest("may")}"}}
  - {{name: old, tier: may, expires: 2020-01-01, hash: "sha256:{digest("old")}"}}
prices:
  p/m: [{{input: 1.00, output: 4.00}}]
  f/m: [{{input: 1.00, output: 4.00}}]
"""
    head = HEAD.replace("{", f"{{max_body: {MOST_BODY // 1024}KiB, ", 1)
    folder = tmp_path_factory.mktemp("wrong")
    with Gateway(text, folder, listeners=(ears,), head=head) as running:
        yield running


def as_bytes(wrong):
    headers = dict(wrong.headers)
    if wrong.key is not None:
        headers["authorization"] = f"Bearer {wrong.key}"
    if wrong.body is None:
        return get(wrong.path, **headers).replace(b"GET", wrong.method.encode(), 1)
    return post(wrong.body, wrong.path, **headers).replace(b"POST", wrong.method.encode(), 1)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_told_what_is_wrong_and_sent_nowhere(sim, gateway, name):
    wrong = WRONG[name]
    with Line(gateway.port) as line:
        line.send(as_bytes(wrong))
        answer = line.answer(wrong.method)
        if answer.headers.get("connection") != "close":  # then it can be used again
            line.send(get("/healthz"))
            assert line.answer("GET").status == 200
    assert answer.status == wrong.status
    assert answer.headers["content-type"] == "application/json"
    error = answer.error
    assert {"message", "type", "param", "code"} <= error.keys()
    assert (error["type"], error["code"]) == (TYPES[wrong.status], wrong.code)
    if wrong.param is not None:
        assert error["param"] == wrong.param
    for words in wrong.says:
        assert words in error["message"]
    assert error["message"].endswith((".", "?"))
    assert answer.headers["x-should-retry"] == "false"
    assert error["retryable"] is False
    assert answer.headers["x-request-id"] == error["request_id"]
    assert error["request_id"].startswith("req_")
    assert sim.calls() == []


@pytest.fixture(scope="module")
def sdk(gateway):
    with openai.OpenAI(base_url=gateway.url, api_key="x") as client:
        yield client


SPOKEN = [name for name, wrong in WRONG.items() if not isinstance(wrong.body, bytes)]


@pytest.mark.parametrize("name", SPOKEN)
def test_the_sdk_raises_the_right_class_and_does_not_try_again(sim, gateway, ears, sdk, name):
    """With its usual two retries."""
    wrong = WRONG[name]
    before = len(ears.ended)
    headers: dict[str, Any] = dict(wrong.headers)
    if wrong.key is None:
        headers["authorization"] = openai.Omit()
    client = sdk.with_options(api_key=wrong.key or "x")
    send = getattr(client, wrong.method.lower())
    more = {} if wrong.body is None else {"body": wrong.body}
    with pytest.raises(CLASSES.get(wrong.status, openai.APIStatusError)) as caught:
        send(wrong.path, cast_to=object, options={"headers": headers}, **more)
    assert caught.value.status_code == wrong.status
    assert caught.value.code == wrong.code
    assert caught.value.request_id.startswith("req_")
    until(lambda: len(ears.ended) > before)
    assert len(ears.ended) == before + 1
    assert sim.calls() == []


def test_there_are_many_ways_to_be_wrong():
    assert len(WRONG) >= 80
    assert {wrong.status for wrong in WRONG.values()} == {400, 401, 403, 404, 405, 413, 415}


# ------------------------------------------------------------------------- what is hardly a request

OPEN = b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nauthorization: Bearer plain\r\n"
RAW = {
    "no HTTP": b"EHLO example.com\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /v1/models\r\n\r\n",
    "HTTP/3.1": b"GET /v1/models HTTP/3.1\r\nhost: g\r\n\r\n",
    "no colon": OPEN + b"nothing\r\n\r\n",
    "a space before the colon": OPEN + b"content-length : 2\r\n\r\n{}",
    "a folded header": OPEN + b"x-a: b\r\n c\r\ncontent-length: 2\r\n\r\n{}",
    "NUL in a header": OPEN + b"x-a: b\x00c\r\ncontent-length: 2\r\n\r\n{}",
    "a line of 9,000 bytes": OPEN + b"x-a: " + b"b" * 9000 + b"\r\n\r\n",
    "a path of 9,000 bytes": b"GET /" + b"b" * 9000 + b" HTTP/1.1\r\nhost: g\r\n\r\n",
    "100 headers": OPEN + b"".join(b"x-%d: y\r\n" % n for n in range(100)) + b"\r\n",
    "a negative length": OPEN + b"content-length: -1\r\n\r\n",
    "a length that is none": OPEN + b"content-length: two\r\n\r\n{}",
    "two lengths": OPEN + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}x",
    "length and chunks": OPEN + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks that are none": OPEN + b"transfer-encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n",
    "another encoding": OPEN + b"transfer-encoding: gzip\r\n\r\n{}",
}


@pytest.mark.parametrize("name", RAW)
def test_what_is_no_http_is_told_so_and_the_connection_ends(sim, gateway, name):
    with Line(gateway.port) as line:
        line.send(RAW[name])
        answer = line.answer()
        assert answer.status in {400, 401}
        assert answer.error["type"] == TYPES[answer.status]
        assert answer.headers["x-request-id"] == answer.error["request_id"]
        assert answer.headers["x-should-retry"] == "false"
        assert answer.headers["connection"] == "close"
        assert line.ended()
    assert sim.calls() == []


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(sim, gateway):
    with Line(gateway.port) as line:
        line.send(OPEN + b"content-length: %d\r\nexpect: 100-continue\r\n\r\n" % (MOST_BODY + 1))
        answer = line.answer()
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
        assert line.ended()
    with Line(gateway.port) as line:
        line.send(OPEN + b"transfer-encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                line.send(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
        answer = line.answer()
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert sim.calls() == []


def test_a_body_of_exactly_the_limit_is_taken(gateway):
    body = json.dumps(chat("zzz"))
    data = body[:-1].encode() + b" " * (MOST_BODY - len(body)) + b"}"
    answer = ask(gateway.port, data, authorization="Bearer plain")
    assert (len(data), answer.status) == (MOST_BODY, 404)


def test_a_wrong_key_is_refused_before_the_body_is_read(gateway):
    with Line(gateway.port, seconds=2) as line:
        line.send(OPEN.replace(b"plain", b"wrong") + b"content-length: 50000\r\n\r\n")
        answer = line.answer()
        assert answer.status == 401
        assert line.ended()


def test_an_address_that_guesses_keys_is_held_off_for_a_minute(sim, tmp_path):
    clock = Leaping()
    text = (
        f"providers:\n{provider(sim, 'p')}chains: {{smart: [p/m]}}\nprices: {{p/m: free}}\n"
        f"keys: [{{name: k, hash: 'sha256:{digest('right')}'}}]\n"
    )
    with Gateway(text, tmp_path / "state", clock=clock) as gateway:

        def knock(key):
            return ask(gateway.port, chat("nothing"), authorization=f"Bearer {key}")

        told = [knock(f"guess-{n}") for n in range(41)]  # a minute may have ended in between
        statuses = [answer.status for answer in told]
        first = statuses.index(429)
        assert first >= 20
        held = told[first]
        assert held.error["code"] == "invalid_api_key"
        assert 1 <= int(held.headers["retry-after"]) <= 75
        assert held.headers["x-should-retry"] == ("true" if held.error["retryable"] else "false")
        clock.ahead += int(held.headers["retry-after-ms"]) / 1000
        assert knock("guess").status == 401
        assert knock("right").status == 404


# ---------------------------------------------------------------------------------- anything at all

FAST = settings(max_examples=120, deadline=None, derandomize=True, database=None)
WORDS = st.sampled_from([
    "model", "messages", "stream", "n", "max_tokens", "max_completion_tokens", "tools", "user",
    "stream_options", "response_format", "logprobs", "top_logprobs", "parallel_tool_calls", "input",
    "metadata", "tool_choice", "functions", "stop", "temperature", "dimensions", "encoding_format",
    "reasoning_effort", "models", "gateway", "callbacks_x", "seed", "modalities", "audio", "store",
])  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False),
    st.text(max_size=12),
    st.sampled_from(["smart", "p/m", "p", "auto", "none", "user", "json_object", "json_schema",
                     "function", "required", "base64", "\ud800", "\x00", "image_url", "high"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["type", "text", "function", "name", "parameters", "content", "role",
                             "image_url", "url", "include_usage", "json_schema", "schema", "$ref",
                             "properties", "required", "tool_calls", "tool_call_id", ""]),
            inner, max_size=4,
        ),
    ),
    max_leaves=10,
)  # fmt: skip
MEMBERS = st.dictionaries(WORDS, VALUES, max_size=5)
MESSAGE = st.fixed_dictionaries(
    {}, optional={"role": SCALARS, "content": VALUES, "tool_calls": VALUES, "name": SCALARS}
)
HEADER_NAMES = st.sampled_from([
    "authorization", "x-api-key", "api-key", "content-encoding", "expect", "connection", "upgrade",
    "x-gateway-deadline", "x-gateway-first-token", "x-gateway-tags", "x-gateway-max-cost-usd",
    "x-gateway-skip", "x-gateway-target", "x-gateway-user", "x-gateway-session", "x-gateway-trace",
    "x-gateway-fallback", "x-gateway-priority", "x-gateway-odd", "traceparent", "accept-encoding",
    "x-stainless-retry-count", "content-type", "idempotency-key", "origin", "cookie", "te",
])  # fmt: skip
HEADER_VALUES = st.one_of(
    st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=30),
    st.sampled_from(["30s", "1ms", "0s", "gzip", "identity", "100-continue", "Bearer x", "a=b", "1",
                     "off", "low", "0.000000001", "999999999", "close", "keep-alive", "websocket",
                     "p/m", "smart", "p/m,f/m", "f/m", "0.01", "trailers", "h2c"]),
)  # fmt: skip


@pytest.fixture(scope="module")
def anything(tmp_path_factory):
    """A gateway without keys, and its simulator."""
    with UpstreamThread() as sim:
        text = (
            f"providers:\n{provider(sim, 'p')}{provider(sim, 'f')}chains: {{smart: [p/m, f/m]}}\n"
            "prices: {p/m: free, f/m: free}\n"
            "defaults: {retry: {backoff: 1ms}, breaker: {failures: 100000, min_requests: 100000}}\n"
        )
        with Gateway(text, tmp_path_factory.mktemp("anything")) as running:
            yield running
            running.at_rest()


def judged(gateway, data):
    """Everything that is answered to these bytes, until the end that must come."""
    with Line(gateway.port, seconds=5) as line:
        line.send(data)
        answer = line.answer("GET")
        if answer.headers.get("connection") == "close":
            assert line.ended()
        else:
            line.send(get("/healthz", connection="close"))
            assert line.answer("GET").status == 200
            assert line.ended()
    assert answer.status == 200 or 400 <= answer.status < 500, answer
    assert answer.headers["x-request-id"]
    if answer.status != 200:
        assert answer.error["message"]
        assert answer.headers["x-should-retry"] in {"true", "false"}
    elif "transfer-encoding" in answer.headers:
        assert answer.events[-1] == "[DONE]" or "error" in json.loads(answer.events[-1])
    return answer


@FAST
@given(MEMBERS, st.lists(MESSAGE, max_size=3), st.booleans())
def test_any_members_of_a_chat(anything, members, messages, stream):
    body = {"model": "smart", "messages": messages or HI, "stream": stream, **members}
    judged(anything, post(json.dumps(body).encode("utf-8", "surrogatepass")))


@FAST
@given(MEMBERS, VALUES)
def test_any_members_of_an_embedding(anything, members, given):
    body = {"model": "smart", "input": given, **members}
    judged(anything, post(json.dumps(body).encode(), EMBEDDINGS))


@FAST
@given(st.data())
def test_any_damage_to_a_body(anything, data):
    body = bytearray(json.dumps(chat("smart", n=2, tools=[], user="me")).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    judged(anything, post(bytes(body)))


@FAST
@given(st.dictionaries(HEADER_NAMES, HEADER_VALUES, max_size=5), st.booleans())
def test_any_headers(anything, headers, stream):
    body = json.dumps(chat("smart", stream=stream)).encode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")
    data = b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: %d\r\n%b\r\n%b"
    judged(anything, data % (len(body), lines, body))


@FAST
@given(
    st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "TRACE", "PATCH", "X"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
    st.sampled_from(
        ["/", "/v1/", "/v1/models/", "/openai/deployments/", "/openai/v1/", "http://", "*"]
    ),
)
def test_any_path(anything, method, path, prefix):
    with Line(anything.port, seconds=5) as line:
        line.send(
            f"{method} {prefix}{path} HTTP/1.1\r\nhost: g\r\ncontent-length: 0\r\n\r\n".encode()
        )
        answer = line.answer(method)
        assert answer.status == 200 or 400 <= answer.status < 500


@FAST
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda some: OPEN + some)))
def test_any_bytes(anything, data):
    """Half a request is not waited for once its sender has closed its half."""
    with Line(anything.port, seconds=5) as line, contextlib.suppress(ConnectionError):
        line.send(data)
        line.socket.shutdown(socket.SHUT_WR)
        heard = b""
        while some := line.socket.recv(1 << 16):
            heard += some
        assert heard == b"" or heard.startswith((b"HTTP/1.1 4", b"HTTP/1.1 2"))
