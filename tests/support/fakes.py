"""A world for the road: scripted upstreams, ports that write down what they are asked, one clock.

An upstream's call is a `Says`: what comes back, and when. `World` stands the real steps of the
pipeline on these fakes, the limiter over memory and a `ManualClock`; `World.ask` sends one request
and moves the clock from timer to timer until it is over.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

from gateway.clock import Bell, Clock, Deadline
from gateway.core.attempt import Attempt, Exchange, Line, Opening, StreamEvent
from gateway.core.audit import Act, AuditLine
from gateway.core.events import Event, RequestEnded
from gateway.core.kept import Ending, Held, Kept, Owner
from gateway.core.parked import Whose
from gateway.core.plan import WELL, Facts, Standing, State
from gateway.core.ports import Parking, UpstreamRequest, Voice
from gateway.core.principal import LOCAL, Credential, Principal
from gateway.core.request import NO_HINTS, Hints, Request
from gateway.core.snapshot import Snapshot
from gateway.core.target import Account, Cause, Chain, Failed, Failure, Leaf, Target, Timeouts
from gateway.core.usage import Price, Usage
from gateway.errors import GatewayError, Overloaded
from gateway.pipeline.admit import Admit
from gateway.pipeline.attempt import Attempts, Panic
from gateway.pipeline.authenticate import Authenticate
from gateway.pipeline.detached import Detached
from gateway.pipeline.estimate import Outputs, target_demands
from gateway.pipeline.guard import Guard
from gateway.pipeline.park import Park
from gateway.pipeline.plan import Planner, Sources
from gateway.pipeline.queue import Queue
from gateway.pipeline.recall import Recall
from gateway.pipeline.road import Road
from gateway.pipeline.settle import Settle
from gateway.pipeline.under_way import UnderWay
from gateway.state.accounts import Book
from gateway.state.embedded.health import LocalHealth
from gateway.wire import json
from tests.support.clock import ManualClock
from tests.support.limits import owned

PRICE = Price("p1", input=1_000_000_000, output=2_000_000_000)  # 1,000 and 2,000 nano a token
TOLD = Usage(input=10, output=5)

# ---------------------------------------------------------------------------- what is configured


def make_target(id: str, **changed: Any) -> Target:
    """A priced target; `gpt#b` is the key `b` of the target `gpt`."""
    name, _, key = id.partition("#")
    base = Target(
        id=id,
        name=name,
        provider=f"p-{name}",
        kind="fake",
        model=f"m-{name}",
        base_url="https://upstream.invalid/secret-path",
        key=key or "main",
        prices=(PRICE,),
    )
    return replace(base, **changed)


def make_leaf(*targets: Target | str, **timeouts: float) -> Leaf:
    made = tuple(make_target(t) if isinstance(t, str) else t for t in targets)
    return Leaf(made[0].name, made, Timeouts(**timeouts))


def make_chain(*steps: Any, name: str = "smart", **changed: Any) -> Chain:
    made = tuple(make_leaf(s) if isinstance(s, str | Target) else s for s in steps)
    return Chain(name, made, **changed)


def make_request(**changed: Any) -> Request:
    return json.changed(Request("chat", "smart", {}, prompt=10), **changed)


def make_facts(chain: Chain, **changed: Any) -> Facts:
    """At monotonic 1000, the start of a ManualClock."""
    base = Facts(
        id="req1",
        started=1000.0,
        deadline=Deadline(1000.0 + chain.deadline),
        principal=LOCAL,
        request=make_request(),
        chain=chain,
        hints=NO_HINTS,
    )
    return json.changed(base, **changed)


def make_state(**changed: Any) -> State:
    return State(**{"now": 1000.0, "epoch": 1_800_000_000.0, **changed})


def slots(n: int, scope: Any = "target", name: str = "gpt") -> Account:
    return Account(f"{scope}:{name}:concurrency", scope, name, "concurrency", n)


# ---------------------------------------------------------------------------- what upstreams say


def text(said: str = "hello") -> StreamEvent:
    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
             "choices": [{"index": 0, "delta": {"content": said}}]}  # fmt: skip
    return StreamEvent(json.dumps(chunk), content=True, size=len(said))


def role() -> StreamEvent:
    return StreamEvent(
        b'{"id":"c1","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant"}}]}'
    )


def finish(reason: str = "stop") -> StreamEvent:
    end = {"index": 0, "delta": {}, "finish_reason": reason}
    return StreamEvent(
        json.dumps({"id": "c1", "choices": [end]}), content=True, finish_reason=reason
    )


def usage(told: Usage = TOLD, *, own: bool = False) -> StreamEvent:
    wire = {"id": "c1", "choices": [], "usage": {"prompt_tokens": told.input}}
    return StreamEvent(json.dumps(wire), usage=told, own=own)


def fails(cause: Cause | str, **changed: Any) -> Failure:
    return Failure(Cause(cause), f"it met {cause}", **changed)


def broken(cause: Cause | str) -> StreamEvent:
    return StreamEvent(b"", failure=fails(cause))


Step = StreamEvent | Sequence[StreamEvent] | Failure | float


@dataclass(slots=True)
class Says:
    """One upstream call.

    Args:
        steps: of a stream: events of one read, seconds of silence, or a failure of the socket.
        status: an error status comes with `failure` as what the adapter makes of it.
        failure: of the dial (status None), or of the error status.
        delay: seconds until the head, or until the dial fails.
        whole: of an answer that is not streamed.
    """

    steps: Sequence[Step] = ()
    status: int | None = 200
    failure: Failure | None = None
    delay: float = 0.0
    whole: StreamEvent | None = None


def answers(*, delay: float = 0.0, told: Usage | None = TOLD) -> Says:
    """A good answer, streamed or not."""
    steps: list[Step] = [role(), text(), finish()]
    if told is not None:
        steps.append(usage(told))
    wire = (
        b'{"id":"c1","choices":[{"index":0,"message":{"content":"hello"},"finish_reason":"stop"}]}'
    )
    whole = StreamEvent(wire, content=True, size=5, usage=told, finish_reason="stop")
    return Says(steps, delay=delay, whole=whole)


def refuses(cause: Cause | str, status: int = 500, *, delay: float = 0.0, **changed: Any) -> Says:
    return Says(status=status, failure=fails(cause, status=status, **changed), delay=delay)


def unreachable(cause: Cause | str = "connect", *, delay: float = 0.0) -> Says:
    return Says(status=None, failure=fails(cause), delay=delay)


def silent() -> Says:
    """Takes the request and never says a word."""
    return Says(status=None, delay=1e9)


def streams(*steps: Step) -> Says:
    return Says(steps)


class FakeUpstreams:
    """Transport and adapters in one: scripts by target id, the last one repeats."""

    def __init__(self, clock: Clock, ledger: "FakeLedger") -> None:
        self.clock = clock
        self.ledger = ledger
        self.scripts: dict[str, list[Says]] = {}
        self.asked: list[str] = []  # target ids, in order
        self.times: list[float] = []  # monotonic, of each
        self.entered = 0
        self.left = 0
        self.open = 0

    def next(self, target_id: str) -> Says:
        script = self.scripts.get(target_id)
        if not script:
            return answers()
        return script.pop(0) if len(script) > 1 else script[0]

    def send(
        self, request: UpstreamRequest, timeouts: Timeouts, seconds: float, deadline: Deadline
    ) -> "_Sending":
        target_id, attempt_id = request.url.split(" ")
        assert attempt_id in self.ledger.opened, "a byte left before the journal's line"
        return _Sending(self, target_id, request.stream, timeouts, (seconds, deadline))


class FakeAdapter:
    """The `Provider` of one target."""

    def __init__(self, target_id: str, upstreams: FakeUpstreams) -> None:
        self.target_id = target_id
        self.upstreams = upstreams

    def request(self, request: Request, attempt_id: str) -> UpstreamRequest:
        url = f"{self.target_id} {attempt_id}"
        return UpstreamRequest("POST", url, {}, b"", request.stream)

    def completion(self, request: Request, body: bytes) -> StreamEvent:
        return _spoken.pop(body)[0]

    def decoder(self, request: Request) -> "FakeDecoder":
        return FakeDecoder(request.n)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> Failure:
        found = _spoken.pop(body)[0].failure if body else None
        return found or Failure(Cause.SERVER_ERROR, "an error without a body", status=status)


_spoken: dict[bytes, Sequence[StreamEvent]] = {}  # what a fake's bytes mean


def _say(events: Sequence[StreamEvent]) -> bytes:
    data = str(len(_spoken)).encode() + b"-" + str(id(events)).encode()
    _spoken[data] = events
    return data


class FakeDecoder:
    """Every chunk stands for its events; the end is good once `n` finishes were seen."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._finishes = 0
        self._usage = False

    def feed(self, data: bytes) -> Sequence[StreamEvent]:
        events = _spoken.pop(data)
        for event in events:
            self._finishes += event.finish_reason is not None
            self._usage = self._usage or event.usage is not None
        return events

    def close(self) -> Sequence[StreamEvent]:
        if self._finishes >= self._n:
            return ()
        return (StreamEvent(b"", failure=fails(Cause.CUT_STREAM)),)

    @property
    def complete(self) -> bool:
        return self._finishes >= self._n and self._usage


