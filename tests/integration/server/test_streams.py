"""A stream on the caller's socket: when bytes leave, how it ends, callers who leave or block."""

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import replace

import pytest

from gateway.core.attempt import StreamEvent
from gateway.errors import UpstreamFailed
from gateway.server.connection import Bounds
from gateway.wire import json
from tests.integration.server.rig import chat, chunk, dial, gateway, get, post

PIECES = (chunk("a"), chunk("b"))
ASK = post(chat(stream=True))


def streaming(g, *, keepalive=60.0, before=None, between=None, pieces=PIECES):
    async def script(call, reply):
        request = g.chat.facade.parse(await call.body())
        voice = g.chat.facade.voice(request)
        reply.expect(voice, keepalive, lambda: {"x-gateway-chain": "early"})
        if before is not None:
            await before()
        await reply.start({"x-gateway-chain": "late"}, voice)
        for piece in pieces:
            await reply.write([piece])
            if between is not None:
                await between()
        await reply.finish(b"")

    g.chat.script = script


async def test_the_head_waits_for_the_first_content():
    async with gateway() as g, dial(g.port) as line:
        gate = asyncio.Event()
        streaming(g, before=gate.wait)
        line.send(ASK)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await line.reader.readexactly(1)
        gate.set()
        answer = await line.answer()
        assert answer.headers["x-gateway-chain"] == "late"


async def test_head_and_first_chunk_arrive_together():
    async with gateway() as g, dial(g.port) as line:
        gate = asyncio.Event()
        streaming(g, between=gate.wait)
        line.send(ASK)
        first = await line.reader.read(65536)
        assert first.startswith(b"HTTP/1.1 200 OK\r\n")
        assert first.endswith(b"\n\n\r\n")
        gate.set()
        await line.reader.readuntil(b"0\r\n\r\n")


async def test_a_batch_is_one_chunk():
    async with gateway() as g, dial(g.port) as line:

        async def script(call, reply):
            request = g.chat.facade.parse(await call.body())
            await reply.start({}, g.chat.facade.voice(request))
            await reply.write([chunk("a"), chunk("b"), chunk("c")])
            await reply.finish(b"")

        g.chat.script = script
        line.send(ASK)
        await line.head()
        assert (await line.chunk()).count(b"data: ") == 3


async def test_frames_of_our_own_are_not_shown():
    own = StreamEvent(b'{"usage":{}}', own=True)
    async with gateway() as g, dial(g.port) as line:
        streaming(g, pieces=(chunk("a"), own, StreamEvent(b""), chunk("b")))
        answer = await line.ask(ASK)
        assert b"usage" not in answer.body
        assert answer.body.count(b"data: ") == 3


async def test_silence_is_filled_with_comments_and_the_head_goes_out_with_the_first():
    async with gateway() as g, dial(g.port) as line:
        gate = asyncio.Event()
        streaming(g, keepalive=0.05, before=gate.wait)
        line.send(ASK)
        status, headers = await line.head()
        assert (status, headers["x-gateway-chain"]) == (200, "early")
        assert headers["content-type"] == "text/event-stream"
        assert await line.chunk() == b": keepalive\n\n"
        assert await line.chunk() == b": keepalive\n\n"
        gate.set()
        rest = b"".join([piece async for piece in line.chunks()])
        assert rest.replace(b": keepalive\n\n", b"").startswith(b'data: {"id"')
        assert rest.endswith(b"data: [DONE]\n\n")


async def test_a_busy_stream_has_no_comments():
    async with gateway() as g, dial(g.port) as line:
        streaming(g, keepalive=0.08, between=lambda: asyncio.sleep(0.02), pieces=[chunk("x")] * 12)
        answer = await line.ask(ASK)
        assert b": keepalive" not in answer.body


async def test_silence_in_the_middle_is_filled_too():
    async with gateway() as g, dial(g.port) as line:
        streaming(g, keepalive=0.04, between=lambda: asyncio.sleep(0.1))
        answer = await line.ask(ASK)
        assert answer.body.count(b": keepalive\n\n") >= 2
        assert answer.body.count(b"data: ") == 3


