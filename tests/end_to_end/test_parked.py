"""What is parked outlives the process that was answering it."""

import asyncio
import contextlib
import signal
import sqlite3
from collections import Counter
from typing import Any

import aiohttp
import pytest

from chaos import faults
from tests.end_to_end.place import Place

LEASE = 15.0  # seconds; as the documents say
BODY = {"model": "long", "messages": [{"role": "user", "content": "Later, please."}]}


async def say(port: int, method: str, path: str, **more: Any) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://127.0.0.1:{port}{path}", **more) as told,
    ):
        return told.status, await told.json()


def time_passes(place: Place) -> None:
    """The lease of whoever was answering runs out."""
    with contextlib.closing(sqlite3.connect(place.state / "gateway.sqlite3")) as db, db:
        assert db.execute("UPDATE parked SET lease = lease - ?", (LEASE,)).rowcount == 1


@pytest.mark.xdist_group("kill")
async def test_a_killed_workers_parked_request_is_answered_once_more(place: Place) -> None:
    simulator = place.simulator
    simulator.set("long", faults.rate_limited(1.0))
    first = place.start("--quiet")
    headers = {"x-gateway-park": "allow"}
    status, told = await say(
        await first.up(), "POST", "/v1/chat/completions", json=BODY, headers=headers
    )
    assert (status, told["status"]) == (202, "parked")
    simulator.set("long", faults.silence())
    async with asyncio.timeout(20):
        while not simulator.in_flight("long"):
            await asyncio.sleep(0.01)
    first.kill()
    await first.ended()
    simulator.set("long", None)
    time_passes(place)
    second = place.start("--quiet")
    port = await second.up()
    async with asyncio.timeout(20):
        while (found := await say(port, "GET", f"/v1/parked/{told['id']}"))[0] == 202:
            await asyncio.sleep(0.05)
    assert found[0] == 200
    assert found[1]["choices"][0]["message"]["content"]
    second.signal(signal.SIGTERM)
    await second.ended()
    rows = place.books().rows.values()
    told_by = Counter(row.outcome for row in rows)
    assert (told_by["worker_lost"], told_by["ok"]) == (1, 1)
    assert len(rows) == len(simulator.calls("long"))
    assert len({row.request_id for row in rows}) == 3  # each try is a request of its own


async def test_two_processes_share_what_is_parked_and_answer_each_once(place: Place) -> None:
    number = 12
    simulator = place.simulator
    simulator.set("long", faults.rate_limited(1.0))
    gateways = [place.start("--quiet") for _ in range(2)]
    ports = [await gateway.up() for gateway in gateways]
    headers = {"x-gateway-park": "allow"}
    told = await asyncio.gather(
        *(
            say(ports[n % 2], "POST", "/v1/chat/completions", json=BODY, headers=headers)
            for n in range(number)
        )
    )
    assert [status for status, _ in told] == [202] * number
    simulator.set("long", None)

    async def found(n: int) -> int:
        """From the process that did not take it."""
        path = f"/v1/parked/{told[n][1]['id']}"
        while (status := (await say(ports[(n + 1) % 2], "GET", path))[0]) == 202:
            await asyncio.sleep(0.05)
        return status

    async with asyncio.timeout(20):
        assert await asyncio.gather(*map(found, range(number))) == [200] * number
    for gateway in gateways:
        gateway.signal(signal.SIGTERM)
        assert await gateway.ended() == 0
    rows = place.books().rows.values()
    told_by = Counter(row.outcome for row in rows)
    assert told_by == {"rate_limited": len(simulator.calls("long")) - number, "ok": number}
