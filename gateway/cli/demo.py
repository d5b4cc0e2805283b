"""`gateway demo`: a chain falls back before your eyes; no key, nothing leaves this machine.

The providers are real HTTP servers on loopback and the gateway is the real one. Phases are counted
in requests, so that a slow machine tells the same story.
"""

import asyncio
import os
import platform
import secrets
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import uvloop

from chaos import faults
from chaos.answers import Manner
from chaos.upstream import Upstream
from gateway.app.house import House, Wishes
from gateway.app.source import Source
from gateway.cli import say
from gateway.cli.exits import INTERNAL, Stop
from gateway.client.http import GatewayClient
from gateway.clock import Clock, SystemClock
from gateway.core.events import BreakerMoved, Event, RequestEnded
from gateway.core.story import story
from gateway.core.target import Secret
from gateway.core.usage import Cost
from gateway.errors import GatewayError
from gateway.state.embedded.reports import total

PACE = 0.06  # seconds between two requests
WIDTH = 8  # cells of a bar
FULL = 180.0  # milliseconds a whole bar stands for, unless a request takes longer
WELL = Manner(latency=0.04, ttft=0.03, gap=0.001)
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GROQ_API_KEY", "OLLAMA_HOST")


@dataclass(frozen=True, slots=True)
class Phase:
    """What the providers do from here on; `ready` is waited for before its first request."""

    title: str
    faults: Mapping[str, faults.Fault | None]
    settle: str = ""  # wait until this target may be asked again


PHASES = (
    Phase("", {}),
    Phase("alpha answers 429, Retry-After 3", {"alpha": faults.rate_limited(3)}),
    Phase("alpha answers 503", {"alpha": faults.overloaded()}, settle="alpha"),
    Phase("bravo accepts and says nothing", {"bravo": faults.silence()}),
    Phase("alpha and bravo are well again", {"alpha": None, "bravo": None}, settle="alpha"),
)


@dataclass(slots=True)
class Watcher:
    """Listens like any part of the gateway, and keeps what the summary needs."""

    clock: Clock
    tell: Callable[[str], None]
    stories: list[Mapping[str, Any]] = field(default_factory=list)
    opened: int = 0
    closed: int = 0
    told: set[str] = field(default_factory=set)

    def heard(self, event: Event) -> None:
        if isinstance(event, RequestEnded):
            told = story(event.exchange, event.now, "")
            self.stories.append(told)
            path = _path_words(told)
            if path not in self.told:
                self.told.add(path)
                self.tell(_line(told, path))
        elif isinstance(event, BreakerMoved) and event.to != "half-open":
            self._breaker(event)

    def _breaker(self, event: BreakerMoved) -> None:
        self.opened += event.to == "open"
        self.closed += event.to == "closed"
        after = ""
        if event.until is not None:
            after = f", next probe in {event.until - self.clock.monotonic():.0f} s"
        self.tell(f"breaker {event.target}: {event.was} → {event.to} ({event.detail}{after})")


@click.command(help="Watch a chain fall back; no key, nothing leaves this machine.")
@click.option("--requests", default=60, show_default=True, type=click.IntRange(20, 10_000))
@click.option("--seed", default=7, show_default=True, help="What the questions are drawn from.")
@click.option("--speed", default=1.0, show_default=True, type=click.FloatRange(0.1, 20.0))
@click.option("--json", "as_json", is_flag=True, help="Only the figures, as one JSON object.")
@click.option("--once", is_flag=True, help="End after the summary, also on a terminal.")
def command(*, requests: int, seed: int, speed: float, as_json: bool, once: bool) -> None:
    stay = sys.stdout.isatty() and not once and not as_json
    with tempfile.TemporaryDirectory(prefix="gateway-demo-") as state:
        text = files("gateway.cli").joinpath("demo.yaml").read_text()
        source = Source({}, text=text.replace("dir: ./state", f"dir: {state}"))
        wishes = Wishes(Secret(secrets.token_urlsafe(32)), next_free=True)
        house = House(source, SystemClock(), wishes)
        show = Show(house, Path(state), requests, seed, speed, quiet=as_json)
        try:
            figures = uvloop.run(show.run(stay=stay))
        except KeyboardInterrupt:
            return
    if as_json:
        say.as_json(figures)
    if problems := figures["problems"]:
        raise Stop("The demo did not go as promised: " + "; ".join(problems), code=INTERNAL)


