"""The port Parking: what is parked has one worker at a time, its own caller, and an end."""

import asyncio

import pytest

from gateway.core.kept import Owner
from gateway.core.parked import Order, Outcome, Seen
from gateway.core.ports import Lease, Parking
from gateway.state.embedded import parking
from tests.contract.conftest import Lots

ANNA = Owner("key:search", "anna")
OTHERS = (Owner("key:search", "bert"), Owner("key:search"), Owner("key:demo", "anna"))
DONE = Outcome(200, b'{"x-gateway-target":"gpt"}', b'{"said":"h\xc3\xa9"}')
DAY = 86_400.0


def order(lots: Lots, lane: str = "search", until: float = 3600.0, **changed: object) -> Order:
    now = lots.clock.now()
    made = Order(lane, "free", now + until, now, b'{"e":1}', b'{"model":"smart"}')
    return made._replace(**changed)


async def parked(lots: Lots, worker: Parking, *asked: object, **changed: object) -> str:
    found = await worker.of(ANNA).park(order(lots, *asked, **changed))
    assert found is not None
    return found


async def taken(worker: Parking) -> Lease:
    found = await worker.take()
    assert found is not None
    return found


async def test_what_is_parked_is_taken_once_and_its_answer_is_there_for_a_day(lots: Lots) -> None:
    here, there = lots.worker(), lots.worker()
    asked = order(lots)
    id = await here.of(ANNA).park(asked)
    assert await there.of(ANNA).look(id) == Seen("parked", asked.due)
    lease = await taken(there)
    assert (lease.id, lease.order, lease.lost) == (id, asked, 0)
    assert (await here.of(ANNA).look(id)).state == "running"
    assert await here.take() is await there.take() is None
    lease.finish(DONE)
    await lots.written()
    assert await here.of(ANNA).look(id) == Seen("done", outcome=DONE)
    await lots.pass_(DAY - 1)
    assert (await here.of(ANNA).look(id)).outcome == DONE
    await lots.pass_(1)
    assert await here.of(ANNA).look(id) is None
    assert await here.take() is None


async def test_nothing_is_anybody_elses(lots: Lots) -> None:
    worker = lots.worker()
    id = await parked(lots, worker)
    for other in OTHERS:
        assert await worker.of(other).look(id) is None
        assert await worker.of(other).drop(id) is None
    lease = await taken(worker)
    lease.finish(DONE)
    await lots.written()
    for other in OTHERS:
        assert await worker.of(other).look(id) is None
        assert await worker.of(other).drop(id) is None
    assert (await worker.of(ANNA).look(id)).state == "done"


async def test_the_oldest_deadline_of_the_lanes_that_are_due_is_next(lots: Lots) -> None:
    worker = lots.worker()
    late = await parked(lots, worker, "a", 300)
    soon = await parked(lots, worker, "a", 100)
    other = await parked(lots, worker, "b", 200)
    first = await taken(worker)
    assert first.id == soon
    first.back(lots.clock.now() + 10)
    await lots.written()
    assert (await taken(worker)).id == other
    assert await worker.take() is None
    await lots.pass_(10)
    assert [(await taken(worker)).id for _ in range(2)] == [soon, late]


async def test_a_lane_is_not_tried_before_there_can_be_room(lots: Lots) -> None:
    worker = lots.worker()
    await parked(lots, worker, due=lots.clock.now() + 7)
    await lots.pass_(6.9)
    assert await worker.take() is None
    await lots.pass_(0.1)
    await taken(worker)


async def test_what_is_too_late_is_taken_though_its_lane_has_no_room(lots: Lots) -> None:
    worker = lots.worker()
    id = await parked(lots, worker, until=50.0, due=lots.clock.now() + 1000)
    await lots.pass_(50)
    assert (await taken(worker)).id == id


