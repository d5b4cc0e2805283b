"""Brings the rooms together: snapshot -> roads, listeners; swaps on reload; closes all in order."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from typing import Self

from chaos.upstream import Upstream
from gateway.app.headroom import Headroom
from gateway.app.operator import Operator
from gateway.app.readiness import Readiness
from gateway.app.source import Source
from gateway.app.state import StoreUnfit, open_rooms
from gateway.app.usage import Usage
from gateway.app.vitals import Machine
from gateway.clock import Clock
from gateway.config.load import Loaded
from gateway.config.mistakes import ConfigError
from gateway.config.models import Address
from gateway.core.events import Event, Lifecycle, Reloaded, StateTrouble
from gateway.core.plan import Facts
from gateway.core.ports import Facade, Keys, Listener, Provider
from gateway.core.snapshot import Snapshot
from gateway.core.target import Secret, Target
from gateway.pipeline.admit import Admit
from gateway.pipeline.attempt import Attempts, Panic
from gateway.pipeline.authenticate import Authenticate
from gateway.pipeline.detached import Detached
from gateway.pipeline.estimate import Outputs, target_demands
from gateway.pipeline.facts import allowed
from gateway.pipeline.guard import EVERY, Guard
from gateway.pipeline.park import Park
from gateway.pipeline.plan import Planner, Sources
from gateway.pipeline.queue import Queue
from gateway.pipeline.recall import Flights, Recall
from gateway.pipeline.road import Road
from gateway.pipeline.settle import Settle
from gateway.pipeline.under_way import UnderWay
from gateway.pipeline.unpark import Roads, Unpark
from gateway.providers.registry import adapter
from gateway.server.crew import ALIVE, Crew
from gateway.server.desk import Names
from gateway.server.doors import Current, Doors
from gateway.server.facades.chat import ChatFacade
from gateway.server.facades.embeddings import EmbeddingsFacade
from gateway.server.serve import Servers
from gateway.state.embedded.open import EmbeddedState
from gateway.telemetry.metrics import Gauges, Metrics
from gateway.telemetry.webhook import Alarm
from gateway.transport.http import HttpTransport
from gateway.transport.key_sets import KeySets

LOOK = 2.0  # seconds between looks at the file: inotify misses a ConfigMap's symlinks


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line says beside the file.

    Args:
        admin_key: opens the admin listener.
        next_free: a taken port moves to the next free one.
        listeners: more ears, as the demo's.
        crew: what this process shares with its siblings; None: it is the only one.
    """

    admin_key: Secret
    next_free: bool = False
    listeners: tuple[Listener, ...] = ()
    crew: Crew | None = None


