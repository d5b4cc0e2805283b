"""Short words for what the state's tests need."""

from typing import Any

from gateway.core.attempt import Attempt, Line, Opening
from gateway.core.target import Account, BreakerPolicy, Cause, Failure, Target
from gateway.core.usage import Usage


def rpm(limit: int, burst: int | None = None, name: str = "a") -> Account:
    return Account(f"key:{name}:rpm", "key", name, "rpm", limit, burst)


def tpm(limit: int, name: str = "a") -> Account:
    return Account(f"key:{name}:tpm", "key", name, "tpm", limit)


def slots(limit: int, name: str = "a") -> Account:
    return Account(f"key:{name}:concurrency", "key", name, "concurrency", limit)


def budget(limit: int, name: str = "a") -> Account:
    return Account(f"key:{name}:budget:day:2026-11-21", "key", name, "budget", limit)


def opening(id: str = "req_1.1", **changed: Any) -> Opening:
    return Opening(
        attempt_id=id, at=1_800_000_000.0, key_id="search-prod", team="search", user="u1",
        session="s1", tags="app=web,job=nightly", chain="smart", target="gpt", provider="openai",
        model="gpt-5-mini", kind="answer", price_id="openai/gpt-5-mini@2025", prompt=1_000,
        input_price=250_000_000, output_price=2_000_000_000, request_price=7, bound=99,
    )._replace(**changed)  # fmt: skip


def line(id: str = "req_1.1", **changed: Any) -> Line:
    return Line(
        attempt_id=id, at=1_800_000_001.0, usage=Usage(input=900, output=50, cached=100),
        nano_usd=325_000, price_id="openai/gpt-5-mini@2025", flags="", outcome="ok", status=200,
        upstream_ms=812, first_content_ms=300,
    )._replace(**changed)  # fmt: skip


def target(id: str = "gpt", **changed: Any) -> Target:
    values: dict[str, Any] = {
        "id": id, "name": id.partition("#")[0], "provider": "openai", "kind": "openai",
        "model": f"model-of-{id}", "base_url": "https://api.example", "breaker": BreakerPolicy(),
    }  # fmt: skip
    return Target(**(values | changed))


def ended(of: Target, started: float, *, probe: bool = False, took: float = 0.0) -> Attempt:
    """An attempt that finished well."""
    attempt = Attempt("req_1.1", of, started)
    attempt.probe = probe
    attempt.ended = started + took
    attempt.finished = True
    return attempt


def failed(
    of: Target,
    started: float,
    cause: Cause = Cause.SERVER_ERROR,
    *,
    probe: bool = False,
    **why: Any,
) -> Attempt:
    attempt = ended(of, started, probe=probe)
    attempt.finished = False
    attempt.failure = Failure(cause, "it failed", **why)
    return attempt
