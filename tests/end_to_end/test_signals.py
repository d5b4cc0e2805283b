"""What operators do to a gateway under load: stop it, hurry it, change its file, fill its disk."""

import asyncio
import functools
import itertools
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
from tests.end_to_end.load import Ask, Heard, Load
from tests.end_to_end.place import PRICES, Place
from tests.support.processes import Gateway

EXTRA = "  extra: [second/sim]\n"  # one more chain
_names = itertools.count()


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


async def ask(port: int, model: str) -> Heard:
    """One answer."""
    name = f"{model}-{next(_names)}"
    load = Load(1, lambda *_: Ask(name, model, "Hello.", stream=False), random.Random(0), once=True)
    async with load.on(port):
        pass
    return load.heard[0]


async def becomes(port: int, model: str, status: int) -> None:
    async with asyncio.timeout(10):
        while (await ask(port, model)).status != status:
            await asyncio.sleep(0.01)


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

    async def reloaded(more: str) -> None:
        answers = good(load)
        place.write(more)
        gateway.signal(signal.SIGHUP)
        await until(lambda: good(load) > answers)

    def told(line: int) -> list[str]:
        problems = [one["problem"] for one in events(gateway, "config")]
        return [one for one in problems if one.startswith(f"{place.file}:{line}:11  chains.extra")]

    line = 14  # of the last chain
    async with load.on(port):
        for status in (200, 404) * 4:
            await reloaded(EXTRA if status == 200 else "")
            await becomes(port, "extra", status)
            line += 1
            await reloaded("\n" * (line - 14) + "  extra: [third/sim]\n")
            await until(functools.partial(told, line))
            assert (await ask(port, "extra")).status == status
    gateway.signal(signal.SIGTERM)
    assert await gateway.ended() == 0
    assert all(one.good for one in load.heard)
    assert "no such provider; there are: first, second, long" in told(line)[0]
    assert len({one["config"] for one in events(gateway, "config")}) == 2  # with the chain, without


async def test_a_changed_file_is_picked_up(place: Place) -> None:
    gateway = place.start("--quiet")
    port = await gateway.up()
    assert (await ask(port, "extra")).status == 404
    place.write(EXTRA)
    await becomes(port, "extra", 200)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux can fill a disk for us")
async def test_a_disk_that_fills_refuses_before_anything_is_sent_and_loses_nothing(
    place: Place, load: Load
) -> None:
    gateway = place.start("--quiet")
    port = await gateway.up()
    async with load.on(port):
        await until(lambda: good(load) > 20)
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        # What is allocated is used up to the last line that fits; then nothing is sent.
        await until(lambda: len([one for one in load.heard if one.status == 503]) > 40)
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
