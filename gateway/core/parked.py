"""Requests that wait in the store until there is room: who parked them, and what became of them."""

from typing import Literal, NamedTuple

from gateway.core.principal import Role

MOST = 10_000  # requests of one tier that wait or are being answered
MOST_BYTES = 256 * 1024 * 1024  # of their bodies

State = Literal["parked", "running", "done"]


class Whose(NamedTuple):
    """By what a caller is found again when his request has its turn.

    `user` is whom a token was made out to, None: a key. Of a token `tier` is its own, None: its
    team's alone; a key's tier and role are looked up.
    """

    key_id: str
    user: str | None
    team: str | None
    tier: str | None
    role: Role


class Order(NamedTuple):
    """What is parked.

    Args:
        lane: what waits for the same room; one lane is tried at a time, and in order.
        tier: what it counts for; "": no tier.
        until: epoch seconds; it is not begun after that.
        due: epoch seconds; before that there will be no room.
        envelope: all but its body, for whoever takes it; the store does not look inside.
        body: the caller's own JSON.
    """

    lane: str
    tier: str
    until: float
    due: float
    envelope: bytes
    body: bytes


class Outcome(NamedTuple):
    """What its caller would have been answered; `headers` is a JSON object."""

    status: int
    headers: bytes
    body: bytes


class Seen(NamedTuple):
    """`outcome` is there when it is done. `due`: epoch seconds, not worth asking before."""

    state: State
    due: float = 0.0
    outcome: Outcome | None = None