class _Sending:
    """The context of one call and its reply, with clocks like the real transport's."""

    def __init__(
        self,
        upstreams: FakeUpstreams,
        target_id: str,
        stream: bool,
        timeouts: Timeouts,
        limits: tuple[float, Deadline],
    ) -> None:
        self._upstreams = upstreams
        self._target_id = target_id
        self._stream = stream
        self._timeouts = timeouts
        self._clock = upstreams.clock
        self._limit = min(self._clock.monotonic() + limits[0], limits[1].at)
        self._deadline = limits[1].at
        self._late = Cause.FIRST_TOKEN if stream else Cause.TIMEOUT
        self._says = Says()
        self._steps: list[Step] = []
        self._inside = False
        self.status = 0
        self.headers: Mapping[str, str] = {}

    async def _silence(self, seconds: float) -> None:
        until = self._clock.monotonic() + seconds
        limit = min(self._limit, self._deadline)
        await self._clock.sleep(max(0.0, min(until, limit) - self._clock.monotonic()))
        if until >= limit:
            raise Failed(fails(self._late))

    async def __aenter__(self) -> Self:
        upstreams = self._upstreams
        upstreams.asked.append(self._target_id)
        upstreams.times.append(self._clock.monotonic())
        says = self._says = upstreams.next(self._target_id)
        self._steps = list(says.steps)
        upstreams.open += 1
        try:
            if says.delay:
                await self._silence(says.delay)
            if says.status is None:
                raise Failed(says.failure or fails(Cause.CONNECT))
        except BaseException:
            upstreams.open -= 1
            raise
        self.status = says.status
        self._inside = True
        upstreams.entered += 1
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._inside, "left what was not entered, or twice"
        self._inside = False
        self._upstreams.left += 1
        self._upstreams.open -= 1

    async def read(self, limit: int) -> bytes:
        says = self._says
        for step in says.steps if says.whole is None else ():
            if isinstance(step, Failure):
                raise Failed(step)
            if isinstance(step, int | float):
                await self._silence(step)
        if says.failure is not None:
            return _say((StreamEvent(b"", failure=says.failure),))
        return _say((says.whole or StreamEvent(b"", failure=fails(Cause.MALFORMED)),))

    def progressed(self) -> None:
        self._limit = self._clock.monotonic() + self._timeouts.idle
        self._late = Cause.STALLED

    def ending(self, seconds: float) -> None:
        self._limit = self._clock.monotonic() + seconds
        self._late = Cause.STALLED

    async def more(self) -> bytes:
        steps = self._steps
        while steps:
            step = steps.pop(0)
            if isinstance(step, Failure):
                raise Failed(step)
            if isinstance(step, int | float):
                await self._silence(step)
            else:
                return _say((step,) if isinstance(step, StreamEvent) else step)
        return b""


