"""What this worker has seen spent of budgets, so that a Redis that forgot can be told.

What is spent of a budget never falls, so the highest figure anybody saw is the truth or below it.
Scripts take it as the least there is; the lines it contains are then sent again without a charge.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

from gateway.state.redis.connect import Script, key

BUDGETS = key("budgets")  # hash: nano-dollars spent of each, moved by the ledger's script
REMEMBERED = 10_000  # budgets, those used last
CHUNK = 500  # in one call

_restore = Script("restore")


class Runner(Protocol):
    """A `Link`, as far as it is needed here."""

    async def run(
        self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int | float]
    ) -> Any: ...


class Spent:
    """The highest figure seen of each budget, nano-dollars by account id.

    Attributes:
        doubted: Redis has lost something; `restore` tells it everything.
    """

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._figures: OrderedDict[str, int] = OrderedDict()
        self.doubted = False

    def __contains__(self, budget: str) -> bool:
        return budget in self._figures

    def seen(self, budget: str) -> int:
        """0: nothing is known of it."""
        return self._figures.get(budget, 0)

    def hear(self, budget: str, nano_usd: int) -> None:
        """Redis says so much is spent."""
        figures = self._figures
        if nano_usd <= 0:
            return
        figures[budget] = max(nano_usd, figures.get(budget, 0))
        figures.move_to_end(budget)
        if len(figures) > self._most:
            figures.popitem(last=False)

    async def restore(self, link: Runner) -> None:
        """Raises gateway.state.redis.connect.RedisLost: it stays doubted."""
        known = list(self._figures.items())
        for begin in range(0, len(known), CHUNK):
            told = [part for one in known[begin : begin + CHUNK] for part in one]
            await link.run(_restore, [BUDGETS], told)
        self.doubted = False
