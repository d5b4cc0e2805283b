"""Every implementation of a port passes the same suite; a new wing is one more parameter."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from gateway.clock import SystemClock
from gateway.core.ports import Answers, Ledger, Limiter, Parking
from gateway.state.accounts import Book
from gateway.state.embedded import parking
from gateway.state.embedded.accounts import SqliteAccounts
from gateway.state.embedded.answers import RENEW, EmbeddedAnswers
from gateway.state.embedded.ledger import EmbeddedLedger
from gateway.state.embedded.parking import EmbeddedParking
from gateway.state.embedded.sqlite import Store
from gateway.state.journal import Journal
from gateway.state.redis.accounts import RedisAccounts
from gateway.state.redis.answers import RedisAnswers
from gateway.state.redis.connect import Link
from gateway.state.redis.ledger import RedisLedger
from gateway.state.redis.reports import stored
from gateway.state.redis.spent import BUDGETS
from gateway.state.spare import Spare
from tests.support.clock import ManualClock
from tests.support.fakes import FakeAnswers
from tests.support.limits import Dead, Inline, Timed, owned
from tests.support.redis import RedisServer

LIMITERS: dict[str, Callable[[ManualClock, RedisServer], Limiter]] = {
    "memory": lambda clock, _: owned(Book(clock), clock),
    "sqlite": lambda clock, _: owned(SqliteAccounts(Inline(), clock), clock),
    "redis": lambda clock, server: owned(RedisAccounts(Timed(server.url, clock)), clock),
    "spare": lambda clock, _: owned(Spare(Dead(), clock, 1, lambda _: None), clock),
}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Emptied by each that uses it."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as found:
        yield found


@pytest.fixture(params=sorted(LIMITERS))
def make_limiter(
    request: pytest.FixtureRequest, server: RedisServer
) -> Callable[[ManualClock], Limiter]:
    return lambda clock: LIMITERS[request.param](clock, server)


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

    async def spent(self) -> dict[str, int]:
        """Nano-dollars of each budget."""
        ...

    async def clean(self) -> None:
        """Forget what is too old."""
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

    async def spent(self) -> dict[str, int]:
        query = "SELECT account, nano_usd FROM budget"
        return dict(await self._store.run(lambda db: db.execute(query).fetchall()))

    async def clean(self) -> None:
        assert self._ledger is not None
        await self._ledger.clean()

    async def close(self) -> None:
        await self.kill()
        await self._store.close()


class Shelves(Protocol):
    """A store of kept answers, and workers that use it at the same time."""

    clock: ManualClock

    def worker(self) -> Answers:
        """One more worker."""
        ...

    def kill(self, worker: Answers) -> None:
        """It is never heard of again."""
        ...

    async def pass_(self, seconds: float) -> None:
        """So much time passes; workers that live do what their owners have them do."""
        ...

    async def written(self) -> None:
        """Whatever was handed over is in the store."""
        ...


DAY = 86_400.0


class EmbeddedShelves:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self._folder = folder
        self._stores: list[Store] = []
        self._workers: list[EmbeddedAnswers] = []

    def worker(self) -> Answers:
        store = Store(self._folder)
        self._stores.append(store)
        self._workers.append(EmbeddedAnswers(store, self.clock, lambda _: None))
        return self._workers[-1]

    def kill(self, worker: Answers) -> None:
        self._workers = [one for one in self._workers if one is not worker]

    async def pass_(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while (left := end - self.clock.monotonic()) > 0:
            self.clock.advance(min(RENEW, left) if seconds < DAY / 2 else left)
            for worker in self._workers:
                await worker.renew()
                await worker.look()
                await worker.clean()

    async def written(self) -> None:
        for store in self._stores:
            await store.run(lambda _: None)

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


PASSES = """
for _, name in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', name) - ARGV[1]
  if left <= 0 then
    redis.call('DEL', name)
  else
    redis.call('PEXPIRE', name, left)
    if redis.call('TYPE', name).ok == 'zset' then
      for _, member in ipairs(redis.call('ZRANGE', name, 0, -1)) do
        redis.call('ZINCRBY', name, -ARGV[1], member)
      end
    elseif redis.call('HEXISTS', name, 'at') == 1 then
      redis.call('HINCRBY', name, 'at', -ARGV[1])
    end
  end
end
"""
"""Redis' clock cannot be put forward: everything that it remembers is put back."""


