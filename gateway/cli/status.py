"""`gateway status`: what a running gateway says of itself."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from gateway.cli import options, remote, say, screen

STYLES = {
    "closed": screen.GOOD,
    "ready": screen.GOOD,
    "ok": screen.GOOD,
    "half-open": screen.WARN,
    "degraded": screen.WARN,
    "draining": screen.WARN,
    "open": screen.BAD,
    "starting": screen.WARN,
    "silent": screen.BAD,
}


LISTS = ("chains", "workers")
WORKER = ("worker", "pid", "status", "config", "in_flight", "queue")
COLUMNS = ("chain", "target", "key", "model", "breaker", "")


@click.command(help="Show chains, breakers, requests in flight and the configuration in force.")
@options.admin
@options.config
@options.as_json
def command(*, admin_url: str, config: Path, as_json: bool) -> None:
    told = remote.read(remote.admin_url(admin_url, config), "/admin/status")
    if as_json:
        say.as_json(told)
        return
    rows = [(name, _cell(value)) for name, value in told.items() if name not in LISTS]
    screen.show(screen.table(("", ""), rows))
    if workers := told.get("workers"):
        say.data("")
        cells = [[_cell(worker.get(name)) for name in WORKER] for worker in workers]
        screen.show(screen.table(WORKER, cells))
    say.data("")
    targets = [row for chain in told.get("chains") or [] for row in _targets(chain)]
    screen.show(screen.table(COLUMNS, targets))


def _targets(chain: Mapping[str, Any]) -> Iterator[Sequence[str | Text]]:
    """A row a target; the chain's name stands before the first."""
    name = ", ".join([str(chain.get("name", "")), *chain.get("also", [])])
    for target in chain.get("targets") or []:
        yield (
            name,
            str(target.get("target", "")),
            str(target.get("key", "")),
            f"{target.get('provider', '')}/{target.get('model', '')}",
            _cell(target.get("breaker")),
            _resting(target),
        )
        name = ""


def _resting(target: Mapping[str, Any]) -> str:
    parts = [
        f"{word} {screen.milliseconds(target[member] * 1000)}"
        for member, word in (
            ("probe_in_s", "next probe in"),
            ("throttled_s", "rate limited for"),
            ("aside_s", "set aside for"),
        )
        if target.get(member)
    ]
    if target.get("held"):
        parts.append(f"held {target['held']}")
    if target.get("workers"):
        parts.append(f"in {target['workers']} of the workers")
    if target.get("lacks"):
        parts.append("lacks " + ", ".join(target["lacks"]))
    return " · ".join(parts)


def _cell(value: Any) -> Text:
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, list):
        text = ", ".join(str(part) for part in value)
    else:
        text = "" if value is None else str(value)
    return Text(text, style=STYLES.get(text, ""))
