"""Fair, bounded waiting for a slot: priority, then keys by turns weighted with tokens, then order.

Source: gateway.md 5.6; self-clocked fair queueing, Golestani 1994.
"""

import asyncio
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from gateway.clock import Clock
from gateway.core.attempt import Demand, Refusal, Reservation
from gateway.core.plan import Facts
from gateway.core.principal import Priority
from gateway.core.target import Account
from gateway.errors import RateLimited
from gateway.pipeline.estimate import BYTES_A_TOKEN
from gateway.pipeline.plan import MIN_ATTEMPT

CALLER = frozenset({"team", "key", "user", "session"})  # scopes of a caller's own accounts
RANK: dict[Priority, int] = {"high": 0, "normal": 1, "low": 2}
HIGH_SHARE = 0.2  # of the places is kept for `high`
KEY_SHARE = 0.5  # of the places is the most one key holds while others wait
MEMORY = 0.1  # weight of the newest service time in the mean
LOOK_AGAIN = 0.05  # seconds between looks at least
PUSHED = "a request with more right to its place took it"


def rank_of(facts: Facts) -> int:
    """Of the class it is in: a caller's own, or a lower one it asks for."""
    return RANK[facts.hints.priority or facts.principal.priority]


# Rank; the virtual moment its turn would be over if keys were served token by token; order.
Place = tuple[int, float, int]


@dataclass(frozen=True, slots=True)
class Tries:
    """How one request finds out whether it may go.

    Args:
        room_in: looks in how many seconds it would be admitted; 0 or less: now.
        take: reserves, and keeps what it reserved, if nobody has to be asked for it.
        again: reserves.
    """

    room_in: Callable[[], float]
    take: Callable[[], Reservation | None]
    again: Callable[[], Awaitable[Reservation | Refusal]]


@dataclass(slots=True, eq=False)
class _Waiter:
    key_id: str
    chain: str
    place: Place
    size: int
    account: Account  # what was full when it last asked
    tries: Tries
    turn: asyncio.Future[Reservation | bool]  # it has it; True: ask; False: the wait is over
    not_before: float = 0.0
    over: bool = False
    pushed_out: bool = False

    def call(self) -> None:
        if not self.turn.done():
            self.turn.set_result(True)

    def dismiss(self) -> None:
        """Also while it tries: then it does not wait again."""
        self.over = True
        if not self.turn.done():
            self.turn.set_result(False)


def _place(waiter: _Waiter) -> Place:
    return waiter.place


def _rank(waiter: _Waiter) -> int:
    return waiter.place[0]


