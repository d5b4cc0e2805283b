"""Targets, chains, limits and causes: what a configuration means once it is resolved."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Literal

from gateway.core.kept import CacheScope
from gateway.core.usage import Price
from gateway.wire import json


class Secret(str):
    """A credential that does not print: `reveal()` where it must leave."""

    __slots__ = ()

    def reveal(self) -> str:
        return str.__str__(self)

    def __repr__(self) -> str:
        return "'…'"

    def __str__(self) -> str:
        return "…"

    def __format__(self, spec: str) -> str:
        return "…"


class Cause(StrEnum):
    """The closed list of why a target did not answer; the same words in YAML and everywhere."""

    # what a call came to
    CONNECT = "connect"
    TIMEOUT = "timeout"
    FIRST_TOKEN = "first_token"  # noqa: S105 - a cause, not a password
    STALLED = "stalled"
    CUT_STREAM = "cut_stream"
    MALFORMED = "malformed"
    RATE_LIMITED = "rate_limited"
    QUOTA = "quota"
    AUTH = "auth"
    OVERLOADED = "overloaded"
    SERVER_ERROR = "server_error"
    MODEL_GONE = "model_gone"
    CONTEXT_LENGTH = "context_length"
    UNABLE = "unable"
    CONTENT_POLICY = "content_policy"
    BAD_REQUEST = "bad_request"
    # why a target was skipped before a call
    BREAKER_OPEN = "breaker_open"
    THROTTLED = "throttled"
    KEY_ASIDE = "key_aside"
    NO_HEADROOM = "no_headroom"
    TOO_SLOW = "too_slow"
    TOO_DEAR = "too_dear"
    EXCLUDED = "excluded"
    # why a request ended
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    LIMIT = "limit"
    BUDGET = "budget"
    DRAINING = "draining"
    WORKER_LOST = "worker_lost"


class Same(Enum):
    """May the same target be asked again?"""

    NOISE = "once at once"
    HINT = "when its Retry-After has passed and nobody else is left, or within patience"
    LAST = "when no other target is left"
    NEVER = "never"


class Next(Enum):
    """May the next target be asked?"""

    YES = "yes"
    LARGER = "only one with a larger or unknown context, or the chain in `on`"
    SAID = "only when `on` says so"
    NEVER = "never"


class Fault(Enum):
    """Whom the failure is held against."""

    TARGET = "the breaker counts it"
    THROTTLE = "(model, key) rests until its reset"
    KEY = "the key is set aside"
    MODEL = "the target is set aside"
    LEARN = "the ability is remembered as missing"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class WayOn:
    same: Same
    next: Next
    fault: Fault


_TARGET_FAULT = WayOn(Same.NEVER, Next.YES, Fault.TARGET)
_NOISE = WayOn(Same.NOISE, Next.YES, Fault.TARGET)
_OURS = WayOn(Same.NEVER, Next.NEVER, Fault.NOBODY)

WAY_ON: Mapping[Cause, WayOn] = {
    Cause.CONNECT: _NOISE,
    Cause.TIMEOUT: _TARGET_FAULT,
    Cause.FIRST_TOKEN: _TARGET_FAULT,
    Cause.STALLED: _TARGET_FAULT,
    Cause.CUT_STREAM: _TARGET_FAULT,
    Cause.MALFORMED: _NOISE,
    Cause.RATE_LIMITED: WayOn(Same.HINT, Next.YES, Fault.THROTTLE),
    Cause.QUOTA: WayOn(Same.NEVER, Next.YES, Fault.KEY),
    Cause.AUTH: WayOn(Same.NEVER, Next.YES, Fault.KEY),
    Cause.OVERLOADED: WayOn(Same.LAST, Next.YES, Fault.TARGET),
    Cause.SERVER_ERROR: _NOISE,
    Cause.MODEL_GONE: WayOn(Same.NEVER, Next.YES, Fault.MODEL),
    Cause.CONTEXT_LENGTH: WayOn(Same.NEVER, Next.LARGER, Fault.NOBODY),
    Cause.UNABLE: WayOn(Same.NEVER, Next.YES, Fault.LEARN),
    Cause.CONTENT_POLICY: WayOn(Same.NEVER, Next.SAID, Fault.NOBODY),
    Cause.BAD_REQUEST: _OURS,
}
"""The retry and fallback policy in one table (every cause a call may come to has a row)."""

ABILITIES = frozenset(
    {
        "tools",
        "parallel_tools",
        "vision",
        "audio",
        "files",
        "json_schema",
        "reasoning",
        "prefill",
        "logprobs",
        "n",
    }
)


@dataclass(frozen=True, slots=True)
class Failure:
    """What an attempt came to instead of an answer.

    Args:
        cause: one of the table's.
        message: ours, safe to show: no upstream bytes, URL or key.
        status: the upstream's HTTP status, if it answered one.
        body: the upstream's error body, redacted, at most 2 KiB; only ever relayed to a caller
            for `bad_request`, `context_length` and `content_policy`.
        retry_after: seconds the upstream asked us to wait.
        feature: for `unable`: the parameter or ability that is refused.
        throttles: whether `rate_limited` rests the target ("request too large" does not).
        redialled: a dead connection of the pool was replaced already, and the fresh one failed.
    """

    cause: Cause
    message: str
    status: int | None = None
    body: bytes = b""
    retry_after: float | None = None
    feature: str | None = None
    throttles: bool = True
    redialled: bool = False


class Failed(Exception):
    """An attempt failed; the road decides what follows. Never leaves the pipeline."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.cause.value)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds; `reasoning_slack` multiplies `first_token` and `answer` for silent reasoning."""

    connect: float = 2.0
    first_token: float = 10.0
    answer: float = 90.0
    idle: float = 20.0
    reasoning_slack: float = 6.0


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a target is left alone, and for how long (seconds)."""

    failures: int = 5
    window: float = 30.0
    min_requests: int = 20
    error_rate: float = 0.5
    cooldown: float = 5.0
    max_cooldown: float = 30.0


@dataclass(frozen=True, slots=True)
class Retry:
    """`attempts` counts the upstream calls of a request, fallbacks included; the rest seconds."""

    same_target: int = 1
    attempts: int = 4
    patience: float = 0.0
    backoff: float = 0.25
    cap: float = 8.0
    max_wait: float = 8.0
    budget: float = 0.2


AccountKind = Literal["rpm", "tpm", "concurrency", "budget"]
AccountScope = Literal["team", "key", "user", "session", "provider", "target"]


@dataclass(frozen=True, slots=True)
class Account:
    """One counted limit. `id` is stable over reloads: `key:search-prod:rpm`.

    A budget counts nano-dollars and its id names the period: `key:ci:budget:day:2026-11-21`.
    `burst` only for rpm: at most so many at once, then evenly (a meter, GCRA).
    """

    id: str
    scope: AccountScope
    name: str
    kind: AccountKind
    limit: int
    burst: int | None = None

    def __hash__(self) -> int:
        return hash(self.id)


@dataclass(frozen=True, slots=True)
class Params:
    """What is done to the caller's members on the way to a target, in this order.

    `default` if absent, `cap` an upper bound, `set` forced, `drop` removed (and told).
    """

    default: Mapping[str, json.Raw] = field(default_factory=dict)
    cap: Mapping[str, float] = field(default_factory=dict)
    set: Mapping[str, json.Raw] = field(default_factory=dict)
    drop: frozenset[str] = frozenset()


NO_SECRET = Secret("")


@dataclass(frozen=True, slots=True)
class Target:
    """One (provider, key, model). Three keys make three targets of one name.

    Args:
        id: unique: `gpt`, or `gpt#spare` where the provider has several keys.
        name: as in YAML; what metrics, headers and the ledger say.
        key: the provider key's name.
        weight: the key's share among the keys of the provider.
        base_url: without a trailing slash.
        accounts: the provider's and the target's own limits.
        prices: dated rows in order; empty: unpriced.
        can: abilities; None: unknown, assumed.
        allow_unpriced: `prices.unpriced: allow`.
    """

    id: str
    name: str
    provider: str
    kind: str
    model: str
    base_url: str
    key: str = "main"
    secret: Secret = NO_SECRET
    weight: int = 1
    accounts: tuple[Account, ...] = ()
    prices: tuple[Price, ...] = ()
    allow_unpriced: bool = False
    context: int | None = None
    max_output: int | None = None
    can: frozenset[str] | None = None
    params: Params = Params()
    breaker: BreakerPolicy = BreakerPolicy()
    allow_private: bool = False

    def __hash__(self) -> int:
        return hash(self.id)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A step that is one target, with a Target for each key; `timeouts` as this chain has them."""

    name: str
    targets: tuple[Target, ...]
    timeouts: Timeouts


