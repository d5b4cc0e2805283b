"""The state a configuration asks for, over a real Redis that comes and goes."""

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.app.state import SharedKeyStore, StoreUnfit, books, open_rooms
from gateway.clock import SystemClock
from gateway.core.events import Event, StoreMoved
from gateway.core.keys import read_key
from gateway.core.snapshot import ServerSettings, Snapshot
from gateway.state.embedded.keys import KeyStore
from gateway.state.embedded.open import EmbeddedState
from gateway.state.embedded.reports import spend
from tests.support.redis import RedisServer
from tests.unit.state.make import line, opening

LOOK = 0.01


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as found:
        yield found


def snapshot_of(server: RedisServer, folder: Path) -> Snapshot:
    settings = ServerSettings(state_dir=str(folder), redis=server.url)
    return Snapshot("c0ffee", {}, {}, {}, keyless=False, server=settings)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(LOOK)


def use(state: EmbeddedState, id: str) -> None:
    state.ledger.open(opening(id))
    state.ledger.close(line(id, at=SystemClock().now(), nano_usd=7))


def spent(snapshot: Snapshot) -> int:
    with books(snapshot.server, 0) as folder:
        return sum(row.attempts for row in spend(folder, (), 0))


async def test_what_two_machines_spend_is_one_ledger(server: RedisServer, tmp_path: Path) -> None:
    for name in ("a", "b"):
        snapshot = snapshot_of(server, tmp_path / name)
        async with open_rooms(snapshot, SystemClock(), lambda _: None, random.Random()) as state:
            use(state, f"{name}.1")
            assert await state.ledger.ship()
            assert not state.troubles
    assert await asyncio.to_thread(spent, snapshot) == 2


async def test_a_gateway_starts_without_redis_serves_and_catches_up(
    server: RedisServer, tmp_path: Path
) -> None:
    server.kill()
    heard: list[Event] = []
    snapshot = snapshot_of(server, tmp_path / "a")
    async with open_rooms(snapshot, SystemClock(), heard.append, random.Random()) as state:
        assert "Redis is lost (not reached at the start: connection)" in state.troubles[0]
        use(state, "a.1")
        server.restart()
        await until(lambda: not state.troubles)
        assert StoreMoved("redis", lost=False) in heard
        await until(lambda: server.say("EXISTS", "gateway:1:{gateway}:rows") == b":1\r\n")
    assert await asyncio.to_thread(spent, snapshot) == 1


async def test_a_redis_without_a_file_stops_the_start(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", "--appendonly", "no") as server:
        snapshot = snapshot_of(server, tmp_path / "a")
        with pytest.raises(StoreUnfit, match="append-only"):
            async with open_rooms(snapshot, SystemClock(), lambda _: None, random.Random()):
                pass


async def test_keys_made_on_the_command_line_are_known_to_gateways_elsewhere(
    server: RedisServer, tmp_path: Path
) -> None:
    settings = snapshot_of(server, tmp_path / "laptop").server
    KeyStore(tmp_path / "laptop", SystemClock()).create("private")  # of no Redis: stays here
    laptop = SharedKeyStore(settings, server.url)
    made = await asyncio.to_thread(laptop.create, "job")
    snapshot = snapshot_of(server, tmp_path / "a")
    async with open_rooms(snapshot, SystemClock(), lambda _: None, random.Random()) as state:
        assert await state.keys.find(read_key(made.secret.reveal()))
        assert [key.name for key in await asyncio.to_thread(laptop.list)] == ["job"]
        await asyncio.to_thread(laptop.revoke, "job")
        async with asyncio.timeout(10):
            while await state.keys.find(read_key(made.secret.reveal())):
                await asyncio.sleep(LOOK)