class House:
    """One process. Everything that lives over a reload is an attribute; the rest is in `doors`.

    Raises:
        gateway.config.mistakes.ConfigError: the configuration has mistakes.
    """

    def __init__(self, source: Source, clock: Clock, wishes: Wishes) -> None:
        self.source = source
        self.clock = clock
        self.wishes = wishes
        self.loaded: Loaded = source.read()
        self.snapshot: Snapshot = self.loaded.snapshot
        self._settings = self.loaded.snapshot.server  # of the file at the start
        self.simulator: Upstream | None = None
        self.adapters: Mapping[str, Provider] = {}
        self.panic = Panic()
        self.outputs = Outputs()
        self.under_way = UnderWay()
        self.flights: Flights = {}
        self.detached = Detached(clock)
        self.parked = Detached(clock)  # those of them that are being answered
        self.guard = Guard()
        self.lag = 0.0
        self.problem = ""  # of the last reload
        self.over = asyncio.Event()  # the drain is done
        self._stamp = source.stamp()
        self._reloading = asyncio.Lock()
        self._ears: tuple[Callable[[Event], None], ...] = ()
        self._tokens: Callable[[Snapshot, KeySets, Clock], Keys] | None = None
        # set by `running`, in this order
        self._stack: AsyncExitStack
        self.state: EmbeddedState
        self.transport: HttpTransport
        self.key_sets: KeySets
        self.metrics: Metrics
        self.queue: Queue
        self.readiness: Readiness
        self.servers: Servers
        self.current: Current
        self.unpark: Unpark
        self.roads: Roads  # of the configuration in force
        self._tasks: _Tasks

    def heard(self, event: Event) -> None:
        """Tell everybody who listens."""
        for ear in self._ears:
            ear(event)

    def _witnessed(self, event: Reloaded | Lifecycle) -> None:
        """What the audit log has to know too; it is not asked about each request."""
        self.heard(event)
        self.state.audit.heard(event)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["House"]:
        """Open everything, serve, and close it all in the opposite order.

        Raises:
            OSError: a port is taken or the state directory cannot be used.
            gateway.config.mistakes.ConfigError: the Redis of the file must not be used.
        """
        settings, crew = self.snapshot.server, self.wishes.crew
        rng = random.Random()  # noqa: S311 - spreads cooldowns; made here: workers draw differently
        async with AsyncExitStack() as stack:
            self._stack = stack
            await self._simulate(self.snapshot)
            workers = crew.count if crew else 1
            self.state = await stack.enter_async_context(self._rooms(rng, workers))
            self.transport = HttpTransport(self.clock)
            stack.push_async_callback(self.transport.close)
            errands = await stack.enter_async_context(_Tasks(self.heard))
            self.key_sets = KeySets(self.transport, self.clock, self.heard, errands.start)
            await self._read_tokens(self.snapshot)
            await stack.enter_async_context(self.detached)
            await stack.enter_async_context(self.parked)
            self.queue = Queue(self.clock, settings.queue_length, settings.queue_bytes)
            self.state.limiter.on_room(self.queue.pump)
            self.metrics = Metrics(
                version("llm-gateway"),
                self._gauges(),
                crew.restarts if crew else 0,
                crew.kept(crew.number) if crew else b"",
            )
            self.metrics.use(self.snapshot, self.clock.now())
            alarm = Alarm(
                self.transport, self.clock, lambda: self.snapshot.alerts.webhook, self.heard
            )
            ears: tuple[Listener, ...] = (self.metrics, self.state.stories, alarm)
            ears += self.wishes.listeners
            self._ears = tuple(listener.heard for listener in ears)
            names = Names()
            self.unpark = Unpark(
                self.state.parking,
                self.parked,
                self.clock,
                lambda: self.roads,
                lambda: names.make(self.clock.now()),
            )
            self.readiness = Readiness(self.transport, self.clock, self.degraded)
            self.current = Current(self._furnish(self.snapshot))
            if crew is not None and crew.restarts:
                await self._learn_holds(crew)
            self.servers = await stack.enter_async_context(
                Servers(
                    self.current,
                    settings,
                    self.clock,
                    admin_key=self.wishes.admin_key,
                    next_free=self.wishes.next_free,
                    crew=crew,
                )
            )
            self._tasks = await stack.enter_async_context(_Tasks(self.heard))
            for errand in self._errands(alarm):
                self._tasks.start(errand)
            name = f"worker {crew.number}" if crew else ""
            self._witnessed(Lifecycle("started", name))
            yield self
            self._witnessed(Lifecycle("stopped", name))

    def _errands(self, alarm: Alarm) -> Iterator[Coroutine[None, None, None]]:
        """What goes on by itself as long as the process serves."""
        crew = self.wishes.crew
        yield self.readiness.watch(lambda: self.snapshot, lambda: self.adapters)
        yield self._watch_file()
        yield self._stand_guard(Machine(crew.count if crew else 1))
        yield alarm.run()
        yield self.unpark.run()
        if crew is not None:
            yield self._say_alive(crew)

    @asynccontextmanager
    async def _rooms(self, rng: random.Random, workers: int) -> AsyncIterator[EmbeddedState]:
        """The state. Raises ConfigError: the file names a Redis that must not be used."""
        try:
            rooms = open_rooms(self.snapshot, self.clock, self.heard, rng, workers)
            async with rooms as state:
                yield state
        except StoreUnfit as error:
            where = self.loaded.tree.mistake(("state", "redis"), str(error))
            raise ConfigError([where]) from None

    @property
    def in_flight(self) -> int:
        return self.servers.in_flight

    async def _learn_holds(self, crew: Crew) -> None:
        """What an operator holds open or closed stays so, whoever of us dies."""
        answers = [said.told or {} for said in await crew.ask("/admin/chains")]
        chains = [chain for told in answers for chain in told.get("chains", ())]
        held = {
            (row["target"], row["key"]): row["held"]
            for chain in chains for row in chain["targets"] if "held" in row
        }  # fmt: skip
        for target in self.snapshot.targets.values():
            if (target.name, target.key) in held:
                self.state.health.force(target.id, held[target.name, target.key])

    def begin_drain(self, lame_duck: float | None = None) -> None:
        """Not ready, still accepting; then finish what runs; `over` is set at the end.

        A second call skips to the end (gateway.md 4.9). `lame_duck`: seconds, if not the file's.
        """
        if self.readiness.draining:
            self.servers.hurry()
            self.detached.hurry()
            self.parked.hurry()
            return
        self.readiness.drain()
        self.unpark.stop()
        self._witnessed(Lifecycle("draining"))
        self._tasks.start(self._drain(lame_duck))

    def begin_drain_of_all(self) -> None:
        """This process, or by way of the supervisor every worker."""
        if self.wishes.crew is None:
            self.begin_drain()
        else:
            self.wishes.crew.tell("drain")

    async def _drain(self, lame_duck: float | None) -> None:
        settings = self.snapshot.server
        lame = settings.lame_duck if lame_duck is None else lame_duck
        end = self.clock.monotonic() + lame + settings.drain
        await self.servers.drain(lame, settings.drain)
        await self.detached.drain(max(0.0, end - self.clock.monotonic()))
        await self.parked.drain(max(0.0, end - self.clock.monotonic()))
        self.over.set()

    def begin_reload(self) -> None:
        """For signal handlers."""
        self._tasks.start(self._reload_quietly())

    async def _reload_quietly(self) -> None:
        await self.reload()

    async def reload(self) -> Reloaded:
        """Read the configuration again and swap; a bad file changes nothing."""
        async with self._reloading:
            self._stamp = self.source.stamp()
            try:
                loaded = await asyncio.to_thread(self.source.read)
            except ConfigError as error:
                return self._refused(str(error))
            if exposed := self.exposed(loaded.snapshot):
                return self._refused(exposed)
            await self._simulate(loaded.snapshot)
            await self._read_tokens(loaded.snapshot)
            note = self._swap(loaded)
        return self._told(Reloaded(self.snapshot.config, "", self.clock.now(), note))

    def _refused(self, problem: str) -> Reloaded:
        self.problem = problem
        return self._told(Reloaded(self.snapshot.config, problem, self.clock.now()))

    def exposed(self, snapshot: Snapshot) -> str:
        """Why this file must not be taken by a process that listens where it does; "" if it may.

        A file without keys is sound with a loopback `listen`, but ours was chosen at the start.
        """
        server = self.snapshot.server
        if not snapshot.keyless or Address(server.host, server.port).loopback:
            return ""
        return (
            f"without keys only a loopback address is served, and {server.host} is listened on"
            " until a restart; keep keys: or auth: in the file, or restart"
        )

    async def _simulate(self, snapshot: Snapshot) -> None:
        """The simulator runs from the first target of `kind: sim` on."""
        if self.simulator is None and any(t.kind == "sim" for t in snapshot.targets.values()):
            self.simulator = await self._stack.enter_async_context(Upstream(clock=self.clock))

    async def _read_tokens(self, snapshot: Snapshot) -> None:
        """What checks tokens is loaded with the first issuer: it costs 0.1 s, and seldom needed."""
        if snapshot.issuers and self._tokens is None:
            found = await asyncio.to_thread(lambda: import_module("gateway.transport.tokens"))
            self._tokens = found.Tokens

    def _swap(self, loaded: Loaded) -> str:
        """New roads; requests under way finish on the old. Returns what has to wait, or ""."""
        fixed = replace(loaded.snapshot, server=self.snapshot.server)
        doors = self._furnish(fixed)
        self.loaded, self.snapshot, self.problem = loaded, fixed, ""
        self.state.use(fixed)
        self.metrics.use(fixed)
        self.current.doors = doors
        if loaded.snapshot.server == self._settings:  # what the command line says is no change
            return ""
        return "in force, but server and state keep their values until a restart"

    def _told(self, reloaded: Reloaded) -> Reloaded:
        self._witnessed(reloaded)
        return reloaded

    def degraded(self) -> list[str]:
        """What does not work though traffic is served."""
        told = [f"breaker of {b.target} is {b.state}" for b in self.state.health.breakers()
                if b.state != "closed"]  # fmt: skip
        told += self.state.troubles
        told += self.guard.degraded()
        if self.problem:
            told.append("the configuration file has mistakes; the last good one is in force")
        return told

    def _furnish(self, snapshot: Snapshot) -> Doors:
        """Roads for a snapshot; what lives on is shared with those before."""
        adapters = {target.id: self._adapter(target) for target in snapshot.targets.values()}
        self.adapters = adapters
        state, clock = self.state, self.clock

        def wait(facts: Facts, target: Target) -> float:
            return state.limiter.wait(target_demands(facts, target, self.outputs))

        plan = Planner(Sources(clock.monotonic, clock.now, state.health.standing, wait))
        settle = Settle(
            state.limiter,
            state.ledger,
            state.health,
            self.outputs,
            self.under_way,
            clock,
            self.heard,
        )
        admit = Admit(state.limiter, self.outputs, self.queue, plan, clock, self.guard)
        attempt = Attempts(
            adapters,
            self.transport,
            state.limiter,
            state.ledger,
            state.health,
            self.outputs,
            plan,
            settle,
            self.panic,
            clock,
            snapshot,
        )
        self.key_sets.use(snapshot.issuers)
        tokens = None
        if self._tokens is not None and snapshot.issuers:
            tokens = self._tokens(snapshot, self.key_sets, clock)
        authenticate = Authenticate(state.keys, clock, state.audit, tokens)
        recall = Recall(
            state.answers,
            self.flights,
            self.detached,
            admit,
            attempt,
            settle,
            clock,
            snapshot,
        )

        def road(facade: Facade) -> Road:
            return Road(
                facade,
                snapshot,
                clock,
                authenticate,
                plan,
                recall,
                admit,
                attempt,
                settle,
                park=park,
            )

        park = Park(state.parking, clock, snapshot)
        chat, embeddings = road(ChatFacade()), road(EmbeddingsFacade())
        self.roads = Roads({"chat": chat, "embeddings": embeddings}, authenticate.again)
        return Doors(
            chat=chat,
            embeddings=embeddings,
            models=lambda principal: allowed(principal, snapshot),
            usage=Usage(state.books, Headroom(state.books, state.limiter, clock)),
            authenticate=authenticate,
            end=recall.end,
            parked=park,
            heard=self.heard,
            ready=lambda: self.readiness.answer(self.snapshot),
            admin=Operator(self),
            guard=self.guard,
            public_metrics=snapshot.public_metrics,
        )

    def _adapter(self, target: Target) -> Provider:
        if target.kind == "sim" and self.simulator is not None:
            url = self.simulator.base_url(target.provider)
            target = replace(target, base_url=url, allow_private=True)
        return adapter(target)

    def _gauges(self) -> Gauges:
        return Gauges(
            inflight_requests=lambda: self._of_chains(self.under_way.requests),
            inflight_attempts=lambda: {
                target.name: self.under_way.attempts.get(target.name, 0)
                for target in self.snapshot.targets.values()
            },
            queue_depth=lambda: self._of_chains(self.queue.depths()),
            headroom=self._headroom,
            ledger_drift=lambda: self.state.ledger.drift,
            loop_lag=lambda: self.lag,
            state_degraded=lambda: float(bool(self.state.troubles)),
        )

    def _of_chains(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Every chain of the file, 0 included."""
        return {chain.name: counts.get(chain.name, 0) for chain in self.snapshot.chains.values()}

    def _headroom(self) -> Iterable[tuple[str, str, float]]:
        """(target, kind, 0..1) of the targets' own accounts."""
        for target in self.snapshot.targets.values():
            accounts = [account for account in target.accounts if account.scope == "target"]
            for room in self.state.limiter.headroom(accounts):
                yield target.name, room.account.kind, room.remaining / max(1, room.account.limit)

    async def _watch_file(self) -> None:
        while True:
            await self.clock.sleep(LOOK)
            stamp = await asyncio.to_thread(self.source.stamp)
            if stamp and stamp != self._stamp:
                await self.reload()

    async def _say_alive(self, crew: Crew) -> None:
        while True:
            crew.tell("alive")
            await self.clock.sleep(ALIVE)

    async def _stand_guard(self, machine: Machine) -> None:
        now = asyncio.get_running_loop().time  # it is the loop that is measured, not the clock
        while True:
            before = now()
            await self.clock.sleep(EVERY)
            self.lag = max(0.0, now() - before - EVERY)
            moved = self.guard.look(self.lag, machine.vitals())
            if moved is not None:
                self.heard(moved)


class _Tasks:
    """Owns the tasks of the process: they end when it does; one that breaks is heard, no more."""

    def __init__(self, heard: Callable[[Event], None]) -> None:
        self._heard = heard
        self._group = asyncio.TaskGroup()
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._running:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    def start(self, work: Coroutine[None, None, None]) -> None:
        task = self._group.create_task(self._watched(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _watched(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - a boundary: no chore may end the service
            self._heard(StateTrouble("house", "chore", type(error).__name__))
