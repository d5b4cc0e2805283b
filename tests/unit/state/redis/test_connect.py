"""The way to a real redis-server that is killed, frozen, replaced, or not fit."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.clock import SystemClock
from gateway.core.events import Event, StoreMoved
from gateway.core.target import Secret
from gateway.state.redis.connect import Link, RedisLost, RedisUnfit, key, unfit
from tests.support.redis import RedisServer

PASSWORD = "c4n4ry-password"


class Watched:
    """A link, and what was heard of it."""

    def __init__(self, url: Secret) -> None:
        self.heard: list[Event] = []
        self.link = Link(url, SystemClock(), self.heard.append)


@asynccontextmanager
async def watched(url: Secret) -> AsyncIterator[Watched]:
    found = Watched(url)
    try:
        yield found
    finally:
        await found.link.close()


async def fail(link: Link) -> str:
    with pytest.raises(RedisLost) as caught:
        await link.call("GET", key("x"))
    return str(caught.value)


async def test_a_killed_redis_is_lost_after_three_calls_and_back_after_two_pings(
    server: RedisServer,
) -> None:
    async with watched(server.url) as seen:
        assert await seen.link.greet()
        await seen.link.call("SET", key("x"), "1")
        server.kill()
        assert [await fail(seen.link) for _ in range(4)] == ["connection"] * 3 + ["lost"]
        assert seen.heard == [
            StoreMoved("redis", True, "3 failures in a row, the last: connection")
        ]
        await seen.link.look()
        server.restart()
        await seen.link.look()
        assert seen.link.lost
        await seen.link.look()
        assert await seen.link.call("GET", key("x")) == b"1"
        assert seen.heard[1:] == [StoreMoved("redis", False)]
        assert seen.link.contacts == 2


async def test_a_frozen_redis_costs_three_calls_a_tenth_of_a_second_and_then_nothing(
    server: RedisServer,
) -> None:
    async with watched(server.url) as seen:
        assert await seen.link.greet()
        server.freeze()
        async with asyncio.timeout(2):  # redis-py's own defaults would take 58 s a call
            assert [await fail(seen.link) for _ in range(4)] == ["timeout"] * 3 + ["lost"]
        server.thaw()


async def test_a_redis_that_is_away_at_the_start_is_taken_as_lost(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    with server:
        pass
    async with watched(server.url) as seen:
        assert not await seen.link.greet()
        assert seen.link.lost
        assert "not reached at the start: connection" in seen.link.why


async def test_credentials_are_in_no_word_of_ours(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", "--requirepass", "another") as server:
        url = Secret(f"redis://default:{PASSWORD}@127.0.0.1:{server.port}")
        async with watched(url) as seen:
            assert not await seen.link.greet()
            assert seen.link.why == "not reached at the start: credentials refused"
            assert PASSWORD not in f"{seen.heard} {seen.link} {vars(seen.link)}"


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis", "--appendonly", "no") as found:
        yield found


async def test_a_redis_without_a_file_is_refused_at_the_start_and_on_its_return(
    forgetful: RedisServer,
) -> None:
    async with watched(forgetful.url) as seen:
        with pytest.raises(RedisUnfit, match="set appendonly yes"):
            await seen.link.greet()
        forgetful.kill()
        for _ in range(3):
            await fail(seen.link)
        forgetful.restart()
        for _ in range(4):
            await seen.link.look()
        assert seen.link.lost
        assert "appendonly" in seen.link.why


FIT = {"redis_version": "6.2.0", "role": "master", "aof_enabled": 1}


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ({}, ""),
        ({"redis_version": "7.4.1", "maxmemory": 1, "maxmemory_policy": "noeviction"}, ""),
        ({"redis_version": "6.0.16"}, "this Redis is 6.0.16, and 6.2 is the oldest"),
        ({"redis_version": ""}, "this Redis is of an unknown version"),
        ({"role": "slave"}, "give the URL of its primary"),
        ({"maxmemory": 1, "maxmemory_policy": "allkeys-lru"}, "set maxmemory-policy noeviction"),
    ],
)
def test_what_is_not_fit_is_told_with_its_remedy(told: dict[str, object], complaint: str) -> None:
    said = unfit({**FIT, **told})
    assert complaint in said
    assert bool(said) == bool(complaint)


async def test_the_node_of_a_cluster_that_has_our_keys_is_followed(tmp_path: Path) -> None:
    # a fresh cluster takes no writes for 2 s, but says at once who has a key
    clustered = ("--cluster-enabled", "yes", "--cluster-allow-reads-when-down", "yes")
    with RedisServer(tmp_path / "a", *clustered) as a, RedisServer(tmp_path / "b", *clustered) as b:
        id = b.say("CLUSTER", "MYID").split(b"\r\n")[1].decode()
        slot = a.say("CLUSTER", "KEYSLOT", key("x"))[1:-2].decode()
        assert slot == a.say("CLUSTER", "KEYSLOT", key("ledger", "y"))[1:-2].decode()
        a.say("CLUSTER", "MEET", "127.0.0.1", str(b.port))
        async with asyncio.timeout(10):
            while not b.say("CLUSTER", "ADDSLOTS", slot).startswith(b"+OK"):
                await asyncio.sleep(0.01)
            async with watched(a.url) as seen:
                assert await seen.link.greet()
                while not a.say("CLUSTER", "SETSLOT", slot, "NODE", id).startswith(b"+OK"):
                    await asyncio.sleep(0.01)
                assert b"cmdstat_get" not in b.say("INFO", "commandstats")
                assert await seen.link.call("GET", key("x")) is None
                assert b"cmdstat_get" in b.say("INFO", "commandstats")


async def test_callers_who_leave_in_the_middle_never_get_anothers_answer(
    server: RedisServer,
) -> None:
    async with watched(server.url) as seen:
        for number in range(20):
            await seen.link.call("SET", key(str(number)), str(number))

        async def ask(number: int) -> None:
            assert await seen.link.call("GET", key(str(number))) == b"%d" % number

        for turn in range(60):
            tasks = [asyncio.ensure_future(ask(number)) for number in range(6)]
            for _ in range(turn % 11):
                await asyncio.sleep(0)
            leaving = [task for task in tasks[::2] if task.cancel()]
            await asyncio.gather(*tasks[1::2])
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in leaving)
