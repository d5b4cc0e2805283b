"""`gateway limits`: what is used and left of each limit and budget, of a running gateway."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from gateway.cli import options, remote, say, screen

HEADERS = ("scope", "name", "limit", "used", "of", "remaining", "whole again in")
NUMBERS = ("used", "of", "remaining")
MONEY_HEADERS = ("scope", "name", "budget", "used", "of", "remaining", "whole again at")
UNKNOWN = "unknown"
MOST = "10000"


@click.command(
    help="Show what is used and left of every limit and budget, or of a key and its team."
)
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
    money = [_money(budget) for budget in told.get("budgets") or []]
    if rows:
        screen.show(screen.table(HEADERS, rows, right=NUMBERS))
    if money:
        screen.show(screen.table(MONEY_HEADERS, money, right=NUMBERS))
    if not rows and not money:
        say.note(f"{key or 'This gateway'} has no limits.")
    if any(UNKNOWN in row for row in money):
        say.note("The ledger cannot be read now: nobody knows what is left of the budgets.")
    if told.get("more"):
        say.note(f"There are more than {MOST} limits or budgets: ask for one key.")


def _row(limit: Mapping[str, Any]) -> Sequence[str | Text]:
    left, reset = int(limit.get("remaining", 0)), float(limit.get("reset_s", 0))
    return (
        str(limit.get("scope", "")),
        str(limit.get("name", "")),
        str(limit.get("kind", "")),
        f"{int(limit.get('used', 0)):,}",
        f"{int(limit.get('limit', 0)):,}",
        Text(f"{left:,}", style="" if left else screen.BAD),
        screen.milliseconds(reset * 1000) if reset else "",
    )


def _money(budget: Mapping[str, Any]) -> Sequence[str | Text]:
    used, left = budget.get("used_usd"), budget.get("remaining_usd")
    soft = "" if budget.get("hard", True) else " (soft)"
    return (
        str(budget.get("scope", "")),
        str(budget.get("name", "")),
        f"{budget.get('per', '')}{soft}",
        UNKNOWN if used is None else screen.dollars(str(used)),
        screen.dollars(str(budget.get("limit_usd", ""))),
        UNKNOWN if left is None else _left(str(left)),
        str(budget.get("resets_at") or "never"),
    )


def _left(usd: str) -> Text:
    return Text(screen.dollars(usd), style=screen.BAD if usd == "0" else "")
