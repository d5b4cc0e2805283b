"""The whole wing: opened, killed, opened again."""

import asyncio
import random
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.core.events import Event
from gateway.core.keys import read_key
from gateway.core.snapshot import Snapshot
from gateway.state.embedded.keys import KeyStore
from gateway.state.embedded.open import open_state
from gateway.state.embedded.reports import spend, total
from gateway.state.journal import Journal
from tests.support.clock import ManualClock
from tests.support.limits import at_once
from tests.unit.state.make import line, opening, target

SNAPSHOT = Snapshot("c0ffee", {}, {}, {"gpt": target()}, keyless=False)


VICTIM = """
import asyncio, random, sys
from gateway.clock import SystemClock
from gateway.core.snapshot import Snapshot
from gateway.state.embedded.open import open_state
from tests.unit.state.make import line, opening

async def main(folder, life):
    snapshot = Snapshot("c0ffee", {}, {}, {})
    async with open_state(folder, snapshot, SystemClock(), print, random.Random()) as state:
        for number in range(100_000):
            id = f"{life}-{number}.1"
            state.ledger.open(opening(id))
            print(id, flush=True)
            if number % 3:
                state.ledger.close(line(id))
            await asyncio.sleep(0.0005)

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


class Gate:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.heard: list[Event] = []
        self.open = lambda: open_state(
            folder, SNAPSHOT, self.clock, self.heard.append, random.Random(1)
        )


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "state")


async def until(true: Callable[[], object]) -> None:
    """Let owned tasks and the store's thread go on."""
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


async def test_what_was_settled_is_there_after_it_was_closed(gate: Gate, tmp_path: Path) -> None:
    async with gate.open() as state:
        state.ledger.open(opening())
        state.ledger.close(line())
    assert total(tmp_path / "state", 0).nano_usd == 325_000
    assert not gate.heard
    assert not list((tmp_path / "state").glob("*journal*"))


async def test_chores_ship_and_follow_the_store_by_themselves(gate: Gate, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    async with gate.open() as state:
        state.ledger.open(opening())
        state.ledger.close(line())
        token = KeyStore(folder, gate.clock).create("job").secret.reveal()
        await asyncio.sleep(0)  # every chore sleeps
        gate.clock.advance(0.1)
        await until(lambda: total(folder, 0).nano_usd == 325_000)
        gate.clock.advance(0.9)
        await until(lambda: at_once(state.keys.find(read_key(token))))


async def test_what_a_killed_worker_left_is_settled_before_anybody_is_served(
    gate: Gate, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    journal = Journal(folder, "dead")
    journal.open(opening("a.1"))
    journal.open(opening("b.1"))
    journal.close(line("a.1"))
    journal.drop()
    async with gate.open() as state:
        assert state.recovered == 1
        assert [row.group for row in spend(folder, ["key"], 0)] == [("search-prod",)]
        assert total(folder, 0).attempts == 2
    assert total(folder, 0).attempts == 2


async def test_two_gateways_on_one_folder_leave_each_other_alone(
    gate: Gate, tmp_path: Path
) -> None:
    async with gate.open() as one, gate.open() as other:
        assert one.worker != other.worker
        for number in range(20):
            worker = one if number % 2 else other
            worker.ledger.open(opening(f"{number}.1"))
            worker.ledger.close(line(f"{number}.1"))
        assert await one.ledger.recover() == 0
        await asyncio.gather(one.ledger.ship(), other.ledger.ship())
        assert total(tmp_path / "state", 0).attempts == 20
    assert total(tmp_path / "state", 0).attempts == 20


async def test_a_sibling_that_dies_is_buried_while_we_run(gate: Gate, tmp_path: Path) -> None:
    async with gate.open():
        journal = Journal(tmp_path / "state", "sibling")
        journal.open(opening())
        journal.drop()
        await asyncio.sleep(0)
        gate.clock.advance(15.0)
        await until(lambda: total(tmp_path / "state", 0).attempts == 1)


async def test_a_reload_reaches_every_room(gate: Gate) -> None:
    async with gate.open() as state:
        state.use(Snapshot("f00d", {}, {}, {"new": target("new")}, keyless=True))
        assert [b.target_id for b in state.health.breakers()] == ["new"]
        assert state.keys.keyless


async def test_nobody_is_served_while_the_stored_keys_cannot_be_read(
    gate: Gate, tmp_path: Path
) -> None:
    KeyStore(tmp_path / "state", gate.clock).create("job")
    db = sqlite3.connect(tmp_path / "state" / "gateway.sqlite3")
    db.execute("ALTER TABLE key RENAME TO away")
    db.close()
    with pytest.raises(sqlite3.OperationalError):
        async with gate.open():
            raise AssertionError


async def test_an_error_inside_still_ships_everything(gate: Gate, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with gate.open() as state:
            state.ledger.open(opening())
            state.ledger.close(line())
            raise ZeroDivisionError
    assert total(tmp_path / "state", 0).attempts == 1


async def test_kill_9_loses_no_attempt_and_counts_none_twice(gate: Gate, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    told: set[str] = set()
    for life in range(3):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", VICTIM, str(folder), str(life), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(150 + 40 * life):
            told.add((await process.stdout.readline()).decode().strip())
        process.kill()
        told.update((await process.stdout.read()).decode().split())
        await process.wait()
    async with gate.open() as state:
        assert state.recovered > 0
        await state.ledger.clean()
        assert state.ledger.drift == 0
    db = sqlite3.connect(folder / "gateway.sqlite3")
    found = {id for (id,) in db.execute("SELECT attempt_id FROM ledger")}
    (summed,) = db.execute("SELECT sum(attempts) FROM spent WHERE scope = 'key'").fetchone()
    db.close()
    assert told <= found
    assert len(found - told) <= 3  # written, and killed before it was said
    assert summed == len(found)
