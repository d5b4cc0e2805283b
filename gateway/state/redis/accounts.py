"""The accounts that all workers share through Redis: one script a call, on Redis's own clock."""

from collections.abc import Sequence
from typing import Any, Protocol

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
from gateway.wire import json

SYNC = Script("sync")
WORKERS = key("workers")  # sorted set: when each was last heard of; a swept worker goes from it
TURNS = key("turns")  # hash: the last call of each
BUDGETS = key("budgets")  # hash: nano-dollars spent of each, moved by the ledger's script

RULES = {"window": WINDOW, "silent": SILENT, "idle": IDLE, "never": NEVER, "sparse": SPARSE}


class Runner(Protocol):
    """A `Link`, as far as it is needed here."""

    async def run(
        self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int | float]
    ) -> Any: ...


class RedisAccounts:
    """The port `AccountStore` over Redis."""

    def __init__(self, link: Runner) -> None:
        self._link = link

    async def sync(
        self, caller: Caller, asks: Sequence[Ask], groups: Sequence[Sequence[Need]]
    ) -> Answer:
        names = [ask.account.id for ask in asks]
        keys = [WORKERS, TURNS, BUDGETS, *(key("account", name) for name in names)]
        rules = RULES | {"names": names}
        heard = round(caller.heard * MICRO)
        told = [caller.worker, caller.turn, heard, [_row(ask) for ask in asks], groups, rules]
        try:
            found = await self._link.run(SYNC, keys, [json.dumps(told)])
        except RedisLost as error:
            raise StoreLost(str(error)) from error
        if not found:
            raise StoreLost("late")
        return _answer(found)


def _row(ask: Ask) -> list[Any]:
    account = ask.account
    burst = -1 if account.burst is None else account.burst
    return [account.kind, account.limit, burst, *ask[1:]]


def _answer(found: Any) -> Answer:
    now, known, workers, rank, slices, verdicts = found
    return Answer(
        now / MICRO,
        bool(known),
        workers,
        rank,
        [
            Slice(slices[at], slices[at + 1], slices[at + 2] / MICRO)
            for at in range(0, len(slices), 3)
        ],
        [_verdict(one) for one in verdicts],
    )


def _verdict(found: list[int]) -> Verdict:
    if found[0]:
        return tuple(zip(found[1::2], found[2::2], strict=True))
    _, place, wait, sure = found
    return Full(place, None if wait < 0 else wait / MICRO, sure=bool(sure))
