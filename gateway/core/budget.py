"""Budgets: what may be spent in a period of the calendar (UTC), and the account that counts it.

The period is part of an account's id, so a new one begins with a new account: nothing has to be
reset, and a request that runs over midnight is counted where it began.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal, NamedTuple

from gateway.core.target import Account, AccountScope
from gateway.wire.admin import AMOUNT

Per = Literal["request", "hour", "day", "month", "total"]
COUNTED: tuple[Per, ...] = ("hour", "day", "month", "total")
MOST_USD = 9_000_000


class Budget(NamedTuple):
    """As a tier or key has it. `hard`: never passed; else what is under way may pass it."""

    per: Per
    nano_usd: int
    hard: bool = True


class Allowance(NamedTuple):
    """A budget of somebody. `owner`: what the ids of its accounts begin with, `key:ci`."""

    owner: str
    scope: AccountScope
    name: str
    budget: Budget


class Period(NamedTuple):
    """`label` as it stands in ids; `ends` is epoch seconds, None: never."""

    label: str
    ends: float | None


class Window(NamedTuple):
    """A budget's account for one period."""

    account: Account
    per: Per
    hard: bool
    ends: float | None


@dataclass(frozen=True, slots=True)
class Purse:
    """Every budget one request is bound by.

    Args:
        windows: those that are counted.
        most: nano-dollars the request itself may cost; None: not said.
        hard: one of them is never passed, so bounds have to be real.
        prompt: tokens the prompt has at most; None: it has parts without a bound.
    """

    windows: tuple[Window, ...]
    most: int | None
    hard: bool
    prompt: int | None
    accounts: tuple[Account, ...] = field(init=False)
    ids: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        accounts = tuple(window.account for window in self.windows)
        object.__setattr__(self, "accounts", accounts)
        object.__setattr__(self, "ids", tuple(account.id for account in accounts))


def allowances(
    scope: AccountScope, name: str, budgets: Iterable[Budget], owner: str | None = None
) -> tuple[Allowance, ...]:
    """Each budget as somebody's own; `owner` if the name alone does not tell them apart."""
    whose = f"{scope}:{name}" if owner is None else owner
    return tuple(Allowance(whose, scope, name, budget) for budget in budgets)


def amount(usd: str) -> int | None:
    """Nano-dollars; None: no plain decimal, finer than 9 decimals, 0, or more than MOST_USD."""
    if not re.fullmatch(AMOUNT.removeprefix("^").removesuffix("$"), usd):
        return None
    found = Decimal(usd)
    return int(found * 1_000_000_000) if 0 < found <= MOST_USD else None


def narrowed(outer: Iterable[Budget], own: Iterable[Budget]) -> tuple[Budget, ...]:
    """Both together, the narrower of each period; hard if one of the two is."""
    found = {budget.per: budget for budget in outer}
    for budget in own:
        wide = found.get(budget.per, budget)
        most = min(wide.nano_usd, budget.nano_usd)
        found[budget.per] = Budget(budget.per, most, wide.hard or budget.hard)
    return tuple(found.values())


def period(per: Per, now: float) -> Period:
    """The one that `now` (epoch seconds) lies in."""
    at = datetime.fromtimestamp(now, UTC)
    if per == "hour":
        begins = at.replace(minute=0, second=0, microsecond=0)
        return Period(begins.strftime("%Y-%m-%dT%H"), (begins + timedelta(hours=1)).timestamp())
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    if per == "day":
        return Period(midnight.strftime("%Y-%m-%d"), (midnight + timedelta(days=1)).timestamp())
    if per == "month":
        first = midnight.replace(day=1)
        following = (first + timedelta(days=31)).replace(day=1)
        return Period(first.strftime("%Y-%m"), following.timestamp())
    return Period("", None)


def over(account: str, day: str) -> bool:
    """Whether the period in an account's id was over before a day, `2026-11-21`.

    It stands at the end, so nothing a user or session is called can look like one.
    """
    _, per, label = account.rsplit(":", 2)
    return per in {"hour", "day", "month"} and label[:10] < day[: len(label)]


def window(allowance: Allowance, now: Period) -> Window:
    """The account of a budget in this period: `key:ci:budget:day:2026-11-21`."""
    owner, scope, name, budget = allowance
    after = f":{now.label}" if now.label else ""
    name_now = f"{owner}:budget:{budget.per}{after}"
    account = Account(name_now, scope, name, "budget", budget.nano_usd)
    return Window(account, budget.per, budget.hard, now.ends)
