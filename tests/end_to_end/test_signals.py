"""What operators do to a gateway under load: stop it, hurry it, change its file, fill its disk."""

import asyncio
import json
import random
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from chaos import faults
from chaos.answers import Manner
from tests.end_to_end.books import audit
from tests.end_to_end.load import Ask, Load
from tests.end_to_end.place import PRICES, Place
from tests.support.processes import Gateway

EXTRA = "  extra: [second/sim]\n"  # one more chain
BAD = "  extra: [third/sim]\n"


def mix(name: str, caller: int, rng: random.Random) -> Ask:
    stream = caller % 2 == 1
    return Ask(name, "smart", "Tell me of the light. " * rng.randint(1, 5), stream, stream)


@pytest.fixture
def load(place: Place) -> Load:
    place.simulator.manner("first", Manner(tokens=20, ttft=0.002, gap=0.003))
    return Load(12, mix, random.Random(1))


async def until(true: Callable[[], object], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


def good(load: Load) -> int:
    return sum(one.good for one in load.heard)


def events(gateway: Gateway, name: str) -> list[dict[str, Any]]:
    """The lines of its log that tell of `name`."""
    lines = [line for line in gateway.log.splitlines() if line.startswith('{"ts"')]
    return [told for line in lines if (told := json.loads(line))["event"] == name]


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    return True


async def ask(port: int, model: str) -> int:
    """The status of one answer."""
    one = Load(1, lambda name, *_: Ask(f"{model}-{name}", model, "Hello.", stream=False),
               random.Random(0))  # fmt: skip
    async with one.on(port):
        await until(lambda: one.heard and one.heard[0].ended)
    return one.heard[0].status


async def test_sigterm_under_load_loses_nothing(place: Place, load: Load) -> None:
    place.write(server="lame_duck: 150ms, drain: 20s")
    gateway = place.start()
    async with load.on(await gateway.up()):
        await until(lambda: good(load) > 50)
        signalled = time.monotonic()
        gateway.signal(signal.SIGTERM)
    assert await gateway.ended() == 0
    for one in load.heard:
        assert one.good or (one.began > signalled and not one.whole), one
    found = audit(place.books(), place.simulator.calls(), load.heard, PRICES)
    assert found.lost == 0
    assert found.rows == found.exact == good(load)
    assert not [name for name in place.books().files if "journal" in name]
    assert [told["event"] for told in events(gateway, "drain")] == ["drain"]
    assert [told["event"] for told in events(gateway, "stop")] == ["stop"]
    assert len(events(gateway, "request")) == good(load)


async def test_a_second_sigterm_does_not_wait_for_what_has_no_end(place: Place) -> None:
    place.simulator.set("long", faults.stall(after=5))
    load = Load(4, lambda name, *_: Ask(name, "long", "Go on.", stream=True), random.Random(1))
    gateway = place.start("--quiet")
    port = await gateway.up()
    async with load.on(port):
        await until(lambda: place.simulator.invoice("long").completion_tokens == 20)
        gateway.signal(signal.SIGTERM)
        while await listens(port):
            await asyncio.sleep(0.002)
        assert not place.nursery.over(gateway)
        hurried = time.monotonic()
        gateway.signal(signal.SIGTERM)
        assert await gateway.ended() == 0
        assert time.monotonic() - hurried < 5.0
    assert [one.fate for one in load.heard if one.whole] == ["draining"] * 4
    untold = frozenset({"stall"})
    found = audit(place.books(), place.simulator.calls(), load.heard, PRICES, untold)
    assert found.untold == 4
    assert found.lost == 0


async def test_sighup_under_load_swaps_or_changes_nothing_and_says_why(
    place: Place, load: Load
) -> None:
    gateway = place.start()
    port = await gateway.up()
    extra = Load(
        1, lambda name, *_: Ask(f"extra-{name}", "extra", "Hello.", False), random.Random(2)
    )
    said: list[dict[str, Any]] = []
    async with load.on(port):
        for turn, (more, status) in enumerate(
            [(EXTRA, 200), (BAD, 200), ("", 404), (BAD, 404)] * 2
        ):
            answers = good(load)
            place.write(more)
            gateway.signal(signal.SIGHUP)
            await until(lambda: len(events(gateway, "config")) > turn)
            async with extra.on(port):
                known = len(extra.heard)
                await until(lambda: len(extra.heard) > known)
            assert {one.status for one in extra.heard[known:]} == {status}, more
            await until(lambda: good(load) > answers)
    said = events(gateway, "config")
    gateway.signal(signal.SIGTERM)
    assert await gateway.ended() == 0
    assert all(one.good for one in load.heard)
    audit(place.books(), place.simulator.calls(), [*load.heard, *extra.heard], PRICES)
    problems = [told["problem"] for told in said]
    assert [bool(problem) for problem in problems] == [False, True] * 4
    assert f"{place.file}:14:11" in problems[1]
    assert "third" in problems[1]
    hashes = [told["config"] for told in said]
    assert hashes[0] == hashes[1] != hashes[2] == hashes[3]


async def test_a_changed_file_is_picked_up(place: Place) -> None:
    gateway = place.start("--quiet")
    port = await gateway.up()
    assert await ask(port, "extra") == 404
    place.write(EXTRA)
    async with asyncio.timeout(10):
        while await ask(port, "extra") != 200:
            await asyncio.sleep(0.05)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux can fill a disk for us")
async def test_a_disk_that_fills_refuses_before_anything_is_sent_and_loses_nothing(
    place: Place, load: Load
) -> None:
    gateway = place.start("--quiet")
    port = await gateway.up()
    async with load.on(port):
        await until(lambda: good(load) > 20)
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        await until(lambda: [one for one in load.heard if one.status == 503])
        calls = len(place.simulator.calls())
        many = len(load.heard) + 40
        await until(lambda: len(load.heard) > many)
        assert len(place.simulator.calls()) == calls
        free = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, free)
        answers = good(load)
        await until(lambda: good(load) > answers + 20)
    gateway.signal(signal.SIGTERM)
    assert await gateway.ended() == 0
    assert {one.fate for one in load.heard if not one.good} == {"store_unavailable"}
    served = [one for one in load.heard if one.good]
    found = audit(place.books(), place.simulator.calls(), served, PRICES)
    assert found.rows == found.exact == len(served)
