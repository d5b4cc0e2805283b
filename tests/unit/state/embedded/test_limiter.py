"""What the contract does not say: the embedded limiter's memory."""

from gateway.core.attempt import Demand, Reservation
from gateway.state.embedded.limiter import EmbeddedLimiter
from tests.support.clock import ManualClock
from tests.unit.state.make import at_once, rpm, slots, tpm


def test_accounts_nobody_uses_are_forgotten() -> None:
    clock = ManualClock()
    limiter = EmbeddedLimiter(clock)
    for number in range(500):
        name = f"k{number}"
        demands = [Demand(rpm(5, name=name), 1), Demand(tpm(9, name), 1), Demand(slots(2, name), 1)]
        taken = at_once(limiter.reserve("r", demands, ()))
        assert isinstance(taken, Reservation)
        limiter.settle(taken, [demand.account for demand in demands], 3)
    assert len(limiter) == 1500
    clock.advance(200.0)
    for _ in range(100):
        clock.advance(1.0)
        at_once(limiter.reserve("r", [Demand(rpm(1000), 1)], ()))
    assert len(limiter) == 1


def test_what_is_held_is_never_forgotten() -> None:
    clock = ManualClock()
    limiter = EmbeddedLimiter(clock)
    at_once(limiter.reserve("r", [Demand(slots(1), 1), Demand(tpm(10), 10)], ()))
    for number in range(1000):
        clock.advance(10.0)
        at_once(limiter.reserve("r", [Demand(rpm(1, name=f"k{number}"), 1)], ()))
    assert limiter.wait([Demand(slots(1), 1)]) > 0
    assert limiter.wait([Demand(tpm(10), 1)]) > 0
    assert len(limiter) < 40


def test_without_a_loop_whoever_waits_is_woken_at_once() -> None:
    limiter = EmbeddedLimiter(ManualClock())
    woken: list[int] = []
    limiter.on_room(lambda: woken.append(1))
    taken = at_once(limiter.reserve("r", [Demand(slots(1), 1)], ()))
    assert isinstance(taken, Reservation)
    limiter.settle(taken, [slots(1)], 0)
    assert woken == [1]
