"""A provider that counts: where a caller was above its limits, in sliding windows.

It refuses nobody, so what is counted is what a gateway let through, not what it was stopped from.
A window slides: there is none of `span` seconds, wherever it begins, that is not looked at.
"""

from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Allowed:
    """What one key may ask of one model; None: as much as it likes.

    `span`: seconds of the window of `rpm` (calls) and `tpm` (tokens).
    """

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    span: float = 60.0


@dataclass(slots=True)
class Tally:
    """What one key did with one model: calls and tokens in all, the most in any window.

    `violations`: moments at which a limit was exceeded, by its name.
    """

    calls: int = 0
    tokens: int = 0
    most_calls: int = 0
    most_tokens: int = 0
    most_at_once: int = 0
    violations: dict[str, int] = field(default_factory=dict)


class Meter:
    """One key's use of one model; moments are one clock's seconds, never backwards."""

    def __init__(self, allowed: Allowed) -> None:
        self.tally = Tally()
        self._allowed = allowed
        self._calls: deque[float] = deque()
        self._used: deque[tuple[float, int]] = deque()
        self._in_window = 0  # tokens
        self._at_once = 0

    def began(self, now: float) -> None:
        """A call is here, whole."""
        tally, calls = self.tally, self._calls
        calls.append(now)
        while calls[0] <= now - self._allowed.span:
            calls.popleft()
        self._at_once += 1
        tally.calls += 1
        tally.most_calls = max(tally.most_calls, len(calls))
        tally.most_at_once = max(tally.most_at_once, self._at_once)
        self._judge("rpm", len(calls), self._allowed.rpm)
        self._judge("concurrency", self._at_once, self._allowed.concurrency)

    def used(self, now: float, tokens: int) -> None:
        """So many tokens more were billed."""
        tally, used = self.tally, self._used
        used.append((now, tokens))
        self._in_window += tokens
        while used[0][0] <= now - self._allowed.span:
            self._in_window -= used.popleft()[1]
        tally.tokens += tokens
        tally.most_tokens = max(tally.most_tokens, self._in_window)
        self._judge("tpm", self._in_window, self._allowed.tpm)

    def over(self) -> None:
        """A call that `began` has ended, however."""
        self._at_once -= 1

    def _judge(self, limit: str, used: int, most: int | None) -> None:
        if most is not None and used > most:
            violations = self.tally.violations
            violations[limit] = violations.get(limit, 0) + 1
