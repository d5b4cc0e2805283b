"""Public keys of issuers: kept, served stale, and never fetched more than is needed."""

import asyncio

import pytest

from gateway.core.events import Event, StateTrouble
from gateway.core.snapshot import Issuer
from gateway.errors import Overloaded
from gateway.transport.http import HttpTransport
from gateway.transport.key_sets import (
    AGAIN,
    FRESH,
    LATE,
    MOST_BYTES,
    STALE,
    UNKNOWN,
    WAITERS,
    KeySets,
)
from tests.support.clock import ManualClock
from tests.support.issuer import AUDIENCE, ISSUER, Errands, KeyServer, Signer

OLD, NEW = Signer("old", "ES256"), Signer("new", "ES256", 1)


class Post:
    """Key sets of one issuer on loopback, over the real transport, and a clock."""

    def __init__(self, server: KeyServer, **changed) -> None:
        self.server = server
        self.clock = ManualClock()
        self.heard: list[Event] = []
        self.errands = Errands()
        self.transport = HttpTransport(self.clock)
        self.sets = KeySets(self.transport, self.clock, self.heard.append, self.errands.start)
        url = changed.pop("jwks", server.url)
        said = {"allow_private": True, **changed}
        self.issuer = Issuer(ISSUER, AUDIENCE, url, frozenset({"ES256"}), **said)
        self.sets.use([self.issuer])

    async def find(self, kid: str):
        return await self.sets.find(self.issuer, kid)

    @property
    def problems(self) -> list[str]:
        return [event.problem for event in self.heard if isinstance(event, StateTrouble)]


@pytest.fixture
def server():
    with KeyServer(OLD) as running:
        yield running


@pytest.fixture
async def post(server):
    made = Post(server)
    await made.errands.done()
    yield made
    await made.transport.close()


async def test_a_set_is_fetched_before_it_is_needed_and_then_kept(post):
    assert post.server.asked == 1
    for _ in range(20):
        assert (await post.find("old"))["kid"] == "old"
    post.clock.advance(FRESH - 1)
    assert await post.find("old")
    assert post.server.asked == 1


async def test_an_old_set_is_served_while_it_is_fetched_anew(post):
    post.server.publish(OLD, NEW)
    post.clock.advance(FRESH)
    before = await post.find("old")
    assert before["kid"] == "old"
    assert post.server.asked == 1, "nobody waited for it"
    await post.errands.done()
    assert post.server.asked == 2
    assert await post.find("new")


async def test_while_the_issuer_is_down_a_set_serves_for_a_day_and_no_longer(post):
    post.server.status = 503
    post.clock.advance(STALE - 1)
    assert await post.find("old"), "after a look whether it still counts"
    assert post.problems == ["127.0.0.1: status 503"]
    assert await post.find("old")
    assert post.server.asked == 2
    post.clock.advance(1)
    with pytest.raises(Overloaded) as caught:
        await post.find("old")
    assert caught.value.code == "issuer_unavailable"
    assert 0 < caught.value.retry_after <= AGAIN
    post.server.status = 200
    post.clock.advance(AGAIN)
    assert await post.find("old"), "back without a restart"


async def test_a_key_withdrawn_while_nobody_called_does_not_count(post):
    post.server.publish(NEW)
    post.clock.advance(LATE)
    assert await post.find("old") is None
    assert await post.find("new")


async def test_a_rotated_key_is_found_at_once_and_the_old_one_is_gone(post):
    post.server.publish(NEW)
    assert (await post.find("new"))["kid"] == "new"
    assert await post.find("old") is None


async def test_junk_kids_make_one_fetch_in_thirty_seconds(post):
    found = await asyncio.gather(*(post.find(f"junk{n}") for n in range(500)))
    assert set(found) == {None}
    assert post.server.asked == 2
    post.clock.advance(UNKNOWN - 1)
    assert await post.find("more") is None
    assert post.server.asked == 2
    post.clock.advance(1)
    assert await post.find("more") is None
    assert post.server.asked == 3


async def test_who_waits_for_a_silent_issuer_is_few_and_waits_two_seconds(server):
    server.silent.set()
    post = Post(server)
    asking = [asyncio.ensure_future(post.find("old")) for _ in range(WAITERS + 50)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sum(one.done() for one in asking) == 50
    while not server.asked:  # until it is on the wire
        await asyncio.sleep(0.001)
    post.clock.advance(2)
    told = await asyncio.gather(*asking, return_exceptions=True)
    assert {one.code for one in told} == {"issuer_unavailable"}
    assert server.asked == 1
    server.let_go.set()
    await post.transport.close()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"<html>", "no JSON"),
        (b"[]", 'no set of keys ({"keys": [...]})'),
        (b'{"keys": {}}', 'no set of keys ({"keys": [...]})'),
        (b'{"keys": [1, {"kid": 5}, {"kid": "x", "use": "enc"}]}',
         "a set without a key that has a kid"),
        (b"[" * 100_000, "no JSON"),
        (b" " * (MOST_BYTES + 1), "malformed"),
    ],
)  # fmt: skip
async def test_what_is_no_set_changes_nothing(post, body, problem):
    post.server.body = body
    post.clock.advance(FRESH)
    assert await post.find("old")
    await post.errands.done()
    assert post.problems == [f"127.0.0.1: {problem}"]
    assert await post.find("old")


async def test_redirects_are_not_followed(post):
    with KeyServer(NEW) as elsewhere:
        post.server.status, post.server.headers = 302, {"location": elsewhere.url}
        assert await post.find("new") is None
        assert post.problems == ["127.0.0.1: status 302"]
        assert elsewhere.asked == 0


async def test_a_private_address_is_dialled_only_where_the_file_allows_it(server):
    post = Post(server, allow_private=False)
    with pytest.raises(Overloaded):
        await post.find("old")
    assert post.problems == ["127.0.0.1: connect"]
    assert server.asked == 0
    await post.transport.close()


async def test_an_issuer_that_is_no_longer_named_is_forgotten_and_others_stay(post):
    with KeyServer(NEW) as second:
        other = Issuer("b", AUDIENCE, second.url, frozenset({"ES256"}), allow_private=True)
        post.sets.use([post.issuer, other])
        await post.errands.done()
        assert await post.sets.find(other, "new")
        assert post.server.asked == 1
        post.sets.use([other])
        post.sets.use([post.issuer, other])
        await post.errands.done()
        assert (post.server.asked, second.asked) == (2, 1)
