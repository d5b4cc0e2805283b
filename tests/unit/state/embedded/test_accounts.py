"""Accounts in the store's file: shared by processes, kept through kill -9 and a new start."""

import asyncio
import sqlite3
import sys
from pathlib import Path

import pytest

from gateway.clock import SystemClock
from gateway.core.attempt import Demand, Refusal, Reservation
from gateway.state.accounts import IDLE, SILENT, Ask, Caller, StoreLost
from gateway.state.embedded import accounts as module
from gateway.state.embedded.accounts import SqliteAccounts, charge, swept
from gateway.state.embedded.sqlite import Store, transaction
from gateway.state.slices import Slices
from tests.support.clock import ManualClock
from tests.support.limits import Inline, owned
from tests.unit.state.make import budget, rpm, slots, tpm

CROWD = """
import asyncio, sys
from pathlib import Path
from gateway.clock import SystemClock
from gateway.core.attempt import Demand, Reservation
from gateway.state.embedded.accounts import SqliteAccounts
from gateway.state.embedded.sqlite import Store
from gateway.state.slices import Slices
from tests.unit.state.make import rpm, slots, tpm

async def main(folder, worker):
    store = Store(Path(folder))
    limiter = Slices(SqliteAccounts(store, SystemClock()), worker, SystemClock())
    demands = [Demand(rpm(300), 1), Demand(tpm(3000), 10), Demand(slots(1000), 1)]
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

    async def one():
        taken = await limiter.reserve("r", demands, ())
        if isinstance(taken, Reservation):
            print(1, flush=True)
            limiter.settle(taken, [demand.account for demand in demands], 10)
    for _ in range(30):
        await asyncio.gather(*(one() for _ in range(10)))
    print("done", flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def file() -> Inline:
    return Inline()


def worker(file: Inline, clock: ManualClock, name: str) -> Slices:
    return owned(SqliteAccounts(file, clock), clock, name)


async def admitted(limiter: Slices, *demands: Demand) -> bool:
    return isinstance(await limiter.reserve("r", demands, ()), Reservation)


async def test_processes_of_one_machine_keep_a_limit_together_and_one_more_after_kill_9(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "state"
    crowd = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", CROWD, str(folder), f"w{number}",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )
        for number in range(2)
    ]  # fmt: skip
    total = 0
    for process in crowd:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    for process in crowd:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
    for process in crowd:
        assert process.stdout is not None
        while (line := await process.stdout.readline()) == b"1\n":
            total += 1
        assert line == b"done\n"
    for process in crowd:
        process.kill()
        await process.wait()
    assert 290 <= total <= 300  # a worker may keep a few ahead that it did not need
    store = Store(folder)
    limiter = Slices(SqliteAccounts(store, SystemClock()), "later", SystemClock())
    demands = [Demand(rpm(300), 1), Demand(tpm(3000), 10), Demand(slots(1000), 1)]
    refusal = await limiter.reserve("r", demands, ())
    assert isinstance(refusal, Refusal)
    await store.close()


async def test_what_was_counted_outlives_the_process(file: Inline, clock: ManualClock) -> None:
    first = worker(file, clock, "w1")
    for _ in range(3):
        assert await admitted(first, Demand(rpm(3), 1))
    clock.advance(1.0)
    clock.before.clear()  # kill -9
    second = worker(file, clock, "w2")
    assert not await admitted(second, Demand(rpm(3), 1))
    clock.advance(61.0)
    assert await admitted(second, Demand(rpm(3), 1))


async def test_what_a_killed_worker_held_comes_back_by_itself(
    file: Inline, clock: ManualClock
) -> None:
    dead, second = worker(file, clock, "dead"), worker(file, clock, "w2")
    assert await admitted(dead, Demand(slots(1), 1))
    clock.before.pop(0)
    assert not await admitted(second, Demand(slots(1), 1))
    for _ in range(int(SILENT) + 2):
        clock.advance(1.0)
        await second.tick()
    assert await admitted(second, Demand(slots(1), 1))


async def test_once_its_journal_is_applied_it_comes_back_at_once(
    file: Inline, clock: ManualClock
) -> None:
    day = budget(1000)
    dead, second = worker(file, clock, "dead"), worker(file, clock, "w2")
    assert await admitted(dead, Demand(slots(1), 1), Demand(day, 900))
    clock.before.pop(0)
    clock.advance(3_600.0)
    assert not await admitted(second, Demand(day, 900))  # money waits for the sweep
    with transaction(file.db):
        charge(file.db, [(day.id, 80), (day.id, 20)])
        swept(file.db, "dead")
    clock.advance(1.0)
    assert await admitted(second, Demand(slots(1), 1), Demand(day, 900))
    assert not await admitted(second, Demand(day, 1))


@pytest.mark.parametrize("booted", [True, False])
async def test_after_another_start_of_the_machine_what_counts_counts_for_another_minute(
    file: Inline, monkeypatch: pytest.MonkeyPatch, *, booted: bool
) -> None:
    before, after = ManualClock(), ManualClock()
    before.advance(5_000.0)  # the new clock lies behind, or another start says so
    first = worker(file, before, "w1")
    meter = rpm(1, burst=1, name="m")
    wide = [Demand(rpm(3), 3), Demand(tpm(10), 10), Demand(meter, 1), Demand(slots(1), 1)]
    assert await admitted(first, *wide)
    before.advance(30.0)
    if booted:
        monkeypatch.setattr(module, "BOOT", Path("/nowhere"))
        after.advance(90_000.0)
    second = worker(file, after, "w2")
    assert await admitted(second, Demand(slots(1), 1))
    for account, n in ((rpm(3), 1), (tpm(10), 1), (meter, 1)):
        refusal = await second.reserve("r", [Demand(account, n)], ())
        assert isinstance(refusal, Refusal)
        assert 29.0 < refusal.wait <= 61.001
    after.advance(62.0)
    for account in (rpm(3), tpm(10), meter):
        assert await admitted(second, Demand(account, 1))


async def test_a_call_that_comes_late_is_not_carried_out(file: Inline, clock: ManualClock) -> None:
    accounts = SqliteAccounts(file, clock)
    ask = Ask(tpm(100), 0, 0, 0, 50, 0)
    await accounts.sync(Caller("w1", 2, 0.0), [ask], [])
    with pytest.raises(StoreLost):
        await accounts.sync(Caller("w1", 1, 0.0), [ask._replace(bound=0)], [])
    answer = await accounts.sync(Caller("w2", 1, 0.0), [Ask(tpm(100), 0, 0, 0, 0, 0)], [])
    assert (answer.slices[0].rest, answer.workers) == (50, 2)


async def test_hundreds_of_accounts_share_a_call(file: Inline, clock: ManualClock) -> None:
    accounts = SqliteAccounts(file, clock)
    asks = [Ask(tpm(100, f"k{number}"), 0, number % 90, 0, 0, 0) for number in range(1_200)]
    for turn in (1, 2):
        answer = await accounts.sync(Caller("w1", turn, 0.0), asks, [])
        assert [one.rest for one in answer.slices] == [100 - number % 90 for number in range(1_200)]


async def test_accounts_nobody_uses_are_forgotten(file: Inline, clock: ManualClock) -> None:
    limiter = worker(file, clock, "w1")
    for number in range(50):
        assert await admitted(limiter, Demand(rpm(9, name=f"k{number}"), 1))
    assert await admitted(limiter, Demand(budget(9), 5))
    for _ in range(int(IDLE) + 62):
        clock.advance(1.0)
    await SqliteAccounts(file, clock).tidy()
    names = [name for (name,) in file.db.execute("SELECT id FROM account")]
    assert names == [budget(9).id]


async def test_a_store_that_cannot_be_written_is_lost_and_says_why(tmp_path: Path) -> None:
    store = Store(tmp_path)
    await store.run(lambda db: db.execute("PRAGMA query_only = ON").fetchall())
    with pytest.raises(StoreLost, match="SQLITE_READONLY"):
        await SqliteAccounts(store, SystemClock()).sync(Caller("w1", 1, 0.0), [], [])
    await store.close()


async def test_a_store_that_is_locked_for_too_long_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    await store.run(lambda _: None)
    monkeypatch.setattr(module, "CALL", 0.01)
    other = sqlite3.connect(tmp_path / "gateway.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreLost):
        await SqliteAccounts(store, SystemClock()).sync(Caller("w1", 1, 0.0), [], [])
    other.execute("ROLLBACK")
    other.close()
    await store.close()
