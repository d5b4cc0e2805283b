"""The maths of limits, as every store follows them: no I/O, and no clock but the one handed in.

An account keeps `settled(last 60 s) + held <= limit` at every instant, where `held` is what all
workers may use without asking again: what their requests hold and what they have in reserve. The
proof is in docs/limits-proof.md. Settled use lies in buckets of one second, and a bucket leaves
only when all of it is older than the window.

Workers state absolute figures, so a call that is lost or repeated does no harm. `sync` is the one
operation; `Book` keeps accounts in memory, other stores load what `sync` needs and write it back.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from gateway.clock import Clock
from gateway.core.target import Account
from gateway.wire import json

WINDOW = 60  # seconds
SILENT = 15.0  # seconds after which a worker that says nothing is dead
IDLE = 2 * WINDOW  # seconds: a store may forget an account nobody named for so long
SPARSE = 0.9  # of a budget: above it nothing is given in reserve
MICRO = 1_000_000
MINUTE = 60 * MICRO
EDGE = 1e-6  # a wait ends this much after the moment, so that rounding does not cut it short
NEVER = 60.0  # the wait told where no time cures: a limit of 0
MOST = 2**53  # no figure is larger

NOTHING = (-1, 0)  # used and back of whom we do not know

Bucket = list[int]  # [second, n]
Drop = tuple[int, int]  # one admission of a meter: its TAT before and after, microseconds
Need = tuple[int, int]  # which ask of the call, how much


class StoreLost(Exception):
    """The store did not answer in time, or cannot: why, in a word. What was asked may be done."""


class Caller(NamedTuple):
    """Who calls: its calls so far, and the store's time in the last answer it got (0: none)."""

    worker: str
    turn: int
    heard: float


class Ask(NamedTuple):
    """What a worker says of one account; counts are absolute, over the worker's life.

    Args:
        account: with the limit as the worker knows it.
        floor: `used` less what is to be counted by a store that has no record of it: the use of
            the last window.
        used: settled so far.
        back: of that taken back again, as if it had never been.
        bound: held by requests.
        want: how much it would like to have in reserve on top of what this call asks for.
        drops: admissions of a meter to undo, newest first.
    """

    account: Account
    floor: int
    used: int
    back: int
    bound: int
    want: int
    drops: tuple[Drop, ...] = ()


class Slice(NamedTuple):
    """What is the worker's now, `bound` included; what nobody has; seconds until all is whole."""

    granted: int
    rest: int
    whole: float


class Full(NamedTuple):
    """A group was refused: the first ask without room, and when it will have some.

    `wait` None: when somebody gives a hold back. `sure`: settled use alone is in the way, so
    nothing but time helps.
    """

    place: int
    wait: float | None
    sure: bool


Verdict = Full | tuple[Drop, ...]  # admitted: what each meter of the group was charged, in order


class Answer(NamedTuple):
    """What a worker is told.

    Args:
        now: the store's time.
        known: it had heard of this worker; if not, it has to be told of every account.
        workers: how many live.
        rank: this one's place among them, from 0.
        slices: one for each ask.
        verdicts: one for each group.
        alone: the others were not asked: their store is lost.
    """

    now: float
    known: bool
    workers: int
    rank: int
    slices: Sequence[Slice]
    verdicts: Sequence[Verdict]
    alone: bool = False


class AccountStore(Protocol):
    """Where the workers of a fleet meet."""

    async def sync(
        self, caller: Caller, asks: Sequence[Ask], groups: Sequence[Sequence[Need]]
    ) -> Answer:
        """Report, and get what may be spent; each group is admitted whole or not at all.

        Groups are judged in order. A call whose turn is not above the worker's last is not carried
        out. No account stands twice in `asks`, no ask twice in a group. Ends within a bounded time.

        Raises:
            StoreLost: there is no answer.
            gateway.errors.GatewayError: what the caller is to hear instead.
        """
        ...


