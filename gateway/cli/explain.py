"""`gateway explain`: the planner's own answer to "what would happen", without a call."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.text import Text
from rich.tree import Tree

from gateway.cli import options, say, screen
from gateway.cli.exits import USAGE, Stop
from gateway.cli.local import configuration
from gateway.clock import SystemClock
from gateway.core.plan import Facts, Plan, Skip, State, Try
from gateway.core.principal import LOCAL, Credential
from gateway.core.request import Hints, Request
from gateway.core.snapshot import Snapshot
from gateway.core.target import WAY_ON, Cause, Next, Same
from gateway.pipeline.facts import gather
from gateway.pipeline.onward import onward
from gateway.pipeline.plan import NOTHING_SPENT, Spent, ordered, plan
from gateway.server.facades.chat import ChatFacade
from gateway.server.hints import read_head
from gateway.wire import json

EXAMPLE = {"messages": [{"role": "user", "content": "hi"}]}
MAX_REQUEST = 20 * 1024 * 1024
STARTED = 0.0  # monotonic seconds: the moment of an explanation is the beginning of time
ANYONE = replace(LOCAL, priority="high")  # somebody with every right
FRESH = "Breakers, throttles and limits are taken as untouched; gateway status has the live ones."


@dataclass(slots=True)
class Asked:
    """A call at the edge that nobody made (core/ports.py, Call)."""

    id: str
    hints: Hints
    api: str = "chat"
    started: float = STARTED
    address: str = "127.0.0.1"
    credential: Credential | None = None

    async def body(self) -> bytes:
        raise AssertionError("the body of an explanation is read from stdin")


@dataclass(frozen=True, slots=True)
class Sequel:
    """What follows when the first target fails with `cause`."""

    cause: Cause
    failed: Try
    again: bool  # the same target once more, before anything else
    spent: Spent | None
    plan: Plan | None  # None: the request ends


@click.command(help="Show the plan for MODEL: who is asked, who is skipped, and why. No call.")
@click.argument("model")
@options.config
@click.option(
    "--cause",
    type=click.Choice([cause.value for cause in WAY_ON]),
    metavar="CAUSE",
    help="Also: what follows when the first target fails so (rate_limited, ...).",
)
@click.option(
    "-H",
    "--header",
    "headers",
    multiple=True,
    metavar="'NAME: VALUE'",
    help="An x-gateway-* header of the request; may be repeated.",
)
@click.option(
    "--id",
    "request_id",
    default="explain",
    show_default=True,
    help="The request id: draws within one_of depend on it.",
)
@options.as_json
def command(
    *,
    model: str,
    config: Path,
    cause: str | None,
    headers: Sequence[str],
    request_id: str,
    as_json: bool,
) -> None:
    """A request body on stdin is explained as it is, with MODEL as its model."""
    snapshot = configuration(config).snapshot
    facts = _facts(model, headers, request_id, snapshot)
    state = State(now=STARTED, epoch=SystemClock().now())
    made = plan(facts, state)
    sequel = _sequel(facts, state, made, Cause(cause)) if cause else None
    if as_json:
        say.as_json(told(facts, made, sequel))
    else:
        screen.show(pictured(facts, made, sequel))
        say.note(FRESH)


def _facts(model: str, headers: Sequence[str], id: str, snapshot: Snapshot) -> Facts:
    hints = read_head(_pair(header) for header in headers).hints
    return gather(Asked(id, hints), ANYONE, _request(model), snapshot)


def _pair(header: str) -> tuple[bytes, bytes]:
    name, colon, value = header.partition(":")
    if not colon or not name.strip().lower().startswith("x-gateway-"):
        raise Stop(f"{header!r} is no x-gateway header.", "-H 'x-gateway-deadline: 30s'", USAGE)
    return name.strip().encode(), value.strip().encode()


def _request(model: str) -> Request:
    """The body on stdin, or a short one, for this model."""
    text = b"" if sys.stdin.isatty() else sys.stdin.buffer.read(MAX_REQUEST).strip()
    try:
        members = json.split(text or json.dumps(EXAMPLE))
    except json.JSONError as error:
        mend = f"gateway explain {model} < request.json"
        raise Stop(f"stdin holds no request: {error}.", mend, USAGE) from None
    return ChatFacade().parse(json.join({**members, "model": json.raw(model)}))


def _sequel(facts: Facts, state: State, made: Plan, cause: Cause) -> Sequel | None:
    """The walk's rules (pipeline/attempt.py) for a first attempt that failed at once."""
    if not made.tries:
        return None
    failed = made.tries[0]
    way, retry = WAY_ON[cause], facts.chain.retry
    again = way.same is Same.NOISE and retry.same_target > 0 and retry.attempts > 1
    begun = json.changed(NOTHING_SPENT, calls=2 if again else 1)
    spent = onward(facts, begun, failed.target, cause)
    if spent is None or spent.calls >= retry.attempts:
        return Sequel(cause, failed, again, spent, None)
    return Sequel(cause, failed, again, spent, plan(facts, state, spent))


# For people


def pictured(facts: Facts, made: Plan, sequel: Sequel | None) -> Group:
    parts: list[Any] = [_tree(_title(facts), facts, made)]
    if sequel is not None:
        parts += [Text(""), _what_follows(facts, sequel)]
    return Group(*parts)


