"""The maths of limits: windows, meters, slots. No clock, no I/O: every wing follows these rules.

An account keeps `settled(last 60 s) + held + n <= limit` at every instant. Settled use lies in
buckets of one second, and a bucket leaves only when all of it is older than the window: hence no
span of 60 s, wherever it begins, has more than `limit`.

Who asks `take` puts `n = min(n, limit) or n`: an ask above the limit counts as the limit, and a
limit of 0 admits nobody. Times are seconds of a monotonic clock; a backward step frees nothing.
`take` gives a mark with which it can be undone (`undo`: as if it had never been), or None when
there is no room.
"""

import math
from collections import deque
from typing import Protocol

from gateway.core.target import Account

WINDOW = 60  # seconds
WHOLE = float(WINDOW)
IDLE = 2 * WINDOW  # an account that nobody used for so long may be forgotten
MICRO = 1_000_000
MINUTE = 60 * MICRO
EDGE = 1e-6  # a wait ends this much after the moment, so that rounding does not cut it short
NEVER = 60.0  # the wait told where no time cures: a limit of 0
FIRST_GUESS = 1.0  # seconds a hold lasts, before one was seen to end
LONGEST_GUESS = 60.0
WEIGHT = 0.1  # of the latest hold in their moving mean

Bucket = list[int]  # [second, n]; [GONE, n] once it has left
GONE = -1
Drop = tuple[int, int, int, int]  # a meter's: tat before, start, finish, refunds until then
Mark = Bucket | Drop | float


class Window:
    """What was settled in the last 60 s.

    Attributes:
        settled: the sum of the buckets; look at it only after `age`, due once `leaves` is reached.
        leaves: the second in which the oldest bucket leaves; inf when there is none.
        turns: the second after that of the newest bucket.
    """

    __slots__ = ("buckets", "leaves", "newest", "settled", "turns")

    def __init__(self) -> None:
        self.buckets: deque[Bucket] = deque()  # oldest first, at most 61
        self.newest: Bucket = [GONE, 0]
        self.leaves: float = math.inf
        self.turns: float = -math.inf
        self.settled = 0

    def age(self, now: float) -> None:
        buckets = self.buckets
        while buckets and buckets[0][0] + WINDOW + 1 <= now:
            bucket = buckets.popleft()
            self.settled -= bucket[1]
            bucket[0] = GONE
        if buckets:
            self.leaves = buckets[0][0] + WINDOW + 1
        else:
            self.leaves, self.turns = math.inf, -math.inf

    def add(self, now: float, n: int) -> Bucket:
        self.settled += n
        if now < self.turns:  # the same second, or the clock stepped back
            bucket = self.newest
            bucket[1] += n
            return bucket
        second = int(now)
        if not self.buckets:
            self.leaves = second + WINDOW + 1
        self.turns = second + 1
        self.newest = bucket = [second, n]
        self.buckets.append(bucket)
        return bucket

    def take_back(self, bucket: Bucket, n: int) -> None:
        if bucket[0] != GONE:
            bucket[1] -= n
            self.settled -= n

    def wait(self, now: float, n: int) -> float:
        """Seconds until `n` of what is settled has left."""
        for second, settled in self.buckets:
            n -= settled
            if n <= 0:
                return max(0.0, second + WINDOW + 1 - now) + EDGE
        return self.whole(now)

    def whole(self, now: float) -> float:
        """Seconds until all has left."""
        return max(0.0, self.turns + WINDOW - now) + EDGE if self.settled else 0.0

    def idle(self, now: float) -> bool:
        return self.turns + IDLE <= now


