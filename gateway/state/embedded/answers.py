"""Kept answers of one machine: rows of SQLite that every worker on it sees.

A row is a call under way (`token`, a lease that its worker renews), an answer (`status`), or a
call that its caller ended (`ended`, remembered for a while so that nobody starts it again). A
worker is told of its own rows at once and looks at those of others now and then.
"""

import sqlite3
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from gateway.clock import Clock
from gateway.core.events import Event, StateTrouble
from gateway.core.kept import Ending, Held, Kept, Owner
from gateway.errors import Overloaded
from gateway.state.claims import Claims, OwnClaim, Place
from gateway.state.embedded.sqlite import Store, problem, transaction

T = TypeVar("T")

LEASE = 15.0  # seconds a call under way is another's no more after its worker was last heard of
RENEW = 5.0
KEPT = 86_400.0  # seconds the answer under a caller's key is kept
ENDED = 60.0  # seconds it is remembered that a caller ended a call
MOST = 10_000  # answers of one account; beyond it the oldest go
MOST_BYTES = 64 * 1024 * 1024  # of their bodies
MOST_IN_ALL = 1024 * 1024 * 1024  # bytes of all accounts; beyond it those go whose time is nearest
GONE_AT_ONCE = 100  # of those
WAITING = 64 * 1024 * 1024  # bytes of bodies that may wait for the store; beyond it none is kept
CLEANED = 500  # rows removed in one transaction

COLUMNS = "status, body, target, model, cost, finish_reason"
FIND = f"""SELECT fingerprint, token, ended, {COLUMNS} FROM answer
WHERE account = ? AND username = ? AND name = ? AND until > ?"""  # noqa: S608 - our own words
GET = f"""SELECT {COLUMNS} FROM answer
WHERE account = ? AND username = ? AND name = ? AND until > ? AND at >= ? AND status IS NOT NULL
"""  # noqa: S608
CLAIM = """INSERT INTO answer (account, username, name, at, until, fingerprint, token, detached)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (account, username, name) DO UPDATE SET
  at = excluded.at, until = excluded.until, fingerprint = excluded.fingerprint,
  token = excluded.token, detached = excluded.detached, ended = 0, status = NULL, body = x'',
  size = 0"""
PUT = """INSERT INTO answer (account, username, name, at, until, fingerprint, status, body, target,
  model, cost, finish_reason, size)
VALUES (?, ?, ?, ?, ?, x'', ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (account, username, name) DO UPDATE SET
  at = excluded.at, until = excluded.until, status = excluded.status, body = excluded.body,
  target = excluded.target, model = excluded.model, cost = excluded.cost,
  finish_reason = excluded.finish_reason, size = excluded.size"""
KEEP = """UPDATE answer SET at = ?, until = ?, token = NULL, status = ?, body = ?, target = ?,
  model = ?, cost = ?, finish_reason = ?, size = ? WHERE token = ? AND NOT ended"""
RELEASE = "DELETE FROM answer WHERE token = ? AND NOT ended"
END = """UPDATE answer SET ended = 1, until = ?
WHERE account = ? AND username = ? AND name = ? AND until > ? AND token IS NOT NULL AND detached
  AND NOT ended"""
OLDEST = """DELETE FROM answer WHERE id IN (
  SELECT id FROM answer WHERE account = ? AND status IS NOT NULL ORDER BY at LIMIT ?)"""
NEAREST = """DELETE FROM answer WHERE id IN (
  SELECT id FROM answer WHERE status IS NOT NULL ORDER BY until LIMIT ?)"""


class _Found(NamedTuple):
    fingerprint: bytes
    running: bool
    ended: bool
    kept: Kept | None

    def held(self, fingerprint: bytes) -> Kept | Held:
        if self.fingerprint != fingerprint:
            return Held.OTHER
        if self.ended:
            return Held.ENDED
        return self.kept or Held.RUNNING


