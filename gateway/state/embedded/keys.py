"""Caller keys of one machine: those of the file and those made by `gateway keys create`.

A gateway is keyless (everybody is `local`) only while the file has no `keys:` *and* the store has
never held one: revoking or outliving the last key must not open the door.
"""

import hmac
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from gateway.clock import Clock
from gateway.core.budget import Budget, allowances, narrowed
from gateway.core.events import Event, StateTrouble
from gateway.core.keys import (
    Change,
    KeyTerms,
    LimitRow,
    MadeKey,
    StoredKey,
)
from gateway.core.parked import Whose
from gateway.core.principal import LOCAL, Credential, Principal, Role
from gateway.core.snapshot import Snapshot
from gateway.core.target import Account, AccountKind
from gateway.state.embedded import key_rows
from gateway.state.embedded.key_rows import By
from gateway.state.embedded.sqlite import Store, looked_into, opened

POLL = 0.5  # seconds: a key made or revoked by another process counts within 1 s
DUMMY = bytes(32)  # compared with where there is no such key: the same work


class KeyStore:
    """The keys in the store's file, for the command line: blocking, short-lived.

    Every method raises OSError where the store cannot be used; its `strerror` says why.

    Args:
        folder: the state directory.
        clock: for what is written down.
        who: whom the audit log names.
        config: the configuration at hand, for the audit log.
    """

    def __init__(
        self, folder: Path | str, clock: Clock, who: str = "operator", config: str = ""
    ) -> None:
        self._folder = Path(folder)
        self._clock = clock
        self._who = who
        self._config = config

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
        budgets: Sequence[Budget] = (),
    ) -> MadeKey:
        """A new key; its secret exists nowhere but in the answer. Raises KeyTaken."""
        named = None if chains is None else tuple(chains)
        terms = KeyTerms(tier, team, named, tuple(limits), role, expires, tuple(budgets))
        with opened(self._folder) as db:
            return _secret(key_rows.create(db, name, terms, self._by()))

    def list(self) -> "list[StoredKey]":
        """All of them, revoked ones too, oldest first."""
        with looked_into(self._folder) as db:
            return [] if db is None else key_rows.every(db)

    def revoke(self, name: str) -> bool:
        """From now on nobody; a running gateway follows within a second. Raises NoSuchKey.

        False: it was revoked before.
        """
        with opened(self._folder) as db:
            return key_rows.revoke(db, name, self._by()).what == "revoked"

    def rotate(self, name: str, overlap: float = 86_400.0) -> MadeKey:
        """A new secret; the one before counts for `overlap` more seconds. Raises NoSuchKey."""
        with opened(self._folder) as db:
            return _secret(key_rows.rotate(db, name, overlap, self._by()))

    def _by(self) -> By:
        return By(self._who, self._clock.now(), self._config)


def _secret(change: Change) -> MadeKey:
    if change.made is None:
        raise AssertionError("made without a secret")
    return change.made


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
        self._named: dict[str, Entry] = {}  # by the key's name
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

    async def again(self, whose: Whose) -> Principal | None:
        if self.keyless:
            return LOCAL if whose.key_id == LOCAL.key_id else None
        entry = self._named.get(whose.key_id)
        return entry.principal if entry is not None and self._now() < entry.expires else None

    def stored(self) -> "list[tuple[StoredKey, Principal | None]]":
        """The keys of the store as last read, and whom each makes the caller; None: nobody."""
        return [(key, self._found(key)) for key in self._stored]

    def _found(self, key: StoredKey) -> Principal | None:
        entry = self._made.get(key.id)
        return None if entry is None else entry.principal

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
        entries = (*self._made.values(), *self._declared.values())
        self._named = {entry.principal.key_id: entry for entry in entries}
        self.keyless = snapshot.keyless and not snapshot.keys and not self._stored

    async def poll(self) -> None:
        """Follow what other processes did to the store."""
        try:
            await self.load()
        except sqlite3.Error as error:
            self._heard(StateTrouble("embedded", "keys", type(error).__name__))

    async def load(self, *, afresh: bool = False) -> None:
        """As `poll`, for the start: without knowing the keys nobody may be served.

        `afresh`: whatever SQLite says, which tells a connection nothing of its own changes.

        Raises:
            sqlite3.Error: the store cannot be read.
        """
        if afresh:
            self._seen = (-1, -1)
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
        found = key_rows.every(db)
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
        budgets=(
            *allowances("key", key.name, narrowed(tier.budgets if tier else (), key.budgets)),
            *team.budgets,
        ),
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