# ---------------------------------------------------------------------------- ports that remember


class FakeLedger:
    """Checks that every attempt is opened once and closed at most once."""

    def __init__(self) -> None:
        self.opened: dict[str, Opening] = {}
        self.closed: dict[str, Line] = {}
        self.checkpoints: list[tuple[str, int]] = []
        self.lost = False  # the journal cannot be written

    def open(self, opening: Opening) -> None:
        if self.lost:
            raise Overloaded("The journal cannot be written.", code="store_unavailable")
        assert opening.attempt_id not in self.opened
        self.opened[opening.attempt_id] = opening

    def checkpoint(self, attempt_id: str, tokens: int) -> None:
        assert attempt_id in self.opened
        self.checkpoints.append((attempt_id, tokens))

    def close(self, line: Line) -> None:
        assert line.attempt_id in self.opened
        assert line.attempt_id not in self.closed, "closed twice"
        self.closed[line.attempt_id] = line

    @property
    def lines(self) -> list[Line]:
        return list(self.closed.values())


class FakeHealth:
    """Standings as a test sets them; remembers verdicts, probes and the retry budget."""

    def __init__(self) -> None:
        self.standings: dict[str, Standing] = {}
        self.recorded: list[tuple[str, str]] = []
        self.probes: set[str] = set()
        self.deposits: list[str] = []
        self.budget = 10.0
        self.after: Callable[[Attempt], None] = lambda attempt: None

    def standing(self, target_id: str) -> Standing:
        return self.standings.get(target_id, WELL)

    def enter(self, target: Target) -> bool:
        if target.id in self.probes:
            return False
        self.probes.add(target.id)
        return True

    def leave(self, target: Target) -> None:
        self.probes.discard(target.id)

    def record(self, attempt: Attempt, target: Target) -> None:
        self.recorded.append((target.id, attempt.outcome))
        if attempt.probe:
            self.probes.discard(target.id)
        self.after(attempt)

    def answered(self, attempt: Attempt, target: Target) -> None:
        self.recorded.append((target.id, "answered"))

    def deposit(self, target: Target, share: float) -> None:
        self.deposits.append(target.id)

    def withdraw(self, target: Target) -> bool:
        if self.budget < 1:
            return False
        self.budget -= 1
        return True


