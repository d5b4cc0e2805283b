"""How a gateway starts: on what a crash left, beside another, and where it may not write."""

import asyncio
import random
import signal
from pathlib import Path

import pytest

from chaos.answers import Manner
from tests.end_to_end.books import audit
from tests.end_to_end.load import Ask, Load
from tests.end_to_end.place import PRICES, Place
from tests.support.processes import Gateway

UNAVAILABLE = 6  # the exit code


def mix(name: str, caller: int, rng: random.Random) -> Ask:
    stream = caller % 2 == 1
    return Ask(name, "smart", "Tell me of the bridge. " * rng.randint(1, 5), stream, limit=8)


@pytest.fixture
def load(place: Place) -> Load:
    place.simulator.manner("first", Manner(tokens=8, ttft=0.001, gap=0.001))
    return Load(8, mix, random.Random(1))


async def some(load: Load, gateway: Gateway, answers: int = 40) -> None:
    """Load until there are so many answers more, then kill -9 in the midst of it."""
    port = await gateway.up()
    most = sum(one.whole for one in load.heard) + answers
    async with load.on(port), asyncio.timeout(20):
        while sum(one.whole for one in load.heard) < most:
            await asyncio.sleep(0.002)
        gateway.kill()
    assert await gateway.ended() == -signal.SIGKILL


async def over(gateway: Gateway) -> None:
    """Up, and gone as it should."""
    await gateway.up()
    gateway.signal(signal.SIGTERM)
    assert await gateway.ended() == 0


def journals(place: Place) -> list[Path]:
    return sorted(place.state.glob("*journal-*"))


async def test_a_process_started_as_operators_do_leaves_and_finds_the_same_books(
    place: Place, load: Load
) -> None:
    await some(load, place.start(fresh=True))
    (journal,) = journals(place)
    assert journal.read_bytes().strip(b"\0")
    last = place.start(fresh=True)
    await over(last)
    found = audit(place.books(), place.simulator.calls(), load.heard, PRICES)
    assert found.whole >= 40
    assert found.lost
    assert f"recovered  {found.lost} attempts of a lost worker, as estimated" in last.log
    assert not journals(place)


async def test_a_torn_journal_is_repaired_at_the_start(place: Place, load: Load) -> None:
    await some(load, place.start("--quiet"))
    (journal,) = journals(place)
    data = journal.read_bytes()
    *whole, last = data.splitlines(keepends=True)
    whole[3] = whole[3][:-20] + b"\xff\x00" * 9 + b"\n"  # a bad sector
    journal.write_bytes(b"".join(whole) + last[: len(last) // 2])
    await over(place.start("--quiet"))
    books = place.books()
    assert books.healthy == "ok"
    assert books.drift == 0
    assert not journals(place)
    missing = {call.attempt_id for call in place.simulator.calls()} - books.rows.keys()
    assert len(missing) <= 2  # an opening may have stood in each line that was spoilt
    assert len(books.rows) > 40


async def test_what_a_worker_killed_while_starting_left_half_made_is_swept_away(
    place: Place, load: Load
) -> None:
    place.state.mkdir()
    litter = place.state / ".journal-0123456789abcdef-000001.new"
    litter.touch()
    await over(place.start("--quiet"))
    assert not litter.exists()


async def test_two_gateways_on_one_folder_bury_only_the_dead(place: Place, load: Load) -> None:
    other = Load(8, lambda name, *rest: mix(f"other-{name}", *rest), random.Random(2))
    living = place.start("--quiet")
    async with other.on(await living.up()):
        for _ in range(3):
            await some(load, place.start("--quiet"), 20)
    neighbour = place.start("--quiet")
    await neighbour.up()
    for gateway in (living, neighbour):  # at the same moment
        gateway.signal(signal.SIGTERM)
    assert await living.ended() == await neighbour.ended() == 0
    assert all(one.good for one in other.heard)
    heard = [*load.heard, *other.heard]
    found = audit(place.books(), place.simulator.calls(), heard, PRICES)
    assert found.lost
    await over(place.start("--quiet"))  # one that left may have been in the other's way
    assert audit(place.books(), place.simulator.calls(), heard, PRICES) == found
    assert not journals(place)


async def refused(gateway: Gateway) -> str:
    """The words of a gateway that does not start, in time for whoever waits before a terminal."""
    assert await gateway.ended(within=3.0) == UNAVAILABLE, gateway.log
    lines = [line for line in gateway.log.splitlines() if " warning " not in line]
    assert lines[1:] == ["  → gateway doctor"]
    return lines[0]


async def test_a_state_folder_that_is_a_file_is_named(place: Place) -> None:
    place.state.touch()
    told = await refused(place.start())
    assert told == f"Error: The gateway cannot start: {place.state}: File exists"


async def test_a_state_folder_that_may_not_be_written_is_named(place: Place) -> None:
    place.state.mkdir(mode=0o500)
    told = await refused(place.start())
    store = place.state / "gateway.sqlite3"
    assert told == f"Error: The gateway cannot start: {store}: Permission denied"


async def test_a_store_in_a_folder_that_may_not_be_written_is_named(place: Place) -> None:
    await over(place.start("--quiet"))
    place.state.chmod(0o500)
    told = await refused(place.start())
    store = place.state / "gateway.sqlite3"
    assert told in {
        f"Error: The gateway cannot start: {store}: {why}"
        for why in ("unable to open database file", "attempt to write a readonly database")
    }


async def test_a_full_disk_is_told_at_the_start(place: Place) -> None:
    told = await refused(place.start(most=8192))
    store = place.state / "gateway.sqlite3"
    assert told in {
        f"Error: The gateway cannot start: {store}: {why}"
        for why in ("disk I/O error", "database or disk is full")
    }


async def test_a_store_that_is_none_is_named(place: Place) -> None:
    place.state.mkdir()
    store = place.state / "gateway.sqlite3"
    store.write_bytes(b"These are not the books you are looking for. " * 50)
    told = await refused(place.start())
    assert told == f"Error: The gateway cannot start: {store}: file is not a database"