@dataclass(slots=True)
class Show:
    house: House
    state: Path
    requests: int
    seed: int
    speed: float
    quiet: bool
    costs: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    lost: int = 0

    def tell(self, text: str = "") -> None:
        """A line of the transcript, with the time."""
        if not self.quiet:
            say.data(f"  {datetime.now(UTC).astimezone():%H:%M:%S}  {text}")

    def say(self, text: str = "") -> None:
        if not self.quiet:
            say.data(text)

    async def run(self, *, stay: bool) -> dict[str, Any]:
        watcher = Watcher(self.house.clock, self.tell)
        self.house.wishes = replace(self.house.wishes, listeners=(watcher,))
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.house.running())
            upstream = self.house.simulator
            if upstream is None:
                raise Stop("The built-in configuration has no simulated provider.")
            upstream.manner("*", WELL)
            for name in ("alpha", "bravo", "charlie"):
                upstream.manner(name, WELL)
            self._greet()
            base = f"http://127.0.0.1:{self.house.servers.api_port}/v1"
            client = await stack.enter_async_context(GatewayClient(base, "", self.house.clock))
            await self._play(upstream, client, watcher)
            while not await self.house.state.ledger.ship():
                await self.house.clock.sleep(0.05)
            figures = self._figures(watcher)
            self._summary(figures, base)
            if stay:
                await self._serve_on(client)
        return figures

    async def _play(self, upstream: Upstream, client: GatewayClient, watcher: Watcher) -> None:
        each = self.requests // len(PHASES)
        for number, phase in enumerate(PHASES):
            if phase.settle:
                await self._rested(phase.settle)
            for name, fault in phase.faults.items():
                upstream.set(name, fault)
            if phase.title:
                self.tell(f"— {phase.title} —")
            watcher.told.clear()
            last = number == len(PHASES) - 1
            count = self.requests - each * number if last else each
            for place in range(count):
                await self._ask(client, number * each + place)
                await self.house.clock.sleep(PACE / self.speed)

    async def _rested(self, target: str) -> None:
        """Until nothing keeps the target from being asked; at most as long as a breaker rests."""
        clock = self.house.clock
        standing = self.house.state.health.standing(target)
        until = max(standing.open_until, standing.throttled_until)
        await clock.sleep(max(0.0, until - clock.monotonic()))

    async def _ask(self, client: GatewayClient, number: int) -> None:
        body = {
            "model": "default",
            "messages": [{"role": "user", "content": f"Question {self.seed}.{number}, please."}],
        }
        began = self.house.clock.monotonic()
        try:
            if number % 2:
                async with client.stream(body) as stream:
                    async for _ in stream.chunks():
                        pass
                    self.costs.append(str(stream.note.get("cost_usd", "unknown")))
            else:
                answer = await client.chat(body)
                self.costs.append(answer.headers.get("x-gateway-cost-usd", "unknown"))
        except GatewayError:
            self.lost += 1
        self.times.append((self.house.clock.monotonic() - began) * 1000)

    def _greet(self) -> None:
        self.say(
            f"gateway {version('llm-gateway')} · Python {platform.python_version()} · uvloop"
            " · config: built in (print it: gateway config show --demo)"
        )
        self.say()
        url = f"http://127.0.0.1:{self.house.servers.api_port}/v1"
        self.say(f"  API        {url:<40} no keys configured: loopback only, any key works")
        self.say(
            f"  providers  {'sim/alpha  sim/bravo  sim/charlie':<40} simulated on loopback:"
            " nothing leaves this machine"
        )
        self.say(
            f"  chain      {'default = alpha → bravo → charlie':<40} at most 4 attempts,"
            " breaker opens after 5 failures in a row"
        )
        self.say()

    def _figures(self, watcher: Watcher) -> dict[str, Any]:
        stories = watcher.stories
        first = "alpha"
        saved = [s for s in stories if s["status"] == 200 and s.get("target") != first]
        switched = [
            s for s in stories
            if s["stream"] and s["status"] == 200 and len(s["attempts"]) > 1
        ]  # fmt: skip
        printed = sum((Decimal(c) for c in self.costs if c != "unknown"), Decimal(0))
        booked = Cost(total(self.state, 0.0).nano_usd).dollars()
        answered = sum(1 for s in stories if s["status"] == 200)
        figures: dict[str, Any] = {
            "requests": self.requests,
            "answered": answered,
            "lost": self.lost,
            "saved_by_fallback": len(saved),
            "streams_switched_before_first_token": len(switched),
            "breakers_opened": watcher.opened,
            "breakers_closed": watcher.closed,
            "p50_ms": round(statistics.median(self.times)),
            "p95_ms": round(statistics.quantiles(self.times, n=20)[18]),
            "cost_usd": f"{printed.normalize():f}",
            "ledger_usd": booked,
            "targets": {name: _target(name, stories) for name in ("alpha", "bravo", "charlie")},
        }
        figures["problems"] = _problems(figures)
        for breaker in self.house.state.health.breakers():
            figures["targets"][breaker.target]["breaker"] = breaker.state
        return figures

    def _summary(self, figures: Mapping[str, Any], base: str) -> None:
        self.say()
        self.say(
            f"  {figures['requests']} requests · {figures['answered']} answered"
            f" · {figures['lost']} lost · {figures['saved_by_fallback']} saved by fallback"
            f" · p50 {figures['p50_ms']} ms p95 {figures['p95_ms']} ms"
            f" · ${figures['cost_usd']} (simulated prices; the ledger says the same)"
        )
        for row in _table(figures["targets"]):
            self.say(f"  {row}")
        self.say()
        self.say(f"  Try it:  curl {base}/chat/completions -H 'Content-Type: application/json' \\")
        self.say(
            """             -d '{"model":"default","messages":[{"role":"user","content":"hi"}]}'"""
        )
        found = [name for name in KEYS if os.environ.get(name)]
        hint = f" (found: {', '.join(found)})" if found else ""
        self.say(f"  Next:    gateway init    write gateway.yaml for your own providers{hint}")
        self.say("           gateway chat    talk to the chain and watch each attempt")

    async def _serve_on(self, client: GatewayClient) -> None:
        self.say("           Ctrl-C          stop")
        await asyncio.Event().wait()


