"""One alert for each user and day, whoever watches."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.alerts import SpendRule
from gateway.core.events import Event, SpendAlert, StateTrouble
from gateway.core.usage import NANO
from gateway.state.embedded.alerts import MOST, SpendWatch
from gateway.state.embedded.sqlite import Store
from tests.support.clock import ManualClock
from tests.unit.state.embedded.test_movers import NOW, spent


class Watched:
    """A store, a clock, and as many watchers as are wanted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock(NOW)
        self.store = Store(folder)
        self.heard: list[Event] = []

    def watch(self, rule: SpendRule | None = None) -> SpendWatch:
        return SpendWatch(self.store, rule or SpendRule(), self.clock, self.heard.append)

    def take(self) -> list[str]:
        """Whom the alerts since the last time were about."""
        users = [event.mover.user for event in self.heard if isinstance(event, SpendAlert)]
        assert len(users) == len(self.heard)
        self.heard.clear()
        return sorted(users)


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    made = Watched(tmp_path)
    yield made
    await made.store.close()


async def test_a_user_is_told_of_once_a_day(watched: Watched) -> None:
    watch = watched.watch()
    await watch.look()
    spent(watched.folder, "k/ann", {0: 3 * NANO, 1: NANO})
    spent(watched.folder, "k/bob", {0: 3 * NANO, 1: 2 * NANO})
    watch.spent({"k/ann", "k/bob"})
    await watch.look()
    (alert,) = watched.heard
    assert isinstance(alert, SpendAlert)
    who = {"key": "k", "user": "ann", "day": "2024-10-04"}
    assert alert.told() == who | {"spent_usd": "3", "usual_usd": "1"}
    watched.take()
    watch.spent({"k/ann"})
    await watch.look()
    await watch.look_at_all()
    assert watched.take() == []
    watched.clock.advance(86_400)
    spent(watched.folder, "k/ann", {-1: 9 * NANO})
    watch.spent({"k/ann"})
    await watch.look()
    assert watched.take() == ["ann"]


async def test_neither_a_restart_nor_another_worker_repeats_it(watched: Watched) -> None:
    first, second = watched.watch(), watched.watch()
    spent(watched.folder, "k/ann", {0: 3 * NANO})
    await first.look()
    await second.look()
    await watched.watch().look()
    assert watched.take() == ["ann"]


async def test_what_a_lost_worker_spent_is_seen_at_the_start(watched: Watched) -> None:
    spent(watched.folder, "k/ann", {0: 3 * NANO})
    await watched.watch().look()
    assert watched.take() == ["ann"]


async def test_more_names_than_are_remembered_means_everybody(watched: Watched) -> None:
    watch = watched.watch()
    await watch.look()
    spent(watched.folder, "k/ann", {0: 3 * NANO})
    watch.spent(f"k/{number}" for number in range(MOST + 1))
    await watch.look()
    assert watched.take() == ["ann"]


async def test_a_stricter_rule_is_in_force_at_once(watched: Watched) -> None:
    watch = watched.watch(SpendRule(floor=5 * NANO))
    spent(watched.folder, "k/ann", {0: 3 * NANO})
    await watch.look()
    watch.use(SpendRule(floor=5 * NANO))
    await watch.look()
    assert watched.take() == []
    watch.use(SpendRule())
    await watch.look()
    assert watched.take() == ["ann"]


async def test_a_store_in_trouble_is_told_and_asked_again(watched: Watched) -> None:
    watch = watched.watch()
    await watch.look()
    spent(watched.folder, "k/ann", {0: 3 * NANO})
    watch.spent({"k/ann"})
    await watched.store.run(lambda db: db.execute("ALTER TABLE alert RENAME TO gone"))
    await watch.look()
    (trouble,) = watched.heard
    assert isinstance(trouble, StateTrouble)
    assert (trouble.op, trouble.problem) == ("alerts", "SQLITE_ERROR")
    watched.heard.clear()
    await watched.store.run(lambda db: db.execute("ALTER TABLE gone RENAME TO alert"))
    await watch.look()
    assert watched.take() == ["ann"]


async def test_nothing_is_asked_when_nobody_spent(watched: Watched) -> None:
    watch = watched.watch()
    await watch.look()
    asked: list[str] = []

    def listen(db: sqlite3.Connection) -> None:
        db.set_trace_callback(asked.append)

    await watched.store.run(listen)
    await watch.look()
    assert asked == []
