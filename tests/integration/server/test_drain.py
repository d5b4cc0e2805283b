"""The end: readiness first, then new callers, then those under way, each with a word."""

import asyncio

import pytest

from gateway.wire import json
from tests.integration.server.rig import ask, chat, chunk, dial, gateway, get, post


def slow_stream(g, gate):
    async def script(call, reply):
        request = g.chat.facade.parse(await call.body())
        voice = g.chat.facade.voice(request)
        reply.expect(voice, 60, dict)
        await reply.start({}, voice)
        await reply.write([chunk("a")])
        await gate.wait()
        await reply.write([chunk("b")])
        await reply.finish(b"")

    g.chat.script = script


async def test_a_drain_ends_readiness_serves_on_and_lets_streams_finish():
    async with gateway() as g, dial(g.port) as stream, dial(g.port) as idle:
        gate = asyncio.Event()
        slow_stream(g, gate)
        stream.send(post(chat(stream=True)))
        await stream.head()
        await stream.chunk()
        await idle.ask(get("/healthz"))
        async with asyncio.TaskGroup() as tasks:
            draining = tasks.create_task(g.servers.drain(0.3, 5.0))
            await asyncio.sleep(0.05)
            assert (await ask(g.admin_port, get("/readyz"))).status == 503
            assert (await ask(g.port, get("/healthz"))).status == 200
            g.chat.script = None
            late = await ask(g.port, post(chat()))  # lame duck: still served
            assert (late.status, late.headers["connection"]) == (200, "close")
            await asyncio.sleep(0.4)
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", g.port)
            assert await idle.eof(1) == b""
            assert not draining.done()
            gate.set()
            rest = [piece async for piece in stream.chunks()]
            assert rest[-1] == b"data: [DONE]\n\n"
            assert await stream.eof(1) == b""
        assert not g.servers.edge.connections


@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_not_done_in_time_is_told_and_ended(stream):
    async with gateway() as g, dial(g.port) as line:
        slow_stream(g, asyncio.Event())
        line.send(post(chat(stream=stream)))
        if stream:
            await line.head()
            await line.chunk()
        while not g.chat.calls:
            await asyncio.sleep(0.001)
        await g.servers.drain(0.0, 0.1)
        if stream:
            rest = [piece async for piece in line.chunks()]
            error = json.loads(rest[-1].removeprefix(b"data: "))["error"]
        else:
            answer = await line.answer()
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            error = answer.error
        assert error["code"] == "draining"
        assert "server_shutdown" in error["message"]
        assert g.chat.cancelled.is_set()
        assert await line.eof(1) == b""


async def test_somebody_in_a_hurry_skips_to_the_end():
    async with gateway() as g, dial(g.port) as line:
        slow_stream(g, asyncio.Event())
        line.send(post(chat(stream=True)))
        await line.head()
        async with asyncio.timeout(2), asyncio.TaskGroup() as tasks:
            tasks.create_task(g.servers.drain(60.0, 60.0))
            await asyncio.sleep(0.05)
            g.servers.hurry()
        assert g.chat.cancelled.is_set()


async def test_a_drain_of_an_idle_house_is_quick():
    async with gateway() as g, dial(g.port) as line:
        await line.ask(get("/healthz"))
        async with asyncio.timeout(1):
            await g.servers.drain(0.0, 30.0)
        assert await line.eof(1) == b""
        assert (await ask(g.admin_port, get("/healthz"))).status == 200
