"""A worker and its siblings: asked at once, waited for not long, and never trusted to be there."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from gateway.server.crew import ORPHANED, Crew, Said, door, reached

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n" + b'{"a": 1}'


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield reached(tmp_path, fd)
    os.close(fd)


@contextmanager
def crew(folder: Path, count: int = 3) -> Iterator[tuple[Crew, socket.socket]]:
    """Worker 1 of so many, and the supervisor's end of its link."""
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket() as own:
        yield Crew(1, count, 0, 0, (), own, theirs, folder), ours


@asynccontextmanager
async def sibling(folder: Path, number: int, answer: bytes | None) -> AsyncIterator[list[bytes]]:
    """Says this to whoever asks, or with None nothing; what it was asked."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, str(door(folder, number)))
    async with server:
        yield asked


async def test_who_hangs_breaks_off_or_is_gone_is_left_out_in_time(folder: Path) -> None:
    async with (
        sibling(folder, 2, ANSWER) as asked,
        sibling(folder, 3, None),
        sibling(folder, 4, ANSWER[:-3]),
    ):
        with crew(folder, 5) as (mine, _):
            said = await mine.ask("/admin/status", patience=0.05)
    assert said == [Said(2, 200, b'{"a": 1}'), Said(3), Said(4), Said(5)]
    assert [one.told for one in said] == [{"a": 1}, None, None, None]
    assert asked[0].startswith(b"GET /admin/status HTTP/1.1\r\n")


async def test_a_refusal_is_no_answer(folder: Path) -> None:
    async with sibling(folder, 2, ANSWER.replace(b"200", b"404")):
        with crew(folder, 2) as (mine, _):
            (said,) = await mine.ask("/admin/breaker/gpt", b'{"set":"open"}')
    assert (said.status, said.told) == (404, None)


async def test_orders_come_whole_and_the_end_of_the_supervisor_is_one(folder: Path) -> None:
    with crew(folder) as (mine, supervisor):
        heard: list[str] = []
        over = asyncio.Event()

        def obey(order: str) -> None:
            heard.append(order)
            if order == ORPHANED:
                over.set()

        mine.follow(obey)
        for piece in (b"rel", b"oad\ndrain\nhu", b"rry\n"):
            supervisor.send(piece)
            await asyncio.sleep(0)
        mine.tell("up", pid=7)
        assert supervisor.recv(100) == b'{"word":"up","pid":7}\n'
        supervisor.close()
        async with asyncio.timeout(5):
            await over.wait()
        assert heard == ["reload", "drain", "hurry", ORPHANED]
        mine.tell("reloaded")  # nobody hears


def test_what_is_kept_outlives_who_kept_it(folder: Path) -> None:
    with crew(folder) as (mine, _):
        assert mine.kept(1) == b""
        mine.keep(b"[1]")
        mine.keep(b"[2]")
    with crew(folder) as (heir, _):
        assert heir.kept(1) == b"[2]"
        assert heir.kept(2) == b""