class Queue:
    """Requests that wait on one worker. `length` requests and `room` bytes at most.

    Who owns it tells `Limiter.on_room` of `pump`.
    """

    def __init__(self, clock: Clock, length: int, room: int) -> None:
        self._clock = clock
        self._length = length
        self._room = room
        self._waiters: list[_Waiter] = []  # by place
        self._held: Counter[str] = Counter()  # places, by key
        self._bytes = 0
        self._virtual = 0.0
        self._finish: dict[str, float] = {}  # of keys that have somebody waiting
        self._order = 0
        self._service: dict[str, float] = {}  # mean seconds a request of a chain takes
        self._alarm: Callable[[], None] | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def depths(self) -> dict[str, int]:
        """How many wait, by chain."""
        return dict(Counter(waiter.chain for waiter in self._waiters))

    def ahead_of(self, chain: str, demands: Sequence[Demand]) -> Refusal | None:
        """Whether somebody waits already for one of these accounts, or for any target of it."""
        wanted = {demand.account.id for demand in demands}
        for waiter in self._waiters:
            of_chain = waiter.chain == chain and waiter.account.scope not in CALLER
            if of_chain or waiter.account.id in wanted:
                return Refusal(waiter.account, 1.0)
        return None

    def served(self, chain: str, seconds: float) -> None:
        """A request of this chain took so long: what the expected wait is made of."""
        mean = self._service.get(chain, seconds)
        self._service[chain] = mean + MEMORY * (seconds - mean)

    async def wait(self, facts: Facts, refusal: Refusal, tries: Tries) -> Reservation:
        """Stand in line until one of the `tries` reserves.

        Args:
            facts: whose request, with what deadline.
            refusal: the account that is full.
            tries: how to find out.

        Raises:
            RateLimited: `queue_full`: the line is full, or too long for this caller's patience.
        """
        patience = min(facts.principal.wait, facts.deadline.left(self._clock) - MIN_ATTEMPT)
        rank = rank_of(facts)
        self._refuse_hopeless(facts, refusal, rank, patience)
        waiter = self._join(facts, refusal, rank, tries)
        stop = self._clock.call_at(self._clock.monotonic() + patience, waiter.dismiss)
        try:
            self.pump()
            while turn := await waiter.turn:
                if isinstance(turn, Reservation):
                    return turn
                taken = await tries.again()
                if isinstance(taken, Reservation):
                    self._virtual = max(self._virtual, waiter.place[1])
                    return taken
                refusal = taken
                self._stand_back(waiter, refusal)
            self._leave(waiter)
            why = PUSHED if waiter.pushed_out else f"the {patience:.3g} s it may wait are over"
            raise self._full(facts, refusal, rank, why)
        finally:
            stop()
            self._leave(waiter)
            self.pump()

    def pump(self) -> None:
        """Room came back, or may have: it goes to the first in line whom it fits, at once.

        A turn of the loop for each would leave slots empty where many come back together.
        """
        now = self._clock.monotonic()
        soonest = float("inf")
        full: set[tuple[str, str, str]] = set()  # who has the same accounts has the same room
        for waiter in tuple(self._waiters):
            if waiter.turn.done():
                return  # somebody is about to take it, and pumps when he has
            wanted = (waiter.chain, waiter.key_id, waiter.account.id)
            if wanted in full:
                continue
            wait = max(waiter.not_before - now, waiter.tries.room_in())
            if wait <= 0:
                taken = waiter.tries.take()
                if taken is None:
                    waiter.call()
                    return
                self._virtual = max(self._virtual, waiter.place[1])
                self._leave(waiter)
                waiter.turn.set_result(taken)
                continue
            full.add(wanted)
            soonest = min(soonest, wait)
        self._look_again(max(LOOK_AGAIN, soonest))

    def _look_again(self, seconds: float) -> None:
        """What time cures nobody tells us of: look when it should be cured."""
        if self._alarm is not None:
            self._alarm()
            self._alarm = None
        if self._waiters:
            self._alarm = self._clock.call_at(self._clock.monotonic() + seconds, self.pump)

    def _stand_back(self, waiter: _Waiter, refusal: Refusal) -> None:
        """It was woken and refused all the same: others may try before it does again."""
        waiter.account = refusal.account
        slot = refusal.account.kind == "concurrency"  # of those that come back we are told
        pause = LOOK_AGAIN if slot else max(LOOK_AGAIN, min(1.0, refusal.wait))
        waiter.not_before = self._clock.monotonic() + pause
        waiter.turn = asyncio.get_running_loop().create_future()
        if waiter.over:
            waiter.turn.set_result(False)
        self.pump()

    def _join(self, facts: Facts, refusal: Refusal, rank: int, tries: Tries) -> _Waiter:
        key_id = facts.principal.key_id
        size = int(facts.request.prompt * BYTES_A_TOKEN)
        self._make_room(facts, refusal, rank, size)
        place = self._place_of(facts, rank)
        self._finish[key_id] = place[1]
        self._order += 1
        waiter = _Waiter(
            key_id=key_id,
            chain=facts.chain.name,
            place=place,
            size=size,
            account=refusal.account,
            tries=tries,
            turn=asyncio.get_running_loop().create_future(),
        )
        insort(self._waiters, waiter, key=_place)
        self._held[key_id] += 1
        self._bytes += size
        return waiter

    def _place_of(self, facts: Facts, rank: int) -> Place:
        """Where it would stand if it came now."""
        tokens = facts.request.prompt + (facts.request.max_output or 0) + 1
        begin = max(self._virtual, self._finish.get(facts.principal.key_id, 0.0))
        return rank, begin + tokens, self._order

    def _leave(self, waiter: _Waiter) -> None:
        at = bisect_left(self._waiters, waiter.place, key=_place)
        if at == len(self._waiters) or self._waiters[at] is not waiter:
            return  # pushed out before
        del self._waiters[at]
        self._bytes -= waiter.size
        self._held[waiter.key_id] -= 1
        if not self._held[waiter.key_id]:
            del self._held[waiter.key_id], self._finish[waiter.key_id]

    def _make_room(self, facts: Facts, refusal: Refusal, rank: int, size: int) -> None:
        """Full: some who have less right to their places go, else the newcomer does."""
        length = self._length if rank == RANK["high"] else int(self._length * (1 - HIGH_SHARE))
        key_id = facts.principal.key_id
        mine = self._held[key_id]
        if mine < len(self._waiters) and mine + 1 > self._length * KEY_SHARE:
            raise self._full(facts, refusal, rank, f"{mine} requests of this key wait already")
        places = len(self._waiters) + 1 - length
        size -= self._room - self._bytes
        if places <= 0 and size <= 0:
            return
        going: list[_Waiter] = []
        for waiter in self._less_entitled(key_id, rank):
            going.append(waiter)
            places -= 1
            size -= waiter.size
            if places <= 0 and size <= 0:
                break
        else:
            raise self._full(facts, refusal, rank, f"{len(self._waiters)} requests wait already")
        for waiter in going:
            waiter.pushed_out = True
            self._leave(waiter)
            waiter.dismiss()

    def _less_entitled(self, key_id: str, rank: int) -> Iterator[_Waiter]:
        """Of lower classes, the lowest and newest first; then of keys that hold over their half."""
        waiters = self._waiters
        lower = waiters[bisect_left(waiters, rank + 1, key=_rank) :]
        yield from sorted(lower, key=lambda w: (w.place[0], w.place[2]), reverse=True)
        half = int(self._length * KEY_SHARE)
        for key, n in self._held.items():
            if n > half and key != key_id:
                theirs = [w for w in waiters if w.key_id == key and w.place[0] == rank]
                yield from sorted(theirs, key=lambda w: w.place[2], reverse=True)[: n - half]

    def _refuse_hopeless(self, facts: Facts, refusal: Refusal, rank: int, patience: float) -> None:
        """On arrival: who would wait longer than he is willing to is told so at once."""
        expected = self._expected(facts, refusal, rank)
        if expected > patience:
            why = f"its turn would come in {expected:.3g} s, and it may wait {patience:.3g} s"
            raise self._full(facts, refusal, rank, why)

    def _expected(self, facts: Facts, refusal: Refusal, rank: int) -> float:
        """Seconds until it would be its turn, if it came now."""
        account = refusal.account
        if account.kind != "concurrency":
            return refusal.wait
        before = bisect_left(self._waiters, self._place_of(facts, rank), key=_place)
        name = account.id
        ahead = sum([w.account.id == name for w in self._waiters[:before]])
        mean = self._service.get(facts.chain.name, 0.0)
        return (ahead + 1) / max(1, account.limit) * mean

    def _full(self, facts: Facts, refusal: Refusal, rank: int, why: str) -> RateLimited:
        account = refusal.account
        wait = max(refusal.wait, self._expected(facts, refusal, rank), LOOK_AGAIN)
        return RateLimited(
            f"The limit of {account.limit:,} ({account.kind}, {account.scope} '{account.name}') is"
            f" reached, and this request can not wait in line: {why}. Come back in {wait:.3g} s.",
            code="queue_full",
            retry_after=wait,
            scope=account.scope,
        )
