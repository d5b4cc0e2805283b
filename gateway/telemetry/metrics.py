"""Metrics as plain integers in cells of (chain, target), read by a collector of our own.

The names are API (operate.md 4.2). A label's value comes from the configuration or a closed list,
never from a request. What an alert rates starts at 0; what a reload removed disappears.
"""

import asyncio
import platform
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from gateway.core.attempt import Attempt, Exchange
from gateway.core.events import (
    AttemptEnded,
    BreakerMoved,
    Event,
    Reloaded,
    RequestEnded,
    SpendAlert,
    StateTrouble,
)
from gateway.core.snapshot import Snapshot
from gateway.core.target import Cause
from gateway.core.usage import NANO, Usage
from gateway.telemetry import sums

UNKNOWN: Final = "_unknown"
OTHER: Final = "_other"
APIS = frozenset({"chat", "embeddings"})
ZEROED_STATUS = (200, 429, 499, 500, 502, 503, 504)

OUTCOMES = (
    "ok",
    *(
        cause.value
        for cause in (
            Cause.RATE_LIMITED,
            Cause.OVERLOADED,
            Cause.SERVER_ERROR,
            Cause.TIMEOUT,
            Cause.CONNECT,
            Cause.FIRST_TOKEN,
            Cause.STALLED,
            Cause.CUT_STREAM,
            Cause.MALFORMED,
            Cause.QUOTA,
            Cause.AUTH,
            Cause.MODEL_GONE,
            Cause.CONTEXT_LENGTH,
            Cause.UNABLE,
            Cause.CONTENT_POLICY,
            Cause.BAD_REQUEST,
            Cause.CANCELLED,
        )
    ),
)
SHED = {
    "concurrency_exceeded": "concurrency",
    "overloaded": "concurrency",
    "queue_full": "queue_full",
    "queue_timeout": "queue_timeout",
    "draining": "draining",
}
SHED_REASONS = ("concurrency", "queue_full", "queue_timeout", "draining", "guard")
OVERLOADED = "process"  # the scope of what the guard turns away
LIMIT_CODES = {
    "rpm_exceeded": "rpm",
    "tpm_exceeded": "tpm",
    "concurrency_exceeded": "concurrency",
    "insufficient_quota": "budget",
}
LIMIT_SCOPES = frozenset({"key", "user", "team", "session"})
TOKEN_KINDS = ("input", "output", "cache_read", "cache_write", "reasoning")
BREAKER = {"closed": 0, "half-open": 1, "open": 2}
PATIENCE = 2.0  # seconds a scrape waits for the loop
RESTARTS = "gateway_worker_restarts"
MOST_OPS = 64  # distinct (backend, operation) pairs

REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 300.0)
FIRST_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0)
OVERHEAD_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
ATTEMPT_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
QUEUE_SECONDS = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is looked up when somebody asks; each is called on the loop that called `use`.

    Args:
        inflight_requests, queue_depth: by chain. inflight_attempts: by target.
        headroom: (target, kind, 0..1) rows.
        ledger_drift: nano-dollars. loop_lag: seconds. state_degraded: 1 or 0.
    """

    inflight_requests: Callable[[], Mapping[str, int]] | None = None
    inflight_attempts: Callable[[], Mapping[str, int]] | None = None
    queue_depth: Callable[[], Mapping[str, int]] | None = None
    headroom: Callable[[], Iterable[tuple[str, str, float]]] | None = None
    ledger_drift: Callable[[], int] | None = None
    loop_lag: Callable[[], float] | None = None
    state_degraded: Callable[[], float] | None = None


NO_GAUGES = Gauges()


class Histogram:
    """Counts by bucket, not yet cumulated; the last is `+Inf`."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulated buckets by their upper bound, and the sum."""
        seen = 0
        told: list[tuple[str, float]] = []
        for bound, count in zip(self.bounds, tuple(self.counts), strict=False):
            seen += count
            told.append((repr(bound), seen))
        told.append(("+Inf", seen + self.counts[-1]))
        return told, self.total


