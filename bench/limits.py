"""What limits cost and how much of them can be used: `python bench/limits.py [--redis URL]`.

Two parts. *Decisions*: microseconds of admitting a request and settling it, for 12 accounts, from
slices, and of asking each store. *Fleet*: simulated minutes of several workers over one store, in
virtual time, with skewed clocks, lost replies, crashes and joins: how often an admission has to
ask, how much of the limit is used, and whether any 60 seconds had more than the limit.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.clock import SystemClock
from gateway.core.attempt import Demand, Reservation
from gateway.core.target import Account, AccountScope, Secret
from gateway.errors import Overloaded
from gateway.state.accounts import AccountStore, Answer, Ask, Book, Caller, Need, StoreLost
from gateway.state.embedded.accounts import SqliteAccounts
from gateway.state.embedded.sqlite import Store
from gateway.state.redis.accounts import RedisAccounts
from gateway.state.redis.connect import Link
from gateway.state.slices import TICK, Slices

CLOCK = SystemClock()
SCOPES: tuple[AccountScope, ...] = ("key", "team", "provider", "target")
WIDE = tuple(
    Account(f"{scope}:x:{kind}", scope, "x", kind, 10**10)
    for scope in SCOPES
    for kind in ("rpm", "tpm", "concurrency")
)
DEMANDS = [Demand(account, 500 if account.kind == "tpm" else 1) for account in WIDE]
TOLD = [account for account in WIDE[:6] if account.kind != "concurrency"]
REPEATED = 5


def now(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")


# -- decisions ------------------------------------------------------------------------------------


def decisions(redis: str | None, calls: int) -> None:
    limiter = Slices(Book(CLOCK), "bench", CLOCK)

    def cycle(told: Sequence[Account]) -> Callable[[], None]:
        def run() -> None:
            held = limiter.try_reserve("r", DEMANDS, told)
            if held is None:
                held = now(limiter.reserve("r", DEMANDS, told))
            limiter.settle(held, WIDE, 340)

        return run

    count = len(WIDE)
    print(f"reserve and settle {count} accounts from slices: {micros(cycle(()), calls):.2f} us")
    print(f"  the same, headroom of {len(TOLD)} told: {micros(cycle(TOLD), calls):.2f} us")
    asyncio.run(stores(redis))


def micros(work: Callable[[], None], calls: int) -> float:
    found = []
    for _ in range(REPEATED):
        began = time.perf_counter()
        for _ in range(calls):
            work()
        found.append((time.perf_counter() - began) / calls * 1e6)
    return min(found)


async def stores(redis: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        await ask("SQLite", SqliteAccounts(store, CLOCK))
        await store.close()
    if redis is not None:
        link = Link(Secret(redis), CLOCK, lambda _: None)
        await ask("Redis", RedisAccounts(link))
        await link.close()


async def ask(name: str, store: AccountStore) -> None:
    for accounts in (1, len(WIDE)):
        asks = [Ask(account, 0, 0, 0, 1, 1) for account in WIDE[:accounts]]
        found = []
        for turn in range(1, 300):
            began = time.perf_counter()
            await store.sync(Caller(f"bench{accounts}", turn, 0.0), asks, ())
            found.append((time.perf_counter() - began) * 1e6)
        found.sort()
        p95 = found[int(len(found) * 0.95)]
        told = f"{statistics.median(found):.0f} us, p95 {p95:.0f} us"
        print(f"ask {name} for {accounts} accounts: median {told}")


# -- a fleet --------------------------------------------------------------------------------------


class Tape:
    """Virtual time, and as much as `ahead` says beside it."""

    def __init__(self, true: "Tape | None" = None, ahead: float = 0.0) -> None:
        self._true = true
        self._ahead = ahead
        self.at = 1000.0

    def now(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        return self.at if self._true is None else self._true.at + self._ahead

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError

    def call_at(self, when: float, wake: Callable[[], None]) -> Callable[[], None]:
        raise NotImplementedError


class Lossy:
    """A store some of whose replies are lost, and some of whose calls."""

    def __init__(self, book: Book, lost: float, chance: random.Random) -> None:
        self._book = book
        self._lost = lost
        self._chance = chance
        self.calls = 0

    async def sync(
        self, caller: Caller, asks: Sequence[Ask], groups: Sequence[Sequence[Need]]
    ) -> Answer:
        self.calls += 1
        if self._chance.random() < self._lost / 2:
            raise StoreLost("call")
        answer = self._book.answer(caller, asks, groups)
        if self._chance.random() < self._lost / 2:
            raise StoreLost("reply")
        return answer


@dataclass
class Scene:
    """`load` is a share of the limit; `crashes` a chance per request, `lost` per call."""

    limit: int
    load: float
    workers: int
    lost: float = 0.0
    crashes: float = 0.0
    kind: str = "rpm"
    minutes: int = 3

    def __str__(self) -> str:
        unit = {"rpm": "requests", "tpm": "tokens"}[self.kind]
        rough = f", {self.lost:.0%} lost, {self.crashes:.2%} crashes" if self.lost else ""
        load = f"load {self.load:.0%}, {self.workers} workers"
        return f"{self.limit:>7,} {unit}/min, {load}{rough}"


@dataclass
class Run:
    asked: int = 0
    admitted: int = 0
    waited: int = 0  # admissions that had to ask
    background: int = 0
    moments: list[float] = field(default_factory=list)
    amounts: list[int] = field(default_factory=list)

    def used(self, begin: float, end: float) -> int:
        a, b = bisect_left(self.moments, begin), bisect_right(self.moments, end)
        return sum(self.amounts[a:b])

    def worst(self) -> int:
        """The most in any 60 seconds."""
        most = inside = first = 0
        for place, at in enumerate(self.moments):
            inside += self.amounts[place]
            while self.moments[first] < at - 60.0:
                inside -= self.amounts[first]
                first += 1
            most = max(most, inside)
        return most


class Fleet:
    def __init__(self, scene: Scene, seed: int) -> None:
        self._scene = scene
        self._chance = random.Random(seed)
        self._tape = Tape()
        self._book = Book(self._tape)
        self._lossy = Lossy(self._book, scene.lost, self._chance)
        kind = "tpm" if scene.kind == "tpm" else "rpm"
        self._account = Account(f"key:sim:{kind}", "key", "sim", kind, scene.limit)
        self._born = 0
        self._workers: list[Slices] = []
        self._ticks: list[float] = []
        self._ends: list[tuple[float, int, Reservation, int]] = []
        self.run = Run()
        for _ in range(scene.workers):
            self._join()

    def _join(self) -> None:
        self._born += 1
        clock = Tape(self._tape, self._chance.uniform(-1e4, 1e4))
        self._workers.append(Slices(self._lossy, f"w{self._born}", clock))
        self._ticks.append(self._tape.at + self._chance.uniform(0, TICK))

    def go(self) -> Run:
        scene, chance, tape = self._scene, self._chance, self._tape
        size = 500 if scene.kind == "tpm" else 1
        rate = scene.load * scene.limit / 60.0 / size
        end = tape.at + 60.0 * scene.minutes
        while tape.at < end:
            upcoming = tape.at + chance.expovariate(rate)
            self._background(upcoming)
            tape.at = upcoming
            which = chance.randrange(len(self._workers))
            if scene.crashes and chance.random() < scene.crashes:
                self._crash(which)
                continue
            self._request(which, size)
        return self.run

    def _background(self, until: float) -> None:
        while (soonest := min(self._ticks)) <= until:
            which = self._ticks.index(soonest)
            self._tape.at = max(self._tape.at, soonest)
            before = self._lossy.calls
            with suppress(Overloaded):
                now(self._workers[which].tick())
            self.run.background += self._lossy.calls - before
            self._ticks[which] = soonest + TICK
        while self._ends and self._ends[0][0] <= until:
            _, which, held, used = self._ends.pop(0)
            if which < len(self._workers):
                self._workers[which].settle(held, [self._account], used)

    def _request(self, which: int, size: int) -> None:
        run, worker = self.run, self._workers[which]
        used = round(size * self._chance.uniform(0.6, 1.0)) if size > 1 else 1
        run.asked += 1
        before = self._lossy.calls
        demands = [Demand(self._account, size)]
        try:
            taken = worker.try_reserve("r", demands) or now(worker.reserve("r", demands, ()))
        except Overloaded:
            return
        if isinstance(taken, Reservation):
            run.admitted += 1
            run.waited += self._lossy.calls > before
            run.moments.append(self._tape.at)
            run.amounts.append(used)
            self._ends.append((self._tape.at + 0.5, which, taken, used))

    def _crash(self, which: int) -> None:
        """Killed, and another one comes."""
        self._ends = [end for end in self._ends if end[1] != which]
        self._join()
        self._workers[which], self._ticks[which] = self._workers.pop(), self._ticks.pop()


def fleets(seeds: int) -> None:
    scenes = [
        Scene(60, 0.8, 4),
        Scene(600, 0.8, 4),
        Scene(6_000, 0.8, 4),
        Scene(6_000, 0.8, 1),
        Scene(6_000, 2.0, 4),
        Scene(60_000, 0.9, 4, minutes=2),
        Scene(600_000, 0.9, 4, kind="tpm"),
        Scene(6_000, 0.9, 4, lost=0.05, crashes=0.0005),
        Scene(6_000, 2.0, 8, lost=0.05, crashes=0.0005),
    ]
    print(
        "fleet                                            asks/admission  background/s  used  worst"
    )
    for scene in scenes:
        runs = [Fleet(scene, seed).go() for seed in range(seeds)]
        admitted = sum(run.admitted for run in runs)
        asks = sum(run.waited for run in runs) / max(1, admitted)
        background = sum(run.background for run in runs) / (seeds * 60.0 * scene.minutes)
        last = 1000.0 + 60.0 * (scene.minutes - 1)
        used = statistics.mean(run.used(last, last + 60.0) for run in runs) / scene.limit
        worst = max(run.worst() for run in runs) / scene.limit
        verdict = "" if worst <= 1 else "  ABOVE THE LIMIT"
        print(f"{scene!s:55} {asks:7.2%} {background:11.1f} {used:8.1%} {worst:7.2%}{verdict}")


def main() -> None:
    wish = argparse.ArgumentParser(description=__doc__)
    wish.add_argument("--redis", help="URL of a server to ask as well")
    wish.add_argument("--calls", type=int, default=20_000)
    wish.add_argument("--seeds", type=int, default=3)
    chosen = wish.parse_args()
    decisions(chosen.redis, chosen.calls)
    fleets(chosen.seeds)


if __name__ == "__main__":
    main()
