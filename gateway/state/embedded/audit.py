"""The audit log of one machine: a table that only grows at its end and ages at its beginning.

Changes of keys are written in the transaction that makes them. What the gateway itself has to tell
(verbs, failed logins, configurations) waits in memory for the store's thread, a moment at most.
"""

import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from gateway.clock import Clock
from gateway.core.audit import (
    FORBIDDEN,
    GENESIS,
    Act,
    AuditLine,
    Seal,
    Seals,
    faults,
    line_after,
    trim_of,
)
from gateway.core.events import (
    Audited,
    Event,
    Lifecycle,
    Reloaded,
    SpendAlert,
    StateTrouble,
)
from gateway.errors import Overloaded
from gateway.state.embedded.sqlite import Store, looked_into, problem, transaction

WRITE = 0.25  # seconds between batches
WAITING = 1_000  # acts not yet written; beyond it they are counted and told as lost
DAY = 86_400_000  # milliseconds
KEPT = 400 * DAY
MOST = 200_000  # lines, however young
CLEANED = 5_000  # lines removed in one transaction
A_SECOND = 10  # failed logins and refused verbs
UNKNOWN = "no line has the hash that was noted"
AN_HOUR = 500  # so that guessing cannot push the rest out


class AuditLog:
    """The port `Audit`; `write` and `clean` are for its owner as well.

    Args:
        store: where the table is.
        config: names the snapshot in force.
        clock: the time.
        told: hears of each line, and of trouble.
    """

    def __init__(
        self, store: Store, config: str, clock: Clock, told: Callable[[Event], None]
    ) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._told = told
        self._waiting: deque[tuple[int, Act, str]] = deque()  # milliseconds, act, configuration
        self._lost = 0
        self._sample = Sample()

    def use(self, config: str) -> None:
        """The name of the configuration that is in force from now on."""
        self._config = config

    def note(self, act: Act) -> None:
        now = self._clock.now()
        if act.verb == "login" or act.result == FORBIDDEN:
            more = self._sample.take(now)
            if more is None:
                return
            if more:
                act = Act(act.who, act.verb, act.object, f"{act.result}, and {more} more untold")
        if len(self._waiting) >= WAITING:
            self._lost += 1
            return
        self._waiting.append((int(now * 1000), act, self._config))

    def heard(self, event: Event) -> None:
        """What becomes a line without anybody's verb."""
        match event:
            case Reloaded():
                self._config = event.config
                result = "refused: it has mistakes" if event.problem else "ok"
                self.note(Act("gateway", "configuration", event.config, result))
            case Lifecycle():
                if event.what == "started":
                    self.note(Act("gateway", "configuration", self._config))
                self.note(Act("gateway", "process", event.detail, event.what))
            case SpendAlert():
                told = event.told()
                result = f"${told['spent_usd']} on {told['day']}, usually ${told['usual_usd']}"
                self.note(Act("gateway", "alert", f"{told['key']}/{told['user']}", result))
            case _:
                pass

    async def write(self) -> None:
        """Write what waits; what cannot be written goes on waiting."""
        batch = list(self._waiting)
        lost = self._lost
        if lost:
            act = Act("gateway", "lost", "", f"{lost} lines")
            batch.append((int(self._clock.now() * 1000), act, self._config))
        if not batch:
            return
        try:
            lines = await self._store.run(lambda db: _write(db, batch))
        except sqlite3.Error as error:
            self._told(StateTrouble("embedded", "audit", problem(error)))
            return
        self._lost -= lost
        for written in batch:
            if self._waiting and self._waiting[0] is written:
                self._waiting.popleft()
        for line in lines:
            self.tell(line)

    def tell(self, line: AuditLine) -> None:
        """A line was written: let it be known."""
        self._told(Audited(line))

    async def read(self, most: int, before: int | None = None) -> Sequence[AuditLine]:
        await self.write()
        try:
            return await self._store.run(lambda db: newest(db, most, before))
        except sqlite3.Error:
            raise Overloaded(
                "The audit log cannot be read now; the log says why.",
                code="store_unavailable",
                retry_after=1.0,
            ) from None

    async def clean(self) -> None:
        """Remove what is too old, a little at a time, and seal where it ended."""
        now = int(self._clock.now() * 1000)
        try:
            while await self._store.run(lambda db: trim(db, now, self._config)) >= CLEANED:
                pass
        except sqlite3.Error as error:
            self._told(StateTrouble("embedded", "audit", problem(error)))


