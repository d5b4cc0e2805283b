"""Counts by name and label, exactly those of the contract."""

import asyncio
import sys
import threading
from datetime import date

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.alerts import Mover, SpendRule
from gateway.core.attempt import Exchange
from gateway.core.events import (
    AttemptEnded,
    BreakerMoved,
    KeyAside,
    Lifecycle,
    Reloaded,
    RequestEnded,
    SpendAlert,
    StateTrouble,
)
from gateway.core.snapshot import Snapshot
from gateway.core.target import Cause
from gateway.core.usage import UNKNOWN
from gateway.errors import NotFound, Overloaded, RateLimited, UpstreamFailed
from gateway.telemetry.metrics import Gauges, Metrics
from tests.unit.telemetry.stories import (
    CANARY,
    CHAIN,
    CLAUDE,
    DIRECT,
    GPT,
    OTHER,
    SNAPSHOT,
    SPARE,
    TARGETS,
    exchange,
    skipped,
)

NAMES = {
    "gateway_requests_total": ("api", "chain", "status"),
    "gateway_answers_total": ("by", "chain"),
    "gateway_request_duration_seconds": ("chain", "stream"),
    "gateway_time_to_first_token_seconds": ("chain",),
    "gateway_overhead_seconds": ("phase",),
    "gateway_attempts_total": ("chain", "outcome", "target"),
    "gateway_attempt_duration_seconds": ("target",),
    "gateway_skips_total": ("chain", "reason", "target"),
    "gateway_fallbacks_total": ("chain", "from_target", "reason"),
    "gateway_chain_exhausted_total": ("chain",),
    "gateway_breaker_state": ("target",),
    "gateway_breaker_transitions_total": ("target", "to"),
    "gateway_inflight_requests": ("chain",),
    "gateway_inflight_attempts": ("target",),
    "gateway_queue_depth": ("chain",),
    "gateway_queue_wait_seconds": ("chain",),
    "gateway_shed_total": ("chain", "reason"),
    "gateway_limit_rejections_total": ("kind", "scope"),
    "gateway_limit_headroom_ratio": ("kind", "target"),
    "gateway_tokens_total": ("chain", "kind", "target"),
    "gateway_cost_usd_total": ("chain", "target"),
    "gateway_unpriced_requests_total": ("target",),
    "gateway_ledger_drift_nano_usd": (),
    "gateway_spend_alerts_total": (),
    "gateway_state_errors_total": ("backend", "op"),
    "gateway_event_loop_lag_seconds": (),
    "gateway_state_degraded": (),
    "gateway_config_reload_success": (),
    "gateway_config_last_reload_timestamp_seconds": (),
    "gateway_workers": ("state",),
    "gateway_worker_restarts_total": (),
    "gateway_build_info": ("config_hash", "python", "version"),
}
ALERT = SpendAlert(Mover("search-prod", "u_1", 5, 1, 7), date(2027, 1, 15), SpendRule())
GAUGES = Gauges(
    inflight_requests=lambda: {"default": 3},
    inflight_attempts=lambda: {"gpt": 2},
    queue_depth=lambda: {"default": 1},
    headroom=lambda: [("gpt", "rpm", 0.25)],
    ledger_drift=lambda: 0,
    loop_lag=lambda: 0.002,
    state_degraded=lambda: 1.0,
)


@pytest.fixture
def metrics():
    made = Metrics("0.1.0", GAUGES)
    made.use(SNAPSHOT, 1_800_000_000.0)
    return made


