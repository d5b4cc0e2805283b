"""The ledger of one machine: journal, then SQLite; exactly one row an attempt through any crash.

What a journal says is applied in one transaction together with how far it was read (`cursor`), so
a batch counts once however often it is sent. `spent` is summed in the same transaction.
"""

import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from pathlib import Path

from gateway.clock import Clock
from gateway.core.events import Event, StateTrouble
from gateway.state.backlog import Backlog
from gateway.state.embedded.accounts import charge, forget_spent, swept
from gateway.state.embedded.sqlite import Store, harden, problem, transaction
from gateway.state.journal import Final, Fold, Journal, Record, charges, orphans, sweep, sync
from gateway.state.rows import DAY, LINES, SUMS, Row, Sums, row_of, sums_of

SHIP = 0.1  # seconds between shipments
SYNC = 1.0
TIDY = 10.0  # orphans of siblings
CLEAN = 600.0
CLEANED = 5_000  # rows removed in one transaction
OVER = 2  # days after its end nobody asks what was spent of a budget

INSERT = """INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,
  ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
SPEND = """INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (scope, name, day) DO UPDATE SET
  requests = requests + excluded.requests, attempts = attempts + excluded.attempts,
  input = input + excluded.input, output = output + excluded.output,
  nano_usd = nano_usd + excluded.nano_usd, unknown = unknown + excluded.unknown"""
DRIFT = """SELECT coalesce(sum(abs(n)), 0) FROM (
  SELECT sum(n) AS n FROM (
    SELECT key, day, nano_usd AS n FROM ledger WHERE day >= :since
    UNION ALL
    SELECT name, day, -nano_usd FROM spent WHERE scope = 'key' AND day >= :since
  ) GROUP BY key, day
)"""


class EmbeddedLedger:
    """The port `Ledger`; `ship`, `sync`, `recover`, `clean` are for its owner (`open_state`).

    Args:
        journal: its own.
        store: where it ships to.
        clock: for days.
        heard: told of trouble.
        spent: is told, in the loop, whose sums (`key/user`) have changed.
        booked: is told, in the loop, of lines that are in the store now: each once, in order.
            Money that was held for them is free then (`Slices.shipped`).

    Attributes:
        drift: nano-dollars by which rows and sums differ, as last looked at; 0 or a bug.
    """

    def __init__(
        self,
        journal: Journal,
        store: Store,
        clock: Clock,
        heard: Callable[[Event], None],
        spent: Callable[[Iterable[str]], None] | None = None,
        booked: Callable[[Sequence[Final]], object] = lambda _: None,
    ) -> None:
        self.open = journal.open
        self.checkpoint = journal.checkpoint
        self.close = journal.close
        self.drift = 0
        self._journal = journal
        self._store = store
        self._clock = clock
        self._heard = heard
        self._spent = spent
        self._booked = booked
        self._shipper = Shipper(journal.worker)

    async def ship(self) -> bool:
        """Apply what is written so far; True when nothing is left over."""
        self._journal.flush()
        parts = self._journal.parts()
        self._shipper.hand(parts, self._journal.taken())
        try:
            done = await self._store.run(self._shipper.ship)
        except (sqlite3.Error, OSError) as error:
            self._trouble("ship", error)
            return False
        finally:
            if booked := self._shipper.booked():
                self._booked(booked)
        if self._spent is not None and (users := self._shipper.users):
            self._shipper.users = set()
            self._spent(users)
        for part in parts:
            if part.done and part.path in done:
                self._journal.remove(part)
        self._journal.turn()
        return self._shipper.at(parts)

    async def sync(self) -> None:
        fds = self._journal.unsynced()
        if fds:
            try:
                await self._store.run(lambda _: sync(fds))
            except OSError as error:
                self._trouble("sync", error)

    async def recover(self) -> int:
        """Ship and settle the journals of workers that are gone; how many attempts were lost."""
        try:
            return await self._store.run(lambda db: recover(db, self._store.folder))
        except (sqlite3.Error, OSError) as error:
            self._trouble("recover", error)
            return 0

    async def clean(self) -> None:
        """Forget what is too old, a little at a time, and compare rows with sums."""
        today = int(self._clock.now() // DAY)
        try:
            while await self._store.run(lambda db: clean(db, today)) >= CLEANED:
                pass
            self.drift = await self._store.run(lambda db: drift(db, today - 1))
        except sqlite3.Error as error:
            self._trouble("clean", error)

    async def leave(self) -> None:
        """Ship all and go; what could not be shipped stays in the journal for the next start."""
        shipped = await self.ship()
        while not shipped and self._shipper.behind:
            shipped = await self.ship()
        self._shipper.close()
        try:
            if shipped and await self._store.run(harden) and self._journal.leave():
                await self._store.run(lambda db: _forget(db, self._journal.worker))
        except sqlite3.Error as error:
            self._trouble("leave", error)
        finally:
            self._journal.drop()

    def _trouble(self, op: str, error: Exception) -> None:
        self._heard(StateTrouble("embedded", op, problem(error)))


class Shipper(Backlog):
    """Applies the backlog of one worker; `ship` belongs to the store's thread."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker
        self.users: set[str] = set()  # whose sums were changed; taken away by the loop
        self._applied: deque[Final] = deque()  # and not yet told
        self._told = 0  # the seq of the last that was applied

    def ship(self, db: sqlite3.Connection) -> set[Path]:
        """Apply what was handed over; the segments that are done and no longer needed."""
        done = self.gather()
        if self.rows:
            self.users |= apply(db, self._worker, self.rows)
            self._applied.extend(row for row in self.rows if row.seq > self._told)
            self._told = max(self._told, self.rows[-1].seq)
            self.rows.clear()
        if not done or not harden(db):
            return set()
        self.forget(done)
        return done

    def booked(self) -> list[Final]:
        """What was applied since the last time; read again from the file it is not told again."""
        return [self._applied.popleft() for _ in range(len(self._applied))]


