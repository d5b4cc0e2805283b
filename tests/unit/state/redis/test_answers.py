"""What the kept answers in Redis do besides the port: names, bounds, and a Redis that is gone."""

from collections.abc import AsyncIterator

import pytest

from gateway.clock import SystemClock
from gateway.core.events import Event, StoreMoved
from gateway.core.kept import Held, Kept, Owner
from gateway.state.redis import answers as kept_answers
from gateway.state.redis.answers import RedisAnswers, name_of
from gateway.state.redis.connect import Link
from tests.support.clock import ManualClock
from tests.support.fakes import FakeAnswers
from tests.support.redis import RedisServer

SEARCH = Owner("key:search")
HELLO = Kept(200, b"hello")


class Shelf:
    def __init__(self, server: RedisServer) -> None:
        clock = ManualClock()
        self.heard: list[Event] = []
        self.link = Link(server.url, SystemClock(), self.heard.append)
        self.local = FakeAnswers(clock)
        self.answers = RedisAnswers(self.link, self.local, clock, self.heard.append)

    async def put(self, name: str, size: int, seconds: float = 60, owner: Owner = SEARCH) -> None:
        self.answers.of(owner).put(name, Kept(200, b"x" * size), seconds)
        await self.answers.leave()

    async def there(self, names: str, owner: Owner = SEARCH) -> str:
        drawer = self.answers.of(owner)
        return "".join([name for name in names if await drawer.get(name, 60) is not None])


@pytest.fixture
async def shelf(server: RedisServer) -> AsyncIterator[Shelf]:
    found = Shelf(server)
    yield found
    await found.answers.leave()
    await found.link.close()


def test_no_name_reaches_into_another_owners() -> None:
    places = [("key:a", "b", "c"), ("key:a", "b:c", ""), ("key:a:b", "c", ""), ("key:a", "", "c")]
    names = [name_of(place) for place in places]
    assert len(set(names)) == 4
    assert names[0].rsplit(":", 2)[0] == names[3].rsplit(":", 2)[0]  # the account's comes first
    assert all("{gateway}" in name for name in names)


async def test_an_account_has_its_bounds_and_what_would_go_first_goes(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_answers, "MOST", 3)
    monkeypatch.setattr(kept_answers, "MOST_BYTES", 100)
    for at, name in enumerate("abcde"):
        await shelf.put(name, 10, 60 + at)
    assert await shelf.there("abcde") == "cde"
    await shelf.put("e", 30, 64)  # again: counted once
    assert await shelf.there("abcde") == "cde"
    await shelf.put("f", 95, 30)
    assert await shelf.there("cdef") == "f"
    await shelf.put("g", 10, owner=Owner("team:search"))
    assert await shelf.there("f") + await shelf.there("g", Owner("team:search")) == "fg"


async def test_all_accounts_together_have_a_bound(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_answers, "MOST_IN_ALL", 20)
    for at, name in enumerate("abc"):
        await shelf.put(name, 10, 60 + at, Owner(f"key:{name}"))
    assert [await shelf.there(name, Owner(f"key:{name}")) for name in "abc"] == ["", "b", "c"]


async def test_while_redis_is_lost_the_machines_own_store_takes_its_place(
    shelf: Shelf, server: RedisServer
) -> None:
    drawer = shelf.answers.of(SEARCH)
    server.kill()
    claim = await drawer.claim("chat:1", b"f", detached=True)
    assert not isinstance(claim, Kept | Held)
    assert await drawer.claim("chat:1", b"f", detached=True) is Held.RUNNING
    claim.keep(HELLO)
    assert await drawer.claim("chat:1", b"f", detached=True) == HELLO
    assert await drawer.get("exact:1", 60) is None
    assert shelf.link.lost
    assert [event for event in shelf.heard if isinstance(event, StoreMoved)]
    server.restart()
    await shelf.link.look()
    await shelf.link.look()
    assert not shelf.link.lost
    assert await drawer.end("chat:1") == "kept"


async def test_what_is_on_its_way_has_a_bound(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_answers, "WAITING", 10)
    drawer = shelf.answers.of(SEARCH)
    claim = await drawer.claim("chat:1", b"f", detached=False)
    assert not isinstance(claim, Kept | Held)
    drawer.put("a", Kept(200, b"x" * 8), 60)
    drawer.put("b", Kept(200, b"x" * 8), 60)
    claim.keep(Kept(200, b"x" * 8))  # no room: the key is free again
    await shelf.answers.leave()
    assert await shelf.there("ab") == "a"
    assert not isinstance(await drawer.claim("chat:1", b"f", detached=False), Kept | Held)
