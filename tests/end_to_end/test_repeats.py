"""A caller's key outlives the process that was answering it."""

import asyncio
import contextlib
import sqlite3
from typing import Any

import aiohttp
import pytest

from chaos import faults
from tests.end_to_end.place import Place
from tests.support.processes import Gateway

LEASE = 15.0  # seconds; as the documents say
BODY = {"model": "smart", "messages": [{"role": "user", "content": "Once, please."}]}


async def ask(port: int) -> tuple[int, dict[str, str], Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json=BODY,
            headers={"Idempotency-Key": "once", "x-gateway-deadline": "5s"},
        ) as told,
    ):
        return told.status, dict(told.headers), await told.json()


async def dies(gateway: Gateway, place: Place) -> None:
    """In the middle of the answer."""
    asking = asyncio.ensure_future(ask(await gateway.up()))
    async with asyncio.timeout(10):
        while not place.simulator.in_flight("first"):
            await asyncio.sleep(0.002)
    gateway.kill()
    await gateway.ended()
    with contextlib.suppress(aiohttp.ClientError):
        await asking


def time_passes(place: Place) -> None:
    """The lease of whoever was answering runs out."""
    with contextlib.closing(sqlite3.connect(place.state / "gateway.sqlite3")) as db, db:
        assert db.execute("UPDATE answer SET until = until - ?", (LEASE,)).rowcount == 1


@pytest.mark.xdist_group("kill")
async def test_a_killed_owners_key_runs_again_and_then_never_more(place: Place) -> None:
    place.simulator.set("first", faults.silence())
    await dies(place.start("--quiet"), place)
    place.simulator.set("first", None)
    time_passes(place)
    last = place.start("--quiet")
    port = await last.up()
    told = [await ask(port) for _ in range(2)]
    assert [status for status, _, _ in told] == [200, 200]
    assert told[0][2] == told[1][2]
    assert "Idempotency-Replayed" not in told[0][1]
    assert {name.lower() for name in told[1][1]} >= {"idempotency-replayed"}
    last.kill()
    await last.ended()
    third = place.start("--quiet")  # what was kept survives too
    status, headers, answer = await ask(await third.up())
    assert (status, answer) == (200, told[0][2])
    assert headers["idempotency-replayed"] == "true"
    assert len(place.simulator.calls("first")) == 2
    third.kill()
    await third.ended()
    with contextlib.closing(sqlite3.connect(place.state / "gateway.sqlite3")) as db:
        assert db.execute("SELECT count(*) FROM answer").fetchone() == (1,)
