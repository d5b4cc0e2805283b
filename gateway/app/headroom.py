"""What is used and what is left of limits and budgets, as operators and callers are told."""

from collections.abc import Iterable, Sequence
from typing import cast

from gateway.clock import Clock
from gateway.core.budget import COUNTED, Allowance, Window, period, window
from gateway.core.key_told import moment
from gateway.core.ports import Books, Limiter
from gateway.core.target import Account
from gateway.core.usage import Cost
from gateway.errors import Overloaded
from gateway.wire.admin import BudgetTold, LimitTold, Period


class Headroom:
    """Only looks.

    Args:
        books: what the ledger has of each budget, of every worker.
        limiter: what this worker knows of each account, holds included.
        clock: for the periods of budgets.
    """

    def __init__(self, books: Books, limiter: Limiter, clock: Clock) -> None:
        self._books = books
        self._limiter = limiter
        self._clock = clock

    def limits(self, accounts: Sequence[Account]) -> list[LimitTold]:
        """What is used and what is left of each."""
        return [
            {
                "account": room.account.id,
                "scope": room.account.scope,
                "name": room.account.name,
                "kind": room.account.kind,
                "limit": room.account.limit,
                "used": max(0, _whole(room.account) - room.remaining),
                "remaining": room.remaining,
                "reset_s": round(room.reset, 3),
            }
            for room in self._limiter.headroom(accounts)
            if room.account.kind != "budget"
        ]

    def windows(self, whose: Iterable[Allowance]) -> Iterable[Window]:
        """The accounts of this moment; a budget per request has none."""
        now = self._clock.now()
        periods = {per: period(per, now) for per in COUNTED}
        for one in whose:
            if one.budget.per in periods:
                yield window(one, periods[one.budget.per])

    async def budgets(self, windows: Sequence[Window]) -> list[BudgetTold]:
        """What is spent or held of each, by the ledger or by this worker, whichever knows of more.

        Where the ledger cannot be read nobody knows what was spent, and None is told.
        """
        if not windows:
            return []
        accounts = [one.account for one in windows]
        spent = await self._spent(accounts)
        rooms = self._limiter.headroom(accounts)
        told: list[BudgetTold] = []
        for one, room in zip(windows, rooms, strict=True):
            limit = one.account.limit
            used = left = None
            if spent is not None:
                used = max(spent.get(one.account.id, 0), limit - room.remaining)
                left = max(0, limit - used)
            told.append(
                {
                    "account": one.account.id,
                    "scope": one.account.scope,
                    "name": one.account.name,
                    "per": cast("Period", one.per),  # `windows` leaves out those per request
                    "hard": one.hard,
                    "limit_usd": Cost(limit).dollars(),
                    "used_usd": None if used is None else Cost(used).dollars(),
                    "remaining_usd": None if left is None else Cost(left).dollars(),
                    "resets_at": None if one.ends is None else moment(one.ends),
                }
            )
        return told

    async def _spent(self, accounts: Iterable[Account]) -> dict[str, int] | None:
        try:
            return await self._books.budgets([account.id for account in accounts])
        except Overloaded:
            return None


def _whole(account: Account) -> int:
    """What is there when nothing is used: with a burst, that many at once."""
    return account.limit if account.burst is None else account.burst