@dataclass(frozen=True, slots=True)
class OneOf:
    """A step that picks one member by weight; the others follow when it fails.

    A member is a sequence of steps, so that a chain may stand in a group.
    """

    members: tuple[tuple[int, tuple["Step", ...]], ...]  # (weight, steps)


Step = Leaf | OneOf


@dataclass(frozen=True, slots=True)
class Cache:
    """Which answers of a chain are given again.

    Args:
        seconds: how long an answer is kept; 0: only those under way are shared.
        scope: who shares them: a user (else the key), the key, or the team.
        join: whether requests wait for the answer of an identical one that is under way.
    """

    seconds: float
    scope: CacheScope = "user"
    join: bool = True


@dataclass(frozen=True, slots=True)
class Chain:
    """A public model name and its steps; nested chains are already part of the steps.

    `on` holds what differs from WAY_ON: `next`, `stop`, or the chain to go on with.
    `max_cost` is nano-dollars a request.
    """

    name: str
    steps: tuple[Step, ...]
    deadline: float = 600.0
    keepalive: float = 25.0
    retry: Retry = Retry()
    on: Mapping[Cause, "Literal['next', 'stop'] | Chain"] = field(default_factory=dict)
    max_cost: int | None = None
    midstream: Literal["error"] = "error"
    cache: Cache | None = None
    targets: tuple[Target, ...] = field(init=False)  # every target, each once
    fixed: tuple[tuple[Leaf, Target], ...] | None = field(init=False)  # the order, if none is drawn

    def __post_init__(self) -> None:
        leaves = self.leaves()
        every = {target.id: target for leaf in leaves for target in leaf.targets}
        object.__setattr__(self, "targets", tuple(every.values()))
        drawn = any(isinstance(step, OneOf) or len(step.targets) > 1 for step in self.steps)
        fixed = None if drawn else tuple((leaf, leaf.targets[0]) for leaf in leaves)
        object.__setattr__(self, "fixed", fixed)

    def leaves(self) -> tuple[Leaf, ...]:
        """Every target step, in order of the file, each name once."""
        found: dict[str, Leaf] = {}
        todo = list(reversed(self.steps))
        while todo:
            step = todo.pop()
            if isinstance(step, Leaf):
                found.setdefault(step.name, step)
            else:
                todo.extend(step for _, steps in reversed(step.members) for step in reversed(steps))
        return tuple(found.values())
