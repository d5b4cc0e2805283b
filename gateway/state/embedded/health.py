"""How each target stands, in one worker: breakers, throttles, keys aside, learnt abilities.

A target nothing is held against costs one dictionary look-up. What is against it runs out by time
alone, so nothing has to be woken. Rules and figures: gateway.md 3.4 and 3.6.
"""

import math
import random
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from gateway.clock import Clock
from gateway.core.attempt import Attempt
from gateway.core.events import BreakerMoved, Event, KeyAside
from gateway.core.plan import WELL, Standing
from gateway.core.target import WAY_ON, BreakerPolicy, Cause, Failure, Fault, Target
from gateway.state.wing import Seen

BUCKETS = 10
RAMP = 4.0  # seconds
SHARES = (0.25, 0.5, 0.75)
HEALTHY = 60.0  # seconds closed that forgive one trip
MOST_TRIPS = 16  # beyond it the cooldown is at its maximum anyway
LEASE = 600.0  # seconds after which a probe nobody answered for is given back
REST, LONGEST_REST = 1.0, 30.0  # a 429 without a hint: 1 s, doubling while it goes on
LONGEST_HINT = 3600.0
QUOTA = 300.0
AUTH, LONGEST_AUTH = 60.0, 3600.0
GONE = 60.0
LEARNT = 600.0
FEATURES = 32  # learnt at most for one target
FULL, RETRY = 10_000, 1_000  # the retry budget, in thousandths
HELD_OPEN = 60.0  # told as the time left while an operator holds a breaker open

Name = Literal["closed", "half-open", "open"]


class Breaker(NamedTuple):
    """One breaker as status and metrics show it; `until`: monotonic moment of the next probe."""

    target_id: str
    target: str
    state: Name
    until: float | None


