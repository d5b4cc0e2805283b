"""When Redis counts as lost, and when it is back: a breaker, pure and told the time it took.

Lost: 3 failures in a row, or the 95th percentile of the last 20 calls above 50 ms. Back: two good
pings in a row. Source: gateway.md 5.5.
"""

from collections import deque

FAILURES = 3  # in a row
CALLS = 20  # over which slowness is judged
SLOW = 0.05  # seconds
GOOD = 2  # pings in a row
_FEW = CALLS // 20  # so many may be slow: with one more the 95th percentile is


class Outage:
    """Judges calls.

    Args:
        slow: seconds beyond which a call is.

    Attributes:
        lost: no calls may be made.
        why: of the last loss, for people.
    """

    def __init__(self, slow: float = SLOW) -> None:
        self._limit = slow
        self.lost = False
        self.why = ""
        self._failures = 0
        self._good = 0
        self._slow: deque[bool] = deque(maxlen=CALLS)

    def answered(self, seconds: float) -> bool:
        """A call was answered after `seconds`; True: that made it lost."""
        self._failures = 0
        self._slow.append(seconds > self._limit)
        if self.lost or len(self._slow) < CALLS or sum(self._slow) <= _FEW:
            return False
        return self.lose(
            f"slow: {_FEW + 1} of {CALLS} calls took more than {self._limit * 1000:.0f} ms"
        )

    def failed(self, problem: str) -> bool:
        """A call failed; True: that made it lost."""
        self._failures += 1
        self._good = 0
        if self.lost or self._failures < FAILURES:
            return False
        return self.lose(f"{FAILURES} failures in a row, the last: {problem}")

    def pinged(self, seconds: float | None) -> bool:
        """A ping while lost took `seconds`, None: it failed; True: it may be used again."""
        self._good = self._good + 1 if seconds is not None and seconds <= self._limit else 0
        return self._good >= GOOD

    def lose(self, why: str) -> bool:
        """No calls from now on."""
        self.lost, self.why, self._good = True, why, 0
        return True

    def end(self) -> None:
        """It is back; what was before counts for nothing."""
        self.lost = False
        self._failures = self._good = 0
        self._slow.clear()
