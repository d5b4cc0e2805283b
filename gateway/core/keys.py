"""Caller keys: `gk_<8 public>_<43 random>_<6 checksum>`, made once, stored as a digest only.

The checksum lets a mistyped or invented key be told apart without asking any store; it protects
nothing. What looks like a JWT (RFC 7519: three parts, the first a JSON object in base64url) is told
apart by its shape alone.
"""

import base64
import hashlib
import secrets
import zlib
from typing import NamedTuple

from gateway.core.principal import Credential
from gateway.core.target import Secret

PUBLIC = "abcdefghijklmnopqrstuvwxyz0123456789"
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
LENGTH = 3 + 8 + 1 + 43 + 1 + 6
JWT = "eyJ"  # `{"` in base64url


class MadeKey(NamedTuple):
    """A fresh key: the secret is shown once and kept nowhere."""

    secret: Secret
    id: str
    digest: bytes


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
