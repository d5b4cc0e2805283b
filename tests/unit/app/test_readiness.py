"""`/readyz` is honest at the start, and no victim of somebody's outage afterwards."""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import pytest

from gateway.app.readiness import AGAIN, Readiness
from gateway.config.load import load_text
from gateway.core.target import Cause, Failed, Failure
from gateway.providers.registry import adapter
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


class Reply:
    """A provider's answer to the question whether it takes the key; None: out of reach."""

    headers: Mapping[str, str] = {}

    def __init__(self, status: int | None) -> None:
        self.status = status or 0

    async def __aenter__(self) -> Self:
        if not self.status:
            raise Failed(Failure(Cause.CONNECT, "no connection"))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    async def read(self, limit: int) -> bytes:
        return b"{}"


class Watched:
    """A readiness that has asked every key once, and goes on when the clock does."""

    def __init__(self, **statuses: int | None) -> None:
        self.snapshot = load_text(TEXT, "t.yaml", {}).snapshot
        self.clock = ManualClock()
        self.degraded: list[str] = []
        self.statuses: dict[str, int | None] = {ONE: statuses["one"], TWO: statuses["two"]}
        self.readiness = Readiness(self, self.clock, lambda: self.degraded)
        self.adapters = {t.id: adapter(t) for t in self.snapshot.targets.values()}

    def send(self, request, timeouts, seconds, deadline) -> Reply:
        return Reply(self.statuses[request.url])

    async def __aenter__(self) -> Self:
        watch = self.readiness.watch(lambda: self.snapshot, lambda: self.adapters)
        self.task = asyncio.ensure_future(watch)
        await self.settle()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    def answer(self):
        return self.readiness.answer(self.snapshot)


async def test_accepted_keys_make_it_ready():
    async with Watched(one=200, two=200) as watched:
        assert watched.answer() == (True, {"status": "ready"})
        assert watched.task.done()


async def test_a_chain_whose_every_key_is_refused_is_named_and_tried_again():
    async with Watched(one=401, two=200) as watched:
        ready, details = watched.answer()
        assert not ready
        assert details["unready_chains"] == {"only": "every provider key was refused"}
        watched.statuses[ONE] = 200
        watched.clock.advance(AGAIN)
        await watched.settle()
        assert watched.answer() == (True, {"status": "ready"})


@pytest.mark.parametrize("status", [500, 404, 429, None])
async def test_a_provider_out_of_reach_keeps_nobody_waiting(status):
    async with Watched(one=status, two=status) as watched:
        assert watched.answer()[0]


async def test_once_ready_only_draining_ends_it():
    async with Watched(one=200, two=200) as watched:
        assert watched.answer()[0]
        watched.degraded.append("breaker of one/m is open")
        assert watched.answer() == (
            True,
            {"status": "degraded", "degraded": ["breaker of one/m is open"]},
        )
        watched.readiness.drain()
        assert watched.answer() == (False, {"status": "draining"})


async def test_before_anybody_has_answered_it_is_starting():
    ready, details = Watched(one=200, two=200).answer()
    assert not ready
    assert details["unready_chains"]["both"] == "its provider keys are being tried"
