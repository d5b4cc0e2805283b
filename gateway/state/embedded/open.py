"""Opens the embedded wing, owns its background tasks, and closes it: nothing else does."""

import asyncio
import errno
import os
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from gateway.clock import Clock
from gateway.core.events import Event, StateTrouble
from gateway.core.ports import Books, Register
from gateway.core.snapshot import Snapshot
from gateway.state.claims import GLANCE
from gateway.state.embedded import audit, parking
from gateway.state.embedded.accounts import SqliteAccounts
from gateway.state.embedded.alerts import LOOK, SpendWatch
from gateway.state.embedded.answers import RENEW, EmbeddedAnswers
from gateway.state.embedded.audit import AuditLog
from gateway.state.embedded.books import EmbeddedBooks
from gateway.state.embedded.health import LocalHealth
from gateway.state.embedded.keys import POLL, EmbeddedKeys
from gateway.state.embedded.lease import Lease
from gateway.state.embedded.ledger import CLEAN, SHIP, SYNC, TIDY, EmbeddedLedger
from gateway.state.embedded.parking import EmbeddedParking
from gateway.state.embedded.register import EmbeddedRegister
from gateway.state.embedded.sqlite import FILE, Store, prepare
from gateway.state.embedded.stories import WRITE, Stories
from gateway.state.journal import Final, Journal, charges
from gateway.state.slices import TICK, Slices
from gateway.state.spare import Spare
from gateway.state.wing import OwnAnswers, OwnLedger, Wing

CLEANER = "cleaner.lock"  # of several workers one forgets what is old, for all

Chore = tuple[float, Callable[[], Awaitable[object]]]  # done every so many seconds


@dataclass(frozen=True, slots=True)
class EmbeddedState:
    """The rooms of one machine behind the ports. `recovered`: attempts of lost workers settled."""

    limiter: Slices
    ledger: OwnLedger
    keys: EmbeddedKeys
    register: Register
    audit: AuditLog
    books: Books
    health: LocalHealth
    stories: Stories
    watch: SpendWatch
    answers: OwnAnswers
    parking: EmbeddedParking
    worker: str
    recovered: int
    wing: Wing | None = None

    @property
    def troubles(self) -> Sequence[str]:
        """What of the state does not work though it serves."""
        return self.wing.troubles if self.wing else ()

    def use(self, snapshot: Snapshot) -> None:
        """A reload: what is counted and learnt stays by name."""
        self.keys.use(snapshot)
        self.health.use(snapshot.targets.values())
        self.stories.use(snapshot.config)
        self.watch.use(snapshot.alerts.spend)
        self.audit.use(snapshot.config)


