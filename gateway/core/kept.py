"""Answers that are kept for their callers: whose they are, what is kept, what stands in the way."""

from enum import Enum
from typing import Literal, NamedTuple

from gateway.wire import json

CacheScope = Literal["user", "key", "team"]
Ending = Literal["ended", "kept", "running"]
"""What DELETE found: a call it ended, an answer that is there, a call that ends with its caller."""


class Owner(NamedTuple):
    """Who may read what is kept. `account` is a key or a team (`key:search`), and bounds how much.

    `user` is one of that key's users; "" where they are not told apart.
    """

    account: str
    user: str = ""


class Kept(json.Struct, frozen=True):
    """An answer, whole.

    Args:
        status: 200, or the 4xx that an upstream gave.
        body: the completion in our dialect, or the members of the error.
        target, model: who answered; "" where nobody did.
        cost: what the answer cost when it was made: dollars, or `unknown`.
        finish_reason: of its first choice.
    """

    status: int
    body: bytes
    target: str = ""
    model: str = ""
    cost: str = "0"
    finish_reason: str | None = None


class Held(Enum):
    """Why a caller's key cannot be had now."""

    RUNNING = "running"  # somebody answers it just now
    OTHER = "other"  # it stands for another request
    ENDED = "ended"  # its caller ended it a moment ago


class Recalled(NamedTuple):
    """What a request had to do with kept answers.

    Args:
        cache: hit, miss, off or shared; "" where the chain has no cache.
        kept: the answer that came from there; None: an upstream was asked.
        replayed: it stood under the caller's own key.
    """

    cache: str = ""
    kept: Kept | None = None
    replayed: bool = False
