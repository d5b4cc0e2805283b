"""Connections that are not what they should be: silent, half-said, ambiguous, broken, too many."""

import asyncio

import pytest

from gateway.core.snapshot import ServerSettings
from gateway.core.target import Secret
from gateway.server.connection import Bounds
from gateway.server.listen import PortTaken
from gateway.server.serve import Servers
from tests.integration.server.rig import Gateway, ask, chat, dial, gateway, get, post

SHORT = Bounds(head=0.15, keepalive=0.4)


async def test_a_silent_connection_is_closed_without_a_word():
    async with gateway(bounds=SHORT) as g, dial(g.port) as line:
        assert await line.eof(1) == b""


async def test_a_half_sent_head_is_told_and_closed():
    async with gateway(bounds=SHORT) as g, dial(g.port) as line:
        line.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\n")
        answer = await line.answer()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert answer.headers["connection"] == "close"
        assert await line.eof(1) == b""
        assert g.ended == [("_other", 408)]


async def test_a_head_that_trickles_is_cut_all_the_same():
    async with gateway(bounds=SHORT) as g, dial(g.port) as line:
        for byte in get("/healthz"):
            line.send(bytes([byte]))
            await asyncio.sleep(0.02)
            if line.reader.at_eof():
                break
        assert (await line.answer()).status == 408


async def test_a_half_sent_second_head_is_told_and_closed():
    async with gateway(bounds=SHORT) as g, dial(g.port) as line:
        assert (await line.ask(get("/healthz"))).status == 200
        line.send(b"GET /heal")
        answer = await line.answer()
        assert answer.status == 408
        assert await line.eof(1) == b""


async def test_a_half_sent_second_head_behind_a_running_request_waits_its_turn():
    async with gateway(bounds=SHORT) as g, dial(g.port) as line:

        async def slow(call, reply):
            await asyncio.sleep(0.3)
            await g.chat.play(call, reply)

        g.chat.script = slow
        line.send(post(chat()))
        await asyncio.sleep(0.05)
        line.send(b"GET /heal")
        assert (await line.answer()).status == 200
        assert (await line.answer()).status == 408


async def test_an_idle_connection_is_kept_for_its_time_and_then_closed():
    async with gateway(bounds=SHORT) as g, dial(g.port) as line:
        for _ in range(3):
            assert (await line.ask(get("/healthz"))).status == 200
            await asyncio.sleep(0.2)  # longer than a head may take
        assert await line.eof(2) == b""
        assert not g.events


async def test_a_stray_line_end_behind_a_request_is_no_head():
    async with gateway(bounds=Bounds(head=0.1, keepalive=5.0)) as g, dial(g.port) as line:
        line.send(get("/healthz") + b"\r\n")
        assert (await line.answer()).status == 200
        line.send(b"\r\n")
        await asyncio.sleep(0.2)
        assert (await line.ask(get("/healthz"))).status == 200


async def test_a_long_answer_outlives_the_clock_of_heads():
    async with gateway(bounds=SHORT) as g, dial(g.port) as line:

        async def slow(call, reply):
            await asyncio.sleep(0.6)
            await g.chat.play(call, reply)

        g.chat.script = slow
        assert (await line.ask(post(chat()))).status == 200


