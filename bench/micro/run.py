"""µs of the road's single steps, hot in the cache and without sockets.

    .venv/bin/python bench/micro/run.py            # all
    .venv/bin/python bench/micro/run.py parse plan # those whose name has one of these in it

For comparing two versions of one step on one machine; bench/overhead.py says what counts.
"""

import random
import shutil
import statistics
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from scene import (
    BODIES,
    FOLDER,
    HEADERS,
    KEY,
    Call,
    Reply,
    SystemClock,
    Transport,
    chunk,
    completion,
    deaf,
    now,
    snapshot,
)

from gateway.core.attempt import Attempt, Exchange, Opening
from gateway.core.keys import read_key
from gateway.core.plan import WELL
from gateway.core.story import story
from gateway.core.usage import Usage
from gateway.pipeline.admit import Admit
from gateway.pipeline.attempt import Attempts, Panic
from gateway.pipeline.authenticate import Authenticate
from gateway.pipeline.detached import Detached
from gateway.pipeline.estimate import Outputs, caller_demands, target_demands
from gateway.pipeline.facts import gather
from gateway.pipeline.guard import Guard
from gateway.pipeline.plan import Planner, Sources
from gateway.pipeline.queue import Queue
from gateway.pipeline.recall import Recall
from gateway.pipeline.road import Road
from gateway.pipeline.settle import Settle
from gateway.pipeline.tell import answer_headers, note
from gateway.pipeline.under_way import UnderWay
from gateway.providers.registry import adapter
from gateway.server.facades.chat import ChatFacade
from gateway.server.hints import read_head
from gateway.state.accounts import Book
from gateway.state.embedded.answers import EmbeddedAnswers
from gateway.state.embedded.health import LocalHealth
from gateway.state.embedded.sqlite import Store
from gateway.state.journal import Journal
from gateway.state.slices import Slices
from gateway.telemetry.logs import as_json
from gateway.telemetry.metrics import Metrics

LASTS = 0.05  # seconds of one measurement
REPEATED = 7

Work = Callable[[], object]
Step = tuple[str, Work, int]  # what, how, how many of it in one go

CLOCK = SystemClock()
SNAPSHOT = snapshot()
CHAIN = SNAPSHOT.chains["smart"]
MAIN = CHAIN.targets[0]
FACADE = ChatFacade()
USED = Usage(212, 128)


class Nobody:
    """`Keys` that knows one caller."""

    async def find(self, credential: object) -> object:
        return SNAPSHOT.keys[0].principal


def main() -> int:
    wanted = sys.argv[1:]
    print(f"{'step':<44}{'µs':>9}")
    try:
        for steps in (_edge, _parse, _send, _plan, _limits, _journal, _answers, _ends, _roads):
            for name, work, count in steps():
                if not wanted or any(part in name for part in wanted):
                    print(f"{name:<44}{_micros(work) / count:>9.2f}", flush=True)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    return 0


def _micros(work: Work) -> float:
    """The median of several measurements, each long enough to be one."""
    work()
    timer = timeit.Timer(work)
    once = max(timer.timeit(3) / 3, 1e-8)
    number = max(1, int(LASTS / once))
    return statistics.median(timer.repeat(REPEATED, number)) / number * 1e6


def _exchange(body: bytes) -> Exchange:
    """A request that is parsed and known."""
    call = Call(body, CLOCK.monotonic())
    exchange = Exchange(call.id, "chat", call.started)
    exchange.principal = SNAPSHOT.keys[0].principal
    request = FACADE.parse(body)
    exchange.facts = gather(call, exchange.principal, request, SNAPSHOT)
    exchange.chain_name = CHAIN.name
    return exchange


def _planner(limiter: Slices, outputs: Outputs) -> Planner:
    return Planner(
        Sources(
            CLOCK.monotonic,
            CLOCK.now,
            lambda _: WELL,
            lambda facts, target: limiter.wait(target_demands(facts, target, outputs)),
        )
    )


