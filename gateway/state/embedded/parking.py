"""Parked requests of one machine: rows of SQLite that every worker on it may take, one at a time.

A worker holds a row by a lease that it renews; when it is not heard of any more, another takes the
row. Rows of one lane wait for the same room, so a lane without room is left alone as a whole.
"""

import sqlite3
from collections.abc import Callable
from os import urandom
from typing import Any, TypeVar

from gateway.clock import Clock
from gateway.core.events import Event, StateTrouble
from gateway.core.kept import Owner
from gateway.core.parked import MOST, MOST_BYTES, Order, Outcome, Seen, State
from gateway.errors import Overloaded
from gateway.state.embedded.sqlite import Store, problem, transaction

T = TypeVar("T")

LEASE = 15.0  # seconds a request is another's no more after its worker was last heard of
RENEW = 5.0
GLANCE = 0.5  # seconds between looks at what callers dropped on other workers
KEPT = 86_400.0  # seconds an answer is kept
MOST_KEPT = 1024 * 1024 * 1024  # bytes of all answers; beyond it the oldest go
GONE_AT_ONCE = 100  # of those
CLEANED = 500  # rows removed in one transaction

PARK = """INSERT INTO parked (id, account, username, lane, tier, until, envelope, body, size)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
LOOK = """SELECT parked.token, parked.status, parked.headers, parked.body, lane.due
FROM parked LEFT JOIN lane ON lane.name = parked.lane AND parked.status IS NULL
WHERE id = ? AND account = ? AND username = ? AND (status IS NULL OR until > ?)"""
LOST = "SELECT id FROM parked WHERE token IS NOT NULL AND lease <= ? ORDER BY lease LIMIT 1"
LATE = """SELECT id FROM parked WHERE status IS NULL AND token IS NULL AND until <= ?
ORDER BY until LIMIT 1"""
NEXT = """SELECT id FROM (
  SELECT (SELECT id FROM parked WHERE parked.lane = lane.name AND status IS NULL AND token IS NULL
    ORDER BY until LIMIT 1) AS id
  FROM lane WHERE name != '' AND due <= ?
) JOIN parked USING (id) ORDER BY until LIMIT 1"""
TAKE = "UPDATE parked SET token = ?, lease = ?, lost = lost + (token IS NOT NULL) WHERE id = ?"
TAKEN = "SELECT lane, tier, until, envelope, body, lost FROM parked WHERE id = ?"
FINISH = """UPDATE parked SET token = NULL, lease = NULL, until = ?, status = ?, headers = ?,
  body = ?, envelope = x'', size = ? WHERE token = ?"""
BACK = "UPDATE parked SET token = NULL, lease = NULL WHERE token = ?"
OLDEST = """DELETE FROM parked WHERE id IN (
  SELECT id FROM parked WHERE status IS NOT NULL ORDER BY until LIMIT ?)"""


class EmbeddedParking:
    """The port `Parking`; `renew`, `look` and `clean` are for its owner (`open_state`)."""

    def __init__(self, store: Store, clock: Clock, heard: Callable[[Event], None]) -> None:
        self._store = store
        self._heard = heard
        self._leases: dict[str, EmbeddedLease] = {}  # by token
        self.clock = clock

    def of(self, owner: Owner) -> "EmbeddedLot":
        return EmbeddedLot(self, owner)

    async def take(self) -> "EmbeddedLease | None":
        now = self.clock.now()
        token = urandom(8).hex()
        try:
            row = await self.run_or("take", lambda db: _take(db, token, now), None)
        except BaseException:  # the process is being stopped: perhaps it is ours all the same
            self.hand("take", lambda db: db.execute(BACK, (token,)))
            raise
        if row is None:
            return None
        ticket, lane, tier, until, envelope, body, lost = row
        order = Order(lane, tier, until, now, bytes(envelope), bytes(body))
        lease = EmbeddedLease(self, ticket, order, lost, token)
        self._leases[token] = lease
        return lease

    async def renew(self) -> None:
        """Keep the leases of what is being answered."""
        rows = [(self.clock.now() + LEASE, token) for token in self._leases]
        if rows:
            await self.run_or("renew", lambda db: _renew(db, rows), None)

    async def look(self) -> None:
        """End what is ours no more: dropped by its owner, or taken by another worker."""
        if not self._leases:
            return
        before = list(self._leases)
        found = await self.run_or("look", _held, set(before))
        for token in before:
            if token not in found and token in self._leases:
                self._leases[token].end()

    async def clean(self) -> None:
        """Forget the answers whose time is over."""
        now = self.clock.now()
        while await self.run_or("clean", lambda db: _clean(db, now), 0) >= CLEANED:
            pass

    # -- for lots and leases

    def dropped(self, id: str) -> None:
        for lease in list(self._leases.values()):
            if lease.id == id:
                lease.end()

    def over(self, token: str) -> None:
        self._leases.pop(token, None)

    def hand(self, op: str, work: Callable[[sqlite3.Connection], object]) -> None:
        """Let the store do it, in order; nobody waits."""
        handed = self._store.hand(work)

        def done() -> None:
            error = None if handed.cancelled() else handed.exception()
            if isinstance(error, Exception):
                self._heard(StateTrouble("embedded", op, problem(error)))

        handed.add_done_callback(lambda _: done())

    async def run(self, op: str, work: Callable[[sqlite3.Connection], T]) -> T:
        """Raises Overloaded: `store_unavailable`."""
        try:
            return await self._store.run(work)
        except sqlite3.Error as error:
            self._heard(StateTrouble("embedded", op, problem(error)))
        raise Overloaded(
            "The store of parked requests cannot be used.",
            code="store_unavailable",
            retry_after=1.0,
        )

    async def run_or(self, op: str, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        try:
            return await self._store.run(work)
        except sqlite3.Error as error:
            self._heard(StateTrouble("embedded", op, problem(error)))
            return otherwise


class EmbeddedLot:
    """The port `Lot`."""

    __slots__ = ("_owner", "_parking")

    def __init__(self, parking: EmbeddedParking, owner: Owner) -> None:
        self._parking = parking
        self._owner = owner

    async def park(self, order: Order) -> str | None:
        ticket = f"parked_{urandom(16).hex()}"
        size = len(order.body) + len(order.envelope)
        values = (order.lane, order.tier, order.until, order.envelope, order.body, size)
        row = (ticket, *self._owner, *values)
        try:
            kept = await self._parking.run("park", lambda db: _park(db, row, order.due))
        except BaseException:  # the caller left, and nobody knows the id
            self._parking.hand(
                "drop", lambda db: db.execute("DELETE FROM parked WHERE id=?", (ticket,))
            )
            raise
        return ticket if kept else None

    async def look(self, id: str) -> Seen | None:
        place = (id, *self._owner, self._parking.clock.now())
        return await self._parking.run("look", lambda db: _look(db, place))

    async def drop(self, id: str) -> State | None:
        place = (id, *self._owner, self._parking.clock.now())
        found = await self._parking.run("drop", lambda db: _drop(db, place))
        if found == "running":
            self._parking.dropped(id)
        return found


class EmbeddedLease:
    """The port `Lease`: a row with our token."""

    __slots__ = ("_end", "_ended", "_parking", "_token", "id", "lost", "order")

    def __init__(
        self, parking: EmbeddedParking, id: str, order: Order, lost: int, token: str
    ) -> None:
        self._parking = parking
        self._token = token
        self._end: Callable[[], None] | None = None
        self._ended = False
        self.id = id
        self.order = order
        self.lost = lost

    def finish(self, outcome: Outcome) -> None:
        parking, token = self._parking, self._token
        parking.over(token)
        until = parking.clock.now() + KEPT
        size = len(outcome.body) + len(outcome.headers)
        row = (until, outcome.status, outcome.headers, outcome.body, size, token)
        parking.hand("finish", lambda db: _finish(db, row))

    def back(self, due: float) -> None:
        token, lane = self._token, self.order.lane
        self._parking.over(token)
        self._parking.hand("back", lambda db: _back(db, token, lane, due))

    def on_end(self, end: Callable[[], None]) -> None:
        self._end = end
        if self._ended:
            end()

    def end(self) -> None:
        """It is not ours any more; heard of once."""
        self._parking.over(self._token)
        if not self._ended:
            self._ended = True
            if self._end is not None:
                self._end()


# -- in the store's thread


def _park(db: sqlite3.Connection, row: tuple[Any, ...], due: float) -> bool:
    lane, tier, size = row[3], row[4], row[8]
    with transaction(db):
        n, held = db.execute(
            "SELECT coalesce(sum(n), 0), coalesce(sum(size), 0) FROM lane"
            " WHERE tier = ? AND name != ''",
            (tier,),
        ).fetchone()
        if n + 1 > MOST or held + size > MOST_BYTES:
            return False
        db.execute(PARK, row)
        db.execute("UPDATE lane SET due = ? WHERE name = ? AND n = 1", (due, lane))
    return True


def _look(db: sqlite3.Connection, place: tuple[Any, ...]) -> Seen | None:
    row = db.execute(LOOK, place).fetchone()
    if row is None:
        return None
    token, status, headers, body, due = row
    if status is not None:
        return Seen("done", outcome=Outcome(status, bytes(headers), bytes(body)))
    return Seen("running" if token is not None else "parked", due or 0.0)


def _drop(db: sqlite3.Connection, place: tuple[Any, ...]) -> State | None:
    with transaction(db):
        found = _look(db, place)
        if found is None:
            return None
        db.execute("DELETE FROM parked WHERE id = ?", place[:1])
    return found.state


def _next(db: sqlite3.Connection, now: float) -> str | None:
    for query in (LOST, LATE, NEXT):
        row = db.execute(query, (now,)).fetchone()
        if row is not None:
            ticket: str = row[0]
            return ticket
    return None


def _take(db: sqlite3.Connection, token: str, now: float) -> tuple[Any, ...] | None:
    if _next(db, now) is None:  # mostly: and then nobody is kept from writing
        return None
    with transaction(db):
        ticket = _next(db, now)
        if ticket is None:
            return None
        db.execute(TAKE, (token, now + LEASE, ticket))
        return (ticket, *db.execute(TAKEN, (ticket,)).fetchone())


def _finish(db: sqlite3.Connection, row: tuple[Any, ...]) -> None:
    with transaction(db):
        db.execute(FINISH, row)
        while _kept(db) > MOST_KEPT:
            if not db.execute(OLDEST, (GONE_AT_ONCE,)).rowcount:
                break


def _kept(db: sqlite3.Connection) -> int:
    """Bytes of all answers."""
    row = db.execute("SELECT size FROM lane WHERE name = ''").fetchone()
    return 0 if row is None else int(row[0])


def _back(db: sqlite3.Connection, token: str, lane: str, due: float) -> None:
    with transaction(db):
        if db.execute(BACK, (token,)).rowcount:
            db.execute("UPDATE lane SET due = ? WHERE name = ?", (due, lane))


def _renew(db: sqlite3.Connection, rows: list[tuple[float, str]]) -> None:
    with transaction(db):
        db.executemany("UPDATE parked SET lease = ? WHERE token = ?", rows)


def _held(db: sqlite3.Connection) -> set[str]:
    return {token for (token,) in db.execute("SELECT token FROM parked WHERE token IS NOT NULL")}


def _clean(db: sqlite3.Connection, now: float) -> int:
    with transaction(db):
        return db.execute(
            "DELETE FROM parked WHERE id IN"
            " (SELECT id FROM parked WHERE status IS NOT NULL AND until <= ? LIMIT ?)",
            (now, CLEANED),
        ).rowcount
