"""Two machines on one Redis that is killed, frozen, robbed of its tail: callers notice nothing."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.app.state import books
from gateway.config.mistakes import ConfigError
from gateway.state.embedded.reports import Row, total
from gateway.state.spare import Spare
from tests.support.house import ADMIN_KEY, Running
from tests.support.redis import RedisServer

YAML = """
providers: {one: {kind: sim}, two: {kind: sim}}
chains: {smart: [one/a, two/b]}
prices: {unpriced: allow}
"""
ASK = {"model": "smart", "messages": [{"role": "user", "content": "Hello."}]}
CALLERS = 4
TOKEN = "a-key-of-the-callers-own-making-0123456789"
LIMITED = f"""
providers: {{one: {{kind: sim}}, two: {{kind: sim}}}}
chains: {{smart: [one/a, two/b]}}
prices: {{unpriced: allow}}
keys:
  - {{name: k, hash: "sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}", limits: {{rpm: 10}}}}
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as found:
        yield found


class Load:
    """Callers of both machines, one request after the other until the block ends."""

    def __init__(self) -> None:
        self.answers: list[int] = []

    @asynccontextmanager
    async def on(self, *machines: Running) -> AsyncIterator[None]:
        over = asyncio.Event()
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                url = f"{machines[number % len(machines)].base_url}/chat/completions"
                group.create_task(self._call(session, url, over))
            try:
                yield
            finally:
                over.set()

    async def _call(self, session: aiohttp.ClientSession, url: str, over: asyncio.Event) -> None:
        while not over.is_set():
            async with session.post(url, json=ASK) as answer:
                await answer.read()
                self.answers.append(answer.status)

    async def more(self, count: int = 20) -> None:
        """So many answers more."""
        goal = len(self.answers) + count
        await until(lambda: len(self.answers) >= goal)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not what():
            await asyncio.sleep(0.005)


async def ready(machine: Running) -> Any:
    async with aiohttp.ClientSession() as session, session.get(f"{machine.url}/readyz") as answer:
        assert answer.status == 200
        return json.loads(await answer.read())


def booked(machine: Running) -> Row:
    with books(machine.house.snapshot.server, 0) as folder:
        return total(folder, 0)


async def test_callers_notice_nothing_and_every_attempt_is_in_the_ledger_once(
    server: RedisServer, tmp_path: Path
) -> None:
    load = Load()
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(Running(YAML, tmp_path / name, redis=server.url)) for name in "ab"
        )

        def back() -> bool:
            return not one.house.state.troubles and not two.house.state.troubles

        async with load.on(one, two):
            await load.more()
            server.kill()
            await until(lambda: bool(one.house.state.troubles))
            await load.more()
            assert "Redis is lost" in (await ready(one))["degraded"][0]
            mark = server.mark()
            server.restart()
            await until(back)
            await load.more()
            server.restart(upto=mark)
            await load.more()
            server.freeze()
            await until(lambda: bool(two.house.state.troubles))
            await load.more()
            server.thaw()
            await until(back)
            await load.more()
        await until(lambda: one.wait(one.house.state.ledger.ship()))
        await until(lambda: two.wait(two.house.state.ledger.ship()))
        await until(back)
        assert (await ready(one))["status"] == "ready"
        status = await status_of(one)
        assert status["store"] == "redis"
        assert b"gateway_state_degraded 0.0" in one.house.metrics.render()
    assert set(load.answers) == {200}
    found = await asyncio.to_thread(booked, one)
    assert (found.requests, found.attempts) == (len(load.answers), len(load.answers))


async def status_of(machine: Running) -> Any:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    url = f"{machine.admin_url}/admin/status"
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        return await answer.json()


def test_a_redis_without_a_file_is_a_mistake_of_the_configuration_with_its_line(
    tmp_path: Path,
) -> None:
    with (
        RedisServer(tmp_path / "redis", "--appendonly", "no") as server,
        pytest.raises(ConfigError) as caught,
        Running(YAML, tmp_path / "a", redis=server.url),
    ):
        pass
    said = str(caught.value)
    assert said.startswith("test.yaml:2:")
    assert "state.redis — this Redis keeps no append-only file" in said
    assert "set appendonly yes on it" in said


def knows(machine: Running) -> int:
    """How many workers it would share a limit with."""
    spare = machine.house.state.limiter._store
    assert isinstance(spare, Spare)
    return spare._workers


async def statuses(machine: Running, count: int) -> list[int]:
    headers = {"authorization": f"Bearer {TOKEN}"}
    url = f"{machine.base_url}/chat/completions"
    found = []
    async with aiohttp.ClientSession(headers=headers) as session:
        for _ in range(count):
            async with session.post(url, json=ASK) as answer:
                await answer.read()
                found.append(answer.status)
    return found


async def test_a_limit_is_that_of_all_machines_also_after_redis_is_gone(
    server: RedisServer, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(Running(LIMITED, tmp_path / name, redis=server.url))
            for name in "ab"
        )
        found = await statuses(one, 4) + await statuses(two, 4)
        assert found == [200] * 8
        await until(lambda: [knows(machine) for machine in (one, two)] == [2, 2])
        server.kill()
        found = await statuses(one, 9) + await statuses(two, 9)
        assert set(found) == {200, 429}
        assert found.count(200) <= 4  # half of 10 each less what it used, and what was in reserve


async def test_who_wants_no_answers_without_the_store_gets_none(
    server: RedisServer, tmp_path: Path
) -> None:
    with Running(LIMITED, tmp_path / "a", redis=server.url, when_lost="reject") as machine:
        assert await statuses(machine, 1) == [200]
        server.kill()
        await until(lambda: bool(machine.house.state.troubles))
        assert 503 in await statuses(machine, 8)
        assert "refused" in (await ready(machine))["degraded"][0]
