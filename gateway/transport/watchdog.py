"""The clock of one upstream attempt: connect, first token or answer, idle, the end; one timer.

It interrupts the task that made the attempt, wherever it waits, as `asyncio.timeout` does: by
cancelling it, and taking that cancellation back when it surfaces, unless somebody else wanted it
too. `idle` and `ending` count only the time spent waiting for upstream's bytes: a road that is
held up by its own caller does not read, and that silence is not the upstream's.
"""

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from math import inf

from gateway.clock import Clock, Deadline
from gateway.core.target import Cause, Failure, Timeouts

_SLACK = 0.001  # an event loop's timer may be early by its resolution
_LOOK = 5.0  # seconds after which it is looked whether somebody still waits


class Timers:
    """One timer of the loop for all watchdogs: a timer each would cost more than all they do.

    Those that were stopped are passed over when their time comes, `_LOOK` seconds later at most.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._due: list[tuple[float, int, Watchdog]] = []
        self._order = count()
        self._armed = inf
        self._cancel: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._due)

    def add(self, due: float, dog: "Watchdog") -> None:
        heappush(self._due, (due, next(self._order), dog))
        if due < self._armed:
            self._arm(due)

    def close(self) -> None:
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        self._armed = inf
        self._due.clear()

    def _arm(self, due: float) -> None:
        if self._cancel is not None:
            self._cancel()
        self._armed = due
        self._cancel = self.clock.call_at(due, self._ring)

    def _ring(self) -> None:
        self._armed, self._cancel = inf, None
        due = self._due
        now = self.clock.monotonic()
        while due and due[0][0] <= now + _SLACK:
            dog = heappop(due)[2]
            again = dog.ring(now)
            if again is not None:
                heappush(due, (again, next(self._order), dog))
        if due:
            self._arm(due[0][0])


class Watchdog:
    """Made where an attempt starts, in its task; `stop` it at the end, always.

    Args:
        seconds: to content (`stream`) or to the whole answer, from now.
        stream: whether silence is `first_token` and then `stalled`, or `timeout`.
    """

    __slots__ = (
        "_armed", "_before", "_clock", "_deadline", "_due", "_failure", "_idle", "_left", "_limit",
        "_phase", "_seconds", "_settled", "_since", "_stopped", "_stream", "_task", "_timeouts",
        "_timers",
    )  # fmt: skip

    def __init__(
        self,
        timers: Timers,
        task: "asyncio.Task[object]",
        timeouts: Timeouts,
        seconds: float,
        deadline: Deadline,
        *,
        stream: bool,
    ) -> None:
        clock = timers.clock
        now = clock.monotonic()
        self._clock = clock
        self._timers = timers
        self._stopped = False
        self._task = task
        self._before = task.cancelling()
        self._timeouts = timeouts
        self._seconds = seconds
        self._stream = stream
        self._deadline = deadline.at
        limit = now + seconds
        limit = min(limit, deadline.at)
        self._limit = limit
        self._idle: float | None = None  # None: content is still to come
        self._left = 0.0  # of idle, when nobody waits
        self._since: float | None = None  # somebody waits for bytes since then
        self._failure: Failure | None = None  # it has fired
        self._settled = False
        self._phase = Cause.CONNECT
        due = now + timeouts.connect
        due = min(due, limit)
        self._due = self._armed = due
        timers.add(due, self)

    def dialling(self) -> None:
        """A connection is being made anew."""
        self._phase = Cause.CONNECT
        self._until(min(self._clock.monotonic() + self._timeouts.connect, self._limit))

    def connected(self) -> None:
        """The connection stands: from now on the answer is waited for."""
        self._phase = Cause.FIRST_TOKEN if self._stream else Cause.TIMEOUT
        self._due = self._limit  # later than before: the timer finds out when it fires

    def progressed(self) -> None:
        """Content came; `idle` starts again."""
        self._idle = self._left = self._timeouts.idle
        self._phase = Cause.STALLED
        self._restart()

    def ending(self, seconds: float) -> None:
        """All that matters is here; what is left may take `seconds`."""
        self._idle = self._left = seconds
        self._phase = Cause.STALLED
        self._restart()

    def waits(self) -> None:
        """Upstream's bytes are awaited from now on."""
        if self._idle is not None:
            self._since = now = self._clock.monotonic()
            due = now + self._left
            due = min(due, self._deadline)
            self._due = due
            if due < self._armed:
                self._until(due)

    def rests(self) -> None:
        """They are not awaited any more: they came, or the road is busy elsewhere."""
        if self._since is not None:
            self._left -= self._clock.monotonic() - self._since
            self._since = None
            self._due = self._deadline

    def stop(self) -> None:
        """No interruption after this."""
        self._stopped = True

    def settle(self, error: BaseException | None) -> Failure | None:
        """What `error` means if it is the watchdog's doing; None: it is somebody else's."""
        if self._failure is None or self._settled:
            return None
        self._settled = True
        wanted = self._task.uncancel()
        if wanted <= self._before and isinstance(error, asyncio.CancelledError):
            return self._failure
        return None

    def _restart(self) -> None:
        if self._since is not None:
            self._since = self._clock.monotonic()
            self._until(min(self._since + self._left, self._deadline))
        else:
            self._due = self._deadline

    def _until(self, due: float) -> None:
        self._due = due
        if due < self._armed and not self._stopped:
            self._armed = due
            self._timers.add(due, self)

    def ring(self, now: float) -> float | None:
        """Its time may have come; when to look again, None: never."""
        if self._stopped or now + _SLACK < self._armed:  # or it was set to an earlier moment
            return None
        if now + _SLACK < self._due:
            self._armed = min(self._due, now + _LOOK)
            return self._armed
        self._stopped = True
        self._failure = Failure(self._phase, self._why(now))
        self._task.cancel()
        return None

    def _why(self, now: float) -> str:
        if now + _SLACK >= self._deadline:
            return "the request's deadline came"
        if self._phase is Cause.CONNECT:
            return f"no connection within {min(self._timeouts.connect, self._seconds):g} s"
        if self._phase is Cause.STALLED:
            return f"silent for {self._idle:g} s"
        what = "content" if self._stream else "whole answer"
        return f"no {what} within {self._seconds:g} s"
