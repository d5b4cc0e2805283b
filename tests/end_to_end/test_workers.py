"""Several workers: one fails and nobody else hears of it; what is asked or ordered is of all."""

import asyncio
import functools
import json
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from chaos import faults
from chaos.answers import Manner
from tests.end_to_end.books import audit
from tests.end_to_end.load import Ask, Load
from tests.end_to_end.place import PRICES, Place
from tests.end_to_end.test_signals import EXTRA, events, good, mix, until
from tests.end_to_end.test_start import over, refused
from tests.support.processes import ADMIN_KEY, Gateway


def three(place: Place, *more: str) -> Gateway:
    return place.start("--workers", "3", *more)


async def operate(gateway: Gateway, path: str, body: Any = None) -> bytes:
    """What the operators' port answers, on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.admin_port)
    sent = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    writer.write(
        f"{method} {path} HTTP/1.1\r\nhost: g\r\nconnection: close\r\ncontent-length: {len(sent)}"
        f"\r\nauthorization: Bearer {ADMIN_KEY}\r\n\r\n".encode()
        + sent
    )
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    head, _, told = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), answer
    return told


async def told(gateway: Gateway, path: str, body: Any = None) -> Any:
    return json.loads(await operate(gateway, path, body))


async def figure(gateway: Gateway, name: str, **labels: str) -> float:
    return of(await operate(gateway, "/metrics"), name, **labels)


def of(exposition: bytes, name: str, **labels: str) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def pids(gateway: Gateway) -> list[int]:
    """Of the workers that answer."""
    workers = (await told(gateway, "/admin/status"))["workers"]
    return [worker["pid"] for worker in workers if worker["status"] != "silent"]


async def so(true: Callable[[], Awaitable[bool]], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not await true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def replaced(gateway: Gateway, dead: int) -> None:
    """Until another worker answers in its place."""

    async def all_there() -> bool:
        found = await pids(gateway)
        return len(found) == 3 and dead not in found

    await so(all_there)


async def ask_often(port: int, times: int, model: str = "smart") -> Load:
    """So many questions, each on a connection of its own: somebody else's turn each time."""
    load = Load(times, lambda name, *_: Ask(name, model, "Hello.", stream=False), random.Random(0))
    load.once = True
    async with load.on(port):
        pass
    return load


@pytest.fixture
def load(place: Place) -> Load:
    place.simulator.manner("first", Manner(tokens=20, ttft=0.002, gap=0.003))
    return Load(24, mix, random.Random(1))


async def test_a_killed_worker_costs_only_what_it_was_answering(place: Place, load: Load) -> None:
    gateway = three(place)
    async with load.on(await gateway.up()):
        await until(lambda: good(load) > 100)
        victim, *others = await pids(gateway)
        os.kill(victim, signal.SIGKILL)
        await replaced(gateway, victim)
        answers = good(load)
        await until(lambda: good(load) > answers + 100)
        assert set(others) < set(await pids(gateway))
    gateway.signal(signal.SIGTERM)
    assert await gateway.ended() == 0
    lost = [one for one in load.heard if not one.good]
    assert {one.fate for one in lost} <= {"broken"}
    assert 0 < len(lost) < load.callers  # two thirds of them were at others
    found = audit(place.books(), place.simulator.calls(), load.heard, PRICES)
    assert found.lost <= len(lost)
    assert f"worker 1 (pid {victim}) ended by SIGKILL" in gateway.log
    assert gateway.log.count("share the API") == 1
    assert len(events(gateway, "request")) > 100  # and no line of the log is torn


