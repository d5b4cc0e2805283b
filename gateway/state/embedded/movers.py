"""Who spends out of the ordinary, by the sums of the ledger: for the alerts and the CLI.

A user is one of a key (`key/user`); whoever names no user is nobody here.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from gateway.core.alerts import DAYS, Mover, SpendRule
from gateway.state.embedded.sqlite import look

DAY = 86_400
DEAR = "SELECT name FROM spent WHERE scope = 'user' AND day = ? AND nano_usd > ?"
IS_DEAR = f"{DEAR} AND name = ?"
OF_ONE = """SELECT
  coalesce(sum(nano_usd) FILTER (WHERE day = :today), 0),
  coalesce(sum(nano_usd) FILTER (WHERE day BETWEEN :today - :days AND :today - 1), 0),
  min(:days, :today - min(day))
  FROM spent WHERE scope = 'user' AND name = :name AND day <= :today"""


def movers(folder: Path | str, rule: SpendRule, now: float) -> list[Mover]:
    """Those above the rule today, the dearest first; read-only. `now` is epoch seconds."""
    db = look(Path(folder))
    if db is None:
        return []
    with closing(db):
        today = int(now // DAY)
        found = [mover for _, mover in above(db, rule, today, dear(db, rule, today))]
    return sorted(found, key=lambda mover: (-mover.spent, mover.key, mover.user))


def dear(db: sqlite3.Connection, rule: SpendRule, today: int) -> list[str]:
    """Names of all who are above the floor today."""
    return [str(name) for (name,) in db.execute(DEAR, (today, rule.floor))]


def above(
    db: sqlite3.Connection, rule: SpendRule, today: int, names: Iterable[str]
) -> list[tuple[str, Mover]]:
    """Those of `names` that are above the rule; `today` in days since 1970-01-01."""
    found: list[tuple[str, Mover]] = []
    for name in names:
        if db.execute(IS_DEAR, (today, rule.floor, name)).fetchone() is None:
            continue  # most are below the floor: their days before need not be summed
        key, _, user = name.partition("/")
        said = {"name": name, "today": today, "days": DAYS}
        ((spent, before, days),) = db.execute(OF_ONE, said).fetchall()
        mover = Mover(key, user, spent, before, days)
        if rule.broken_by(mover):
            found.append((name, mover))
    return found
