"""Spans and days as people type them: `30d`, `24h`, `2026-12-31`."""

import re
from datetime import UTC, datetime

import click

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
DAY = 86_400.0
LONGEST = 400 * 366  # days: beyond it somebody mistyped

_SPAN = re.compile(r"(\d{1,6})([smhdw])", re.ASCII)


def span(text: str) -> float | None:
    """`24h` in seconds; None when it is none."""
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        return None
    seconds = float(found[1]) * SECONDS[found[2]]
    return seconds if seconds <= LONGEST * DAY else None


def day(text: str) -> float | None:
    """The first second (UTC, since the epoch) of `2026-12-31`; None when it is none."""
    try:
        return datetime.strptime(text.strip(), "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def as_span(_: click.Context, __: click.Parameter, text: str) -> float:
    """An option's value in seconds."""
    seconds = span(text)
    if seconds is None:
        raise click.BadParameter(f"{text!r} is no span: 90s, 30m, 24h, 7d, 2w.")
    return seconds


def as_moment(
    _: click.Context, __: click.Parameter, text: str | None
) -> tuple[float | None, float | None] | None:
    """An option's value: (seconds, None) of a span, (None, first second) of a day."""
    if text is None:
        return None
    seconds, first = span(text), day(text)
    if seconds is None and first is None:
        raise click.BadParameter(f"{text!r} is neither a span (30d) nor a day (2026-12-31).")
    return seconds, first


def iso(moment: float) -> str:
    """`2026-12-31 00:00 UTC`."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