class EmbeddedAnswers:
    """The port `Answers`; `renew`, `look` and `clean` are for its owner (`open_state`)."""

    def __init__(self, store: Store, clock: Clock, heard: Callable[[Event], None]) -> None:
        self._store = store
        self._heard = heard
        self._waiting = 0  # bytes handed to the store and not yet written
        self.clock = clock
        self.claims = Claims(clock)

    def of(self, owner: Owner) -> "EmbeddedDrawer":
        return EmbeddedDrawer(self, owner)

    async def renew(self) -> None:
        """Keep the leases of calls under way."""
        tokens = [claim.token for claim in self.claims.under_way()]
        until = self.clock.now() + LEASE
        if tokens:
            await self.run_or("renew", lambda db: _renew(db, tokens, until), None)

    async def look(self) -> None:
        """End what a caller has ended on another worker."""
        if self.claims.under_way(detached=True):
            none: list[str] = []
            for token in await self.run_or("look", _ended, none):
                self.claims.ended(token)

    async def clean(self) -> None:
        """Forget what is over."""
        now = self.clock.now()
        while await self.run_or("clean", lambda db: _clean(db, now), 0) >= CLEANED:
            pass

    # -- for drawers and claims

    def hand(
        self, op: str, work: Callable[[sqlite3.Connection], object], size: int, place: Place
    ) -> None:
        """Let the store do it; whoever waits there is told when it is done."""
        self._waiting += size
        handed = self._store.hand(work)

        def done(error: BaseException | None) -> None:
            self._waiting -= size
            if isinstance(error, Exception):
                self._heard(StateTrouble("embedded", op, problem(error)))
            self.claims.ring(place)

        handed.add_done_callback(
            lambda future: done(None if future.cancelled() else future.exception())
        )

    def room_for(self, size: int) -> bool:
        return self._waiting + size <= WAITING

    async def run(self, op: str, work: Callable[[sqlite3.Connection], T]) -> T:
        """As the store; without it nobody can say what was answered already.

        Raises:
            Overloaded: `store_unavailable`.
        """
        try:
            return await self._store.run(work)
        except sqlite3.Error as error:
            self._heard(StateTrouble("embedded", op, problem(error)))
        raise Overloaded(
            "The store of idempotency keys cannot be used, so nothing was sent.",
            code="store_unavailable",
            retry_after=1.0,
        )

    async def run_or(self, op: str, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        try:
            return await self._store.run(work)
        except sqlite3.Error as error:
            self._heard(StateTrouble("embedded", op, problem(error)))
            return otherwise


class EmbeddedDrawer:
    """The port `Drawer`."""

    __slots__ = ("_answers", "_owner")

    def __init__(self, answers: EmbeddedAnswers, owner: Owner) -> None:
        self._answers = answers
        self._owner = owner

    async def get(self, name: str, seconds: float) -> Kept | None:
        now = self._answers.clock.now()
        row = (*self._owner, name, now, now - seconds)
        return await self._answers.run_or("get", lambda db: _get(db, row), None)

    def put(self, name: str, kept: Kept, seconds: float) -> None:
        answers, place = self._answers, (*self._owner, name)
        size = len(kept.body)
        if not answers.room_for(size):
            return
        now = answers.clock.now()
        row = (*place, now, now + seconds, *_columns(kept))
        answers.hand("put", lambda db: _put(db, row), size, place)

    async def claim(
        self, name: str, fingerprint: bytes, *, detached: bool
    ) -> "EmbeddedClaim | Kept | Held":
        answers, place = self._answers, (*self._owner, name)
        claim = EmbeddedClaim(answers, place, detached=detached)
        now = answers.clock.now()
        row = (*place, now, now + LEASE, fingerprint, claim.token, detached)
        try:
            found = await answers.run("claim", lambda db: _claim(db, row))
        except BaseException:  # the caller left: perhaps it stands in the store all the same
            claim.release()
            raise
        if found is None:
            answers.claims.began(claim)
            return claim
        return found

    async def changed(self, name: str, until: float) -> None:
        await self._answers.claims.wait((*self._owner, name), until)

    async def end(self, name: str) -> Ending | None:
        answers, place = self._answers, (*self._owner, name)
        now = answers.clock.now()
        ending = await answers.run("end", lambda db: _end(db, place, now))
        if ending == "ended":
            answers.claims.ended_at(place)
        return ending


class EmbeddedClaim(OwnClaim):
    """The port `Claim`: a row with our token."""

    __slots__ = ("_answers",)

    def __init__(self, answers: EmbeddedAnswers, place: Place, *, detached: bool) -> None:
        super().__init__(place, detached=detached)
        self._answers = answers

    def keep(self, kept: Kept) -> None:
        answers, size, token = self._answers, len(kept.body), self.token
        if not answers.room_for(size):
            self.release()
            return
        answers.claims.over(self)
        now = answers.clock.now()
        row = (now, now + KEPT, *_columns(kept), token)
        account = self.place[0]
        answers.hand("keep", lambda db: _keep(db, row, account), size, self.place)

    def release(self) -> None:
        token = self.token
        self._answers.claims.over(self)
        self._answers.hand("release", lambda db: db.execute(RELEASE, (token,)), 0, self.place)


# -- in the store's thread


def _find(db: sqlite3.Connection, place: Place, now: float) -> _Found | None:
    row = db.execute(FIND, (*place, now)).fetchone()
    if row is None:
        return None
    fingerprint, token, ended, *answer = row
    kept = None if answer[0] is None else _kept(answer)
    return _Found(bytes(fingerprint), token is not None, bool(ended), kept)


def _claim(db: sqlite3.Connection, row: tuple[Any, ...]) -> Kept | Held | None:
    """None: it is ours now."""
    account, user, name, now, _, fingerprint, *_ = row
    place = (account, user, name)
    found = _find(db, place, now)
    if found is None:
        with transaction(db):
            found = _find(db, place, now)
            if found is None:
                db.execute(CLAIM, row)
    return None if found is None else found.held(fingerprint)


def _get(db: sqlite3.Connection, row: tuple[Any, ...]) -> Kept | None:
    found = db.execute(GET, row).fetchone()
    return None if found is None else _kept(found)


def _put(db: sqlite3.Connection, row: tuple[Any, ...]) -> None:
    with transaction(db):
        db.execute(PUT, row)
        _trim(db, row[0])


def _keep(db: sqlite3.Connection, row: tuple[Any, ...], account: str) -> None:
    with transaction(db):
        db.execute(KEEP, row)
        _trim(db, account)


def _trim(db: sqlite3.Connection, account: str) -> None:
    """What goes until the account, and all together, are within their bounds."""
    while True:
        n, size = _count(db, account)
        if n <= MOST and size <= MOST_BYTES:
            break
        if not db.execute(OLDEST, (account, max(1, n - MOST))).rowcount:
            break  # all the rest is under way
    while _count(db, "")[1] > MOST_IN_ALL:
        if not db.execute(NEAREST, (GONE_AT_ONCE,)).rowcount:
            break


def _count(db: sqlite3.Connection, account: str) -> tuple[int, int]:
    row = db.execute("SELECT n, size FROM drawer WHERE account = ?", (account,)).fetchone()
    return row or (0, 0)


def _end(db: sqlite3.Connection, place: Place, now: float) -> Ending | None:
    with transaction(db):
        if db.execute(END, (now + ENDED, *place, now)).rowcount:
            return "ended"
        found = _find(db, place, now)
    if found is None:
        return None
    if found.ended:
        return "ended"
    return "running" if found.running else "kept"


def _renew(db: sqlite3.Connection, tokens: list[str], until: float) -> None:
    with transaction(db):
        db.executemany(
            "UPDATE answer SET until = ? WHERE token = ? AND NOT ended",
            [(until, token) for token in tokens],
        )


def _ended(db: sqlite3.Connection) -> list[str]:
    """Tokens of the calls that were ended of late, whoever made them."""
    found = db.execute("SELECT token FROM answer WHERE token IS NOT NULL AND ended")
    return [token for (token,) in found]


def _clean(db: sqlite3.Connection, now: float) -> int:
    with transaction(db):
        return db.execute(
            "DELETE FROM answer WHERE id IN (SELECT id FROM answer WHERE until <= ? LIMIT ?)",
            (now, CLEANED),
        ).rowcount


def _columns(kept: Kept) -> tuple[Any, ...]:
    return (
        kept.status, kept.body, kept.target, kept.model, kept.cost, kept.finish_reason,
        len(kept.body),
    )  # fmt: skip


def _kept(row: Any) -> Kept:
    status, body, target, model, cost, finish_reason = row
    return Kept(status, bytes(body), target, model, cost, finish_reason)
