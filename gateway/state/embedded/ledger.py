"""The ledger of one machine: journal, then SQLite; exactly one row an attempt through any crash.

What a journal says is applied in one transaction together with how far it was read (`cursor`), so
a batch counts once however often it is sent. `spent` is summed in the same transaction.
"""

import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gateway.clock import Clock
from gateway.core.events import Event, StateTrouble
from gateway.state.embedded.sqlite import Store, harden, problem, transaction
from gateway.state.journal import Final, Fold, Journal, Part, Reader, Record, orphans, sweep, sync

SHIP = 0.1  # seconds between shipments
SYNC = 1.0
TIDY = 15.0  # orphans of siblings
CLEAN = 600.0
CLEANED = 5_000  # rows removed in one transaction
DAY = 86_400
LINES = 30  # days
SUMS = 400
BATCH = 20_000  # rows in one transaction; the rest waits in the journal
MOST = 2**53  # clamps a row that lies, so that no sum can overflow

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

Row = tuple[Any, ...]  # the columns of `ledger`, in order
Place = tuple[str, str, int]  # scope, name, day
Sums = dict[Place, list[int]]


class EmbeddedLedger:
    """The port `Ledger`; `ship`, `sync`, `recover`, `clean` are for its owner (`open_state`).

    Attributes:
        drift: nano-dollars by which rows and sums differ, as last looked at; 0 or a bug.
    """

    def __init__(
        self, journal: Journal, store: Store, clock: Clock, heard: Callable[[Event], None]
    ) -> None:
        self.open = journal.open
        self.checkpoint = journal.checkpoint
        self.close = journal.close
        self.drift = 0
        self._journal = journal
        self._store = store
        self._clock = clock
        self._heard = heard
        self._shipper = Shipper(journal.worker)

    async def ship(self) -> bool:
        """Apply what is written so far; True when nothing is left over."""
        self._journal.flush()
        parts = self._journal.parts()
        try:
            done = await self._store.run(lambda db: self._shipper.ship(db, parts))
        except (sqlite3.Error, OSError) as error:
            self._trouble("ship", error)
            return False
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


class Shipper:
    """In the store's thread: how far the own journal was read and applied."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._fold = Fold()
        self._rows: list[Final] = []  # read, not yet applied
        self._readers: dict[Path, Reader] = {}
        self.behind = False  # a full batch was applied, more is to be read

    def ship(self, db: sqlite3.Connection, parts: Iterable[Part]) -> set[Path]:
        """Apply; the segments that are done and no longer needed."""
        done = set()
        self.behind = False
        for part in parts:
            reader = self._readers.get(part.path)
            if reader is None:
                reader = self._readers[part.path] = Reader(part.path)
            while len(self._rows) < BATCH and (records := reader.read(part.size)):
                self._rows.extend(self._fold.feed(records))
            if reader.offset < part.size:
                self.behind = True
                break
            if part.done:
                done.add(part.path)
        if self._rows:
            apply(db, self._worker, self._rows, self._fold.seq)
            self._rows.clear()
        if not done or not harden(db):
            return set()
        for path in done:
            self._readers.pop(path).close()
        return done

    def at(self, parts: Iterable[Part]) -> bool:
        """Whether everything in `parts` is applied."""
        readers = self._readers
        return not self._rows and all(
            part.done or (part.path in readers and readers[part.path].offset == part.size)
            for part in parts
        )

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()


def apply(db: sqlite3.Connection, worker: str, finals: Iterable[Final], seq: int) -> None:
    """Rows above the worker's cursor, their sums, and the new cursor: all or nothing."""
    with transaction(db):
        cursor, closed = _cursor(db, worker)
        if not closed:
            _book(db, [final for final in finals if final.seq > cursor])
            _move(db, worker, max(seq, cursor), closed=0)


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
    """Lines live 30 days, sums 400: how many lines went; CLEANED: there may be more.

    Reports take a day from its lines or from its sums, so first it is said which.
    """
    oldest = today - LINES
    with transaction(db):
        db.execute("UPDATE version SET value = max(value, ?) WHERE name = 'lines'", (oldest,))
        db.execute("DELETE FROM spent WHERE day < ?", (today - SUMS,))
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
    """The cursor of a journal that is no more."""
    db.execute("DELETE FROM cursor WHERE worker = ?", (worker,))


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


def _book(db: sqlite3.Connection, finals: list[Final]) -> None:
    rows = [_row(final) for final in finals]
    try:
        db.execute("SAVEPOINT book")
        db.executemany(INSERT, rows)
    except sqlite3.IntegrityError:  # an attempt that is known: what was booked first counts
        db.execute("ROLLBACK TO book")
        rows = [row for row in rows if _insert(db, row)]
    db.execute("RELEASE book")
    sums: Sums = {}
    for row in rows:
        _add(sums, row)
    db.executemany(SPEND, [(*at, *values) for at, values in sums.items()])


def _insert(db: sqlite3.Connection, row: Row) -> bool:
    return db.execute(INSERT.replace("INSERT", "INSERT OR IGNORE", 1), row).rowcount > 0


def _cursor(db: sqlite3.Connection, worker: str) -> tuple[int, bool]:
    found = db.execute("SELECT seq, closed FROM cursor WHERE worker = ?", (worker,)).fetchone()
    return (int(found[0]), bool(found[1])) if found else (0, False)


def _move(db: sqlite3.Connection, worker: str, seq: int, *, closed: int) -> None:
    db.execute("INSERT OR REPLACE INTO cursor VALUES (?, ?, ?)", (worker, seq, closed))


def _row(final: Final) -> Row:
    opening, line = final.opening, final.line
    usage = line.usage
    counts: tuple[int, ...] = (
        usage.input, usage.output, usage.cached, usage.cache_write_5m, usage.cache_write_1h,
        usage.reasoning, usage.audio_input, usage.audio_output,
    )  # fmt: skip
    nano_usd = line.nano_usd
    if max(counts) > MOST or min(counts) < -MOST or not -MOST <= (nano_usd or 0) <= MOST:
        counts = tuple(_bounded(count) for count in counts)
        nano_usd = None if nano_usd is None else _bounded(nano_usd)
    return (
        opening.attempt_id, opening.attempt_id.rpartition(".")[0] or opening.attempt_id,
        line.at, int(line.at // DAY),
        opening.key_id, opening.team, opening.user, opening.session, opening.tags,
        opening.chain, opening.target, opening.provider, opening.model, opening.kind,
        *counts,
        nano_usd, line.price_id, line.flags, line.outcome, line.status,
        _bounded(line.upstream_ms), line.first_content_ms,
    )  # fmt: skip


def _add(sums: Sums, row: Row) -> None:
    """One row to the sums of its key, team and user."""
    day, key, team, user, nano_usd = row[3], row[4], row[5], row[6], row[22]
    _sum(sums, ("key", key, day), row, nano_usd)
    if team is not None:
        _sum(sums, ("team", team, day), row, nano_usd)
    if user is not None:
        _sum(sums, ("user", f"{key}/{user}", day), row, nano_usd)


def _sum(sums: Sums, place: Place, row: Row, nano_usd: int | None) -> None:
    found = sums.get(place)
    if found is None:
        found = sums[place] = [0, 0, 0, 0, 0, 0]
    if row[0].endswith(".1"):  # the request itself, not what was tried after
        found[0] += 1
    found[1] += 1
    found[2] += row[14]
    found[3] += row[15]
    if nano_usd is None:
        found[5] += 1
    else:
        found[4] += nano_usd


def _bounded(count: int) -> int:
    return max(-MOST, min(count, MOST))