def _edge() -> Iterator[Step]:
    yield "edge: read_head, 12 headers", lambda: read_head(HEADERS), 1
    yield "edge: read_key (SHA-256)", lambda: read_key(KEY), 1


def _parse() -> Iterator[Step]:
    for name in BODIES:
        body = BODIES[name]
        yield f"parse {name}", lambda body=body: FACADE.parse(body), 1  # type: ignore[misc]


def _send() -> Iterator[Step]:
    chat = adapter(MAIN)
    for name in ("1k", "30k", "330k"):
        request = FACADE.parse(BODIES[name])
        yield f"upstream request {name}", lambda r=request: chat.request(r, "req_1.1"), 1  # type: ignore[misc]


def _plan() -> Iterator[Step]:
    limiter, outputs = Slices(Book(CLOCK), "micro", CLOCK), Outputs()
    exchange = _exchange(BODIES["1k"])
    facts = exchange.facts
    if facts is None:
        raise AssertionError
    planner = _planner(limiter, outputs)
    call = Call(BODIES["1k"], 0.0)
    yield "facts", lambda: gather(call, facts.principal, facts.request, SNAPSHOT), 1
    yield "plan, 2 targets with 6 accounts each", lambda: planner(facts), 1
    yield "demands of a target", lambda: target_demands(facts, MAIN, outputs), 1


def _limits() -> Iterator[Step]:
    limiter, outputs = Slices(Book(CLOCK), "micro", CLOCK), Outputs()
    facts = _exchange(BODIES["1k"]).facts
    if facts is None:
        raise AssertionError
    accounts = facts.principal.accounts
    demands = [*caller_demands(facts, 256), *target_demands(facts, MAIN, outputs)]

    def cycle() -> None:
        held = now(limiter.reserve("r", demands, accounts))
        limiter.settle(held, MAIN.accounts, 340)
        limiter.settle(held, accounts, 340)
        limiter.release(held)

    yield f"limiter: reserve and settle {len(demands)} accounts", cycle, 1
    yield "limiter: reserve and release them", lambda: _give_back(limiter, demands, accounts), 1
    yield "limiter: wait for a target's 6", lambda: limiter.wait(demands[-6:]), 1


def _give_back(limiter: Slices, demands: list, accounts: tuple) -> None:  # type: ignore[type-arg]
    held = now(limiter.reserve("r", demands, accounts))
    limiter.release(held)


def _journal() -> Iterator[Step]:
    journal = Journal(FOLDER, "micro")
    settle = _settle(Slices(Book(CLOCK), "micro", CLOCK), journal)
    opening = Opening(
        "req_0123456789abcdef01234567.1", CLOCK.now(), "bench", "load", "u-12345", None, "",
        "smart", "main", "up", "gpt-4o-mini", "answer", "p1", 260, 1, 1, 0, 1,
    )  # fmt: skip
    exchange = _exchange(BODIES["1k"])

    def cycle() -> None:
        journal.open(opening)
        attempt = _ended(opening.attempt_id)
        settle.attempt(exchange, attempt)

    def bare() -> None:
        attempt = _ended(opening.attempt_id)
        attempt.opened = False
        settle.attempt(exchange, attempt)

    yield "journal: open and close (with settle)", cycle, 1
    yield "settle an attempt, no journal", bare, 1


def _settle(limiter: Slices, journal: Journal) -> Settle:
    health = LocalHealth(CLOCK, deaf, random.Random(1))
    return Settle(limiter, journal, health, Outputs(), UnderWay(), CLOCK, deaf)  # type: ignore[arg-type]


def _ended(id: str) -> Attempt:
    started = time.monotonic()
    attempt = Attempt(id, MAIN, started)
    attempt.opened = attempt.finished = True
    attempt.status, attempt.usage = 200, USED
    attempt.first_content = attempt.ended = started + 0.1
    return attempt


