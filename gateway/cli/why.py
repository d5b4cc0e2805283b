"""`gateway why`: one request's story as a waterfall, from the gateway that answered it."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from rich.console import RenderableType
from rich.text import Text

from gateway.cli import options, remote, say, screen
from gateway.cli.exits import NOT_FOUND, Stop
from gateway.errors import NotFound

FAILED_BAR = "▒"
ANSWERED_BAR = "█"
WAIT_BAR = "·"
KEPT = "Stories are kept for a day."


@click.command(help="Tell the story of one request; without an id list the last ones.")
@click.argument("request_id", required=False)
@click.option("--last", default=10, show_default=True, type=click.IntRange(1, 1000),
              help="How many to list without an id.")  # fmt: skip
@options.admin
@options.config
@options.as_json
def command(
    *, request_id: str | None, last: int, admin_url: str, config: Path, as_json: bool
) -> None:
    url = remote.admin_url(admin_url, config)
    if request_id is None:
        told = remote.read(url, "/admin/requests", {"limit": str(last)})
        if as_json:
            say.as_json(told)
        else:
            _list(told.get("requests") or [])
        return
    try:
        story = remote.read(url, f"/admin/requests/{quote(request_id, safe='')}")
    except NotFound:
        raise Stop(
            f"No request {request_id!r} is known there. {KEPT}", "gateway why --last 20", NOT_FOUND
        ) from None
    if as_json:
        say.as_json(story)
    else:
        for part in waterfall(story):
            screen.show(part)


def _list(stories: Sequence[Mapping[str, Any]]) -> None:
    if not stories:
        say.note("No request yet.")
        return
    rows = [
        (
            _clock(story, "%H:%M:%S"),
            str(story.get("request_id", "")),
            str(story.get("chain", "")),
            _status(story),
            screen.milliseconds(story.get("ms", 0)),
            path_words(str(story.get("path", ""))),
            screen.dollars(str(story.get("cost_usd", "unknown"))),
        )
        for story in stories
    ]
    headers = ("UTC", "request", "chain", "status", "took", "path", "cost")
    screen.show(screen.table(headers, rows, right=("took", "cost")))


def waterfall(story: Mapping[str, Any]) -> Iterator[RenderableType]:
    """A story (core/story.py) for people: the head, a bar a step, and the end."""
    yield _head(story)
    steps = list(_steps(story))
    if steps:
        yield ""
        yield screen.table(("", "", "", "", "", "", ""), steps, right=(2, 5))
    yield ""
    yield from _tail(story)


def _head(story: Mapping[str, Any]) -> Text:
    parts: list[str | tuple[str, str]] = [
        f"{_clock(story)}  ",
        (str(story.get("request_id", "")), "bold"),
        f"\n{story.get('api', '')}  {story.get('chain', '')}  ",
    ]
    status = _status(story)
    parts += [(status.plain, str(status.style)), f"  {screen.milliseconds(story.get('ms', 0))}"]
    parts.append(f"  {screen.dollars(str(story.get('cost_usd', 'unknown')))}")
    if story.get("stream"):
        parts.append("  stream")
    for name in ("key", "team", "user", "session"):
        if story.get(name):
            parts.append(f"  {name} {story[name]}")
    return screen.words(*parts)


def _steps(story: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Queue, attempts with the waits between them, and the targets that were passed over."""
    whole = max(1.0, float(story.get("ms", 0)))
    queued = float(story.get("queue_ms", 0))
    if queued > 0:
        mark = screen.bar(0, queued, whole, WAIT_BAR)
        yield ("queue", mark, screen.milliseconds(queued), "waited for a slot", "", "", "")
    before = queued
    for attempt in story.get("attempts") or []:
        at, ms = float(attempt.get("at_ms", 0)), float(attempt.get("ms", 0))
        if at - before >= max(5.0, whole / 100):
            mark = screen.bar(before, at - before, whole, WAIT_BAR)
            yield ("", mark, screen.milliseconds(at - before), "waited", "", "", "")
        before = at + ms
        good = attempt.get("outcome") == "ok"
        mark = screen.bar(at, ms, whole, ANSWERED_BAR if good else FAILED_BAR)
        style = screen.GOOD if good else screen.BAD
        yield (
            _name(attempt),
            screen.words((mark, style)),
            screen.milliseconds(ms),
            screen.words((str(attempt.get("outcome", "")), style)),
            str(attempt.get("status") or ""),
            screen.dollars(str(attempt.get("cost_usd", "unknown"))),
            _detail(attempt),
        )
    for skip in story.get("skipped") or []:
        yield (
            str(skip.get("target", "")),
            "",
            "",
            screen.words((f"skipped: {skip.get('reason', '')}", screen.WARN)),
            "",
            "",
            str(skip.get("detail") or ""),
        )


