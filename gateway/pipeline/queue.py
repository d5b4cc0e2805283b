"""Fair, bounded waiting for a slot: priority, then keys by turns weighted with tokens, then order.

Source: gateway.md 5.6; self-clocked fair queueing, Golestani 1994.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from gateway.clock import Clock
from gateway.core.attempt import Demand, Refusal, Reservation
from gateway.core.plan import Facts
from gateway.core.principal import Priority
from gateway.errors import RateLimited
from gateway.pipeline.estimate import BYTES_A_TOKEN

RANK: dict[Priority, int] = {"high": 0, "normal": 1, "low": 2}
HIGH_SHARE = 0.2  # of the places is kept for `high`
KEY_SHARE = 0.5  # of the places is the most one key holds while others wait
MEMORY = 0.1  # weight of the newest service time in the mean


@dataclass(slots=True, eq=False)
class _Waiter:
    key_id: str
    rank: int
    finish: float  # virtual: when its turn would be over if keys were served token by token
    order: int
    size: int
    account: str
    fits: Callable[[], bool]
    turn: asyncio.Future[bool]
    pushed_out: bool = field(default=False)

    @property
    def place(self) -> tuple[int, float, int]:
        return (self.rank, self.finish, self.order)


class Queue:
    """Requests that wait on one worker. `length` requests and `room` bytes at most."""

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

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def ahead_of(self, demands: Sequence[Demand]) -> Refusal | None:
        """Whether somebody already waits for one of these accounts: no overtaking."""
        accounts = {demand.account.id: demand.account for demand in demands}
        for waiter in self._waiters:
            if waiter.account in accounts:
                return Refusal(accounts[waiter.account], 1.0)
        return None

    def served(self, chain: str, seconds: float) -> None:
        """A request of this chain took so long: what the expected wait is made of."""
        mean = self._service.get(chain, seconds)
        self._service[chain] = mean + MEMORY * (seconds - mean)

    async def wait(
        self,
        facts: Facts,
        refusal: Refusal,
        fits: Callable[[], bool],
        again: Callable[[], Awaitable[Reservation | Refusal]],
    ) -> Reservation:
        """Stand in line until `again` reserves.

        Args:
            facts: whose request, with what deadline.
            refusal: the account that is full.
            fits: looks whether it would be admitted now.
            again: tries.

        Raises:
            RateLimited: `queue_full`: the line is full, or too long for this caller's patience.
        """
        patience = min(facts.principal.wait, facts.deadline.left(self._clock))
        end = self._clock.monotonic() + patience
        self._refuse_hopeless(facts, refusal, patience)
        waiter = self._join(facts, refusal, fits)
        try:
            while True:
                left = end - self._clock.monotonic()
                if left <= 0 or waiter.pushed_out:
                    raise self._full(facts, refusal, pushed=waiter.pushed_out)
                nap = left if refusal.account.kind == "concurrency" else min(left, refusal.wait)
                await self._turn(waiter, nap)
                taken = await again()
                if isinstance(taken, Reservation):
                    self._virtual = max(self._virtual, waiter.finish)
                    return taken
                refusal = taken
                waiter.account = taken.account.id
        finally:
            self._leave(waiter)
            self.pump()

    def pump(self) -> None:
        """Room came back: wake the first in line whom it fits."""
        for waiter in sorted(self._waiters, key=lambda w: w.place):
            if waiter.turn.done():
                return  # somebody is about to take it
            if waiter.fits():
                waiter.turn.set_result(True)
                return

    async def _turn(self, waiter: _Waiter, seconds: float) -> None:
        waiter.turn = asyncio.get_running_loop().create_future()
        turn = waiter.turn

        def too_late() -> None:
            if not turn.done():
                turn.set_result(False)

        cancel = self._clock.call_at(self._clock.monotonic() + seconds, too_late)
        try:
            await turn
        finally:
            cancel()

    def _join(self, facts: Facts, refusal: Refusal, fits: Callable[[], bool]) -> _Waiter:
        key_id = facts.principal.key_id
        rank = RANK[facts.hints.priority or facts.principal.priority]
        size = int(facts.request.prompt * BYTES_A_TOKEN)
        self._make_room(facts, refusal, rank, size)
        tokens = facts.request.prompt + (facts.request.max_output or 0) + 1
        finish = max(self._virtual, self._finish.get(key_id, 0.0)) + tokens
        self._finish[key_id] = finish
        self._order += 1
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(key_id, rank, finish, self._order, size, refusal.account.id, fits, turn)
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
        """Full: the newest of a lower class goes, else the newcomer does."""
        length = self._length if rank == RANK["high"] else int(self._length * (1 - HIGH_SHARE))
        key_id = facts.principal.key_id
        mine = sum(1 for waiter in self._waiters if waiter.key_id == key_id)
        others = len(self._waiters) - mine
        if others and mine + 1 > self._length * KEY_SHARE:
            raise self._full(facts, refusal, pushed=False)
        while len(self._waiters) + 1 > length or self._bytes + size > self._room:
            lower = [waiter for waiter in self._waiters if waiter.rank > rank]
            if not lower:
                raise self._full(facts, refusal, pushed=False)
            newest = max(lower, key=lambda waiter: waiter.order)
            newest.pushed_out = True
            self._leave(newest)
            if not newest.turn.done():
                newest.turn.set_result(False)

    def _refuse_hopeless(self, facts: Facts, refusal: Refusal, patience: float) -> None:
        """On arrival: who would wait longer than he is willing to is told so at once."""
        ahead = sum(1 for waiter in self._waiters if waiter.account == refusal.account.id)
        if refusal.account.kind == "concurrency":
            mean = self._service.get(facts.chain.name, 0.0)
            expected = (ahead + 1) / max(1, refusal.account.limit) * mean
        else:
            expected = refusal.wait
        if expected > patience:
            raise self._full(facts, Refusal(refusal.account, expected), pushed=False)

    def _full(self, facts: Facts, refusal: Refusal, *, pushed: bool) -> RateLimited:
        account = refusal.account
        why = (
            "a request of higher priority took its place in line"
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
