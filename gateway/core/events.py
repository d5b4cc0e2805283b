"""What the road says aloud; telemetry, the store of stories and the demo listen.

A listener runs inside the request's loop turn: it may append to a list or add to an integer,
never wait, never raise.
"""

from dataclasses import dataclass
from datetime import date
from typing import Literal

from gateway.core.alerts import Mover, SpendRule
from gateway.core.attempt import Attempt, Exchange
from gateway.core.audit import AuditLine
from gateway.core.usage import Cost
from gateway.wire import json


class RequestEnded(json.Struct, frozen=True):
    """Every request on a public route ends with exactly one of these, whatever became of it.

    `now` is epoch seconds. Of the exchange only what was reached is filled.
    """

    exchange: Exchange
    now: float


class AttemptEnded(json.Struct, frozen=True):
    """An upstream call is over: its outcome, usage and cost are final."""

    exchange: Exchange
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class BreakerMoved:
    """A breaker changed. `detail` for people: `5 failures in a row`, `probe ok, 111 ms`.

    `until` is the monotonic moment of the next probe when it opened.
    """

    target_id: str
    target: str
    was: Literal["closed", "half-open", "open"]
    to: Literal["closed", "half-open", "open"]
    detail: str
    until: float | None = None


@dataclass(frozen=True, slots=True)
class KeyAside:
    """A provider key (or a model) was set aside for `seconds`; an operator has to look."""

    target: str
    provider: str
    key: str
    cause: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A configuration was read again; `problem` is empty when it is in force now.

    `note`: what has to wait for a restart all the same.
    """

    config: str
    problem: str
    now: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """`started`, `draining`, `stopped`; `detail` for people."""

    what: Literal["started", "draining", "stopped"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StateTrouble:
    """The store or the journal could not be used; `problem` names the operation, no path."""

    backend: str
    op: str
    problem: str


@dataclass(frozen=True, slots=True)
class StoreMoved:
    """The shared store was lost, or is back; `detail` says why, for people."""

    backend: str
    lost: bool
    detail: str = ""


Sheds = Literal["nobody", "low", "normal", "all"]


@dataclass(frozen=True, slots=True)
class GuardMoved:
    """This process takes in less, or more again.

    `sheds`: the highest class that is turned away; `crowded`: new connections are refused too;
    `why` is for people, "" when all is well.
    """

    sheds: Sheds
    crowded: bool
    why: str


@dataclass(frozen=True, slots=True)
class SpendAlert:
    """A user of a key spent more on `day` (UTC) than `rule` allows for: told once a day.

    For the log, the counter, the webhook and the audit; it blocks nothing.
    """

    mover: Mover
    day: date
    rule: SpendRule

    def told(self) -> dict[str, str]:
        """In words: dollars as exact decimals."""
        mover = self.mover
        return {
            "key": mover.key,
            "user": mover.user,
            "day": self.day.isoformat(),
            "spent_usd": Cost(mover.spent).dollars(),
            "usual_usd": Cost(mover.usual).dollars(),
        }


@dataclass(frozen=True, slots=True)
class Audited:
    """The audit log has a line more: told elsewhere, it bears witness to the chain."""

    line: AuditLine


Event = (
    RequestEnded
    | AttemptEnded
    | BreakerMoved
    | KeyAside
    | Reloaded
    | Lifecycle
    | StateTrouble
    | StoreMoved
    | GuardMoved
    | SpendAlert
    | Audited
)