async def test_no_comment_follows_the_end():
    async with gateway() as g, dial(g.port) as line:
        streaming(g, keepalive=0.03)
        await line.ask(ASK)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await line.reader.readexactly(1)
        assert (await line.ask(get("/healthz"))).status == 200


async def test_a_failure_before_the_head_is_a_status():
    async with gateway() as g, dial(g.port) as line:

        async def fail():
            raise UpstreamFailed("nobody could answer")

        streaming(g, before=fail)
        answer = await line.ask(ASK)
        assert (answer.status, answer.error["type"]) == (502, "upstream_error")
        assert answer.headers["x-should-retry"] == "false"
        assert (await line.ask(get("/healthz"))).status == 200


@pytest.mark.parametrize("early", [True, False])
async def test_a_failure_after_the_head_is_an_event_and_a_proper_end(early):
    async with gateway() as g, dial(g.port) as line:

        async def fail():
            await asyncio.sleep(0.1)
            raise UpstreamFailed("it broke off", code="cut_stream")

        streaming(g, keepalive=0.02 if early else 60, **{"before" if early else "between": fail})
        answer = await line.ask(ASK)
        assert answer.status == 200
        last = answer.body.split(b"\n\n")[-2]
        error = json.loads(last.removeprefix(b"data: "))["error"]
        assert (error["code"], error["type"]) == ("cut_stream", "upstream_error")
        assert error["request_id"] == answer.headers["x-request-id"]
        assert b"[DONE]" not in answer.body
        g.chat.script = None
        assert (await line.ask(ASK)).status == 200  # the chunked body had its end


async def test_a_mistake_of_ours_after_the_head_is_an_event_too(caplog):
    async with gateway() as g, dial(g.port) as line:

        async def fall():
            raise KeyError("canary")

        streaming(g, between=fall)
        answer = await line.ask(ASK)
        assert b'"code":"internal"' in answer.body
        assert b"canary" not in answer.body
        assert b"[DONE]" not in answer.body


# --- back-pressure


def _small_buffers(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)


async def test_a_caller_who_does_not_read_holds_the_road_up_and_little_memory():
    async with gateway() as g:
        written = 0

        async def script(call, reply):
            nonlocal written
            request = g.chat.facade.parse(await call.body())
            await reply.start({}, g.chat.facade.voice(request))
            for _ in range(2000):
                await reply.write([StreamEvent(b'"%b"' % (b"x" * 10_000))])
                written += 1
            await reply.finish(b"")

        g.chat.script = script
        async with dial(g.port, limit=2**14) as line:
            line.send(ASK)
            before = -1
            while written != before or not written:
                before = written
                await asyncio.sleep(0.1)
            assert written < 1500
            connection = next(iter(g.servers.edge.connections))
            assert connection.transport.get_write_buffer_size() <= 256 * 1024
            answer = await line.answer()
            assert len(answer.body) > 2000 * 10_000
        assert written == 2000


async def test_a_huge_batch_is_cut_into_slices():
    async with gateway() as g, dial(g.port, limit=2**14) as line:
        streaming(g, pieces=[StreamEvent(b'"%b"' % (b"x" * 3_000_000))])
        line.send(ASK)
        await asyncio.sleep(0.1)
        connection = next(iter(g.servers.edge.connections))
        assert connection.transport.get_write_buffer_size() <= 256 * 1024
        assert len((await line.answer()).body) > 3_000_000


async def test_a_caller_who_takes_nothing_for_long_is_cut_off():
    async with gateway(bounds=Bounds(blocked=0.2)) as g, dial(g.port, limit=2**14) as line:
        streaming(g, pieces=[StreamEvent(b'"%b"' % (b"x" * 100_000))] * 200)
        line.send(ASK)
        async with asyncio.timeout(5):
            await g.chat.cancelled.wait()
            while g.servers.edge.connections:
                await asyncio.sleep(0.01)