def apply(db: sqlite3.Connection, worker: str, finals: Sequence[Final]) -> set[str]:
    """Rows above the worker's cursor, their sums, and the new cursor: all or nothing.

    Returns whose sums were changed, as `key/user`.
    """
    with transaction(db):
        cursor, closed = _cursor(db, worker)
        if closed:
            return set()
        users = _book(db, [final for final in finals if final.seq > cursor])
        _move(db, worker, max(finals[-1].seq, cursor), closed=0)
    return users


def fill(db: sqlite3.Connection, rows: Sequence[Row], sums: Sums, first: int) -> None:
    """An empty store becomes a copy of another; `first`: the day from which all rows are there."""
    with transaction(db):
        db.executemany(INSERT.replace("INSERT", "INSERT OR IGNORE", 1), rows)
        db.executemany(SPEND, [(*at, *values) for at, values in sums.items()])
        db.execute("UPDATE version SET value = ? WHERE name = 'lines'", (first,))


def recover(db: sqlite3.Connection, folder: Path) -> int:
    """Every orphan: its rest is applied, its open attempts settled by evidence, the file removed.

    Killed in between, the next one finds either nothing done or the cursor closed.
    """
    lost = 0
    sweep(folder)
    for orphan in orphans(folder):
        lost += _bury(db, orphan.worker, orphan.records())
        if harden(db):
            orphan.remove()
            _forget(db, orphan.worker)
    for (worker,) in db.execute("SELECT worker FROM cursor WHERE closed").fetchall():
        if not any(folder.glob(f"journal-{worker}-*")):  # killed before the last step
            _forget(db, worker)
    return lost


def clean(db: sqlite3.Connection, today: int) -> int:
    """Lines live 30 days, sums 400, what budgets of periods past were used for goes at once.

    Returns how many lines went; CLEANED: there may be more.

    Reports take a day from its lines or from its sums, so first it is said which.
    """
    oldest = today - LINES
    with transaction(db):
        db.execute("UPDATE version SET value = max(value, ?) WHERE name = 'lines'", (oldest,))
        db.execute("DELETE FROM spent WHERE day < ?", (today - SUMS,))
        forget_spent(db, today - OVER)
        return db.execute(
            "DELETE FROM ledger WHERE attempt_id IN "
            "(SELECT attempt_id FROM ledger WHERE day < ? LIMIT ?)",
            (oldest, CLEANED),
        ).rowcount


def drift(db: sqlite3.Connection, since: int = 0) -> int:
    """Nano-dollars by which `spent` and the rows differ, from a day on that still has its rows."""
    ((found,),) = db.execute(DRIFT, {"since": since})
    return int(found)


def _forget(db: sqlite3.Connection, worker: str) -> None:
    """A worker whose journal is no more: its cursor, and what it held of the limits."""
    with transaction(db):
        db.execute("DELETE FROM cursor WHERE worker = ?", (worker,))
        swept(db, worker)


def _bury(db: sqlite3.Connection, worker: str, records: Iterable[Record]) -> int:
    with transaction(db):
        cursor, closed = _cursor(db, worker)
        if closed:
            return 0
        fold = Fold()
        finals = [final for final in fold.feed(records) if final.seq > cursor]
        lost = list(fold.lost())
        _book(db, finals + lost)
        _move(db, worker, max(fold.seq, cursor), closed=1)
    return len(lost)


def _book(db: sqlite3.Connection, finals: list[Final]) -> set[str]:
    """Returns whose sums were changed, as `key/user`."""
    rows = [row_of(final) for final in finals]
    try:
        db.execute("SAVEPOINT book")
        db.executemany(INSERT, rows)
    except sqlite3.IntegrityError:  # an attempt that is known: what was booked first counts
        db.execute("ROLLBACK TO book")
        new = [_insert(db, row) for row in rows]
        rows, finals = list(compress(rows, new)), list(compress(finals, new))
    db.execute("RELEASE book")
    charge(db, charges(finals).items())
    sums = sums_of(rows)
    db.executemany(SPEND, [(*at, *values) for at, values in sums.items()])
    return {name for scope, name, _ in sums if scope == "user"}


def _insert(db: sqlite3.Connection, row: Row) -> bool:
    return db.execute(INSERT.replace("INSERT", "INSERT OR IGNORE", 1), row).rowcount > 0


def _cursor(db: sqlite3.Connection, worker: str) -> tuple[int, bool]:
    found = db.execute("SELECT seq, closed FROM cursor WHERE worker = ?", (worker,)).fetchone()
    return (int(found[0]), bool(found[1])) if found else (0, False)


def _move(db: sqlite3.Connection, worker: str, seq: int, *, closed: int) -> None:
    db.execute("INSERT OR REPLACE INTO cursor VALUES (?, ?, ?)", (worker, seq, closed))
