"""Who calls, and what they may."""

from dataclasses import dataclass, field
from typing import Literal

from gateway.core.target import Account

Priority = Literal["high", "normal", "low"]
Role = Literal["client", "agent", "metrics", "admin"]


@dataclass(frozen=True, slots=True)
class Credential:
    """What a caller showed. `id` is the public part of a key of ours, None for a foreign one.

    `digest` is the SHA-256 (32 bytes) of the whole key; the key itself is not kept.
    """

    id: str | None
    digest: bytes


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller that was recognised.

    Args:
        key_id: the key's name as operators know it; `local` without keys.
        chains: the names it may call, in order of the file; None: all.
        rights: of skip, target, trace.
        accounts: the key's and the team's limits.
        default_max_tokens: the output bound of callers who state none.
        wait: seconds a request may wait for a slot; 0: refused at once.
    """

    key_id: str
    team: str | None = None
    user: str | None = None
    role: Role = "client"
    chains: tuple[str, ...] | None = None
    rights: frozenset[str] = frozenset()
    accounts: tuple[Account, ...] = ()
    default_max_tokens: int | None = None
    priority: Priority = "normal"
    wait: float = 0.0
    told: tuple[Account, ...] = field(init=False)  # those whose headroom answers tell

    def __post_init__(self) -> None:
        told = tuple(account for account in self.accounts if account.kind != "concurrency")
        object.__setattr__(self, "told", told)


LOCAL = Principal("local", rights=frozenset({"skip", "target", "trace"}))
"""Every caller of a gateway without keys, which therefore listens on loopback only."""
