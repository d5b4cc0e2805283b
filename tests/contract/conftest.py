"""Every implementation of a port passes the same suite; a new wing is one more parameter."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import pytest

from gateway.core.ports import Ledger, Limiter
from gateway.state.accounts import Book
from gateway.state.embedded.accounts import SqliteAccounts
from gateway.state.embedded.ledger import EmbeddedLedger
from gateway.state.embedded.sqlite import Store
from gateway.state.journal import Journal
from gateway.state.spare import Spare
from tests.support.clock import ManualClock
from tests.support.limits import Dead, Inline, owned

LIMITERS: dict[str, Callable[[ManualClock], Limiter]] = {
    "memory": lambda clock: owned(Book(clock), clock),
    "sqlite": lambda clock: owned(SqliteAccounts(Inline(), clock), clock),
    "spare": lambda clock: owned(Spare(Dead(), clock, 1, lambda _: None), clock),
}


@pytest.fixture(params=sorted(LIMITERS))
def make_limiter(request: pytest.FixtureRequest) -> Callable[[ManualClock], Limiter]:
    return LIMITERS[request.param]


Rows = dict[str, tuple[str, int | None]]


class Books(Protocol):
    """A store of ledgers, and one worker after the other that writes to it."""

    def worker(self) -> Ledger:
        """A fresh worker's ledger; the one before must have been killed."""
        ...

    async def kill(self) -> None:
        """As kill -9 does: what was given to the operating system stays, nothing else."""
        ...

    async def settle(self) -> None:
        """Whatever the owner of a ledger does in the background, done now."""
        ...

    async def rows(self) -> Rows:
        """Attempt id -> outcome, nano-dollars."""
        ...


class EmbeddedBooks:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = Store(folder)
        self._lives = 0
        self._journal: Journal | None = None
        self._ledger: EmbeddedLedger | None = None

    def worker(self) -> Ledger:
        self._lives += 1
        self._folder.mkdir(exist_ok=True)
        self._journal = Journal(self._folder, f"w{self._lives}")
        self._ledger = EmbeddedLedger(self._journal, self._store, ManualClock(), lambda _: None)
        return self._ledger

    async def kill(self) -> None:
        if self._journal is not None and self._ledger is not None:
            self._journal.drop()
            self._ledger._shipper.close()
        self._journal = self._ledger = None

    async def settle(self) -> None:
        assert self._ledger is not None
        await self._ledger.recover()
        assert await self._ledger.ship()

    async def rows(self) -> Rows:
        query = "SELECT attempt_id, outcome, nano_usd FROM ledger"
        found = await self._store.run(lambda db: db.execute(query).fetchall())
        return {id: (outcome, nano_usd) for id, outcome, nano_usd in found}

    async def close(self) -> None:
        await self.kill()
        await self._store.close()


@pytest.fixture(params=["embedded"])
async def books(tmp_path: Path) -> AsyncIterator[Books]:
    found = EmbeddedBooks(tmp_path / "state")
    yield found
    await found.close()
