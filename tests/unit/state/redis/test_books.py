"""What a key has spent on all machines."""

from pathlib import Path

import pytest

from gateway.clock import SystemClock
from gateway.core.usage import Spending
from gateway.errors import Overloaded
from gateway.state.embedded.books import EmbeddedBooks
from gateway.state.embedded.ledger import EmbeddedLedger
from gateway.state.embedded.sqlite import Store
from gateway.state.journal import Journal
from gateway.state.redis.books import RedisBooks
from gateway.state.redis.connect import Link
from gateway.state.redis.ledger import RedisLedger
from tests.support.clock import ManualClock
from tests.support.redis import RedisServer
from tests.unit.state.make import line, opening

DAY = 86_400
CLOCK = ManualClock()
ASKED = ("a:budget:total", "b3", "c")


def write(journal: Journal) -> None:
    for number, (ago, nano_usd) in enumerate([(0, 5), (3, None), (40, 7), (399, 11)]):
        journal.open(opening(f"{number}.1", budgets=("a:budget:total", f"b{number}")))
        journal.close(line(f"{number}.1", at=CLOCK.now() - ago * DAY, nano_usd=nano_usd))
    journal.open(opening("x.1", key_id="another"))
    journal.close(line("x.1", at=CLOCK.now()))


async def test_a_key_is_told_the_same_over_both_wings_and_nothing_of_another(
    server: RedisServer, tmp_path: Path
) -> None:
    found: list[list[Spending]] = []
    store = Store(tmp_path / "a")
    await store.run(lambda _: None)
    journal = Journal(tmp_path / "a", "w1")
    embedded = EmbeddedLedger(journal, store, CLOCK, lambda _: None)
    write(journal)
    assert await embedded.ship()
    books = EmbeddedBooks(store, CLOCK)
    found.append([await books.spending(key) for key in ("search-prod", "another", "nobody")])
    assert await books.budgets(ASKED) == {"a:budget:total": 23, "b3": 11}
    await embedded.leave()
    await store.close()
    link = Link(server.url, SystemClock(), lambda _: None, 2.0)
    (tmp_path / "b").mkdir()
    journal = Journal(tmp_path / "b", "w1")
    shared = RedisLedger(journal, link, CLOCK, lambda _: None)
    write(journal)
    await shared.leave()
    far = RedisBooks(link, CLOCK)
    found.append([await far.spending(key) for key in ("search-prod", "another", "nobody")])
    assert await far.budgets(ASKED) == {"a:budget:total": 23, "b3": 11}
    assert found[0] == found[1]
    assert found[1][0].total.nano_usd == 23
    server.kill()
    with pytest.raises(Overloaded):
        await far.spending("another")
    with pytest.raises(Overloaded):
        await far.budgets(ASKED)
    await link.close()
