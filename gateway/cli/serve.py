"""`gateway serve`: the process operators run."""

import asyncio
import gc
import os
import platform
import secrets
import signal
import sqlite3
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import click
import uvloop

from gateway.app.house import House, Wishes
from gateway.app.source import Source
from gateway.cli import options, say
from gateway.cli.exits import UNAVAILABLE, USAGE, Stop
from gateway.clock import SystemClock
from gateway.config.lint import lint
from gateway.config.mistakes import ConfigError
from gateway.core.target import Secret
from gateway.telemetry.logs import RequestLog

GARBAGE = 50_000  # allocations before the youngest generation is looked at (the default is 700)


@click.command(help="Run the gateway; SIGHUP reloads the file, SIGTERM drains.")
@options.config
@click.option("--listen", default="", metavar="HOST:PORT", help="The API; else server.listen.")
@click.option("--admin", default="", metavar="HOST:PORT", help="Else server.admin.")
@click.option("--loop", "loop_name", type=click.Choice(["uvloop", "asyncio"]), default="uvloop")
@click.option("-q", "--quiet", is_flag=True, help="No request lines.")
def command(*, config: Path, listen: str, admin: str, loop_name: str, quiet: bool) -> None:
    if not config.is_file():
        raise Stop(f"There is no configuration at {config}.", "gateway init    (or -c FILE)", 4)
    source = Source(os.environ, config)
    try:
        house = House(source, SystemClock(), Wishes(Secret(_admin_key())))
    except ConfigError as error:
        raise Stop(str(error).rstrip(), f"gateway check {config}", USAGE) from None
    _override(house, listen, admin)
    for finding in lint(house.loaded):
        say.note(str(finding))
    run = uvloop.run if loop_name == "uvloop" else asyncio.run
    try:
        run(_serve(house, loop_name, quiet=quiet))
    except asyncio.CancelledError:
        say.note("Ended before it was up.")
    except OSError as error:
        why = str(error) if not error.filename else f"{error.filename}: {error.strerror}"
        raise Stop(f"The gateway cannot start: {why}", "gateway doctor", UNAVAILABLE) from None
    except sqlite3.Error as error:
        raise Stop(
            f"The state in {house.snapshot.server.state_dir} cannot be opened:"
            f" {type(error).__name__}.",
            "gateway doctor",
            UNAVAILABLE,
        ) from None


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


async def _serve(house: House, loop_name: str, *, quiet: bool) -> None:
    form = "none" if quiet else house.snapshot.log_format
    log = RequestLog(house.clock, form, sys.stdout, lambda: house.snapshot.config)
    with log:
        house.wishes = replace(house.wishes, listeners=(log,))
        signals = _Signals(house)
        async with house.running():
            signals.up = True
            _greet(house, loop_name)
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

    def _end(self) -> None:
        if self.up:
            self._house.begin_drain()
        elif self._starting is not None:
            self._starting.cancel()

    def _reload(self) -> None:
        if self.up:
            self._house.begin_reload()


def _greet(house: House, loop_name: str) -> None:
    server, snapshot = house.snapshot.server, house.snapshot
    api = f"http://{_shown(server.host)}:{house.servers.api_port}/v1"
    admin = f"http://{_shown(server.admin_host)}:{house.servers.admin_port}"
    keyless = house.state.keys.keyless
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
    if house.state.recovered:
        say.note(f"  recovered  {house.state.recovered} attempts of a lost worker, as estimated")
    say.note("")


def _admin_words() -> str:
    if os.environ.get("GATEWAY_ADMIN_KEY"):
        return "opens with GATEWAY_ADMIN_KEY"
    return "closed: set GATEWAY_ADMIN_KEY to use status, why and /metrics"


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
