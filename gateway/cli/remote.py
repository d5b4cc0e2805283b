"""A running gateway's admin API, for the commands that only read it."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.cli.exits import UNAVAILABLE, Stop
from gateway.cli.local import at_hand
from gateway.cli.options import DEFAULT_ADMIN
from gateway.client.http import GatewayClient
from gateway.clock import SystemClock

PATIENCE = 15.0  # seconds: an admin answer is short


def admin_url(said: str, config: Path) -> str:
    """What was said, else the admin listener of the configuration at hand, else the default."""
    if said:
        return said.rstrip("/")
    snapshot = at_hand(config)
    if snapshot is None:
        return DEFAULT_ADMIN
    return origin(snapshot.server.admin_host, snapshot.server.admin_port)


def origin(host: str, port: int) -> str:
    """Where a listener is reached from this machine."""
    if host in {"0.0.0.0", ""}:  # noqa: S104 - a listener's word for "every address"
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def read(url: str, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
    """One object of the admin API.

    Raises:
        gateway.errors.GatewayError: what it answered instead.
    """
    return asyncio.run(_read(url, path, query))


async def _read(url: str, path: str, query: Mapping[str, str] | None) -> dict[str, Any]:
    key = os.environ.get("GATEWAY_ADMIN_KEY", "")
    async with GatewayClient(url, key, SystemClock(), patience=PATIENCE) as client:
        body = (await client.get(path, query)).body
    if not isinstance(body, dict):
        raise Stop(f"{url}{path} is no admin API of ours.", "--admin-url", UNAVAILABLE)
    return body
