"""How each target stands: each rule of gateway.md 3.4 and 3.6 as a claim."""

import random

import pytest

from gateway.core.events import BreakerMoved, Event, KeyAside
from gateway.core.plan import WELL
from gateway.core.target import BreakerPolicy, Cause, Target
from gateway.state.embedded.health import LocalHealth
from tests.support.clock import ManualClock
from tests.unit.state.make import ended, failed, target

GPT = target()


class Longest(random.Random):
    """Draws the upper end: cooldowns are what they are at most."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Ward:
    """A health with its clock and what it said."""

    def __init__(self, *targets: Target, rng: random.Random | None = None) -> None:
        self.clock = ManualClock()
        self.heard: list[Event] = []
        self.health = LocalHealth(self.clock, self.heard.append, rng or Longest())
        self.health.use(targets or (GPT,))

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def fail(self, of: Target = GPT, times: int = 1, cause: Cause = Cause.SERVER_ERROR) -> None:
        for _ in range(times):
            self.health.record(failed(of, self.now, cause), of)

    def succeed(self, of: Target = GPT, times: int = 1) -> None:
        for _ in range(times):
            self.health.record(ended(of, self.now), of)

    def trip(self, of: Target = GPT) -> float:
        """Open it; for how many seconds."""
        self.fail(of, 5)
        return self.health.standing(of.id).open_until - self.now

    def probe(self, of: Target = GPT, *, ok: bool, took: float = 0.111) -> None:
        assert self.health.enter(of)
        started = self.now
        self.clock.advance(took)
        attempt = (
            ended(of, started, probe=True, took=took) if ok else failed(of, started, probe=True)
        )
        self.health.record(attempt, of)

    def recover(self, of: Target = GPT) -> None:
        self.clock.advance(max(0.0, self.health.standing(of.id).open_until - self.now))
        self.probe(of, ok=True)

    def moves(self) -> list[tuple[str, str, str]]:
        return [(e.was, e.to, e.detail) for e in self.heard if isinstance(e, BreakerMoved)]

    def state(self, of: Target = GPT) -> str:
        return next(b.state for b in self.health.breakers() if b.target_id == of.id)


def test_a_target_nothing_is_held_against_stands_well_and_costs_no_object() -> None:
    ward = Ward()
    assert ward.health.standing("gpt") is WELL
    assert ward.health.standing("nobody") is WELL
    ward.succeed()
    ward.fail()
    assert ward.health.standing("gpt") is WELL


def test_five_failures_in_a_row_open_it() -> None:
    ward = Ward()
    ward.fail(times=4)
    ward.succeed()
    ward.fail(times=4)
    assert ward.state() == "closed"
    ward.fail()
    assert ward.health.standing("gpt").open_until == ward.now + 5.0
    (event,) = ward.heard
    assert event == BreakerMoved(
        "gpt", "gpt", "closed", "open", "5 failures in a row", ward.now + 5.0
    )


def test_half_of_twenty_in_the_window_open_it() -> None:
    ward = Ward()
    for _ in range(9):
        ward.fail()
        ward.succeed()
    assert ward.state() == "closed"  # 9 of 18
    ward.succeed()
    ward.fail()
    assert ward.moves() == [("closed", "open", "10 of 20 failed in 30 s")]


def test_what_is_older_than_the_window_is_forgotten() -> None:
    ward = Ward()
    for _ in range(9):
        ward.fail()
        ward.succeed()
    ward.clock.advance(31.0)
    for _ in range(2):
        ward.succeed()
        ward.fail()
    assert ward.state() == "closed"


@pytest.mark.parametrize(("enough", "state"), [(20, "open"), (21, "closed")])
def test_a_steady_trickle_never_counts_more_than_one_window(enough: int, state: str) -> None:
    slow = target(breaker=BreakerPolicy(min_requests=enough))
    ward = Ward(slow)
    for _ in range(100):  # two every 3 s are at most 20 in 30 s
        ward.clock.advance(3.0)
        ward.succeed(slow)
        ward.fail(slow)
        if ward.state() == "open":
            break
    assert ward.state() == state


@pytest.mark.parametrize(
    "cause", [Cause.BAD_REQUEST, Cause.CONTENT_POLICY, Cause.CONTEXT_LENGTH, Cause.UNABLE]
)
def test_what_is_the_callers_affair_never_opens_it(cause: Cause) -> None:
    ward = Ward()
    ward.fail(times=50, cause=cause)
    assert ward.state() == "closed"


def test_an_attempt_that_neither_finished_nor_failed_counts_for_nobody() -> None:
    ward = Ward()
    ward.fail(times=4)
    left = ended(GPT, ward.now)
    left.finished = False
    ward.health.record(left, GPT)
    ward.fail()
    assert ward.state() == "open"  # it did not break the row either


@pytest.mark.parametrize("cause", [Cause.STALLED, Cause.CUT_STREAM, Cause.FIRST_TOKEN])
def test_broken_streams_open_it(cause: Cause) -> None:
    ward = Ward()
    ward.fail(times=5, cause=cause)
    assert ward.state() == "open"


def test_the_cooldown_doubles_with_each_trip_in_a_row_up_to_its_maximum() -> None:
    ward = Ward()
    lengths = [ward.trip()]
    for _ in range(4):
        ward.clock.advance(lengths[-1])
        ward.probe(ok=False, took=0.0)
        lengths.append(ward.health.standing("gpt").open_until - ward.now)
    assert lengths == pytest.approx([5.0, 10.0, 20.0, 30.0, 30.0])


def test_the_cooldown_is_spread_over_its_last_quarter() -> None:
    lengths = [Ward(rng=random.Random(seed)).trip() for seed in range(200)]
    assert min(lengths) >= 3.75
    assert max(lengths) <= 5.0
    assert max(lengths) - min(lengths) > 1.1


def test_each_healthy_minute_forgives_one_trip() -> None:
    ward = Ward()
    assert ward.trip() == 5.0
    ward.recover()
    ward.clock.advance(10.0)
    assert ward.trip() == pytest.approx(10.0)
    ward.recover()
    ward.clock.advance(59.0)
    assert ward.trip() == pytest.approx(20.0)
    ward.recover()
    ward.clock.advance(61.0)
    assert ward.trip() == pytest.approx(20.0)
    ward.recover()
    ward.clock.advance(600.0)
    assert ward.trip() == pytest.approx(5.0)


def test_after_its_time_one_probe_and_only_one() -> None:
    ward = Ward()
    ward.clock.advance(ward.trip())
    standing = ward.health.standing("gpt")
    assert (standing.open_until, standing.half_open, standing.probing) == (0.0, True, False)
    assert ward.health.enter(GPT)
    assert ward.health.standing("gpt").probing
    assert not ward.health.enter(GPT)
    ward.health.leave(GPT)
    assert not ward.health.standing("gpt").probing
    assert ward.health.enter(GPT)


def test_a_probe_that_succeeds_closes_and_says_how_long_it_took() -> None:
    ward = Ward()
    ward.trip()
    ward.recover()
    assert ward.moves() == [
        ("closed", "open", "5 failures in a row"),
        ("open", "half-open", "probe under way"),
        ("half-open", "closed", "probe ok, 111 ms"),
    ]


def test_a_probe_with_content_closes_before_its_stream_has_ended() -> None:
    ward = Ward()
    ward.clock.advance(ward.trip())
    assert ward.health.enter(GPT)
    attempt = ended(GPT, ward.now, probe=True)
    attempt.finished = False
    attempt.first_content = ward.now + 0.2
    ward.health.answered(attempt, GPT)
    assert ward.moves()[-1] == ("half-open", "closed", "probe ok, 200 ms")


def test_for_four_seconds_after_it_gets_a_part_of_its_traffic() -> None:
    ward = Ward()
    ward.trip()
    ward.recover()
    shares = []
    for _ in range(9):
        shares.append(ward.health.standing("gpt").share)
        ward.clock.advance(0.5)
    assert shares == [0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.75, 0.75, 1.0]
    assert ward.health.standing("gpt") is WELL


@pytest.mark.parametrize("cause", [Cause.SERVER_ERROR, Cause.RATE_LIMITED])
def test_a_failure_or_429_of_the_probe_reopens(cause: Cause) -> None:
    ward = Ward()
    ward.clock.advance(ward.trip())
    assert ward.health.enter(GPT)
    ward.health.record(failed(GPT, ward.now, cause, probe=True), GPT)
    assert ward.health.standing("gpt").open_until == ward.now + 10.0
    assert ward.moves()[-1] == ("half-open", "open", f"probe failed: {cause}")


@pytest.mark.parametrize("cause", [Cause.SERVER_ERROR, Cause.RATE_LIMITED])
def test_a_failure_or_429_while_it_is_taken_back_reopens(cause: Cause) -> None:
    ward = Ward()
    ward.trip()
    ward.recover()
    ward.clock.advance(1.0)
    ward.fail(cause=cause)
    assert ward.moves()[-1] == ("closed", "open", f"failed again: {cause}")


def test_what_was_sent_before_it_opened_is_judged_no_more() -> None:
    ward = Ward()
    sent = ward.now
    ward.clock.advance(1.0)
    ward.trip()
    ward.health.record(ended(GPT, sent), GPT)  # a late success does not close
    assert ward.state() == "open"
    ward.recover()
    ward.health.record(failed(GPT, sent), GPT)  # a late failure does not reopen
    assert ward.state() == "closed"


def test_a_probe_without_a_verdict_gives_its_place_back() -> None:
    ward = Ward()
    ward.clock.advance(ward.trip())
    assert ward.health.enter(GPT)
    left = ended(GPT, ward.now, probe=True)
    left.finished = False
    ward.health.record(left, GPT)
    assert ward.state() == "half-open"
    assert ward.health.enter(GPT)
    ward.health.record(failed(GPT, ward.now, Cause.BAD_REQUEST, probe=True), GPT)
    assert ward.health.enter(GPT)


def test_a_probe_nobody_answers_for_does_not_keep_the_place_for_ever() -> None:
    ward = Ward()
    ward.clock.advance(ward.trip())
    assert ward.health.enter(GPT)
    ward.clock.advance(601.0)
    assert ward.health.enter(GPT)


def test_when_all_are_open_one_may_be_asked_before_its_time() -> None:
    ward = Ward()
    ward.trip()
    ward.clock.advance(1.0)
    ward.succeed()  # nobody else can have asked it
    assert ward.state() == "closed"
    ward.clock.advance(5.0)
    ward.trip()
    assert ward.health.enter(GPT)
    assert not ward.health.enter(GPT)
    ward.health.leave(GPT)
    assert ward.state() == "open"


def test_429_rests_model_and_key_until_its_reset() -> None:
    twin = target("gpt-cheap", model=GPT.model)
    spare = target("gpt#spare", model=GPT.model, key="spare")
    ward = Ward(GPT, twin, spare)
    ward.health.record(failed(GPT, ward.now, Cause.RATE_LIMITED, retry_after=3.0), GPT)
    assert ward.health.standing("gpt").throttled_until == ward.now + 3.0
    assert ward.health.standing("gpt-cheap").throttled_until == ward.now + 3.0
    assert ward.health.standing("gpt#spare") is WELL
    ward.health.record(failed(GPT, ward.now, Cause.RATE_LIMITED, retry_after=1.0), GPT)
    assert ward.health.standing("gpt").throttled_until == ward.now + 3.0  # never shorter
    ward.clock.advance(3.0)
    assert ward.health.standing("gpt") is WELL
    assert ward.state() == "closed"
    assert not ward.heard


def test_429_without_a_hint_rests_a_second_doubling_while_it_goes_on() -> None:
    ward = Ward()
    rests = []
    for _ in range(7):
        sent = ward.now
        ward.clock.advance(0.5)
        for _ in range(3):  # three that were sent together count as one
            ward.health.record(failed(GPT, sent, Cause.RATE_LIMITED), GPT)
        rests.append(ward.health.standing("gpt").throttled_until - ward.now)
        ward.clock.advance(rests[-1])
    assert rests == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    ward.succeed()
    ward.fail(cause=Cause.RATE_LIMITED)
    assert ward.health.standing("gpt").throttled_until == ward.now + 1.0


def test_a_request_that_was_too_large_throttles_nobody() -> None:
    ward = Ward()
    ward.health.record(failed(GPT, ward.now, Cause.RATE_LIMITED, throttles=False), GPT)
    assert ward.health.standing("gpt") is WELL


def test_a_refused_key_is_set_aside_for_all_that_show_it_doubling() -> None:
    other = target("mini")
    spare = target("gpt#spare", key="spare")
    ward = Ward(GPT, other, spare)
    seconds = []
    for _ in range(8):
        ward.fail(cause=Cause.AUTH)
        seconds.append(ward.health.standing("mini").aside_until - ward.now)
        ward.clock.advance(seconds[-1] + 1)
    assert seconds == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert ward.health.standing("gpt#spare") is WELL
    assert ward.heard[0] == KeyAside("gpt", "openai", "main", "auth", 60.0)
    ward.succeed(other)
    ward.fail(cause=Cause.AUTH)
    assert ward.health.standing("gpt").aside_until == ward.now + 60


def test_many_refused_at_once_are_one_alarm() -> None:
    ward = Ward()
    sent = ward.now
    ward.clock.advance(0.3)
    for _ in range(10):
        ward.health.record(failed(GPT, sent, Cause.QUOTA), GPT)
    assert ward.heard == [KeyAside("gpt", "openai", "main", "quota", 300.0)]
    assert ward.health.standing("gpt").aside_until == ward.now + 300


def test_a_retired_model_is_left_alone_for_a_minute_with_one_alarm() -> None:
    other = target("mini")
    ward = Ward(GPT, other)
    for _ in range(3):
        ward.fail(cause=Cause.MODEL_GONE)
        assert ward.health.standing("gpt").aside_until == ward.now + 60
        ward.clock.advance(61.0)
    assert len(ward.heard) == 1
    assert ward.health.standing("mini") is WELL
    ward.succeed()
    ward.fail(cause=Cause.MODEL_GONE)
    assert len(ward.heard) == 2


def test_a_missing_ability_is_remembered_for_ten_minutes() -> None:
    ward = Ward()
    for feature in ("tools", "logprobs"):
        ward.health.record(failed(GPT, ward.now, Cause.UNABLE, feature=feature), GPT)
        ward.clock.advance(60.0)
    assert ward.health.standing("gpt").lacks == {"tools", "logprobs"}
    ward.clock.advance(481.0)
    assert ward.health.standing("gpt").lacks == {"logprobs"}
    ward.clock.advance(60.0)
    assert ward.health.standing("gpt") is WELL


def test_what_is_learnt_is_bounded() -> None:
    ward = Ward()
    for number in range(1000):
        ward.health.record(failed(GPT, ward.now, Cause.UNABLE, feature=f"p{number}"), GPT)
    assert len(ward.health.standing("gpt").lacks) == 32


def test_retries_are_at_most_ten_and_a_fifth_of_the_first_attempts() -> None:
    ward = Ward()
    granted = sum(ward.health.withdraw(GPT) for _ in range(50))
    assert granted == 10
    for _ in range(49):
        ward.health.deposit(GPT, 0.2)
        granted += ward.health.withdraw(GPT)
    assert granted == 10 + 9
    ward.health.deposit(GPT, 0.2)
    assert ward.health.withdraw(GPT)
    for _ in range(1000):
        ward.health.deposit(GPT, 0.2)
    assert sum(ward.health.withdraw(GPT) for _ in range(50)) == 10


def test_a_reload_keeps_what_is_known_by_id_and_forgets_what_is_gone() -> None:
    other = target("mini")
    ward = Ward(GPT, other)
    ward.trip()
    ward.fail(other, 5)
    ward.health.use([target(breaker=BreakerPolicy(failures=2)), target("new")])
    assert [(b.target_id, b.state) for b in ward.health.breakers()] == [
        ("gpt", "open"),
        ("new", "closed"),
    ]
    ward.fail(other, 5)  # one that was under way: nobody asks any more
    assert ward.health.standing("mini") is WELL
    assert len(ward.health.breakers()) == 2
    ward.fail(target("new"), 5)
    assert ward.state(target("new")) == "open"


def test_a_key_set_aside_stays_aside_over_a_reload() -> None:
    ward = Ward()
    ward.fail(cause=Cause.QUOTA)
    ward.health.use([target(), target("more")])
    assert ward.health.standing("more").aside_until == ward.now + 300


def test_an_operator_may_hold_it_open() -> None:
    ward = Ward()
    assert ward.health.force("gpt", "open")
    ward.clock.advance(3600.0)
    assert ward.health.standing("gpt").open_until > ward.now
    assert not ward.health.enter(GPT)
    ward.succeed()
    assert ward.state() == "open"
    assert ward.health.force("gpt", None)
    assert ward.health.standing("gpt") is WELL
    assert ward.moves() == [
        ("closed", "open", "by an operator"),
        ("open", "closed", "by an operator"),
    ]


def test_an_operator_may_hold_it_closed() -> None:
    ward = Ward()
    ward.trip()
    assert ward.health.force("gpt", "closed")
    ward.fail(times=50)
    assert ward.health.standing("gpt") is WELL
    ward.health.force("gpt", None)
    assert ward.trip() == 5.0


def test_a_target_nobody_knows_cannot_be_forced() -> None:
    assert not Ward().health.force("nobody", "open")