async def test_sigterm_cuts_no_stream_of_any_worker_and_leaves_nothing(place: Place) -> None:
    place.simulator.manner("first", Manner(tokens=30, ttft=0.002, gap=0.02))
    streams = Load(18, lambda name, *_: Ask(name, "smart", "Go on.", stream=True), random.Random(1))
    streams.once = True
    gateway = three(place, "--quiet")
    async with streams.on(await gateway.up()):
        await until(lambda: len(place.simulator.calls()) == 18)
        workers = (await told(gateway, "/admin/status"))["workers"]
        assert [worker["in_flight"] > 0 for worker in workers] == [True] * 3
        gateway.signal(signal.SIGTERM)
    assert await gateway.ended() == 0
    assert all(one.good for one in streams.heard)
    found = audit(place.books(), place.simulator.calls(), streams.heard, PRICES)
    assert found.rows == found.exact == 18
    assert place.books().cursors == 0
    assert not [name for name in place.books().files if name.startswith(("journal", "workers"))]


async def test_a_second_sigterm_hurries_them_all(place: Place) -> None:
    place.simulator.set("long", faults.stall(after=5))
    load = Load(6, lambda name, *_: Ask(name, "long", "Go on.", stream=True), random.Random(1))
    load.once = True
    gateway = three(place, "--quiet")
    async with load.on(await gateway.up()):
        await until(lambda: place.simulator.invoice("long").completion_tokens == 30)
        for _ in range(2):
            gateway.signal(signal.SIGTERM)
            await asyncio.sleep(0.05)
        assert await gateway.ended() == 0
    assert [one.fate for one in load.heard] == ["draining"] * 6


async def test_a_drain_ordered_of_one_is_of_all(place: Place) -> None:
    gateway = three(place, "--quiet")
    await gateway.up()
    assert await told(gateway, "/admin/drain", {}) == {"status": "draining"}
    assert await gateway.ended() == 0


async def test_a_reload_reaches_all_and_whoever_comes_later(place: Place) -> None:
    gateway = three(place, "--quiet")
    port = await gateway.up()

    async def configurations() -> set[str]:
        status = await told(gateway, "/admin/status")
        return {worker["config"] for worker in status["workers"]}

    (before,) = await configurations()
    place.write(EXTRA)
    gateway.signal(signal.SIGHUP)

    async def all_follow() -> bool:
        found = await configurations()
        return len(found) == 1 and before not in found

    await so(all_follow)
    assert {one.status for one in (await ask_often(port, 12, "extra")).heard} == {200}
    place.write("  extra: [nobody/sim]\n")
    answer = await told(gateway, "/admin/reload", {})
    assert [bool(worker["problem"]) for worker in answer["workers"]] == [True] * 3
    victim = (await pids(gateway))[1]
    os.kill(victim, signal.SIGKILL)
    await replaced(gateway, victim)  # with the last file that was right
    assert len(await configurations()) == 1
    assert {one.status for one in (await ask_often(port, 12, "extra")).heard} == {200}


async def test_a_limit_is_of_all_workers_together(place: Place) -> None:
    place.write("  tight: [narrow]\ntargets: {narrow: {model: second/sim, limits: {rpm: 20}}}\n")
    place.simulator.manner("second", Manner(tokens=2))
    gateway = three(place, "--quiet")
    port, answered = await gateway.up(), 0
    for _ in range(5):  # a starved machine sheds some for other reasons
        asked = await ask_often(port, 60, "tight")
        answered += good(asked)
        if answered >= 20:
            break
    assert answered == len(place.simulator.calls()) == 20, [one.fate for one in asked.heard]
    listed = (await told(gateway, "/admin/limits"))["limits"]
    assert [row["remaining"] for row in listed if row["name"].startswith("narrow")] == [0]