def read(metrics):
    """(name, labels) -> value."""
    told = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            told[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return told


def value(metrics, name, **labels):
    return read(metrics).get((name, tuple(sorted(labels.items()))))


def hear(metrics, ended):
    for attempt in ended.attempts:
        metrics.heard(AttemptEnded(ended, attempt))
    metrics.heard(RequestEnded(ended, 1_800_000_000.0))
    return ended


def everything(metrics):
    hear(metrics, exchange((GPT, None)))
    hear(metrics, exchange((GPT, Cause.SERVER_ERROR), (CLAUDE, None), stream=True))
    hear(metrics, skipped(exchange((CLAUDE, None)), GPT))
    refused = RateLimited("no", code="rpm_exceeded", scope="key")
    hear(metrics, exchange(status=429, error=refused))
    waited = exchange((GPT, None))
    waited.waited = 0.4
    hear(metrics, waited)
    metrics.heard(BreakerMoved("gpt", "gpt", "closed", "open", "5 failures"))
    metrics.heard(StateTrouble("sqlite", "ship", "disk full"))
    metrics.heard(ALERT)


def test_the_names_and_labels_are_those_of_the_contract(metrics):
    everything(metrics)
    seen = {}
    for name, labels in read(metrics):
        base = name
        for ending in ("_bucket", "_count", "_sum"):
            if name.removesuffix(ending) in NAMES:
                base = name.removesuffix(ending)
        seen.setdefault(base, set()).update(label for label, _ in labels if label != "le")
    assert {name: tuple(sorted(labels)) for name, labels in seen.items()} == NAMES


def test_nothing_of_a_request_is_told(metrics):
    everything(metrics)
    exposition = metrics.render().decode()
    for secret in (CANARY, "req_1", "search-prod", "u_1", "s_1", "_created"):
        assert secret not in exposition


def test_an_alert_of_spending_is_counted_and_nobody_named(metrics):
    assert read(metrics)["gateway_spend_alerts_total", ()] == 0
    metrics.heard(ALERT)
    assert read(metrics)["gateway_spend_alerts_total", ()] == 1


def test_what_alerts_rate_starts_at_zero(metrics):
    for name, labels in (
        ("gateway_requests_total", {"chain": "default", "api": "chat", "status": "200"}),
        ("gateway_requests_total", {"chain": "default", "api": "chat", "status": "502"}),
        ("gateway_chain_exhausted_total", {"chain": "default"}),
        ("gateway_answers_total", {"chain": "default", "by": "fallback"}),
        ("gateway_attempts_total", {"chain": "default", "target": "gpt", "outcome": "ok"}),
        ("gateway_attempts_total", {"chain": "default", "target": "gpt", "outcome": "timeout"}),
        ("gateway_shed_total", {"chain": "default", "reason": "queue_full"}),
        ("gateway_breaker_state", {"target": "gpt"}),
        ("gateway_unpriced_requests_total", {"target": "gpt"}),
        ("gateway_cost_usd_total", {"chain": "default", "target": "claude"}),
        ("gateway_config_reload_success", {}),
        ("gateway_time_to_first_token_seconds_bucket", {"chain": "default", "le": "+Inf"}),
    ):
        assert value(metrics, name, **labels) in ({0.0} if "success" not in name else {1.0})


def test_an_answer_counts_its_attempts_tokens_and_cost(metrics):
    hear(metrics, exchange((GPT, Cause.SERVER_ERROR), (CLAUDE, None), stream=True))
    told = read(metrics)

    def of(name, **labels):
        return told[name, tuple(sorted(labels.items()))]

    assert of("gateway_requests_total", chain="default", api="chat", status="200") == 1
    assert of("gateway_answers_total", chain="default", by="fallback") == 1
    assert of("gateway_attempts_total", chain="default", target="gpt", outcome="server_error") == 1
    assert of("gateway_attempts_total", chain="default", target="claude", outcome="ok") == 1
    assert (
        of("gateway_fallbacks_total", chain="default", from_target="gpt", reason="server_error")
        == 1
    )
    assert of("gateway_request_duration_seconds_count", chain="default", stream="true") == 1
    assert (
        of("gateway_request_duration_seconds_bucket", chain="default", stream="true", le="0.25")
        == 0
    )
    assert (
        of("gateway_request_duration_seconds_bucket", chain="default", stream="true", le="0.5") == 1
    )
    assert of("gateway_time_to_first_token_seconds_count", chain="default") == 1
    assert of("gateway_tokens_total", chain="default", target="claude", kind="input") == 10
    assert of("gateway_tokens_total", chain="default", target="claude", kind="cache_read") == 4
    assert of("gateway_cost_usd_total", chain="default", target="claude") == 0.00012
    assert of("gateway_overhead_seconds_bucket", phase="total", le="0.005") == 1
    assert of("gateway_overhead_seconds_bucket", phase="plan", le="0.0025") == 1


def test_a_retry_on_the_same_target_is_no_fallback(metrics):
    hear(metrics, exchange((GPT, Cause.CONNECT), (SPARE, None)))
    assert value(metrics, "gateway_answers_total", chain="default", by="first") == 1
    assert (
        value(
            metrics, "gateway_fallbacks_total", chain="default", from_target="gpt", reason="connect"
        )
        is None
    )


def test_a_skip_counts_and_is_a_step_forward(metrics):
    hear(metrics, skipped(exchange((CLAUDE, None)), GPT))
    assert (
        value(metrics, "gateway_skips_total", chain="default", target="gpt", reason="breaker_open")
        == 1
    )
    assert value(metrics, "gateway_answers_total", chain="default", by="fallback") == 1


@pytest.mark.parametrize(
    ("error", "status", "exhausted"),
    [
        (UpstreamFailed("no"), 502, 1),
        (Overloaded("no", code="no_healthy_target"), 503, 1),
        (RateLimited("no", code="chain_exhausted"), 429, 1),
        (RateLimited("no"), 429, 0),
        (NotFound("no"), 404, 0),
    ],
)
def test_an_exhausted_chain_counts(metrics, error, status, exhausted):
    hear(metrics, exchange((GPT, Cause.SERVER_ERROR), status=status, error=error))
    assert value(metrics, "gateway_chain_exhausted_total", chain="default") == exhausted


def test_a_stream_that_was_cut_is_no_exhausted_chain(metrics):
    ended = exchange((GPT, None), error=UpstreamFailed("cut", code="cut_stream"))
    hear(metrics, ended)
    assert value(metrics, "gateway_chain_exhausted_total", chain="default") == 0
    assert value(metrics, "gateway_answers_total", chain="default", by="first") == 0


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("queue_full", "queue_full"),
        ("concurrency_exceeded", "concurrency"),
        ("draining", "draining"),
    ],
)
def test_shedding_counts(metrics, code, reason):
    hear(metrics, exchange(status=429, error=RateLimited("no", code=code, scope="key")))
    assert value(metrics, "gateway_shed_total", chain="default", reason=reason) == 1


