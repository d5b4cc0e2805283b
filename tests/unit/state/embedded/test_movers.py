"""Who spends out of the ordinary, out of the sums."""

from pathlib import Path

from gateway.core.alerts import Mover, SpendRule
from gateway.core.usage import NANO
from gateway.state.embedded.movers import movers
from gateway.state.embedded.sqlite import connect

TODAY = 20_000
NOW = TODAY * 86_400.0 + 60


def spent(folder: Path, name: str, by_age: dict[int, int], scope: str = "user") -> None:
    """Nano-dollars of `name` by how many days ago."""
    db = connect(folder)
    for age, nano in by_age.items():
        db.execute(
            "INSERT INTO spent VALUES (?, ?, ?, 1, 1, 1, 1, ?, 0)", (scope, name, TODAY - age, nano)
        )
    db.close()


def test_without_a_store_nobody_moves(tmp_path: Path) -> None:
    assert movers(tmp_path, SpendRule(), NOW) == []


def test_users_are_compared_with_their_own_days_before(tmp_path: Path) -> None:
    spent(tmp_path, "k/steady", dict.fromkeys(range(9), 5 * NANO))
    spent(tmp_path, "k/idle", {0: 2 * NANO, 7: 6 * NANO})  # 6/7 a day
    spent(tmp_path, "k/week", {0: 9 * NANO, 8: 900 * NANO})  # the eighth day is too long ago
    spent(tmp_path, "k/third/day", {0: 5 * NANO, 1: NANO, 2: NANO})
    spent(tmp_path, "k/new", {0: NANO + 1})
    spent(tmp_path, "k/small", {0: NANO})
    spent(tmp_path, "k/yesterday", {1: 99 * NANO})
    spent(tmp_path, "k/tomorrow", {-1: 99 * NANO})
    spent(tmp_path, "k", {0: 99 * NANO}, scope="key")
    assert movers(tmp_path, SpendRule(), NOW) == [
        Mover("k", "week", 9 * NANO, 0, 7),
        Mover("k", "third/day", 5 * NANO, 2 * NANO, 2),
        Mover("k", "idle", 2 * NANO, 6 * NANO, 7),
        Mover("k", "new", NANO + 1, 0, 0),
    ]
