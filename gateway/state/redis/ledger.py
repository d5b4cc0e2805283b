"""The ledger of many machines: a journal each worker, then Redis; exactly one row an attempt.

A worker sends its lines together with the cursor it believes in; a script applies them only if that
is where the cursor stands, and moves it in the same call. A lost answer, a repeat and a Redis that
lost its tail are all seen by the cursor: it is ahead, and the lines are skipped, or behind, and the
journal is read again. What a worker saw spent of a budget contains such lines: they
charge it no second time, but Redis is told the figure. A journal outlives what Redis may still
forget: a file goes only when Redis has known it for a while.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from gateway.clock import Clock
from gateway.core.budget import over
from gateway.core.events import Event, StateTrouble
from gateway.state.backlog import Backlog
from gateway.state.journal import (
    Final,
    Fold,
    Journal,
    Orphan,
    Part,
    charges,
    orphans,
    sweep,
    sync,
)
from gateway.state.redis.accounts import CURSOR, ESTIMATES, TURNS, WORKERS
from gateway.state.redis.connect import Link, RedisLost, Script, key, trouble
from gateway.state.redis.spent import BUDGETS, Spent
from gateway.state.rows import DAY, LINES, SUMS, Row, row_of, sums_of
from gateway.wire import json

SHIP = 0.1  # seconds between shipments
BEAT = 5.0  # an idle worker asks whether Redis still knows its cursor
SYNC = 1.0
TIDY = 10.0  # journals of workers that are gone
CLEAN = 60.0
CHUNK = 500  # rows in one call: some 200 KB
LEAVING = 2.0  # seconds for the last shipment; Redis may just be on its way back
OVER = 2  # days after its end nobody asks what was spent of a budget
KEPT = 60.0  # seconds a shipped segment stays; Redis syncs its file each second
MOST = 2_000_000  # rows in Redis, some 400 bytes each; beyond it the oldest days go
FIGURES = "rainou"  # requests, attempts, input, output, nano-dollars, unknown: fields of the sums

_ship = Script("ship")
_clean = Script("clean")
COUNTS = key("rows")  # how many rows each day has, and the `first` day that has all


class Cursor(NamedTuple):
    """How far a journal is applied. `complete`: for how many seconds, -1: there may be more."""

    seq: int
    complete: int


def sums_key(day: int) -> str:
    return key("sums", str(day))


def rows_key(day: int) -> str:
    return key("rows", str(day))


class RedisLedger:
    """The port `Ledger`; the rest is for its owner.

    Args:
        booked: is told, in the loop, of lines that Redis has now: each once, in order.
        spent: what was seen of budgets.

    Attributes:
        drift: always 0 here: rows and sums of a call are one script.
    """

    drift = 0

    def __init__(
        self,
        journal: Journal,
        link: Link,
        clock: Clock,
        heard: Callable[[Event], None],
        booked: Callable[[Sequence[Final]], object] = lambda _: None,
        spent: Spent | None = None,
    ) -> None:
        self.open = journal.open
        self.checkpoint = journal.checkpoint
        self.close = journal.close
        self._journal = journal
        self._link = link
        self._clock = clock
        self._heard = heard
        self._booked = booked
        self._spent = Spent() if spent is None else spent
        self._contacts = link.contacts
        self._told = 0  # the seq of the last line that was told as booked
        self._buried: dict[str, range] = {}  # of dead workers: the seqs that were applied here
        self._backlog = Backlog()
        self._cursor = 0
        self._applied: dict[Path, float] = {}  # segments that hold nothing more, since when
        self._one = asyncio.Lock()

    async def ship(self) -> bool:
        """Send what is written so far; True when nothing is left over."""
        async with self._one:
            self._journal.flush()
            if self._link.lost:
                return False
            parts, finals = self._journal.parts(), self._journal.taken()
            self._backlog.hand(parts, finals)
            try:
                done = await asyncio.to_thread(self._backlog.gather)
                sent = await self._send()
            except RedisLost as error:
                trouble(self._heard, "ship", error)
                return False
            except OSError as error:
                self._heard(StateTrouble("journal", "read", type(error).__name__))
                return False
            if not sent:
                return False
            self._drop_old(parts, done)
            return not self._backlog.behind and self._backlog.at(parts)

    async def beat(self) -> None:
        """Whether Redis still knows what it was told, also where there is nothing to tell."""
        async with self._one:
            try:
                found = await self._tell(self._cursor, ())
                if found.seq < self._cursor:  # ahead: the lines of an answer that was lost
                    await self._compare(found)
                if self._link.contacts != self._contacts:
                    self._contacts, self._spent.doubted = self._link.contacts, True
                if self._spent.doubted:
                    await self._spent.restore(self._link)
            except RedisLost as error:
                trouble(self._heard, "beat", error)

    async def sync(self) -> None:
        fds = self._journal.unsynced()
        if fds:
            try:
                await asyncio.to_thread(sync, fds)
            except OSError as error:
                self._heard(StateTrouble("journal", "sync", type(error).__name__))

    async def recover(self) -> int:
        """Ship and settle the journals of this machine's workers that are gone.

        Returns how many attempts were lost. A file goes at a later turn, if Redis knows it then.
        """
        lost = 0
        await asyncio.to_thread(sweep, self._journal.folder)
        for orphan in orphans(self._journal.folder):
            try:
                lost += await self._bury(orphan)
            except RedisLost as error:
                trouble(self._heard, "recover", error)
                break
            except OSError as error:
                self._heard(StateTrouble("journal", "recover", type(error).__name__))
        return lost

    async def clean(self) -> None:
        """Forget the rows of days that are too old, or too many."""
        try:
            counts = await self._link.call("HGETALL", COUNTS)
            gone = too_old(_counted(counts), int(self._clock.now() // DAY))
            if gone:
                days = [str(day) for day in gone]
                keys = [COUNTS, *(rows_key(day) for day in gone)]
                await self._link.run(_clean, keys, [max(gone) + 1, *days])
            await self._forget_spent()
        except RedisLost as error:
            trouble(self._heard, "clean", error)

    async def _forget_spent(self) -> None:
        """What was spent in periods that are over, a little at a time."""
        before = datetime.fromtimestamp(self._clock.now(), UTC) - timedelta(days=OVER)
        day, at = before.strftime("%Y-%m-%d"), 0
        while True:
            at, found = await self._link.call("HSCAN", BUDGETS, at, "COUNT", CHUNK)
            names = [bytes(name) for name in (found if isinstance(found, dict) else found[::2])]
            if gone := [name for name in names if over(name.decode(), day)]:
                await self._link.call("HDEL", BUDGETS, *gone)
            if not int(at):
                return

    async def leave(self) -> None:
        """Ship all and go. The journal stays: whoever starts next removes it, once it is safe."""
        end = self._clock.monotonic() + LEAVING
        while not await self.ship():
            if self._backlog.behind and not self._link.lost:
                continue
            if self._clock.monotonic() >= end:
                break
            await self._clock.sleep(SHIP)
            await self._link.look()
        self._backlog.close()
        self._journal.drop()

    async def _send(self) -> bool:
        """All of the backlog's rows; False: Redis is behind, and the journal will be read again."""
        rows = self._backlog.rows
        while rows:
            chunk = [final for final in rows[:CHUNK] if final.seq > self._cursor]
            if chunk and not await self._compare(await self._tell(self._cursor, chunk)):
                return False
            self._tell_owner(chunk)
            if self._cursor >= rows[:CHUNK][-1].seq:
                del rows[:CHUNK]
        return True

    def _tell_owner(self, chunk: Sequence[Final]) -> None:
        """What Redis has now: each line once, also if Redis loses it again."""
        new = [final for final in chunk if self._told < final.seq <= self._cursor]
        if new:
            self._told = new[-1].seq
            self._booked(new)

    async def _compare(self, found: Cursor) -> bool:
        """Follow the cursor as Redis has it; False: it has fallen back."""
        before, self._cursor = self._cursor, found.seq
        if found.seq >= before:
            return True
        self._heard(StateTrouble("redis", "ship", "tail lost, sent again"))
        self._backlog.rewind()
        self._applied.clear()
        self._spent.doubted = True
        await self._spent.restore(self._link)
        return False

    async def _tell(self, base: int, finals: Sequence[Final]) -> Cursor:
        last = finals[-1].seq if finals else base
        return await self._apply(self._journal.worker, base, last, finals, range(1, self._told + 1))

    async def _apply(
        self,
        worker: str,
        base: int,
        last: int,
        finals: Sequence[Final],
        counted: range,
        *,
        complete: bool = False,
    ) -> Cursor:
        """Apply `finals` if the worker's cursor stands at `base`; it stands at `last` then.

        Lines in `counted` have been applied before: what was seen spent of their budgets contains
        them. Returns the cursor as it is now. Raises RedisLost: it may have been applied,
        or not.
        """
        before = charges(final for final in finals if final.seq in counted)
        new = charges(final for final in finals if final.seq not in counted)
        charged = [
            (name, self._spent.seen(name), self._added(name, before, new)) for name in before | new
        ]
        keys = [_cursor_key(worker), COUNTS, BUDGETS, ESTIMATES]
        args: list[str | bytes | int] = [base, last, int(complete), CURSOR, len(charged)]
        for told in charged:
            args += told
        args.append(worker)
        more_keys, more = _booking(finals)
        seq, age, *spent = await self._link.run(_ship, keys + more_keys, args + more)
        if spent:
            for (name, _, _), nano_usd in zip(charged, spent[0], strict=True):
                self._spent.hear(name, nano_usd)
        return Cursor(int(seq), int(age))

    def _added(self, budget: str, before: Mapping[str, int], new: Mapping[str, int]) -> int:
        again = 0 if budget in self._spent else before.get(budget, 0)
        return again + new.get(budget, 0)

    def _drop_old(self, parts: Iterable[Part], done: set[Path]) -> None:
        """Segments go when the next is full, and Redis has known them for a while."""
        now = self._clock.monotonic()
        for part in parts:
            if part.path not in done:
                continue
            since = self._applied.setdefault(part.path, now)
            if now - since >= KEPT and self._journal.full:
                self._backlog.forget([part.path])
                self._applied.pop(part.path)
                self._journal.remove(part)
        self._journal.turn()

    async def _bury(self, orphan: Orphan) -> int:
        worker = orphan.worker
        found = await self._apply(worker, -1, -1, (), range(0))  # looks only: no cursor is -1
        if found.complete >= 0:
            if found.complete >= KEPT:
                orphan.remove()
                self._buried.pop(worker, None)
                await self._link.call("UNLINK", _cursor_key(worker))
            return 0
        fold, lost = Fold(), 0
        finals = _all(fold, orphan)
        base, ended = found.seq, False
        counted = self._buried.get(worker, range(0))
        if not counted.start <= base + 1 <= counted.stop:
            counted = range(base + 1, base + 1)
        while not ended:
            chunk, ended = await asyncio.to_thread(_take, finals, base)
            last = chunk[-1].seq if chunk else max(base, fold.seq)
            found = await self._apply(worker, base, last, chunk, counted, complete=ended)
            if found.seq != last:
                return lost  # somebody else is at it, or Redis fell back: at the next turn
            lost += sum(final.seq > fold.seq for final in chunk)
            base = last
            self._buried[worker] = range(counted.start, max(counted.stop, base + 1))
        await self._link.call("ZREM", WORKERS, worker)  # what it held on budgets is booked
        await self._link.call("HDEL", TURNS, worker)
        return lost


