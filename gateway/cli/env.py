"""`gateway env`: the lines that point a client at the gateway; they name keys, never show them."""

import shlex
from pathlib import Path

import click

from gateway.cli import options, say
from gateway.cli.exits import USAGE, Stop
from gateway.cli.local import at_hand
from gateway.cli.remote import origin

API_VERSION = "2024-10-21"  # Azure's; ours ignores it
KEY = '"${GATEWAY_API_KEY:-local}"'  # without `keys:` any key works
LATER = {
    "anthropic": "/v1/messages",
    "claude": "/v1/messages",
    "codex": "/v1/responses",
    "agents": "the agent engine",
}


@click.command(help="Print export lines for a client: openai or azure.")
@click.argument("client", default="openai")
@options.api
@options.config
def command(*, client: str, url: str, config: Path) -> None:
    """Run as: eval "$(gateway env openai)"."""
    for line in lines(client, api_url(url, config)):
        say.data(line)


def api_url(said: str, config: Path) -> str:
    """What was said, else the listener of the configuration at hand, else the default."""
    if said:
        return said.rstrip("/")
    snapshot = at_hand(config)
    if snapshot is None:
        return options.DEFAULT_URL
    return origin(snapshot.server.host, snapshot.server.port) + "/v1"


def lines(client: str, url: str) -> list[str]:
    """The export lines of a client.

    Raises:
        Stop: a client we do not serve, naming what it would need.
    """
    if client == "openai":
        return [f"export OPENAI_BASE_URL={shlex.quote(url)}", f"export OPENAI_API_KEY={KEY}"]
    if client == "azure":
        root = url.removesuffix("/v1")
        return [
            f"export AZURE_OPENAI_ENDPOINT={shlex.quote(root)}",
            f"export AZURE_OPENAI_API_KEY={KEY}",
            f"export OPENAI_API_VERSION={API_VERSION}",
        ]
    if client in LATER:
        what = f"{client} needs {LATER[client]}, which this version does not serve."
    else:
        what = f"There are no lines for {client!r}."
    raise Stop(what, "gateway env openai    (or: azure)", USAGE)
