"""What the embedded store of kept answers does besides the port: bounds, and trouble."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.events import Event, StateTrouble
from gateway.core.kept import Held, Kept, Owner
from gateway.errors import Overloaded
from gateway.state.embedded import answers as kept_answers
from gateway.state.embedded.answers import EmbeddedAnswers
from gateway.state.embedded.sqlite import Store
from tests.support.clock import ManualClock

SEARCH = Owner("key:search")


class Shelf:
    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self.clock = ManualClock()
        self.heard: list[Event] = []
        self.answers = EmbeddedAnswers(self.store, self.clock, self.heard.append)

    async def rows(self) -> list[str]:
        query = "SELECT name FROM answer ORDER BY at"
        return [name for (name,) in await self.store.run(lambda db: db.execute(query).fetchall())]

    async def counted(self) -> list[tuple[int, int]]:
        query = "SELECT n, size FROM drawer ORDER BY account"
        return await self.store.run(lambda db: db.execute(query).fetchall())

    async def put(self, name: str, size: int, owner: Owner = SEARCH) -> None:
        self.clock.advance(1)
        self.answers.of(owner).put(name, Kept(200, b"x" * size), 1e6)
        await self.store.run(lambda _: None)


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[Shelf]:
    found = Shelf(tmp_path / "state")
    yield found
    await found.store.close()


async def test_the_oldest_go_when_an_account_has_too_many_or_too_much(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_answers, "MOST", 3)
    monkeypatch.setattr(kept_answers, "MOST_BYTES", 100)
    for name in "abcde":
        await shelf.put(name, 10, Owner("key:search", name))  # all users of a key together
    assert await shelf.rows() == ["c", "d", "e"]
    await shelf.put("f", 85)
    assert await shelf.rows() == ["e", "f"]
    await shelf.put("g", 10, Owner("team:search"))
    assert await shelf.rows() == ["e", "f", "g"]


async def test_a_call_under_way_is_never_what_goes(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_answers, "MOST", 1)
    drawer = shelf.answers.of(SEARCH)
    await drawer.claim("chat:1", b"f", detached=False)
    await drawer.claim("chat:2", b"f", detached=False)
    await shelf.put("a", 1)
    assert sorted(await shelf.rows()) == ["chat:1", "chat:2"]
    assert await drawer.claim("chat:1", b"f", detached=False) is Held.RUNNING


async def test_what_is_over_is_cleaned_and_the_count_stays_right(shelf: Shelf) -> None:
    drawer = shelf.answers.of(SEARCH)
    claim = await drawer.claim("chat:1", b"f", detached=False)
    assert not isinstance(claim, Kept | Held)
    claim.keep(Kept(200, b"12345"))
    await shelf.put("a", 7)
    await shelf.put("a", 3)
    assert await shelf.counted() == [(2, 8), (2, 8)]
    shelf.clock.advance(86_400)
    await shelf.answers.clean()
    assert await shelf.rows() == ["a"]
    assert await shelf.counted() == [(1, 3), (1, 3)]
    shelf.clock.advance(1e6)
    await shelf.answers.clean()
    assert await shelf.counted() == [(0, 0)]


async def test_all_accounts_together_have_a_bound(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_answers, "MOST_IN_ALL", 20)
    monkeypatch.setattr(kept_answers, "GONE_AT_ONCE", 1)
    for name in "abc":
        await shelf.put(name, 10, Owner(f"key:{name}"))
    assert await shelf.rows() == ["b", "c"]


async def test_bodies_wait_for_the_store_up_to_a_bound(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_answers, "WAITING", 10)
    drawer = shelf.answers.of(SEARCH)
    claim = await drawer.claim("chat:1", b"f", detached=False)
    assert not isinstance(claim, Kept | Held)
    drawer.put("a", Kept(200, b"x" * 8), 60)
    drawer.put("b", Kept(200, b"x" * 8), 60)
    claim.keep(Kept(200, b"x" * 8))  # no room: the key is free again
    await shelf.store.run(lambda _: None)
    assert await shelf.rows() == ["a"]


async def test_without_the_store_a_key_is_refused_and_the_cache_is_empty(shelf: Shelf) -> None:
    def lose(db: sqlite3.Connection) -> None:
        db.execute("DROP TABLE answer")

    await shelf.store.run(lose)
    drawer = shelf.answers.of(SEARCH)
    with pytest.raises(Overloaded) as caught:
        await drawer.claim("chat:1", b"f", detached=False)
    assert caught.value.code == "store_unavailable"
    assert await drawer.get("a", 60) is None
    drawer.put("a", Kept(200, b"x"), 60)
    await shelf.store.run(lambda _: None)
    troubles = [event.op for event in shelf.heard if isinstance(event, StateTrouble)]
    assert set(troubles) == {"claim", "release", "get", "put"}
