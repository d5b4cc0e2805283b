"""Accounts in memory: one process, no lock, no await; the rules are those of `state.accounts`.

What is counted belongs to the account's id and outlives a reload; the limit is that of the
`Account` in the demand at hand. (Giving an rpm a `burst`, or taking it away, starts a new count.)
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from gateway.clock import Clock
from gateway.core.attempt import Demand, Headroom, Refusal, Reservation
from gateway.core.target import Account
from gateway.state.accounts import Counted, Mark, Slots, counted

Entry = tuple[Counted, int, Mark, Any]
"""One hold: on what, how much, what would undo it, and an earlier Entry on the same account."""


class Hold(Reservation):
    """A reservation as this limiter made it: entries by account id."""

    __slots__ = ("entries",)

    def __init__(self, id: str) -> None:
        self.id = id
        self.held = {}
        self.headroom = ()
        self.entries: dict[str, Entry] = {}


class EmbeddedLimiter:
    """The port `Limiter` for one process.

    Args:
        clock: whose monotonic time the windows follow.
    """

    def __init__(self, clock: Clock) -> None:
        self._now = clock.monotonic
        self._cells: dict[str, Counted] = {}
        self._round: deque[str] = deque()  # every account once: who is looked at next
        self._swept = 0
        self._wakes: list[Callable[[], None]] = []
        self._waking = False

    def __len__(self) -> int:
        """How many accounts are remembered."""
        return len(self._cells)

    async def reserve(
        self, id: str, demands: Sequence[Demand], told: Sequence[Account]
    ) -> Reservation | Refusal:
        now = self._now()
        hold = Hold(id)
        refusal = self._take(hold, demands, now)
        if refusal is not None:
            return refusal
        if told:
            hold.headroom = self._left(told, now)
        if int(now) != self._swept:
            self._swept = int(now)
            self._sweep(max(64, len(self._round) // 60), now)
        return hold

    async def extend(self, reservation: Reservation, demands: Sequence[Demand]) -> Refusal | None:
        return self._take(cast("Hold", reservation), demands, self._now())

    def settle(self, reservation: Reservation, accounts: Iterable[Account], tokens: int) -> None:
        now = self._now()
        entries = cast("Hold", reservation).entries
        held = reservation.held
        room = False
        for account in accounts:
            name = account.id
            entry = entries.pop(name, None)
            if entry is None:
                continue
            del held[name]
            kind = account.kind
            if kind == "rpm":
                continue
            cell, n, mark, below = entry
            cell.settle(now, n, tokens, mark)
            while below is not None:  # the same account twice: `tokens` is the use of all
                cell, n, mark, below = below
                cell.settle(now, n, 0, mark)
            if kind == "concurrency":
                room = True
        if room and not self._waking and self._wakes:
            self._wake_soon()

    def release(self, reservation: Reservation, accounts: Iterable[Account] | None = None) -> None:
        entries = cast("Hold", reservation).entries
        if not entries:
            return
        now = self._now()
        room = False
        for name in tuple(entries) if accounts is None else [account.id for account in accounts]:
            entry = entries.pop(name, None)
            reservation.held.pop(name, None)
            room = room or (entry is not None and isinstance(entry[0], Slots))
            while entry is not None:
                cell, n, mark, entry = entry
                cell.undo(now, n, mark)
        if room and not self._waking and self._wakes:
            self._wake_soon()

    def wait(self, demands: Sequence[Demand]) -> float:
        now = self._now()
        longest = 0.0
        for account, n in demands:
            cell = self._cells.get(account.id)
            if cell is not None:
                longest = max(longest, cell.wait(now, n, account))
            elif account.limit <= 0:
                longest = max(longest, counted(account).wait(now, n, account))
        return longest

    def headroom(self, accounts: Sequence[Account]) -> Sequence[Headroom]:
        return self._left(accounts, self._now())

    def on_room(self, wake: Callable[[], None]) -> None:
        self._wakes.append(wake)

    def _take(self, hold: Hold, demands: Sequence[Demand], now: float) -> Refusal | None:
        """Take one after the other; at the first that is full, undo those before it."""
        cells = self._cells
        entries = hold.entries
        held = hold.held
        for place, (account, asked) in enumerate(demands):
            name = account.id
            cell = cells.get(name)
            if cell is None:
                cell = self._remember(account, now)
            limit = account.limit
            n = asked if asked <= limit else limit or asked
            mark = cell.take(now, n, account)
            if mark is None:
                self._undo(hold, demands[:place], now)
                return self._refused(hold, demands, demands[place], now)
            if name in entries:
                entries[name] = (cell, n, mark, entries[name])
                held[name] += n
            else:
                entries[name] = (cell, n, mark, None)
                held[name] = n
        return None

    def _undo(self, hold: Hold, demands: Sequence[Demand], now: float) -> None:
        for account, _ in reversed(demands):
            cell, n, mark, below = hold.entries.pop(account.id)
            cell.undo(now, n, mark)
            if below is not None:
                hold.entries[account.id] = below
                hold.held[account.id] -= n
            else:
                del hold.held[account.id]

    def _refused(
        self, hold: Hold, demands: Sequence[Demand], full: Demand, now: float
    ) -> Refusal | None:
        """Why; unless the call itself names an account twice: then ask once for the sum."""
        sums: dict[str, Demand] = {}
        for account, n in demands:
            before = sums.get(account.id)
            sums[account.id] = Demand(account, n if before is None else before.n + n)
        if len(sums) < len(demands):
            return self._take(hold, tuple(sums.values()), now)
        return Refusal(full.account, self._cells[full.account.id].wait(now, full.n, full.account))

    def _left(self, accounts: Sequence[Account], now: float) -> tuple[Headroom, ...]:
        found = []
        cells = self._cells
        for account in accounts:
            cell = cells.get(account.id)
            if cell is None:
                whole = account.limit if account.burst is None else account.burst
                found.append(Headroom(account, whole, 0.0))
            else:
                left, reset = cell.left(now, account)
                found.append(tuple.__new__(Headroom, (account, left, reset)))
        return tuple(found)

    def _remember(self, account: Account, now: float) -> Counted:
        """A new account; each one looks at two old ones, so memory follows what is in use."""
        self._sweep(2, now)
        cell = self._cells[account.id] = counted(account)
        self._round.append(account.id)
        return cell

    def _sweep(self, most: int, now: float) -> None:
        for _ in range(min(most, len(self._round))):
            name = self._round.popleft()
            if self._cells[name].idle(now):
                del self._cells[name]
            else:
                self._round.append(name)

    def _wake_soon(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no loop, nobody to be merged with
            self._wake()
            return
        self._waking = True
        loop.call_soon(self._wake)

    def _wake(self) -> None:
        self._waking = False
        for wake in tuple(self._wakes):
            wake()
