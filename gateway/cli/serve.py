"""`gateway serve`: the process operators run, or a supervisor and its workers."""

import asyncio
import gc
import os
import platform
import secrets
import signal
import sqlite3
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import click
import uvloop
from click.shell_completion import CompletionItem

from gateway.app.house import House, Wishes
from gateway.app.source import Source
from gateway.cli import options, say
from gateway.cli.exits import UNAVAILABLE, USAGE, Stop
from gateway.clock import SystemClock
from gateway.config.lint import lint
from gateway.config.mistakes import ConfigError
from gateway.core.events import Event, Reloaded
from gateway.core.snapshot import MOST_WORKERS
from gateway.core.target import Secret
from gateway.server.crew import ORPHANED, Crew
from gateway.server.workers import Supervisor, Up
from gateway.telemetry.logs import RequestLog

GARBAGE = 50_000  # allocations before the youngest generation is looked at (the default is 700)


class Workers(click.ParamType[int | Literal["auto"]]):
    """A whole number, or auto."""

    name = "workers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["auto"]:
        if value == "auto":
            return "auto"
        if not str(value).isdecimal() or not 1 <= int(value) <= MOST_WORKERS:
            self.fail(f"a whole number from 1 to {MOST_WORKERS} is expected, or auto", param, ctx)
        return int(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem("auto", help="one for each core")]


@click.command(help="Run the gateway; SIGHUP reloads the file, SIGTERM drains.")
@options.config
@click.option("--listen", default="", metavar="HOST:PORT", help="The API; else server.listen.")
@click.option("--admin", default="", metavar="HOST:PORT", help="Else server.admin.")
@click.option(
    "--workers",
    default=None,
    metavar="N|auto",
    type=Workers(),
    help="Processes that share the API port; auto: one for each core. Else server.workers.",
)
@click.option("--loop", "loop_name", type=click.Choice(["uvloop", "asyncio"]), default="uvloop")
@click.option("-q", "--quiet", is_flag=True, help="No request lines.")
def command(
    *,
    config: Path,
    listen: str,
    admin: str,
    workers: int | Literal["auto"] | None,
    loop_name: str,
    quiet: bool,
) -> int:
    if not config.is_file():
        raise Stop(f"There is no configuration at {config}.", "gateway init    (or -c FILE)", 4)
    source = Source(os.environ, config)
    wishes = Wishes(Secret(_admin_key()))

    def make() -> House:
        house = House(source, SystemClock(), wishes)
        _override(house, listen, admin)
        return house

    try:
        house = make()
    except ConfigError as error:
        raise Stop(str(error).rstrip(), f"gateway check {config}", USAGE) from None
    for finding in lint(house.loaded):
        say.note(str(finding))
    count = processes(workers or house.snapshot.server.workers)
    run = uvloop.run if loop_name == "uvloop" else asyncio.run
    try:
        if count > 1:
            latest = Latest(house, make)
            crew = _supervise(latest, count, loop_name)
            if isinstance(crew, int):
                return crew
            house = latest.house
            house.wishes = replace(house.wishes, crew=crew)
        run(_fit(_serve(house, loop_name, quiet=quiet)))
    except asyncio.CancelledError:
        say.note("Ended before it was up.")
    except OSError as error:
        why = error.strerror or str(error)
        why = f"{error.filename}: {why}" if error.filename else why
        raise Stop(f"The gateway cannot start: {why}", "gateway doctor", UNAVAILABLE) from None
    except sqlite3.Error as error:
        raise Stop(
            f"The state in {house.snapshot.server.state_dir} cannot be opened:"
            f" {type(error).__name__}.",
            "gateway doctor",
            UNAVAILABLE,
        ) from None
    return 0


@dataclass(slots=True)
class Latest:
    """The last configuration without mistakes: what a worker begins with."""

    house: House
    make: Callable[[], House]

    def renew(self) -> None:
        with suppress(ConfigError, Stop):
            house, server = self.make(), self.house.snapshot.server
            house.snapshot = replace(house.snapshot, server=server)
            if not house.exposed(house.snapshot):
                self.house = house


def processes(workers: int | Literal["auto"]) -> int:
    """How many workers that is here."""
    if workers != "auto":
        return workers
    affine = getattr(os, "sched_getaffinity", None)
    return len(affine(0)) if affine else os.cpu_count() or 1


def _supervise(latest: Latest, count: int, loop_name: str) -> Crew | int:
    """In the supervisor the exit code, in each worker its share."""
    house = latest.house

    def greet(up: Up) -> None:
        first = up.workers[0]
        recovered = sum(told["recovered"] for told in up.workers)
        pids = ", ".join(str(told["pid"]) for told in up.workers)
        _greet(
            latest.house,
            _Started(up.api_port, up.admin_port, first["keyless"], recovered, pids),
            loop_name,
        )

    gc.collect()
    gc.freeze()  # or the first collection of each worker would copy every page
    supervisor = Supervisor(
        count, house.snapshot.server, house.clock, latest.renew, greet, say.note
    )
    return supervisor.run()


