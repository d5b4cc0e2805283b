"""The maths of limits, and the book that keeps accounts in memory."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.target import Account
from gateway.state.accounts import (
    IDLE,
    MICRO,
    SILENT,
    Answer,
    Ask,
    Book,
    Caller,
    Full,
    Meter,
    StoreLost,
    Tally,
    Window,
    restored,
    sync,
)
from tests.support.clock import ManualClock
from tests.unit.state.make import budget, rpm, slots, tpm


def test_a_bucket_leaves_only_when_all_of_it_is_older_than_the_window() -> None:
    window = Window()
    window.add(100.999, 5)
    assert window.age(160.999) == 0
    assert window.age(161.0) == 5
    assert window.settled == 0


def test_a_clock_that_steps_back_frees_nothing() -> None:
    window = Window()
    window.add(100.0, 5)
    window.add(40.0, 5)
    window.age(160.9)
    assert window.settled == 10


def test_at_most_62_buckets_are_kept() -> None:
    window = Window()
    for second in range(1000):
        window.age(float(second))
        window.add(float(second), 1)
    assert len(window.buckets) <= 62
    assert window.settled == 61


def test_what_is_taken_back_leaves_the_youngest_counts() -> None:
    window = Window()
    window.add(100.0, 2)
    window.add(130.0, 3)
    window.take_back(4)
    assert window.age(170.0) == 0
    assert window.settled == 1
    window.take_back(9)
    assert window.settled == 0


@settings(deadline=None)
@given(
    limit=st.integers(1, 600),
    burst=st.integers(1, 8),
    steps=st.lists(st.tuples(st.floats(0, 8), st.booleans()), max_size=60),
)
def test_in_any_span_a_meter_admits_at_most_its_burst_and_its_rate(
    limit: int, burst: int, steps: list[tuple[float, bool]]
) -> None:
    meter, account = Meter(), rpm(limit, burst)
    now = 1000.0
    admitted: list[float] = []
    taken = []
    for seconds, give_back in steps:
        now += seconds
        wait = meter.wait(now, 1, account)
        drop = meter.take(now, 1, account)
        assert (drop is not None) == (wait == 0)
        if drop is None:
            now += wait
            drop = meter.take(now, 1, account)
            assert drop is not None  # the wait was the truth
        admitted.append(now)
        taken.append((drop, now))
        if give_back:
            drop, at = taken.pop(len(taken) // 2)
            before = meter.tat
            meter.undo(drop)
            if meter.tat != before:  # nobody leaned on it
                admitted.remove(at)
    for place, begin in enumerate(admitted):
        for end in admitted[place:]:
            inside = sum(begin <= at <= end for at in admitted)
            assert inside <= burst + limit * (end - begin) / 60 + 1e-3


class Worker:
    """States absolute figures, as a worker does, and keeps the last answer."""

    def __init__(self, name: str, book: Book) -> None:
        self.name = name
        self.book = book
        self.turn = 0
        self.heard = 0.0

    def call(self, *asks: Ask, groups: Sequence[Sequence[tuple[int, int]]] = ()) -> Answer:
        self.turn += 1
        answer = self.book.answer(Caller(self.name, self.turn, self.heard), asks, groups)
        self.heard = answer.now
        return answer

    def granted(self, account: Account, **said: int) -> int:
        return self.call(ask(account, **said)).slices[0].granted


def ask(account: Account, **said: int) -> Ask:
    return Ask(account, **({"floor": 0, "used": 0, "back": 0, "bound": 0, "want": 0} | said))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def book(clock: ManualClock) -> Book:
    return Book(clock)


def test_what_one_has_in_reserve_nobody_else_gets(book: Book) -> None:
    a, b = Worker("a", book), Worker("b", book)
    assert a.granted(tpm(100), want=70) == 70
    assert b.granted(tpm(100), want=70) == 30
    assert a.granted(tpm(100), used=20, bound=10) == 10
    assert b.granted(tpm(100), want=70) == 70


def test_one_account_without_room_and_the_whole_group_gets_nothing(book: Book) -> None:
    a, b = Worker("a", book), Worker("b", book)
    assert b.granted(slots(1), bound=1) == 1
    answer = a.call(
        ask(tpm(100)), ask(slots(1)), ask(rpm(9)), groups=[[(0, 40), (1, 1)], [(2, 2)], [(0, 60)]]
    )
    assert [isinstance(verdict, Full) for verdict in answer.verdicts] == [True, False, False]
    assert [one.granted for one in answer.slices] == [60, 0, 2]


def test_a_call_that_is_lost_or_repeated_counts_once(book: Book) -> None:
    a = Worker("a", book)
    a.call(ask(tpm(100), used=30))
    with pytest.raises(StoreLost):
        book.answer(Caller("a", 1, 0.0), [ask(tpm(100), used=30)], ())
    a.call(ask(tpm(100), used=30))
    assert a.call(ask(tpm(100), used=30)).slices[0].rest == 70


def test_a_dead_worker_is_charged_what_it_had_and_its_slots_are_free(
    book: Book, clock: ManualClock
) -> None:
    dead, b = Worker("dead", book), Worker("b", book)
    dead.call(ask(tpm(100), bound=30, want=20), ask(slots(4), bound=3))
    clock.advance(SILENT)
    assert [one.rest for one in b.call(ask(tpm(100)), ask(slots(4))).slices] == [50, 1]
    clock.advance(0.1)
    answer = b.call(ask(tpm(100)), ask(slots(4)))
    assert [one.rest for one in answer.slices] == [50, 4]
    assert answer.workers == 1
    clock.advance(61.0)
    assert b.call(ask(tpm(100))).slices[0].rest == 100


def test_who_comes_back_from_the_dead_is_charged_its_last_minute(
    book: Book, clock: ManualClock
) -> None:
    a, b = Worker("a", book), Worker("b", book)
    a.call(ask(rpm(100), used=10))
    clock.advance(20.0)
    assert b.call(ask(rpm(100))).slices[0].rest == 90
    answer = a.call(ask(rpm(100), used=15))
    assert answer.slices[0].rest == 100 - 10 - 15
    assert answer.known


def test_a_store_that_has_forgotten_is_told_the_use_of_the_last_minute_only(book: Book) -> None:
    answer = Worker("a", book).call(ask(tpm(100), floor=1_000, used=1_020, back=7))
    assert answer.slices[0].rest == 80
    assert not answer.known


def test_a_return_that_took_too_long_erases_nobodys_charge(book: Book, clock: ManualClock) -> None:
    a = Worker("a", book)
    a.call(ask(rpm(100), used=10))
    clock.advance(SILENT + 1)
    assert a.call(ask(rpm(100), used=10, back=4)).slices[0].rest == 90
    assert a.call(ask(rpm(100), used=12, back=6)).slices[0].rest == 90


def test_what_is_admitted_while_something_is_taken_back_has_a_charge_of_its_own(
    book: Book, clock: ManualClock
) -> None:
    a = Worker("a", book)
    a.call(ask(rpm(100), used=1))
    clock.advance(10.0)
    a.call(ask(rpm(100), used=2, back=1))
    clock.advance(52.0)  # the first would have left by now
    assert a.call(ask(rpm(100), used=2, back=1)).slices[0].rest == 99


def test_an_account_that_was_forgotten_here_and_not_there_gives_nothing_back(book: Book) -> None:
    a = Worker("a", book)
    a.call(ask(rpm(100), used=10))
    later = ask(rpm(100), floor=10, used=12, back=10)  # a cell made anew begins above all before
    assert a.call(later).slices[0].rest == 88


def test_money_is_given_in_reserve_below_nine_tenths_only(book: Book) -> None:
    a = Worker("a", book)
    book.spend(budget(1000).id, 800)
    assert a.granted(budget(1000), bound=20, want=500) == 100
    answer = a.call(ask(budget(1000), bound=20, want=500), groups=[[(0, 170)]])
    assert answer.slices[0].granted == 190
    assert isinstance(a.call(ask(budget(1000), bound=190), groups=[[(0, 11)]]).verdicts[0], Full)


def test_money_a_dead_worker_holds_stays_until_it_is_swept(book: Book, clock: ManualClock) -> None:
    dead, b = Worker("dead", book), Worker("b", book)
    dead.call(ask(budget(1000), bound=400))
    clock.advance(10_000.0)
    assert b.call(ask(budget(1000))).slices[0].rest == 600
    book.spend(budget(1000).id, 250)  # what its journal said
    book.swept("dead")
    assert b.call(ask(budget(1000))).slices[0].rest == 750


def test_accounts_nobody_names_are_forgotten(book: Book, clock: ManualClock) -> None:
    a = Worker("a", book)
    for number in range(300):
        a.call(ask(tpm(9, f"k{number}"), bound=2))
    clock.advance(IDLE)
    for _ in range(200):
        a.call(ask(rpm(1000)))
    assert len(book) == 1


def test_a_tally_that_is_put_away_comes_back_the_same() -> None:
    tallies = {account.id: Tally() for account in (tpm(100), rpm(5, burst=3))}
    asks = [ask(tpm(100), used=7, back=2, bound=5, want=4), ask(rpm(5, burst=3))]
    sync(tallies, {}, 1000.5, Caller("a", 1, 0.0), asks, [[(1, 2)]])
    for tally in tallies.values():
        again = restored(tally.dump())
        assert again.dump() == tally.dump()
        assert (again.window.settled, again.held) == (tally.window.settled, tally.held)


def test_a_meter_keeps_what_others_lean_on() -> None:
    meter = Meter()
    first = meter.take(10.0, 1, rpm(60, 5))
    second = meter.take(10.0, 1, rpm(60, 5))
    assert first is not None
    assert second is not None
    meter.undo(first)
    assert meter.tat == second[1]
    meter.undo(second)
    meter.undo(first)
    assert meter.tat == 0
    assert second[1] - second[0] == MICRO
