"""Who calls, and what they may."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gateway.core.budget import Allowance, Budget
from gateway.core.target import Account, AccountKind, Secret

Priority = Literal["high", "normal", "low"]
Role = Literal["client", "agent", "metrics", "admin"]
Access = Literal["anyone", "client", "metrics", "admin"]

OPEN_TO: Mapping[Access, frozenset[Role]] = {
    "client": frozenset({"client", "agent"}),
    "metrics": frozenset({"metrics", "admin"}),
    "admin": frozenset({"admin"}),
}
"""What a route asks for, and the roles that have it. `anyone` is not asked at all."""

Limits = tuple[tuple[AccountKind, int, int | None], ...]
"""(kind, limit, burst) rows; each becomes an `Account` of whom it is said of."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What a caller showed. `id` is the public part of a key of ours, None for a foreign one.

    `digest` is the SHA-256 (32 bytes) of all of it. A key itself is not kept; a JWT is, as
    `token`: its signature has to be looked at.
    """

    id: str | None
    digest: bytes
    token: Secret | None = None


@dataclass(frozen=True, slots=True)
class SubLimits:
    """Shares of a caller's limits: what each user, and each session, of it has at most."""

    per_user: Limits = ()
    per_session: Limits = ()
    user_budgets: tuple[Budget, ...] = ()
    session_budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller that was recognised.

    Args:
        key_id: the key's name as operators know it; `local` without keys; of a token its
            issuer and user.
        user: whom a token was made out to; None: the caller's word counts.
        chains: the names it may call, in order of the file; None: all.
        tier: whose rights and share of the parked requests it has; None: of no tier.
        own_tier: of a token, the tier it has beside its team's; None: none.
        rights: of cache, park, skip, target, trace.
        accounts: the key's and the team's limits.
        default_max_tokens: the output bound of callers who state none.
        wait: seconds a request may wait for a slot; 0: refused at once.
        parks: whether a request that finds no room is answered later, unasked.
        sub_limits: what users and sessions of it have at most; None: nothing of their own.
        budgets: the key's and the team's.
    """

    key_id: str
    team: str | None = None
    user: str | None = None
    role: Role = "client"
    tier: str | None = None
    own_tier: str | None = None
    chains: tuple[str, ...] | None = None
    rights: frozenset[str] = frozenset()
    accounts: tuple[Account, ...] = ()
    default_max_tokens: int | None = None
    priority: Priority = "normal"
    wait: float = 0.0
    parks: bool = False
    sub_limits: SubLimits | None = None
    budgets: tuple[Allowance, ...] = ()
    told: tuple[Account, ...] = field(init=False)  # those whose headroom answers tell
    budgeted: bool = field(init=False)  # money of its own, its users' or its sessions' is bounded

    def __post_init__(self) -> None:
        told = tuple(account for account in self.accounts if account.kind != "concurrency")
        object.__setattr__(self, "told", told)
        within = self.sub_limits
        of_others = within is not None and (within.user_budgets or within.session_budgets)
        object.__setattr__(self, "budgeted", bool(self.budgets or of_others))


LOCAL = Principal(
    "local", role="agent", rights=frozenset({"cache", "park", "skip", "target", "trace"})
)
"""Every caller of a gateway without keys, which therefore listens on loopback only."""
