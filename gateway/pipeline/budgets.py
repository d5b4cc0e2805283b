"""Budgets on the road: which bind a request, what is held on them, and what a refusal says.

Source: gateway.md 5.1, 6. A caller without budgets never comes here.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from urllib.parse import quote

from gateway.core.attempt import Demand, Headroom
from gateway.core.budget import (
    COUNTED,
    Allowance,
    Per,
    Period,
    Purse,
    Window,
    allowances,
    period,
    window,
)
from gateway.core.plan import Facts, Try
from gateway.core.principal import Principal
from gateway.core.request import Request
from gateway.core.target import Account, Target
from gateway.core.usage import MILLION, UNKNOWN, Cost, Price, Usage
from gateway.errors import BudgetSpent
from gateway.wire import json

KEPT = 4096  # callers whose accounts are remembered for the hour
TOKENS_A_MESSAGE = 16  # at most, beside its text
TOKENS_AN_IMAGE = 3_000  # at most
SHOWN = 80  # characters of a user or session in a message
BOUND_PARTS = frozenset({"text", "refusal", "image_url"})
# What an upstream adds to the prompt by itself: nobody knows how much.
UNBOUND = frozenset({"web_search_options"})

_EMPTY = json.Raw(b"")


class _Message(json.Struct, gc=False):
    content: json.Raw = _EMPTY


class _Part(json.Struct, gc=False):
    type: str = ""
    image_url: json.Raw = _EMPTY


_messages = json.Decoder(list[_Message])
_parts = json.Decoder(list[_Part])


class Budgets:
    """Finds the accounts of this hour; those of a caller are made once an hour."""

    def __init__(self) -> None:
        self._began = self._ends = 0.0
        self._periods: dict[Per, Period] = {}
        self._own: dict[str, tuple[Principal, tuple[Window, ...]]] = {}

    def purse(self, facts: Facts, now: float) -> Purse | None:
        """What binds this request at `now` (epoch seconds); None: nothing does."""
        if not self._began <= now < self._ends:
            self._turn(now)
        principal = facts.principal
        within = _within(facts)
        windows = self._windows(principal)
        if within:
            windows += self._made(within)
        every = [*(one.budget for one in principal.budgets), *(one.budget for one in within)]
        of_one = [budget for budget in every if budget.per == "request"]
        if not every:
            return None
        hard = any(budget.hard for budget in every)
        most = min((budget.nano_usd for budget in of_one), default=None)
        return Purse(windows, most, hard, most_prompt(facts.request) if hard else None)

    def _turn(self, now: float) -> None:
        self._periods = {per: period(per, now) for per in COUNTED}
        self._began, self._ends = now, self._periods["hour"].ends or now
        self._own.clear()

    def _windows(self, principal: Principal) -> tuple[Window, ...]:
        if not principal.budgets:
            return ()
        found = self._own.get(principal.key_id)
        if found is not None and found[0] is principal:
            return found[1]
        if len(self._own) >= KEPT:
            self._own.clear()
        windows = self._made(principal.budgets)
        self._own[principal.key_id] = principal, windows
        return windows

    def _made(self, whose: Iterable[Allowance]) -> tuple[Window, ...]:
        periods = self._periods
        return tuple(
            window(one, periods[one.budget.per]) for one in whose if one.budget.per in periods
        )


def demands(purse: Purse, nano_usd: int) -> list[Demand]:
    """What every budget must hold. A soft one is passed by an ask above it that comes alone."""
    return [
        Demand(account, nano_usd if hard else min(nano_usd, account.limit))
        for account, _, hard, _ in purse.windows
    ]


def most_prompt(request: Request) -> int | None:
    """Tokens that cannot be exceeded: one a byte, and what messages and images add; None: unknown.

    Everything of the body counts, as everything may reach the model.
    """
    members = request.members
    if not UNBOUND.isdisjoint(members):
        return None
    size = sum(len(name) + len(value) for name, value in members.items())
    raw = members.get("messages")
    if raw is None:
        return size + TOKENS_A_MESSAGE
    try:
        messages = _messages.decode(raw)
    except json.BROKEN:
        return None
    size += TOKENS_A_MESSAGE * len(messages)
    for message in messages:
        content = message.content
        if len(content) and memoryview(content)[0] == 0x5B:  # [
            images = _images(content)
            if images is None:
                return None
            size += sum(TOKENS_AN_IMAGE - len(image) for image in images)
    return size


def _images(content: json.Raw) -> list[json.Raw] | None:
    """The images among the parts of a message; None: there are parts of another sort than text."""
    try:
        parts = _parts.decode(content)
    except json.BROKEN:
        return None
    if not BOUND_PARTS.issuperset(part.type for part in parts):
        return None
    return [part.image_url for part in parts if part.type == "image_url"]


def most_cost(facts: Facts, target: Target, price: Price | None, output: int, bound: Cost) -> Cost:
    """What is held for one attempt; of hard budgets that cannot be exceeded.

    Args:
        facts: with a purse.
        target: who would be asked.
        price: the row in force; None: unpriced.
        output: tokens of the answer at most.
        bound: the cost by the estimate of the prompt.

    Returns:
        Unknown where a hard budget has nothing to hold by.
    """
    purse = facts.purse
    if purse is None or not purse.hard:
        return bound
    prompt = target.context if purse.prompt is None else purse.prompt
    if price is None or prompt is None:
        return UNKNOWN
    audio = "audio" in facts.request.needs or "audio" in facts.request.members
    return price.most(prompt, output, audio=audio)


def spent(
    facts: Facts, candidate: Try | None, account: Account, rooms: Iterable[Headroom]
) -> BudgetSpent:
    """The 429 of a budget: which, what of it is gone, when it is whole again, what would fit."""
    purse = facts.purse
    if purse is None:
        raise AssertionError("a budget was refused that nobody has")
    full = next(window for window in purse.windows if window.account.id == account.id)
    left = {room.account.id: room.remaining for room in rooms}
    here = max(0, left.get(account.id, 0))
    gone = Cost(account.limit - here).dollars()
    whose = {
        "key": "this API key",
        "team": f"the team '{account.name}'",
        "user": f"the user '{account.name}'" if account.name else "requests that name no user",
        "session": f"the session '{account.name}'",
    }[account.scope]
    window = "in total" if full.per == "total" else f"per {full.per}"
    said = (
        f"The budget of ${Cost(account.limit).dollars()} {window} of {whose} does not allow this"
        f" request: ${gone} is spent or held by requests under way"
    )
    told = [said]
    if candidate is not None:
        told = [f"{said}, and it may cost ${candidate.hold.dollars()}"]
        most = _fitting(facts, candidate, min([here, *(max(0, n) for n in left.values())]))
        if most:
            told.append(f"With max_tokens of at most {most:,} it fits now")
    resets = None if full.ends is None else _rfc3339(full.ends)
    told.append(f"It is whole again at {resets}" if resets else "It does not renew itself")
    return BudgetSpent(". ".join(told) + ".", scope=account.scope, resets_at=resets)


def _fitting(facts: Facts, candidate: Try, left: int) -> int:
    """The largest max_tokens with which the target could be asked now; 0: none helps."""
    price, request = candidate.price, facts.request
    if price is None or request.kind == "embeddings":
        return 0

    def held(tokens: int) -> int:
        by_estimate = price.cost(Usage(candidate.prompt, tokens))
        return most_cost(facts, candidate.target, price, tokens, by_estimate).nano_usd

    each = max(1, held(MILLION) - held(0))  # for a million tokens
    tokens = (left - held(0)) * MILLION // each
    while tokens > 0 and held(tokens) > left:
        tokens -= 1
    return max(0, min(tokens, candidate.output - 1)) // request.n


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _within(facts: Facts) -> tuple[Allowance, ...]:
    """Those of the user and of the session, as the limits of both are told apart."""
    limits = facts.principal.sub_limits
    if limits is None or not (limits.user_budgets or limits.session_budgets):
        return ()
    user, session = facts.user or "", facts.session
    key = quote(facts.principal.key_id, safe="/#@")
    mine = allowances("user", user[:SHOWN], limits.user_budgets, f"user:{key}:{user}")
    if session is not None:
        owner = f"session:{key}:{session}"
        mine += allowances("session", session[:SHOWN], limits.session_budgets, owner)
    return mine
