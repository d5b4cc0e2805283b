"""While the shared store is lost each worker keeps to its share, and nobody is turned away."""

from collections.abc import Sequence

import pytest

from gateway.core.attempt import Demand, Refusal, Reservation
from gateway.core.target import Account
from gateway.state.accounts import Answer, Ask, Book, Caller, Need, StoreLost
from gateway.state.slices import TICK, Slices
from gateway.state.spare import AGAIN, Spare
from tests.support.clock import ManualClock
from tests.support.limits import Dead
from tests.unit.state.make import budget, rpm, slots, tpm


class Switch(Book):
    """A store that can be unplugged."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.dead = False
        self.asked = 0

    async def sync(
        self, caller: Caller, asks: Sequence[Ask], groups: Sequence[Sequence[Need]]
    ) -> Answer:
        self.asked += 1
        if self.dead:
            raise StoreLost("gone")
        return self.answer(caller, asks, groups)


class Fleet:
    def __init__(self, workers: int) -> None:
        self.clock = ManualClock()
        self.store = Switch(self.clock)
        self.told: list[str] = []
        self.spares = [
            Spare(self.store, self.clock, workers, self.told.append) for _ in range(workers)
        ]
        self.workers = [
            Slices(spare, f"w{number}", self.clock) for number, spare in enumerate(self.spares)
        ]

    async def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(TICK)
            for worker in self.workers:
                await worker.tick()

    async def lose(self) -> None:
        """Until all have noticed and nothing from before may be spent."""
        self.store.dead = True
        await self.tick(8)
        assert all(spare.lost for spare in self.spares)

    async def take(self, which: int, account: Account, most: int = 1000) -> int:
        """How many are admitted, one by one."""
        for number in range(most):
            taken = await self.workers[which].reserve("r", [Demand(account, 1)], ())
            if isinstance(taken, Refusal):
                return number
        return most


async def test_the_shares_make_the_whole_and_no_more() -> None:
    fleet = Fleet(3)
    await fleet.tick(8)
    await fleet.lose()
    for account in (rpm(100), tpm(50), slots(2)):
        shares = [await fleet.take(which, account) for which in range(3)]
        assert sum(shares) == account.limit
        assert max(shares) - min(shares) <= 1
    assert fleet.told == ["gone"] * 3


async def test_what_one_used_in_the_last_minute_counts() -> None:
    fleet = Fleet(2)
    await fleet.tick(8)
    assert await fleet.take(0, rpm(100), 45) == 45
    await fleet.lose()
    assert await fleet.take(0, rpm(100)) == 5
    assert await fleet.take(1, rpm(100)) == 50
    await fleet.tick(70)
    assert await fleet.take(0, rpm(100)) == 50


async def test_a_worker_that_never_met_the_others_takes_an_equal_part() -> None:
    clock = ManualClock()
    alone = Slices(Spare(Dead(), clock, 4, lambda _: None), "w", clock)
    taken = [await alone.reserve("r", [Demand(slots(7), 1)], ()) for _ in range(3)]
    assert [isinstance(one, Reservation) for one in taken] == [True, False, False]


async def test_bursts_are_shared_too() -> None:
    fleet = Fleet(2)
    await fleet.tick(8)
    await fleet.lose()
    meter = rpm(60, burst=4)
    assert [await fleet.take(which, meter) for which in range(2)] == [2, 2]
    fleet.clock.advance(2.001)
    assert [await fleet.take(which, meter) for which in range(2)] == [1, 1]


async def test_of_a_budget_what_is_held_and_a_part_of_the_rest_is_spent_and_then_no_more() -> None:
    fleet = Fleet(2)
    await fleet.tick(8)
    day = budget(1000)
    fleet.store.spend(day.id, 200)
    taken = await fleet.workers[0].reserve("r", [Demand(day, 300)], ())
    assert isinstance(taken, Reservation)
    await fleet.tick(8)
    await fleet.lose()
    fleet.workers[0].settle(taken, [day], 0, nano_usd=100)
    assert await fleet.take(0, day) == 200 + 250
    assert await fleet.take(1, day) == 0  # it knows nothing of it
    await fleet.tick(100)
    assert await fleet.take(0, day) == 0


async def test_when_it_is_back_all_is_shared_again_and_nothing_is_lost() -> None:
    fleet = Fleet(2)
    await fleet.tick(8)
    await fleet.lose()
    assert await fleet.take(0, rpm(100), 40) == 40
    held = await fleet.workers[1].reserve("r", [Demand(slots(3), 1)], ())
    assert isinstance(held, Reservation)
    fleet.store.dead = False
    fleet.clock.advance(AGAIN)
    await fleet.tick()
    assert not any(spare.lost for spare in fleet.spares)
    await fleet.tick(8)
    assert await fleet.take(1, rpm(100)) == 60
    assert await fleet.take(0, slots(3)) == 2


async def test_a_store_that_has_forgotten_everything_is_told_anew() -> None:
    fleet = Fleet(2)
    await fleet.tick(8)
    assert await fleet.take(0, rpm(100), 70) == 70
    await fleet.tick(2)
    await fleet.lose()
    for spare in fleet.spares:
        spare._store = Book(fleet.clock)
    fleet.clock.advance(AGAIN)
    await fleet.tick(3)
    other = Slices(fleet.spares[0]._store, "new", fleet.clock)
    taken = [await other.reserve("r", [Demand(rpm(100), 1)], ()) for _ in range(40)]
    assert sum(isinstance(one, Reservation) for one in taken) <= 30


@pytest.mark.parametrize("seconds", [0.01, 0.2])
async def test_a_lost_store_is_asked_twice_a_second_at_most(seconds: float) -> None:
    fleet = Fleet(1)
    await fleet.tick(2)
    await fleet.lose()
    before = fleet.store.asked
    for number in range(int(10 / seconds)):
        await fleet.workers[0].reserve("r", [Demand(rpm(9, name=f"{number}"), 1)], ())
        fleet.clock.advance(seconds)
    assert fleet.store.asked - before <= 10 / AGAIN + 1