def _problems(figures: Mapping[str, Any]) -> list[str]:
    """What the demo promises, and was not so this time."""
    promised = (
        (figures["answered"] == figures["requests"], "not every request was answered"),
        (figures["lost"] == 0, "a request was lost"),
        (figures["streams_switched_before_first_token"] > 0, "no stream fell back"),
        (figures["breakers_opened"] > 0, "no breaker opened"),
        (figures["breakers_closed"] > 0, "no breaker closed"),
        (Decimal(figures["ledger_usd"]) == Decimal(figures["cost_usd"]), "the ledger differs"),
    )
    return [problem for kept, problem in promised if not kept]


def _target(name: str, stories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    skipped = 0
    for told in stories:
        outcomes.update(a["outcome"] for a in told["attempts"] if a["target"] == name)
        skipped += any(s["target"] == name for s in told["skipped"])
    return {
        "share": round(outcomes["ok"] / max(1, len(stories)), 4),
        "outcomes": dict(outcomes),
        "skipped": skipped,
    }


def _table(targets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    causes = [
        cause
        for cause in ("rate_limited", "overloaded", "first_token", "timeout")
        if any(cause in told["outcomes"] for told in targets.values())
    ]
    heads = ["chain", "target", "share", "ok", *causes, "skipped", "breaker"]
    rows = [heads]
    for number, (name, told) in enumerate(targets.items()):
        counts = [str(told["outcomes"].get(cause, 0)) for cause in ("ok", *causes)]
        share = f"{told['share'] * 100:.0f} %"
        rows.append(
            ["default" if number == 0 else "", name, share, *counts, str(told["skipped"]),
             told["breaker"]]
        )  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    left = {0, 1, len(heads) - 1}
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _line(told: Mapping[str, Any], path: str) -> str:
    ms = told["ms"]
    return f"chat  {told['chain']}  {told['status']}  {ms:>4} ms  {_bar(told)}  {path}"


def _bar(told: Mapping[str, Any]) -> str:
    """▒ failed attempts, █ the one that answered, to scale."""
    whole = max(FULL, float(told["ms"]))
    cells = ""
    for attempt in told["attempts"]:
        mark = "█" if attempt["outcome"] == "ok" else "▒"
        cells += mark * max(1, round(attempt["ms"] / whole * WIDTH))
    return cells[:WIDTH].ljust(WIDTH, "░")


def _path_words(told: Mapping[str, Any]) -> str:
    steps = []
    for attempt in told["attempts"]:
        step = f"{attempt['target']} {attempt['outcome']}"
        if attempt["outcome"] in {"first_token", "timeout"}:
            step += f" after {round(attempt['ms'], -2)} ms"
        steps.append(step)
    words = " → ".join(steps)
    why = {"breaker_open": "breaker open", "throttled": "rate limited"}
    skips = ", ".join(
        f"{s['target']} skipped: {s['detail'] or why.get(s['reason'], s['reason'])}"
        for s in told["skipped"]
    )
    notes = [skips] if skips else []
    if told["stream"] and len(told["attempts"]) > 1 and told["status"] == 200:
        notes.append("stream, switched before the first token")
    return words + (f"   ({'; '.join(notes)})" if notes else "")
