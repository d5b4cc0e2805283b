"""Caller keys: `gk_<8 public>_<43 random>_<6 checksum>`, made once, stored as a digest only.

The checksum lets a mistyped or invented key be told apart without asking any store; it protects
nothing. What looks like a JWT (RFC 7519: three parts, the first a JSON object in base64url) is told
apart by its shape alone.
"""

import base64
import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

from gateway.core.audit import AuditLine
from gateway.core.budget import Budget
from gateway.core.principal import Credential, Role
from gateway.core.target import AccountKind, Secret

PUBLIC = "abcdefghijklmnopqrstuvwxyz0123456789"
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
LENGTH = 3 + 8 + 1 + 43 + 1 + 6
JWT = "eyJ"  # `{"` in base64url
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)

LimitRow = tuple[AccountKind, int, int | None]
"""A limit of the key's own: kind, limit, burst."""


class KeyTaken(ValueError):
    """A key of that name exists already, or did: a name is given once."""


class NoSuchKey(LookupError):
    """There is no key of that name, or it was revoked."""


@dataclass(frozen=True, slots=True)
class KeyTerms:
    """What a stored key is for and what it may; `expires` epoch seconds, `chains` None: all."""

    tier: str | None = None
    team: str | None = None
    chains: tuple[str, ...] | None = None
    limits: tuple[LimitRow, ...] = ()
    role: Role = "client"
    expires: float | None = None
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key of the store; times in epoch seconds. `previous` counts until `previous_until`."""

    name: str
    id: str
    digest: bytes
    previous: bytes | None
    previous_until: float | None
    tier: str | None
    team: str | None
    chains: tuple[str, ...] | None
    limits: tuple[LimitRow, ...]
    role: Role
    expires: float | None
    created: float
    revoked: float | None
    budgets: tuple[Budget, ...] = ()

    @property
    def terms(self) -> KeyTerms:
        return KeyTerms(
            self.tier,
            self.team,
            self.chains,
            self.limits,
            self.role,
            self.expires,
            self.budgets,
        )

    def state(self, now: float) -> Literal["active", "expired", "revoked"]:
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"

    def overlaps(self, now: float) -> bool:
        """Whether the secret before the last rotation still works."""
        return self.previous_until is not None and self.previous_until > now


class MadeKey(NamedTuple):
    """A fresh key: the secret is shown once and kept nowhere."""

    secret: Secret
    id: str
    digest: bytes


class Change(NamedTuple):
    """What became of a stored key, and the line that says so; nothing if it was so already.

    `made` holds its secret, where a new one was made.
    """

    key: StoredKey
    what: Literal["created", "changed", "unchanged", "rotated", "revoked"]
    line: AuditLine | None = None
    made: MadeKey | None = None


def make_key(id: str | None = None) -> MadeKey:
    """A new key; `id` keeps the public part, for a rotation."""
    public = id or "".join(secrets.choice(PUBLIC) for _ in range(8))
    random = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
    body = f"gk_{public}_{random}"
    token = f"{body}_{_checksum(body)}"
    return MadeKey(Secret(token), public, _digest(token))


def read_key(token: str) -> Credential:
    """What a caller showed. `id` is None for a key that is not of our making, or mistyped."""
    public = None
    if (
        len(token) == LENGTH
        and token.startswith("gk_")
        and token[11] == "_"
        and token[-7] == "_"
        and token.isascii()
        and token[-6:] == _checksum(token[:-7])
    ):
        public = token[3:11]
    signed = token.startswith(JWT) and token.count(".") == 2
    return Credential(public, _digest(token), Secret(token) if signed else None)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _checksum(body: str) -> str:
    rest = zlib.crc32(body.encode())
    told = ""
    for _ in range(6):
        rest, digit = divmod(rest, 62)
        told = BASE62[digit] + told
    return told
