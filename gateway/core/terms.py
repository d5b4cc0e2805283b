"""What a stored key may say of itself: names of the file, limits that only narrow, a day to come.

One judge for the command line and the admin API, so that both refuse alike.
"""

import difflib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gateway.core.budget import Budget
from gateway.core.keys import NAME, KeyTerms, LimitRow
from gateway.core.snapshot import Snapshot
from gateway.core.usage import Cost

LATEST = 253_370_764_800.0  # 9999-01-01: a later moment cannot be written down
MOST_CHAINS = 1_000


class Objection(NamedTuple):
    """Why a key cannot be made so: the field, what is wrong with both figures, what to do."""

    field: str
    message: str
    remedy: str


def objection(name: str, terms: KeyTerms, snapshot: Snapshot, now: float) -> Objection | None:
    """The first thing that speaks against a key; None: it may be made."""
    return next(_objections(name, terms, snapshot, now), None)


def declared(name: str, snapshot: Snapshot) -> bool:
    """Whether the file has a key of that name, which is then the file's alone."""
    return any(key.name == name for key in snapshot.keys)


def _objections(name: str, terms: KeyTerms, snapshot: Snapshot, now: float) -> Iterator[Objection]:
    if not NAME.fullmatch(name):
        said = f"{name[:80]!r} is no name for a key."
        yield Objection("name", said, "use a-z, 0-9, dot, dash or underscore, at most 64")
    yield from _unknown("tier", [terms.tier], snapshot.tiers)
    yield from _unknown("team", [terms.team], snapshot.teams)
    yield from _unknown("chain", terms.chains or (), snapshot.chains)
    yield from _beyond_team(terms, snapshot)
    yield from _wider(terms, snapshot)
    yield from _dearer(terms, snapshot)
    if terms.expires is not None and terms.expires <= now:
        yield Objection("expires", "That day is over.", "take a day to come")
    if terms.expires is not None and terms.expires > LATEST:
        said = "No key may last longer than to the year 9998."
        yield Objection("expires", said, "leave it out: then it does not expire")


def _unknown(what: str, names: Iterable[str | None], known: Iterable[str]) -> Iterator[Objection]:
    there = list(known)
    for name in names:
        if name is not None and name not in there:
            near = difflib.get_close_matches(name[:80], there, n=1)
            rest = f"; did you mean {near[0]}?" if near else "."
            listed = ", ".join(there[:20]) or "none"
            yield Objection(
                "chains" if what == "chain" else what,
                f"There is no {what} {name[:80]!r}; there are: {listed}{rest}",
                f"add it to {what}s: in the file first",
            )


def _beyond_team(terms: KeyTerms, snapshot: Snapshot) -> Iterator[Objection]:
    team = snapshot.teams.get(terms.team or "")
    if team is None or team.principal.chains is None:
        return
    theirs = team.principal.chains
    for name in terms.chains or ():
        if name in snapshot.chains and snapshot.chains[name].name not in theirs:
            listed = ", ".join(theirs) or "none"
            said = f"The team {terms.team} may not call {name}: a key only narrows what it may."
            yield Objection("chains", said, f"choose of: {listed}")


def _wider(terms: KeyTerms, snapshot: Snapshot) -> Iterator[Objection]:
    """Own limits against those of the key's tier, else of its team's."""
    owner, rows = "", tuple[LimitRow, ...]()
    if tier := snapshot.tiers.get(terms.tier or ""):
        owner, rows = f"the tier {terms.tier}", tier.limits
    elif team := snapshot.teams.get(terms.team or ""):
        accounts = team.principal.accounts
        owner = f"the team {terms.team}"
        rows = tuple((account.kind, account.limit, account.burst) for account in accounts)
    bounds = {kind: limit for kind, limit, _ in rows}
    for kind, limit, _ in terms.limits:
        bound = bounds.get(kind)
        if bound is not None and limit > bound:
            said = f"{kind} {limit} is wider than the {bound} of {owner}: a key only narrows."
            remedy = f"say {bound} or less, or leave it out"
            yield Objection(f"limits.{kind}", said, remedy)


def _dearer(terms: KeyTerms, snapshot: Snapshot) -> Iterator[Objection]:
    """Own budgets against each other and those of the key's tier, else of its team's."""
    owner, theirs = "", tuple[Budget, ...]()
    if tier := snapshot.tiers.get(terms.tier or ""):
        owner, theirs = f"the tier {terms.tier}", tier.budgets
    elif team := snapshot.teams.get(terms.team or ""):
        owner = f"the team {terms.team}"
        theirs = tuple(one.budget for one in team.principal.budgets)
    bounds = {budget.per: budget for budget in theirs}
    seen = set[str]()
    for own in terms.budgets:
        bound = bounds.get(own.per, own)
        most = Cost(bound.nano_usd).dollars()
        if own.per in seen:
            yield Objection("budgets", f"Two budgets per {own.per}.", "keep one of them")
        elif own.nano_usd > bound.nano_usd:
            asked = Cost(own.nano_usd).dollars()
            said = (
                f"${asked} per {own.per} is more than the ${most} of {owner}: a key only narrows."
            )
            yield Objection("budgets", said, f"say {most} or less, or leave it out")
        elif bound.hard and not own.hard:
            said = f"The budget per {own.per} of {owner} is hard: a key only narrows."
            yield Objection("budgets", said, "leave out hard, or say true")
        seen.add(own.per)
