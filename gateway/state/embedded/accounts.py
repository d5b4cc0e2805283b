"""The accounts that the workers of one machine share: rows of the store's file.

Each call is one transaction, on the machine's monotonic clock, which all its processes agree on.
After another start of the machine what is counted counts for another window.
"""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from gateway.clock import Clock
from gateway.state.accounts import (
    IDLE,
    MICRO,
    SILENT,
    Answer,
    Ask,
    Caller,
    Need,
    StoreLost,
    Tally,
    restored,
    sync,
)
from gateway.state.embedded.sqlite import problem, transaction

T = TypeVar("T")

CALL = 1.0  # seconds a call may take
SLACK = 1.0  # seconds the stored time may lie behind: it is not written with every call
NAMES = 500  # in one statement
BOOT = Path("/proc/sys/kernel/random/boot_id")

CHARGE = """INSERT INTO budget VALUES (?, ?)
ON CONFLICT (account) DO UPDATE SET nano_usd = nano_usd + excluded.nano_usd"""


class Thread(Protocol):
    """Where the store's file is spoken to."""

    async def within(self, seconds: float, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns. Raises sqlite3.Error, TimeoutError."""
        ...


class SqliteAccounts:
    """The port `AccountStore` over a file.

    Args:
        thread: of its own: calls must not wait for shipments.
        clock: the machine's; its monotonic time must be that of all who share the file.
    """

    def __init__(self, thread: Thread, clock: Clock) -> None:
        self._thread = thread
        self._now = clock.monotonic
        self._boot = boot()

    async def sync(
        self, caller: Caller, asks: Sequence[Ask], groups: Sequence[Sequence[Need]]
    ) -> Answer:
        return await self._within(partial(self._sync, caller, asks, groups))

    async def tidy(self) -> None:
        """Forget accounts nobody uses. Raises StoreLost."""
        await self._within(self._tidy)

    async def _within(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._thread.within(CALL, work)
        except (sqlite3.Error, TimeoutError) as error:
            raise StoreLost(problem(error)) from error

    def _sync(
        self,
        caller: Caller,
        asks: Sequence[Ask],
        groups: Sequence[Sequence[Need]],
        db: sqlite3.Connection,
    ) -> Answer:
        with transaction(db):
            now = _time(db, self._boot, self._now())
            beats = _beat(db, caller, now)
            tallies = _load(db, [ask.account.id for ask in asks])
            answer = sync(tallies, beats, now, caller, asks, groups)
            _save(db, tallies)
        return answer

    def _tidy(self, db: sqlite3.Connection) -> None:
        with transaction(db):
            now = _time(db, self._boot, self._now())
            db.execute("DELETE FROM account WHERE until < ?", (now,))


def charge(db: sqlite3.Connection, amounts: Iterable[tuple[str, int]]) -> None:
    """Budgets (account id, nano-dollars) of lines being booked, inside their transaction."""
    db.executemany(CHARGE, amounts)


def forget_spent(db: sqlite3.Connection, before: int) -> None:
    """What was spent in periods that were over before a day (since the epoch), in a transaction.

    The period ends the id, so nothing a user or session is called can look like one.
    """
    day = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=before)).strftime("%Y-%m-%d")
    for per, label in (("hour", f"{day}T00"), ("day", day), ("month", day[:7])):
        db.execute(
            "DELETE FROM budget WHERE account GLOB ? AND substr(account, ?) < ?",
            (f"*:budget:{per}:[0-9]*", -len(label), label),
        )


def swept(db: sqlite3.Connection, worker: str) -> None:
    """All that a worker left is booked: what it held on budgets is free, inside a transaction."""
    db.execute("DELETE FROM worker WHERE id = ?", (worker,))


def boot() -> str:
    """Which start of the machine this is; "" where it does not say."""
    try:
        return BOOT.read_text("ascii").strip()
    except OSError:
        return ""


def _time(db: sqlite3.Connection, booted: str, now: float) -> float:
    """`now`, but never less than it was; after another start all is counted anew."""
    found = db.execute("SELECT boot, at FROM machine").fetchone()
    if found is None:
        db.execute("INSERT INTO machine VALUES (?, ?)", (booted, now))
        return now
    before, at = str(found[0]), float(found[1])
    if before != booted or now < at - SLACK:
        _move(db, at, now)
        db.execute("UPDATE machine SET boot = ?, at = ?", (booted, now))
    elif now > at + SLACK:
        db.execute("UPDATE machine SET at = ?", (now,))
    return now


def _move(db: sqlite3.Connection, before: float, now: float) -> None:
    """Put everything on another clock; the workers of the one before are dead."""
    db.execute("UPDATE worker SET beat = ?", (now - 2 * SILENT,))
    tallies = {}
    for name, state in db.execute("SELECT id, state FROM account"):
        tally = tallies[name] = restored(state)
        tally.window.move(now)
        tally.meter.tat = max(0, tally.meter.tat - int((before - now) * MICRO))
        tally.touched = now
    _save(db, tallies)


def _beat(db: sqlite3.Connection, caller: Caller, now: float) -> dict[str, float]:
    """When each worker was last heard of before this. Raises StoreLost: this call came too late."""
    worker, turn, _ = caller
    found = db.execute("SELECT turn FROM worker WHERE id = ?", (worker,)).fetchone()
    if found is not None and found[0] >= turn:
        raise StoreLost("late")
    beats = dict(db.execute("SELECT id, beat FROM worker").fetchall())
    db.execute("INSERT OR REPLACE INTO worker VALUES (?, ?, ?)", (worker, turn, now))
    return beats


def _load(db: sqlite3.Connection, names: Sequence[str]) -> dict[str, Tally]:
    tallies = {name: Tally() for name in names}
    for begin in range(0, len(names), NAMES):
        some = names[begin : begin + NAMES]
        marks = ",".join("?" * len(some))
        query = f"SELECT id, state FROM account WHERE id IN ({marks})"  # noqa: S608 - question marks
        for name, state in db.execute(query, some):
            tallies[name] = restored(state)
        query = f"SELECT account, nano_usd FROM budget WHERE account IN ({marks})"  # noqa: S608
        for name, nano_usd in db.execute(query, some):
            tallies[name].spent = nano_usd
    return tallies


def _save(db: sqlite3.Connection, tallies: dict[str, Tally]) -> None:
    rows = [(name, tally.dump(), _until(tally)) for name, tally in tallies.items()]
    db.executemany("INSERT OR REPLACE INTO account VALUES (?, ?, ?)", rows)


def _until(tally: Tally) -> float | None:
    if tally.kind == "budget" and tally.held:
        return None
    return max(tally.touched + IDLE, tally.meter.tat / MICRO)