class _Rest:
    """A 429's aftermath: (provider, key, model)."""

    __slots__ = ("since", "strikes", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self.since = -math.inf
        self.strikes = 0


class _Aside:
    """A refused key (provider, key), or a model that is gone (one target)."""

    __slots__ = ("since", "strikes", "told", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self.since = -math.inf
        self.strikes = 0
        self.told = False


class _Ring:
    """ok and fail of the last `window` seconds in ten buckets, and the failures in a row."""

    __slots__ = ("_bad", "_good", "_last", "in_a_row")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._good = [0] * BUCKETS
        self._bad = [0] * BUCKETS
        self._last = 0
        self.in_a_row = 0

    def add(self, now: float, window: float, *, ok: bool) -> None:
        bucket = int(now * BUCKETS / window)
        for passed in range(self._last + 1, min(bucket, self._last + BUCKETS) + 1):
            self._good[passed % BUCKETS] = self._bad[passed % BUCKETS] = 0
        self._last = max(bucket, self._last)
        if ok:
            self._good[self._last % BUCKETS] += 1
            self.in_a_row = 0
        else:
            self._bad[self._last % BUCKETS] += 1
            self.in_a_row += 1

    def broken(self, policy: BreakerPolicy) -> str:
        """Why the breaker has to open; "" if it need not."""
        if self.in_a_row >= policy.failures:
            return f"{self.in_a_row} failures in a row"
        bad = sum(self._bad)
        asked = bad + sum(self._good)
        if asked >= policy.min_requests and bad >= policy.error_rate * asked:
            return f"{bad} of {asked} failed in {policy.window:g} s"
        return ""


class _Seat:
    """All that is known of one target."""

    __slots__ = (
        "aside", "budget", "calm", "closed_at", "forced", "key", "lacks", "open_until", "opened_at",
        "policy", "probed_at", "rest", "ring", "state", "target", "trips",
    )  # fmt: skip

    def __init__(self, target: Target, key: _Aside, rest: _Rest) -> None:
        self.target = target
        self.policy = target.breaker
        self.key = key
        self.rest = rest
        self.aside = _Aside()
        self.ring = _Ring()
        self.state: Name = "closed"
        self.forced: Literal["open", "closed"] | None = None
        self.open_until = 0.0
        self.opened_at = 0.0
        self.closed_at = -math.inf
        self.probed_at: float | None = None  # since when a probe is under way
        self.trips = 0
        self.lacks: dict[str, float] = {}
        self.budget = FULL
        self.calm = True  # nothing is against it, now and by the passing of time


class LocalHealth:
    """The port `Health` for one worker.

    Until `use` was called every target that is shown gets a seat; from then on only those named.

    Args:
        clock: whose monotonic time counts.
        heard: told of breakers that move and keys that are set aside.
        rng: draws the spread of cooldowns.
    """

    def __init__(self, clock: Clock, heard: Callable[[Event], None], rng: random.Random) -> None:
        self._now = clock.monotonic
        self._heard = heard
        self._rng = rng
        self._seats: dict[str, _Seat] = {}
        self._keys: dict[tuple[str, str], _Aside] = {}
        self._rests: dict[tuple[str, str, str], _Rest] = {}
        self._fixed = False

    # -- asked on every request -------------------------------------------------------------------

    def standing(self, target_id: str) -> Standing:
        seat = self._seats.get(target_id)
        if seat is None or seat.calm:
            return WELL
        return self._standing(seat, self._now())

    def enter(self, target: Target) -> bool:
        """Also while it is still open, for whoever finds every target open."""
        seat = self._seats.get(target.id)
        if seat is None or self._name(seat, self._now()) == "closed":
            return True
        now = self._now()
        if seat.forced == "open" or self._probing(seat, now):
            return False
        seat.probed_at = now
        if seat.state == "open":
            self._move(seat, "half-open", "probe under way")
        return True

    def leave(self, target: Target) -> None:
        seat = self._seats.get(target.id)
        if seat is not None:
            self._give_back(seat)

    def deposit(self, target: Target, share: float) -> None:
        seat = self._seat(target)
        if seat is not None and seat.budget < FULL:
            seat.budget = min(FULL, seat.budget + round(share * RETRY))

    def withdraw(self, target: Target) -> bool:
        seat = self._seat(target)
        if seat is None or seat.budget < RETRY:
            return False
        seat.budget -= RETRY
        return True

    def record(self, attempt: Attempt, target: Target) -> None:
        seat = self._seat(target)
        if seat is None:
            return
        failure = attempt.failure
        if failure is not None and not attempt.hurried:
            self._failed(seat, attempt, failure)
        elif attempt.finished:
            self._succeeded(seat, attempt)
        if attempt.probe:
            self._give_back(seat)

    def answered(self, attempt: Attempt, target: Target) -> None:
        """A probe has content: the breaker closes now, not at the end of a long stream."""
        seat = self._seats.get(target.id)
        if seat is not None and attempt.probe and seat.state == "half-open":
            self._close(seat, f"probe ok, {self._took(attempt)} ms")

    # -- asked now and then -----------------------------------------------------------------------

    def use(self, targets: Iterable[Target]) -> None:
        """A new configuration: what is known stays by id, what is gone is forgotten."""
        old, self._seats = self._seats, {}
        keys, self._keys = self._keys, {}
        rests, self._rests = self._rests, {}
        targets = tuple(targets)
        for target in targets:
            seat = old.get(target.id)
            if seat is not None and seat.target.secret != target.secret:
                keys.pop((target.provider, target.key), None)  # another key under the same name
        for target in targets:
            provider_key = (target.provider, target.key)
            model = (target.provider, target.key, target.model)
            key = self._keys.setdefault(provider_key, keys.get(provider_key) or _Aside())
            rest = self._rests.setdefault(model, rests.get(model) or _Rest())
            seat = old.get(target.id)
            if seat is None:
                seat = _Seat(target, key, rest)
            seat.target, seat.policy, seat.key, seat.rest = target, target.breaker, key, rest
            seat.calm = False
            self._seats[target.id] = seat
        self._fixed = True

    def force(self, target_id: str, to: Literal["open", "closed"] | None) -> bool:
        """An operator's word: held open or closed until None gives it back. False: no such target.

        Throttles and keys aside are not overridden.
        """
        seat = self._seats.get(target_id)
        if seat is None:
            return False
        seat.forced = to
        seat.ring.clear()
        seat.probed_at = None
        seat.trips = 0
        seat.closed_at = -math.inf
        seat.open_until = 0.0
        seat.calm = False
        wanted: Name = "open" if to == "open" else "closed"
        if seat.state != wanted:
            self._move(seat, wanted, "by an operator")
        return True

    def held(self, target_id: str) -> Literal["open", "closed"] | None:
        """What an operator holds a target's breaker at."""
        seat = self._seats.get(target_id)
        return None if seat is None else seat.forced

    def breakers(self) -> list[Breaker]:
        """All of them, in order of the configuration."""
        now = self._now()
        found = []
        for seat in self._seats.values():
            name = self._name(seat, now)
            until = seat.open_until if name == "open" and seat.forced is None else None
            found.append(Breaker(seat.target.id, seat.target.name, name, until))
        return found

    # -- what other workers say, where somebody carries it -----------------------------------------

    def seen(self) -> list[Seen]:
        """All that no operator holds."""
        now = self._now()
        return [
            Seen(
                seat.target.id,
                seat.state != "closed",
                seat.opened_at,
                seat.open_until - now,
                seat.trips,
                self._probing(seat, now),
            )
            for seat in self._seats.values()
            if seat.forced is None
        ]

    def hear_open(self, target_id: str, left: float, trips: int) -> None:
        """Another worker's breaker is open for `left` seconds; a probe of ours goes on."""
        seat = self._seats.get(target_id)
        if seat is None or seat.forced is not None or seat.state == "half-open":
            return
        until = self._now() + left
        seat.trips = max(seat.trips, trips)
        if seat.state == "open":
            seat.open_until = max(seat.open_until, until)
            return
        seat.opened_at = self._now()
        seat.open_until = until
        seat.ring.clear()
        self._move(seat, "open", "another worker's has opened", until)

    def hear_closed(self, target_id: str) -> None:
        """Another worker's probe was answered."""
        seat = self._seats.get(target_id)
        if seat is not None and seat.forced is None and seat.state != "closed":
            self._close(seat, "another worker's probe was answered")

    # -- standing ---------------------------------------------------------------------------------

    def _standing(self, seat: _Seat, now: float) -> Standing:
        lacks: frozenset[str] = frozenset()
        if seat.lacks:
            for feature, until in tuple(seat.lacks.items()):
                if until <= now:
                    del seat.lacks[feature]
            lacks = frozenset(seat.lacks)
        throttled = seat.rest.until if seat.rest.until > now else 0.0
        aside = max(seat.key.until, seat.aside.until)
        aside = aside if aside > now else 0.0
        name = self._name(seat, now)
        share = self._share(seat, now)
        if name == "closed" and share == 1.0 and not (throttled or aside or lacks):
            seat.calm = True
            return WELL
        until = 0.0
        if name == "open":
            until = now + HELD_OPEN if seat.forced == "open" else seat.open_until
        return Standing(
            open_until=until,
            half_open=name == "half-open",
            probing=name == "half-open" and self._probing(seat, now),
            share=share,
            throttled_until=throttled,
            aside_until=aside,
            lacks=lacks,
        )

    def _name(self, seat: _Seat, now: float) -> Name:
        """An open breaker whose time has come is half-open before anybody asked it."""
        if seat.state == "open" and seat.forced is None and seat.open_until <= now:
            return "half-open"
        return seat.state

    def _probing(self, seat: _Seat, now: float) -> bool:
        return seat.probed_at is not None and now - seat.probed_at < LEASE

    def _share(self, seat: _Seat, now: float) -> float:
        since = now - seat.closed_at
        if seat.state != "closed" or since >= RAMP:
            return 1.0
        return SHARES[int(since * len(SHARES) / RAMP)]

    # -- verdicts ---------------------------------------------------------------------------------

    def _succeeded(self, seat: _Seat, attempt: Attempt) -> None:
        if attempt.started >= seat.rest.since:
            seat.rest.strikes = 0
        if attempt.started >= seat.key.since:
            seat.key.strikes = 0
        seat.aside.told = False
        if seat.state == "closed":
            seat.ring.add(self._now(), seat.policy.window, ok=True)
        elif seat.forced is None and (attempt.probe or attempt.started > seat.opened_at):
            self._close(seat, f"probe ok, {self._took(attempt)} ms")

    def _failed(self, seat: _Seat, attempt: Attempt, failure: Failure) -> None:
        fault = WAY_ON[failure.cause].fault if failure.cause in WAY_ON else Fault.NOBODY
        if fault is Fault.TARGET:
            self._count(seat, attempt, failure.cause)
        elif fault is Fault.THROTTLE:
            self._throttle(seat, attempt, failure)
        elif fault is Fault.KEY:
            self._set_aside(seat, attempt, failure.cause)
        elif fault is Fault.MODEL:
            self._gone(seat)
        elif fault is Fault.LEARN and failure.feature:
            self._learn(seat, failure.feature)

    def _count(self, seat: _Seat, attempt: Attempt, cause: Cause) -> None:
        """A failure of the target's own."""
        now = self._now()
        if seat.state == "half-open":
            if attempt.probe:
                self._open(seat, f"probe failed: {cause}")
            return
        if seat.state == "open" or attempt.started < seat.closed_at:
            return  # from before it opened: that was judged already
        if now - seat.closed_at < RAMP:
            self._open(seat, f"failed again: {cause}")
            return
        seat.ring.add(now, seat.policy.window, ok=False)
        if why := seat.ring.broken(seat.policy):
            self._open(seat, why)

    def _throttle(self, seat: _Seat, attempt: Attempt, failure: Failure) -> None:
        """429: (model, key) rests; after an outage it also ends the recovery."""
        if not failure.throttles:
            return  # "request too large": nothing time would cure, and no word on the target
        now = self._now()
        rest = seat.rest
        until = 0.0
        if failure.retry_after is not None:
            until = now + min(failure.retry_after, LONGEST_HINT)
        elif attempt.started >= rest.since:  # not one of many that were sent together
            until = now + min(LONGEST_REST, REST * 2**rest.strikes)
            rest.strikes = min(rest.strikes + 1, MOST_TRIPS)
        if until > rest.until:
            rest.until = until
            rest.since = now
        self._stir(other for other in self._seats.values() if other.rest is rest)
        if seat.state == "half-open" and attempt.probe:
            self._open(seat, "probe failed: rate_limited")
        elif seat.state == "closed" and attempt.started >= seat.closed_at > now - RAMP:
            self._open(seat, "failed again: rate_limited")

    def _set_aside(self, seat: _Seat, attempt: Attempt, cause: Cause) -> None:
        """The key is refused or used up: for every target that shows it."""
        now = self._now()
        key = seat.key
        if attempt.started < key.since:
            return  # sent before the key was set aside
        if cause is Cause.AUTH:
            seconds = min(LONGEST_AUTH, AUTH * 2**key.strikes)
            key.strikes = min(key.strikes + 1, MOST_TRIPS)
        else:
            seconds = QUOTA
        key.since = now
        key.until = max(key.until, now + seconds)
        self._stir(other for other in self._seats.values() if other.key is key)
        self._alarm(seat, cause, seconds)

    def _gone(self, seat: _Seat) -> None:
        """One alarm until it answers again."""
        seat.aside.until = self._now() + GONE
        seat.calm = False
        if not seat.aside.told:
            seat.aside.told = True
            self._alarm(seat, Cause.MODEL_GONE, GONE)

    def _learn(self, seat: _Seat, feature: str) -> None:
        now = self._now()
        if feature not in seat.lacks and len(seat.lacks) >= FEATURES:
            del seat.lacks[min(seat.lacks, key=lambda known: seat.lacks[known])]
        seat.lacks[feature] = now + LEARNT
        seat.calm = False

    def _alarm(self, seat: _Seat, cause: Cause, seconds: float) -> None:
        target = seat.target
        self._heard(KeyAside(target.name, target.provider, target.key, cause.value, seconds))

    # -- the breaker ------------------------------------------------------------------------------

    def _open(self, seat: _Seat, why: str) -> None:
        now = self._now()
        if seat.forced is not None:
            seat.ring.clear()
            return
        if seat.state == "closed" and seat.closed_at > -math.inf:
            healthy = int((now - seat.closed_at) / HEALTHY)
            seat.trips = max(0, seat.trips - healthy)
        policy = seat.policy
        longest = min(policy.max_cooldown, policy.cooldown * 2**seat.trips)
        seat.trips = min(seat.trips + 1, MOST_TRIPS)
        seat.opened_at = now
        seat.open_until = now + self._rng.uniform(0.75, 1.0) * longest
        seat.probed_at = None
        seat.ring.clear()
        self._move(seat, "open", why, seat.open_until)

    def _close(self, seat: _Seat, why: str) -> None:
        seat.closed_at = self._now()
        seat.open_until = 0.0
        seat.probed_at = None
        seat.ring.clear()
        self._move(seat, "closed", why)

    def _give_back(self, seat: _Seat) -> None:
        """A probe without a verdict: the next one may try; before its time nobody else should."""
        seat.probed_at = None
        if seat.state == "half-open" and seat.open_until > self._now():
            self._move(seat, "open", "probe without a verdict", seat.open_until)

    def _move(self, seat: _Seat, to: Name, why: str, until: float | None = None) -> None:
        was, seat.state = seat.state, to
        seat.calm = False
        self._heard(BreakerMoved(seat.target.id, seat.target.name, was, to, why, until))

    # -- seats ------------------------------------------------------------------------------------

    def _seat(self, target: Target) -> _Seat | None:
        seat = self._seats.get(target.id)
        if seat is None and not self._fixed:
            key = self._keys.setdefault((target.provider, target.key), _Aside())
            model = (target.provider, target.key, target.model)
            rest = self._rests.setdefault(model, _Rest())
            seat = self._seats[target.id] = _Seat(target, key, rest)
            seat.calm = False
        return seat

    def _stir(self, seats: Iterable[_Seat]) -> None:
        for seat in seats:
            seat.calm = False

    def _took(self, attempt: Attempt) -> int:
        ended = attempt.first_content or attempt.ended or self._now()
        return round((ended - attempt.started) * 1000)
