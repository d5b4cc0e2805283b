"""Keys of several machines over a real Redis that forgets and goes away."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.clock import SystemClock
from gateway.core.budget import Budget, allowances
from gateway.core.keys import read_key
from gateway.core.principal import Principal
from gateway.core.snapshot import Snapshot
from gateway.state.embedded.key_copy import KeyCopy
from gateway.state.embedded.keys import EmbeddedKeys, KeyStore
from gateway.state.embedded.sqlite import Store
from gateway.state.redis.connect import Link, RedisLost
from gateway.state.redis.keys import SharedKeys
from tests.support.redis import RedisServer

SNAPSHOT = Snapshot("c0ffee", {}, {}, {}, keyless=False)


class Machine:
    """A machine's copy of the keys, and a gateway that asks it."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        clock = SystemClock()
        self.link = Link(server.url, clock, lambda _: None, 2.0)
        self.file = KeyStore(folder, clock)
        self.copy, self.store = Store(folder), Store(folder)
        self.shared = SharedKeys(self.link, KeyCopy(self.copy), lambda _: None)
        self.keys = EmbeddedKeys(self.store, SNAPSHOT, clock, lambda _: None)

    async def knows(self, token: str) -> Principal | None:
        await self.shared.follow()
        await self.keys.poll()
        return await self.keys.find(read_key(token))

    async def close(self) -> None:
        await self.link.close()
        await self.copy.close()
        await self.store.close()


@pytest.fixture
async def machines(server: RedisServer, tmp_path: Path) -> AsyncIterator[list[Machine]]:
    async with AsyncExitStack() as stack:
        found = [Machine(server, tmp_path / name) for name in "abc"]
        for one in found:
            stack.push_async_callback(one.close)
            await one.shared.level()
        yield found


async def test_a_key_made_rotated_or_revoked_anywhere_counts_everywhere(
    machines: list[Machine],
) -> None:
    here, there, _ = machines
    own = [Budget("day", 5, hard=False)]
    first = here.file.create("job", budgets=own).secret.reveal()
    assert await here.shared.publish("job")
    found = await there.knows(first)
    assert found is not None
    assert (found.key_id, found.budgets) == ("job", allowances("key", "job", own))
    second = there.file.rotate("job", 1e9).secret.reveal()
    assert await there.shared.publish("job")
    assert await here.knows(second)
    assert await here.knows(first)
    here.file.revoke("job")
    assert await here.shared.publish("job")
    for machine in machines:
        assert await machine.knows(first) is None
        assert await machine.knows(second) is None


async def test_one_name_is_given_once_in_the_fleet(machines: list[Machine]) -> None:
    here, there, _ = machines
    first = here.file.create("job").secret.reveal()
    second = there.file.create("job").secret.reveal()
    assert await here.shared.publish("job")
    assert not await there.shared.publish("job")
    assert await there.knows(first)
    assert await there.knows(second) is None


async def test_a_redis_that_forgot_gets_back_keys_and_revocations(
    server: RedisServer, machines: list[Machine]
) -> None:
    here, there, late = machines
    old = here.file.create("old").secret.reveal()
    assert await here.shared.publish("old")
    assert await late.knows(old)
    mark = server.mark()
    new = here.file.create("new").secret.reveal()
    assert await here.shared.publish("new")
    here.file.revoke("old")
    assert await here.shared.publish("old")
    assert await there.knows(old) is None
    server.restart(upto=mark)
    for machine in (there, late, there, late, there, late):
        await machine.shared.follow()
    for machine in machines:
        assert await machine.knows(old) is None
        assert await machine.knows(new)
    server.say("FLUSHALL")
    await there.shared.follow()
    assert await late.knows(new)


async def test_callers_are_known_without_redis_and_changes_are_not_lost_silently(
    server: RedisServer, machines: list[Machine]
) -> None:
    here, there, _ = machines
    token = here.file.create("job").secret.reveal()
    assert await here.shared.publish("job")
    assert await there.knows(token)
    server.kill()
    assert await there.knows(token)
    with pytest.raises(RedisLost):
        await here.shared.publish("job")
