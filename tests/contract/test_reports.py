"""Reports say the same over either wing, to the nano-dollar."""

import random
from itertools import combinations
from pathlib import Path

import pytest

from gateway.clock import SystemClock
from gateway.core.usage import Usage
from gateway.state.embedded.ledger import clean, fill, recover
from gateway.state.embedded.reports import DIMENSIONS, Row, spend
from gateway.state.embedded.sqlite import connect
from gateway.state.journal import Journal
from gateway.state.redis.connect import Link
from gateway.state.redis.ledger import RedisLedger
from gateway.state.redis.reports import stored
from tests.support.clock import ManualClock
from tests.support.redis import RedisServer
from tests.unit.state.make import line, opening

NOW = ManualClock().now()
DAY = 86_400


def write(journal: Journal) -> None:
    """Sixty attempts over fifty days, by two keys, with and without team, user, tags and price."""
    rng = random.Random(7)
    for number in range(60):
        id = f"r{number // 2}.{number % 2 + 1}"
        journal.open(
            opening(
                id,
                key_id=rng.choice(["web", "jobs"]),
                team=rng.choice(["search", None]),
                user=rng.choice(["u:1", "u/2", None]),
                session=rng.choice(["s1", None]),
                tags=rng.choice(["app=a,b=c", ""]),
                target=rng.choice(["gpt", "claude"]),
            )
        )
        journal.close(
            line(
                id,
                at=NOW - rng.randrange(50) * DAY,
                usage=Usage(rng.randrange(1000), rng.randrange(1000), cached=rng.randrange(9)),
                nano_usd=rng.choice([None, rng.randrange(10**12)]),
            )
        )


@pytest.fixture
async def folders(tmp_path: Path) -> tuple[Path, Path]:
    """What the CLI reads: the state directory of one wing, a copy out of the other."""
    embedded, copy = tmp_path / "embedded", tmp_path / "copy"
    embedded.mkdir()
    journal = Journal(embedded, "w1")
    write(journal)
    journal.drop()
    db = connect(embedded)
    recover(db, embedded)
    clean(db, int(NOW // DAY))
    db.close()
    with RedisServer(tmp_path / "redis") as server:
        link = Link(server.url, SystemClock(), lambda _: None, 5.0)
        (tmp_path / "state").mkdir()
        journal = Journal(tmp_path / "state", "w1")
        write(journal)
        ledger = RedisLedger(journal, link, ManualClock(), lambda _: None)
        await ledger.leave()
        await ledger.clean()
        found = await stored(link, 0, NOW)
        await link.close()
    db = connect(copy)
    fill(db, found.rows, found.sums, found.first)
    db.close()
    return embedded, copy


async def test_every_report_is_the_same_over_both_wings(folders: tuple[Path, Path]) -> None:
    embedded, copy = folders
    words: list[tuple[str, ...]] = [(), *combinations(DIMENSIONS, 1), *combinations(DIMENSIONS, 2)]
    for by in words:
        for since in (0, NOW - 7 * DAY, NOW - 45 * DAY):
            rows = spend(embedded, by, since)
            assert rows == spend(copy, by, since)
            assert all(isinstance(row, Row) for row in rows)
    assert spend(copy, (), 0)
