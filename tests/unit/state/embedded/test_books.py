"""What a key spent: its own sums and nobody else's."""

import asyncio
import sqlite3
from datetime import date
from pathlib import Path

import pytest

from gateway.core.usage import Spending, Spent
from gateway.errors import Overloaded
from gateway.state.embedded.books import EPOCH, WAITING, EmbeddedBooks
from gateway.state.embedded.sqlite import Store
from tests.support.clock import ManualClock

TODAY = date(2027, 1, 15)  # the clock's


@pytest.fixture
async def store(tmp_path: Path):
    made = Store(tmp_path)
    yield made
    await made.close()


def spend(*rows: tuple[str, str, date, int]):
    """(scope, name, day, nano-dollars); two requests, three attempts, one without a price."""

    def write(db: sqlite3.Connection) -> None:
        for scope, name, day, nano in rows:
            days = (day - EPOCH).days
            db.execute(
                "INSERT INTO spent VALUES (?, ?, ?, 2, 3, 10, 20, ?, 1)", (scope, name, days, nano)
            )

    return write


async def test_today_this_month_and_all_there_is(store: Store):
    await store.run(
        spend(
            ("key", "alice", TODAY, 5),
            ("key", "alice", date(2027, 1, 1), 70),
            ("key", "alice", date(2026, 12, 31), 900),
            ("key", "bob", TODAY, 10**9),
            ("team", "alice", TODAY, 10**9),
            ("user", "alice/x", TODAY, 10**9),
        )
    )
    books = EmbeddedBooks(store, ManualClock())
    assert await books.spending("alice") == Spending(
        Spent(TODAY, 2, 3, 10, 20, 5, 1),
        Spent(date(2027, 1, 1), 4, 6, 20, 40, 75, 2),
        Spent(date(2026, 12, 31), 6, 9, 30, 60, 975, 3),
    )
    nobody = await books.spending("nobody")
    assert nobody.total == Spent(EPOCH, 0, 0, 0, 0, 0, 0)


async def test_who_asks_too_often_at_once_is_told_to_come_back(store: Store):
    books = EmbeddedBooks(store, ManualClock())
    asked = [books.spending("alice") for _ in range(WAITING + 3)]
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(one, Overloaded) for one in told) == 3
    assert isinstance(await books.spending("alice"), Spending)


async def test_a_ledger_that_cannot_be_read_is_no_mistake_of_the_caller(store: Store):
    await store.run(lambda db: db.execute("ALTER TABLE spent RENAME TO away").close())
    with pytest.raises(Overloaded) as refused:
        await EmbeddedBooks(store, ManualClock()).spending("alice")
    assert refused.value.code == "store_unavailable"