class FakeKeys:
    def __init__(self, principal: Principal) -> None:
        self.principal: Principal | None = principal
        self.refusal: GatewayError | None = None
        self.finds = 0

    async def find(self, credential: Credential | None) -> Principal | None:
        self.finds += 1
        if self.refusal is not None:
            raise self.refusal
        return self.principal if credential is not None else None

    async def again(self, whose: Whose) -> Principal | None:
        known = self.principal
        return known if known is not None and known.key_id == whose.key_id else None


@dataclass(slots=True)
class _Row:
    fingerprint: bytes = b""
    claim: "FakeClaim | None" = None
    detached: bool = False
    ended: bool = False
    at: float = 0.0
    until: float = 0.0
    kept: Kept | None = None


class FakeAnswers:
    """The port `Answers` in memory; another worker is made with the `rows` of this one."""

    def __init__(self, clock: Clock, rows: "dict[tuple[Owner, str], _Row] | None" = None) -> None:
        self.clock = clock
        self.rows = {} if rows is None else rows
        self.bell = Bell()
        self.dead = False  # nobody renews its leases

    def of(self, owner: Owner) -> "FakeDrawer":
        return FakeDrawer(self, owner)

    def renew(self) -> None:
        for row in self.rows.values():
            mine = row.claim is not None and row.claim.answers is self and not row.ended
            if mine and not self.dead:
                row.until = max(row.until, self.clock.now() + 15)


class FakeDrawer:
    def __init__(self, answers: FakeAnswers, owner: Owner) -> None:
        self._answers = answers
        self._owner = owner

    def _row(self, name: str) -> _Row | None:
        row = self._answers.rows.get((self._owner, name))
        return row if row is not None and row.until > self._answers.clock.now() else None

    async def get(self, name: str, seconds: float) -> Kept | None:
        row = self._row(name)
        fresh = row is not None and row.at >= self._answers.clock.now() - seconds
        return row.kept if row is not None and fresh else None

    def put(self, name: str, kept: Kept, seconds: float) -> None:
        now = self._answers.clock.now()
        row = _Row(at=now, until=now + seconds, kept=kept)
        self._answers.rows[self._owner, name] = row

    async def claim(
        self, name: str, fingerprint: bytes, *, detached: bool
    ) -> "FakeClaim | Kept | Held":
        row = self._row(name)
        if row is None:
            now = self._answers.clock.now()
            claim = FakeClaim(self._answers, (self._owner, name))
            self._answers.rows[self._owner, name] = _Row(
                fingerprint, claim, detached, at=now, until=now + 15
            )
            return claim
        if row.fingerprint != fingerprint:
            return Held.OTHER
        if row.ended:
            return Held.ENDED
        return row.kept or Held.RUNNING

    async def changed(self, name: str, until: float) -> None:
        look = self._answers.clock.monotonic() + 0.1
        await self._answers.bell.heard(self._answers.clock, min(until, look))

    async def end(self, name: str) -> Ending | None:
        row = self._row(name)
        if row is None:
            return None
        if row.claim is None:
            return "kept"
        if not row.detached:
            return "running"
        if not row.ended:
            row.ended, row.until = True, self._answers.clock.now() + 60
            row.claim.end()
            self._answers.bell.ring()
        return "ended"


