"""The maths of limits."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.state.accounts import IDLE, Meter, Requests, Slots, Tokens, Window, counted
from tests.unit.state.make import rpm, slots, tpm

MICRO = 1_000_000


def test_a_bucket_leaves_only_when_all_of_it_is_older_than_the_window() -> None:
    window = Window()
    window.add(100.999, 5)
    window.age(160.999)
    assert window.settled == 5
    window.age(161.0)
    assert window.settled == 0


def test_a_clock_that_steps_back_frees_nothing() -> None:
    window = Window()
    window.add(100.0, 5)
    window.add(40.0, 5)
    window.age(90.0)
    assert window.settled == 10
    window.age(160.9)
    assert window.settled == 10


def test_at_most_61_buckets_are_kept() -> None:
    window = Window()
    for second in range(1000):
        window.age(float(second))
        window.add(float(second), 1)
    assert len(window.buckets) == 61
    assert window.settled == 61


def test_what_has_left_cannot_be_taken_back() -> None:
    window = Window()
    bucket = window.add(100.0, 5)
    window.age(200.0)
    window.take_back(bucket, 5)
    assert window.settled == 0


def test_a_count_that_is_taken_back_long_after_others_came_leaves_theirs() -> None:
    requests = Requests()
    first = requests.take(100.0, 1, rpm(3))
    assert requests.take(130.0, 1, rpm(3)) is not None
    assert first is not None
    requests.undo(150.0, 1, first)
    assert requests.left(150.0, rpm(3))[0] == 2


def test_the_wait_for_tokens_is_exact_when_only_settled_use_is_in_the_way() -> None:
    tokens = Tokens()
    mark = tokens.take(100.0, 40, tpm(100))
    assert mark is not None
    tokens.settle(105.5, 40, 90, mark)
    wait = tokens.wait(110.25, 20, tpm(100))
    assert 166.0 < 110.25 + wait < 166.001
    assert tokens.take(110.25 + wait, 20, tpm(100)) is not None


def test_where_a_hold_is_in_the_way_the_wait_is_the_mean_time_a_hold_lasts() -> None:
    tokens, slot = Tokens(), Slots()
    for cell, account in ((tokens, tpm(10)), (slot, slots(1))):
        assert cell.take(0.0, account.limit, account) is not None
        assert cell.wait(0.0, 1, account) == 1.0  # nothing known yet
        for _ in range(200):
            cell.settle(5.0, account.limit, 0, 0.0)
            assert cell.take(5.0, account.limit, account) is not None
        assert 4.9 < cell.wait(5.0, 1, account) <= 5.0


def test_accounts_are_idle_two_windows_after_their_last_use() -> None:
    for account in (rpm(5), rpm(5, burst=2), tpm(10), slots(1)):
        cell = counted(account)
        mark = cell.take(1000.0, 1, account)
        assert mark is not None
        if account.kind != "rpm":
            assert not cell.idle(1000.0 + IDLE + 60)
        cell.settle(1000.0, 1, 1, mark)
        assert not cell.idle(1000.0 + 61)
        assert cell.idle(1000.0 + IDLE + 61)


@settings(deadline=None)
@given(
    limit=st.integers(1, 600),
    burst=st.integers(1, 8),
    steps=st.lists(st.tuples(st.floats(0, 8), st.booleans()), max_size=60),
)
def test_in_any_span_a_meter_admits_at_most_its_burst_and_its_rate(
    limit: int, burst: int, steps: list[tuple[float, bool]]
) -> None:
    meter = Meter()
    now = 1_000 * MICRO
    admitted: list[int] = []
    taken = []
    for seconds, give_back in steps:
        now += int(seconds * MICRO)
        wait = meter.wait(now, 1, limit, burst)
        mark = meter.take(now, 1, limit, burst)
        assert (mark is not None) == (wait == 0)
        if mark is None:
            now += int(wait * MICRO)
            mark = meter.take(now, 1, limit, burst)
            assert mark is not None  # the wait was the truth
        admitted.append(now)
        taken.append((mark, now))
        if give_back:
            mark, at = taken.pop(len(taken) // 2)
            meter.undo(now, mark)
            admitted.remove(at)
    for place, begin in enumerate(admitted):
        for end in admitted[place:]:
            inside = sum(begin <= at <= end for at in admitted)
            assert inside <= burst + limit * (end - begin) / (60 * MICRO) + 1e-6


def test_the_last_out_of_a_meter_is_undone_exactly_however_late() -> None:
    meter = Meter()
    meter.take(10 * MICRO, 1, 60, 5)
    before = meter.tat
    mark = meter.take(10 * MICRO, 1, 60, 5)
    assert mark is not None
    meter.undo(11_500_000, mark)
    assert meter.tat == before
