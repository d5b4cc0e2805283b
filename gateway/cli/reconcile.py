"""`gateway spend reconcile`: a provider's export against the ledger, by day and model."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import click

from gateway.cli import options, say, screen, sheet
from gateway.cli.exits import FAILED, USAGE, Stop
from gateway.cli.local import configuration
from gateway.cli.store import ledger_of
from gateway.cli.usage_export import Export, read
from gateway.clock import SystemClock
from gateway.core.reconcile import SORTS, Booked, Figures, Match, dollars, matches
from gateway.core.usage import Cost
from gateway.state.embedded.reports import booked, first_line

PART = ("calls", "input", "output", "cached", "cost_usd")


@click.command(help="Hold a provider's usage or cost export (CSV) against the ledger.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--provider", "providers", multiple=True, help="Of the configuration; repeatable.")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="The first day, UTC.")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="The last day, UTC.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values.")
@options.config
@options.as_json
@click.pass_context
def reconcile(context: click.Context, /, **said: Any) -> None:
    form = sheet.form(as_csv=said["as_csv"], as_json=said["as_json"])
    loaded = configuration(said["config"])
    export = read(said["file"])
    first = max(export.days[0], said["since"].date() if said["since"] else date.min)
    last = min(export.days[-1], said["until"].date() if said["until"] else date.max)
    began = datetime(first.year, first.month, first.day, tzinfo=UTC).timestamp()
    with ledger_of(loaded.snapshot.server, began) as folder:
        _check_days(export, first, last, first_line(folder))
        lines = booked(folder, first, last)
    providers = _providers(said["providers"], list(loaded.document.providers), lines)
    found = matches(
        [row for row in export.rows if first <= row.day <= last],
        [line for line in lines if line.provider in providers],
        export.metrics,
    )
    _tell_matches(found, export, (first, last), form)
    if not _verdict(found, last):
        context.exit(FAILED)


def _check_days(export: Export, first: date, last: date, oldest: date) -> None:
    if first > last:
        what = f"The export is of {export.days[0]} to {export.days[-1]}: no day of it is left."
        raise Stop(what, "other --since and --until", USAGE)
    if last < oldest:
        what = f"The export ends on {export.days[-1]}, and the ledger's lines begin on {oldest}:"
        raise Stop(
            f"{what} they are kept 30 days.", "reconcile each month within its first days", USAGE
        )
    if first < oldest:
        what = f"The export begins on {first}, and the ledger's lines on {oldest}:"
        raise Stop(
            f"{what} they are kept 30 days.", f"gateway spend reconcile --since {oldest}", USAGE
        )


def _providers(said: Sequence[str], known: Sequence[str], lines: Sequence[Booked]) -> list[str]:
    """Whose account the export is: an export is of one provider, the ledger of all."""
    seen = list(dict.fromkeys(line.provider for line in lines))
    wrong = [name for name in said if name not in known and name not in seen]
    if wrong:
        what = f"There is no provider {wrong[0]!r}; there are {', '.join(known)}."
        raise Stop(what, "", USAGE)
    if not said and len(seen) > 1:
        what = (
            f"In these days the ledger has calls to {', '.join(sorted(seen))}: whose export is it?"
        )
        raise Stop(what, f"add --provider {min(seen)}", USAGE)
    return list(said) or seen


def _tell_matches(
    found: Sequence[Match], export: Export, days: tuple[date, date], form: sheet.Form
) -> None:
    if form.json:
        say.as_json(
            {
                "format": export.format,
                "from": days[0].isoformat(),
                "to": days[1].isoformat(),
                "compared": list(export.metrics),
                "rows": [_matched(match) for match in found],
                "unexplained": sum(not match.explained for match in found),
            }
        )
        return
    rows = [row for match in found for row in _parts(match)]
    if form.csv:
        say.data(sheet.text(("day", "model", "part", *PART), rows, ("model",)))
    elif rows:
        headers = ("day", "model", "", "calls", "input", "output", "cached", "cost")
        shown = [_part_line(row) for row in rows]
        screen.show(screen.table(headers, shown, right=headers[3:]))


def _matched(match: Match) -> dict[str, Any]:
    parts = {row["part"]: row for row in _parts(match)}
    told = {
        part: {name: row[name] for name in PART if row[name] != ""} for part, row in parts.items()
    }
    return {
        "day": match.day.isoformat(),
        "model": match.model,
        **told,
        "explained": match.explained,
    }


def _parts(match: Match) -> list[dict[str, Any]]:
    """What the provider says, each sort of our lines that there is, and what is left over."""
    booked = {sort: _ours(match.booked[sort]) for sort in SORTS if sort in match.booked}
    parts = {
        "provider": _theirs(match.stated),
        **booked,
        "unexplained": _theirs(match.unexplained),
    }
    head = {"day": match.day.isoformat(), "model": match.model}
    return [{**head, "part": part, **cells} for part, cells in parts.items()]


def _theirs(figures: Mapping[str, Fraction]) -> dict[str, Any]:
    cells: dict[str, Any] = dict.fromkeys(PART, "")
    for metric, figure in figures.items():
        if metric == "cost":
            cells["cost_usd"] = dollars(figure)
        else:
            cells[metric] = int(figure)
    return cells


def _ours(figures: Figures) -> dict[str, Any]:
    return {
        "calls": figures.calls,
        "input": figures.input,
        "output": figures.output,
        "cached": figures.cached,
        "cost_usd": Cost(figures.nano_usd).dollars(),
    }


def _part_line(row: dict[str, Any]) -> list[str]:
    first = row["part"] == "provider"
    cells = [f"{row[name]:,}" if row[name] != "" else "" for name in PART[:-1]]
    cost = f"${row['cost_usd']}".replace("$-", "-$") if row["cost_usd"] else ""
    return [row["day"] if first else "", row["model"] if first else "", row["part"], *cells, cost]


def _verdict(found: Sequence[Match], last: date) -> bool:
    """Say it in a sentence; whether everything is explained."""
    if last >= datetime.fromtimestamp(SystemClock().now(), UTC).date():
        say.note(f"{last} is not over: both sides may still grow.")
    unpriced = sum(match.whole.unknown for match in found)
    if unpriced:
        say.note(f"{unpriced} calls have no price; add prices: to compare what they cost.")
    left = [match for match in found if not match.explained]
    if not left:
        say.note(f"Nothing is unexplained in {len(found)} days and models.")
        return True
    estimated = sum("estimates" in match.booked for match in left)
    told = f"{len(left)} of {len(found)} days and models have an unexplained part"
    if estimated:
        told += f"; in {estimated} of them some tokens are estimates of ours"
    first = left[0]
    say.note(f"{told}, the first: {first.day} {first.model}.")
    return False
