"""Which requests this process still takes: fewer as its event loop lags or its memory runs out.

Goodput is protected by turning away early what matters least. `look` is for its owner, four times a
second; a request costs one comparison. Source: gateway.md 5.6 and 5.8.
"""

from collections import deque
from dataclasses import dataclass

from gateway.core.events import GuardMoved, Sheds
from gateway.errors import Overloaded
from gateway.pipeline.queue import RANK

EVERY = 0.25  # seconds between looks
LAG_LOW = 0.05  # seconds of lag (p95) from which `low` is shed
LAG_NORMAL = 0.2  # and `normal`
MEMORY_LOW = 0.85  # of the limit, from which `low` is shed
MEMORY_ALL = 0.95  # and everybody
FILES = 0.5  # of the descriptors: the rest is for upstreams and the store
LAGS = 40  # samples of the lag: 10 s
CALM = 8  # looks in a row before it takes more again, so that it does not flap
COME_BACK = 2.0  # seconds, before jitter: about as long as CALM

ALL = len(RANK)
SHEDS: tuple[Sheds, ...] = ("all", "normal", "low", "nobody")  # by level
WHO: dict[Sheds, str] = {
    "low": "requests of priority low",
    "normal": "requests of priority normal and low",
    "all": "all requests",
}


@dataclass(frozen=True, slots=True)
class Vitals:
    """Shares of what this process may use at most, 0..1; 0 where there is no telling."""

    memory: float = 0.0
    files: float = 0.0


WELL = Vitals()


class Guard:
    """What is taken in.

    Attributes:
        level: requests of a rank (`queue.RANK`) below it are taken; ALL: everybody, 0: nobody.
        crowded: new connections are refused.
        why: in words, "" while nothing is the matter.
    """

    __slots__ = ("_calm", "_lags", "crowded", "level", "why")

    def __init__(self) -> None:
        self.level = ALL
        self.crowded = False
        self.why = ""
        self._lags = deque([0.0] * LAGS, LAGS)
        self._calm = 0

    @property
    def sheds(self) -> Sheds:
        """The highest class that is turned away."""
        return SHEDS[self.level]

    def look(self, lag: float, vitals: Vitals) -> GuardMoved | None:
        """Judge anew. More is shed at once, less only after CALM looks that agreed.

        Args:
            lag: seconds the event loop was late since the last look.
            vitals: of this moment.
        """
        self._lags.append(lag)
        late = sorted(self._lags)[-(-LAGS * 95 // 100) - 1]
        level = min(_by_lag(late), _by_memory(vitals.memory))
        crowded = vitals.files > FILES
        if level > self.level or (self.crowded and not crowded):
            self._calm += 1
            if self._calm < CALM:
                level, crowded = min(level, self.level), crowded or self.crowded
        else:
            self._calm = 0
        moved = (level, crowded) != (self.level, self.crowded)
        self.level, self.crowded = level, crowded
        if level == ALL and not crowded:
            self.why = ""
        else:  # well again, but not for long enough: then the last reason stands
            self.why = _why(late, vitals) or self.why
        if not moved:
            return None
        self._calm = 0
        return GuardMoved(self.sheds, self.crowded, self.why)

    def refused(self) -> Overloaded:
        """What a request hears whose rank is not below the level."""
        return Overloaded(
            f"This gateway process is overloaded ({self.why}) and turns {WHO[self.sheds]} away."
            f" Come back in {COME_BACK:g} s.",
            retry_after=COME_BACK,
            scope="process",
        )

    def degraded(self) -> list[str]:
        """For `status` and `/readyz`: what is turned away, and why."""
        told = [f"{WHO[self.sheds]} are turned away"] if self.level < ALL else []
        if self.crowded:
            told.append("new connections are turned away")
        return [f"{one}: {self.why}" for one in told]


def _by_lag(late: float) -> int:
    if late > LAG_NORMAL:
        return RANK["normal"]
    return RANK["low"] if late > LAG_LOW else ALL


def _by_memory(share: float) -> int:
    if share > MEMORY_ALL:
        return 0
    return RANK["low"] if share > MEMORY_LOW else ALL


def _why(late: float, vitals: Vitals) -> str:
    told = []
    if late > LAG_LOW:
        told.append(f"its event loop is {late * 1000:.0f} ms late")
    if vitals.memory > MEMORY_LOW:
        told.append(f"its memory is at {vitals.memory:.0%} of the limit")
    if vitals.files > FILES:
        told.append(f"{vitals.files:.0%} of its file descriptors are open")
    return ", ".join(told)
