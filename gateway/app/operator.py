"""What operators see and may do: the admin listener's other side. No secret leaves here."""

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Protocol

from gateway.app.readiness import Readiness
from gateway.clock import Clock
from gateway.config.load import Loaded
from gateway.config.show import show
from gateway.core.events import Reloaded
from gateway.core.principal import Principal
from gateway.core.snapshot import Snapshot
from gateway.core.target import Account, Target
from gateway.pipeline.queue import Queue
from gateway.server.doors import Override
from gateway.state.embedded.open import EmbeddedState
from gateway.telemetry.metrics import Metrics
from gateway.wire import json


class Inside(Protocol):
    """What an operator may look into."""

    clock: Clock
    snapshot: Snapshot
    loaded: Loaded
    state: EmbeddedState
    metrics: Metrics
    queue: Queue
    readiness: Readiness

    @property
    def in_flight(self) -> int: ...

    async def reload(self) -> Reloaded: ...

    def begin_drain_of_all(self) -> None: ...


class Operator:
    """Implements `gateway.server.doors.Admin`."""

    def __init__(self, inside: Inside) -> None:
        self._inside = inside

    def status(self) -> Mapping[str, Any]:
        inside = self._inside
        ready, details = inside.readiness.answer(inside.snapshot)
        return {
            "version": version("llm-gateway"),
            "pid": os.getpid(),
            "config": inside.snapshot.config,
            "ready": ready,
            **details,
            "in_flight": inside.in_flight,
            "queue": inside.queue.waiting,
            "keyless": inside.state.keys.keyless,
            "ledger_drift_nano_usd": inside.state.ledger.drift,
            **self.chains(),
        }

    def recent(self, n: int) -> Sequence[Mapping[str, Any]]:
        return self._inside.state.stories.recent(n)

    async def request(self, id: str) -> Mapping[str, Any] | None:
        return await self._inside.state.stories.find(id)

    def chains(self) -> Mapping[str, Any]:
        snapshot = self._inside.snapshot
        also: dict[str, list[str]] = {}
        for name, chain in snapshot.chains.items():
            if name != chain.name:
                also.setdefault(chain.name, []).append(name)
        return {
            "chains": [
                {
                    "name": chain.name,
                    "also": also.get(chain.name, []),
                    "targets": [self._target(target) for target in chain.targets],
                }
                for name, chain in snapshot.chains.items()
                if name == chain.name
            ]
        }

    def _target(self, target: Target) -> dict[str, Any]:
        now = self._inside.clock.monotonic()
        standing = self._inside.state.health.standing(target.id)
        told: dict[str, Any] = {
            "target": target.name,
            "key": target.key,
            "provider": target.provider,
            "model": target.model,
            "breaker": "closed",
        }
        if standing.open_until > now:
            told |= {"breaker": "open", "probe_in_s": round(standing.open_until - now, 1)}
        elif standing.half_open:
            told["breaker"] = "half-open"
        if held := self._inside.state.health.held(target.id):
            told["held"] = held
        if standing.throttled_until > now:
            told["throttled_s"] = round(standing.throttled_until - now, 1)
        if standing.aside_until > now:
            told["aside_s"] = round(standing.aside_until - now, 1)
        if standing.lacks:
            told["lacks"] = sorted(standing.lacks)
        return told

    def limits(self) -> Mapping[str, Any]:
        """Headroom of every account of the file, callers' and targets'."""
        snapshot = self._inside.snapshot
        accounts: dict[str, Account] = {}
        principals: list[Principal] = [key.principal for key in snapshot.keys]
        for principal in principals:
            accounts |= {account.id: account for account in principal.accounts}
        for target in snapshot.targets.values():
            accounts |= {account.id: account for account in target.accounts}
        rooms = self._inside.state.limiter.headroom(list(accounts.values()))
        return {
            "limits": [
                {
                    "account": room.account.id,
                    "scope": room.account.scope,
                    "name": room.account.name,
                    "kind": room.account.kind,
                    "limit": room.account.limit,
                    "remaining": room.remaining,
                    "reset_s": round(room.reset, 3),
                }
                for room in rooms
            ]
        }

    def config(self) -> Mapping[str, Any]:
        """The configuration in force, secrets as `…`."""
        told = json.loads(show(self._inside.loaded).encode())
        return {"config": self._inside.snapshot.config, "document": told}

    def metrics(self) -> bytes:
        return self._inside.metrics.render()

    def figures(self) -> bytes:
        return self._inside.metrics.figures()

    def summed(self, figures: Sequence[bytes], silent: Sequence[bytes]) -> bytes:
        return self._inside.metrics.summed(figures, silent)

    async def reload(self) -> Mapping[str, Any]:
        done = await self._inside.reload()
        return {"config": done.config, "problem": done.problem, "note": done.note}

    async def drain(self) -> None:
        if not self._inside.readiness.draining:  # asked twice over HTTP is no hurry
            self._inside.begin_drain_of_all()

    def breaker(self, target: str, to: Override) -> Mapping[str, Any] | None:
        mine = [t for t in self._inside.snapshot.targets.values() if target in {t.name, t.id}]
        if not mine:
            return None
        for one in mine:
            self._inside.state.health.force(one.id, None if to == "auto" else to)
        return {"targets": [self._target(one) for one in mine]}
