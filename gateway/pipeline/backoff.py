"""How long to wait before a target is asked again: full jitter, or what the server asked for.

Source: gateway.md 3.4; "Exponential Backoff and Jitter" (AWS Architecture Blog).
"""

import random

from tenacity import RetryCallState, wait_fixed, wait_random, wait_random_exponential

from gateway.core.target import Retry

RETRY_SPREAD = 0.25  # of a Retry-After of ours
HINT_SPREAD = 0.1  # of the hint, and 100 ms, so that callers do not come back together


def jitter(retry: Retry, done: int) -> float:
    """`U(0, min(cap, backoff x 2^done))` seconds; `done` retries were made on this target."""
    wait = wait_random_exponential(multiplier=retry.backoff, max=retry.cap)
    return wait(_state(done))


def after_hint(hint: float) -> float:
    """`hint + U(0, 0.1 x hint + 100 ms)` seconds: never before the moment that was asked for."""
    wait = wait_fixed(hint) + wait_random(0, HINT_SPREAD * hint + 0.1)
    return wait(_state(0))


def spread(seconds: float) -> float:
    """A Retry-After plus up to a quarter, so that callers do not come back together."""
    return seconds * random.uniform(1, 1 + RETRY_SPREAD)  # noqa: S311 - spreads load


def _state(done: int) -> RetryCallState:
    # tenacity counts the calls made so far from 1; we use its waits, not its loop.
    state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
    state.attempt_number = done + 1
    return state
