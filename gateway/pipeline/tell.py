"""What a caller is told beside the answer: headers, the note at a stream's end, the last error.

The most useful failure chooses the error, never the first by accident. Source: gateway.md, 3.9
and 8.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.clock import Clock
from gateway.core.attempt import Attempt, Exchange, Headroom
from gateway.core.kept import Recalled
from gateway.core.plan import Skip
from gateway.core.snapshot import Snapshot
from gateway.core.story import story
from gateway.core.target import Cause, Failure
from gateway.core.usage import NOTHING, Cost
from gateway.errors import (
    RETRY_WORTH_WAITING,
    GatewayError,
    InvalidRequest,
    Overloaded,
    RateLimited,
    UpstreamFailed,
    UpstreamTimedOut,
)
from gateway.pipeline.backoff import spread
from gateway.pipeline.plan import MIN_ATTEMPT
from gateway.wire import json

TIMED_OUT = frozenset({Cause.TIMEOUT, Cause.FIRST_TOKEN, Cause.STALLED, Cause.DEADLINE})
IMPOSSIBLE = frozenset({Cause.CONTEXT_LENGTH, Cause.UNABLE, Cause.EXCLUDED, Cause.TOO_DEAR})
FULL = frozenset({Cause.RATE_LIMITED, Cause.THROTTLED, Cause.NO_HEADROOM})
RESTING = frozenset({Cause.BREAKER_OPEN, Cause.KEY_ASIDE, Cause.OVERLOADED})
RELAYED = frozenset({Cause.BAD_REQUEST, Cause.CONTEXT_LENGTH, Cause.CONTENT_POLICY, Cause.UNABLE})
SHOWN_MESSAGE = 2048  # characters of an upstream's own message


def early_headers(exchange: Exchange, snapshot: Snapshot) -> dict[str, str]:
    """What is known when a keepalive has to send the head before anybody has answered."""
    headers = {"x-gateway-config": snapshot.config, "x-gateway-chain": exchange.chain_name}
    if exchange.headroom:
        _limits(headers, exchange.headroom)
        if exchange.facts is not None and exchange.facts.purse is not None:
            _money(headers, exchange)
    return headers


def answer_headers(exchange: Exchange, snapshot: Snapshot, clock: Clock) -> dict[str, str]:
    """The headers of an answer, and of a refusal as far as it came (gateway.md 8.1)."""
    headers = early_headers(exchange, snapshot)
    if exchange.attempts or exchange.trail:
        headers["x-gateway-attempts"] = str(len(exchange.attempts))
        headers["x-gateway-path"] = exchange.path()
    served = exchange.served_by
    if served is not None:
        headers["x-gateway-target"] = served.target.name
        headers["x-gateway-model"] = served.target.model
    if exchange.recalled is not None:
        _recalled(headers, exchange.recalled)
    if exchange.dropped:
        headers["x-gateway-dropped"] = ",".join(exchange.dropped)
    if exchange.attempts and (served is None or served.closed):
        headers["x-gateway-cost-usd"] = exchange.cost.dollars()
    queue, first, total, own = _times(exchange, clock)
    if first is None:
        headers["x-gateway-time"] = f"queue={queue};total={total};own={own}"
        headers["server-timing"] = f"queue;dur={queue}, total;dur={total}, own;dur={own}"
    else:
        headers["x-gateway-time"] = f"queue={queue};first={first};total={total};own={own}"
        headers["server-timing"] = (
            f"queue;dur={queue}, first;dur={first}, total;dur={total}, own;dur={own}"
        )
    return headers


def note(exchange: Exchange, clock: Clock) -> bytes:
    """What a stream knows only at its end, for the comment before `[DONE]`."""
    served = exchange.served_by
    queue, first, total, own = _times(exchange, clock)
    told = {
        "target": served.target.name if served else None,
        "attempts": len(exchange.attempts),
        "path": exchange.path(),
        "cost_usd": exchange.cost.dollars(),
        "time": f"queue={queue};first={first};total={total};own={own}",
    }
    return json.dumps(told)


def tell(error: GatewayError, exchange: Exchange, snapshot: Snapshot, clock: Clock) -> GatewayError:
    """The error with everything the road knows of it: attempts, headers, the trace if wanted.

    Told twice, the first counts: a detached call tells it before its caller does.
    """
    if exchange.error is error:
        exchange.status = error.status
        return error
    exchange.error = error
    exchange.status = error.status
    error.request_id = exchange.id
    if error.should_retry and error.retry_after is not None:
        later = spread(error.retry_after)
        error.retry_after = max(error.retry_after, min(later, RETRY_WORTH_WAITING))
    error.attempts = [_told(attempt) for attempt in exchange.attempts]
    exchange.ended = clock.monotonic()
    error.told = answer_headers(exchange, snapshot, clock)
    if exchange.facts is not None and exchange.facts.hints.trace:
        error.extra = {"gateway": trace(exchange, snapshot, clock)}
    return error


def trace(exchange: Exchange, snapshot: Snapshot, clock: Clock) -> Mapping[str, Any]:
    """The story so far, for callers with the right `trace`."""
    exchange.ended = clock.monotonic()
    return story(exchange, clock.now(), snapshot.config)


def exhausted(exchange: Exchange, skipped: Sequence[Skip], now: float) -> GatewayError:
    """Nobody answered: the error of the most useful failure.

    Args:
        exchange: its attempts and its chain.
        skipped: targets of the last plan that were not asked.
        now: monotonic seconds.
    """
    failures = [a.failure for a in exchange.attempts if a.failure is not None]
    causes = {failure.cause for failure in failures} | {skip.cause for skip in skipped}
    if (relayed := _relayed(failures)) is not None:
        return relayed
    if causes and causes <= IMPOSSIBLE:
        return _impossible(exchange, skipped, causes)
    message = _message(exchange, skipped, now)
    soonest = _soonest(exchange, skipped, now)
    if causes & FULL:
        return RateLimited(message, code="chain_exhausted", retry_after=soonest, scope="target")
    deadline = exchange.facts.deadline.at if exchange.facts else now
    late = now > deadline - MIN_ATTEMPT
    if causes & TIMED_OUT or late:
        code = "deadline_exceeded" if late or not failures else _code(failures)
        return UpstreamTimedOut(message, code=code)
    if causes - IMPOSSIBLE <= RESTING:
        return Overloaded(message, code="no_healthy_target", retry_after=soonest)
    return UpstreamFailed(message, code=_code(failures))


def cut(exchange: Exchange, failure: Failure) -> GatewayError:
    """The stream had begun and broke: what the error event says."""
    served = exchange.served_by
    name = served.target.name if served else "the target"
    message = f"The answer of {name} broke off: {failure.message}. It is not complete."
    if failure.cause is Cause.DEADLINE:
        return UpstreamTimedOut(message)
    if failure.cause in TIMED_OUT:
        return UpstreamTimedOut(message, code=failure.cause.value)
    return UpstreamFailed(message, code=failure.cause.value)


def _relayed(failures: Sequence[Failure]) -> GatewayError | None:
    """A caller's own mistake, as the last upstream worded it (redacted)."""
    for failure in reversed(failures):
        if failure.cause in RELAYED:
            return _as_told(failure)
    return None


