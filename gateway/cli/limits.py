"""`gateway limits`: what is used and what is left of each limit, of a running gateway."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from gateway.cli import options, remote, say, screen
from gateway.core.usage import Cost

HEADERS = ("scope", "name", "limit", "used", "of", "remaining", "whole again in")
NUMBERS = ("used", "of", "remaining")
MOST = "10000"


@click.command(help="Show what is used and left of every limit, or of a key and its team.")
@click.argument("key", required=False)
@options.admin
@options.config
@options.as_json
def command(*, key: str | None, admin_url: str, config: Path, as_json: bool) -> None:
    query = {"limit": MOST} | ({"key": key} if key else {})
    told = remote.read(remote.admin_url(admin_url, config), "/admin/limits", query)
    if as_json:
        say.as_json(told)
        return
    rows = [_row(limit) for limit in told.get("limits") or []]
    if rows:
        screen.show(screen.table(HEADERS, rows, right=NUMBERS))
    else:
        say.note(f"{key or 'This gateway'} has no limits.")
    if told.get("more"):
        say.note(f"There are more than {MOST} limits: ask for one key.")


def _row(limit: Mapping[str, Any]) -> Sequence[str | Text]:
    left, reset = int(limit.get("remaining", 0)), float(limit.get("reset_s", 0))
    spelled = _dollars if limit.get("kind") == "budget" else "{:,}".format
    return (
        str(limit.get("scope", "")),
        str(limit.get("name", "")),
        str(limit.get("kind", "")),
        spelled(int(limit.get("used", 0))),
        spelled(int(limit.get("limit", 0))),
        Text(spelled(left), style="" if left else screen.BAD),
        screen.milliseconds(reset * 1000) if reset else "",
    )


def _dollars(nano_usd: int) -> str:
    return screen.dollars(Cost(nano_usd).dollars())
