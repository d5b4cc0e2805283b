"""One request's story: the same words in the log line, `gateway why`, the console and the docs."""

from collections.abc import Mapping
from typing import Any

from gateway.core.attempt import Attempt, Exchange
from gateway.core.kept import Recalled
from gateway.core.plan import Skip
from gateway.core.usage import Usage
from gateway.errors import GatewayError


def story(exchange: Exchange, now: float, config: str) -> Mapping[str, Any]:
    """What happened, as JSON values; never a prompt, completion, header value, key or URL.

    Told once when the exchange has ended: who listens shares it, and does not change it.

    Args:
        exchange: settled, or still under way.
        now: epoch seconds of its end.
        config: the snapshot's name.
    """
    if exchange.told is not None:
        return exchange.told
    told = _tell(exchange, now, config)
    if exchange.settled:
        exchange.told = told
    return told


def _tell(exchange: Exchange, now: float, config: str) -> dict[str, Any]:
    facts, principal, started = exchange.facts, exchange.principal, exchange.started
    attempts = [_attempt(attempt, started) for attempt in exchange.attempts]
    skips = exchange.skips
    told: dict[str, Any] = {
        "ts": now,
        "event": "request",
        "level": "error" if exchange.status >= 500 else "info",
        "request_id": exchange.id,
        "api": exchange.api,
        "chain": exchange.chain_name,
        "status": exchange.status,
        "stream": exchange.streaming,
        "key": principal.key_id if principal else None,
        "team": principal.team if principal else None,
        "user": facts.user if facts else None,
        "session": facts.session if facts else None,
        "path": exchange.path(),
        "attempts": attempts,
        "skipped": [_skip(skip) for skip in skips] if skips else [],
        "queue_ms": round(exchange.waited * 1000) if exchange.waited else 0,
        "ms": round((exchange.ended - started) * 1000),
        "cost_usd": attempts[0]["cost_usd"] if len(attempts) == 1 else exchange.cost.dollars(),
        "config": config,
    }
    served = exchange.served_by
    if served is not None and served.first_content is not None:
        told["target"] = served.target.name
        told["ttft_ms"] = round((served.first_content - started) * 1000)
        if served.usage is not None:
            told["tokens"] = attempts[-1]["tokens"]  # the last served
    if exchange.recalled is not None:
        told |= _recalled(exchange.recalled)
    if exchange.detached:
        told["detached"] = True
    if exchange.parked is not None:
        told["parked"] = exchange.parked
    if exchange.finish_reason is not None:
        told["finish_reason"] = exchange.finish_reason
    if exchange.error is not None:
        told |= _refusal(exchange.error)
    return told


def _recalled(recalled: Recalled) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if recalled.cache:
        told["cache"] = recalled.cache
    if recalled.replayed:
        told["replayed"] = True
    if recalled.kept is not None and recalled.kept.target:
        told["target"] = recalled.kept.target
    return told


def _skip(skip: Skip) -> dict[str, Any]:
    return {"target": skip.target.name, "reason": skip.cause.value, "detail": skip.detail}


def _refusal(error: GatewayError) -> dict[str, Any]:
    told: dict[str, Any] = {"error": error.code}
    if error.scope is not None:
        told["scope"] = error.scope
    if error.retry_after is not None:
        told["retry_after_ms"] = round(error.retry_after * 1000)
    return told


def tokens(usage: Usage) -> dict[str, Any]:
    """The sorts that are not 0; `estimated` when we counted."""
    told: dict[str, Any] = {"input": usage.input, "output": usage.output}
    if usage.cached:
        told["cached"] = usage.cached
    if usage.cache_write_5m:
        told["cache_write_5m"] = usage.cache_write_5m
    if usage.cache_write_1h:
        told["cache_write_1h"] = usage.cache_write_1h
    if usage.reasoning:
        told["reasoning"] = usage.reasoning
    if usage.estimated:
        told["estimated"] = True
    return told


def _attempt(attempt: Attempt, started: float) -> dict[str, Any]:
    began, target = attempt.started, attempt.target
    ended = attempt.ended if attempt.ended is not None else began
    told: dict[str, Any] = {
        "target": target.name,
        "key": target.key,
        "kind": attempt.kind,
        "outcome": attempt.outcome,
        "status": attempt.status,
        "at_ms": round((began - started) * 1000),
        "ms": round((ended - began) * 1000),
        "cost_usd": attempt.cost.dollars(),
    }
    if attempt.first_content is not None:
        told["first_content_ms"] = round((attempt.first_content - began) * 1000)
    if attempt.usage is not None:
        told["tokens"] = tokens(attempt.usage)
    if attempt.failure is not None:
        told["message"] = attempt.failure.message
        if attempt.failure.retry_after is not None:
            told["retry_after_ms"] = round(attempt.failure.retry_after * 1000)
    return told