def _as_told(failure: Failure) -> GatewayError:
    told = {} if failure.cause is Cause.UNABLE else _upstream_error(failure.body)
    codes = {
        Cause.CONTEXT_LENGTH: "context_length_exceeded",
        Cause.CONTENT_POLICY: "content_filter",
        Cause.UNABLE: "unsupported_parameter",
    }
    text = told.get("message")
    code = told.get("code")
    param = told.get("param")
    error = InvalidRequest(
        text[:SHOWN_MESSAGE] if isinstance(text, str) and text else failure.message,
        code=codes.get(failure.cause) or (code if isinstance(code, str) and code else None),
        param=param if isinstance(param, str) else failure.feature,
    )
    if failure.cause is Cause.BAD_REQUEST and 400 <= (failure.status or 0) < 500:
        error.status = failure.status or error.status
    return error


def _upstream_error(body: bytes) -> Mapping[str, Any]:
    """The error object of an upstream's body, whichever shape it has (wire-mapping.md 5)."""
    try:
        whole = json.loads(body) if body else {}
    except json.JSONError:
        return {}
    if not isinstance(whole, dict):
        return {}
    error = whole.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {"message": error, "code": whole.get("code")}
    if isinstance(whole.get("detail"), str):
        return {"message": whole["detail"]}
    return whole


def _impossible(exchange: Exchange, skipped: Sequence[Skip], causes: set[Cause]) -> GatewayError:
    """No target of the chain could ever answer this request as it is."""
    name = exchange.chain_name
    details = "; ".join(f"{s.target.name}: {s.detail}" for s in skipped if s.detail)
    if causes == {Cause.CONTEXT_LENGTH}:
        largest = max((s.target.context or 0 for s in skipped), default=0)
        return InvalidRequest(
            f"The prompt does not fit: the largest context of chain '{name}' is {largest:,} tokens"
            f" ({details}).",
            code="context_length_exceeded",
            param="messages",
        )
    if Cause.TOO_DEAR in causes:
        return InvalidRequest(
            f"No target of chain '{name}' stays within what this request may cost or has a price"
            f" ({details}).",
            code="no_capable_target",
        )
    return InvalidRequest(
        f"No target of chain '{name}' can do this ({details}).", code="no_capable_target"
    )


