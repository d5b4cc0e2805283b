"""What comes over a connection: usual answers are cut out, odd ones mean the same."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.clock import Deadline, SystemClock
from gateway.core.ports import UpstreamRequest
from gateway.core.target import Cause, Failed, Timeouts
from gateway.transport.http import HttpTransport
from tests.unit.transport.raw import OK, STREAM, Line, chunk, pieces, upstream, whole

CLOCK = SystemClock()
TIMES = Timeouts(connect=0.5, first_token=0.5, answer=0.5, idle=0.5)


@pytest.fixture
async def transport() -> AsyncIterator[HttpTransport]:
    made = HttpTransport(CLOCK)
    yield made
    await made.close()


async def got(transport: HttpTransport, url: str, limit: int = 10_000_000) -> bytes:
    request = UpstreamRequest("POST", url, {}, b"{}", False, allow_private=True)
    async with transport.send(request, TIMES, 2.0, Deadline(CLOCK.monotonic() + 5)) as reply:
        assert reply.headers.get("content-type") in {"application/json", "text/event-stream"}
        return await reply.read(limit)


async def answered(transport: HttpTransport, *pieces: bytes) -> tuple[list[bytes], int]:
    """The bodies of two answers said in these pieces, and how many connections it took."""

    async def script(line: Line) -> None:
        while True:
            await line.hear()
            for piece in pieces:
                await line.say(piece)
                await asyncio.sleep(0.01)

    async with upstream(script) as here:
        return [await got(transport, here.url) for _ in range(2)], len(here.lines)


LAST = b"0\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        (OK + b"content-length: 4\r\n\r\n", b"abcd"),
        (OK + b"content-length: 4\r\n\r\nab", b"cd"),
        (OK[:30], OK[30:] + b"content-length: 4\r\n\r\nabcd"),
        (OK + b"Content-Length:4\r\nConnection: Keep-Alive\r\n\r\nabcd",),
        (STREAM + chunk(b"ab") + chunk(b"cd") + LAST,),
        (STREAM, chunk(b"ab"), chunk(b"cd"), LAST),
        (STREAM + b"2", b"\r\nab\r", b"\n2\r\ncd\r\n0\r", b"\n\r\n"),
        (STREAM + chunk(b"ab"), b"2;x=y\r\ncd\r\n", LAST),
        (STREAM + chunk(b"ab"), b"0002\r\ncd\r\n0\r\nx-trailer: 1\r\n\r\n"),
        (STREAM + chunk(b"ab") + b"2\r\nc", b"d\r\n" + LAST),
    ],
)
async def test_cut_anywhere_it_is_the_same_answer(
    transport: HttpTransport, pieces: tuple[bytes, ...]
) -> None:
    assert await answered(transport, *pieces) == ([b"abcd", b"abcd"], 1)


async def test_an_empty_answer_is_one(transport: HttpTransport) -> None:
    assert await answered(transport, whole(b"")) == ([b"", b""], 1)


@pytest.mark.parametrize(
    "piece",
    [
        OK + b"connection: close\r\ncontent-length: 4\r\n\r\nabcd",
        whole(b"abcd") + b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad",
        STREAM + chunk(b"abcd") + LAST + b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad",
    ],
)
async def test_such_a_connection_is_not_used_again(transport: HttpTransport, piece: bytes) -> None:
    assert await answered(transport, piece) == ([b"abcd", b"abcd"], 2)


async def test_what_nobody_asked_for_is_not_the_next_answer(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(whole(b"abcd"))
        await asyncio.sleep(0.02)
        await line.say(whole(b"bad"))
        await line.gone()

    async with upstream(script) as here:
        for _ in range(2):
            assert await got(transport, here.url) == b"abcd"
            await asyncio.sleep(0.05)
        assert len(here.lines) == 2


@pytest.mark.parametrize("odd", [b"", b";odd"])
async def test_a_slow_reader_holds_the_upstream_up(transport: HttpTransport, odd: bytes) -> None:
    piece = b"x" * 60_000
    sent = 0

    async def script(line: Line) -> None:
        nonlocal sent
        await line.hear()
        await line.say(STREAM)
        for _ in range(500):
            await line.say(b"%x%b\r\n%b\r\n" % (len(piece), odd, piece))
            sent += len(piece)
        await line.say(LAST)
        await line.gone()

    async with upstream(script) as here:
        request = UpstreamRequest("POST", here.url, {}, b"{}", True, allow_private=True)
        size = 0
        async with transport.send(request, TIMES, 9, Deadline(CLOCK.monotonic() + 9)) as reply:
            await asyncio.sleep(0.3)
            assert sent < 20_000_000
            async for data in pieces(reply):
                reply.progressed()
                size += len(data)
        assert size == 30_000_000


@pytest.mark.parametrize(
    "broken", [b"zz\r\nab\r\n", b"-2\r\nab\r\n", b"0x2\r\nab\r\n", b"2\r\nabcd", b"\r\nab\r\n"]
)
async def test_a_broken_chunk_is_cut_stream(transport: HttpTransport, broken: bytes) -> None:
    with pytest.raises(Failed) as caught:
        await answered(transport, STREAM + chunk(b"ab"), broken)
    assert caught.value.failure.cause is Cause.CUT_STREAM