class PairCell:
    """A target as one chain uses it."""

    __slots__ = ("cost", "outcomes", "tokens")

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.tokens = [0] * len(TOKEN_KINDS)
        self.cost = 0  # nano-dollars

    def used(self, usage: Usage) -> None:
        tokens = self.tokens
        tokens[0] += usage.input
        tokens[1] += usage.output
        if usage.cached:
            tokens[2] += usage.cached
        if written := usage.cache_write_5m + usage.cache_write_1h:
            tokens[3] += written
        if usage.reasoning:
            tokens[4] += usage.reasoning


class TargetCell:
    """A target, whoever uses it."""

    __slots__ = ("moves", "seconds", "unpriced")

    def __init__(self) -> None:
        self.seconds = Histogram(ATTEMPT_SECONDS)
        self.unpriced = 0
        self.moves: dict[str, int] = {}  # transitions, by where to


class ChainCell:
    """A chain."""

    __slots__ = (
        "answers",
        "exhausted",
        "fallbacks",
        "first",
        "pairs",
        "queued",
        "requests",
        "seconds",
        "shed",
        "skips",
    )

    def __init__(self, targets: Iterable[str]) -> None:
        self.requests: dict[tuple[str, int], int] = dict.fromkeys(
            (("chat", status) for status in ZEROED_STATUS), 0
        )
        self.answers = [0, 0]  # first, fallback
        self.seconds = (Histogram(REQUEST_SECONDS), Histogram(REQUEST_SECONDS))  # whole, stream
        self.first = Histogram(FIRST_SECONDS)
        self.queued = Histogram(QUEUE_SECONDS)
        self.exhausted = 0
        self.shed = dict.fromkeys(SHED_REASONS, 0)
        self.skips: dict[tuple[str, str], int] = {}
        self.fallbacks: dict[tuple[str, str], int] = {}
        self.pairs = {name: PairCell() for name in targets}