def _answers() -> Iterator[Step]:
    chat, whole = adapter(MAIN), completion()
    request = FACADE.parse(BODIES["1k"])
    yield "answer: a whole completion", lambda: chat.completion(request, whole), 1
    asked = FACADE.parse(BODIES["1k-stream"])
    voice = FACADE.voice(asked)
    pieces = [chunk(" word" + str(at)) for at in range(200)]
    read8 = [b"".join(pieces[at : at + 8]) for at in range(0, 200, 8)]

    def decode(reads: list[bytes]) -> None:
        decoder = chat.decoder(asked)
        decoder.feed(chunk("Well", role=True))
        for data in reads:
            for event in decoder.feed(data):
                voice.say(event)

    yield "decoder and voice, a chunk a read", lambda: decode(pieces), 200
    yield "decoder and voice, 8 chunks a read", lambda: decode(read8), 200


def _ends() -> Iterator[Step]:
    exchange = _exchange(BODIES["1k"])
    limiter, outputs = Slices(Book(CLOCK), "micro", CLOCK), Outputs()
    facts = exchange.facts
    if facts is None:
        raise AssertionError
    demands = [*caller_demands(facts, 256), *target_demands(facts, MAIN, outputs)]
    exchange.reservation = now(limiter.reserve("r", demands, facts.principal.accounts))
    exchange.attempts.append(_ended("req_1.1"))
    exchange.ended = exchange.started + 0.1
    exchange.finished, exchange.status = True, 200
    metrics = Metrics("0")
    metrics.use(SNAPSHOT)
    yield "headers of an answer", lambda: answer_headers(exchange, SNAPSHOT, CLOCK), 1
    yield "note of an answer", lambda: note(exchange, CLOCK), 1
    yield "metrics of a request", lambda: metrics._request(exchange), 1  # noqa: SLF001
    told = story(exchange, 1.0, "c")
    yield "story of a request (log, why)", lambda: story(exchange, 1.0, "c"), 1
    yield "its log line", lambda: as_json(told), 1


def _roads() -> Iterator[Step]:
    """The whole road but sockets: what is the gateway's own."""
    done = b"data: [DONE]\n\n"
    stop = chunk("").replace(b'{"content":""}', b"{}").replace(b":null}]", b':"stop"}]')
    stream = [chunk("Well", role=True), *(chunk(f" word{at}") for at in range(126)), stop, done]
    for name, body, pieces, count in (
        ("road 1k", "1k", [completion()], 1),
        ("road 30k", "30k", [completion()], 1),
        ("road 330k", "330k", [completion()], 1),
        ("road, a stream of 128, a chunk", "1k-stream", stream, 128),
    ):
        road, data = _road(Transport(pieces)), BODIES[body]

        def walk(road: Road = road, data: bytes = data) -> None:
            now(road(Call(data, CLOCK.monotonic()), Reply()))

        yield name, walk, count


def _road(transport: Transport) -> Road:
    limiter, outputs = Slices(Book(CLOCK), "micro", CLOCK), Outputs()
    journal = Journal(FOLDER, f"m{random.getrandbits(40):x}")
    health = LocalHealth(CLOCK, deaf, random.Random(1))
    metrics = Metrics("0")
    metrics.use(SNAPSHOT)
    planner = _planner(limiter, outputs)
    settle = Settle(limiter, journal, health, outputs, UnderWay(), CLOCK, metrics.heard)  # type: ignore[arg-type]
    adapters = {target.id: adapter(target) for target in SNAPSHOT.targets.values()}
    attempt = Attempts(
        adapters, transport, limiter, journal, health, outputs, planner, settle, Panic(), CLOCK,
        SNAPSHOT,
    )  # type: ignore[arg-type]  # fmt: skip
    admit = Admit(limiter, outputs, Queue(CLOCK, 256, 1 << 26), planner, CLOCK, Guard())
    authenticate = Authenticate(Nobody(), CLOCK, Nobody())  # type: ignore[arg-type]
    answers = EmbeddedAnswers(Store(FOLDER), CLOCK, deaf)
    recall = Recall(answers, {}, Detached(CLOCK), admit, attempt, settle, CLOCK, SNAPSHOT)
    return Road(FACADE, SNAPSHOT, CLOCK, authenticate, planner, recall, admit, attempt, settle)


if __name__ == "__main__":
    sys.exit(main())
