"""Exchanges that have ended, for listeners to hear."""

from gateway.clock import Deadline
from gateway.core.attempt import Attempt, Exchange
from gateway.core.plan import Facts, Plan, Skip
from gateway.core.principal import Principal
from gateway.core.request import Hints, Request
from gateway.core.snapshot import Snapshot
from gateway.core.target import Cause, Chain, Failure, Leaf, Secret, Target, Timeouts
from gateway.core.usage import Cost, Usage
from gateway.wire import json

CANARY = "canary"


def target(name, id=None):
    return Target(
        id or name,
        name,
        "openai",
        "openai",
        f"model-{name}",
        f"https://{CANARY}.example",
        secret=Secret(f"sk-{CANARY}"),
    )


GPT, CLAUDE, SPARE = target("gpt"), target("claude"), target("gpt", "gpt#spare")
CHAIN = Chain(
    "default", (Leaf("gpt", (GPT, SPARE), Timeouts()), Leaf("claude", (CLAUDE,), Timeouts()))
)
OTHER = Chain("other", (Leaf("claude", (CLAUDE,), Timeouts()),))
DIRECT = Chain("openai/gpt", (Leaf("gpt", (GPT,), Timeouts()),))
TARGETS = {t.id: t for t in (GPT, CLAUDE, SPARE)}
SNAPSHOT = Snapshot(
    "abc123", {"default": CHAIN, "alias": CHAIN, "other": OTHER}, {"openai/gpt": DIRECT}, TARGETS
)


def exchange(*tried, chain=CHAIN, status=200, error=None, stream=False, api="chat"):
    """`tried`: (target, cause or None) in order; times are made up but orderly."""
    ended = Exchange("req_1", api, 100.0)
    members = {"messages": json.raw([{"role": "user", "content": CANARY}])}
    request = Request("chat", chain.name, members, stream=stream)
    principal = Principal("search-prod", team="search")
    ended.principal = principal
    ended.facts = Facts(
        "req_1",
        100.0,
        Deadline(700.0),
        principal,
        request,
        chain,
        Hints(traceparent=CANARY),
        user="u_1",
        session="s_1",
    )
    ended.plan = Plan(chain, ())
    ended.chain_name = chain.name
    ended.streaming = stream
    ended.planned = 100.001
    at = 100.002
    for number, (tried_target, cause) in enumerate(tried):
        attempt = Attempt(f"req_1.{number}", tried_target, at)
        at += 0.2
        attempt.ended = at
        if cause is None:
            attempt.first_content = at - 0.1
            attempt.finished = True
            attempt.usage = Usage(input=10, output=20, cached=4, reasoning=5)
            attempt.cost = Cost(120_000)
            attempt.status = 200
        else:
            attempt.failure = Failure(cause, f"it was {cause}", status=500, body=CANARY.encode())
            ended.trail.append((tried_target.name, cause.value))
        ended.attempts.append(attempt)
    ended.status = status
    ended.error = error
    ended.finished = error is None
    ended.ended = at + 0.001
    return ended


def skipped(ended, what, cause=Cause.BREAKER_OPEN):
    ended.skips.append(Skip(what, cause))
    ended.trail.insert(0, (what.name, cause.value))
    return ended