async def test_operators_hear_all_workers_as_one_whoever_of_them_dies(place: Place) -> None:
    place.simulator.manner("first", Manner(tokens=2))
    gateway = three(place, "--quiet")
    port = await gateway.up()
    asked = await ask_often(port, 30)
    counted = functools.partial(figure, gateway, "gateway_requests_total", chain="smart")
    assert await counted(status="200") == 30
    assert await figure(gateway, "gateway_request_duration_seconds_count", chain="smart") == 30
    assert await figure(gateway, "gateway_build_info") == 1
    listed = (await told(gateway, "/admin/requests?limit=30"))["requests"]
    names = {one.request_id for one in asked.heard}
    assert {story["request_id"] for story in listed} == names
    for name in list(names)[:6]:
        assert (await told(gateway, f"/admin/requests/{name}"))["request_id"] == name

    async def held() -> dict[str, Any]:
        target: dict[str, Any] = (await told(gateway, "/admin/chains"))["chains"][0]["targets"][0]
        return target

    await told(gateway, "/admin/breaker/first/sim", {"set": "open"})
    assert (await held()) | {"breaker": "open", "held": "open"} == await held()
    victim = (await pids(gateway))[2]
    os.kill(victim, signal.SIGKILL)
    assert await counted() == 30  # what it had told is not taken back
    await replaced(gateway, victim)
    assert await counted() == 30
    assert await figure(gateway, "gateway_worker_restarts_total") == 1
    target = await held()
    assert (target["breaker"], "workers" in target) == ("open", False)


async def test_a_worker_that_hangs_is_left_out_and_named(place: Place) -> None:
    place.simulator.manner("first", Manner(tokens=2))
    gateway = three(place, "--quiet")
    await ask_often(await gateway.up(), 20)
    assert await figure(gateway, "gateway_requests_total") == 20
    hanging = (await pids(gateway))[1]
    os.kill(hanging, signal.SIGSTOP)
    try:
        exposition = await operate(gateway, "/metrics")
        assert of(exposition, "gateway_workers", state="silent") == 1
        assert of(exposition, "gateway_requests_total") == 20
        status = await told(gateway, "/admin/status")
        assert status["workers"][1] == {"worker": 2, "status": "silent"}
        assert status["degraded"] == ["worker 2 does not answer"]
    finally:
        os.kill(hanging, signal.SIGCONT)
    assert await figure(gateway, "gateway_workers", state="answering") == 3


async def test_without_its_supervisor_no_worker_stays_and_no_stream_is_cut(place: Place) -> None:
    place.simulator.manner("first", Manner(tokens=30, ttft=0.002, gap=0.01))
    streams = Load(9, lambda name, *_: Ask(name, "smart", "Go on.", stream=True), random.Random(1))
    streams.once = True
    gateway = three(place, "--quiet")
    async with streams.on(await gateway.up()):
        await until(lambda: len(place.simulator.calls()) == 9)
        workers = await pids(gateway)
        gateway.kill()
    await until(lambda: not any(map(alive, workers)))
    assert all(one.good for one in streams.heard)
    assert list(place.state.glob("workers-*"))
    await over(three(place, "--quiet"))
    assert not list(place.state.glob("workers-*"))
    found = audit(place.books(), place.simulator.calls(), streams.heard, PRICES)
    assert found.rows == found.exact == 9


def alive(pid: int) -> bool:
    """A zombie is not: it waits for whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


async def test_a_taken_port_is_told_once(place: Place) -> None:
    port = await three(place, "--quiet").up()
    second = three(place, "--listen", f"127.0.0.1:{port}")
    found = await refused(second)
    assert found == (
        f"Error: The gateway cannot start: 127.0.0.1:{port} is in use: stop what listens there,"
        " or choose another port."
    )


async def test_a_state_folder_that_cannot_be_used_is_told_once(place: Place) -> None:
    place.state.mkdir()
    (place.state / "gateway.sqlite3").write_bytes(b"These are not the books. " * 50)
    store = place.state / "gateway.sqlite3"
    assert await refused(three(place)) == (
        f"Error: The gateway cannot start: {store}: file is not a database"
    )
    assert not list(place.state.glob("workers-*"))


async def test_the_file_says_how_many_and_one_is_a_process_without_a_supervisor(
    place: Place,
) -> None:
    place.write(server="lame_duck: 0s, workers: 2")
    gateway = place.start("--quiet")
    await gateway.up()
    assert len(await pids(gateway)) == 2
    alone = place.start("--quiet", "--workers", "1")
    await alone.up()
    assert (await told(alone, "/admin/status"))["pid"] == alone.pid
