"""What changes while a request is under way: its attempts, and the exchange that holds all."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gateway.core.kept import Recalled
from gateway.core.plan import Facts, Plan, Skip
from gateway.core.principal import Principal
from gateway.core.target import Account, Cause, Failure, Target
from gateway.core.usage import NOTHING, Cost, Usage
from gateway.errors import GatewayError


class StreamEvent(NamedTuple):
    """One event of an answer, in our dialect. A whole (non-streamed) answer is one event.

    Args:
        wire: the JSON of the chunk (or of the whole answer); b"" when there is nothing to pass on.
        content: whether it counts as content (gateway.md, "Words").
        size: UTF-8 bytes of text, reasoning and tool arguments in it, for estimates.
        usage: the provider's usage as far as told; the last one wins.
        finish_reason: of OpenAI's closed set.
        failure: the upstream failed here; nothing follows.
        own: whether `wire` is a frame only the gateway asked for (usage): the caller did not.
    """

    wire: bytes
    content: bool = False
    size: int = 0
    usage: Usage | None = None
    finish_reason: str | None = None
    failure: Failure | None = None
    own: bool = False


class Attempt:
    """One upstream call: times are monotonic seconds.

    `closed`: its ledger line is written. `accounts`: what was reserved for it. `hold`: nano-dollars
    held for it on budgets; None: there are none.
    """

    __slots__ = (
        "accounts", "bound", "closed", "cost", "delivered", "ended", "failure", "finished",
        "first_content", "hold", "hurried", "id", "kind", "opened", "probe", "started",
        "status", "target", "usage",
    )  # fmt: skip

    def __init__(self, id: str, target: Target, started: float) -> None:
        self.id = id
        self.target = target
        self.started = started
        self.kind = "answer"  # answer | retry | probe
        self.probe = False
        self.opened = False  # the journal has its opening line
        self.bound: Cost = NOTHING
        self.accounts: tuple[Account, ...] = ()
        self.hold: int | None = None
        self.status: int | None = None
        self.first_content: float | None = None
        self.ended: float | None = None
        self.failure: Failure | None = None
        self.finished = False
        self.usage: Usage | None = None
        self.cost: Cost = NOTHING
        self.delivered = 0  # UTF-8 bytes of content that came
        self.hurried = False  # its caller gave it less than it needs: no verdict on the target
        self.closed = False

    @property
    def outcome(self) -> str:
        """`ok`, a cause, or `cancelled` when it neither finished nor failed."""
        if self.failure is not None:
            return self.failure.cause.value
        return "ok" if self.finished else Cause.CANCELLED.value


class Exchange:
    """The one mutable object of a request, from its head to its settlement.

    `waited` is seconds spent in the queue, `paused` those before retries or for another's answer;
    `dropped` the members left out on the way to the target that answers; `skips` every target that
    was passed over, in order, each once; `held_for` the target whose accounts its reservation
    holds from the start; `hold` nano-dollars its budgets held then, `prepaid` what no attempt has
    used of what they hold.
    """

    __slots__ = (
        "api", "attempts", "chain_name", "detached", "dropped", "ended", "error", "facts",
        "finish_reason", "finished", "headroom", "held_for", "hold", "id", "parked", "paused",
        "plan", "planned", "prepaid", "principal", "recalled", "reservation", "settled", "skips",
        "started", "status", "streaming", "told", "trail", "waited",
    )  # fmt: skip

    def __init__(self, id: str, api: str, started: float) -> None:
        self.id = id
        self.api = api
        self.started = started
        self.principal: Principal | None = None
        self.facts: Facts | None = None
        self.plan: Plan | None = None
        self.planned = 0.0  # when the first plan and its reservation stood
        self.reservation: Reservation | None = None
        self.held_for: Target | None = None
        self.hold = 0
        self.prepaid = 0
        self.headroom: Sequence[Headroom] = ()  # of the caller's tightest accounts
        self.attempts: list[Attempt] = []
        self.skips: list[Skip] = []
        self.trail: list[tuple[str, str]] = []  # (target, cause): skips and failures, in order
        self.dropped: tuple[str, ...] = ()
        self.chain_name = "_unknown"
        self.waited = 0.0
        self.paused = 0.0
        self.streaming = False
        self.recalled: Recalled | None = None
        self.detached = False  # it is settled by a task of its own, not by its caller's
        self.parked: str | None = None  # the id under which it is answered later, or waited
        self.finish_reason: str | None = None
        self.finished = False  # the caller has the whole answer
        self.error: GatewayError | None = None
        self.status = 0  # what the caller was answered; 499 when it left before
        self.ended = 0.0
        self.settled = False
        self.told: dict[str, Any] | None = None  # its story, once it has ended

    @property
    def served_by(self) -> Attempt | None:
        """The attempt whose content the caller gets."""
        last = self.attempts[-1] if self.attempts else None
        return last if last is not None and last.first_content is not None else None

    @property
    def cost(self) -> Cost:
        if len(self.attempts) == 1:
            return self.attempts[0].cost
        total = NOTHING
        for attempt in self.attempts:
            total += attempt.cost
        return total

    def path(self, most: int = 8) -> str:
        """`gpt:breaker_open,gpt-east:first_token,claude:ok`: in order; past `most`, `+n`."""
        if not self.trail and (only := self.served_by) is not None and only.failure is None:
            return f"{only.target.name}:ok"
        told = [f"{name}:{cause}" for name, cause in self.trail]
        last = self.served_by
        if last is not None and last.failure is None:
            told.append(f"{last.target.name}:ok")
        if len(told) > most:
            return ",".join(told[:most]) + f",+{len(told) - most}"
        return ",".join(told)


class Reservation(ABC):
    """What is held for one request: account id -> n. Made and changed by the limiter only.

    `headroom` is that of the tightest caller accounts, taken when it was made.
    """

    __slots__ = ("headroom", "id")

    def __init__(self, id: str, headroom: Sequence["Headroom"]) -> None:
        self.id = id
        self.headroom = headroom

    @property
    @abstractmethod
    def held(self) -> Mapping[str, int]:
        """Made anew at each look."""


class Headroom(NamedTuple):
    """What is left of a caller's account; `reset` is seconds until it is whole again."""

    account: Account
    remaining: int
    reset: float


class Demand(NamedTuple):
    account: Account
    n: int


class Refusal(NamedTuple):
    """The first account that has no room, and in how many seconds it will have some."""

    account: Account
    wait: float


class Opening(NamedTuple):
    """What the journal has to know of an attempt before a byte leaves: enough to settle it.

    `prompt` is the estimated input, priced if the worker dies; `at` epoch seconds. `budgets`: ids
    of the accounts its cost is counted on; with them `bound` is what they hold for it.
    """

    attempt_id: str
    at: float
    key_id: str
    team: str | None
    user: str | None
    session: str | None
    tags: str  # a=b,c=d
    chain: str
    target: str
    provider: str
    model: str
    kind: str
    price_id: str | None
    prompt: int
    input_price: int  # nano-dollars per million tokens, for the estimate of a lost worker
    output_price: int
    request_price: int
    bound: int  # nano-dollars
    budgets: tuple[str, ...] = ()


class Line(NamedTuple):
    """The final row of an attempt in the ledger; times in milliseconds."""

    attempt_id: str
    at: float
    usage: Usage
    nano_usd: int | None  # None: unpriced
    price_id: str | None
    flags: str  # of estimated cost_unknown partial, joined by commas
    outcome: str
    status: int | None
    upstream_ms: int
    first_content_ms: int | None
