"""The supervisor and workers that serve nobody; with gateways: tests/end_to_end/test_workers.py."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gateway.server.workers import MOST_PAUSE, PAUSE, pause_after

SUPERVISED = """
import asyncio, os, sys
from gateway.clock import SystemClock
from gateway.core.snapshot import ServerSettings
from gateway.server.workers import Supervisor

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

async def work(crew, how):
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def obey(order):
        say("order", crew.number, order or "orphaned")
        if order != "reload" and how != "deaf":
            over.set()

    crew.follow(obey)
    crew.tell("up", pid=os.getpid())
    while not over.is_set():
        if how != "mute" or crew.number == 1 or crew.restarts:
            crew.tell("alive")
        await asyncio.sleep(0.05)

folder, how = sys.argv[1:]
settings = ServerSettings(port=0, admin_port=0, state_dir=folder, lame_duck=0.0, drain=0.0)
supervisor = Supervisor(
    3, settings, SystemClock(), lambda: None,
    lambda up: say("up", *(told["pid"] for told in up.workers)),
    lambda line: say("told", line), hung=0.5 if how == "mute" else 30.0,
)
crew = supervisor.run()
if isinstance(crew, int):
    sys.exit(crew)
say("started", crew.number, crew.restarts)
if how == "stillborn":
    sys.exit(6)
asyncio.run(work(crew, how))
"""


@given(st.integers(0, 1000), st.floats(*PAUSE))
def test_a_place_is_taken_again_soon_and_ever_later_the_oftener_it_falls_empty(
    trips: int, drawn: float
) -> None:
    pause = pause_after(trips, drawn)
    assert PAUSE[0] <= pause <= MOST_PAUSE
    if trips <= 1:
        assert pause == drawn
    assert pause_after(trips + 1, drawn) in {MOST_PAUSE, pause * 2, drawn}


class Supervised:
    """What the supervisor and its workers say, line by line."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def said(self, beginning: str) -> str:
        """The rest of the next line that begins so."""
        assert self.process.stdout is not None
        async with asyncio.timeout(10):
            while line := (await self.process.stdout.readline()).decode():
                if line.startswith(beginning):
                    return line.removeprefix(beginning).strip()
        raise AssertionError(f"it never said {beginning!r}")

    async def up(self) -> list[int]:
        return [int(pid) for pid in (await self.said("up ")).split()]

    async def rest(self) -> list[str]:
        """Until the last of them has ended."""
        assert self.process.stdout is not None
        async with asyncio.timeout(10):
            return (await self.process.stdout.read()).decode().splitlines()


@asynccontextmanager
async def supervised(folder: Path, how: str = "well") -> AsyncIterator[Supervised]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SUPERVISED, str(folder), how, stdout=PIPE
    )
    try:
        yield Supervised(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_orders_reach_all_and_all_of_them_end_well(tmp_path: Path) -> None:
    async with supervised(tmp_path) as running:
        assert len(await running.up()) == 3
        running.process.send_signal(signal.SIGHUP)
        for _ in range(3):
            await running.said("order ")
        running.process.send_signal(signal.SIGINT)
        assert sorted(await running.rest()) == [f"order {number} drain" for number in (1, 2, 3)]
        assert await running.process.wait() == 0
    assert not list(tmp_path.iterdir())


async def test_without_a_supervisor_everybody_is_told(tmp_path: Path) -> None:
    async with supervised(tmp_path) as running:
        await running.up()
        running.process.kill()
        assert sorted(await running.rest()) == [f"order {n} orphaned" for n in (1, 2, 3)]


async def test_a_worker_that_hangs_is_killed_and_replaced(tmp_path: Path) -> None:
    async with supervised(tmp_path, "mute") as running:
        _, pid, _ = await running.up()
        hangs = await running.said(f"told worker 2 (pid {pid}) ")
        assert hangs == "hangs: no word for 0.5 s; killed."
        assert await running.said("started 2 ") == "1"


async def test_a_worker_that_is_killed_in_the_drain_is_no_good_end(tmp_path: Path) -> None:
    async with supervised(tmp_path, "deaf") as running:
        pids = await running.up()
        running.process.terminate()
        for _ in pids:
            await running.said("order ")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert await running.process.wait() == 1


async def test_what_keeps_the_first_from_starting_is_met_once(tmp_path: Path) -> None:
    async with supervised(tmp_path, "stillborn") as running:
        assert await running.rest() == ["started 1 0"]
        assert await running.process.wait() == 6
    assert not list(tmp_path.iterdir())