def test_what_the_guard_sheds_counts_apart(metrics):
    hear(metrics, exchange(status=503, error=Overloaded("lag", scope="process")))
    hear(metrics, exchange(status=503, error=Overloaded("too many at a time")))
    assert value(metrics, "gateway_shed_total", chain="default", reason="guard") == 1
    assert value(metrics, "gateway_shed_total", chain="default", reason="concurrency") == 1


def test_a_caller_s_limits_count_and_a_target_s_do_not(metrics):
    hear(metrics, exchange(status=429, error=RateLimited("no", code="tpm_exceeded", scope="team")))
    hear(metrics, exchange(status=429, error=RateLimited("no", scope="target")))
    assert value(metrics, "gateway_limit_rejections_total", scope="team", kind="tpm") == 1
    assert (
        sum(v for (n, _), v in read(metrics).items() if n == "gateway_limit_rejections_total") == 1
    )


def test_unknown_models_and_paths_make_no_series(metrics):
    before = len(read(metrics))
    for number in range(50):
        ended = Exchange(f"req_{number}", f"/scan/{number}", 1.0)
        ended.chain_name = f"model-{number}"
        ended.status = 404
        ended.ended = 1.001
        metrics.heard(RequestEnded(ended, 1.0))
    assert len(read(metrics)) == before + 1
    assert (
        value(metrics, "gateway_requests_total", chain="_unknown", api="_other", status="404") == 50
    )


def test_a_direct_target_gets_its_series_when_it_is_used(metrics):
    assert value(metrics, "gateway_chain_exhausted_total", chain="openai/gpt") is None
    hear(metrics, exchange((GPT, None), chain=DIRECT))
    assert value(metrics, "gateway_answers_total", chain="openai/gpt", by="first") == 1
    metrics.use(SNAPSHOT)
    assert value(metrics, "gateway_answers_total", chain="openai/gpt", by="first") == 1


