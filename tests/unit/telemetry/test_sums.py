"""Workers' metrics as one: sums are sums however the requests fell, and a gauge shows the worst."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.events import AttemptEnded, BreakerMoved, Reloaded, RequestEnded
from gateway.core.target import Cause
from gateway.telemetry import sums
from gateway.telemetry.metrics import Gauges, Metrics
from tests.unit.telemetry.stories import CLAUDE, GPT, SNAPSHOT, exchange

GAUGES = Gauges(
    inflight_requests=lambda: {"default": 3},
    headroom=lambda: [("gpt", "rpm", 0.25)],
    loop_lag=lambda: 0.002,
)
STORIES = (
    lambda: exchange((GPT, None)),
    lambda: exchange((GPT, Cause.SERVER_ERROR), (CLAUDE, None), stream=True),
    lambda: exchange((GPT, Cause.TIMEOUT)),
)


def worker(before: bytes = b"", gauges: Gauges = GAUGES, restarts: int = 0) -> Metrics:
    made = Metrics("0.1.0", gauges, restarts, before)
    made.use(SNAPSHOT, 1_800_000_000.0)
    return made


def hear(metrics: Metrics, *stories: int) -> Metrics:
    for number in stories:
        ended = STORIES[number]()
        for attempt in ended.attempts:
            metrics.heard(AttemptEnded(ended, attempt))
        metrics.heard(RequestEnded(ended, 1_800_000_000.0))
    return metrics


def read(exposition: bytes, *, counted: bool = True) -> dict[tuple[str, frozenset], float]:
    """(name, labels) -> value; of what is counted, or all."""
    return {
        (sample.name, frozenset(sample.labels.items())): pytest.approx(sample.value)
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
        if not counted or family.type in sums.COUNTED
    }


def value(exposition: bytes, name: str, **labels: str) -> float | None:
    found = read(exposition, counted=False).get((name, frozenset(labels.items())))
    return None if found is None else found.expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, len(STORIES) - 1)), max_size=20))
@settings(max_examples=15, deadline=None)
def test_it_does_not_matter_who_served(served: list[tuple[int, int]]) -> None:
    """Nor whether a worker died since it was last asked: its place goes on where it was."""
    workers = [worker() for _ in range(4)]
    for who, what in served:
        hear(workers[who], what)
    alone = hear(worker(), *(what for _, what in served))
    told = [one.figures() for one in workers]
    everything = read(alone.render())
    assert read(alone.summed(told, [])) == everything
    assert read(alone.summed(told[:2], told[2:])) == everything
    told[3] = worker(before=told[3]).figures()
    assert read(alone.summed(told, [])) == everything


def test_gauges_add_up_where_each_has_a_part_and_show_the_worst_elsewhere() -> None:
    one, other = worker(), worker(gauges=Gauges(
        inflight_requests=lambda: {"default": 4},
        headroom=lambda: [("gpt", "rpm", 0.5)],
        loop_lag=lambda: 0.5,
    ), restarts=2)  # fmt: skip
    other.heard(BreakerMoved("gpt", "gpt", "closed", "open", ""))
    other.heard(Reloaded("c", "line 3", 1_900_000_000.0))
    told = one.summed([one.figures(), other.figures()], [])
    assert value(told, "gateway_inflight_requests", chain="default") == 7
    assert value(told, "gateway_limit_headroom_ratio", target="gpt", kind="rpm") == 0.25
    assert value(told, "gateway_event_loop_lag_seconds") == 0.5
    assert value(told, "gateway_breaker_state", target="gpt") == 2
    assert value(told, "gateway_config_reload_success") == 0
    assert value(told, "gateway_worker_restarts_total") == 2
    assert value(told, "gateway_workers", state="answering") == 2
    assert value(told, "gateway_workers", state="silent") == 0
    assert told.count(b"\ngateway_build_info{") == 1


def test_of_a_worker_that_hangs_only_what_it_had_counted_is_told() -> None:
    one, hanging = hear(worker(), 0), hear(worker(), 0, 0)
    told = one.summed([one.figures()], [hanging.figures(), b""])
    assert value(told, "gateway_workers", state="answering") == 1
    assert value(told, "gateway_workers", state="silent") == 2
    assert value(told, "gateway_inflight_requests", chain="default") == 3
    assert value(told, "gateway_requests_total", chain="default", api="chat", status="200") == 3


def test_a_restart_is_counted_once_however_many_follow() -> None:
    third = worker(worker(worker().figures(), restarts=1).figures(), restarts=2)
    assert value(third.summed([third.figures()], []), "gateway_worker_restarts_total") == 2


def test_the_sum_of_one_is_its_own_exposition() -> None:
    alone = hear(worker(), 0, 1, 2)
    assert alone.summed([alone.figures()], []) == alone.render()
