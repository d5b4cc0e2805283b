"""Calls under way on this worker that hold a caller's key, and who waits for a key to be free.

The same over every store of kept answers: what is stored is the store's own.
"""

from collections.abc import Callable
from os import urandom

from gateway.clock import Bell, Clock

GLANCE = 0.1  # seconds between looks at what other workers did

Place = tuple[str, str, str]
"""Account, user, name: where an answer is kept."""


class OwnClaim:
    """A call of this worker. `token` names it in the store; `detached`: its caller may end it."""

    __slots__ = ("_end", "_ended", "detached", "place", "token")

    def __init__(self, place: Place, *, detached: bool) -> None:
        self._end: Callable[[], None] | None = None
        self._ended = False
        self.detached = detached
        self.place = place
        self.token = urandom(8).hex()

    def on_end(self, end: Callable[[], None]) -> None:
        self._end = end
        if self._ended:
            end()

    def end(self) -> None:
        """Its caller has ended it; heard of once."""
        if not self._ended:
            self._ended = True
            if self._end is not None:
                self._end()


class Claims:
    """Those of one worker."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._own: dict[str, OwnClaim] = {}  # by token
        self._at: dict[Place, OwnClaim] = {}
        self._bells: dict[Place, Bell] = {}  # of places somebody waits at

    def began(self, claim: OwnClaim) -> None:
        self._own[claim.token] = claim
        self._at[claim.place] = claim

    def over(self, claim: OwnClaim) -> None:
        self._own.pop(claim.token, None)
        if self._at.get(claim.place) is claim:
            del self._at[claim.place]

    def under_way(self, *, detached: bool = False) -> list[OwnClaim]:
        """All of them, or those that may be ended."""
        return [claim for claim in self._own.values() if claim.detached or not detached]

    def ended(self, token: str) -> None:
        """A caller has ended the call of that name; it may be another worker's."""
        if (claim := self._own.get(token)) is not None:
            claim.end()

    def ended_at(self, place: Place) -> None:
        """A caller has ended what is under way there."""
        if (claim := self._at.get(place)) is not None:
            claim.end()
        self.ring(place)

    def ring(self, place: Place) -> None:
        """Something has changed there."""
        if (bell := self._bells.get(place)) is not None:
            bell.ring()

    async def wait(self, place: Place, until: float) -> None:
        """For a ring, at most until then; what other workers do has to be looked at."""
        if place not in self._at:
            until = min(until, self._clock.monotonic() + GLANCE)
        bell = self._bells.setdefault(place, Bell())
        try:
            await bell.heard(self._clock, until)
        finally:
            if not bell.awaited:
                self._bells.pop(place, None)
