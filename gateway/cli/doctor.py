"""`gateway doctor`: what somebody who helps would ask first; nothing secret in it."""

import asyncio
import os
import platform
import resource
import socket
import sys
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import click

from gateway.app.state import StoreAway, StoreUnfit, examine
from gateway.cli import options, say, screen
from gateway.cli.exits import FAILED
from gateway.cli.version import installed
from gateway.clock import SystemClock
from gateway.config.load import load
from gateway.config.mistakes import ConfigError
from gateway.core.snapshot import Snapshot
from gateway.core.target import Secret

LIBRARIES = ("aiohttp", "click", "msgspec", "orjson", "pydantic", "pyyaml", "rich", "uvloop")
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "glusterfs"}
FEW_FILES = 4096
PATIENCE = 3.0  # seconds for a name and a connection
RELEASED = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
VARIABLES = ("GATEWAY_CONFIG", "GATEWAY_URL", "GATEWAY_API_KEY", "GATEWAY_ADMIN_KEY", "NO_COLOR")

Verdict = Literal["ok", "warning", "error", "info"]
MARKS: dict[Verdict, tuple[str, str]] = {
    "ok": ("✓", screen.GOOD),
    "warning": ("!", screen.WARN),
    "error": ("✗", screen.BAD),
    "info": ("·", screen.FAINT),
}


class Finding(NamedTuple):
    what: str
    verdict: Verdict
    detail: str


@click.command(help="Look at this machine and print a report to paste. No secret is in it.")
@options.config
@options.as_json
@click.option("--no-network", is_flag=True, help="Do not look for the providers.")
@click.pass_context
def command(ctx: click.Context, *, config: Path, as_json: bool, no_network: bool) -> None:
    findings = [*_machine()]
    snapshot, said = _configuration(ctx, config)
    findings.append(said)
    findings += _state(Path(snapshot.server.state_dir if snapshot else "./state"))
    if snapshot is not None and snapshot.server.redis is not None and not no_network:
        findings.append(asyncio.run(_redis(snapshot.server.redis)))
    if snapshot is not None and not no_network:
        findings += asyncio.run(_providers(snapshot))
    worst_is_error = any(finding.verdict == "error" for finding in findings)
    if as_json:
        say.as_json({"ok": not worst_is_error, "findings": [f._asdict() for f in findings]})
    else:
        screen.show(screen.table(("", "", ""), (_row(finding) for finding in findings)))
    if worst_is_error:
        ctx.exit(FAILED)


def _row(finding: Finding) -> tuple[Any, Any, Any]:
    mark, style = MARKS[finding.verdict]
    return screen.words((mark, style)), finding.what, finding.detail


def _machine() -> Iterable[Finding]:
    yield Finding("gateway", "info", installed())
    version = platform.python_version()
    yield Finding("python", "ok" if sys.version_info >= (3, 11) else "error", version)
    yield Finding("system", "info", f"{platform.platform()}, {os.cpu_count()} cores")
    yield Finding("libraries", "info", ", ".join(_library(name) for name in LIBRARIES))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= soft < FEW_FILES
    advice = f"; each request needs two: ulimit -n {min(hard, 65_536)}" if few else ""
    yield Finding("open files", "warning" if few else "ok", f"{soft} of {hard}{advice}")
    now = SystemClock().now()
    told = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    yield Finding("clock", "ok" if now > RELEASED else "error", told)
    present = [name for name in VARIABLES if os.environ.get(name)]
    yield Finding("environment", "info", ", ".join(present) + " set" if present else "none set")


def _library(name: str) -> str:
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return f"{name} missing"


def _configuration(ctx: click.Context, path: Path) -> tuple[Snapshot | None, Finding]:
    given = ctx.get_parameter_source("config") is not click.core.ParameterSource.DEFAULT
    if not path.is_file():
        detail = f"{path} is not there; gateway init writes one"
        return None, Finding("configuration", "error" if given else "info", detail)
    try:
        snapshot = load(path, os.environ).snapshot
    except ConfigError as error:
        lines = str(error).strip().splitlines()
        detail = f"{len(lines)} lines of mistakes: gateway check {path}"
        return None, Finding("configuration", "error", detail)
    targets = {target.name for target in snapshot.targets.values()}
    detail = f"{path} ({snapshot.config}): {len(snapshot.leaves())} chains, {len(targets)} targets"
    return snapshot, Finding("configuration", "ok", detail)


def _state(directory: Path) -> Iterable[Finding]:
    there = directory.resolve()
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):  # a file in the way fails here too
            pass
    except OSError as error:
        detail = f"{directory} cannot be written: {error.strerror}"
        yield Finding("state", "error", detail)
    else:
        note = "" if directory.exists() else " (made at the first start)"
        yield Finding("state", "ok", f"{directory} is writable{note}")
    kind = file_system(there, _mounts())
    if kind in NETWORK:
        yield Finding("file system", "warning", f"{kind}: SQLite needs a local disk")
    else:
        yield Finding("file system", "ok" if kind else "info", kind or "unknown")


async def _redis(url: Secret) -> Finding:
    try:
        return Finding("redis", "ok", await examine(url))
    except StoreUnfit as error:
        return Finding("redis", "error", str(error))
    except StoreAway as error:
        return Finding("redis", "error", f"no answer: {error}; see state.redis")


def _mounts() -> str:
    try:
        return Path("/proc/mounts").read_text(errors="replace")
    except OSError:
        return ""


def file_system(path: Path, mounts: str) -> str:
    """The type of the mount that holds `path`: of the longest mount point above it the last."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        if (path == point or point in path.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


async def _providers(snapshot: Snapshot) -> list[Finding]:
    """Name and port of each provider once, all at the same time; no request is sent."""
    places: dict[tuple[str, int], str] = {}
    for target in snapshot.targets.values():
        parts = urlsplit(target.base_url)
        if target.kind != "sim" and parts.hostname:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            places.setdefault((parts.hostname, port), target.provider)
    return await asyncio.gather(
        *(_reach(provider, host, port) for (host, port), provider in places.items())
    )


async def _reach(provider: str, host: str, port: int) -> Finding:
    clock = SystemClock()
    began = clock.monotonic()
    what = f"provider {provider}"
    try:
        async with asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
    except socket.gaierror:
        return Finding(what, "error", f"{host}: the name is not known")
    except (OSError, TimeoutError):
        return Finding(what, "error", f"{host}:{port}: no connection within {PATIENCE:.0f} s")
    ms = (clock.monotonic() - began) * 1000
    return Finding(what, "ok", f"{host}:{port} in {screen.milliseconds(ms)}")
