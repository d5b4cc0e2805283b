"""The client against a small server: what is asked, what is told, and which error it becomes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway import errors
from gateway.client.http import Cut, GatewayClient, Unreachable, content_of, failure, should_retry
from gateway.clock import SystemClock
from gateway.wire import json

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[str, str, Handler], Awaitable[GatewayClient]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve one route; gives a client of it."""
    opened: list[GatewayClient] = []
    servers: list[TestServer] = []

    async def make(method: str, path: str, handler: Handler) -> GatewayClient:
        app = web.Application()
        app.router.add_route(method, path, handler)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        client = GatewayClient(str(server.make_url("/")), " gk_x\n", SystemClock(), patience=5)
        await client.__aenter__()
        opened.append(client)
        return client

    yield make
    for client in opened:
        await client.__aexit__(None, None, None)
    for server in servers:
        await server.close()


def stream_of(*pieces: bytes) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert (await request.json())["stream"] is True
        response = web.StreamResponse(headers={"X-Request-Id": "req_1", "X-Gateway-Chain": "c"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        return response

    return handler


async def test_a_whole_answer_comes_with_its_headers(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.headers["authorization"] == "Bearer gk_x"
        assert request.headers["x-gateway-skip"] == "gpt"
        return web.json_response(await request.json(), headers={"X-Request-Id": "req_1"})

    client = await serve("POST", "/chat/completions", handler)
    answer = await client.chat({"model": "m"}, {"x-gateway-skip": "gpt"})
    assert (answer.status, answer.body, answer.request_id) == (200, {"model": "m"}, "req_1")
    assert answer.seconds >= 0


async def test_models_are_listed(serve: Serve) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response({"data": [{"id": "smart"}, 7]})

    assert await (await serve("GET", "/models", handler)).models() == [{"id": "smart"}]


async def test_a_stream_gives_chunks_and_the_gateways_note(serve: Serve) -> None:
    client = await serve("POST", "/chat/completions", stream_of(
        b": keep-alive\n\n",
        b'data: {"choices":[{"delta":{"content":"hel',
        b'lo"}}]}\n\n: gateway not json\n\n: gateway {"path":"a:ok"}\n\ndata: [DONE]\n\n',
    ))  # fmt: skip
    async with client.stream({"model": "m"}) as stream:
        said = [content_of(chunk) async for chunk in stream.chunks()]
    assert (said, stream.note, stream.request_id) == (["hello"], {"path": "a:ok"}, "req_1")
    assert stream.first_content is not None
    assert stream.seconds >= stream.first_content


@pytest.mark.parametrize(
    "pieces",
    [
        (b'data: {"a":1}\n\n',),
        (b"data: not json\n\n", b"data: [DONE]\n\n"),
        (b"data: 7\n\ndata: [DONE]\n\n",),
        (),
    ],
)
async def test_a_stream_without_its_end_is_cut(serve: Serve, pieces: tuple[bytes, ...]) -> None:
    client = await serve("POST", "/chat/completions", stream_of(*pieces))
    async with client.stream({}) as stream:
        with pytest.raises(Cut) as caught:
            _ = [chunk async for chunk in stream.chunks()]
    assert caught.value.request_id == "req_1"


async def test_an_error_event_becomes_the_error(serve: Serve) -> None:
    client = await serve("POST", "/chat/completions", stream_of(
        b'data: {"error":{"message":"broke off","type":"upstream_error","code":"stalled"}}\n\n'
    ))  # fmt: skip
    async with client.stream({}) as stream:
        with pytest.raises(errors.UpstreamFailed, match="broke off") as caught:
            _ = [chunk async for chunk in stream.chunks()]
    assert caught.value.code == "stalled"


async def test_a_refused_stream_raises_before_the_first_event(serve: Serve) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        error = errors.RateLimited("too many", retry_after=3, scope="key")
        return web.json_response(error.body(), status=429, headers=error.headers())

    client = await serve("POST", "/chat/completions", handler)
    with pytest.raises(errors.RateLimited, match="too many") as caught:
        async with client.stream({}):
            pass
    assert (caught.value.retry_after, caught.value.scope) == (3.0, "key")
    assert should_retry(caught.value)


async def test_redirects_are_not_followed(serve: Serve) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/elsewhere")

    with pytest.raises(errors.GatewayError, match="HTTP 302"):
        await (await serve("GET", "/admin/status", handler)).get("/admin/status")


async def test_an_answer_that_is_no_json_is_nobody_we_know(serve: Serve) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>")

    with pytest.raises(Unreachable, match="not in JSON"):
        await (await serve("GET", "/x", handler)).get("/x")


async def test_a_whole_answer_that_is_cut_is_told(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": "100"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.close()
        return response

    with pytest.raises(Cut):
        await (await serve("GET", "/x", handler)).get("/x")


async def test_nobody_there_is_unreachable() -> None:
    server = await asyncio.start_server(lambda _, __: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with GatewayClient(f"http://127.0.0.1:{port}", "", SystemClock()) as client:
        with pytest.raises(Unreachable, match="refused"):
            await client.get("/x")


@pytest.mark.parametrize(("url", "key"), [("nonsense", ""), ("http://127.0.0.1:1", "a\nb")])
async def test_a_senseless_address_or_key_is_told_and_not_shown(url: str, key: str) -> None:
    async with GatewayClient(url, key, SystemClock()) as client:
        with pytest.raises(Unreachable) as caught:
            await client.get("/x")
    assert "a\nb" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequest("m", param="model"),
        errors.Unauthenticated("m"),
        errors.NotAllowed("m", code="model_not_allowed"),
        errors.NotFound("m"),
        errors.TooLarge("m"),
        errors.UnsupportedEncoding("m"),
        errors.RateLimited("m", retry_after=2.5),
        errors.RateLimited("m", retry_after=90),
        errors.Overloaded("m", retry_after=1),
        errors.UpstreamFailed("m"),
        errors.UpstreamTimedOut("m"),
        errors.GatewayError("m"),
    ],
)
def test_what_the_gateway_raised_is_raised_again(error: errors.GatewayError) -> None:
    error.request_id = "req_1"
    error.attempts = [{"target": "gpt", "cause": "timeout", "ms": 3}]
    from_wire = error.body()
    again = failure(error.status, error.headers(), json.dumps(from_wire))
    assert type(again) is type(error)
    assert again.body() == error.body()
    assert should_retry(again) == error.should_retry


@pytest.mark.parametrize(
    ("status", "kind"),
    [(409, errors.InvalidRequest), (418, errors.InvalidRequest), (599, errors.GatewayError)],
)
def test_a_foreign_error_keeps_its_status(status: int, kind: type[errors.GatewayError]) -> None:
    error = failure(status, {"retry-after": "soon", "x-request-id": "r"}, b"<html>")
    assert type(error) is kind
    assert (error.status, error.retry_after, error.request_id) == (status, None, "r")
