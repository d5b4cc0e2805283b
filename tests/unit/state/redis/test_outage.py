"""When Redis counts as lost: the rule of gateway.md 5.5, call by call."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.state.redis.outage import Outage

FAST, SLOW = 0.001, 0.051


def test_three_failures_in_a_row_are_a_loss_and_two_are_not() -> None:
    outage = Outage()
    assert not outage.failed("timeout")
    assert not outage.failed("timeout")
    outage.answered(FAST)
    assert [outage.failed("timeout") for _ in range(3)] == [False, False, True]
    assert outage.lost
    assert outage.why == "3 failures in a row, the last: timeout"


def test_two_slow_calls_among_twenty_are_a_loss_and_one_is_not() -> None:
    outage = Outage()
    outage.answered(SLOW)
    assert not any(outage.answered(FAST) for _ in range(19))
    outage.answered(SLOW)  # the first has left the last 20 by now
    assert outage.answered(SLOW)
    assert outage.why == "slow: 2 of 20 calls took more than 50 ms"


def test_two_good_pings_in_a_row_end_it() -> None:
    outage = Outage()
    outage.lose("timeout")
    assert [outage.pinged(seconds) for seconds in (FAST, None, FAST, SLOW, FAST, FAST)] == [
        False, False, False, False, False, True,
    ]  # fmt: skip
    outage.end()
    assert not outage.failed("timeout")


@settings(deadline=None)
@given(st.lists(st.sampled_from([FAST, SLOW, None]), max_size=60))
def test_it_is_lost_exactly_when_the_rule_says_so(calls: list[float | None]) -> None:
    outage = Outage()
    for count in range(1, len(calls) + 1):
        call = calls[count - 1]
        if call is None:
            outage.failed("timeout")
        else:
            outage.answered(call)
        answered = [one for one in calls[:count] if one is not None][-20:]
        slow = len(answered) == 20 and sorted(answered)[18] > 0.05
        if (slow and call is not None) or calls[:count][-3:] == [None, None, None]:
            assert outage.lost
            return
        assert not outage.lost
