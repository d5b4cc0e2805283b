"""The pick within a group: weighted rendezvous hashing, no state, exact shares.

A member that drops out moves only its own share, and gets it back. Source: Thaler and
Ravishankar 1998; weights by -ln(u)/w, Efraimidis and Spirakis 2006.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def hash01(draw: str, name: str) -> float:
    """A number in (0, 1), the same for the same (draw, name) on every machine."""
    digest = hashlib.blake2b(f"{draw}\0{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 1) / (2**64 + 2)


def ranked(draw: str, members: Sequence[tuple[int, str, T]]) -> list[T]:
    """Members (weight, name, value) in order of preference; weight 0 stands last."""
    if len(members) == 1:
        return [members[0][2]]
    scored = [
        (-math.log(hash01(draw, name)) / weight if weight > 0 else math.inf, index, value)
        for index, (weight, name, value) in enumerate(members)
    ]
    scored.sort(key=lambda row: row[:2])
    return [value for _, _, value in scored]
