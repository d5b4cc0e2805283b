"""The port Ledger: exactly one final line an attempt, through any crash."""

import pytest

from gateway.core.usage import Usage
from tests.contract.conftest import Books
from tests.unit.state.make import line, opening


async def test_what_was_opened_and_closed_has_one_line(books: Books) -> None:
    ledger = books.worker()
    ledger.open(opening("a.1"))
    ledger.checkpoint("a.1", 50)
    ledger.close(line("a.1", nano_usd=7))
    await books.settle()
    await books.settle()
    assert await books.rows() == {"a.1": ("ok", 7)}


async def test_the_first_of_two_endings_counts(books: Books) -> None:
    ledger = books.worker()
    ledger.open(opening("a.1"))
    ledger.close(line("a.1", nano_usd=7))
    ledger.close(line("a.1", nano_usd=8))
    await books.settle()
    ledger.close(line("a.1", nano_usd=9))
    await books.settle()
    assert await books.rows() == {"a.1": ("ok", 7)}


async def test_an_ending_without_a_beginning_is_nothing(books: Books) -> None:
    ledger = books.worker()
    ledger.close(line("a.1"))
    ledger.checkpoint("a.1", 1)
    await books.settle()
    assert await books.rows() == {}


async def test_an_open_attempt_has_no_line_yet(books: Books) -> None:
    books.worker().open(opening("a.1"))
    await books.settle()
    assert await books.rows() == {}


@pytest.mark.parametrize("shipped", [False, True])
async def test_a_killed_workers_attempts_end_once_each(books: Books, shipped: bool) -> None:
    ledger = books.worker()
    for id in ("a.1", "b.1", "c.1"):
        ledger.open(opening(id, prompt=4_000, input_price=1_000_000, output_price=2_000_000))
    ledger.checkpoint("b.1", 10)
    ledger.close(line("a.1", nano_usd=7))
    if shipped:
        await books.settle()
    await books.kill()
    for _ in range(2):
        books.worker()
        await books.settle()
        await books.kill()
    assert await books.rows() == {
        "a.1": ("ok", 7),
        "b.1": ("worker_lost", 4_027),
        "c.1": ("worker_lost", 4_007),
    }


async def test_what_has_no_price_is_unknown_never_nothing(books: Books) -> None:
    ledger = books.worker()
    ledger.open(opening("a.1", price_id=None))
    ledger.close(line("a.1", nano_usd=None, usage=Usage(1, 1)))
    ledger.open(opening("b.1", price_id=None))
    await books.kill()
    books.worker()
    await books.settle()
    assert await books.rows() == {"a.1": ("ok", None), "b.1": ("worker_lost", None)}


BUDGETS = ("key:k:budget:day:2027-01-15", "team:t:budget:total")


async def test_each_line_moves_its_budgets_once_through_a_kill(books: Books) -> None:
    ledger = books.worker()
    for id in ("a.1", "b.1", "c.1"):
        ledger.open(opening(id, budgets=BUDGETS, bound=50))
    ledger.close(line("a.1", nano_usd=7))
    await books.settle()
    assert await books.spent() == dict.fromkeys(BUDGETS, 7)
    ledger.close(line("b.1", nano_usd=None))
    await books.kill()
    books.worker()
    await books.settle()
    await books.settle()
    assert await books.spent() == dict.fromkeys(BUDGETS, 57)  # c was lost: no more than was held


async def test_what_was_spent_in_a_period_past_is_forgotten(books: Books) -> None:
    past = tuple(
        f"key:k:budget:{one}" for one in ("hour:2027-01-12T23", "day:2027-01-12", "month:2026-12")
    )
    now = (
        "user:k:x:budget:day:2001-01-01:budget:total",
        "key:k:budget:hour:2027-01-13T00",
        *BUDGETS,
    )
    ledger = books.worker()
    ledger.open(opening("a.1", budgets=past + now))
    ledger.close(line("a.1", nano_usd=7))
    await books.settle()
    await books.clean()
    assert await books.spent() == dict.fromkeys(now, 7)