async def test_a_long_answer_stays_its_workers_and_a_dead_workers_is_taken_after_15_s(
    lots: Lots,
) -> None:
    here, there = lots.worker(), lots.worker()
    id = await parked(lots, here)
    mine = await taken(here)
    await lots.pass_(100)
    assert await there.take() is None
    lots.kill(here)
    await lots.pass_(14.9)
    assert await there.take() is None
    await lots.pass_(0.2)
    theirs = await taken(there)
    assert (theirs.id, theirs.lost) == (id, 1)
    mine.back(lots.clock.now())  # it stood still and wakes up: too late
    mine.finish(Outcome(500, b"{}", b""))
    await lots.written()
    assert (await here.of(ANNA).look(id)).state == "running"
    theirs.finish(DONE)
    await lots.written()
    assert (await here.of(ANNA).look(id)).outcome == DONE


async def test_who_lost_a_request_to_another_worker_is_told(lots: Lots) -> None:
    here, there = lots.worker(), lots.worker()
    await parked(lots, here)
    mine = await taken(here)
    ended: list[bool] = []
    mine.on_end(lambda: ended.append(True))
    lots.clock.advance(15.0)
    await taken(there)
    assert not ended
    await lots.pass_(0.5)
    assert ended == [True]


@pytest.mark.parametrize("where", ["here", "there"])
async def test_what_is_dropped_is_gone_and_ended_wherever_it_runs(lots: Lots, where: str) -> None:
    here, there = lots.worker(), lots.worker()
    waiting = await parked(lots, here)
    assert await there.of(ANNA).drop(waiting) == "parked"
    assert await here.take() is None
    id = await parked(lots, here)
    lease = await taken(here)
    ended: list[bool] = []
    lease.on_end(lambda: ended.append(True))
    assert await (here if where == "here" else there).of(ANNA).drop(id) == "running"
    await lots.pass_(0.5)
    assert ended == [True]
    lease.finish(DONE)
    await lots.written()
    assert await here.of(ANNA).look(id) is await here.of(ANNA).drop(id) is None


async def test_an_answer_may_be_deleted(lots: Lots) -> None:
    worker = lots.worker()
    id = await parked(lots, worker)
    (await taken(worker)).finish(DONE)
    await lots.written()
    assert await worker.of(ANNA).drop(id) == "done"
    assert await worker.of(ANNA).look(id) is None


async def test_of_many_workers_each_takes_another(lots: Lots) -> None:
    workers = [lots.worker() for _ in range(3)]
    ids = {await parked(lots, workers[0], f"lane{n % 4}") for n in range(9)}
    found = await asyncio.gather(*(workers[n % 3].take() for n in range(12)))
    assert sorted(lease.id for lease in found if lease is not None) == sorted(ids)


async def test_a_tier_has_so_many_places_and_no_other_is_harmed(
    lots: Lots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "MOST", 3)
    monkeypatch.setattr(parking, "MOST_BYTES", 2000)
    worker = lots.worker()
    ids = [await parked(lots, worker, f"lane{n}") for n in range(3)]
    assert await worker.of(ANNA).park(order(lots)) is None
    await parked(lots, worker, tier="team")
    assert await worker.of(ANNA).park(order(lots, tier="team", body=b"x" * 2000)) is None
    await taken(worker)  # what is being answered still has its place
    assert await worker.of(ANNA).park(order(lots)) is None
    await worker.of(ANNA).drop(ids[2])
    await parked(lots, worker)


async def test_answers_have_so_much_room_and_the_oldest_go(
    lots: Lots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "MOST_KEPT", 2500)
    monkeypatch.setattr(parking, "GONE_AT_ONCE", 1)
    worker = lots.worker()
    ids = [await parked(lots, worker, "search", 100.0 + n) for n in range(3)]
    for _ in ids:
        (await taken(worker)).finish(Outcome(200, b"{}", b"x" * 1000))
        await lots.pass_(1)
        await lots.written()
    seen = [await worker.of(ANNA).look(id) for id in ids]
    assert [one is None for one in seen] == [True, False, False]
