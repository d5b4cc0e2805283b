"""`GET /v1/usage`: what a caller has spent and what it has left; nobody else's."""

from collections.abc import Mapping
from typing import Any

from gateway.app.headroom import Headroom
from gateway.core.ports import Books
from gateway.core.principal import Principal
from gateway.core.usage import Cost, Spent


class Usage:
    """Only looks.

    Args:
        books: sums of the ledger.
        headroom: of the caller's limits and budgets.
    """

    def __init__(self, books: Books, headroom: Headroom) -> None:
        self._books = books
        self._headroom = headroom

    async def __call__(self, principal: Principal) -> Mapping[str, Any]:
        """Raises gateway.errors.Overloaded: the ledger cannot be read now."""
        spending = await self._books.spending(principal.key_id)
        windows = list(self._headroom.windows(principal.budgets))
        return {
            "object": "usage",
            "key": principal.key_id,
            "team": principal.team,
            "today": _told(spending.today),
            "month": _told(spending.month),
            "total": _told(spending.total),
            "limits": self._headroom.limits(principal.accounts),
            "budgets": await self._headroom.budgets(windows),
        }


def _told(spent: Spent) -> dict[str, Any]:
    return {
        "since": spent.since.isoformat(),
        "requests": spent.requests,
        "attempts": spent.attempts,
        "input_tokens": spent.input,
        "output_tokens": spent.output,
        "cost_usd": Cost(spent.nano_usd).dollars(),
        "unpriced_attempts": spent.unknown,
    }
