"""The accounts that all workers share through Redis: one script a call, on Redis's own clock."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from gateway.state.accounts import (
    IDLE,
    MICRO,
    NEVER,
    SILENT,
    SPARSE,
    WINDOW,
    Answer,
    Ask,
    Caller,
    Full,
    Need,
    Slice,
    StoreLost,
    Verdict,
)
from gateway.state.redis.connect import RedisLost, Script, key
from gateway.state.redis.spent import BUDGETS, Runner, Spent
from gateway.wire import json

SYNC = Script("sync")
WORKERS = key("workers")  # sorted set: when each was last heard of; a swept worker goes from it
TURNS = key("turns")  # hash: the last call of each

ESTIMATES = key("estimates")  # hash: "<worker> <budget>", nano-dollars its lines may still use up
GONE = 600  # seconds without a word after which what a worker held on budgets is charged
CURSOR = 40 * 86_400  # seconds a worker that is gone is known: longer than any row is kept
SLICE = 4  # figures the script tells of each account: granted, rest, whole, spent

RULES = {
    "window": WINDOW,
    "silent": SILENT,
    "idle": IDLE,
    "never": NEVER,
    "sparse": SPARSE,
    "gone": GONE,
    "kept": CURSOR,
}


class RedisAccounts:
    """The port `AccountStore` over Redis.

    Args:
        spent: what was seen of budgets; a Redis that does not know this worker is told all of it.
    """

    def __init__(self, link: Runner, spent: Spent | None = None) -> None:
        self._link = link
        self._spent = Spent() if spent is None else spent

    async def sync(
        self, caller: Caller, asks: Sequence[Ask], groups: Sequence[Sequence[Need]]
    ) -> Answer:
        names = [ask.account.id for ask in asks]
        keys = [WORKERS, TURNS, BUDGETS, ESTIMATES, *(key("account", name) for name in names)]
        rules = RULES | {"names": names}
        heard = round(caller.heard * MICRO)
        told = [caller.worker, caller.turn, heard, [self._row(ask) for ask in asks], groups, rules]
        try:
            found = await self._link.run(SYNC, keys, [json.dumps(told)])
        except RedisLost as error:
            raise StoreLost(str(error)) from error
        if not found:
            raise StoreLost("late")
        answer, figures = _answer(found), found[4][3::SLICE]
        for ask, nano_usd in zip(asks, figures, strict=True):
            if ask.account.kind == "budget":
                self._spent.hear(ask.account.id, nano_usd)
        if not answer.known:
            await self._restore()
        return answer

    async def _restore(self) -> None:
        """What this call named is told already; if it fails, the ledger's beat does it."""
        self._spent.doubted = True
        with suppress(RedisLost):
            await self._spent.restore(self._link)

    def _row(self, ask: Ask) -> list[Any]:
        account = ask.account
        burst = -1 if account.burst is None else account.burst
        spent = self._spent.seen(account.id) if account.kind == "budget" else 0
        return [account.kind, account.limit, burst, *ask[1:], spent]


def _answer(found: Any) -> Answer:
    now, known, workers, rank, slices, verdicts = found
    return Answer(
        now / MICRO,
        bool(known),
        workers,
        rank,
        [
            Slice(slices[at], slices[at + 1], slices[at + 2] / MICRO)
            for at in range(0, len(slices), SLICE)
        ],
        [_verdict(one) for one in verdicts],
    )


def _verdict(found: list[int]) -> Verdict:
    if found[0]:
        return tuple(zip(found[1::2], found[2::2], strict=True))
    _, place, wait, sure = found
    return Full(place, None if wait < 0 else wait / MICRO, sure=bool(sure))