def _name(attempt: Mapping[str, Any]) -> str:
    name = str(attempt.get("target", ""))
    if attempt.get("key") not in {None, "", "main"}:
        name += f"#{attempt['key']}"
    kind = attempt.get("kind")
    return name if kind in {None, "answer"} else f"{name} ({kind})"


def _detail(attempt: Mapping[str, Any]) -> str:
    parts = []
    if "first_content_ms" in attempt:
        parts.append(f"first content after {screen.milliseconds(attempt['first_content_ms'])}")
    if "tokens" in attempt:
        parts.append(tokens(attempt["tokens"]))
    if "retry_after_ms" in attempt:
        parts.append(f"come back in {screen.milliseconds(attempt['retry_after_ms'])}")
    if attempt.get("message"):
        parts.append(str(attempt["message"]))
    return " · ".join(parts)


def _tail(story: Mapping[str, Any]) -> Iterator[Text]:
    parts = []
    if "tokens" in story:
        parts.append(tokens(story["tokens"]))
    if "ttft_ms" in story:
        parts.append(f"first content after {screen.milliseconds(story['ttft_ms'])}")
    if "finish_reason" in story:
        parts.append(f"finished: {story['finish_reason']}")
    if parts:
        yield Text(" · ".join(parts))
    if told := recalled(story):
        yield Text(told)
    if story.get("error"):
        scope = f" (the limit of {story['scope']})" if story.get("scope") else ""
        after = story.get("retry_after_ms")
        when = f", come back in {screen.milliseconds(after)}" if after is not None else ""
        yield screen.words(("error ", screen.BAD), f"{story['error']}{scope}{when}")
    if story.get("path"):
        yield screen.words("path   ", path_words(str(story["path"])))
    yield screen.words((f"config {story.get('config', '')}", screen.FAINT))


def recalled(story: Mapping[str, Any]) -> str:
    """Where an answer was that nobody had to be asked for, and whether its caller may leave."""
    parts = [
        {
            "hit": "from the cache",
            "shared": "shared with an identical request",
            "miss": "not in the cache",
        }.get(str(story.get("cache")), ""),
        "told again under the caller's own key" if story.get("replayed") else "",
        "detached from its caller" if story.get("detached") else "",
    ]
    return " · ".join(part for part in parts if part)


def path_words(path: str) -> str:
    """`alpha:rate_limited,bravo:ok` as `alpha rate_limited → bravo ok`."""
    return " → ".join(step.replace(":", " ", 1) for step in path.split(",") if step)


def tokens(told: Mapping[str, Any]) -> str:
    """`9 in (3 cached), 20 out (12 reasoning)`."""
    parts = []
    for side, sorts in (
        ("input", ("cached", "cache_write_5m", "cache_write_1h")),
        ("output", ("reasoning",)),
    ):
        inner = ", ".join(f"{told[sort]} {sort}" for sort in sorts if told.get(sort))
        word = "in" if side == "input" else "out"
        parts.append(f"{told.get(side, 0)} {word}" + (f" ({inner})" if inner else ""))
    return ", ".join(parts) + (" (estimated)" if told.get("estimated") else "")


def _clock(story: Mapping[str, Any], form: str = "%Y-%m-%d %H:%M:%S UTC") -> str:
    ended = story.get("ts")
    if not isinstance(ended, int | float):
        return ""
    return datetime.fromtimestamp(ended, UTC).strftime(form)


def _status(story: Mapping[str, Any]) -> Text:
    status = int(story.get("status", 0))
    style = screen.GOOD if status < 400 else screen.BAD
    return Text(str(status), style=style)
