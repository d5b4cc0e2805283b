"""Caller keys of one machine: those of the file and those made by `gateway keys create`.

A gateway is keyless (everybody is `local`) only while the file has no `keys:` *and* the store has
never held one: revoking or outliving the last key must not open the door.
"""

import hmac
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from gateway.clock import Clock
from gateway.core.events import Event, StateTrouble
from gateway.core.keys import MadeKey, make_key
from gateway.core.principal import LOCAL, Credential, Principal, Role
from gateway.core.snapshot import Snapshot
from gateway.core.target import Account, AccountKind
from gateway.state.embedded.sqlite import Store, connect, look, transaction
from gateway.wire import json

POLL = 0.5  # seconds: a key made or revoked by another process counts within 1 s
DUMMY = bytes(32)  # compared with where there is no such key: the same work

LimitRow = tuple[AccountKind, int, int | None]
"""A limit of the key's own: kind, limit, burst."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key of the store; times in epoch seconds. `previous` counts until `previous_until`."""

    name: str
    id: str
    digest: bytes
    previous: bytes | None
    previous_until: float | None
    tier: str | None
    team: str | None
    chains: tuple[str, ...] | None
    limits: tuple[LimitRow, ...]
    role: Role
    expires: float | None
    created: float
    revoked: float | None

    def state(self, now: float) -> Literal["active", "expired", "revoked"]:
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


class KeyTaken(ValueError):
    """A key of that name exists already."""


class NoSuchKey(LookupError):
    """There is no key of that name, or it was revoked."""


