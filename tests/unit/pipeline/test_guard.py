"""A process with too much to do turns away what matters least, says so, and recovers."""

import pytest

from gateway.core.events import GuardMoved
from gateway.core.principal import Principal
from gateway.core.request import Hints
from gateway.pipeline.guard import ALL, CALM, LAGS, WELL, Guard, Vitals
from tests.support.fakes import World, answers, make_chain

HIGH, NORMAL, LOW = "high", "normal", "low"


def looked(lag: float = 0.0, vitals: Vitals = WELL, times: int = LAGS) -> Guard:
    guard = Guard()
    for _ in range(times):
        guard.look(lag, vitals)
    return guard


@pytest.mark.parametrize(
    ("lag", "memory", "taken"),
    [
        (0.04, 0.84, {HIGH, NORMAL, LOW}),
        (0.06, 0.0, {HIGH, NORMAL}),
        (0.0, 0.86, {HIGH, NORMAL}),
        (0.21, 0.0, {HIGH}),
        (0.21, 0.86, {HIGH}),
        (0.0, 0.96, set()),
        (0.06, 0.96, set()),
    ],
)
async def test_the_worse_it_is_the_fewer_classes_are_taken(lag, memory, taken):
    guard = looked(lag, Vitals(memory))
    for priority in (HIGH, NORMAL, LOW):
        world = World(
            make_chain("gpt"), {"gpt": answers()}, principal=Principal("k", priority=priority)
        )
        world.guard.level, world.guard.why = guard.level, guard.why
        told = await world.ask()
        assert told.exchange.status == (200 if priority in taken else 503)


async def test_a_shed_request_hears_why_and_when_to_come_back_and_holds_nothing():
    world = World(make_chain("gpt"), {"gpt": answers()})
    for _ in range(LAGS):
        world.guard.look(0.25, WELL)
    refusal = (await world.ask()).refusal
    assert (refusal.status, refusal.code, refusal.scope) == (503, "overloaded", "process")
    assert "event loop is 250 ms late" in refusal.message
    assert "priority normal and low" in refusal.message
    assert 2.0 <= refusal.retry_after <= 2.5
    assert refusal.headers()["x-should-retry"] == "true"
    assert world.limiter.headroom([]) == ()
    assert world.upstreams.open == 0


async def test_who_asks_for_a_lower_class_is_shed_with_it():
    world = World(make_chain("gpt"), {"gpt": answers()})
    for _ in range(LAGS):
        world.guard.look(0.06, WELL)
    assert (await world.begin(hints=Hints(priority="low")).end()).exchange.status == 503
    assert (await world.ask()).exchange.status == 200


def test_single_hiccups_shed_nobody_and_three_in_ten_seconds_do():
    guard = Guard()
    moves = [guard.look(lag, WELL) for lag in (0.9, 0.0, 0.9, 0.0)]
    assert moves == [None] * 4
    moved = guard.look(0.3, WELL)
    assert moved == GuardMoved("normal", crowded=False, why="its event loop is 300 ms late")


def test_a_change_is_told_once_and_recovery_waits_until_it_is_sure():
    guard = Guard()
    assert guard.look(0.0, Vitals(0.90)) is not None
    assert guard.look(0.0, Vitals(0.91)) is None
    assert guard.degraded() == [
        "requests of priority low are turned away: its memory is at 91% of the limit"
    ]
    for memory in (0.5, 0.5, 0.86, *[0.5] * (CALM - 1)):  # one look above begins the count anew
        assert guard.look(0.0, Vitals(memory)) is None
        assert guard.level < ALL
    assert guard.look(0.0, Vitals(0.5)) == GuardMoved("nobody", crowded=False, why="")
    assert guard.level == ALL
    assert guard.degraded() == []


def test_open_files_above_half_refuse_connections_and_no_request():
    guard = Guard()
    moved = guard.look(0.0, Vitals(files=0.51))
    assert moved == GuardMoved("nobody", crowded=True, why="51% of its file descriptors are open")
    assert guard.level == ALL
    assert guard.degraded() == [
        "new connections are turned away: 51% of its file descriptors are open"
    ]
    for _ in range(CALM):
        assert guard.crowded
        guard.look(0.0, Vitals(files=0.4))
    assert not guard.crowded
