"""The script follows the maths of `state.accounts`, call for call."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.clock import SystemClock
from gateway.core.attempt import Demand, Reservation
from gateway.core.events import Event
from gateway.core.target import Account
from gateway.state.accounts import Answer, Ask, Book, Caller, Full, StoreLost
from gateway.state.journal import Journal
from gateway.state.redis.accounts import GONE, RULES, RedisAccounts
from gateway.state.redis.connect import Link
from gateway.state.redis.ledger import RedisLedger
from gateway.state.redis.spent import BUDGETS
from gateway.state.slices import HEARTBEAT, TICK, Slices
from gateway.state.spare import AGAIN, Spare
from tests.support.clock import ManualClock
from tests.support.limits import Timed, at_once
from tests.support.redis import RedisServer
from tests.unit.state.make import budget, line, opening, rpm, slots, tpm

ACCOUNTS = (rpm(9), rpm(30, burst=3, name="m"), tpm(100), slots(4), budget(60), rpm(0, name="no"))


@st.composite
def asks(draw: st.DrawFn) -> list[Ask]:
    chosen = draw(st.lists(st.sampled_from(ACCOUNTS), min_size=1, unique=True))
    few = st.integers(0, 30)
    return [
        Ask(
            account, draw(few), draw(st.integers(0, 60)), draw(few), draw(few), draw(few),
            tuple(draw(st.lists(st.tuples(few, few), max_size=1))),
        )
        for account in chosen
    ]  # fmt: skip


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, float, list[Ask], list[list[tuple[int, int]]]]:
    said = draw(asks())
    need = st.tuples(st.integers(0, len(said) - 1), st.integers(1, 40))
    group = st.lists(need, min_size=1, max_size=4, unique_by=lambda one: one[0])
    ahead = draw(st.sampled_from((0.0, 0.25, 1.0, 7.0, 16.0, 30.0, 61.0)))
    return draw(st.sampled_from("abc")), ahead, said, draw(st.lists(group, max_size=4))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> object:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=set(Phase) - {Phase.explain},
)
@given(said=st.lists(calls(), min_size=1, max_size=20), late=st.booleans())
def test_the_script_answers_as_the_maths_does(
    shared: RedisServer, monkeypatch: pytest.MonkeyPatch, said: list[object], *, late: bool
) -> None:
    monkeypatch.setitem(RULES, "gone", 1e6)  # in memory there is nobody whose disk is gone
    clock = ManualClock()
    book, there = Book(clock), RedisAccounts(Timed(shared.url, clock))
    book._sweep = lambda *_: None  # type: ignore[method-assign]  # Redis forgets by its own time
    heard: dict[str, float] = {}
    for turn, (name, seconds, asked, groups) in enumerate(said, 1):  # type: ignore[misc]
        clock.advance(seconds)
        caller = Caller(name, turn, heard.get(name, 0.0))
        one = book.answer(caller, asked, groups)
        other = at_once(there.sync(caller, asked, groups))
        if not late:
            heard[name] = one.now
        assert rounded(one) == rounded(other)


def rounded(answer: Answer) -> object:
    """Times by the microsecond, which is what Redis counts in, give or take one."""
    verdicts = [
        (one.place, one.wait and round(one.wait, 4), one.sure) if isinstance(one, Full) else one
        for one in answer.verdicts
    ]
    slices = [(one.granted, one.rest, round(one.whole, 4)) for one in answer.slices]
    return answer.known, answer.workers, answer.rank, slices, verdicts


async def test_a_call_that_comes_late_is_not_carried_out(
    server: RedisServer, tmp_path: Path
) -> None:
    heard: list[Event] = []
    link = Link(server.url, SystemClock(), heard.append)
    accounts = RedisAccounts(link)
    ask = Ask(tpm(100), 0, 0, 0, 50, 0)
    await accounts.sync(Caller("w1", 2, 0.0), [ask], [])
    with pytest.raises(StoreLost, match="late"):
        await accounts.sync(Caller("w1", 1, 0.0), [ask._replace(bound=0)], [])
    answer = await accounts.sync(Caller("w2", 1, 0.0), [ask._replace(bound=0)], [])
    assert (answer.slices[0].rest, answer.workers, answer.rank) == (50, 2, 1)
    await link.close()


async def test_what_was_spent_of_a_budget_counts(server: RedisServer) -> None:
    link = Link(server.url, SystemClock(), lambda _: None)
    day: Account = budget(1000)
    await link.call("HSET", BUDGETS, day.id, 990)
    ask = Ask(day, 0, 0, 0, 0, 5)
    answer = await RedisAccounts(link).sync(Caller("w1", 1, 0.0), [ask], [[(0, 10)]])
    assert (answer.slices[0].granted, answer.slices[0].rest) == (10, 0)
    await link.close()


async def test_what_a_worker_held_that_is_gone_with_its_disk_is_charged_and_its_lines_beyond_that(
    server: RedisServer, tmp_path: Path
) -> None:
    clock, day = ManualClock(), budget(1000)
    accounts = RedisAccounts(Timed(server.url, clock))
    link = Link(server.url, SystemClock(), lambda _: None, 2.0)
    journal = Journal(tmp_path, "gone")
    ledger = RedisLedger(journal, link, clock, lambda _: None)
    turn = 0

    async def left(worker: str, bound: int = 0) -> int:
        nonlocal turn
        turn += 1
        asks = [Ask(day, 0, 0, 0, bound, 0)]
        return (await accounts.sync(Caller(worker, turn, 0.0), asks, [])).slices[0].rest

    async def live(seconds: int) -> None:
        for _ in range(0, seconds, 10):
            clock.advance(10.0)
            await left("w1")

    assert await left("gone", 300) == 700
    await live(GONE - 60)
    clock.advance(2.0 * GONE)  # Redis itself was away: that is no silence of the worker's
    await live(GONE - 60)
    assert await link.call("HGET", BUDGETS, day.id) is None
    assert await left("w1") == 700
    await live(120)
    assert await left("w1") == 700
    assert await link.call("HGET", BUDGETS, day.id) == b"300"
    for number, nano_usd, spent in ((1, 200, b"300"), (2, 150, b"350"), (3, 5, b"355")):
        ledger.open(opening(f"{number}.1", budgets=(day.id,)))
        ledger.close(line(f"{number}.1", nano_usd=nano_usd))
        assert await ledger.ship()
        assert await link.call("HGET", BUDGETS, day.id) == spent
    assert await left("w1") == 645
    await ledger.leave()
    await link.close()


async def test_a_redis_that_is_gone_is_a_store_that_is_lost(server: RedisServer) -> None:
    link = Link(server.url, SystemClock(), lambda _: None)
    server.kill()
    with pytest.raises(StoreLost):
        await RedisAccounts(link).sync(Caller("w1", 1, 0.0), [], [])
    await link.close()


async def admitted(workers: Sequence[Slices]) -> list[int]:
    """By each worker, five at a time, as often as it is let."""
    total = [0] * len(workers)
    for _ in range(20):
        for which, worker in enumerate(workers):
            taken = await worker.reserve("r", [Demand(slots(40), 5)], ())
            total[which] += 5 * isinstance(taken, Reservation)
    return total


async def test_while_redis_is_frozen_nobody_is_turned_away_and_after_it_all_share_again(
    server: RedisServer,
) -> None:
    clock, told = ManualClock(), list[str]()
    links = [Link(server.url, SystemClock(), lambda _: None) for _ in range(2)]
    spares = [Spare(RedisAccounts(link), clock, 2, told.append) for link in links]
    workers = [Slices(spare, f"w{number}", clock) for number, spare in enumerate(spares)]
    for worker in (*workers, *workers):
        await worker.tick()
        clock.advance(HEARTBEAT)
    for worker in workers:
        await worker.tick()
    server.freeze()
    assert await admitted(workers) == [20, 20]
    assert len(told) == 2
    assert all(spare.lost for spare in spares)
    server.thaw()
    for _ in range(3):
        for link in links:
            await link.look()
    clock.advance(AGAIN)
    for _ in range(3):
        for worker in workers:
            await worker.tick()
        clock.advance(TICK)
    assert not any(spare.lost for spare in spares)
    assert await admitted(workers) == [0, 0]
    assert await admitted([Slices(RedisAccounts(links[0]), "fresh", clock)]) == [0]
    for link in links:
        await link.close()


def test_a_clock_that_was_set_back_frees_nothing_and_ends_within_a_minute(
    shared: RedisServer,
) -> None:
    before, after = ManualClock(), ManualClock()
    before.advance(86_400.0)
    timed = Timed(shared.url, before)
    there = RedisAccounts(timed)
    meter = rpm(1, burst=1, name="m")
    full = [Ask(tpm(100), 0, 100, 0, 0, 0), Ask(meter, 0, 0, 0, 0, 0)]
    at_once(there.sync(Caller("a", 1, 0.0), full, [[(1, 1)]]))
    timed._clock = after
    for seconds, admitted in ((0.0, False), (59.0, False), (3.0, True)):
        after.advance(seconds)
        turn = int(after.monotonic())
        empty = [Ask(tpm(100), 0, 0, 0, 0, 0), Ask(meter, 0, 0, 0, 0, 0)]
        answer = at_once(there.sync(Caller("b", turn, 0.0), empty, [[(0, 1)], [(1, 1)]]))
        assert [not isinstance(one, Full) for one in answer.verdicts] == [admitted] * 2
