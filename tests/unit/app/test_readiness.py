"""`/readyz` is honest at the start, and no victim of somebody's outage afterwards."""

import asyncio

import aiohttp
import pytest
from aioresponses import aioresponses

from gateway.app.readiness import AGAIN, Readiness
from gateway.config.load import load_text
from gateway.providers.registry import adapter
from gateway.transport.http import HttpTransport
from tests.support.clock import ManualClock

TEXT = """
providers:
  one: {kind: openai, base_url: "https://one.example.net/v1", key: sk-1}
  two: {kind: openai, base_url: "https://two.example.net/v1", key: sk-2}
chains:
  both: [one/m, two/m]
  only: [one/m]
prices: {one/m: free, two/m: free}
"""
ONE = "https://one.example.net/v1/models"
TWO = "https://two.example.net/v1/models"


class Watched:
    """A readiness that has asked every key once, and goes on when the clock does."""

    def __init__(self) -> None:
        self.snapshot = load_text(TEXT, "t.yaml", {}).snapshot
        self.clock = ManualClock()
        self.degraded: list[str] = []
        self.transport = HttpTransport(self.clock)
        self.readiness = Readiness(self.transport, self.clock, lambda: self.degraded)
        self.adapters = {t.id: adapter(t) for t in self.snapshot.targets.values()}

    async def __aenter__(self) -> "Watched":
        watch = self.readiness.watch(lambda: self.snapshot, lambda: self.adapters)
        self.task = asyncio.ensure_future(watch)
        await self.settle()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.transport.close()

    async def settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    def answer(self):
        return self.readiness.answer(self.snapshot)


@pytest.fixture
def upstream():
    with aioresponses() as mocked:
        yield mocked


async def test_accepted_keys_make_it_ready(upstream):
    upstream.get(ONE, payload={"data": []})
    upstream.get(TWO, payload={"data": []})
    async with Watched() as watched:
        assert watched.answer() == (True, {"status": "ready"})
        assert watched.task.done()


async def test_a_chain_whose_every_key_is_refused_is_named_and_tried_again(upstream):
    upstream.get(ONE, status=401, payload={"error": {"message": "no"}})
    upstream.get(TWO, payload={"data": []})
    async with Watched() as watched:
        ready, details = watched.answer()
        assert not ready
        assert details["unready_chains"] == {"only": "every provider key was refused"}
        upstream.get(ONE, payload={"data": []})
        watched.clock.advance(AGAIN)
        await watched.settle()
        assert watched.answer() == (True, {"status": "ready"})


@pytest.mark.parametrize("trouble", [{"status": 500}, {"status": 404}, {"exception": OSError()},
                                     {"exception": aiohttp.ServerDisconnectedError()}])  # fmt: skip
async def test_a_provider_out_of_reach_keeps_nobody_waiting(upstream, trouble):
    upstream.get(ONE, **trouble)
    upstream.get(TWO, **trouble)
    async with Watched() as watched:
        assert watched.answer()[0]


async def test_once_ready_only_draining_ends_it(upstream):
    upstream.get(ONE, payload={"data": []})
    upstream.get(TWO, payload={"data": []})
    async with Watched() as watched:
        assert watched.answer()[0]
        watched.degraded.append("breaker of one/m is open")
        assert watched.answer() == (
            True,
            {"status": "degraded", "degraded": ["breaker of one/m is open"]},
        )
        watched.readiness.drain()
        assert watched.answer() == (False, {"status": "draining"})


async def test_before_anybody_has_answered_it_is_starting():
    watched = Watched()
    ready, details = watched.answer()
    assert not ready
    assert details["unready_chains"]["both"] == "its provider keys are being tried"
    await watched.transport.close()
