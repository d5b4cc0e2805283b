"""`gateway spend`: what was spent, to the nano-dollar, from the ledger in the state directory."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gateway.cli import options, say, screen, sheet
from gateway.cli.exits import USAGE, Stop
from gateway.cli.local import configuration
from gateway.cli.reconcile import reconcile
from gateway.cli.store import ledger_of
from gateway.cli.when import as_moment, iso
from gateway.clock import SystemClock
from gateway.core.alerts import DAYS, Mover, SpendRule
from gateway.core.usage import Cost
from gateway.state.embedded.movers import movers
from gateway.state.embedded.reports import DIMENSIONS, Row, begins, spend, total

NUMBERS = ("requests", "attempts", "input", "output", "cached", "reasoning")
MOVER = ("key", "user", "today_usd", "usual_usd", "days")


@click.group(
    invoke_without_command=True,
    help=f"Report what was spent. --by any of {', '.join(DIMENSIONS)}.",
)
@click.option("--by", help="One or more, as in key,model.  [default: key]")
@click.option("--since", callback=as_moment, metavar="7d|DATE", help="[default: 7d]")
@click.option("--movers", "moving", is_flag=True, help="Users above what they usually spend a day.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values.")
@options.config
@options.as_json
@click.pass_context
def command(context: click.Context, /, **said: Any) -> None:
    if context.invoked_subcommand is not None:
        _nothing_before(context, context.invoked_subcommand)
        return
    by, since, config = said["by"], said["since"], said["config"]
    form = sheet.form(as_csv=said["as_csv"], as_json=said["as_json"])
    if said["moving"]:
        if by is not None or since is not None:
            what = "--movers compares today with the 7 days before, by key and user."
            raise Stop(what, "gateway spend --movers", USAGE)
        snapshot = configuration(config).snapshot
        with ledger_of(snapshot.server, SystemClock().now() - (DAYS + 1) * 86_400) as folder:
            _tell_movers(folder, snapshot.alerts.spend, form)
        return
    words = _words("key" if by is None else by)
    settings = configuration(config).snapshot.server
    seconds, first = since or (7 * 86_400.0, None)
    start = first if first is not None else SystemClock().now() - (seconds or 0.0)
    with ledger_of(settings, start) as folder:
        _tell_spend(folder, words, start, form)


def _nothing_before(context: click.Context, name: str) -> None:
    """What is said before `reconcile` would not reach it."""
    for option in context.command.params:
        if context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE:
            what = f"{option.opts[0]} stands before {name}, which would not hear it."
            raise Stop(what, f"gateway spend {name} FILE.csv {option.opts[0]} ...", USAGE)


def _words(by: str) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in by.split(",") if word.strip()))
    wrong = [word for word in words if word not in DIMENSIONS]
    if wrong or not words:
        what = f"--by {by!r}: there are {', '.join(DIMENSIONS)}."
        raise Stop(what, "gateway spend --by key,model", USAGE)
    return words


# What was spent


def _tell_spend(folder: Path, words: list[str], start: float, form: sheet.Form) -> None:
    rows, whole = spend(folder, words, start), total(folder, start)
    missing = begins(folder, words, start)
    if form.json:
        say.as_json(
            {
                "since": start,
                "by": words,
                "lines_from": missing[0].isoformat() if missing else None,
                "complete": missing is None or missing[1],
                "rows": [_told(row, words) for row in rows],
                "total": _told(whole, ()),
            }
        )
    elif form.csv:
        names = (*words, *NUMBERS, "cost_usd", "unpriced_attempts")
        say.data(sheet.text(names, (_told(row, words) for row in rows), words))
    elif rows:
        headers = (*words, *NUMBERS, "cost", "")
        lines = [_line(row, row.group) for row in rows]
        footer = _line(whole, ("total", *("" for _ in words[1:])))
        right = (*NUMBERS, "cost")
        screen.show(screen.table(headers, lines, right=right, footer=footer))
    else:
        say.note(f"Nothing was spent since {iso(start)}.")
    if missing is not None:
        say.note(_about(*missing, ",".join(words)))


def _about(first: date, summed: bool, by: str) -> str:  # noqa: FBT001 - a word of `begins`
    """What the days before the oldest line can tell."""
    if summed:
        return f"Before {first} only sums are kept: cached and reasoning tokens are from then on."
    return (
        f"--by {by} begins on {first}: lines are kept 30 days. The total holds the days before as"
        " well; their sums are by key, user and day, or by team and day: --by key,day."
    )


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


# Who spends out of the ordinary


def _tell_movers(folder: Path, rule: SpendRule, form: sheet.Form) -> None:
    now = SystemClock().now()
    found = movers(folder, rule, now)
    factor, floor = f"{float(rule.factor):g}", Cost(rule.floor).dollars()
    if form.json:
        say.as_json(
            {
                "day": datetime.fromtimestamp(now, UTC).date().isoformat(),
                "factor": factor,
                "floor_usd": floor,
                "movers": [_moved(mover) for mover in found],
            }
        )
    elif form.csv:
        say.data(sheet.text(MOVER, map(_moved, found), MOVER[:2]))
    elif found:
        headers = ("key", "user", "today", "usual", "")
        right = ("today", "usual")
        screen.show(screen.table(headers, [_mover_line(mover) for mover in found], right=right))
    else:
        what = f"{factor} times the mean of the 7 days before and above ${floor}"
        say.note(f"Nobody has spent more than {what} today (UTC).")


def _moved(mover: Mover) -> dict[str, Any]:
    return {
        "key": mover.key,
        "user": mover.user,
        "today_usd": Cost(mover.spent).dollars(),
        "usual_usd": Cost(mover.usual).dollars(),
        "days": mover.days,
    }


def _mover_line(mover: Mover) -> list[str]:
    today = screen.dollars(Cost(mover.spent).dollars())
    usual = screen.dollars(Cost(mover.usual).dollars())
    if not mover.days:
        return [mover.key, mover.user, today, "", "the first day"]
    times = f"{mover.spent / mover.usual:,.1f} times" if mover.usual else "nothing before"
    known = "" if mover.days == DAYS else f", of {mover.days} known days"
    return [mover.key, mover.user, today, usual, times + known]


command.add_command(reconcile)
