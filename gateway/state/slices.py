"""What a worker may spend without asking: the port `Limiter` over any store of accounts.

A slice is a hold nobody uses yet, so the store counts it like any other (gateway.md 5.2). It may be
spent for a second from the *sending* of the call that granted it, by this worker's own clock: no
clocks have to agree. While it lasts an admission is arithmetic on this worker's cells. When it does
not suffice the store is asked, in one call for all who wait; busy accounts are renewed ahead of
that in the background (`tick`).

Of an account a cell knows `free`, what may be spent now, and two running figures with which
`stake - free - used` is always what requests hold. (For rpm it is what was admitted since the last
report: an admission counts at once.) Money that is settled stays held until its line is in the
store: `shipped` says so.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from gateway.clock import Clock
from gateway.core.attempt import Demand, Headroom, Refusal, Reservation
from gateway.core.target import Account
from gateway.errors import GatewayError, Overloaded
from gateway.state.accounts import (
    EDGE,
    MICRO,
    MOST,
    NEVER,
    SILENT,
    WINDOW,
    AccountStore,
    Answer,
    Ask,
    Caller,
    Drop,
    Full,
    Meter,
    Need,
    Slice,
    StoreLost,
    Window,
)

LIFE = 1.0  # seconds a slice may be spent, from the sending of its call
TICK = 0.9  # seconds between renewals
HEARTBEAT = 5.0
REFRESH = 20.0  # seconds: what only lies there is told again
SHED = 0.05  # seconds a refusal stands when others' holds were in the way
SMALL = 8  # among several workers a reserve that could not reach this is not kept at all
RARE = 1 / 16  # requests a second: below it each asks
MERGED = 256  # requests that share a call
TOLD = 512  # accounts of a background call
RETURN = SILENT  # seconds after which an admission is not taken back any more
DROPS = 64  # of a meter, to be undone with the next call
FIRST_GUESS = 1.0  # seconds a hold lasts, before one was seen to end
LONGEST_GUESS = 60.0
WEIGHT = 0.1  # of the latest hold in their moving mean
WHOLE = float(WINDOW + 1)
LONG_AGO = -math.inf  # a moment before all others, whatever zero a clock has

RPM, TPM, SLOT, MONEY = range(4)
KINDS = {"rpm": RPM, "tpm": TPM, "concurrency": SLOT, "budget": MONEY}

Mark = int | tuple[Drop, ...]  # with which call it was admitted; of a meter, how to undo it
Entry = tuple["Cell", int, Any]  # what is held on which cell; the last a Mark


class Cell:
    """What this worker knows of one account; moments are monotonic seconds.

    Attributes:
        free: units that may be spent until `until`.
        stake: moves with what is granted, so that `stake - free - used` is held.
        used: settled over this cell's life.
        reported: `used` as the store has acknowledged it.
        rest: what nobody had, when the store last said so.
        mine: own use of the last 60 s, in the store's time: it leaves the window by itself.
        back: of `used` taken back again; `back_told` as the store has acknowledged it, `back_by`
            the moment by which it has to be told.
        drops: admissions of a meter to be undone with the next call.
    """

    __slots__ = (
        "account", "back", "back_by", "back_told", "drops", "flow", "free", "free_then", "kind",
        "lasts", "meter", "mine", "rate", "reported", "rest", "retry_at", "sent", "shed_free",
        "shed_n", "shed_until", "since", "size", "stake", "tight", "told", "turn", "until", "used",
        "whole_at",
    )  # fmt: skip

    def __init__(self, account: Account, used: int, now: float) -> None:
        self.account = account
        self.kind = KINDS[account.kind]
        self.meter = Meter() if account.burst is not None else None
        self.free = 0
        self.free_then = 0  # as the last answer left it
        self.until = LONG_AGO
        self.stake = used
        self.used = used
        self.reported = used
        self.rest = account.limit
        self.mine = Window()
        self.back = used
        self.back_told = used
        self.back_by = LONG_AGO
        self.drops: tuple[Drop, ...] = ()
        self.told = True  # the store knows what is held and was used
        self.turn = 0  # of the last call that named it
        self.sent = now  # when that was
        self.whole_at = LONG_AGO
        self.flow = 0  # taken since `since`
        self.since = now
        self.rate = 0.0  # a second
        self.size = 1  # of a request
        self.tight = False  # it was full: how long holds last matters
        self.lasts = FIRST_GUESS
        self.shed_until = self.retry_at = LONG_AGO
        self.shed_n = self.shed_free = 0

    @property
    def held(self) -> int:
        return 0 if self.kind == RPM else max(0, self.stake - self.free - self.used)

    def total(self) -> int:
        """Settled so far, what is not reported yet included."""
        if self.kind == RPM and self.meter is None:
            return self.stake - self.free
        return self.used

    def clamped(self, n: int) -> int:
        """An ask above the limit counts as the limit, but for money; a limit of 0 admits nobody."""
        limit = self.account.limit
        return n if n <= limit or self.kind == MONEY else limit or n


class Hold(Reservation):
    """A reservation as this limiter made it: entries by account id."""

    __slots__ = ("at", "entries")

    def __init__(self, id: str, at: float) -> None:
        self.id = id
        self.at = at
        self.headroom = ()
        self.entries: dict[str, Entry] = {}

    @property
    def held(self) -> Mapping[str, int]:
        return {name: entry[1] for name, entry in self.entries.items()}


class _Group:
    """What one request lacks: admitted whole or not at all."""

    __slots__ = ("done", "error", "needs", "refusal", "taken", "turn")

    def __init__(self, needs: list[tuple[Cell, int]]) -> None:
        self.needs = needs
        self.done = False
        self.refusal: Refusal | None = None
        self.error: GatewayError | None = None
        self.taken: list[Entry] = []
        self.turn: asyncio.Future[None] | None = None


class Slices:
    """The port `Limiter`. `tick` and `leave` are for its owner.

    Args:
        store: where this worker meets the others.
        worker: unique for ever.
        clock: its monotonic time; need not agree with anybody's.
    """

    def __init__(self, store: AccountStore, worker: str, clock: Clock) -> None:
        self._store = store
        self._worker = worker
        self._now = clock.monotonic
        self._cells: dict[str, Cell] = {}
        self._turn = 0
        self._out = False  # a call is under way
        self._waiting: list[_Group] = []
        self._workers = 1
        self._skew = 0.0  # the store's time minus ours
        self._peak = 0  # no forgotten cell had used more
        self._sent = LONG_AGO  # when the last call was
        self._answered = 0.0  # the last time the store told
        self._alone = False  # the others' store is lost
        self._leaving = False
        self._wakes: list[Callable[[], None]] = []
        self._waking = False

    def __len__(self) -> int:
        """How many accounts are remembered."""
        return len(self._cells)

    # -- the port -------------------------------------------------------------------------------

    def try_reserve(
        self, id: str, demands: Sequence[Demand], told: Sequence[Account] = ()
    ) -> Hold | None:
        """`reserve` without asking anybody; None: ask `reserve`. Nothing is held then."""
        now = self._now()
        hold = Hold(id, now)
        entries = hold.entries
        cells = self._cells
        turn = self._turn
        place = 0
        try:
            for account, n in demands:
                name = account.id
                cell = cells[name]
                if (
                    n > cell.free
                    or now >= cell.until
                    or (cell.account is not account and not self._same(cell, account))
                ):
                    break
                cell.free -= n
                entries[name] = cell, n, turn
                place += 1
            else:
                if place == len(entries):
                    if told:
                        hold.headroom = self._told(told, now)
                    return hold
        except KeyError:  # nobody has asked for this account yet
            pass
        for account, n in demands[:place]:
            cells[account.id].free += n
        return None

    async def reserve(
        self, id: str, demands: Sequence[Demand], told: Sequence[Account]
    ) -> Reservation | Refusal:
        taken = self.try_reserve(id, demands, told)
        if taken is not None:
            return taken
        hold = Hold(id, self._now())
        refusal = await self._take(hold, demands)
        if refusal is not None:
            return refusal
        if told:
            hold.headroom = self._told(told, self._now())
        return hold

    async def extend(self, reservation: Reservation, demands: Sequence[Demand]) -> Refusal | None:
        return await self._take(cast("Hold", reservation), demands)

    def settle(
        self,
        reservation: Reservation,
        accounts: Iterable[Account],
        tokens: int,
        nano_usd: int = 0,
    ) -> None:
        entries = cast("Hold", reservation).entries
        room = False
        for account in accounts:
            entry = entries.pop(account.id, None)
            if entry is None:
                continue
            cell, n, _ = entry
            kind = cell.kind
            if kind == RPM:
                continue
            if kind == TPM:
                cell.free += n - tokens
                cell.used += tokens
            elif kind == SLOT:
                cell.free += n
                room = True
            else:
                cell.free += n - nano_usd
            if cell.tight:
                self._learn(cell, cast("Hold", reservation).at)
        if room and not self._waking and self._wakes:
            self._wake_soon()

    def release(self, reservation: Reservation, accounts: Iterable[Account] | None = None) -> None:
        hold = cast("Hold", reservation)
        entries = hold.entries
        if not entries:
            return
        room = False
        for name in tuple(entries) if accounts is None else [account.id for account in accounts]:
            entry = entries.pop(name, None)
            if entry is not None:
                self._give_back(entry, hold.at)
                room = room or entry[0].kind == SLOT
        if room and not self._waking and self._wakes:
            self._wake_soon()

    def wait(self, demands: Sequence[Demand]) -> float:
        now = self._now()
        longest = 0.0
        for account, n in demands:
            cell = self._cells.get(account.id)
            if cell is not None and n <= cell.free and cell.account is account:
                continue
            if account.limit <= 0:
                longest = NEVER
            elif cell is not None and self._same(cell, account):
                longest = max(longest, self._wait(cell, cell.clamped(n), now))
        return longest

    def headroom(self, accounts: Sequence[Account]) -> Sequence[Headroom]:
        now = self._now()
        for account in accounts:
            cell = self._cells.get(account.id)
            if cell is not None:
                self._same(cell, account)
                self._age(cell, now)
        return self._told(accounts, now)

    def on_room(self, wake: Callable[[], None]) -> None:
        self._wakes.append(wake)

    def shipped(self, amounts: Iterable[tuple[str, int]]) -> None:
        """Lines of ours are in the store's `spent`: (budget's id, nano-dollars) each.

        What was settled on a budget is held until then. Each line is told once.
        """
        for name, nano_usd in amounts:
            cell = self._cells.get(name)
            if cell is not None:
                cell.used += nano_usd

    # -- for its owner --------------------------------------------------------------------------

    async def tick(self) -> None:
        """Every TICK seconds: report, renew what is busy, forget what nobody uses.

        Raises:
            gateway.errors.Overloaded: `store_unavailable`; nothing is lost by it.
        """
        if self._out:
            return  # a call that is under way does as well; those who wait make the next
        now = self._now()
        due: list[Cell] = []
        for cell in tuple(self._cells.values()):
            if self._due(cell, now):
                due.append(cell)
            elif self._idle(cell, now):
                self._forget(cell)
        for begin in range(0, len(due), TOLD):
            if not self._out:
                await self._call(due[begin : begin + TOLD])
        if not due and (self._alone or now - self._sent >= HEARTBEAT):
            await self._call(())

    async def leave(self) -> None:
        """Report everything and give back what requests do not hold."""
        self._leaving = True
        for cell in self._cells.values():
            cell.until = LONG_AGO
        with contextlib.suppress(GatewayError):  # the others find out by our silence
            await self.tick()

    # -- taking ---------------------------------------------------------------------------------

    async def _take(self, hold: Hold, demands: Sequence[Demand]) -> Refusal | None:
        """What suffices here is taken here; what lacks is asked for in one call."""
        now = self._now()
        taken: list[Entry] = []
        short: list[tuple[Cell, int]] = []
        for cell, n in self._wanted(demands, now):
            cell.size = max(n, cell.size - (cell.size >> 3))
            if n <= cell.free and now < cell.until:
                cell.free -= n
                taken.append((cell, n, self._turn))
            else:
                short.append((cell, n))
        refusal = None
        if short:
            refusal = self._shed(short, now)
            try:
                if refusal is None:
                    refusal = await self._ask(short, taken)
            except BaseException:
                self._undo(taken, now)
                raise
        if refusal is not None:
            self._undo(taken, now)
            return refusal
        entries = hold.entries
        for entry in taken:
            name = entry[0].account.id
            before = entries.get(name)
            entries[name] = entry if before is None else _both(before, entry)
        return None

    def _wanted(self, demands: Sequence[Demand], now: float) -> Iterable[tuple[Cell, int]]:
        """An account named twice is asked once, for the sum."""
        sums: dict[str, tuple[Account, int]] = {}
        for account, n in demands:
            sums[account.id] = (account, n + (sums[account.id][1] if account.id in sums else 0))
        for account, n in sums.values():
            cell = self._cells.get(account.id)
            if cell is None:
                cell = self._cells[account.id] = Cell(account, self._peak, now)
            self._same(cell, account)
            yield cell, min(cell.clamped(n), MOST)

    def _shed(self, short: Iterable[tuple[Cell, int]], now: float) -> Refusal | None:
        """What was refused a moment ago and cannot have changed."""
        for cell, n in short:
            if self._refused(cell, n, now):
                return Refusal(cell.account, cell.retry_at - now + EDGE)
        return None

    def _refused(self, cell: Cell, n: int, now: float) -> bool:
        return (
            now < cell.shed_until
            and n >= cell.shed_n
            and cell.free <= cell.shed_free
            and cell.back == cell.back_told
            and not cell.drops
        )

    async def _ask(self, short: list[tuple[Cell, int]], taken: list[Entry]) -> Refusal | None:
        """Wait for a call that has room for us; what is admitted is added to `taken`."""
        group = _Group(short)
        self._waiting.append(group)
        try:
            while not group.done:
                if not self._out:
                    await self._call(())
                    continue
                group.turn = asyncio.get_running_loop().create_future()
                await group.turn
        except BaseException:
            if group in self._waiting:
                self._waiting.remove(group)
            self._undo(group.taken, self._now())
            self._next()  # it may have been our turn
            raise
        if group.error is not None:
            raise group.error
        taken += group.taken
        return group.refusal

    def _undo(self, entries: list[Entry], at: float) -> None:
        for entry in reversed(entries):
            self._give_back(entry, at)
        entries.clear()

    def _give_back(self, entry: Entry, at: float) -> None:
        """As if it had never been; an admission that was reported is taken back with a call."""
        cell, n, mark = entry
        if cell.meter is not None:
            if isinstance(mark, tuple):
                self._undrop(cell, cell.meter, mark)
        elif cell.kind != RPM or (isinstance(mark, int) and cell.turn <= mark):
            cell.free += n
        elif isinstance(mark, int) and self._now() - at < RETURN:
            fresh = cell.back == cell.back_told
            cell.back += n
            cell.back_by = at + RETURN if fresh else min(cell.back_by, at + RETURN)

    def _undrop(self, cell: Cell, meter: Meter, drops: tuple[Drop, ...]) -> None:
        for drop in reversed(drops):
            if meter.tat == drop[1] and len(cell.drops) < DROPS:
                meter.undo(drop)
                cell.drops = (*cell.drops, drop)

    def _learn(self, cell: Cell, since: float) -> None:
        cell.lasts += (self._now() - since - cell.lasts) * WEIGHT

    # -- calling --------------------------------------------------------------------------------

    async def _call(self, due: Sequence[Cell]) -> None:
        """One call for `due` and for as many as wait. Never two at a time."""
        groups = self._waiting[:MERGED]
        del self._waiting[:MERGED]
        cells = {cell.account.id: cell for group in groups for cell, _ in group.needs}
        needed = set(cells)
        cells.update((cell.account.id, cell) for cell in due)
        places = {name: place for place, name in enumerate(cells)}
        needs: list[list[Need]] = [
            [(places[cell.account.id], n) for cell, n in group.needs] for group in groups
        ]
        for group in groups:
            for cell, n in group.needs:
                cell.flow += n
        now = self._sent = self._now()
        self._turn += 1
        asks = [self._state(cell, now, spent=name in needed) for name, cell in cells.items()]
        caller = Caller(self._worker, self._turn, self._answered)
        self._out = True
        try:
            answer = await self._store.sync(caller, asks, needs)
        except BaseException as error:
            self._lost(cells.values(), groups, error)
            if isinstance(error, StoreLost):
                raise _unavailable() from None
            raise
        finally:
            self._out = False
            self._next()
        self._apply(answer, list(zip(cells.values(), asks, strict=True)), groups, now)

    def _state(self, cell: Cell, now: float, *, spent: bool) -> Ask:
        """What we say of it.

        While the call is out no more than `want` of the slack is ours, and none where somebody
        waits for more (`spent`).
        """
        meter = cell.meter
        if now >= cell.back_by:
            cell.back = cell.back_told
        cell.flow += max(0, cell.free_then - cell.free)
        if meter is None and cell.kind == RPM:
            cell.used = cell.stake - cell.free
        bound = cell.held
        want = 0 if meter is not None else self._want(cell, now)
        free = 0 if spent or now >= cell.until else min(max(cell.free, 0), want)
        cell.stake += free - cell.free
        cell.free = cell.free_then = free
        cell.turn, cell.sent = self._turn, now
        cell.mine.age(now + self._skew)
        floor = cell.reported - cell.mine.settled
        drops, cell.drops = cell.drops, ()
        return Ask(cell.account, floor, cell.used, cell.back, min(bound, MOST), want, drops)

    def _want(self, cell: Cell, now: float) -> int:
        """The next second's need, and as much again as it may well be off."""
        span = now - cell.since
        if span >= TICK / 2:
            cell.rate = (cell.rate + cell.flow / span) / 2
            cell.flow, cell.since = 0, now
        most = cell.account.limit // (2 * self._workers)
        if self._leaving or (self._workers > 1 and most < SMALL):
            return 0
        forecast = max(cell.rate, cell.flow)
        if forecast < cell.size * RARE:
            return 0
        return min(most, int(1.2 * forecast + 2.0 * math.sqrt(forecast * cell.size)))

    def _apply(
        self,
        answer: Answer,
        asked: list[tuple[Cell, Ask]],
        groups: Sequence[_Group],
        sent: float,
    ) -> None:
        if not answer.known or answer.alone != self._alone:
            self._alone = answer.alone
            for cell in self._cells.values():
                cell.told = False
        self._workers = answer.workers
        heard = self._now()  # what is told to wait counts from here: never too short
        self._skew = answer.now - heard
        self._answered = answer.now
        for (cell, ask), grant in zip(asked, answer.slices, strict=True):
            self._granted(cell, ask, grant, answer.now, sent)
        for group, verdict in zip(groups, answer.verdicts, strict=True):
            if isinstance(verdict, Full):
                cell, n = group.needs[[c for c, _ in group.needs].index(asked[verdict.place][0])]
                group.refusal = self._full(cell, n, verdict, heard)
                for cell, n in group.needs:
                    cell.flow = max(0, cell.flow - n)
            else:
                drops = iter(verdict)
                for cell, n in group.needs:
                    if cell.meter is not None:
                        drop = next(drops)
                        cell.meter.tat = drop[1]
                        group.taken.append((cell, n, (drop,)))
                    else:
                        cell.free -= n
                        group.taken.append((cell, n, self._turn))
            self._end(group)
        for cell, _ in asked:
            cell.free_then = cell.free

    def _granted(self, cell: Cell, ask: Ask, grant: Slice, now: float, sent: float) -> None:
        gain = grant.granted - ask.bound - cell.free_then
        cell.free += gain
        cell.stake += gain
        cell.until = sent + LIFE
        cell.told = True
        cell.rest = grant.rest
        cell.whole_at = sent + grant.whole
        cell.shed_until = LONG_AGO
        if cell.kind <= TPM:
            cell.mine.age(now)
            cell.mine.take_back(ask.back - cell.back_told)
            cell.mine.add(now, ask.used - cell.reported)
        cell.reported, cell.back_told = ask.used, ask.back
        if cell.meter is not None:
            cell.meter.tat = int((now + grant.whole) * MICRO) if grant.whole else 0

    def _full(self, cell: Cell, n: int, verdict: Full, heard: float) -> Refusal:
        wait = verdict.wait
        if wait is None:
            wait = self._guess(cell, heard)
        cell.tight = True
        cell.shed_n, cell.shed_free = n, cell.free
        cell.retry_at = heard + wait - EDGE / 2  # who comes back after `wait` is not late
        cell.shed_until = cell.retry_at if verdict.sure else min(cell.retry_at, heard + SHED)
        return Refusal(cell.account, max(wait, EDGE))

    def _lost(self, cells: Iterable[Cell], groups: list[_Group], error: BaseException) -> None:
        """No answer: nothing of it may be spent, and who waited asks again or hears why."""
        for cell in cells:
            cell.until = LONG_AGO
            cell.free_then = cell.free
        if isinstance(error, StoreLost):
            error = _unavailable()
        if not isinstance(error, GatewayError):  # whoever made the call has left
            self._waiting[:0] = groups
            return
        for group in groups:
            group.error = error
            self._end(group)

    def _end(self, group: _Group) -> None:
        group.done = True
        if group.turn is not None and not group.turn.done():
            group.turn.set_result(None)

    def _next(self) -> None:
        """Whoever waits first makes the next call."""
        if self._waiting and not self._out:
            turn = self._waiting[0].turn
            if turn is not None and not turn.done():
                turn.set_result(None)

    # -- knowing --------------------------------------------------------------------------------

    def _same(self, cell: Cell, account: Account) -> bool:
        """Whether the cell is of this very account; after a reload it may have another limit."""
        before = cell.account
        if before is account:
            return True
        cell.account = account
        if before.limit == account.limit and before.burst == account.burst:
            return True  # the rest is in its id
        if (before.burst is None) != (account.burst is None):
            cell.used = cell.total()
            cell.stake = cell.used + cell.free
            cell.drops = ()
            cell.meter = None if account.burst is None else Meter()
        cell.rest += account.limit - before.limit
        cell.until = cell.shed_until = LONG_AGO
        return False

    def _age(self, cell: Cell, now: float) -> None:
        """Own use has left the window since the store was asked: at least that is free again."""
        cell.rest += cell.mine.age(now + self._skew)

    def _told(self, accounts: Sequence[Account], now: float) -> tuple[Headroom, ...]:
        found = []
        cells = self._cells
        new = tuple.__new__  # NamedTuple's own costs a frame each
        for account in accounts:
            cell = cells.get(account.id)
            if cell is None:
                whole = account.limit if account.burst is None else account.burst
                found.append(Headroom(account, whole, 0.0))
                continue
            if cell.meter is None:
                free = cell.free
                left = cell.rest + free
                if cell.back != cell.back_told:
                    left += cell.back - cell.back_told
                reset = WHOLE if cell.stake - free != cell.reported else cell.whole_at - now
            else:
                left, reset = cell.meter.left(now + self._skew, account)
            if left < 0 or reset < 0.0:
                left, reset = max(0, left), max(0.0, reset)
            found.append(new(Headroom, (account, left, reset)))
        return tuple(found)

    def _wait(self, cell: Cell, n: int, now: float) -> float:
        if self._refused(cell, n, now):
            return cell.retry_at - now + EDGE
        if cell.meter is not None:
            return cell.meter.wait(now + self._skew, n, cell.account)
        self._age(cell, now)
        lacking = n - cell.rest - cell.free - (cell.back - cell.back_told)
        if lacking <= 0 or (self._workers > 1 and now - cell.sent >= SHED):
            return 0.0  # what others have done since nobody here knows: the store is asked
        if cell.kind <= TPM and lacking <= cell.mine.settled:
            return cell.mine.wait(now + self._skew, lacking)
        return WHOLE if cell.kind == RPM else self._guess(cell, now)

    def _guess(self, cell: Cell, now: float) -> float:
        """Nobody knows when a hold will end: the mean time, or the settled part's if longer."""
        lasts = min(cell.lasts, LONGEST_GUESS)
        if cell.kind == SLOT:
            return max(lasts / max(1, cell.held), SHED)
        return max(cell.mine.whole(now + self._skew), lasts)

    def _due(self, cell: Cell, now: float) -> bool:
        """Something to report, to renew, to give back, or to keep alive."""
        return (
            cell.free != 0
            or cell.back != cell.back_told
            or cell.total() != cell.reported
            or cell.free != cell.free_then
            or bool(cell.drops)
            or not cell.told
            or (now - cell.sent >= REFRESH and cell.held > 0)
        )

    def _idle(self, cell: Cell, now: float) -> bool:
        """Nothing of it is held, known or owed: a new one would be as good."""
        there = now + self._skew
        self._age(cell, now)
        drained = cell.meter is None or cell.meter.tat <= there * MICRO
        return (
            drained
            and not cell.mine.settled
            and cell.held == 0
            and now >= max(cell.until, cell.whole_at, cell.sent + REFRESH)
            and not any(cell is waiting for g in self._waiting for waiting, _ in g.needs)
        )

    def _forget(self, cell: Cell) -> None:
        self._peak = max(self._peak, cell.used, cell.back)
        del self._cells[cell.account.id]

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


def _both(before: Entry, entry: Entry) -> Entry:
    """The same account held twice by one request."""
    (cell, n, mark), (_, more, other) = before, entry
    if isinstance(mark, tuple) and isinstance(other, tuple):
        return cell, n + more, mark + other
    if isinstance(mark, int) and isinstance(other, int):
        return cell, n + more, min(mark, other)
    return cell, n + more, other


def _unavailable() -> Overloaded:
    return Overloaded(
        "The store of limits does not answer, so nothing was sent; try again shortly.",
        code="store_unavailable",
        retry_after=1.0,
    )