def _admin_key() -> str:
    """The operator's key, or one that lives as long as the process: never keyless."""
    return os.environ.get("GATEWAY_ADMIN_KEY") or secrets.token_urlsafe(32)


def _override(house: House, listen: str, admin: str) -> None:
    settings = house.snapshot.server
    for option, text in (("--listen", listen), ("--admin", admin)):
        if not text:
            continue
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise Stop(f"{option} needs HOST:PORT.", f"{option} 127.0.0.1:8080", USAGE)
        host = host.strip("[]")
        if option == "--listen":
            if house.snapshot.keyless and host not in {"127.0.0.1", "::1", "localhost"}:
                raise Stop(
                    f"{house.source.path} has no keys:, so only a loopback address is served.",
                    "add keys: to the file (gateway keys create NAME shows how)",
                    USAGE,
                )
            settings = replace(settings, host=host, port=int(port))
        else:
            settings = replace(settings, admin_host=host, admin_port=int(port))
    house.snapshot = replace(house.snapshot, server=settings)


async def _fit(serving: Coroutine[Any, Any, None]) -> None:
    """Raises Stop where what the file names is there and must not be used."""
    try:
        await serving
    except ConfigError as error:
        raise Stop(str(error).rstrip(), "gateway doctor", USAGE) from None


async def _serve(house: House, loop_name: str, *, quiet: bool) -> None:
    form = "none" if quiet else house.snapshot.log_format
    crew = house.wishes.crew
    log = RequestLog(
        house.clock, form, sys.stdout, lambda: house.snapshot.config, shared=crew is not None
    )
    with log:
        ears = (log,) if crew is None else (log, _Told(crew))
        house.wishes = replace(house.wishes, listeners=ears)
        signals = _Signals(house)
        if crew is not None:
            crew.follow(signals.obey)
        async with house.running():
            signals.up = True
            keyless, recovered = house.state.keys.keyless, house.state.recovered
            if crew is None:
                servers = house.servers
                started = _Started(servers.api_port, servers.admin_port, keyless, recovered)
                _greet(house, started, loop_name)
            else:
                crew.tell("up", pid=os.getpid(), keyless=keyless, recovered=recovered)
            gc.collect()
            gc.freeze()
            gc.set_threshold(GARBAGE, 50, 50)
            await house.over.wait()


class _Signals:
    """SIGTERM and SIGINT drain, SIGHUP reloads; before the doors are open they end, and nothing."""

    def __init__(self, house: House) -> None:
        self.up = False
        self._house = house
        self._starting = asyncio.current_task()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._end)
        loop.add_signal_handler(signal.SIGINT, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def obey(self, order: str) -> None:
        """The supervisor's word. A signal may have come to us as well: to drain is said once."""
        if not self.up:
            if order != "reload":
                self._end()
        elif order == "reload":
            self._reload()
        elif order == "hurry" or not self._house.readiness.draining:
            self._house.begin_drain(0.0 if order == ORPHANED else None)

    def _end(self) -> None:
        if self.up:
            self._house.begin_drain()
        elif self._starting is not None:
            self._starting.cancel()

    def _reload(self) -> None:
        if self.up:
            self._house.begin_reload()


@dataclass(frozen=True, slots=True)
class _Told:
    """A `Listener` that tells the supervisor of a new configuration: it starts others with it."""

    crew: Crew

    def heard(self, event: Event) -> None:
        if isinstance(event, Reloaded) and not event.problem:
            self.crew.tell("reloaded")


@dataclass(frozen=True, slots=True)
class _Started:
    """What is only known once doors are open. `pids` of workers, "" if there is one process."""

    api_port: int
    admin_port: int
    keyless: bool
    recovered: int
    pids: str = ""


def _greet(house: House, started: _Started, loop_name: str) -> None:
    server, snapshot = house.snapshot.server, house.snapshot
    api = f"http://{_shown(server.host)}:{started.api_port}/v1"
    admin = f"http://{_shown(server.admin_host)}:{started.admin_port}"
    keyless = started.keyless
    who = "no keys configured: loopback only, any key works" if keyless else "keys required"
    say.note(
        f"gateway {version('llm-gateway')} · Python {platform.python_version()} · {loop_name}"
        f" · config: {house.source.path or house.source.name} ({snapshot.config})"
    )
    say.note("")
    say.note(f"  API        {api:<32} {who}")
    say.note(f"  admin      {admin:<32} {_admin_words()}")
    for chain in {chain.name: chain for chain in snapshot.chains.values()}.values():
        say.note(f"  chain      {chain.name} = {' → '.join(leaf.name for leaf in chain.leaves())}")
    if started.pids:
        say.note(f"  workers    {started.pids} share the API; {os.getpid()} watches over them")
    if started.recovered:
        say.note(f"  recovered  {started.recovered} attempts of a lost worker, as estimated")
    say.note("")


def _admin_words() -> str:
    if os.environ.get("GATEWAY_ADMIN_KEY"):
        return "opens with GATEWAY_ADMIN_KEY"
    return "closed: set GATEWAY_ADMIN_KEY to use status, why and /metrics"


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
