"""Fair, bounded waiting for a slot: priority, then keys by turns weighted with tokens, then order.

Source: gateway.md 5.6; self-clocked fair queueing, Golestani 1994.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
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


@dataclass(slots=True, eq=False)
class _Waiter:
    key_id: str
    chain: str
    rank: int
    finish: float  # virtual: when its turn would be over if keys were served token by token
    order: int
    size: int
    account: Account  # what was full when it last asked
    room_in: Callable[[], float]
    turn: asyncio.Future[bool]  # True: try; False: the wait is over
    not_before: float = 0.0
    over: bool = False
    pushed_out: bool = False

    @property
    def place(self) -> tuple[int, float, int]:
        return (self.rank, self.finish, self.order)

    def call(self) -> None:
        if not self.turn.done():
            self.turn.set_result(True)

    def dismiss(self) -> None:
        """Also while it tries: then it does not wait again."""
        self.over = True
        if not self.turn.done():
            self.turn.set_result(False)


class Queue:
    """Requests that wait on one worker. `length` requests and `room` bytes at most.

    Who owns it tells `Limiter.on_room` of `pump`.
    """

    def __init__(self, clock: Clock, length: int, room: int) -> None:
        self._clock = clock
        self._length = length
        self._room = room
        self._waiters: list[_Waiter] = []
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

    async def wait(
        self,
        facts: Facts,
        refusal: Refusal,
        room_in: Callable[[], float],
        again: Callable[[], Awaitable[Reservation | Refusal]],
    ) -> Reservation:
        """Stand in line until `again` reserves.

        Args:
            facts: whose request, with what deadline.
            refusal: the account that is full.
            room_in: looks in how many seconds it would be admitted; 0 or less: now.
            again: tries.

        Raises:
            RateLimited: `queue_full`: the line is full, or too long for this caller's patience.
        """
        patience = min(facts.principal.wait, facts.deadline.left(self._clock) - MIN_ATTEMPT)
        rank = RANK[facts.hints.priority or facts.principal.priority]
        self._refuse_hopeless(facts, refusal, rank, patience)
        waiter = self._join(facts, refusal, rank, room_in)
        stop = self._clock.call_at(self._clock.monotonic() + patience, waiter.dismiss)
        try:
            self.pump()
            while await waiter.turn:
                taken = await again()
                if isinstance(taken, Reservation):
                    self._virtual = max(self._virtual, waiter.finish)
                    return taken
                refusal = taken
                self._stand_back(waiter, refusal)
            raise self._full(facts, refusal, pushed=waiter.pushed_out)
        finally:
            stop()
            self._leave(waiter)
            self.pump()

    def pump(self) -> None:
        """Room came back, or may have: wake the first in line whom it fits."""
        now = self._clock.monotonic()
        soonest = float("inf")
        full: set[tuple[str, str, str]] = set()  # who has the same accounts has the same room
        for waiter in sorted(self._waiters, key=lambda w: w.place):
            if waiter.turn.done():
                return  # somebody is about to take it, and pumps when he has
            wanted = (waiter.chain, waiter.key_id, waiter.account.id)
            if wanted in full:
                continue
            wait = max(waiter.not_before - now, waiter.room_in())
            if wait <= 0:
                waiter.call()
                return
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
        waiter.not_before = self._clock.monotonic() + max(LOOK_AGAIN, min(1.0, refusal.wait))
        waiter.turn = asyncio.get_running_loop().create_future()
        if waiter.over:
            waiter.turn.set_result(False)
        self.pump()

    def _join(
        self, facts: Facts, refusal: Refusal, rank: int, room_in: Callable[[], float]
    ) -> _Waiter:
        key_id = facts.principal.key_id
        size = int(facts.request.prompt * BYTES_A_TOKEN)
        self._make_room(facts, refusal, rank, size)
        tokens = facts.request.prompt + (facts.request.max_output or 0) + 1
        finish = max(self._virtual, self._finish.get(key_id, 0.0)) + tokens
        self._finish[key_id] = finish
        self._order += 1
        waiter = _Waiter(
            key_id=key_id,
            chain=facts.chain.name,
            rank=rank,
            finish=finish,
            order=self._order,
            size=size,
            account=refusal.account,
            room_in=room_in,
            turn=asyncio.get_running_loop().create_future(),
        )
        self._waiters.append(waiter)
        self._bytes += size
        return waiter

    def _leave(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            self._bytes -= waiter.size
        if all(other.key_id != waiter.key_id for other in self._waiters):
            self._finish.pop(waiter.key_id, None)

    def _make_room(self, facts: Facts, refusal: Refusal, rank: int, size: int) -> None:
        """Full: somebody who has less right to the place goes, else the newcomer does."""
        length = self._length if rank == RANK["high"] else int(self._length * (1 - HIGH_SHARE))
        key_id = facts.principal.key_id
        mine = sum(1 for waiter in self._waiters if waiter.key_id == key_id)
        if mine < len(self._waiters) and mine + 1 > self._length * KEY_SHARE:
            raise self._full(facts, refusal, pushed=False)
        if size > self._room:
            raise self._full(facts, refusal, pushed=False)
        while len(self._waiters) + 1 > length or self._bytes + size > self._room:
            goes = self._less_entitled(key_id, rank)
            if goes is None:
                raise self._full(facts, refusal, pushed=False)
            goes.pushed_out = True
            self._leave(goes)
            goes.dismiss()

    def _less_entitled(self, key_id: str, rank: int) -> _Waiter | None:
        """The newest of a lower class; else of another key that holds more than its half."""
        held = Counter(waiter.key_id for waiter in self._waiters)
        most = self._length * KEY_SHARE
        lower = [waiter for waiter in self._waiters if waiter.rank > rank] or [
            waiter
            for waiter in self._waiters
            if waiter.rank == rank and waiter.key_id != key_id and held[waiter.key_id] > most
        ]
        return max(lower, key=lambda waiter: waiter.order, default=None)

    def _refuse_hopeless(self, facts: Facts, refusal: Refusal, rank: int, patience: float) -> None:
        """On arrival: who would wait longer than he is willing to is told so at once."""
        account = refusal.account
        ahead = sum(1 for w in self._waiters if w.account.id == account.id and w.rank <= rank)
        expected = refusal.wait
        if account.kind == "concurrency":
            mean = self._service.get(facts.chain.name, 0.0)
            expected = (ahead + 1) / max(1, account.limit) * mean
        if expected > patience:
            raise self._full(facts, Refusal(account, expected), pushed=False)

    def _full(self, facts: Facts, refusal: Refusal, *, pushed: bool) -> RateLimited:
        account = refusal.account
        why = (
            "a request with more right to it took its place in line"
            if pushed
            else f"{len(self._waiters)} wait already"
        )
        mean = self._service.get(facts.chain.name, 1.0)
        wait = max(refusal.wait, (len(self._waiters) + 1) / max(1, account.limit) * mean)
        return RateLimited(
            f"The limit of {account.limit:,} ({account.kind}, {account.scope} '{account.name}') is"
            f" reached and waiting is of no use: {why}. Come back in {wait:.3g} s.",
            code="queue_full",
            retry_after=wait,
            scope=account.scope,
        )
