"""`gateway spend`: what was spent, to the nano-dollar, from the ledger in the state directory."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gateway.cli import options, say, screen
from gateway.cli.exits import USAGE, Stop
from gateway.cli.local import configuration
from gateway.cli.when import as_moment, iso
from gateway.clock import SystemClock
from gateway.core.usage import Cost
from gateway.state.embedded.reports import DIMENSIONS, Row, spend, total

NUMBERS = ("requests", "attempts", "input", "output", "cached", "reasoning")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would execute


@click.command(help=f"Report what was spent. --by any of {', '.join(DIMENSIONS)}.")
@click.option("--by", default="key", show_default=True, help="One or more, as in key,model.")
@click.option("--since", callback=as_moment, default="7d", show_default=True, metavar="7d|DATE")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values.")
@options.config
@options.as_json
def command(
    *,
    by: str,
    since: tuple[float | None, float | None],
    as_csv: bool,
    config: Path,
    as_json: bool,
) -> None:
    if as_csv and as_json:
        raise Stop("Both --csv and --json were said.", "choose one", USAGE)
    words = _words(by)
    folder = Path(configuration(config).snapshot.server.state_dir)
    seconds, first = since
    start = first if first is not None else SystemClock().now() - (seconds or 0.0)
    rows, whole = spend(folder, words, start), total(folder, start)
    if as_json:
        say.as_json(
            {
                "since": start,
                "by": words,
                "rows": [_told(row, words) for row in rows],
                "total": _told(whole, ()),
            }
        )
    elif as_csv:
        say.data(_csv(rows, words).rstrip("\n"))
    elif rows:
        headers = (*words, *NUMBERS, "cost", "")
        lines = [_line(row, row.group) for row in rows]
        footer = _line(whole, ("total", *("" for _ in words[1:])))
        right = (*NUMBERS, "cost")
        screen.show(screen.table(headers, lines, right=right, footer=footer))
    else:
        say.note(f"Nothing was spent since {iso(start)}.")


def _words(by: str) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in by.split(",") if word.strip()))
    wrong = [word for word in words if word not in DIMENSIONS]
    if wrong or not words:
        what = f"--by {by!r}: there are {', '.join(DIMENSIONS)}."
        raise Stop(what, "gateway spend --by key,model", USAGE)
    return words


def _line(row: Row, group: Sequence[str]) -> list[str]:
    """Cells; those without a price are told beside the sum, which does not hold them."""
    cost = screen.dollars(Cost(row.nano_usd).dollars())
    unpriced = f"+ {row.unknown} calls without a price" if row.unknown else ""
    return [*group, *(f"{getattr(row, name):,}" for name in NUMBERS), cost, unpriced]


def _told(row: Row, words: Sequence[str]) -> dict[str, Any]:
    return {
        **dict(zip(words, row.group, strict=True)),
        **{name: getattr(row, name) for name in NUMBERS},
        "cost_usd": Cost(row.nano_usd).dollars(),
        "unpriced_attempts": row.unknown,
    }


def _csv(rows: Sequence[Row], words: Sequence[str]) -> str:
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow((*words, *NUMBERS, "cost_usd", "unpriced_attempts"))
    for row in rows:
        group = (f"'{name}" if name.startswith(FORMULA) else name for name in row.group)
        told = _told(row, words)
        rest = (told[name] for name in (*NUMBERS, "cost_usd", "unpriced_attempts"))
        writer.writerow((*group, *rest))
    return written.getvalue()
