"""The ledger of one machine: journal, then SQLite; exactly one row an attempt through any crash.

What a journal says is applied in one transaction together with how far it was read (`cursor`), so
a batch counts once however often it is sent. `spent` is summed in the same transaction.
"""

import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from gateway.clock import Clock
from gateway.core.events import Event, StateTrouble
from gateway.state.embedded.accounts import swept
from gateway.state.embedded.sqlite import Store, harden, problem, transaction
from gateway.state.journal import Final, Fold, Journal, Part, Reader, Record, orphans, sweep, sync
from gateway.wire import json

SHIP = 0.1  # seconds between shipments
SYNC = 1.0
TIDY = 10.0  # orphans of siblings
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

Handed = tuple[Sequence[Part], list[Final] | None]
Row = tuple[Any, ...]  # the columns of `ledger`, in order
Place = tuple[str, str, int]  # scope, name, day
Sums = dict[Place, list[int]]
NONE = [0] * 6


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


class Shipper:
    """How far the own journal was applied: from memory while nothing is missing there, else read.

    `hand` belongs to the loop, `ship` to the store's thread. The file is always enough: it is read
    from its beginning when memory is not, and the cursor knows what was applied before.
    """

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._fold = Fold()
        self._rows: list[Final] = []  # not yet applied
        self._readers: dict[Path, Reader] = {}
        self._handed: deque[Handed] = deque()
        self._live = True  # `_rows` is what memory had, and all before it is applied
        self._level = False  # what was read reaches to where the next `hand` begins
        self.behind = False  # a full batch was applied, more is to be read
        self.users: set[str] = set()  # whose sums were changed; taken away by the loop
        self._applied: deque[Final] = deque()  # and not yet told
        self._told = 0  # the seq of the last that was applied

    def hand(self, parts: Sequence[Part], finals: list[Final] | None) -> None:
        """What is written, and its endings since the last time; None: they have to be read."""
        waiting = tuple(self._handed)  # at once: the thread may be taking from it
        if sum(len(more or ()) for _, more in waiting) + len(finals or ()) > BATCH:
            self._handed.clear()
            finals = None
        self._handed.append((parts, finals))

    def ship(self, db: sqlite3.Connection) -> set[Path]:
        """Apply what was handed over; the segments that are done and no longer needed."""
        parts: Sequence[Part] = ()
        finals: list[Final] | None = []
        while self._handed:
            parts, more = self._handed.popleft()
            finals = None if finals is None or more is None else finals + more
        self.behind = False
        if not parts:
            return set()
        done = self._follow(parts, finals)
        if self._rows:
            self.users |= apply(db, self._worker, self._rows)
            self._applied.extend(row for row in self._rows if row.seq > self._told)
            self._told = max(self._told, self._rows[-1].seq)
            self._rows.clear()
        if not done or not harden(db):
            return set()
        for path in done:
            if path in self._readers:
                self._readers.pop(path).close()
        return done

    def booked(self) -> list[Final]:
        """What was applied since the last time; read again from the file it is not told again."""
        return [self._applied.popleft() for _ in range(len(self._applied))]

    def at(self, parts: Iterable[Part]) -> bool:
        """Whether everything in `parts` is applied."""
        readers = self._readers
        return not self._rows and (
            self._live
            or all(
                part.done or (part.path in readers and readers[part.path].offset == part.size)
                for part in parts
            )
        )

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def _follow(self, parts: Iterable[Part], finals: list[Final] | None) -> set[Path]:
        """Add to `_rows` what is new; the segments that have no more."""
        whole = self._live or self._level
        if finals is None or not whole or len(self._rows) + len(finals) > BATCH:
            if self._live:
                self._rows.clear()
                self._live = False
            return self._read(parts)
        if not self._live:
            self.close()
            self._fold = Fold()
            self._live = True
        self._rows += finals
        return {part.path for part in parts if part.done}

    def _read(self, parts: Iterable[Part]) -> set[Path]:
        done: set[Path] = set()
        self._level = False
        for part in parts:
            reader = self._readers.get(part.path)
            if reader is None:
                reader = self._readers[part.path] = Reader(part.path)
            while len(self._rows) < BATCH and (records := reader.read(part.size)):
                self._rows.extend(self._fold.feed(records))
            if reader.offset < part.size:
                self.behind = True
                return done
            if part.done:
                done.add(part.path)
        self._level = True
        return done


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
    rows = [_row(final) for final in finals]
    try:
        db.execute("SAVEPOINT book")
        db.executemany(INSERT, rows)
    except sqlite3.IntegrityError:  # an attempt that is known: what was booked first counts
        db.execute("ROLLBACK TO book")
        rows = [row for row in rows if _insert(db, row)]
    db.execute("RELEASE book")
    sums = _sums(rows)
    db.executemany(SPEND, [(*at, *values) for at, values in sums.items()])
    return {name for scope, name, _ in sums if scope == "user"}


def _insert(db: sqlite3.Connection, row: Row) -> bool:
    return db.execute(INSERT.replace("INSERT", "INSERT OR IGNORE", 1), row).rowcount > 0


def _cursor(db: sqlite3.Connection, worker: str) -> tuple[int, bool]:
    found = db.execute("SELECT seq, closed FROM cursor WHERE worker = ?", (worker,)).fetchone()
    return (int(found[0]), bool(found[1])) if found else (0, False)


def _move(db: sqlite3.Connection, worker: str, seq: int, *, closed: int) -> None:
    db.execute("INSERT OR REPLACE INTO cursor VALUES (?, ?, ?)", (worker, seq, closed))


def _row(final: Final) -> Row:
    _, opening, line = final
    attempt_id, at, usage, nano_usd, *rest = line
    counts = json.fields(usage)[:-1]  # all but `estimated`
    request = attempt_id.rpartition(".")[0] or attempt_id
    most = max(counts), min(counts), nano_usd or 0, line.upstream_ms
    if max(most) > MOST or min(most) < -MOST:
        counts = tuple(_bounded(count) for count in counts)
        nano_usd = None if nano_usd is None else _bounded(nano_usd)
        rest[-2] = _bounded(line.upstream_ms)
    return attempt_id, request, at, int(at // DAY), *opening[2:12], *counts, nano_usd, *rest


def _sums(rows: Iterable[Row]) -> Sums:
    """What `rows` add to the sums of their keys, teams and users."""
    whose: dict[Row, list[int]] = {}
    for row in rows:
        who = row[3:7]  # day, key, team, user
        found = whose.get(who)
        if found is None:
            found = whose[who] = [0, 0, 0, 0, 0, 0]
        nano_usd = row[22]
        if row[0].endswith(".1"):  # the request itself, not what was tried after
            found[0] += 1
        found[1] += 1
        found[2] += row[14]
        found[3] += row[15]
        if nano_usd is None:
            found[5] += 1
        else:
            found[4] += nano_usd
    sums: Sums = {}
    for (day, key, team, user), values in whose.items():
        _add(sums, ("key", key, day), values)
        if team is not None:
            _add(sums, ("team", team, day), values)
        if user is not None:
            _add(sums, ("user", f"{key}/{user}", day), values)
    return sums


def _add(sums: Sums, place: Place, values: list[int]) -> None:
    sums[place] = [a + b for a, b in zip(sums.get(place, NONE), values, strict=True)]


def _bounded(count: int) -> int:
    return max(-MOST, min(count, MOST))