class FakeClaim:
    def __init__(self, answers: FakeAnswers, place: tuple[Owner, str]) -> None:
        self.answers = answers
        self._place = place
        self.end: Callable[[], None] = lambda: None

    def _mine(self) -> _Row | None:
        row = self.answers.rows.get(self._place)
        return row if row is not None and row.claim is self and not row.ended else None

    def keep(self, kept: Kept) -> None:
        if (row := self._mine()) is not None:
            now = self.answers.clock.now()
            row.claim, row.kept, row.at, row.until = None, kept, now, now + 86_400
        self.answers.bell.ring()

    def release(self) -> None:
        if self._mine() is not None:
            del self.answers.rows[self._place]
        self.answers.bell.ring()

    def on_end(self, end: Callable[[], None]) -> None:
        self.end = end


# ---------------------------------------------------------------------------- the caller


@dataclass(slots=True)
class FakeCall:
    id: str = "req1"
    api: str = "chat"
    started: float = 1000.0
    address: str = "192.0.2.1"
    credential: Credential | None = field(default_factory=lambda: Credential("k", b"d"))
    hints: Hints = NO_HINTS
    said: bytes = b"{}"

    async def body(self) -> bytes:
        return self.said


class FakeAudit:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.acts: list[Act] = []

    def note(self, act: Act) -> None:
        self.acts.append(act)

    async def write(self) -> None:
        return None

    async def read(self, most: int, before: int | None = None) -> Sequence[AuditLine]:
        return []


class FakeVoice:
    def __init__(self, *, stream: bool) -> None:
        self.content_type = "text/event-stream" if stream else "application/json"

    def say(self, event: StreamEvent) -> bytes:
        return b"" if event.own else event.wire

    def close(self, note: bytes) -> bytes:
        return b""

    def interrupted(self, error: GatewayError) -> bytes:
        return b"!"


class FakeFacade:
    def __init__(self, request: Request) -> None:
        self.made = request

    def parse(self, body: bytes) -> Request:
        return self.made

    def voice(self, request: Request) -> Voice:
        return FakeVoice(stream=request.stream)


class FakeReply:
    """What reached the caller; `blocks` are the writes (from 0) that never return."""

    def __init__(self) -> None:
        self.headers: Mapping[str, str] | None = None
        self.events: list[StreamEvent] = []
        self.note: bytes | None = None
        self.ticket: bytes | None = None  # of a request that is answered later
        self.expected = 0
        self.blocks: set[str] = set()

    def expect(
        self, voice: Voice, keepalive: float, headers: Callable[[], Mapping[str, str]]
    ) -> None:
        self.expected += 1

    async def start(self, headers: Mapping[str, str], voice: Voice) -> None:
        assert self.headers is None, "started twice"
        await self._maybe("start")
        self.headers = headers

    async def write(self, events: Sequence[StreamEvent]) -> None:
        assert self.headers is not None, "an event before the start"
        await self._maybe("write")
        self.events += events

    async def finish(self, note: bytes) -> None:
        await self._maybe("finish")
        self.note = note

    def accepted(self, headers: Mapping[str, str], body: bytes) -> None:
        assert self.headers is None, "started before"
        self.headers, self.ticket = headers, body

    async def _maybe(self, what: str) -> None:
        if what in self.blocks:
            await asyncio.get_running_loop().create_future()

    @property
    def said(self) -> str:
        """The text that the caller has."""
        told = ""
        for event in self.events:
            for choice in json.loads(event.wire).get("choices", []) if event.wire else []:
                told += choice.get("delta", choice.get("message", {})).get("content", "")
        return told


# ---------------------------------------------------------------------------- all together


@dataclass(slots=True)
class Told:
    """How one request ended."""

    reply: FakeReply
    exchange: Exchange
    error: BaseException | None

    @property
    def refusal(self) -> GatewayError:
        assert isinstance(self.error, GatewayError), self.error
        return self.error


