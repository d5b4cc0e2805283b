"""The transport against servers on loopback that behave as badly as real ones."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from gateway.clock import Deadline, SystemClock
from gateway.core.ports import UpstreamRequest
from gateway.core.target import Cause, Failed, Timeouts
from gateway.transport.http import HttpTransport, _Sending
from tests.unit.transport.raw import OK, STREAM, Line, Upstream, chunk, pieces, upstream, whole

FAST = Timeouts(connect=0.5, first_token=0.1, answer=0.1, idle=0.1)
CLOCK = SystemClock()


@pytest.fixture
async def transport() -> AsyncIterator[HttpTransport]:
    made = HttpTransport(CLOCK)
    yield made
    await made.close()
    await asyncio.sleep(0)


def ask(where: Upstream | str, *, stream: bool = False, body: bytes = b"{}") -> UpstreamRequest:
    url = where if isinstance(where, str) else where.url
    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    return UpstreamRequest("POST", url, headers, body, stream, allow_private=True)


def send(
    transport: HttpTransport,
    request: UpstreamRequest,
    *,
    seconds: float = 2.0,
    deadline: float = 5.0,
    timeouts: Timeouts = FAST,
) -> _Sending:
    return transport.send(request, timeouts, seconds, Deadline(CLOCK.monotonic() + deadline))


@contextlib.contextmanager
def fails(cause: Cause) -> "contextlib.AbstractContextManager[None]":  # type: ignore[misc]
    with pytest.raises(Failed) as caught:
        yield
    failure = caught.value.failure
    assert failure.cause is cause, failure
    assert "127.0.0.1" not in failure.message
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert caught.value.__cause__ is None


async def test_a_whole_answer_comes_back_and_its_connection_is_kept(
    transport: HttpTransport,
) -> None:
    async def script(line: Line) -> None:
        while True:
            await line.hear()
            await line.say(whole(b'{"a":1}'))

    async with upstream(script) as here:
        for _ in range(3):
            async with send(transport, ask(here)) as reply:
                assert reply.status == 200
                assert reply.headers["content-type"] == "application/json"
                assert await reply.read(1000) == b'{"a":1}'
        assert len(here.lines) == 1
        head = here.lines[0].heads[0]
        assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
        assert b"gzip" not in head


async def test_a_stream_comes_as_it_is_read(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(STREAM)
        for n in range(3):
            await line.say(chunk(b"data: %d\n\n" % n))
            await asyncio.sleep(0.01)
        await line.say(chunk(b"")[:-2] + b"\r\n")
        await line.gone()

    async with upstream(script) as here:
        got = []
        async with send(transport, ask(here, stream=True)) as reply:
            async for data in pieces(reply):
                reply.progressed()
                got.append(data)
        assert b"".join(got) == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
        assert len(got) >= 2


async def test_a_large_body_goes_out_whole(transport: HttpTransport) -> None:
    body = b"x" * (3 * 1024 * 1024)

    async def script(line: Line) -> None:
        await line.hear()
        await line.say(whole(b"{}"))

    async with upstream(script) as here:
        async with send(transport, ask(here, body=body)) as reply:
            assert await reply.read(10) == b"{}"
        assert here.lines[0].body == body


@pytest.mark.parametrize(("stream", "cause"), [(True, Cause.FIRST_TOKEN), (False, Cause.TIMEOUT)])
@pytest.mark.parametrize("say", [b"", STREAM, STREAM + chunk(b": ping\n\n")])
async def test_silence_before_content_ends_in_time(
    transport: HttpTransport, stream: bool, cause: Cause, say: bytes
) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(say)
        await line.gone()

    async with upstream(script) as here:
        started = time.monotonic()
        with fails(cause):
            async with send(transport, ask(here, stream=stream), seconds=0.1) as reply:
                async for _ in pieces(reply):
                    pass
        assert time.monotonic() - started < 0.5


async def test_comments_for_ever_are_silence(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(STREAM + chunk(b"data: content\n\n"))
        while True:
            await line.say(chunk(b": ping\n\n"))
            await asyncio.sleep(0.005)

    async with upstream(script) as here:
        started = time.monotonic()
        with fails(Cause.STALLED):
            async with send(transport, ask(here, stream=True)) as reply:
                async for data in pieces(reply):
                    if b"content" in data:
                        reply.progressed()
        assert 0.08 < time.monotonic() - started < 0.5


async def test_comments_before_content_do_not_stop_the_clock(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(STREAM)
        while True:
            await line.say(chunk(b": ping\n\n"))
            await asyncio.sleep(0.005)

    async with upstream(script) as here:
        with fails(Cause.FIRST_TOKEN):
            async with send(transport, ask(here, stream=True), seconds=0.1) as reply:
                async for _ in pieces(reply):
                    pass


async def test_a_slow_drip_of_content_is_no_silence(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(STREAM)
        for _ in range(8):
            await line.say(chunk(b"data: x\n\n"))
            await asyncio.sleep(0.04)
        await line.say(b"0\r\n\r\n")
        await line.gone()

    async with upstream(script) as here:
        count = 0
        async with send(transport, ask(here, stream=True), seconds=0.1) as reply:
            async for data in pieces(reply):
                reply.progressed()
                count += data.count(b"data")
        assert count == 8


async def test_a_slow_whole_answer_has_an_end(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(OK + b"content-length: 100\r\n\r\n")
        while True:
            await line.say(b" ")
            await asyncio.sleep(0.02)

    async with upstream(script) as here:
        with fails(Cause.TIMEOUT):
            async with send(transport, ask(here), seconds=0.15) as reply:
                await reply.read(1000)


async def test_a_road_that_writes_does_not_trip_idle(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(STREAM + chunk(b"data: 1\n\n"))
        await asyncio.sleep(0.25)
        await line.say(chunk(b"data: 2\n\n") + b"0\r\n\r\n")
        await line.gone()

    async with upstream(script) as here:
        got = b""
        async with send(transport, ask(here, stream=True)) as reply:
            async for data in pieces(reply):
                got += data
                reply.progressed()
                await asyncio.sleep(0.3)  # a caller that does not read: idle is 0.1
        assert got == b"data: 1\n\ndata: 2\n\n"


async def test_the_deadline_cuts_even_a_road_that_writes(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(STREAM + chunk(b"data: 1\n\n"))
        await line.gone()

    async with upstream(script) as here:
        with fails(Cause.STALLED):
            async with send(transport, ask(here, stream=True), deadline=0.1) as reply:
                async for _ in pieces(reply):
                    reply.progressed()
                    await asyncio.sleep(5)


async def test_the_deadline_cuts_before_content(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.gone()

    async with upstream(script) as here:
        with fails(Cause.FIRST_TOKEN):
            async with send(transport, ask(here, stream=True), seconds=5, deadline=0.1):
                pass


async def test_the_end_has_its_own_clock(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(STREAM + chunk(b"data: the finish\n\n"))
        while True:
            await line.say(chunk(b": ping\n\n"))
            await asyncio.sleep(0.005)

    async with upstream(script) as here:
        started = time.monotonic()
        slow = Timeouts(idle=5.0)
        with fails(Cause.STALLED):
            async with send(transport, ask(here, stream=True), timeouts=slow) as reply:
                async for data in pieces(reply):
                    if b"finish" in data:
                        reply.progressed()
                        reply.ending(0.05)
        assert time.monotonic() - started < 0.5


@pytest.mark.parametrize("stream", [True, False])
async def test_a_reset_before_the_head_is_connect(transport: HttpTransport, stream: bool) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        line.reset()

    async with upstream(script) as here:
        with fails(Cause.CONNECT):
            async with send(transport, ask(here, stream=stream)):
                pass
        assert len(here.lines) == 1  # a fresh connection is not replaced


async def test_a_close_before_the_head_is_connect(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()

    async with upstream(script) as here:
        with fails(Cause.CONNECT):
            async with send(transport, ask(here)):
                pass


async def test_nobody_there_is_connect(transport: HttpTransport) -> None:
    with fails(Cause.CONNECT):
        async with send(transport, ask("http://127.0.0.1:9/v1")):
            pass


async def test_no_such_name_is_connect(transport: HttpTransport) -> None:
    with fails(Cause.CONNECT):
        async with send(transport, ask("http://nowhere.invalid/v1"), seconds=5.0):
            pass


async def test_no_tls_is_connect(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with upstream(script) as here:
        with fails(Cause.CONNECT):
            async with send(transport, ask(here.url.replace("http:", "https:"))):
                pass


@pytest.mark.parametrize(
    "junk",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
    ],
)
async def test_junk_is_malformed(transport: HttpTransport, junk: bytes) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(junk)
        await line.gone()

    async with upstream(script) as here:
        with fails(Cause.MALFORMED):
            async with send(transport, ask(here)):
                pass


async def test_a_dead_pooled_connection_is_replaced_unseen(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(whole(b"{}"))
        await line.hear()
        if len(here.lines) < 3:
            line.reset()  # dies as soon as it is used again

    async with upstream(script) as here:
        for _ in range(2):
            async with send(transport, ask(here)) as reply:
                assert await reply.read(100) == b"{}"
        assert len(here.lines) == 2


async def test_a_closed_pooled_connection_is_replaced_unseen(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(whole(b"{}"))
        await line.hear()  # and closes

    async with upstream(script) as here:
        for _ in range(2):
            async with send(transport, ask(here)) as reply:
                assert await reply.read(100) == b"{}"
        assert len(here.lines) == 2


async def test_all_pooled_connections_dead_costs_one_replacement(transport: HttpTransport) -> None:
    ready = asyncio.Event()

    async def script(line: Line) -> None:
        await line.hear()
        await ready.wait()
        await line.say(whole(b"{}"))
        await line.hear()

    async def one() -> None:
        async with send(transport, ask(here)) as reply:
            assert await reply.read(100) == b"{}"

    async with upstream(script) as here:
        first = [asyncio.ensure_future(one()) for _ in range(4)]
        await asyncio.sleep(0.05)
        ready.set()
        await asyncio.gather(*first)
        assert len(here.lines) == 4
        await one()
        assert len(here.lines) == 5


async def test_half_a_head_on_a_pooled_connection_is_not_asked_again(
    transport: HttpTransport,
) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(whole(b"{}"))
        await line.hear()
        await line.say(b"HTTP/1.1 200 OK\r\ncontent-")
        await asyncio.sleep(0.02)

    async with upstream(script) as here:
        async with send(transport, ask(here)) as reply:
            await reply.read(100)
        with fails(Cause.CONNECT):
            async with send(transport, ask(here)):
                pass
        assert len(here.lines) == 1


async def test_a_wrong_length_is_malformed(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(OK + b"content-length: 100\r\n\r\n{}")

    async with upstream(script) as here:
        with fails(Cause.MALFORMED):
            async with send(transport, ask(here)) as reply:
                await reply.read(1000)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reset", [True, False])
async def test_a_cut_body_is_cut_stream(
    transport: HttpTransport, stream: bool, reset: bool
) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(STREAM + chunk(b"data: 1\n\n"))
        await asyncio.sleep(0.02)
        if reset:
            line.reset()

    async with upstream(script) as here:
        with fails(Cause.CUT_STREAM):
            async with send(transport, ask(here, stream=stream)) as reply:
                async for _ in pieces(reply):
                    pass


async def test_a_body_above_the_limit_is_malformed(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        if here.lines.index(line):
            await line.say(STREAM)
            while True:
                await line.say(chunk(b"x" * 1000))
        else:
            await line.say(OK + b"content-length: 99999\r\n\r\n")
        await line.gone()

    async with upstream(script) as here:
        for _ in range(2):
            with fails(Cause.MALFORMED):
                async with send(transport, ask(here)) as reply:
                    await reply.read(5000)


async def test_compression_nobody_asked_for_is_malformed(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(OK + b"content-encoding: gzip\r\ncontent-length: 4\r\n\r\nabcd")
        await line.gone()

    async with upstream(script) as here:
        with fails(Cause.MALFORMED):
            async with send(transport, ask(here)):
                pass


async def test_a_redirect_is_an_ordinary_reply(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(
            b"HTTP/1.1 307 X\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n"
        )
        await line.gone()

    async with upstream(script) as here:
        async with send(transport, ask(here)) as reply:
            assert reply.status == 307
            assert await reply.read(10) == b""
        assert len(here.lines) == 1


async def test_a_caller_that_leaves_cuts_the_upstream_at_once(transport: HttpTransport) -> None:
    gone = asyncio.Event()

    async def script(line: Line) -> None:
        await line.hear()
        await line.say(STREAM + chunk(b"data: 1\n\n"))
        await line.gone()
        gone.set()

    async def road() -> None:
        async with send(transport, ask(here, stream=True)) as reply:
            async for _ in pieces(reply):
                reply.progressed()
                reading.set()

    reading = asyncio.Event()
    async with upstream(script) as here:
        task = asyncio.ensure_future(road())
        await reading.wait()
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        started = time.monotonic()
        await asyncio.wait_for(gone.wait(), 1)
        assert time.monotonic() - started < 0.05


async def test_a_caller_that_leaves_before_the_head_cuts_the_upstream(
    transport: HttpTransport,
) -> None:
    gone = asyncio.Event()

    async def script(line: Line) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await line.deaf(0.1)
            await line.hear()
        gone.set()

    async def road() -> None:
        async with send(transport, ask(here, body=b"x" * 16_000_000)):
            pass

    async with upstream(script) as here:
        task = asyncio.ensure_future(road())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 1)
        assert here.lines[0].heads == [] or here.lines[0].body == b""


async def test_leaving_early_does_not_reuse_the_connection(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(STREAM + chunk(b"data: 1\n\n"))
        await line.gone()

    async with upstream(script) as here:
        for _ in range(2):
            async with send(transport, ask(here, stream=True)) as reply:
                async for _ in pieces(reply):
                    break
        assert len(here.lines) == 2


async def test_the_callers_cancellation_is_no_failure_of_the_upstream(
    transport: HttpTransport,
) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.gone()

    async def road() -> None:
        async with send(transport, ask(here, stream=True)):
            pass

    async with upstream(script) as here:
        task = asyncio.ensure_future(road())
        await asyncio.sleep(0.03)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()


async def test_a_road_with_a_timeout_of_its_own_keeps_it(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.gone()

    async with upstream(script) as here:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), send(transport, ask(here, stream=True)):
                pass
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


async def test_many_at_once_do_not_mix(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        while True:
            await line.hear()
            body = line.body
            await asyncio.sleep(0.001 * (len(body) % 5))
            await line.say(whole(body))

    async def one(n: int) -> None:
        body = b"%d" % n * (n % 7 + 1)
        for _ in range(3):
            async with send(transport, ask(here, body=body)) as reply:
                assert await reply.read(1000) == body

    async with upstream(script) as here:
        await asyncio.gather(*(one(n) for n in range(50)))


async def test_private_addresses_are_refused_when_dialled(transport: HttpTransport) -> None:
    for url in (
        "http://127.0.0.1:1/",
        "http://localhost:1/",
        "http://[::1]:1/",
        "http://[::ffff:127.0.0.1]:1/",
        "http://169.254.169.254/latest",
        "http://10.0.0.1/",
        "http://2130706433/",
        "http://127.1/",
        "http://0.0.0.0:1/",
    ):
        request = UpstreamRequest("POST", url, {}, b"{}", False)
        with fails(Cause.CONNECT):
            async with send(transport, request):
                pass


async def test_a_pooled_private_connection_is_not_lent_to_a_public_target(
    transport: HttpTransport,
) -> None:
    async def script(line: Line) -> None:
        while True:
            await line.hear()
            await line.say(whole(b"{}"))

    async with upstream(script) as here:
        async with send(transport, ask(here)) as reply:
            await reply.read(10)
        with fails(Cause.CONNECT):
            async with send(transport, UpstreamRequest("POST", here.url, {}, b"{}", False)):
                pass


async def test_what_has_ended_is_not_interrupted_later(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(whole(b"{}"))
        await line.gone()

    async with upstream(script) as here:
        async with send(transport, ask(here), timeouts=Timeouts(connect=0.05), seconds=0.08) as r:
            await r.read(10)
        await asyncio.sleep(0.15)  # a timer left behind would cancel this


async def test_a_closed_transport_says_so() -> None:
    made = HttpTransport(CLOCK)
    await made.close()
    with fails(Cause.CONNECT):
        async with send(made, ask("http://127.0.0.1:1/")):
            pass


async def test_a_connection_given_back_is_not_cut_by_who_had_it(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        while True:
            await line.hear()
            await line.say(whole(b'{"a":1}'))
            await line.hear()
            await asyncio.sleep(0.05)
            await line.say(whole(b"{}"))

    async with upstream(script) as here:
        first = send(transport, ask(here))
        reply = await first.__aenter__()
        assert await reply.read(100) == b'{"a":1}'
        second = asyncio.ensure_future(send(transport, ask(here)).__aenter__())
        await asyncio.sleep(0.02)  # the same connection, lent again
        await first.__aexit__(None, None, None)
        assert await (await second).read(100) == b"{}"
        assert len(here.lines) == 1


async def test_an_answer_before_the_body_was_sent_spoils_the_connection(
    transport: HttpTransport,
) -> None:
    async def script(line: Line) -> None:
        await line.say(b"HTTP/1.1 413 X\r\ncontent-length: 2\r\n\r\n{}")
        await line.deaf(0.2)

    async with upstream(script) as here:
        for _ in range(2):
            async with send(transport, ask(here, body=b"x" * 16_000_000)) as reply:
                assert reply.status == 413
                assert await reply.read(10) == b"{}"
        assert len(here.lines) == 2


async def test_an_early_hint_is_not_the_answer(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + whole(b"{}"))
        await line.gone()

    async with upstream(script) as here, send(transport, ask(here)) as reply:
        assert reply.status == 200
        assert await reply.read(10) == b"{}"


async def test_a_get_has_no_body(transport: HttpTransport) -> None:
    async def script(line: Line) -> None:
        reader = line._reader
        line.heads.append(await reader.readuntil(b"\r\n\r\n"))
        await line.say(whole(b"{}"))
        await line.gone()

    async with upstream(script) as here:
        request = UpstreamRequest("GET", here.url, {}, b"", False, allow_private=True)
        async with send(transport, request) as reply:
            assert await reply.read(10) == b"{}"
        assert b"content-length" not in here.lines[0].heads[0]
        assert b"host: 127.0.0.1:%d\r\n" % here.port in here.lines[0].heads[0]


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\r"])
async def test_a_line_break_in_a_header_does_not_leave(
    transport: HttpTransport, value: str
) -> None:
    request = UpstreamRequest("POST", "http://127.0.0.1:1/", {"x": value}, b"{}", False, True)
    with fails(Cause.CONNECT):
        async with send(transport, request):
            pass


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://x/", "http://"])
async def test_a_url_that_is_none_is_connect(transport: HttpTransport, url: str) -> None:
    with fails(Cause.CONNECT):
        async with send(transport, UpstreamRequest("POST", url, {}, b"{}", False, True)):
            pass
