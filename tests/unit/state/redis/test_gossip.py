"""Breakers of several workers over a real Redis: one opens for all, one probes for all."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from random import Random

import pytest

from gateway.clock import SystemClock
from gateway.state.embedded.health import LocalHealth
from gateway.state.redis.connect import Link
from gateway.state.redis.gossip import Gossip
from tests.support.clock import ManualClock
from tests.support.redis import RedisServer
from tests.unit.state.make import ended, failed, target

GPT = target("gpt")


class Worker:
    """Its own monotonic clock; Redis's moves by itself, so cooldowns are over at once."""

    def __init__(self, server: RedisServer, name: str) -> None:
        self.clock = ManualClock()
        self.health = LocalHealth(self.clock, lambda _: None, Random(1))
        self.health.use([GPT])
        self.link = Link(server.url, SystemClock(), lambda _: None, 2.0)
        self.gossip = Gossip(self.link, name, self.health, lambda _: None)

    @property
    def state(self) -> str:
        (breaker,) = self.health.breakers()
        return breaker.state

    def trip(self) -> None:
        for _ in range(GPT.breaker.failures):
            self.health.record(failed(GPT, self.clock.monotonic()), GPT)

    def probe(self, *, well: bool) -> None:
        assert self.health.enter(GPT)
        made = ended if well else failed
        self.health.record(made(GPT, self.clock.monotonic(), probe=True), GPT)


@pytest.fixture
async def fleet(server: RedisServer) -> AsyncIterator[list[Worker]]:
    async with AsyncExitStack() as stack:
        workers = [Worker(server, f"w{number}") for number in range(4)]
        for worker in workers:
            stack.push_async_callback(worker.link.close)
        yield workers


async def exchange(*workers: Worker) -> None:
    for worker in workers:
        await worker.gossip.exchange()


async def test_a_breaker_that_opens_is_open_for_all(fleet: list[Worker]) -> None:
    fleet[0].trip()
    await exchange(*fleet)
    assert [worker.state for worker in fleet] == ["open"] * 4


async def test_one_worker_probes_and_its_answer_closes_for_all(
    server: RedisServer, fleet: list[Worker]
) -> None:
    fleet[0].trip()
    await exchange(*fleet)
    server.say("DEL", "gateway:1:{gateway}:breakers")  # as if its time were over there, too
    for worker in fleet:
        worker.clock.advance(GPT.breaker.max_cooldown)
    await exchange(*fleet)
    assert [worker.state for worker in fleet].count("half-open") == 1
    prober = next(worker for worker in fleet if worker.state == "half-open")
    prober.probe(well=True)
    await exchange(prober, *fleet)
    assert [worker.state for worker in fleet] == ["closed"] * 4


async def test_a_probe_that_fails_keeps_it_open_for_all(
    server: RedisServer, fleet: list[Worker]
) -> None:
    fleet[0].trip()
    await exchange(*fleet)
    server.say("DEL", "gateway:1:{gateway}:breakers")
    for worker in fleet:
        worker.clock.advance(GPT.breaker.max_cooldown)
    await exchange(*fleet)
    prober = next(worker for worker in fleet if worker.state == "half-open")
    prober.probe(well=False)
    await exchange(prober, *fleet)
    assert [worker.state for worker in fleet] == ["open"] * 4


async def test_what_an_operator_holds_is_neither_told_nor_changed(fleet: list[Worker]) -> None:
    fleet[0].health.force("gpt", "open")
    fleet[1].health.force("gpt", "closed")
    fleet[2].trip()
    await exchange(*fleet, *fleet)
    assert [worker.state for worker in fleet] == ["open", "closed", "open", "open"]
    fleet[0].health.force("gpt", None)
    await exchange(*fleet)
    assert fleet[2].state == "open"


async def test_without_redis_each_judges_for_itself(
    server: RedisServer, fleet: list[Worker]
) -> None:
    server.kill()
    fleet[0].trip()
    await exchange(*fleet)
    assert [worker.state for worker in fleet] == ["open", "closed", "closed", "closed"]