class KeyStore:
    """The keys in the store's file, for the CLI and the admin listener: blocking, short-lived.

    Args:
        folder: the state directory.
        clock: for what is written down.
    """

    def __init__(self, folder: Path | str, clock: Clock) -> None:
        self._folder = Path(folder)
        self._clock = clock

    def create(  # noqa: PLR0913 - a word for each option of the command
        self,
        name: str,
        *,
        tier: str | None = None,
        team: str | None = None,
        chains: Sequence[str] | None = None,
        limits: Sequence[LimitRow] = (),
        expires: float | None = None,
        role: Role = "client",
    ) -> MadeKey:
        """A new key; its secret exists nowhere but in the answer. Raises KeyTaken."""
        made = make_key()
        row = (
            name, made.id, made.digest, None, None, tier, team,
            None if chains is None else json.dumps(list(chains)),
            json.dumps([list(row) for row in limits]), role, expires, self._clock.now(), None,
        )  # fmt: skip
        with closing(connect(self._folder)) as db, transaction(db):
            try:
                db.execute("INSERT INTO key VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError:
                raise KeyTaken(name) from None
            _changed(db)
        return made

    def list(self) -> "list[StoredKey]":
        """All of them, revoked ones too, oldest first."""
        db = look(self._folder)
        if db is None:
            return []
        with closing(db):
            return _read(db)

    def revoke(self, name: str) -> None:
        """From now on nobody; a running gateway follows within a second. Raises NoSuchKey."""
        with closing(connect(self._folder)) as db, transaction(db):
            _one(db, name)
            db.execute(
                "UPDATE key SET revoked = ?, previous = NULL WHERE name = ?",
                (self._clock.now(), name),
            )
            _changed(db)

    def rotate(self, name: str, overlap: float = 86_400.0) -> MadeKey:
        """A new secret; the one before counts for `overlap` more seconds. Raises NoSuchKey."""
        with closing(connect(self._folder)) as db, transaction(db):
            key = _one(db, name)
            made = make_key(key.id)
            db.execute(
                "UPDATE key SET digest = ?, previous = ?, previous_until = ? WHERE name = ?",
                (made.digest, key.digest, self._clock.now() + overlap, name),
            )
            _changed(db)
        return made


class Entry(NamedTuple):
    """What it takes to recognise a caller."""

    principal: Principal
    digest: bytes
    previous: bytes
    previous_until: float
    expires: float


class EmbeddedKeys:
    """The port `Keys`: everything it needs is in memory; `poll` follows the store.

    Attributes:
        keyless: every caller is `local`, with any key or none.
    """

    def __init__(
        self, store: Store, snapshot: Snapshot, clock: Clock, heard: Callable[[Event], None]
    ) -> None:
        self._store = store
        self._now = clock.now
        self._heard = heard
        self._snapshot = snapshot
        self._stored: list[StoredKey] = []
        self._seen = (-1, -1)  # SQLite's data_version, and our count of changes
        self._declared: dict[bytes, Entry] = {}
        self._made: dict[str, Entry] = {}
        self.keyless = snapshot.keyless
        self.use(snapshot)

    async def find(self, credential: Credential | None) -> Principal | None:
        if self.keyless:
            return LOCAL
        if credential is None:
            return None
        shown = credential.digest
        declared, made = self._declared.get(shown), self._made.get(credential.id or "")
        entry = declared or made or NOBODY
        now = self._now()
        current = hmac.compare_digest(entry.digest, shown)
        before = hmac.compare_digest(entry.previous, shown) and now < entry.previous_until
        if (current or before) and now < entry.expires and entry is not NOBODY:
            return entry.principal
        return None

    def use(self, snapshot: Snapshot) -> None:
        """A new configuration: the principals are made again, once for each key."""
        self._snapshot = snapshot
        self._declared = {
            key.digest: Entry(key.principal, key.digest, DUMMY, 0.0, _end(key.expires))
            for key in snapshot.keys
        }
        self._made = {}
        for key in self._stored:
            principal = principal_of(key, snapshot)
            if key.revoked is None and principal is not None:
                self._made[key.id] = Entry(
                    principal,
                    key.digest,
                    key.previous or DUMMY,
                    key.previous_until or 0.0,
                    _end(key.expires),
                )
        self.keyless = snapshot.keyless and not snapshot.keys and not self._stored

    async def poll(self) -> None:
        """Follow what other processes did to the store."""
        try:
            await self.load()
        except sqlite3.Error as error:
            self._heard(StateTrouble("embedded", "keys", type(error).__name__))

    async def load(self) -> None:
        """As `poll`, for the start: without knowing the keys nobody may be served.

        Raises:
            sqlite3.Error: the store cannot be read.
        """
        found = await self._store.run(self._look)
        if found is not None:
            self._stored = found
            self.use(self._snapshot)

    def _look(self, db: sqlite3.Connection) -> list[StoredKey] | None:
        """The keys, if there was a change. In the store's thread."""
        (data,) = db.execute("PRAGMA data_version").fetchone()
        if data == self._seen[0]:
            return None
        (changes,) = db.execute("SELECT value FROM version WHERE name = 'key'").fetchone()
        if changes == self._seen[1]:
            self._seen = (data, changes)
            return None
        found = _read(db)
        self._seen = (data, changes)
        return found


NOBODY = Entry(Principal(""), DUMMY, DUMMY, 0.0, 0.0)


def principal_of(key: StoredKey, snapshot: Snapshot) -> Principal | None:
    """Who a stored key makes the caller; None while its tier or team is not in the file.

    A tier is the key's own share, a team's grant is shared by its keys; what the key itself says
    only narrows both.
    """
    if (key.tier and key.tier not in snapshot.tiers) or (
        key.team and key.team not in snapshot.teams
    ):
        return None
    tier = snapshot.tiers[key.tier] if key.tier else None
    team = snapshot.teams[key.team].principal if key.team else Principal("")
    own = tier.principal if tier else team
    return replace(
        own,
        key_id=key.name,
        team=key.team,
        role=key.role,
        chains=_chains(key, team.chains, snapshot),
        accounts=(*_accounts(key, tier.limits if tier else ()), *team.accounts),
    )


def _chains(
    key: StoredKey, of_team: tuple[str, ...] | None, snapshot: Snapshot
) -> tuple[str, ...] | None:
    """In order of the file, by the chains' own names."""
    if key.chains is None:
        return of_team
    wanted = {snapshot.chains[name].name for name in key.chains if name in snapshot.chains}
    if of_team is not None:
        wanted &= set(of_team)
    return tuple(dict.fromkeys(c.name for c in snapshot.chains.values() if c.name in wanted))


def _accounts(key: StoredKey, of_tier: Sequence[LimitRow]) -> tuple[Account, ...]:
    rows: dict[AccountKind, tuple[int, int | None]] = {}
    for kind, limit, burst in (*of_tier, *key.limits):
        bound, evenly = rows.get(kind, (limit, None))
        bursts = [one for one in (evenly, burst) if one is not None]
        rows[kind] = (min(bound, limit), min(bursts, default=None))
    return tuple(
        Account(f"key:{key.name}:{kind}", "key", key.name, kind, limit, burst)
        for kind, (limit, burst) in rows.items()
    )


def _end(expires: float | None) -> float:
    return float("inf") if expires is None else expires


def _changed(db: sqlite3.Connection) -> None:
    db.execute("UPDATE version SET value = value + 1 WHERE name = 'key'")


def _one(db: sqlite3.Connection, name: str) -> StoredKey:
    row = db.execute("SELECT * FROM key WHERE name = ? AND revoked IS NULL", (name,)).fetchone()
    if row is None:
        raise NoSuchKey(name)
    return _key(row)


def _read(db: sqlite3.Connection) -> list[StoredKey]:
    return [_key(row) for row in db.execute("SELECT * FROM key ORDER BY created, name")]


def _key(row: Sequence[Any]) -> StoredKey:
    name, public, digest, previous, until, tier, team, chains, limits, role, *times = row
    expires, created, revoked = times
    return StoredKey(
        name=name,
        id=public,
        digest=digest,
        previous=previous,
        previous_until=until,
        tier=tier,
        team=team,
        chains=None if chains is None else tuple(json.loads(chains)),
        limits=tuple(cast("LimitRow", tuple(row)) for row in json.loads(limits)),
        role=role,
        expires=expires,
        created=created,
        revoked=revoked,
    )