def _title(facts: Facts) -> Text:
    request = facts.request
    parts = [
        "stream" if request.stream else "whole answer",
        f"about {request.prompt} tokens in",
        f"deadline {_seconds(facts.deadline.at - facts.started)}",
        f"at most {facts.chain.retry.attempts} calls",
    ]
    if request.needs:
        parts.append("needs " + ", ".join(sorted(request.needs)))
    return screen.words((facts.chain.name, "bold"), "  " + " · ".join(parts))


def _tree(title: Text, facts: Facts, made: Plan) -> Tree:
    tree = screen.tree(title)
    for line in _rows(facts, made, frozenset()):
        tree.add(line)
    if not made.tries:
        tree.add(screen.words(("nobody can be asked: the request is refused", screen.BAD)))
    return tree


def _rows(facts: Facts, made: Plan, tried: frozenset[str]) -> Iterator[Text]:
    """Each target in the order of the chain, numbered where it would be asked."""
    tries = {attempt.target.id: (n, attempt) for n, attempt in enumerate(made.tries, 1)}
    skips = {skip.target.id: skip for skip in made.skipped}
    known = [t for _, t in ordered(made.chain, facts.id) if t.id not in tried]
    width = max((len(t.id) for t in known), default=0)
    what = max((len(f"{t.provider}/{t.model}") for t in known), default=0)
    for target in known:
        model = f"{target.provider}/{target.model}"
        start = f"{target.id:<{width}}  {model:<{what}}  "
        if target.id in tries:
            number, attempt = tries[target.id]
            yield screen.words((f"{number} ", screen.GOOD), start, _bounds(attempt))
        elif target.id not in skips:
            why = "no call or time is left" if facts.hints.fallback else "x-gateway-fallback: off"
            yield screen.words((f"- {start}not asked: {why}", screen.FAINT))
        else:
            skip = skips[target.id]
            detail = f" ({skip.detail})" if skip.detail else ""
            yield screen.words(
                ("- ", screen.WARN), start, (f"skipped: {skip.cause.value}{detail}", screen.WARN)
            )


def _bounds(attempt: Try) -> str:
    cost = screen.dollars(attempt.bound.dollars())
    return f"at most {_seconds(attempt.seconds)} · {attempt.output:,} tokens out · {cost}"


def _what_follows(facts: Facts, sequel: Sequel) -> Tree:
    name = sequel.failed.target.id
    tree = screen.tree(screen.words(f"if {name} fails with ", (sequel.cause.value, screen.BAD)))
    if sequel.again:
        pause = _seconds(facts.chain.retry.backoff)
        tree.add(f"{name} once more, within {pause}, if it failed quickly")
    if sequel.plan is None or sequel.spent is None:
        tree.add(screen.words(("the request ends: ", screen.BAD), _why_it_ends(facts, sequel)))
        return tree
    if sequel.plan.chain is not facts.chain:
        tree.add(f"on with the chain {sequel.plan.chain.name}")
    for row in _rows(facts, sequel.plan, sequel.spent.tried):
        tree.add(row)
    if not sequel.plan.tries:
        tree.add(screen.words(("nobody is left: the request ends", screen.BAD)))
    return tree


def _why_it_ends(facts: Facts, sequel: Sequel) -> str:
    if facts.chain.on.get(sequel.cause) == "stop":
        return f"on.{sequel.cause.value} says stop"
    if WAY_ON[sequel.cause].next is Next.NEVER:
        return "it is the caller's own mistake"
    if WAY_ON[sequel.cause].next is Next.SAID:
        return f"only on.{sequel.cause.value} could send it on"
    if WAY_ON[sequel.cause].next is Next.LARGER:
        return "nobody is known to have a larger context"
    return "no call is left"


def _seconds(seconds: float) -> str:
    return screen.milliseconds(seconds * 1000)


# For programs


def told(facts: Facts, made: Plan, sequel: Sequel | None) -> dict[str, Any]:
    """The plan as JSON values; `after` only with `--cause`."""
    request = facts.request
    values: dict[str, Any] = {
        "model": request.model,
        "chain": facts.chain.name,
        "stream": request.stream,
        "prompt_tokens": request.prompt,
        "needs": sorted(request.needs),
        "deadline_s": facts.deadline.at - facts.started,
        "attempts": facts.chain.retry.attempts,
        **_told_plan(made),
    }
    if sequel is not None:
        values["after"] = {
            "target": sequel.failed.target.id,
            "cause": sequel.cause.value,
            "same_target_once_more": sequel.again,
            "ends": sequel.plan is None or not sequel.plan.tries,
            "chain": sequel.plan.chain.name if sequel.plan else None,
            **(_told_plan(sequel.plan) if sequel.plan else {"tries": [], "skipped": []}),
        }
    return values


def _told_plan(made: Plan) -> dict[str, Any]:
    return {
        "tries": [_told_try(attempt) for attempt in made.tries],
        "skipped": [_told_skip(skip) for skip in made.skipped],
    }


def _told_try(attempt: Try) -> dict[str, Any]:
    target, clocks = attempt.target, attempt.timeouts
    return {
        "target": target.name,
        "id": target.id,
        "provider": target.provider,
        "model": target.model,
        "key": target.key,
        "seconds": attempt.seconds,
        "first_token_s": clocks.first_token,
        "answer_s": clocks.answer,
        "idle_s": clocks.idle,
        "max_output_tokens": attempt.output,
        "cost_bound_usd": attempt.bound.dollars(),
    }


def _told_skip(skip: Skip) -> dict[str, Any]:
    return {
        "target": skip.target.name,
        "id": skip.target.id,
        "cause": skip.cause.value,
        "detail": skip.detail,
    }
