"""A configuration, resolved: immutable, swapped as a whole on reload."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gateway.core.alerts import Alerts
from gateway.core.budget import Budget
from gateway.core.principal import Limits, Principal, Role
from gateway.core.target import Chain, Leaf, Secret, Target

MOST_WORKERS = 256


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Listeners and bounds; seconds and bytes. A change needs a restart.

    `workers`: processes that share the API port; auto is one for each core.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    admin_host: str = "127.0.0.1"
    admin_port: int = 8081
    workers: int | Literal["auto"] = 1
    admin_keys: bool = False
    max_body: int = 20 * 1024 * 1024
    max_in_flight: int = 2000
    queue_length: int = 256
    queue_bytes: int = 64 * 1024 * 1024
    lame_duck: float = 5.0
    drain: float = 120.0
    lane: bool = True
    state_dir: str = "./state"
    redis: Secret | None = None
    when_lost: Literal["shrink", "reject"] = "shrink"


@dataclass(frozen=True, slots=True)
class DeclaredKey:
    """A caller key of the file: the SHA-256 (32 bytes) of the key, and who it makes the caller.

    `expires` is epoch seconds (the end of that day, UTC) or None.
    """

    name: str
    digest: bytes
    principal: Principal
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What a key made by `gateway keys create` gets from the file: a tier's or a team's share.

    `principal` is a template: its key_id and key accounts are filled in for each key.
    `limits` of a tier: (kind, limit, burst) rows for the key's own accounts; `budgets` likewise.
    """

    principal: Principal
    limits: Limits = ()
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whose tokens (JWT) are taken, and who they make the caller.

    Args:
        issuer: the claim `iss`, exactly.
        audience: what `aud` must be, or hold.
        jwks: the URL of its public keys.
        algorithms: of RS256 and the like; asymmetric ones only.
        user, team_claim, tier_claim, role_claim: the claims that say so; None: none does.
        roles: values of the role claim, and the role each stands for; the first that is found.
        team, tier: where no claim says one.
        allow_private: whether `jwks` may be a loopback or private address.
    """

    issuer: str
    audience: str
    jwks: str
    algorithms: frozenset[str]
    user: str = "sub"
    team_claim: str | None = None
    tier_claim: str | None = None
    role_claim: str | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    team: str | None = None
    tier: str | None = None
    allow_private: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a request may depend on.

    Args:
        config: 12 hex digits that name this snapshot.
        chains: by public name; `also` names map to the same Chain.
        direct: single targets by `provider/model` and by target name, for callers with the right
            `target`: a chain of one for each.
        targets: by id; every Target of every chain.
        keys: declared keys; empty together with `store_keys=False` means loopback and `LOCAL`.
        tiers, teams: what a stored key may refer to.
        issuers: whose tokens are taken.
        keyless: neither `keys:` nor `auth:` in the file: every caller is `local`.
    """

    config: str
    chains: Mapping[str, Chain]
    direct: Mapping[str, Chain]
    targets: Mapping[str, Target]
    keys: tuple[DeclaredKey, ...] = ()
    tiers: Mapping[str, Grant] = field(default_factory=dict)
    teams: Mapping[str, Grant] = field(default_factory=dict)
    issuers: tuple[Issuer, ...] = ()
    keyless: bool = True
    server: ServerSettings = ServerSettings()
    log_format: Literal["json", "text", "auto", "none"] = "auto"
    public_metrics: bool = False
    alerts: Alerts = field(default_factory=Alerts)
    source: str = ""

    def leaves(self) -> Mapping[str, tuple[Leaf, ...]]:
        """The target steps of each chain, by the chain's own name."""
        return {chain.name: chain.leaves() for chain in self.chains.values()}