class World:
    """The real steps on fake ports."""

    def __init__(
        self,
        chain: Chain,
        scripts: Mapping[str, Says | Sequence[Says]] | None = None,
        *,
        principal: Principal = LOCAL,
        queue: tuple[int, int] = (256, 1_000_000),
        real_health: bool = False,
    ) -> None:
        self.clock = clock = ManualClock()
        self.chain = chain
        self.principal = principal
        self.heard: list[Event] = []
        self.limiter = owned(Book(clock), clock)
        self.ledger = FakeLedger()
        self.health: Any = FakeHealth()
        if real_health:
            self.health = LocalHealth(clock, self.heard.append, random.Random(1))
        self.outputs = Outputs()
        self.upstreams = FakeUpstreams(clock, self.ledger)
        for id, says in (scripts or {}).items():
            self.upstreams.scripts[id] = [says] if isinstance(says, Says) else list(says)
        chains = [chain, *(c for c in chain.on.values() if isinstance(c, Chain))]
        targets = {target.id: target for one in chains for target in one.targets}
        self.snapshot = Snapshot("abcdef123456", {one.name: one for one in chains}, {}, targets)
        adapters = {id: FakeAdapter(id, self.upstreams) for id in targets}
        wait = lambda facts, target: self.limiter.wait(  # noqa: E731
            target_demands(facts, target, self.outputs)
        )
        self.plan = Planner(Sources(clock.monotonic, clock.now, self.health.standing, wait))
        self.under_way = UnderWay()
        self.settle = Settle(
            self.limiter,
            self.ledger,
            self.health,
            self.outputs,
            self.under_way,
            clock,
            self.heard.append,
        )
        self.queue = Queue(clock, *queue)
        self.limiter.on_room(self.queue.pump)
        self.guard = Guard()
        self.admit = Admit(self.limiter, self.outputs, self.queue, self.plan, clock, self.guard)
        self.attempts = Attempts(
            adapters,
            self.upstreams,
            self.limiter,
            self.ledger,
            self.health,
            self.outputs,
            self.plan,
            self.settle,
            Panic(),
            clock,
            self.snapshot,
        )
        self.answers = FakeAnswers(clock)
        self.detached = Detached(clock)
        self.recall = Recall(
            self.answers,
            {},
            self.detached,
            self.admit,
            self.attempts,
            self.settle,
            clock,
            self.snapshot,
        )
        self.keys = FakeKeys(principal)
        self.authenticate = Authenticate(self.keys, clock, FakeAudit())
        self.parking: Parking | None = None
        self._ids = 0

    def road(self, request: Request) -> Road:
        return Road(
            FakeFacade(request),
            self.snapshot,
            self.clock,
            self.authenticate,
            self.plan,
            self.recall,
            self.admit,
            self.attempts,
            self.settle,
            park=Park(self.parking, self.clock, self.snapshot) if self.parking else None,
        )

    def begin(
        self, *, reply: FakeReply | None = None, hints: Hints = NO_HINTS, **request: Any
    ) -> "Going":
        """A request under way."""
        self._ids += 1
        call = FakeCall(id=f"req{self._ids}", started=self.clock.monotonic(), hints=hints)
        reply = reply or FakeReply()
        made = make_request(model=self.chain.name, **request)
        task = asyncio.get_running_loop().create_task(self.road(made)(call, reply))
        return Going(self, call.id, reply, task)

    async def ask(self, **asked: Any) -> Told:
        """One request from its head to its end."""
        return await self.begin(**asked).end()

    def ended(self, id: str) -> Exchange:
        found = [e.exchange for e in self.heard if isinstance(e, RequestEnded)]
        mine = [exchange for exchange in found if exchange.id == id]
        assert len(mine) == 1, f"{len(mine)} ends of one request"
        return mine[0]

    def held(self, accounts: Iterable[Account]) -> int:
        """Slots out of all these concurrency accounts."""
        return sum(room.account.limit - room.remaining for room in
                   self.limiter.headroom(list(accounts)))  # fmt: skip


@dataclass(slots=True)
class Going:
    world: World
    id: str
    reply: FakeReply
    task: asyncio.Task[None]

    async def end(self) -> Told:
        await until(self.world.clock, self.task)
        error = None if self.task.cancelled() else self.task.exception()
        if self.task.cancelled():
            error = asyncio.CancelledError()
        return Told(self.reply, self.world.ended(self.id), error)

    async def leave(self) -> Told:
        """The caller hangs up."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task
        return Told(self.reply, self.world.ended(self.id), asyncio.CancelledError())


async def turns(n: int = 30) -> None:
    """Let everybody run who can."""
    for _ in range(n):
        await asyncio.sleep(0)


async def until(clock: ManualClock, *tasks: asyncio.Task[Any], most: int = 5000) -> None:
    """Move the clock from timer to timer until all tasks are over."""
    for _ in range(most):
        await turns(12)
        if all(task.done() for task in tasks):
            return
        due = [when for when, number, _ in clock._timers if number not in clock._cancelled]
        if not due:
            await turns(100)
            assert all(task.done() for task in tasks), "everybody waits, and nobody for the clock"
            return
        clock.advance(max(0.0, min(due) - clock.monotonic()))
    raise AssertionError("it does not end")