class RedisShelves:
    def __init__(self, server: RedisServer) -> None:
        self.clock = ManualClock()
        self._server = server
        self._links: list[Link] = []
        self._every: list[RedisAnswers] = []
        self._workers: list[RedisAnswers] = []

    def worker(self) -> Answers:
        link = Link(self._server.url, SystemClock(), lambda _: None)
        self._links.append(link)
        local = FakeAnswers(self.clock)
        self._every.append(RedisAnswers(link, local, self.clock, lambda _: None))
        self._workers.append(self._every[-1])
        return self._every[-1]

    def kill(self, worker: Answers) -> None:
        self._workers = [one for one in self._workers if one is not worker]

    async def pass_(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while (left := end - self.clock.monotonic()) > 0:
            step = min(RENEW, left) if seconds < DAY / 2 else left
            self.clock.advance(step)
            await self._links[0].call("EVAL", PASSES, 0, round(step * 1000))
            for worker in self._workers:
                await worker.renew()
                await worker.look()

    async def written(self) -> None:
        for worker in self._every:
            await worker.leave()

    async def close(self) -> None:
        await self.written()
        for link in self._links:
            await link.close()


class FakeShelves:
    """The fake that the road's own tests stand on keeps the same promises."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._workers: list[FakeAnswers] = []

    def worker(self) -> Answers:
        rows = self._workers[0].rows if self._workers else None
        self._workers.append(FakeAnswers(self.clock, rows))
        return self._workers[-1]

    def kill(self, worker: Answers) -> None:
        assert isinstance(worker, FakeAnswers)
        worker.dead = True

    async def pass_(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for worker in self._workers:
            worker.renew()

    async def written(self) -> None:
        pass

    async def close(self) -> None:
        pass


@pytest.fixture(params=["embedded", "fake", "redis"])
async def shelves(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shelves]:
    if request.param == "redis":
        with RedisServer(tmp_path / "redis") as server:
            far = RedisShelves(server)
            yield far
            await far.close()
        return
    found = EmbeddedShelves(tmp_path / "state") if request.param == "embedded" else FakeShelves()
    yield found
    await found.close()


class RedisBooks:
    def __init__(self, folder: Path, server: RedisServer) -> None:
        self._folder = folder
        self._lives = 0
        self._journal: Journal | None = None
        self._ledger: RedisLedger | None = None
        self._link = Link(server.url, SystemClock(), lambda _: None)

    def worker(self) -> Ledger:
        self._lives += 1
        self._folder.mkdir(exist_ok=True)
        self._journal = Journal(self._folder, f"w{self._lives}")
        self._ledger = RedisLedger(self._journal, self._link, ManualClock(), lambda _: None)
        return self._ledger

    async def kill(self) -> None:
        if self._journal is not None and self._ledger is not None:
            self._journal.drop()
            self._ledger._backlog.close()
        self._journal = self._ledger = None

    async def settle(self) -> None:
        assert self._ledger is not None
        await self._ledger.recover()
        assert await self._ledger.ship()

    async def rows(self) -> Rows:
        found = await stored(self._link, 0, ManualClock().now())
        return {row[0]: (row[25], row[22]) for row in found.rows}

    async def spent(self) -> dict[str, int]:
        found = await self._link.call("HGETALL", BUDGETS)
        pairs = (
            found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        )
        return {name.decode(): int(amount) for name, amount in pairs}

    async def clean(self) -> None:
        assert self._ledger is not None
        await self._ledger.clean()

    async def close(self) -> None:
        await self.kill()
        await self._link.close()


@pytest.fixture(params=["embedded", "redis"])
async def books(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Books]:
    if request.param == "embedded":
        embedded = EmbeddedBooks(tmp_path / "state")
        yield embedded
        await embedded.close()
        return
    with RedisServer(tmp_path / "redis") as server:
        shared = RedisBooks(tmp_path / "state", server)
        yield shared
        await shared.close()


class Lots(Protocol):
    """A store of parked requests, and workers that use it at the same time."""

    clock: ManualClock

    def worker(self) -> Parking:
        """One more worker."""
        ...

    def kill(self, worker: Parking) -> None:
        """It is never heard of again."""
        ...

    async def pass_(self, seconds: float) -> None:
        """So much time passes; workers that live do what their owners have them do."""
        ...

    async def written(self) -> None:
        """Whatever was handed over is in the store."""
        ...


class EmbeddedLots:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self._folder = folder
        self._stores: list[Store] = []
        self._workers: list[EmbeddedParking] = []

    def worker(self) -> Parking:
        store = Store(self._folder)
        self._stores.append(store)
        self._workers.append(EmbeddedParking(store, self.clock, lambda _: None))
        return self._workers[-1]

    def kill(self, worker: Parking) -> None:
        self._workers = [one for one in self._workers if one is not worker]

    async def pass_(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while (left := end - self.clock.monotonic()) > 0:
            self.clock.advance(min(parking.RENEW, left) if seconds < DAY / 2 else left)
            for worker in self._workers:
                await worker.renew()
                await worker.look()
                await worker.clean()

    async def written(self) -> None:
        for store in self._stores:
            await store.run(lambda _: None)

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


@pytest.fixture(params=["embedded"])
async def lots(tmp_path: Path) -> AsyncIterator[Lots]:
    found = EmbeddedLots(tmp_path / "state")
    yield found
    await found.close()
