"""What the planner is asked and what it answers: values only, so a plan can be made again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway.clock import Deadline
from gateway.core.budget import Purse
from gateway.core.principal import Principal
from gateway.core.request import Hints, Request
from gateway.core.target import Account, Cause, Chain, Target, Timeouts
from gateway.core.usage import NOTHING, UNKNOWN, Cost, Price
from gateway.wire import json


class Facts(json.Struct, frozen=True):
    """What is known of a request before anything is tried.

    `deadline` is the whole request's end; `started` monotonic seconds. `sub_accounts` are those of
    its user and its session, where the caller has such limits. `purse`: its budgets, if any.
    """

    id: str
    started: float
    deadline: Deadline
    principal: Principal
    request: Request
    chain: Chain
    hints: Hints
    user: str | None = None
    session: str | None = None
    sub_accounts: tuple[Account, ...] = ()
    purse: Purse | None = None

    @property
    def accounts(self) -> tuple[Account, ...]:
        """Every account of the caller's side: key, team, and what lies within them."""
        mine = self.principal.accounts
        return (*mine, *self.sub_accounts) if self.sub_accounts else mine

    @property
    def told(self) -> tuple[Account, ...]:
        """Those whose headroom answers tell."""
        told = self.principal.told
        if self.sub_accounts:
            told += tuple(one for one in self.sub_accounts if one.kind != "concurrency")
        return told if self.purse is None else told + self.purse.accounts


@dataclass(frozen=True, slots=True)
class Standing:
    """How a target stands just now; moments are monotonic seconds, 0 when nothing is against it.

    Args:
        open_until: the breaker lets nobody through before; then one probe.
        probing: half-open, and the one probe is under way.
        share: after a recovery, the part (0..1) of its traffic that it gets.
        throttled_until: the upstream asked for rest.
        aside_until: the key was refused or the model is gone.
        lacks: abilities and parameters learnt to be missing.
    """

    open_until: float = 0.0
    half_open: bool = False
    probing: bool = False
    share: float = 1.0
    throttled_until: float = 0.0
    aside_until: float = 0.0
    lacks: frozenset[str] = frozenset()


WELL = Standing()


class Waits(Protocol):
    """Seconds by target id; a dict will do."""

    def get(self, key: str, default: float, /) -> float: ...


NO_WAITS: Waits = dict[str, float]()


class State(json.Struct, frozen=True):
    """What health and limiter know at this instant.

    Args:
        now: monotonic seconds.
        epoch: seconds since the epoch, for dated prices.
        standings: by target id; a target that is not there stands well.
        waits: by target id: seconds until its accounts have room again; absent: now. It is
            looked into only until one target may be asked: the others are judged at their turn.
    """

    now: float
    epoch: float
    standings: Mapping[str, Standing] = {}
    waits: Waits = NO_WAITS


class Try(json.Struct, frozen=True):
    """One target that may be asked, with its clocks and what bounds its cost.

    Args:
        timeouts: this chain's clocks for it, reasoning slack and the caller's header applied.
        seconds: how long the attempt may take at most to content (stream) or answer.
        prompt: estimated input tokens.
        output: upper bound of output tokens.
        price: the row in force; None: unpriced.
        probe: the breaker is half-open: this would be its one probe.
        bound: what the attempt may cost at most, as far as the prompt is estimated rightly.
        hold: what budgets hold for it.
    """

    target: Target
    timeouts: Timeouts
    seconds: float
    prompt: int
    output: int
    price: Price | None
    probe: bool = False
    bound: Cost = UNKNOWN
    hold: Cost = NOTHING


class Skip(json.Struct, frozen=True):
    """A target that is left out, why, and (monotonic) when that may be over; None: not by time."""

    target: Target
    cause: Cause
    until: float | None = None
    detail: str = ""


class Plan(json.Struct, frozen=True):
    """`whole`: every target was judged; else only the first, which looked well."""

    chain: Chain
    tries: tuple[Try, ...]
    skipped: tuple[Skip, ...] = ()
    whole: bool = True