def _booking(finals: Iterable[Final]) -> tuple[list[str], list[str | bytes | int]]:
    """The rows and sums of each day: the script's keys and arguments for them."""
    days: dict[int, list[Row]] = {}
    for final in finals:
        row = row_of(final)
        days.setdefault(row[3], []).append(row)
    keys: list[str] = []
    args: list[str | bytes | int] = []
    for day, rows in days.items():
        keys += [sums_key(day), rows_key(day)]
        sums = [
            (f"{figure}:{scope}:{name}", amount)
            for (scope, name, _), amounts in sums_of(rows).items()
            for figure, amount in zip(FIGURES, amounts, strict=True)
            if amount
        ]
        ends = (day + SUMS + 1) * DAY, (day + LINES + 2) * DAY
        args += [day, *ends, json.dumps(rows), len(rows), len(sums)]
        for field, amount in sums:
            args += [field, amount]
    return keys, args


def too_old(counts: dict[int, int], today: int) -> list[int]:
    """The days whose rows have to go: beyond 30 days, or the oldest while there are too many."""
    gone = [day for day in sorted(counts) if day < today - LINES]
    left = {day: count for day, count in counts.items() if day not in gone}
    for day in sorted(left):
        if sum(left.values()) <= MOST:
            break
        gone.append(day)
        del left[day]
    return gone


def _counted(told: Sequence[bytes] | dict[bytes, bytes]) -> dict[int, int]:
    pairs = told.items() if isinstance(told, dict) else zip(told[::2], told[1::2], strict=True)
    return {int(day): int(count) for day, count in pairs if day != b"first"}


def _all(fold: Fold, orphan: Orphan) -> Iterator[Final]:
    """Everything a dead worker settled, then what it left open, by evidence."""
    yield from fold.feed(orphan.records())
    yield from fold.lost()


def _take(finals: Iterator[Final], above: int) -> tuple[list[Final], bool]:
    """The next rows above a seq, and whether they were the last. For a thread."""
    chunk = list(islice((final for final in finals if final.seq > above), CHUNK))
    return chunk, len(chunk) < CHUNK


def _cursor_key(worker: str) -> str:
    return key("cursor", worker)
