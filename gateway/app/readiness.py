"""Whether traffic may come: honest at the start, and never again a victim of somebody's outage.

Every provider key is tried by the provider's free models call. A chain whose every key is
*refused* keeps `/readyz` at 503; a provider out of reach does not. Once ready, only draining ends
it. Source: gateway.md 7, "Ready".
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from gateway.clock import Clock, Deadline
from gateway.core.ports import Provider, Transport
from gateway.core.snapshot import Snapshot
from gateway.core.target import Cause, Failed, Target, Timeouts

PATIENCE = 10.0  # seconds for a provider to say whether it takes the key
AGAIN = 10.0  # seconds until refused keys are tried once more
BODY = 1024 * 1024  # bytes of a models list that are read


class Readiness:
    """`answer()` is what `/readyz` says; `watch` does the asking."""

    def __init__(
        self, transport: Transport, clock: Clock, degraded: Callable[[], list[str]]
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._degraded = degraded
        self._verdicts: dict[tuple[str, str], str] = {}  # (provider, key): ok | refused | unknown
        self._ready = False
        self._draining = False

    def drain(self) -> None:
        """From now on 503: traffic is to go elsewhere."""
        self._draining = True

    @property
    def draining(self) -> bool:
        return self._draining

    def answer(self, snapshot: Snapshot) -> tuple[bool, Mapping[str, Any]]:
        """(ready, details): chains without any accepted key are named."""
        if self._draining:
            return False, {"status": "draining"}
        waiting = self._unready_chains(snapshot)
        self._ready = self._ready or not waiting
        if not self._ready:
            return False, {"status": "starting", "unready_chains": waiting}
        degraded = self._degraded()
        if degraded:
            return True, {"status": "degraded", "degraded": degraded}
        return True, {"status": "ready"}

    async def watch(
        self, snapshot: Callable[[], Snapshot], adapters: Callable[[], Mapping[str, Provider]]
    ) -> None:
        """Try every key until each chain has one that is not refused; then rest."""
        while not self._ready:
            keys = {(t.provider, t.key): t for t in snapshot().targets.values()}
            todo = [
                (key, target)
                for key, target in keys.items()
                if self._verdicts.get(key, "refused") == "refused"
            ]
            async with asyncio.TaskGroup() as group:
                for key, target in todo:
                    group.create_task(self._try(key, target, adapters()))
            self.answer(snapshot())
            if not self._ready:
                await self._clock.sleep(AGAIN)

    async def _try(
        self, key: tuple[str, str], target: Target, adapters: Mapping[str, Provider]
    ) -> None:
        request = adapters[target.id].models()
        deadline = Deadline(self._clock.monotonic() + PATIENCE)
        try:
            async with self._transport.send(request, Timeouts(), PATIENCE, deadline) as reply:
                body = await reply.read(BODY)
                verdict = "ok"
                if reply.status >= 400:
                    failure = adapters[target.id].failure(reply.status, reply.headers, body)
                    verdict = "refused" if failure.cause is Cause.AUTH else "unknown"
        except Failed:
            verdict = "unknown"
        self._verdicts[key] = verdict

    def _unready_chains(self, snapshot: Snapshot) -> dict[str, str]:
        """Chain -> why it cannot be served yet."""
        waiting: dict[str, str] = {}
        for chain in snapshot.chains.values():
            verdicts = {self._verdicts.get((t.provider, t.key)) for t in chain.targets}
            if verdicts & {"ok", "unknown"}:
                continue
            waiting[chain.name] = (
                "its provider keys are being tried"
                if None in verdicts
                else "every provider key was refused"
            )
        return waiting
