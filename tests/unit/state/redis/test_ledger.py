"""The ledger over a real Redis that forgets, hangs and dies: each line once, whatever happens."""

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from gateway.clock import SystemClock
from gateway.core.events import Event, StateTrouble
from gateway.core.usage import Usage
from gateway.state.accounts import Answer, Ask, Caller, Full
from gateway.state.journal import Journal
from gateway.state.redis import ledger as module
from gateway.state.redis.accounts import RedisAccounts
from gateway.state.redis.connect import Link
from gateway.state.redis.ledger import RedisLedger, too_old
from gateway.state.redis.reports import Stored, stored
from gateway.state.redis.spent import BUDGETS, Spent
from tests.support.clock import ManualClock
from tests.support.redis import RedisServer
from tests.unit.state.make import budget, line, opening

NOW = 1_800_000_000.0
PATIENCE = 0.3  # seconds: a busy machine is no dead Redis
TODAY = int(NOW // 86_400)
TOTAL = budget(100)


class Worker:
    """One life of a worker on a machine (a folder)."""

    def __init__(self, server: RedisServer, folder: Path, name: str, roll: int = 1 << 26) -> None:
        folder.mkdir(exist_ok=True)
        self.heard: list[Event] = []
        self.link = Link(server.url, SystemClock(), self.heard.append, PATIENCE)
        self.clock = ManualClock()
        self.journal = Journal(folder, name, roll=roll)
        spent = Spent()
        self.ledger = RedisLedger(
            self.journal, self.link, self.clock, self.heard.append, spent=spent
        )
        self.accounts = RedisAccounts(self.link, spent)
        self.turn = 0

    def settle(self, id: str, nano_usd: int | None = 7, **opened: object) -> None:
        self.ledger.open(opening(id, **opened))
        self.ledger.close(line(id, nano_usd=nano_usd))

    async def ask(self, nano_usd: int) -> Answer:
        """As much more of the one budget."""
        self.turn += 1
        caller = Caller(self.journal.worker, self.turn, 0.0)
        return await self.accounts.sync(caller, [Ask(TOTAL, 0, 0, 0, 0, 0)], [[(0, nano_usd)]])

    async def spent(self) -> int:
        return int(await self.link.call("HGET", BUDGETS, TOTAL.id) or 0)

    async def kill(self) -> None:
        self.journal.drop()
        self.ledger._backlog.close()
        await self.link.close()

    async def back(self) -> None:
        """Redis is there again and the breaker knows."""
        async with asyncio.timeout(5):
            await self.link.look()
            while self.link.lost:
                await self.link.look()


async def read(link: Link) -> Stored:
    patient = Link(link._url, SystemClock(), lambda _: None, 5.0)
    try:
        return await stored(patient, 0, NOW)
    finally:
        await patient.close()


async def booked(link: Link) -> tuple[Counter[str], int]:
    """How many rows each attempt has, and the nano-dollars of the keys' sums."""
    found = await read(link)
    spent = sum(sums[4] for (scope, _, _), sums in found.sums.items() if scope == "key")
    assert spent == sum(row[22] or 0 for row in found.rows)
    return Counter(row[0] for row in found.rows), spent


async def test_sums_are_those_of_the_rows(server: RedisServer, tmp_path: Path) -> None:
    worker = Worker(server, tmp_path / "a", "w1")
    worker.settle("a.1", 7)
    worker.settle("a.2", 5)
    worker.settle("b.1", None, team=None, user=None)
    assert await worker.ledger.ship()
    found = await read(worker.link)
    assert found.sums == {
        ("key", "search-prod", TODAY): [2, 3, 2_700, 150, 12, 1],
        ("team", "search", TODAY): [1, 2, 1_800, 100, 12, 0],
        ("user", "search-prod/u1", TODAY): [1, 2, 1_800, 100, 12, 0],
    }
    assert len(found.rows) == 3
    await worker.kill()


async def test_many_lines_go_in_several_calls(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)
    worker = Worker(server, tmp_path / "a", "w1")
    for number in range(40):
        worker.settle(f"{number}.1")
    assert await worker.ledger.ship()
    await worker.kill()
    heir = Worker(server, tmp_path / "a", "w2")
    assert await heir.ledger.recover() == 0
    rows, spent = await booked(heir.link)
    assert (set(rows.values()), len(rows), spent) == ({1}, 40, 280)
    await heir.kill()


async def test_what_redis_forgot_is_sent_again_even_by_a_worker_with_nothing_new(
    server: RedisServer, tmp_path: Path
) -> None:
    worker = Worker(server, tmp_path / "a", "w1")
    worker.settle("a.1")
    assert await worker.ledger.ship()
    mark = server.mark()
    worker.settle("b.1")
    assert await worker.ledger.ship()
    server.restart(upto=mark)
    await worker.ledger.beat()  # finds its connection broken
    await worker.ledger.beat()
    assert not worker.link.lost
    assert (await booked(worker.link))[0] == {"a.1": 1}
    assert await worker.ledger.ship()
    assert (await booked(worker.link))[0] == {"a.1": 1, "b.1": 1}
    assert StateTrouble("redis", "ship", "tail lost, sent again") in worker.heard
    await worker.kill()


async def test_an_emptied_redis_gets_what_the_journals_still_have(
    server: RedisServer, tmp_path: Path
) -> None:
    worker = Worker(server, tmp_path / "a", "w1")
    worker.settle("a.1")
    assert await worker.ledger.ship()
    server.say("FLUSHALL")
    worker.settle("b.1")
    assert not await worker.ledger.ship()
    assert await worker.ledger.ship()
    assert await booked(worker.link) == ({"a.1": 1, "b.1": 1}, 14)
    await worker.kill()


async def test_an_answer_that_was_lost_counts_nothing_twice(
    server: RedisServer, tmp_path: Path
) -> None:
    worker = Worker(server, tmp_path / "a", "w1")
    worker.settle("a.1")
    server.freeze()  # the kernel takes the script, Redis runs it when it thaws
    assert not await worker.ledger.ship()
    server.thaw()
    worker.settle("b.1")
    assert await worker.ledger.ship()
    assert await booked(worker.link) == ({"a.1": 1, "b.1": 1}, 14)
    await worker.kill()


async def test_a_dead_workers_journal_stays_until_redis_cannot_forget_it(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    worker = Worker(server, folder, "w1")
    worker.settle("a.1")
    worker.ledger.open(opening("b.1"))
    await worker.kill()
    mark = server.mark()
    heir = Worker(server, folder, "w2")
    assert await heir.ledger.recover() == 1
    server.restart(upto=mark)
    assert await heir.ledger.recover() == 1
    assert await heir.ledger.recover() == 0
    assert (await booked(heir.link))[0] == {"a.1": 1, "b.1": 1}
    assert list(folder.glob("journal-w1-*"))
    monkeypatch.setattr(module, "KEPT", 0)
    assert await heir.ledger.recover() == 0
    assert not list(folder.glob("journal-w1-*"))
    assert (await booked(heir.link))[0] == {"a.1": 1, "b.1": 1}
    await heir.kill()


async def test_a_budget_is_not_passed_because_redis_was_emptied(
    server: RedisServer, tmp_path: Path
) -> None:
    """90 were spent by workers long gone; who saw it says so before anything is granted."""
    one, other = (Worker(server, tmp_path / name, name) for name in "ab")
    await one.link.call("HSET", BUDGETS, TOTAL.id, 90)
    await one.ask(1)
    one.settle("a.1", 4, budgets=(TOTAL.id,))
    assert await one.ledger.ship()
    server.say("FLUSHALL")
    refused = (await one.ask(7)).verdicts[0]
    assert isinstance(refused, Full)
    assert refused.sure
    assert not isinstance((await one.ask(6)).verdicts[0], Full)
    assert isinstance((await other.ask(7)).verdicts[0], Full)
    one.settle("b.1", 5, budgets=(TOTAL.id,))
    while not await one.ledger.ship():
        pass
    assert await booked(one.link) == ({"a.1": 1, "b.1": 1}, 9)
    assert await one.spent() == 99  # a.1 was in what was seen, b.1 was not
    await one.kill()
    await other.kill()


async def test_who_has_nothing_to_ask_tells_an_emptied_redis_of_all_budgets(
    server: RedisServer, tmp_path: Path
) -> None:
    worker = Worker(server, tmp_path / "a", "w1")
    worker.settle("a.1", 2**53 - 1, budgets=(TOTAL.id,))
    assert await worker.ledger.ship()
    server.say("FLUSHALL")
    await worker.ledger.beat()
    assert await worker.spent() == 2**53 - 1
    server.say("FLUSHALL")
    await worker.accounts.sync(Caller("w1", 1, 0.0), [], [])
    assert await worker.spent() == 2**53 - 1
    await worker.kill()


async def test_what_was_spent_is_the_sum_of_the_lines_through_lost_tails_and_answers(
    server: RedisServer, tmp_path: Path
) -> None:
    one, other = (Worker(server, tmp_path / name, name) for name in "ab")
    mark, total = server.mark(), 0
    for number in range(6):
        for worker in (one, other):
            worker.settle(f"{worker.journal.worker}-{number}.1", 7, budgets=(TOTAL.id,))
            total += 7
        if number == 2:
            mark = server.mark()
        if number % 2:
            server.freeze()
            assert not await one.ledger.ship()
            server.thaw()
        await one.ledger.beat()
        assert await one.ledger.ship()
        assert await other.ledger.ship()
    assert await one.spent() == total
    for upto in (mark, 0):
        server.restart(upto=upto)
        for worker in (other, one):
            await worker.ledger.beat()  # finds its connection broken
            await worker.ledger.beat()
            assert await worker.ledger.ship()
        assert await one.spent() == total
    rows, _ = await booked(one.link)
    assert set(rows.values()) == {1}
    await one.kill()
    await other.kill()


async def test_lines_of_a_dead_worker_that_are_sent_again_charge_no_budget_twice(
    server: RedisServer, tmp_path: Path
) -> None:
    worker = Worker(server, tmp_path / "a", "w1")
    worker.settle("a.1", 3, budgets=(TOTAL.id,))
    await worker.kill()
    heir = Worker(server, tmp_path / "a", "w2")
    await heir.ledger.recover()
    server.say("FLUSHALL")
    await heir.ask(1)
    await heir.ledger.recover()
    assert (await booked(heir.link))[0] == {"a.1": 1}
    assert await heir.spent() == 3
    await heir.kill()


async def test_segments_go_one_by_one_and_only_when_redis_has_known_them_for_a_while(
    server: RedisServer, tmp_path: Path
) -> None:
    folder = tmp_path / "a"
    worker = Worker(server, folder, "w1", roll=2_000)
    made = 0

    async def fill() -> int:
        nonlocal made
        for _ in range(20):
            worker.settle(f"{made}.1")
            made += 1
        assert await worker.ledger.ship()
        return len(list(folder.glob("journal-*")))

    assert await fill() == 2
    assert await fill() == 2
    worker.clock.advance(module.KEPT)
    assert await fill() == 2
    assert {path.name for path in folder.glob("journal-*")} == {
        "journal-w1-000002.jsonl", "journal-w1-000003.jsonl",
    }  # fmt: skip
    rows, _ = await booked(worker.link)
    assert (len(rows), set(rows.values())) == (made, {1})
    await worker.kill()


async def test_a_worker_that_leaves_has_shipped_all(server: RedisServer, tmp_path: Path) -> None:
    worker = Worker(server, tmp_path / "a", "w1")
    worker.settle("a.1")
    await worker.ledger.leave()
    assert await booked(worker.link) == ({"a.1": 1}, 7)
    await worker.link.close()


def test_rows_go_after_30_days_and_the_oldest_when_they_are_too_many() -> None:
    few = {TODAY - 31: 1, TODAY - 30: 1, TODAY: 1}
    assert too_old(few, TODAY) == [TODAY - 31]
    many = {TODAY - 2: 1, TODAY - 1: module.MOST - 5, TODAY: 6}
    assert too_old(many, TODAY) == [TODAY - 2, TODAY - 1]
    assert too_old({TODAY: module.MOST + 1}, TODAY) == [TODAY]


async def test_days_whose_rows_are_gone_are_told_by_their_sums(
    server: RedisServer, tmp_path: Path
) -> None:
    worker = Worker(server, tmp_path / "a", "w1")
    worker.ledger.open(opening("a.1"))
    worker.ledger.close(line("a.1", at=NOW - 40 * 86_400, nano_usd=3))
    worker.settle("b.1")
    assert await worker.ledger.ship()
    await worker.ledger.clean()
    found = await read(worker.link)
    assert found.first == TODAY - 39
    assert [row[0] for row in found.rows] == ["b.1"]
    assert found.sums["key", "search-prod", TODAY - 40][4] == 3
    await worker.kill()


class Fleet:
    """Two machines with a worker each, and somebody who means them harm."""

    def __init__(self, server: RedisServer, folder: Path, rng: random.Random) -> None:
        self.server = server
        self.rng = rng
        self.folders = [folder / "a", folder / "b"]
        self.lives = 0
        self.workers = [self.born(here) for here in self.folders]
        self.opened: set[str] = set()
        self.mark = server.mark()

    def born(self, folder: Path) -> Worker:
        self.lives += 1
        return Worker(self.server, folder, f"w{self.lives}", roll=3_000)

    def work(self, place: int, round: int) -> None:
        ledger = self.workers[place].ledger
        for number in range(self.rng.randrange(6)):
            id = f"{round}-{number}.1"
            self.opened.add(id)
            ledger.open(opening(id, output_price=0, input_price=0, request_price=7))
            if self.rng.random() < 0.8:
                ledger.close(line(id, nano_usd=7, usage=Usage(1, 1)))

    async def strike(self, place: int) -> None:
        match self.rng.randrange(8):
            case 0:
                self.server.restart()
            case 1:
                self.server.restart(upto=self.mark)
            case 2:
                self.server.freeze()
                await self.workers[place].ledger.ship()
                self.server.thaw()
            case 3:
                await self.workers[place].kill()
                self.workers[place] = self.born(self.folders[place])
                await self.workers[place].ledger.recover()
            case 4:
                self.mark = self.server.mark()
            case _:
                await self.workers[place].ledger.ship()


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(3, 203))]
)
async def test_each_attempt_has_one_row_through_kills_of_workers_and_redis(
    server: RedisServer, tmp_path: Path, seed: int
) -> None:
    """Redis is killed, frozen and robbed of its tail; workers are killed; machines stay."""
    rng = random.Random(seed)
    fleet = Fleet(server, tmp_path, rng)
    for round in range(40):
        place = rng.randrange(2)
        fleet.work(place, round)
        await fleet.strike(place)
        await asyncio.gather(*(one.back() for one in fleet.workers))
        await fleet.workers[1 - place].ledger.beat()
    for worker in fleet.workers:
        await worker.kill()
    heirs = [Worker(server, folder, f"heir-{folder.name}") for folder in fleet.folders]
    for heir in heirs:
        await heir.ledger.recover()
    rows, spent = await booked(heirs[0].link)
    assert set(rows) == fleet.opened
    assert set(rows.values()) == {1}
    assert spent == 7 * len(fleet.opened)
    for heir in heirs:
        await heir.kill()