async def test_a_slow_caller_who_goes_on_reading_is_not_cut_off():
    async with gateway(bounds=Bounds(blocked=0.2)) as g, dial(g.port, limit=2**14) as line:
        streaming(g, pieces=[StreamEvent(b'"%b"' % (b"x" * 100_000))] * 100)
        line.send(ASK)
        got = b""
        while not got.endswith(b"0\r\n\r\n"):
            piece = await line.reader.read(2**18)
            assert piece, "cut off"
            got = got[-10:] + piece
            await asyncio.sleep(0.002)


async def test_a_whole_answer_nobody_takes_does_not_stay_for_ever():
    async with gateway(bounds=Bounds(blocked=0.2)) as g, dial(g.port, limit=2**14) as line:
        g.chat.pieces = ()

        async def script(call, reply):
            request = g.chat.facade.parse(await call.body())
            await reply.start({}, g.chat.facade.voice(request))
            await reply.write([StreamEvent(b"x" * 20_000_000)])
            await reply.finish(b"")

        g.chat.script = script
        line.send(post(chat()))
        async with asyncio.timeout(5):
            await g.chat.ended.wait()
            while g.servers.edge.connections:
                await asyncio.sleep(0.01)
        assert not g.chat.cancelled.is_set()  # the last byte was handed over: a success


# --- callers who leave


async def _leave(line, how):
    sock = line.writer.get_extra_info("socket")
    if how == "rst":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.writer.transport.abort()
    elif how == "half-close":
        line.writer.write_eof()
    else:
        line.writer.close()


@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("when", ["before", "between"])
async def test_a_caller_who_leaves_cancels_its_road(how, stream, when):
    async with gateway() as g, dial(g.port) as line:
        reached = asyncio.Event()

        async def wait():
            reached.set()
            await asyncio.sleep(30)

        streaming(g, **{when: wait})
        line.send(post(chat(stream=stream)))
        async with asyncio.timeout(5):
            await reached.wait()
            await _leave(line, how)
            await g.chat.cancelled.wait()
            while g.servers.edge.connections:
                await asyncio.sleep(0.001)
        assert g.servers.in_flight == 0
        with suppress(OSError):
            await line.reader.read()


async def test_a_caller_who_leaves_in_the_middle_of_its_body_is_noticed():
    async with gateway() as g:
        async with dial(g.port) as line:
            line.send(post(chat())[:-5])
            while not g.chat.calls:
                await asyncio.sleep(0.001)
        async with asyncio.timeout(5):
            await g.chat.cancelled.wait()


async def test_a_caller_who_leaves_while_its_key_is_looked_up_is_told_as_gone():
    async with gateway() as g:
        reached = asyncio.Event()

        async def slowly(call):
            reached.set()
            await asyncio.sleep(30)

        g.current.doors = replace(g.doors, authenticate=slowly)
        async with dial(g.port) as line:
            line.send(get("/v1/models"))
            await reached.wait()
        async with asyncio.timeout(5):
            while not g.events:
                await asyncio.sleep(0.001)
        assert g.ended == [("_other", 499)]


async def test_the_road_is_cancelled_in_the_turn_the_caller_left():
    async with gateway() as g, dial(g.port) as line:
        reached = asyncio.Event()
        turns = []

        async def wait():
            reached.set()
            try:
                await asyncio.sleep(30)
            finally:
                turns.append("cancelled")

        streaming(g, before=wait)
        line.send(ASK)
        await reached.wait()
        connection = next(iter(g.servers.edge.connections))
        connection.eof_received()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert turns == ["cancelled"]


async def test_writing_to_a_caller_who_left_is_a_cancellation():
    async with gateway() as g, dial(g.port) as line:
        seen = []

        async def script(call, reply):
            request = g.chat.facade.parse(await call.body())
            await reply.start({}, g.chat.facade.voice(request))
            connection = next(iter(g.servers.edge.connections))
            connection.transport.abort()
            try:
                await reply.write([chunk("a")])
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        g.chat.script = script
        line.send(ASK)
        assert await line.eof() == b""
        assert seen == ["cancelled"]
