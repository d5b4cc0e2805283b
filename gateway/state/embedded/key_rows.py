"""Rows of the table `key`, each change with its line in the audit log: both are written or neither.

Every function takes a connection; those that change something are transactions of their own.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from gateway.core.audit import Act, AuditLine, Verb
from gateway.core.budget import Budget
from gateway.core.keys import (
    Change,
    KeyTaken,
    KeyTerms,
    LimitRow,
    NoSuchKey,
    StoredKey,
    make_key,
)
from gateway.core.usage import Cost
from gateway.state.embedded.audit import append
from gateway.state.embedded.sqlite import transaction
from gateway.wire import json


class By(NamedTuple):
    """Who changes a key, when (epoch seconds), and under which configuration."""

    who: str
    now: float
    config: str


def every(db: sqlite3.Connection) -> list[StoredKey]:
    """All of them, revoked ones too, oldest first."""
    return [_key(row) for row in db.execute("SELECT * FROM key ORDER BY created, name")]


def find(db: sqlite3.Connection, name: str) -> StoredKey | None:
    """A key, revoked or not."""
    row = db.execute("SELECT * FROM key WHERE name = ?", (name,)).fetchone()
    return None if row is None else _key(row)


def create(db: sqlite3.Connection, name: str, terms: KeyTerms, by: By) -> Change:
    """A new key; its secret exists nowhere but in the answer. Raises KeyTaken."""
    with transaction(db):
        if find(db, name) is not None:
            raise KeyTaken(name)
        return _create(db, name, terms, by)


def put(db: sqlite3.Connection, name: str, terms: KeyTerms, by: By) -> Change:
    """The key as `terms` have it: made, changed, or as it was. Raises KeyTaken: it was revoked."""
    with transaction(db):
        key = find(db, name)
        if key is None:
            return _create(db, name, terms, by)
        if key.revoked is not None:
            raise KeyTaken(name)
        if key.terms == terms:
            return Change(key, "unchanged")
        db.execute(
            "UPDATE key SET tier = ?, team = ?, chains = ?, limits = ?, role = ?, expires = ?,"
            " budgets = ? WHERE name = ?",
            (*_columns(terms), _budgets(terms), name),
        )
        line = _changed(db, name, "key.change", _difference(key.terms, terms), by)
        return Change(_active(db, name), "changed", line)


def rotate(db: sqlite3.Connection, name: str, overlap: float, by: By) -> Change:
    """A new secret; the one before counts for `overlap` more seconds. Raises NoSuchKey."""
    with transaction(db):
        key = _active(db, name)
        made = make_key(key.id)
        db.execute(
            "UPDATE key SET digest = ?, previous = ?, previous_until = ? WHERE name = ?",
            (made.digest, key.digest, by.now + overlap, name),
        )
        line = _changed(db, name, "key.rotate", f"ok, overlap {overlap:g} s", by)
        return Change(_active(db, name), "rotated", line, made)


def revoke(db: sqlite3.Connection, name: str, by: By) -> Change:
    """From now on nobody; said twice it changes nothing. Raises NoSuchKey."""
    with transaction(db):
        key = find(db, name)
        if key is None:
            raise NoSuchKey(name)
        if key.revoked is not None:
            return Change(key, "unchanged")
        db.execute(
            "UPDATE key SET revoked = ?, previous = NULL WHERE name = ?",
            (by.now, name),
        )
        line = _changed(db, name, "key.revoke", "ok", by)
        return Change(find(db, name) or key, "revoked", line)


def _create(db: sqlite3.Connection, name: str, terms: KeyTerms, by: By) -> Change:
    made = make_key()
    row = (name, made.id, made.digest, None, None, *_columns(terms), by.now, None, _budgets(terms))
    db.execute("INSERT INTO key VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    said = _difference(KeyTerms(), terms)
    line = _changed(db, name, "key.create", f"ok, gk_{made.id}{said.removeprefix('ok')}", by)
    return Change(_active(db, name), "created", line, made)


def _changed(db: sqlite3.Connection, name: str, verb: Verb, result: str, by: By) -> AuditLine:
    """Count the change, so that running gateways follow, and write its line."""
    db.execute("UPDATE version SET value = value + 1 WHERE name = 'key'")
    return append(db, int(by.now * 1000), Act(by.who, verb, name, result), by.config)


def _difference(before: KeyTerms, after: KeyTerms) -> str:
    """`ok, tier=free limits=rpm:5`: what is not as it was."""
    told = [
        ("tier", before.tier, after.tier),
        ("team", before.team, after.team),
        ("chains", before.chains, after.chains),
        ("limits", before.limits, after.limits),
        ("budgets", _dollars(before), _dollars(after)),
        ("role", before.role, after.role),
        ("expires", before.expires, after.expires),
    ]
    words = [f"{name}={_spelled(now)}" for name, was, now in told if was != now]
    return ", ".join(["ok", " ".join(words)]) if words else "ok"


def _spelled(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(
            f"{part[0]}:{part[1]}" if isinstance(part, tuple) else str(part) for part in value
        )
    return "none" if value is None else str(value)


def _dollars(terms: KeyTerms) -> tuple[str, ...]:
    return tuple(
        f"{one.per}:${Cost(one.nano_usd).dollars()}{'' if one.hard else ':soft'}"
        for one in terms.budgets
    )


def _active(db: sqlite3.Connection, name: str) -> StoredKey:
    key = find(db, name)
    if key is None or key.revoked is not None:
        raise NoSuchKey(name)
    return key


def _columns(terms: KeyTerms) -> tuple[Any, ...]:
    return (
        terms.tier,
        terms.team,
        None if terms.chains is None else json.dumps(list(terms.chains)),
        json.dumps([list(row) for row in terms.limits]),
        terms.role,
        terms.expires,
    )


def _budgets(terms: KeyTerms) -> str:
    return json.dumps([list(budget) for budget in terms.budgets]).decode()


def _key(row: Sequence[Any]) -> StoredKey:
    name, public, digest, previous, until, tier, team, chains, limits, role, *times = row
    expires, created, revoked, budgets = times
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
        budgets=tuple(Budget(*row) for row in json.loads(budgets)),
    )