@asynccontextmanager
async def open_state(  # noqa: PLR0913 - each is somebody else's to give
    dir: Path | str,
    snapshot: Snapshot,
    clock: Clock,
    heard: Callable[[Event], None],
    rng: random.Random,
    workers: int = 1,
    *,
    wing: Wing | None = None,
) -> AsyncIterator[EmbeddedState]:
    """Settles what a crash left, then serves; on leaving everything is shipped.

    `workers`: how many processes share `dir`. `wing`: limits, money, keys and kept answers are not
    this machine's alone.

    Raises:
        OSError: the folder cannot be used, or the store in it; its `strerror` says why.
        sqlite3.Error: what is stored cannot be read.
    """
    folder = Path(dir)
    prepare(folder)
    store, shared = Store(folder), Store(folder)
    keys_store = Store(wing.keys_dir) if wing else store
    cleaner = Lease(folder / CLEANER)
    try:
        await _opened(store)
        worker = os.urandom(8).hex()
        journal = Journal(folder, worker, heard=heard)
        log = AuditLog(keys_store, snapshot.config, clock, heard)

        def witnessed(event: Event) -> None:
            heard(event)
            log.heard(event)

        watch = SpendWatch(store, snapshot.alerts.spend, clock, witnessed)
        accounts = SqliteAccounts(shared, clock)
        trouble = partial(StateTrouble, "redis" if wing else "embedded", "limits")
        meeting = wing.accounts if wing else accounts
        spare = Spare(meeting, clock, workers, lambda why: heard(trouble(why)))
        limiter = Slices(spare, worker, clock)
        booked = partial(_booked, limiter)
        ledger: OwnLedger = (
            wing.ledger(journal, booked)
            if wing
            else EmbeddedLedger(journal, store, clock, heard, watch.spent, booked)
        )
        try:
            recovered = await ledger.recover()
            keys = EmbeddedKeys(keys_store, snapshot, clock, heard)
            await keys.load()
            health = LocalHealth(clock, heard, rng)
            health.use(snapshot.targets.values())
            if wing:
                wing.join(worker, health)
            stories = Stories(store, snapshot.config, clock, heard)
            own = EmbeddedAnswers(store, clock, heard)
            answers: OwnAnswers = wing.answers(own) if wing else own
            lots = EmbeddedParking(store, clock, heard)
            register = EmbeddedRegister(keys_store, keys, log, clock)

            async def clean() -> None:
                if cleaner.taken():
                    await ledger.clean()
                    await stories.clean()
                    await accounts.tidy()
                    await watch.look_at_all()
                    await own.clean()
                    await lots.clean()
                    await log.clean()

            chores: list[Chore] = [
                (TICK, limiter.tick),
                (SHIP, ledger.ship),
                (SYNC, ledger.sync),
                (TIDY, ledger.recover),
                (CLEAN, clean),
                (POLL, keys.poll),
                (WRITE, stories.write),
                (LOOK, watch.look),
                (RENEW, answers.renew),
                (GLANCE, answers.look),
                (parking.RENEW, lots.renew),
                (parking.GLANCE, lots.look),
                (audit.WRITE, log.write),
            ]
            if wing:
                chores += [(RENEW, own.renew), (GLANCE, own.look), *wing.chores]
            async with _Chores(clock, heard, chores):
                yield EmbeddedState(
                    limiter=limiter,
                    ledger=ledger,
                    keys=keys,
                    register=wing.register(register) if wing else register,
                    audit=log,
                    books=wing.books if wing else EmbeddedBooks(store, clock),
                    health=health,
                    stories=stories,
                    watch=watch,
                    answers=answers,
                    parking=lots,
                    worker=worker,
                    recovered=recovered,
                    wing=wing,
                )
            await limiter.leave()
            if wing:
                await wing.leave()
            await stories.write()
            await log.write()
        finally:
            await ledger.leave()
    finally:
        cleaner.close()
        if keys_store is not store:
            await keys_store.close()
        await shared.close()
        await store.close()


async def _opened(store: Store) -> None:
    """Raises OSError: the file cannot be used, such as on a full disk."""
    try:
        await store.run(lambda _: None)
    except sqlite3.Error as error:
        raise OSError(errno.EIO, str(error), str(store.folder / FILE)) from None


def _booked(limiter: Slices, finals: Sequence[Final]) -> None:
    """What budgets held for these lines is spent now."""
    limiter.shipped(charges(finals).items())


class _Chores:
    """Background tasks with an owner: they end when it does, and none can take it down."""

    def __init__(
        self, clock: Clock, heard: Callable[[Event], None], chores: Iterable[Chore]
    ) -> None:
        self._clock = clock
        self._heard = heard
        self._chores = chores
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        for seconds, chore in self._chores:
            self._tasks.append(self._group.create_task(self._repeat(seconds, chore)))
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    async def _repeat(self, seconds: float, chore: Callable[[], Awaitable[object]]) -> None:
        while True:
            await self._clock.sleep(seconds)
            try:
                await chore()
            except Exception as error:  # noqa: BLE001 - a boundary: the chore is tried again
                problem = type(error).__name__
                self._heard(StateTrouble("embedded", getattr(chore, "__name__", "?"), problem))