class Window:
    """What was settled in the last 60 s; `settled` is to be looked at only after `age`."""

    __slots__ = ("buckets", "settled")

    def __init__(self, settled: int = 0, buckets: Sequence[Bucket] = ()) -> None:
        self.buckets: deque[Bucket] = deque(buckets)  # oldest first, at most 62
        self.settled = settled

    def age(self, now: float) -> int:
        """How much has left."""
        buckets, before = self.buckets, self.settled
        while buckets and buckets[0][0] + WINDOW + 1 <= now:
            self.settled -= buckets.popleft()[1]
        return before - self.settled

    def add(self, now: float, n: int) -> None:
        """A clock that stepped back counts to the newest second there is."""
        if n <= 0:
            return
        self.settled += n
        buckets, second = self.buckets, int(now)
        if buckets and buckets[-1][0] >= second:
            buckets[-1][1] += n
        else:
            buckets.append([second, n])

    def take_back(self, n: int) -> None:
        """From the oldest on: whatever is left then stays for longer than it had to."""
        buckets = self.buckets
        while n > 0 and buckets:
            part = min(n, buckets[0][1])
            buckets[0][1] -= part
            self.settled -= part
            n -= part
            if not buckets[0][1]:
                buckets.popleft()

    def move(self, now: float) -> None:
        """Another clock: what is counted counts for another window."""
        settled, self.settled = self.settled, 0
        self.buckets.clear()
        if settled:
            self.add(now, settled)

    def wait(self, now: float, n: int) -> float:
        """Seconds until `n` of what is settled has left."""
        for second, settled in self.buckets:
            n -= settled
            if n <= 0:
                return max(0.0, second + WINDOW + 1 - now) + EDGE
        return self.whole(now)

    def whole(self, now: float) -> float:
        """Seconds until all has left."""
        if not self.buckets:
            return 0.0
        return max(0.0, self.buckets[-1][0] + WINDOW + 1 - now) + EDGE


