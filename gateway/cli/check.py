"""`gateway check`: every mistake of a configuration and what will hurt, before it is served."""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from gateway.cli import options, say
from gateway.cli.exits import FAILED
from gateway.cli.live import check_live, told
from gateway.config.lint import lint
from gateway.config.load import Loaded, load
from gateway.config.mistakes import ConfigError, Mistake, counted, in_order
from gateway.wire import json


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--strict", is_flag=True, help="Fail on warnings too.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github"]),
    default="text",
    help="How findings are printed; github: workflow annotations.",
)
@click.option("--live", is_flag=True, help="Also send one 1-token request to each target.")
@options.as_json
@click.pass_context
def command(
    context: click.Context,
    files: tuple[Path, ...],
    form: str,
    *,
    strict: bool,
    live: bool,
    as_json: bool,
) -> None:
    """Find every mistake in configuration FILES, and what will hurt.

    Without FILES: $GATEWAY_CONFIG, else ./gateway.yaml. Exit code 10 when there are errors, with
    --strict on warnings too.
    """
    paths = files or (Path(os.environ.get("GATEWAY_CONFIG") or options.DEFAULT_CONFIG),)
    checked = [check(path) for path in paths]
    found = [mistake for _, mistakes in checked for mistake in mistakes]
    printers: dict[str, Callable[[Sequence[Checked]], str]] = {
        "text": as_text,
        "json": as_object,
        "github": as_annotations,
    }
    said = printers["json" if as_json else form](checked)
    rows = asyncio.run(_live(checked)) if live else []
    if live and (as_json or form == "json"):
        said = json.pretty(json.loads(said.encode()) | {"live": rows})
    elif live:
        said = "\n".join([*([said] if said else []), *map(told, rows)])
    if said:
        say.data(said)
    failed = not all(row["ok"] for row in rows)
    if failed or any(strict or mistake.severity == "error" for mistake in found):
        context.exit(FAILED)


Checked = tuple[Path | Loaded, Sequence[Mistake]]


async def _live(checked: Sequence[Checked]) -> list[dict[str, Any]]:
    """What the targets of the files that hold answered."""
    return [
        row for file, _ in checked if isinstance(file, Loaded) for row in await check_live(file)
    ]


def check(path: Path) -> Checked:
    """A file and its findings; the file as `Loaded` when it holds."""
    try:
        loaded = load(path, os.environ)
    except ConfigError as error:
        return path, error.mistakes
    return loaded, lint(loaded)


def as_text(checked: Sequence[Checked]) -> str:
    """A line a finding, aligned, then the count; a line for each file without any."""
    found = [mistake for _, mistakes in checked for mistake in mistakes]
    width = max((len(mistake.place) for mistake in found), default=0)
    lines = [f"{mistake.place:<{width}}  {mistake.text}" for mistake in found]
    for file, mistakes in checked:
        if isinstance(file, Loaded) and not mistakes:
            lines.append(f"{file.path}  ok · {_content(file)}")
    if found:
        broken = any(mistake.severity == "error" for mistake in found)
        rest = " · the running config stays in force" if broken else ""
        lines.append(f"{counted(found)}{rest}")
    return "\n".join(lines)


def _content(loaded: Loaded) -> str:
    chains = len(loaded.document.chains)
    targets = len({target.name for target in loaded.snapshot.targets.values()})
    return (
        f"{chains} chain{'s' * (chains != 1)}, {targets} target{'s' * (targets != 1)} · "
        f"config {loaded.snapshot.config}"
    )


def as_object(checked: Sequence[Checked]) -> str:
    """`{"files": [{file, ok, config}], "errors", "warnings", "findings": [...]}`."""
    found = in_order(mistake for _, mistakes in checked for mistake in mistakes)
    errors = sum(mistake.severity == "error" for mistake in found)
    return json.pretty(
        {
            "files": [
                {
                    "file": str(file.path if isinstance(file, Loaded) else file),
                    "ok": not any(mistake.severity == "error" for mistake in mistakes),
                    "config": file.snapshot.config if isinstance(file, Loaded) else None,
                }
                for file, mistakes in checked
            ],
            "errors": errors,
            "warnings": len(found) - errors,
            "findings": [
                {
                    "file": mistake.file,
                    "line": mistake.line,
                    "column": mistake.column,
                    "path": mistake.where,
                    "message": mistake.message,
                    "severity": mistake.severity,
                }
                for mistake in found
            ],
        }
    )


def as_annotations(checked: Sequence[Checked]) -> str:
    """GitHub's workflow commands, one a finding."""
    return "\n".join(
        f"::{mistake.severity} file={_property(mistake.file)},line={max(1, mistake.line)},"
        f"col={max(1, mistake.column)},title={_property(mistake.where or 'gateway check')}::"
        f"{_data(mistake.message)}"
        for _, mistakes in checked
        for mistake in mistakes
    )


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