class Metrics(Collector):
    """A `Listener` that counts.

    Args:
        version: of the product, for `gateway_build_info`.
        gauges: what is looked up at each scrape.
        restarts: how often a worker had to be started in the place of this one.
        before: the last `figures` of the worker before this one.
    """

    def __init__(
        self,
        version: str = "0",
        gauges: Gauges = NO_GAUGES,
        restarts: int = 0,
        before: bytes = b"",
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._version = version
        self._gauges = gauges
        self._restarts = restarts
        self._before = [
            family
            for family in sums.counted(sums.read(before))
            if family.name != RESTARTS  # of these `restarts` is the whole number
        ]
        self._config = ""
        self._chains: dict[str, ChainCell] = {UNKNOWN: ChainCell(())}
        self._direct: dict[str, tuple[str, ...]] = {}
        self._targets: dict[str, TargetCell] = {}
        self._breakers: dict[str, tuple[str, int]] = {}  # target id: (name, state)
        self._overhead = Histogram(OVERHEAD_SECONDS)
        self._planning = Histogram(OVERHEAD_SECONDS)
        self._rejections: dict[tuple[str, str], int] = {}
        self._state_errors: dict[tuple[str, str], int] = {}
        self._spend_alerts = 0
        self._reload_ok = 1
        self._reloaded = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def use(self, snapshot: Snapshot, now: float = 0.0) -> None:
        """Make the cells of a configuration; those of names that stay keep their counts.

        `now` is epoch seconds of the (successful) load.
        """
        chains: dict[str, ChainCell] = {UNKNOWN: self._chains[UNKNOWN]}
        for chain in snapshot.chains.values():
            names = [leaf.name for leaf in chain.leaves()]
            cell = self._chains.get(chain.name) or ChainCell(names)
            cell.pairs = {name: cell.pairs.get(name) or PairCell() for name in names}
            chains[chain.name] = cell
        self._direct = {
            chain.name: tuple(leaf.name for leaf in chain.leaves())
            for chain in snapshot.direct.values()
            if chain.name not in chains
        }
        for name in self._direct:
            if name in self._chains:
                chains[name] = self._chains[name]
        targets = {target.name for target in snapshot.targets.values()}
        self._targets = {name: self._targets.get(name) or TargetCell() for name in targets}
        self._breakers = {
            target.id: (target.name, self._breakers.get(target.id, ("", 0))[1])
            for target in snapshot.targets.values()
        }
        self._chains = chains
        self._config = snapshot.config
        if now:
            self._reloaded = now
        with suppress(RuntimeError):  # no loop: everything is in one thread
            self._loop = asyncio.get_running_loop()
            self._thread = threading.get_ident()

    def heard(self, event: Event) -> None:
        if isinstance(event, AttemptEnded):
            self._attempt(event.exchange, event.attempt)
        elif isinstance(event, RequestEnded):
            self._request(event.exchange)
        else:
            self._rare(event)

    def _rare(self, event: Event) -> None:
        if isinstance(event, BreakerMoved):
            self._breaker(event)
        elif isinstance(event, Reloaded):
            self._reload_ok = 0 if event.problem else 1
            if not event.problem:
                self._reloaded = event.now
        elif isinstance(event, SpendAlert):
            self._spend_alerts += 1
        elif isinstance(event, StateTrouble):
            pair = (event.backend, event.op)
            if pair in self._state_errors or len(self._state_errors) < MOST_OPS:
                self._state_errors[pair] = self._state_errors.get(pair, 0) + 1

    def render(self) -> bytes:
        """The exposition, text format 0.0.4. Takes milliseconds: call it in a thread."""
        return generate_latest(self._registry)

    def figures(self) -> bytes:
        """What a sibling adds to its own, with what the worker before this one had counted."""
        return sums.write(sums.add([sums.of(self.collect()), self._before]))

    def summed(self, figures: Sequence[bytes], silent: Sequence[bytes]) -> bytes:
        """The exposition of several workers.

        Of those that do not answer only what they had counted is told: a sum never sinks.
        """
        unheard = sums.of([_of_workers(answering=0, silent=len(silent))])
        gone = [sums.counted(sums.read(one)) for one in silent]
        return sums.exposition(sums.add([*map(sums.read, figures), unheard, *gone]))

    # --- counting, inside the request's turn

    def _chain(self, name: str) -> ChainCell:
        cell = self._chains.get(name)
        if cell is not None:
            return cell
        names = self._direct.get(name)
        if names is None:
            return self._chains[UNKNOWN]
        cell = self._chains[name] = ChainCell(names)
        return cell

    def _request(self, exchange: Exchange) -> None:
        cell = self._chain(exchange.chain_name)
        api = exchange.api
        sort = (api if api in APIS else OTHER, exchange.status)
        requests = cell.requests
        requests[sort] = requests.get(sort, 0) + 1
        passed = exchange.ended - exchange.started
        waited = exchange.waited
        if waited > 0.0:
            cell.queued.observe(waited)
        if exchange.facts is not None:
            cell.seconds[exchange.streaming].observe(passed)
            served = exchange.served_by
            if served is not None and served.first_content is not None:
                cell.first.observe(served.first_content - exchange.started)
                if exchange.finished:
                    own = passed - waited - exchange.paused
                    self._answered(cell, exchange, served.target.name, own)
            if exchange.planned:
                self._planning.observe(max(0.0, exchange.planned - exchange.started - waited))
        if exchange.trail:
            _fallbacks(cell, exchange)
            self._skips(cell, exchange)
        if exchange.error is not None:
            self._refused(cell, exchange)

    def _answered(self, cell: ChainCell, exchange: Exchange, name: str, passed: float) -> None:
        fallback = exchange.trail and any(tried != name for tried, _ in exchange.trail)
        cell.answers[1 if fallback else 0] += 1
        for attempt in exchange.attempts:
            if attempt.ended is not None:
                passed -= attempt.ended - attempt.started
        self._overhead.observe(max(0.0, passed))

    def _skips(self, cell: ChainCell, exchange: Exchange) -> None:
        for skip in exchange.skips:
            pair = (skip.target.name, skip.cause.value)
            cell.skips[pair] = cell.skips.get(pair, 0) + 1

    def _refused(self, cell: ChainCell, exchange: Exchange) -> None:
        error = exchange.error
        if error is None:
            return
        code = error.code
        if code in SHED:
            cell.shed["guard" if error.scope == OVERLOADED else SHED[code]] += 1
        if code in LIMIT_CODES and error.scope in LIMIT_SCOPES:
            pair = (error.scope, LIMIT_CODES[code])
            self._rejections[pair] = self._rejections.get(pair, 0) + 1
        if exchange.plan is not None and exchange.served_by is None:
            exhausted = exchange.status in {502, 504} or code in {
                "chain_exhausted",
                "no_healthy_target",
            }
            cell.exhausted += exhausted

    def _attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        name = attempt.target.name
        cell = self._chain(exchange.chain_name)
        pair = cell.pairs.get(name)
        if pair is None:  # reached by `on: <chain>`, or removed since
            if name not in self._targets:
                return
            pair = cell.pairs[name] = PairCell()
        outcome = attempt.outcome
        if outcome in pair.outcomes:
            pair.outcomes[outcome] += 1
        target = self._targets.get(name)
        if target is not None:
            if attempt.ended is not None:
                target.seconds.observe(attempt.ended - attempt.started)
            if not attempt.cost.known:
                target.unpriced += 1
        pair.cost += attempt.cost.nano_usd
        if attempt.usage is not None:
            pair.used(attempt.usage)

    def _breaker(self, event: BreakerMoved) -> None:
        if event.target_id in self._breakers:
            self._breakers[event.target_id] = (event.target, BREAKER[event.to])
        target = self._targets.get(event.target)
        if target is not None:
            target.moves[event.to] = target.moves.get(event.to, 0) + 1

    # --- telling, in a thread; `.copy()` because the loop goes on counting

    def collect(self) -> Iterator[Metric]:
        chains = self._chains.copy()
        targets = self._targets.copy()
        yield from _of_requests(chains)
        yield from _of_routing(chains)
        yield from _of_spending(chains)
        yield from self._of_targets(targets)
        yield self._of_overhead()
        yield from self._of_the_house()
        restarts = _counter(RESTARTS, "Workers started in the place of dead ones")
        restarts.add_metric([], self._restarts)
        yield restarts
        yield _of_workers(answering=1, silent=0)
        yield from self._of_gauges()

    def _of_gauges(self) -> Sequence[Metric]:
        """What is looked up belongs to the loop: it is asked there, though we are in a thread."""

        def look() -> Sequence[Metric]:
            return tuple(_looked_up(self._gauges))

        loop = self._loop
        if loop is None or not loop.is_running() or threading.get_ident() == self._thread:
            return look()
        looked: Future[Sequence[Metric]] = Future()

        def ask() -> None:
            try:
                looked.set_result(look())
            except Exception as error:  # noqa: BLE001 - the loop must not stumble over a gauge
                looked.set_exception(error)

        loop.call_soon_threadsafe(ask)
        try:
            return looked.result(PATIENCE)
        except TimeoutError:
            return ()  # a loop that hangs is told by the lag of the next scrape

    def _of_overhead(self) -> Metric:
        family = HistogramMetricFamily(
            "gateway_overhead_seconds",
            "Time of our own, without upstream and queue",
            labels=["phase"],
        )
        for phase, histogram in (("plan", self._planning), ("total", self._overhead)):
            buckets, total = histogram.buckets()
            family.add_metric([phase], buckets, total)
        return family

    def _of_targets(self, targets: dict[str, TargetCell]) -> Iterator[Metric]:
        seconds = HistogramMetricFamily(
            "gateway_attempt_duration_seconds",
            "Upstream calls, from dial to end",
            labels=["target"],
        )
        unpriced = _counter(
            "gateway_unpriced_requests", "Calls to a target without a price", "target"
        )
        moves = _counter(
            "gateway_breaker_transitions", "Changes of a breaker, by where to", "target", "to"
        )
        state = _gauge("gateway_breaker_state", "0 closed, 1 half-open, 2 open", "target")
        for name, cell in targets.items():
            buckets, total = cell.seconds.buckets()
            seconds.add_metric([name], buckets, total)
            unpriced.add_metric([name], cell.unpriced)
            for to, count in cell.moves.copy().items():
                moves.add_metric([name, to], count)
        worst: dict[str, int] = {}
        for name, now in self._breakers.copy().values():
            worst[name] = max(now, worst.get(name, 0))
        for name, now in worst.items():
            state.add_metric([name], now)
        yield from (seconds, unpriced, moves, state)

    def _of_the_house(self) -> Iterator[Metric]:
        rejections = _counter(
            "gateway_limit_rejections", "Requests refused by a caller's limit", "scope", "kind"
        )
        for (scope, kind), count in self._rejections.copy().items():
            rejections.add_metric([scope, kind], count)
        errors = _counter(
            "gateway_state_errors",
            "Failed uses of the store, the journal or the webhook",
            "backend",
            "op",
        )
        for (backend, op), count in self._state_errors.copy().items():
            errors.add_metric([backend, op], count)
        alerts = _counter("gateway_spend_alerts", "Users who spent out of the ordinary, once a day")
        alerts.add_metric([], self._spend_alerts)
        ok = _gauge("gateway_config_reload_success", "Whether the last reload took effect")
        ok.add_metric([], self._reload_ok)
        when = _gauge(
            "gateway_config_last_reload_timestamp_seconds", "When the configuration was loaded"
        )
        when.add_metric([], self._reloaded)
        build = _gauge("gateway_build_info", "What runs here", "version", "python", "config_hash")
        build.add_metric([self._version, platform.python_version(), self._config], 1)
        yield from (rejections, errors, alerts, ok, when, build)


def _of_workers(*, answering: int, silent: int) -> Metric:
    family = _gauge("gateway_workers", "Processes whose figures these are, or are not", "state")
    family.add_metric(["answering"], answering)
    family.add_metric(["silent"], silent)
    return family


def _fallbacks(cell: ChainCell, exchange: Exchange) -> None:
    """Steps forward: a target that was left for the next one, and why."""
    trail = exchange.trail
    served = exchange.served_by
    for at, (name, cause) in enumerate(trail):
        if at + 1 < len(trail):
            following = trail[at + 1][0]
        elif served is not None and served.failure is None:
            following = served.target.name
        else:
            return
        if following != name:
            pair = (name, cause)
            cell.fallbacks[pair] = cell.fallbacks.get(pair, 0) + 1


def _counter(name: str, told: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, told, labels=labels)


def _gauge(name: str, told: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, told, labels=labels)


def _of_requests(chains: Mapping[str, ChainCell]) -> Iterator[Metric]:
    requests = _counter(
        "gateway_requests", "Requests, by the status we answered", "chain", "api", "status"
    )
    answers = _counter("gateway_answers", "Answered requests, by who answered", "chain", "by")
    seconds = HistogramMetricFamily(
        "gateway_request_duration_seconds",
        "Requests, from head to last byte",
        labels=["chain", "stream"],
    )
    first = HistogramMetricFamily(
        "gateway_time_to_first_token_seconds", "From head to first content", labels=["chain"]
    )
    queued = HistogramMetricFamily(
        "gateway_queue_wait_seconds", "Waiting for a slot, of those who waited", labels=["chain"]
    )
    shed = _counter("gateway_shed", "Requests sent away under load", "chain", "reason")
    for name, cell in chains.items():
        for (api, status), count in cell.requests.copy().items():
            requests.add_metric([name, api, str(status)], count)
        for reason, count in cell.shed.items():
            shed.add_metric([name, reason], count)
        if name == UNKNOWN:
            continue
        answers.add_metric([name, "first"], cell.answers[0])
        answers.add_metric([name, "fallback"], cell.answers[1])
        for stream, histogram in zip(("false", "true"), cell.seconds, strict=True):
            buckets, total = histogram.buckets()
            seconds.add_metric([name, stream], buckets, total)
        buckets, total = cell.first.buckets()
        first.add_metric([name], buckets, total)
        buckets, total = cell.queued.buckets()
        queued.add_metric([name], buckets, total)
    yield from (requests, answers, seconds, first, queued, shed)


def _of_routing(chains: Mapping[str, ChainCell]) -> Iterator[Metric]:
    attempts = _counter(
        "gateway_attempts", "Upstream calls made, by outcome", "chain", "target", "outcome"
    )
    skips = _counter(
        "gateway_skips", "Upstream calls not made, and why", "chain", "target", "reason"
    )
    fallbacks = _counter(
        "gateway_fallbacks", "Steps forward in a chain", "chain", "from_target", "reason"
    )
    exhausted = _counter("gateway_chain_exhausted", "Requests nobody answered", "chain")
    for name, cell in chains.items():
        if name == UNKNOWN:
            continue
        exhausted.add_metric([name], cell.exhausted)
        for target, pair in cell.pairs.copy().items():
            for outcome, count in pair.outcomes.items():
                attempts.add_metric([name, target, outcome], count)
        for (target, reason), count in cell.skips.copy().items():
            skips.add_metric([name, target, reason], count)
        for (target, reason), count in cell.fallbacks.copy().items():
            fallbacks.add_metric([name, target, reason], count)
    yield from (attempts, skips, fallbacks, exhausted)


def _of_spending(chains: Mapping[str, ChainCell]) -> Iterator[Metric]:
    tokens = _counter("gateway_tokens", "Tokens of upstream calls", "chain", "target", "kind")
    cost = _counter("gateway_cost_usd", "Dollars of upstream calls", "chain", "target")
    for name, cell in chains.items():
        for target, pair in cell.pairs.copy().items():
            for kind, count in zip(TOKEN_KINDS, pair.tokens, strict=True):
                tokens.add_metric([name, target, kind], count)
            cost.add_metric([name, target], pair.cost / NANO)
    yield from (tokens, cost)


def _looked_up(gauges: Gauges) -> Iterator[Metric]:
    by_name = (
        ("gateway_inflight_requests", "Requests under way", "chain", gauges.inflight_requests),
        (
            "gateway_inflight_attempts",
            "Upstream calls under way",
            "target",
            gauges.inflight_attempts,
        ),
        ("gateway_queue_depth", "Requests waiting for a slot", "chain", gauges.queue_depth),
    )
    for name, told, label, look in by_name:
        if look is not None:
            family = _gauge(name, told, label)
            for value, count in look().items():
                family.add_metric([value], count)
            yield family
    if gauges.headroom is not None:
        family = _gauge(
            "gateway_limit_headroom_ratio", "What is left of a target's limit", "target", "kind"
        )
        for target, kind, ratio in gauges.headroom():
            family.add_metric([target, kind], ratio)
        yield family
    alone = (
        (
            "gateway_ledger_drift_nano_usd",
            "Sum of the lines less what was counted",
            gauges.ledger_drift,
        ),
        ("gateway_event_loop_lag_seconds", "How late the event loop is", gauges.loop_lag),
        ("gateway_state_degraded", "1 while the shared store is lost", gauges.state_degraded),
    )
    for name, told, figure in alone:
        if figure is not None:
            family = _gauge(name, told)
            family.add_metric([], figure())
            yield family
