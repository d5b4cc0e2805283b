"""What answers while the shared store of accounts is lost: the same rule, on a share of each limit.

Of N workers each keeps to limit/N by itself, its own use of the last minute included, so that
together they stay below the limit as long as N is right. Nothing has to be carried over in either
direction: workers state absolute figures, and what a store does not know it is told.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from gateway.clock import Clock
from gateway.core.target import Account
from gateway.state.accounts import AccountStore, Answer, Ask, Book, Caller, Need, StoreLost

AGAIN = 0.5  # seconds before the store is asked again
BUDGETS = 10_000  # whose last standing is remembered


class Spare:
    """The port `AccountStore` over another that may be lost.

    Args:
        store: the shared one.
        workers: how many share it, until it has said so itself.
        told: hears when it is lost, and why: a word.

    Attributes:
        lost: the last call was answered here.
    """

    def __init__(
        self, store: AccountStore, clock: Clock, workers: int, told: Callable[[str], None]
    ) -> None:
        self._store = store
        self._clock = clock
        self._told = told
        self._workers = workers
        self._rank = workers  # unknown: what does not divide evenly is nobody's
        self._book = Book(clock)
        self._again = 0.0
        self._money: OrderedDict[str, int] = OrderedDict()  # what we may hold of budgets, alone
        self.lost = False

    async def sync(
        self, caller: Caller, asks: Sequence[Ask], groups: Sequence[Sequence[Need]]
    ) -> Answer:
        now = self._clock.monotonic()
        if not self.lost or now >= self._again:
            self._again = now + AGAIN  # meanwhile nobody else waits for a store that may be dead
            try:
                answer = await self._store.sync(caller, asks, groups)
            except StoreLost as error:
                self._lose(str(error))
            else:
                self._learn(asks, answer)
                return answer
        shares = [ask._replace(account=self._share(ask.account)) for ask in asks]
        return self._book.answer(caller, shares, groups)._replace(alone=True)

    def _lose(self, why: str) -> None:
        self._again = self._clock.monotonic() + AGAIN
        if not self.lost:
            self.lost = True
            self._book = Book(self._clock)
            self._told(why)

    def _learn(self, asks: Sequence[Ask], answer: Answer) -> None:
        self.lost = False
        self._workers, self._rank = answer.workers, answer.rank
        for ask, grant in zip(asks, answer.slices, strict=True):
            if ask.account.kind == "budget":
                name = ask.account.id
                self._money[name] = grant.granted + max(0, grant.rest) // answer.workers
                self._money.move_to_end(name)
                if len(self._money) > BUDGETS:
                    self._money.popitem(last=False)

    def _share(self, account: Account) -> Account:
        if account.kind == "budget":
            return replace(account, limit=self._money.get(account.id, 0))
        limit = account.limit // self._workers + (self._rank < account.limit % self._workers)
        if account.burst is None:
            return replace(account, limit=limit)
        return replace(account, limit=limit, burst=max(1, account.burst // self._workers))
