"""Watches what users spend, off the road: one alert for each user and day.

The ledger says whose sums have changed; every few seconds their sums are looked at. Whom an alert
was about stands in the store, so that neither a restart nor another worker repeats it.
"""

import sqlite3
from collections.abc import Callable, Iterable

from gateway.clock import Clock
from gateway.core.alerts import Mover, SpendRule
from gateway.core.events import Event, SpendAlert, StateTrouble
from gateway.state.embedded.movers import DAY, above
from gateway.state.embedded.reports import as_date
from gateway.state.embedded.sqlite import Store, problem, transaction

LOOK = 2.0  # seconds between looks at those who have spent
MOST = 10_000  # names remembered between two looks; beyond it everybody is looked at
BEFORE = 2  # days for which it is remembered whom an alert was about


class SpendWatch:
    """`spent` is told by the ledger; `look` and `look_at_all` are for its owner."""

    def __init__(
        self, store: Store, rule: SpendRule, clock: Clock, heard: Callable[[Event], None]
    ) -> None:
        self._store = store
        self._rule = rule
        self._clock = clock
        self._heard = heard
        self._names: set[str] = set()
        self._everybody = True  # nobody knows what was spent before we came

    def use(self, rule: SpendRule) -> None:
        """The rule that is in force from now on."""
        if rule != self._rule:
            self._rule = rule
            self._everybody = True

    def spent(self, names: Iterable[str]) -> None:
        """The sums of these users (`key/user`) have changed."""
        self._names.update(names)
        if len(self._names) > MOST:
            self._names.clear()
            self._everybody = True

    async def look_at_all(self) -> None:
        """Also at those whom a worker that died had spent for."""
        self._everybody = True
        await self.look()

    async def look(self) -> None:
        """Tell of everybody who is above the rule and of whom nothing was told today."""
        names = None if self._everybody else self._names
        if names is not None and not names:
            return
        self._names, self._everybody = set(), False
        rule, today = self._rule, int(self._clock.now() // DAY)
        try:
            found = await self._store.run(lambda db: _new(db, rule, today, names))
        except sqlite3.Error as error:
            self._everybody = True
            self._heard(StateTrouble("embedded", "alerts", problem(error)))
            return
        for mover in found:
            self._heard(SpendAlert(mover, as_date(today), rule))


def _new(
    db: sqlite3.Connection, rule: SpendRule, today: int, names: Iterable[str] | None
) -> list[Mover]:
    """Those above the rule of whom nothing was told today; None: of all users."""
    found = [mover for mover in above(db, rule, today, names) if not _told(db, mover, today)]
    if not found:
        return []
    with transaction(db):
        db.execute("DELETE FROM alert WHERE day < ?", (today - BEFORE,))
        return [mover for mover in found if _first(db, mover, today)]


def _told(db: sqlite3.Connection, mover: Mover, today: int) -> bool:
    done = db.execute("SELECT 1 FROM alert WHERE name = ? AND day = ?", (_name(mover), today))
    return done.fetchone() is not None


def _first(db: sqlite3.Connection, mover: Mover, today: int) -> bool:
    """Whether no other worker was first."""
    done = db.execute("INSERT OR IGNORE INTO alert VALUES (?, ?)", (_name(mover), today))
    return done.rowcount > 0


def _name(mover: Mover) -> str:
    return f"{mover.key}/{mover.user}"
