"""Breakers of a fleet: an opening is heard everywhere within a second, and one worker probes.

Advice only: every worker judges by its own breakers and follows what it hears as if it had seen it
itself. While Redis is lost each of them probes for itself.
"""

from collections.abc import Callable

from gateway.core.events import Event
from gateway.state.redis.connect import Link, RedisLost, Script, key, trouble
from gateway.state.wing import Breakers, Seen

TELL = 0.5  # seconds between exchanges
DUE = 1.0  # seconds before its time a worker asks whether the probe will be its own
LEASE = 2.0  # seconds in which its owner has to begin it, or somebody else may
TOLD = 60.0  # seconds what is over is told
AGAIN = 1.0  # seconds a breaker stays open here while another worker probes

_gossip = Script("gossip")


class Gossip:
    """`exchange` is for its owner."""

    def __init__(
        self, link: Link, worker: str, breakers: Breakers, heard: Callable[[Event], None]
    ) -> None:
        self._link = link
        self._worker = worker
        self._breakers = breakers
        self._heard = heard
        self._known: dict[str, float] = {}  # open breakers the fleet knows of: when they opened

    async def exchange(self) -> None:
        """Tell what has changed here, and follow what has changed elsewhere."""
        seen = self._breakers.seen()
        told: list[str | int] = [self._worker, _ms(LEASE), _ms(TOLD)]
        for one in seen:
            if word := self._word(one):
                told += [one.target_id, word, _ms(max(0.0, one.left)), one.trips]
        try:
            answer = await self._link.run(_gossip, [key("breakers")], told)
        except RedisLost as error:
            trouble(self._heard, "gossip", error)
            return
        for target, state, left, trips, mine in answer:
            self._follow(target.decode(), state == b"open", left / 1000, trips, mine=bool(mine))
        self._known = {one.target_id: one.opened for one in self._breakers.seen() if one.open}

    def _word(self, one: Seen) -> str:
        """What of a breaker is to be told; "": nothing."""
        if not one.open:
            return "closed" if one.target_id in self._known else ""
        if self._known.get(one.target_id) != one.opened:
            return "open"
        if one.probing:
            return "probing"
        return "due" if one.left <= DUE else ""

    def _follow(self, target: str, open: bool, left: float, trips: int, *, mine: bool) -> None:  # noqa: FBT001
        if not open:
            self._breakers.hear_closed(target)
        elif left > 0:
            self._breakers.hear_open(target, left, trips)
        elif not mine:
            self._breakers.hear_open(target, AGAIN, trips)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
