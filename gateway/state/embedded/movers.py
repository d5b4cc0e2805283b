"""Who spends out of the ordinary, by the sums of the ledger: for the alerts and the CLI.

A user is one of a key (`key/user`); whoever names no user is nobody here.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from gateway.core.alerts import DAYS, Mover, SpendRule
from gateway.state.embedded.sqlite import look
from gateway.wire import json

DAY = 86_400
# One statement, as SQLite lets go of the interpreter's lock only while it works on one.
DEAR = """SELECT name, nano_usd,
  (SELECT coalesce(sum(nano_usd), 0) FROM spent AS before
    WHERE scope = 'user' AND name = today.name AND day BETWEEN :today - :days AND :today - 1),
  (SELECT min(day) FROM spent AS first WHERE scope = 'user' AND name = today.name)
  FROM spent AS today WHERE scope = 'user' AND day = :today AND nano_usd > :floor"""
OF_SOME = f"{DEAR} AND name IN (SELECT value FROM json_each(:names))"  # noqa: S608 - no word of others


def movers(folder: Path | str, rule: SpendRule, now: float) -> list[Mover]:
    """Those above the rule today, the dearest first; read-only. `now` is epoch seconds."""
    db = look(Path(folder))
    if db is None:
        return []
    with closing(db):
        found = above(db, rule, int(now // DAY), None)
    return sorted(found, key=lambda mover: (-mover.spent, mover.key, mover.user))


def above(
    db: sqlite3.Connection, rule: SpendRule, today: int, names: Iterable[str] | None
) -> list[Mover]:
    """Those of `names` (None: of all) that are above the rule; `today` in days since 1970."""
    said = {"today": today, "days": DAYS, "floor": rule.floor}
    if names is None:
        rows = db.execute(DEAR, said)
    else:
        rows = db.execute(OF_SOME, said | {"names": json.dumps(list(names)).decode()})
    found: list[Mover] = []
    for name, spent, before, first in rows.fetchall():
        key, _, user = name.partition("/")
        mover = Mover(key, user, spent, before, min(DAYS, today - first))
        if rule.broken_by(mover):
            found.append(mover)
    return found
