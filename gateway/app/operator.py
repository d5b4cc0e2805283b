"""What operators see and may do: the admin listener's other side. No secret leaves here but once.

A key's secret is told in the answer that made it.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Protocol, TypeVar

from gateway.app.headroom import Headroom
from gateway.app.key_room import KeyRoom
from gateway.app.readiness import Readiness
from gateway.clock import Clock
from gateway.config.load import Loaded
from gateway.config.show import show
from gateway.core.audit import Act
from gateway.core.events import Reloaded
from gateway.core.key_told import moment
from gateway.core.principal import Principal
from gateway.core.snapshot import Snapshot
from gateway.core.target import Target
from gateway.pipeline.queue import Queue
from gateway.server.doors import Override
from gateway.state.embedded.open import EmbeddedState
from gateway.telemetry.metrics import Metrics
from gateway.wire import json
from gateway.wire.admin import AuditTold, LimitsTold

T = TypeVar("T")


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
        self._headroom = Headroom(inside.state.books, inside.state.limiter, inside.clock)
        self.keys = KeyRoom(inside.state.register, lambda: inside.snapshot, inside.clock)

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
            "store": "redis" if inside.state.wing else "embedded",
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

    async def limits(self, key: str | None, most: int) -> LimitsTold | None:
        """Headroom: of a key and its team, or of everybody's accounts, the upstreams' included."""
        holders: Sequence[Target | Principal]
        if key is None:
            principals = list(self._principals())
            holders = [*self._inside.snapshot.targets.values(), *principals]
        else:
            found = self._principal(key)
            if found is None:
                return None
            holders = principals = [found]
        whose = (allowance for one in principals for allowance in one.budgets)
        windows = self._headroom.windows(whose)
        accounts = _first(most + 1, ((a.id, a) for one in holders for a in one.accounts))
        budgets = _first(most + 1, ((one.account.id, one) for one in windows))
        return {
            "limits": self._headroom.limits(accounts[:most]),
            "budgets": await self._headroom.budgets(budgets[:most]),
            "more": max(len(accounts), len(budgets)) > most,
        }

    def _principals(self) -> Iterator[Principal]:
        """Teams, keys of the file, keys of the store."""
        snapshot = self._inside.snapshot
        for team in snapshot.teams.values():
            yield team.principal
        for key in snapshot.keys:
            yield key.principal
        for _, principal in self._inside.state.register.stored():
            if principal is not None:
                yield principal

    def _principal(self, name: str) -> Principal | None:
        for key in self._inside.snapshot.keys:
            if key.name == name:
                return key.principal
        stored = self._inside.state.register.stored()
        return next((found for key, found in stored if key.name == name), None)

    async def audit(self, most: int, before: int | None) -> AuditTold:
        lines = await self._inside.state.audit.read(most + 1, before)
        return {
            "lines": [
                {
                    "seq": line.seq,
                    "at": moment(line.at / 1000),
                    "who": line.who,
                    "verb": line.verb,
                    "object": line.object,
                    "result": line.result,
                    "config": line.config,
                    "before": line.before,
                    "hash": line.hash,
                }
                for line in lines[:most]
            ],
            "next": lines[most - 1].seq if len(lines) > most else None,
        }

    def note(self, act: Act) -> None:
        self._inside.state.audit.note(act)

    async def witness(self, act: Act) -> None:
        self._inside.state.audit.note(act)
        await self._inside.state.audit.write()

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
        return {"set": to, "targets": [self._target(one) for one in mine]}


def _first(n: int, named: Iterable[tuple[str, T]]) -> list[T]:
    """The first `n` of different names."""
    found: dict[str, T] = {}
    for name, one in named:
        found.setdefault(name, one)
        if len(found) == n:
            break
    return list(found.values())