def test_unpriced_calls_count(metrics):
    ended = exchange((GPT, None))
    ended.attempts[0].cost = UNKNOWN
    hear(metrics, ended)
    assert value(metrics, "gateway_unpriced_requests_total", target="gpt") == 1
    assert value(metrics, "gateway_cost_usd_total", chain="default", target="gpt") == 0


def test_the_worst_breaker_of_a_target_is_told(metrics):
    metrics.heard(BreakerMoved("gpt", "gpt", "closed", "open", ""))
    metrics.heard(BreakerMoved("gpt#spare", "gpt", "closed", "half-open", ""))
    assert value(metrics, "gateway_breaker_state", target="gpt") == 2
    assert value(metrics, "gateway_breaker_transitions_total", target="gpt", to="open") == 1
    metrics.heard(BreakerMoved("gpt", "gpt", "open", "closed", ""))
    assert value(metrics, "gateway_breaker_state", target="gpt") == 1


def test_a_reload_keeps_the_counts_of_what_stays_and_drops_what_left(metrics):
    hear(metrics, exchange((GPT, None)))
    hear(metrics, exchange((CLAUDE, None), chain=OTHER))
    metrics.use(Snapshot("new", {"default": CHAIN}, {}, TARGETS), 1_800_000_100.0)
    assert value(metrics, "gateway_requests_total", chain="default", api="chat", status="200") == 1
    assert not any(("chain", "other") in labels for _, labels in read(metrics))
    hear(metrics, exchange((CLAUDE, None), chain=OTHER))  # was under way
    assert value(metrics, "gateway_requests_total", chain="_unknown", api="chat", status="200") == 1
    assert (
        value(
            metrics,
            "gateway_build_info",
            version="0.1.0",
            config_hash="new",
            python=".".join(map(str, sys.version_info[:3])),
        )
        == 1
    )


def test_a_reload_that_failed_is_told(metrics):
    metrics.heard(Reloaded("abc", "line 3: no such key", 1_800_000_200.0))
    assert value(metrics, "gateway_config_reload_success") == 0
    assert value(metrics, "gateway_config_last_reload_timestamp_seconds") == 1_800_000_000.0
    metrics.heard(Reloaded("abc", "", 1_800_000_300.0))
    assert value(metrics, "gateway_config_reload_success") == 1
    assert value(metrics, "gateway_config_last_reload_timestamp_seconds") == 1_800_000_300.0


def test_what_is_looked_up_is_told_and_absent_without(metrics):
    assert value(metrics, "gateway_inflight_requests", chain="default") == 3
    assert value(metrics, "gateway_limit_headroom_ratio", target="gpt", kind="rpm") == 0.25
    bare = Metrics()
    bare.use(SNAPSHOT)
    assert value(bare, "gateway_event_loop_lag_seconds") is None


async def test_what_belongs_to_the_loop_is_looked_up_there():
    asked = []

    def depth():
        asked.append(threading.get_ident())
        return {"default": 1}

    made = Metrics("0", Gauges(queue_depth=depth))
    made.use(SNAPSHOT)
    exposition = await asyncio.to_thread(made.render)
    assert asked == [threading.get_ident()]
    assert b'gateway_queue_depth{chain="default"} 1.0' in exposition


def test_troubles_are_bounded(metrics):
    for number in range(200):
        metrics.heard(StateTrouble("sqlite", f"op-{number}", ""))
    metrics.heard(KeyAside("gpt", "openai", "main", "auth", 60.0))
    metrics.heard(Lifecycle("started"))
    assert sum(n == "gateway_state_errors_total" for n, _ in read(metrics)) == 64


def test_it_may_be_rendered_while_it_counts(metrics):
    stop = threading.Event()
    failures = []

    def scrape():
        while not stop.is_set():
            try:
                metrics.render()
            except RuntimeError as error:
                failures.append(error)
                return

    thread = threading.Thread(target=scrape)
    thread.start()
    for number in range(2000):
        ended = exchange((GPT, None), status=200 + number % 300)
        hear(metrics, ended)
    stop.set()
    thread.join()
    assert not failures
