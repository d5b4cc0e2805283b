"""Whatever is sent: an answer below 500 or a closed connection, soon, and nothing stays behind."""

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.server.connection import Bounds
from gateway.wire import json
from tests.integration.server.rig import ADMIN_KEY, WHOLE, chat, dial, gateway, get, post

FAST = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SHORT = Bounds(head=0.2, keepalive=0.2, body=0.2, body_grace=0.1, linger=0.1)

HEADERS = st.sampled_from(
    [
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"content-encoding",
        b"content-length",
        b"expect",
        b"transfer-encoding",
        b"connection",
        b"upgrade",
        b"x-gateway-deadline",
        b"x-gateway-tags",
        b"x-gateway-max-cost-usd",
        b"x-gateway-skip",
        b"x-gateway-user",
        b"traceparent",
        b"host",
        b"x-stainless-retry-count",
        b"x-gateway-nothing",
        b"content-type",
    ]
)
VALUES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"30s",
            b"chunked",
            b"gzip",
            b"100-continue",
            b"Bearer x",
            b"a=b,c=d",
            b"1",
            b"99999999999999999999",
            b"0.000000001",
            b"close",
            b"websocket",
            b"\xff",
        ]
    ),
)
JSONISH = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
MEMBERS = st.dictionaries(
    st.sampled_from(
        [
            "model",
            "messages",
            "stream",
            "n",
            "max_tokens",
            "max_completion_tokens",
            "tools",
            "user",
            "stream_options",
            "response_format",
            "logprobs",
            "parallel_tool_calls",
            "input",
            "callbacks",
            "metadata",
        ]
    ),
    JSONISH,
    max_size=6,
)


async def _answered(port, data):
    """The status, or None when it was closed without one; never a wait of more than 5 s."""
    async with dial(port) as line:
        line.send(data)
        async with asyncio.timeout(5):
            try:
                first = await line.reader.readline()
                rest = first
                while not rest.endswith(b"0\r\n\r\n") and len(rest) < 100_000:
                    piece = await line.reader.read(65536)
                    if not piece or b"\r\n\r\n" in rest + piece:
                        break
                    rest += piece
            except ConnectionError:
                return None
    return int(first.split(b" ")[1]) if first.startswith(b"HTTP/1.1 ") else None


def _run(example):
    """Hypothesis calls plain functions; each has a loop of its own."""
    asyncio.run(example())


@FAST
@given(st.lists(st.tuples(HEADERS, VALUES), max_size=6), st.binary(max_size=60))
def test_headers(headers, body):
    async def example():
        async with gateway(bounds=SHORT) as g:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\n"
            head += b"".join(b"%b: %b\r\n" % pair for pair in headers)
            status = await _answered(
                g.port, head + b"content-length: %d\r\n\r\n" % len(body) + body
            )
            assert status is None or 100 <= status < 500
            await _at_rest(g)

    _run(example)


@FAST
@given(st.one_of(st.binary(max_size=200), MEMBERS.map(repr).map(str.encode)))
def test_bodies_that_are_no_json(body):
    async def example():
        async with gateway(bounds=SHORT) as g:
            for path in ("/v1/chat/completions", "/v1/embeddings"):
                status = await _answered(g.port, post(body, path))
                assert status is None or status < 500
            await _at_rest(g)

    _run(example)


@FAST
@given(MEMBERS, st.booleans())
def test_bodies_that_are_json(members, usual):
    if usual:
        members = {
            "model": "default",
            "messages": [{"role": "user", "content": "x"}],
            "input": "x",
            **members,
        }
    try:
        body = json.dumps(members)
    except TypeError:
        return  # integers beyond 64 bits: no JSON of ours

    async def example():
        async with gateway(bounds=SHORT) as g:
            for path in ("/v1/chat/completions", "/v1/embeddings"):
                status = await _answered(g.port, post(body, path))
                assert status in {200, 400}
            await _at_rest(g)

    _run(example)


@FAST
@given(st.binary(max_size=120))
def test_bytes(data):
    async def example():
        async with gateway(bounds=SHORT) as g:
            for port in (g.port, g.admin_port):
                status = await _answered(port, data + b"\r\n\r\n")
                assert status is None or status < 500
            await _at_rest(g)

    _run(example)


@FAST
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40),
)
def test_admin_paths(method, path):
    async def example():
        async with gateway(bounds=SHORT) as g:
            for prefix in ("/", "/admin/", "/admin/requests/", "/admin/breaker/"):
                request = get(prefix + path, Authorization=f"Bearer {ADMIN_KEY}")
                status = await _answered(g.admin_port, request.replace(b"GET", method.encode(), 1))
                assert status is None or status < 500

    _run(example)


@FAST
@given(st.lists(st.integers(1, 400), max_size=12))
def test_any_cut_of_a_request_gives_the_same_answer(cuts):
    async def example():
        async with gateway() as g, dial(g.port) as line:
            data, at = post(chat()), 0
            for cut in cuts:
                line.send(data[at : at + cut])
                at += cut
                await asyncio.sleep(0)
            line.send(data[at:])
            assert (await line.answer()).body == WHOLE

    _run(example)


async def _at_rest(g):
    async with asyncio.timeout(5):
        while g.servers.edge.connections:
            await asyncio.sleep(0.002)
    assert g.servers.in_flight == 0