def _message(exchange: Exchange, skipped: Sequence[Skip], now: float) -> str:
    parts = []
    for attempt in exchange.attempts:
        failure = attempt.failure
        part = f"{attempt.target.name} {attempt.outcome}"
        if failure is not None and failure.retry_after is not None:
            part += f" (back in {math.ceil(failure.retry_after)} s)"
        parts.append(part)
    tried = {attempt.target.id for attempt in exchange.attempts}
    for skip in skipped:
        if skip.target.id not in tried:
            part = f"{skip.target.name} {skip.cause.value}"
            if skip.until is not None:
                part += f" (back in {max(1, math.ceil(skip.until - now))} s)"
            parts.append(part)
    listed = ", ".join(parts) if parts else "there was no time left"
    return f"No target of chain '{exchange.chain_name}' could answer: {listed}."


def _soonest(exchange: Exchange, skipped: Sequence[Skip], now: float) -> float | None:
    """Seconds until the first target may be asked again, as far as known."""
    waits = [skip.until - now for skip in skipped if skip.until is not None]
    waits += [
        a.failure.retry_after - (now - (a.ended or now))
        for a in exchange.attempts
        if a.failure is not None and a.failure.retry_after is not None
    ]
    return max(0.05, min(waits)) if waits else None


def _code(failures: Sequence[Failure]) -> str:
    causes = {failure.cause for failure in failures}
    return failures[-1].cause.value if len(causes) == 1 else "chain_exhausted"


def _told(attempt: Attempt) -> dict[str, Any]:
    ended = attempt.ended if attempt.ended is not None else attempt.started
    return {
        "target": attempt.target.name,
        "cause": attempt.outcome,
        "status": attempt.status,
        "ms": round((ended - attempt.started) * 1000),
    }


def _times(exchange: Exchange, clock: Clock) -> tuple[int, int | None, int, str]:
    """Milliseconds: waiting in the queue, to the first content, in all, and our own share."""
    now = clock.monotonic()
    began = exchange.started
    total = now - began
    own = total - exchange.waited - exchange.paused
    for attempt in exchange.attempts:
        own -= (attempt.ended or now) - attempt.started
    served = exchange.served_by
    first = None
    if served is not None and served.first_content is not None:
        first = int((served.first_content - began) * 1000 + 0.5)
    told = f"{own * 1000:.2f}" if own > 0.0 else "0.00"
    return int(exchange.waited * 1000 + 0.5), first, int(total * 1000 + 0.5), told


def _recalled(headers: dict[str, str], recalled: Recalled) -> None:
    """Whether the answer was there already; if so, who gave it, and that it is free."""
    if recalled.cache:
        headers["x-gateway-cache"] = recalled.cache
    if recalled.replayed:
        headers["idempotency-replayed"] = "true"
    if (kept := recalled.kept) is not None:
        if kept.target:
            headers["x-gateway-target"] = kept.target
            headers["x-gateway-model"] = kept.model
        headers["x-gateway-cost-usd"] = NOTHING.dollars()


def _money(headers: dict[str, str], exchange: Exchange) -> None:
    """What is left of the tightest budget; while an answer runs, less what is held for it."""
    left = [room.remaining for room in exchange.headroom if room.account.kind == "budget"]
    if not left:
        return
    served = exchange.served_by
    back = 0
    if served is not None and served.closed:
        back = exchange.hold - exchange.cost.nano_usd
    headers["x-gateway-budget-remaining-usd"] = Cost(max(0, min(left) + back)).dollars()


def _limits(headers: dict[str, str], headroom: Sequence[Headroom]) -> None:
    """OpenAI's x-ratelimit-* for the tightest request and token accounts of the caller."""
    requests: Headroom | None = None
    tokens: Headroom | None = None
    for room in headroom:
        kind = room.account.kind
        if kind == "rpm":
            if requests is None or room.remaining < requests.remaining:
                requests = room
        elif kind == "tpm" and (tokens is None or room.remaining < tokens.remaining):
            tokens = room
    if requests is not None:
        account, remaining, reset = requests
        headers["x-ratelimit-limit-requests"] = str(account.limit)
        headers["x-ratelimit-remaining-requests"] = str(remaining)
        headers["x-ratelimit-reset-requests"] = f"{math.ceil(reset * 1000)}ms"
        headers["x-ratelimit-scope"] = account.scope
    if tokens is not None:
        account, remaining, reset = tokens
        headers["x-ratelimit-limit-tokens"] = str(account.limit)
        headers["x-ratelimit-remaining-tokens"] = str(remaining)
        headers["x-ratelimit-reset-tokens"] = f"{math.ceil(reset * 1000)}ms"
        headers["x-ratelimit-scope"] = account.scope
