"""What every command says without rich: data on stdout, everything else on stderr."""

import sys
from typing import Any

import click

from gateway.wire import json


def data(text: str) -> None:
    """A line that somebody may pipe on."""
    click.echo(text)


def as_json(value: Any) -> None:
    """One JSON document, for `--json`."""
    click.echo(json.pretty(value))


def note(text: str) -> None:
    """Progress, warnings, advice: never in the way of data."""
    click.echo(text, err=True)


def interactive() -> bool:
    """Whether somebody sits there who can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()