class Meter:
    """`burst` at once, then evenly: GCRA in whole microseconds.

    In any span t: admissions <= burst + limit x t/60. `tat` is the moment it will be empty.
    """

    __slots__ = ("tat",)

    def __init__(self, tat: int = 0) -> None:
        self.tat = tat

    def take(self, now: float, n: int, account: Account) -> Drop | None:
        if self.wait(now, n, account) > 0:
            return None
        before = self.tat
        n = min(n, _burst(account))
        self.tat = max(before, int(now * MICRO)) + n * _tau(account)
        return before, self.tat

    def undo(self, drop: Drop) -> None:
        """As if it had never been, unless others came after and lean on it: then it counts."""
        before, after = drop
        if self.tat == after:
            self.tat = before

    def wait(self, now: float, n: int, account: Account) -> float:
        if account.limit <= 0:
            return NEVER
        burst = _burst(account)
        backlog = max(self.tat - int(now * MICRO), 0)
        lacking = backlog - (burst - min(n, burst)) * _tau(account)
        return (lacking + 1) / MICRO if lacking > 0 else 0.0

    def left(self, now: float, account: Account) -> tuple[int, float]:
        """How many at once, and the seconds until it is whole again."""
        if account.limit <= 0:
            return 0, NEVER
        backlog = max(self.tat - int(now * MICRO), 0)
        return max(0, _burst(account) + -backlog // _tau(account)), backlog / MICRO


def _burst(account: Account) -> int:
    return max(1, account.burst or 1)


def _tau(account: Account) -> int:
    return -(-MINUTE // account.limit)


class Tally:
    """One account in a store.

    Attributes:
        kind: of the account; "" until it is named.
        held: worker -> what it may use without asking.
        seen: worker -> its `used` and `back` as last heard.
        spent: nano-dollars, of a budget only; moved by the ledger's lines, never by `sync`.
        touched: when it was last named.
    """

    __slots__ = ("held", "kind", "meter", "seen", "spent", "touched", "window")

    def __init__(self) -> None:
        self.window = Window()
        self.meter = Meter()
        self.held: dict[str, int] = {}
        self.seen: dict[str, tuple[int, int]] = {}
        self.spent = 0
        self.touched = 0.0
        self.kind = ""

    def hear(self, caller: Caller, ask: Ask, now: float) -> int:
        """Take down what the worker reports; the room there is above its bound.

        What a call was long under way with is not taken back: the charge for it may have left.
        """
        account, worker = ask.account, caller.worker
        self.touched, self.kind = now, account.kind
        for drop in ask.drops:
            self.meter.undo(drop)
        if account.kind in {"rpm", "tpm"}:
            used, back = self.seen.get(worker, NOTHING)
            if used <= ask.floor:  # the record says nothing of the last window
                used, back = ask.floor, ask.back
            if now - caller.heard <= SILENT:
                self.window.take_back(ask.back - back)
            self.window.add(now, ask.used - used)
            self.seen[worker] = ask.used, ask.back
        others = sum(self.held.values()) - self.held.get(worker, 0)
        return account.limit - self.window.settled - self.spent - others - ask.bound

    def bury(self, beats: Mapping[str, float], alive: set[str], now: float) -> None:
        """What dead workers held: charged in full, slots freed; money waits for the sweep."""
        if self.held.keys() <= alive and self.seen.keys() <= alive:
            return
        for worker in [name for name in {**self.held, **self.seen} if name not in alive]:
            if self.kind == "budget" and worker in beats:
                continue
            held = self.held.pop(worker, 0)
            self.seen.pop(worker, None)
            if held and self.kind in {"rpm", "tpm"}:
                self.window.add(now, held)

    def idle(self, now: float) -> bool:
        """Nobody has named it for two windows.

        Whoever still holds it died so long ago that the charge for it would have left by now.
        Money stays until it is swept.
        """
        money = self.kind == "budget" and (self.held or self.spent)
        return self.touched + IDLE <= now and self.meter.tat <= now * MICRO and not money

    def dump(self) -> bytes:
        window = self.window
        values = (window.settled, list(window.buckets), self.meter.tat, self.held, self.seen)
        return json.dumps((*values, self.touched, self.kind))


class _Dumped(json.Struct, array_like=True):
    settled: int
    buckets: list[Bucket]
    tat: int
    held: dict[str, int]
    seen: dict[str, tuple[int, int]]
    touched: float
    kind: str


_decoder: json.Decoder[_Dumped] = json.Decoder(_Dumped)


def restored(data: bytes) -> Tally:
    """What `dump` wrote."""
    found, tally = _decoder.decode(data), Tally()
    tally.window = Window(found.settled, found.buckets)
    tally.meter.tat = found.tat
    tally.held, tally.seen = found.held, found.seen
    tally.touched, tally.kind = found.touched, found.kind
    return tally


def sync(
    tallies: Mapping[str, Tally],
    beats: Mapping[str, float],
    now: float,
    caller: Caller,
    asks: Sequence[Ask],
    groups: Sequence[Sequence[Need]],
) -> Answer:
    """One call of a worker, on the tallies of its asks by account id.

    Args:
        tallies: at least those that are asked for; changed in place.
        beats: when each worker was last heard of before, in the store's time.
        now: never less than before.
        caller: whose call it is.
        asks: of different accounts.
        groups: each is admitted whole or not at all, in this order.
    """
    worker = caller.worker
    alive = {name for name, at in beats.items() if now - at <= SILENT} | {worker}
    rooms = []
    for ask in asks:
        tally = tallies[ask.account.id]
        tally.window.age(now)
        tally.bury(beats, alive, now)
        rooms.append(tally.hear(caller, ask, now))
    whole = [tallies[ask.account.id] for ask in asks]
    verdicts: list[Verdict] = []
    taken = [0] * len(asks)
    for group in groups:
        verdict = _judge(whole, asks, rooms, group, now)
        verdicts.append(verdict)
        if not isinstance(verdict, Full):
            for place, n in group:
                if asks[place].account.burst is None:
                    rooms[place] -= n
                    taken[place] += n
    slices = [
        _slice(tally, worker, ask, room, more, now)
        for tally, ask, room, more in zip(whole, asks, rooms, taken, strict=True)
    ]
    rank = sorted(alive).index(worker)
    return Answer(now, worker in beats, len(alive), rank, slices, verdicts)


def _judge(
    tallies: Sequence[Tally],
    asks: Sequence[Ask],
    rooms: Sequence[int],
    group: Sequence[Need],
    now: float,
) -> Verdict:
    drops: list[tuple[Meter, Drop]] = []
    for place, n in group:
        account, tally = asks[place].account, tallies[place]
        if account.burst is not None:
            drop = tally.meter.take(now, n, account)
            if drop is not None:
                drops.append((tally.meter, drop))
                continue
        elif n <= rooms[place] and account.limit > 0:
            continue
        for meter, taken in reversed(drops):
            meter.undo(taken)
        return _full(tally, account, place, n, rooms[place], now)
    return tuple(drop for _, drop in drops)


def _full(tally: Tally, account: Account, place: int, n: int, room: int, now: float) -> Full:
    if account.limit <= 0:
        return Full(place, NEVER, sure=True)
    if account.burst is not None:
        return Full(place, tally.meter.wait(now, n, account), sure=True)
    settled, kind = tally.window.settled, account.kind
    if kind == "budget":
        return Full(place, None, sure=tally.spent + n > account.limit)
    if n - room <= settled:
        return Full(place, tally.window.wait(now, n - room), sure=settled + n > account.limit)
    # Admissions nobody has reported yet are about to be counted; other holds end when they end.
    return Full(place, int(now) + WINDOW + 1 - now if kind == "rpm" else None, sure=False)


def _slice(tally: Tally, worker: str, ask: Ask, room: int, taken: int, now: float) -> Slice:
    account = ask.account
    if account.burst is not None:
        tally.held.pop(worker, None)
        return Slice(0, *tally.meter.left(now, account))
    most = room
    if account.kind == "budget":
        most -= math.ceil(account.limit * (1 - SPARSE))
    slack = max(0, min(ask.want, most))
    granted = ask.bound + taken + slack
    if granted:
        tally.held[worker] = granted
    else:
        tally.held.pop(worker, None)
    return Slice(granted, room - slack, tally.window.whole(now))


class Book:
    """Accounts in memory: the store of one process, and the model for the others.

    `sync` answers in the same turn of the loop.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._now = 0.0
        self._tallies: dict[str, Tally] = {}
        self._round: deque[str] = deque()  # every account once: who is looked at next
        self._beats: dict[str, float] = {}
        self._turns: dict[str, int] = {}

    def __len__(self) -> int:
        """How many accounts are remembered."""
        return len(self._tallies)

    async def sync(
        self, caller: Caller, asks: Sequence[Ask], groups: Sequence[Sequence[Need]]
    ) -> Answer:
        return self.answer(caller, asks, groups)

    def answer(
        self, caller: Caller, asks: Sequence[Ask], groups: Sequence[Sequence[Need]]
    ) -> Answer:
        worker, turn, _ = caller
        if turn <= self._turns.get(worker, 0):
            raise StoreLost("late")
        now = self._now = max(self._now, self._clock.monotonic())
        self._sweep(2 * len(asks) + 2, now)
        for ask in asks:
            self._tally(ask.account.id)
        answer = sync(self._tallies, self._beats, now, caller, asks, groups)
        self._turns[worker], self._beats[worker] = turn, now
        return answer

    def spend(self, account: str, nano_usd: int) -> None:
        """A line of the ledger, on a budget."""
        tally = self._tally(account)
        tally.kind = "budget"
        tally.spent += nano_usd

    def swept(self, worker: str) -> None:
        """All that a worker left is in the ledger: its money is free."""
        self._beats.pop(worker, None)

    def _tally(self, name: str) -> Tally:
        tally = self._tallies.get(name)
        if tally is None:
            tally = self._tallies[name] = Tally()
            self._round.append(name)
        return tally

    def _sweep(self, most: int, now: float) -> None:
        for name in [name for name, at in self._beats.items() if now - at > IDLE]:
            self._turns.pop(name, None)
        for _ in range(min(most, len(self._round))):
            name = self._round.popleft()
            tally = self._tallies[name]
            if tally.idle(now):
                del self._tallies[name]
            else:
                self._round.append(name)