class Meter:
    """`burst` at once, then evenly: GCRA in whole microseconds.

    In any span t: admissions <= burst + limit x t/60. `tat` is the moment it will be empty.
    """

    __slots__ = ("refunded", "tat")

    def __init__(self) -> None:
        self.tat = 0
        self.refunded = 0

    def take(self, now: int, n: int, limit: int, burst: int) -> Drop | None:
        tau = -(-MINUTE // limit)
        n = min(n, burst)
        before = self.tat
        start = max(before, now)
        if start - now > (burst - n) * tau:
            return None
        self.tat = finish = start + n * tau
        return before, start, finish, self.refunded

    def undo(self, now: int, mark: Drop) -> None:
        """Give back what was taken, but never what others came to lean on.

        The last one out is undone exactly. If others came after it, only the part of it that has
        not drained yet returns: giving back more would erase *their* charge.
        """
        before, start, finish, refunded = mark
        if self.tat == finish and self.refunded == refunded:
            self.tat = before
            return
        left = finish - (self.refunded - refunded) - now
        left = min(max(left, 0), finish - start)
        self.tat -= left
        self.refunded += left

    def wait(self, now: int, n: int, limit: int, burst: int) -> float:
        tau = -(-MINUTE // limit)
        lacking = max(self.tat - now, 0) - (burst - min(n, burst)) * tau
        return (lacking + 1) / MICRO if lacking > 0 else 0.0


class Counted(Protocol):
    """One account of any kind. `now` is monotonic seconds; the account's limit is the asker's."""

    def take(self, now: float, n: int, account: Account) -> Mark | None: ...
    def undo(self, now: float, n: int, mark: Mark) -> None: ...
    def settle(self, now: float, n: int, used: int, mark: Mark) -> None: ...
    def wait(self, now: float, n: int, account: Account) -> float: ...
    def left(self, now: float, account: Account) -> tuple[int, float]:
        """What remains, and the seconds until it is whole again."""
        ...

    def idle(self, now: float) -> bool: ...


class Requests:
    """rpm: counted at admission. With `burst` it is a meter, else a window."""

    __slots__ = ("meter", "window")

    def __init__(self) -> None:
        self.window = Window()
        self.meter: Meter | None = None

    def take(self, now: float, n: int, account: Account) -> Mark | None:
        if account.burst is not None:
            return self._metered(now, n, account.limit, account.burst)
        window = self.window
        if now >= window.leaves:
            window.age(now)
        settled = window.settled + n
        if settled > account.limit:
            return None
        if now >= window.turns:
            return window.add(now, n)
        window.settled = settled  # `add` within the same second, without its frame
        bucket = window.newest
        bucket[1] += n
        return bucket

    def undo(self, now: float, n: int, mark: Mark) -> None:
        if isinstance(mark, list):
            self.window.take_back(mark, n)
        elif self.meter is not None and isinstance(mark, tuple):
            self.meter.undo(int(now * MICRO), mark)

    def settle(self, now: float, n: int, used: int, mark: Mark) -> None:
        """Nothing: it was counted when it was admitted."""

    def wait(self, now: float, n: int, account: Account) -> float:
        limit = account.limit
        if limit <= 0:
            return NEVER
        if account.burst is not None:
            if self.meter is None:
                return 0.0
            return self.meter.wait(int(now * MICRO), n, limit, max(1, account.burst))
        window = self.window
        window.age(now)
        lacking = window.settled + min(n, limit) - limit
        return window.wait(now, lacking) if lacking > 0 else 0.0

    def left(self, now: float, account: Account) -> tuple[int, float]:
        if account.burst is not None:
            return self._drops_left(now, account.limit, account.burst)
        window = self.window
        if now >= window.leaves:
            window.age(now)
        settled = window.settled
        if not settled:
            return account.limit, 0.0
        left = account.limit - settled
        reset = window.turns + WINDOW - now
        return (left, reset) if left > 0 else (0, reset)

    def idle(self, now: float) -> bool:
        full = self.meter is not None and self.meter.tat / MICRO + IDLE > now
        return not full and self.window.idle(now)

    def _metered(self, now: float, n: int, limit: int, burst: int) -> Drop | None:
        if limit <= 0:
            return None
        meter = self.meter
        if meter is None:
            meter = self.meter = Meter()
        return meter.take(int(now * MICRO), n, limit, max(1, burst))

    def _drops_left(self, now: float, limit: int, burst: int) -> tuple[int, float]:
        if self.meter is None or limit <= 0:
            return burst, 0.0
        full = max(self.meter.tat - int(now * MICRO), 0)
        tau = -(-MINUTE // limit)
        return max(0, burst - -(-full // tau)), full / MICRO


class Tokens:
    """tpm: held while a request runs, settled with what it really used; excess stays as debt."""

    __slots__ = ("held", "lasts", "window")

    def __init__(self) -> None:
        self.window = Window()
        self.held = 0
        self.lasts = FIRST_GUESS

    def take(self, now: float, n: int, account: Account) -> Mark | None:
        window = self.window
        if now >= window.leaves:
            window.age(now)
        held = self.held + n
        if window.settled + held > account.limit:
            return None
        self.held = held
        return now

    def undo(self, now: float, n: int, mark: Mark) -> None:
        self.held -= n

    def settle(self, now: float, n: int, used: int, mark: Mark) -> None:
        self.held -= n
        self.lasts += (now - mark - self.lasts) * WEIGHT  # type: ignore[operator]
        window = self.window
        if now >= window.leaves:
            window.age(now)
        if now >= window.turns:
            if used:
                window.add(now, used)
        else:
            window.settled += used  # `add` within the same second, without its frame
            window.newest[1] += used

    def wait(self, now: float, n: int, account: Account) -> float:
        """Exact while only settled use is in the way; nobody knows when a hold will end.

        Then: the mean time a hold lasts, or the time the settled part takes if that is longer.
        """
        limit = account.limit
        if limit <= 0:
            return NEVER
        window = self.window
        window.age(now)
        lacking = window.settled + self.held + min(n, limit) - limit
        if lacking <= 0:
            return 0.0
        if lacking <= window.settled:
            return window.wait(now, lacking)
        return max(window.whole(now), min(self.lasts, LONGEST_GUESS))

    def left(self, now: float, account: Account) -> tuple[int, float]:
        window = self.window
        if now >= window.leaves:
            window.age(now)
        held = self.held
        left = account.limit - window.settled - held
        if held:
            return (left, WHOLE) if left > 0 else (0, WHOLE)
        reset = window.turns + WINDOW - now if window.settled else 0.0
        return (left, reset) if left > 0 else (0, reset)

    def idle(self, now: float) -> bool:
        return not self.held and self.window.idle(now)


class Slots:
    """concurrency: what runs at this instant."""

    __slots__ = ("held", "lasts", "touched")

    def __init__(self) -> None:
        self.held = 0
        self.lasts = FIRST_GUESS  # seconds; moving mean of how long one was held
        self.touched = -math.inf

    def take(self, now: float, n: int, account: Account) -> Mark | None:
        held = self.held + n
        if held > account.limit:
            return None
        self.held = held
        return now

    def undo(self, now: float, n: int, mark: Mark) -> None:
        self.held -= n

    def settle(self, now: float, n: int, used: int, mark: Mark) -> None:
        self.held -= n
        self.touched = now
        self.lasts += (now - mark - self.lasts) * WEIGHT  # type: ignore[operator]

    def wait(self, now: float, n: int, account: Account) -> float:
        """No time is known: the mean time a slot is held, over how many are out."""
        if account.limit <= 0:
            return NEVER
        if self.held + min(n, account.limit) <= account.limit:
            return 0.0
        return min(max(self.lasts / max(1, self.held), 0.05), LONGEST_GUESS)

    def left(self, now: float, account: Account) -> tuple[int, float]:
        held = self.held
        if not held:
            return account.limit, 0.0
        left, whole = account.limit - held, min(self.lasts, LONGEST_GUESS)
        return (left, whole) if left > 0 else (0, whole)

    def idle(self, now: float) -> bool:
        return not self.held and self.touched + IDLE <= now


def counted(account: Account) -> Counted:
    """A fresh account of the kind."""
    if account.kind == "rpm":
        return Requests()
    return Tokens() if account.kind == "tpm" else Slots()