BROKEN = {
    "no words": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "other protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost : g\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "nul in a value": b"GET / HTTP/1.1\r\nHost: g\r\nx-a: a\x00b\r\n\r\n",
    "control in a value": b"GET / HTTP/1.1\r\nHost: g\r\nx-a: a\x01b\r\n\r\n",
    "bare cr in a value": b"GET / HTTP/1.1\r\nHost: g\r\nx-a: a\rb\r\n\r\n",
    "folded header": b"GET / HTTP/1.1\r\nHost: g\r\nx-a: a\r\n b\r\n\r\n",
    "length and chunks": b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\ncontent-length: 5\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\ncontent-length: 5\r\n"
    b"content-length: 6\r\n\r\nhello",
    "signed length": b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\n"
    b"content-length: +5\r\n\r\nhello",
    "odd coding": b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\n"
    b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "long line": b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: g\r\n\r\n",
    "long header": b"GET / HTTP/1.1\r\nHost: g\r\nx-a: " + b"a" * 9000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: g\r\n"
    + b"".join(b"x-%d: a\r\n" % i for i in range(70))
    + b"\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_not_http_is_400_in_our_shape(name):
    async with gateway() as g, dial(g.port) as line:
        line.send(BROKEN[name])
        answer = await line.answer()
        assert answer.status == 400
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-should-retry"] == "false"
        assert answer.headers["x-request-id"] == answer.error["request_id"]
        assert answer.error["type"] == "invalid_request_error"
        assert await line.eof(3) == b""
        assert g.ended == [("_other", 400)]
        assert not g.chat.calls


async def test_junk_behind_a_running_request_does_not_spoil_its_answer():
    async with gateway() as g, dial(g.port) as line:

        async def slow(call, reply):
            await asyncio.sleep(0.1)
            await g.chat.play(call, reply)

        g.chat.script = slow
        line.send(post(chat()))
        await asyncio.sleep(0.02)
        line.send(b"junk\x00\r\n\r\n")
        assert (await line.answer()).status == 200
        assert (await line.answer()).status == 400
        assert await line.eof(3) == b""


async def test_a_smuggled_second_request_is_never_seen():
    async with gateway() as g, dial(g.port) as line:
        hidden = post(chat())
        line.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\ncontent-length: 4\r\n"
            b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + hidden
        )
        assert (await line.answer()).status == 400
        assert await line.eof(3) == b""
        assert not g.chat.calls


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
async def test_an_offer_to_upgrade_is_not_taken(upgrade):
    async with gateway() as g, dial(g.port) as line:
        headers = {
            "Connection": "Upgrade, HTTP2-Settings",
            "Upgrade": upgrade,
            "HTTP2_Settings": "AAMAAABkAARAAAAAAAIAAAAA",
        }
        answer = await line.ask(post(chat(), **headers))
        assert answer.status == 200  # what Java's client sends first on each connection


async def test_connect_is_no_route():
    async with gateway() as g, dial(g.port) as line:
        line.send(b"CONNECT evil:443 HTTP/1.1\r\nHost: evil:443\r\n\r\n")
        assert (await line.answer()).status == 404


async def test_nodelay_is_on():
    import socket

    async with gateway() as g, dial(g.port) as line:
        await line.ask(get("/healthz"))
        connection = next(iter(g.servers.edge.connections))
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_more_connections_than_half_the_descriptors_are_told_so(monkeypatch):
    monkeypatch.setattr("gateway.server.serve._most_connections", lambda: 2)
    async with gateway() as g, dial(g.port) as one, dial(g.port) as two:
        await one.ask(get("/healthz"))
        await two.ask(get("/healthz"))
        async with dial(g.port) as three:
            answer = await three.answer()
            assert (answer.status, answer.error["code"]) == (503, "overloaded")
            assert await three.eof(3) == b""


async def test_a_taken_port_says_what_to_do():
    async with gateway() as g:
        from gateway.clock import SystemClock

        taken = ServerSettings(port=g.port, admin_port=0)
        servers = Servers(Gateway(keyed=False).current, taken, SystemClock(), admin_key=Secret("a"))
        with pytest.raises(PortTaken, match=f"127.0.0.1:{g.port} is in use"):
            async with servers:
                pass
        free = Servers(
            Gateway(keyed=False).current,
            taken,
            SystemClock(),
            admin_key=Secret("a"),
            next_free=True,
        )
        async with free:
            assert g.port < free.api_port <= g.port + 20
            assert (await ask(free.api_port, get("/healthz"))).status == 200