class Sample:
    """Ten a second, five hundred an hour: of the rest only the number is told, with the next."""

    def __init__(self) -> None:
        self._second = self._hour = -1
        self._of_second = self._of_hour = self._untold = 0

    def take(self, now: float) -> int | None:
        """How many were left out before this one; None: it is left out itself."""
        second, hour = int(now), int(now // 3600)
        if second != self._second:
            self._second, self._of_second = second, 0
        if hour != self._hour:
            self._hour, self._of_hour = hour, 0
        if self._of_second >= A_SECOND or self._of_hour >= AN_HOUR:
            self._untold += 1
            return None
        self._of_second += 1
        self._of_hour += 1
        untold, self._untold = self._untold, 0
        return untold


def append(db: sqlite3.Connection, at: int, act: Act, config: str) -> AuditLine:
    """The next line, in the caller's transaction. `at` is milliseconds."""
    line = line_after(_end(db), at, act, config)
    db.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", line)
    _set_seal(db, "head", Seal(line.seq, line.hash))
    return line


def newest(db: sqlite3.Connection, most: int, before: int | None = None) -> list[AuditLine]:
    """The last `most` lines (those below the number `before`), newest first."""
    rows = db.execute(
        "SELECT * FROM audit WHERE seq < ? ORDER BY seq DESC LIMIT ?",
        (2**62 if before is None else before, most),
    )
    return [AuditLine(*row) for row in rows]


def trim(db: sqlite3.Connection, now: int, config: str) -> int:
    """Remove at most CLEANED lines that are too old or too many; how many went."""
    with transaction(db):
        anchor, head = _seal(db, "anchor"), _seal(db, "head")
        last = min(_oldest(db, now, anchor, head) - 1, anchor.seq + CLEANED)
        found = db.execute("SELECT seq, hash FROM audit WHERE seq = ?", (last,)).fetchone()
        if last <= anchor.seq or found is None:
            return 0
        removed = Seal(*found)
        append(db, now, trim_of(anchor.seq + 1, removed), config)
        _set_seal(db, "anchor", removed)
        db.execute("DELETE FROM audit WHERE seq <= ?", (last,))
        return last - anchor.seq


def _oldest(db: sqlite3.Connection, now: int, anchor: Seal, head: Seal) -> int:
    """The first line to keep. Nothing leaves until it is worth a line that says so."""
    first = anchor.seq + 1
    if head.seq - anchor.seq > MOST:
        return head.seq - MOST + CLEANED
    found = db.execute("SELECT at FROM audit WHERE seq >= ? LIMIT 1", (first,)).fetchone()
    if found is None or found[0] > now - KEPT - DAY:
        return first
    young = db.execute(
        "SELECT seq FROM audit WHERE at >= ? ORDER BY seq LIMIT 1", (now - KEPT,)
    ).fetchone()
    return int(young[0]) if young else head.seq


class AuditFile:
    """The log in the state directory, for the command line: it only looks.

    Both methods raise OSError where the store cannot be read; its `strerror` says why.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)

    def newest(self, most: int) -> list[AuditLine]:
        """The last lines, newest first."""
        with looked_into(self._folder) as db:
            return newest(db, most) if db is not None and _there(db) else []

    def verify(self, most: int, holds: str = "") -> tuple[Seals, list[str]]:
        """The ends of the chain, and what is wrong with it, in order.

        Args:
            most: faults that are told.
            holds: a hash that was noted elsewhere; one of the lines has to have it.
        """
        with looked_into(self._folder) as db:
            if db is None or not _there(db):
                return _NO_SEALS, [UNKNOWN] if holds else []
            db.execute("BEGIN")  # one moment's view, whoever writes meanwhile
            seals = Seals(_seal(db, "anchor"), _seal(db, "head"))
            found = list(islice(faults(_all(db), seals), most))
            if holds and not _holds(db, holds):
                found.append(UNKNOWN)
            return seals, found


def _holds(db: sqlite3.Connection, hash: str) -> bool:
    return db.execute("SELECT 1 FROM audit WHERE hash = ?", (hash,)).fetchone() is not None


_NO_SEALS = Seals(Seal(0, GENESIS), Seal(0, GENESIS))


def _there(db: sqlite3.Connection) -> bool:
    """Whether the store is of a gateway that keeps one."""
    found = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'audit_seal'").fetchone()
    return found is not None


def _all(db: sqlite3.Connection) -> Iterable[AuditLine]:
    rows = db.execute("SELECT * FROM audit ORDER BY seq")
    return (AuditLine._make(map(_readable, row)) for row in rows)


def _readable(value: Any) -> Any:
    """Of another type than we write: then the line was changed, and the hash will say so."""
    return value if isinstance(value, int | str) else repr(value)


def _end(db: sqlite3.Connection) -> Seal:
    """What the next line is written after.

    Where the seal was tampered with the log goes on, and the break stays visible.
    """
    head = _seal(db, "head")
    (last,) = db.execute("SELECT coalesce(max(seq), 0) FROM audit").fetchone()
    return head if last <= head.seq else Seal(last, head.hash)


def _seal(db: sqlite3.Connection, name: str) -> Seal:
    """Somebody removed it: then nothing fits it."""
    found = db.execute("SELECT seq, hash FROM audit_seal WHERE name = ?", (name,)).fetchone()
    return Seal(*found) if found else Seal(0, "")


def _set_seal(db: sqlite3.Connection, name: str, seal: Seal) -> None:
    db.execute("INSERT OR REPLACE INTO audit_seal VALUES (?, ?, ?)", (name, *seal))


def _write(db: sqlite3.Connection, batch: Sequence[tuple[int, Act, str]]) -> list[AuditLine]:
    with transaction(db):
        return [append(db, *one) for one in batch]
