"""Several workers' metrics as one exposition: what is counted adds up, of gauges the worst shows.

Figures are JSON: families of samples, as a collector yields them.
"""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gateway.wire import json

COUNTED = frozenset({"counter", "histogram"})
ADDED = frozenset(
    {
        "gateway_inflight_requests",
        "gateway_inflight_attempts",
        "gateway_queue_depth",
        "gateway_workers",
    }
)
"""Gauges of which each worker has its part."""
LEAST = frozenset({"gateway_config_reload_success", "gateway_limit_headroom_ratio"})
"""Gauges of which the smallest is the worst; of all others it is the largest."""

Labels = tuple[tuple[str, str], ...]


class Family(json.Struct, array_like=True):
    """One metric. `samples`: name, labels, value."""

    name: str
    type: str
    told: str
    samples: list[tuple[str, dict[str, str], float]]


def of(metrics: Iterable[Metric]) -> list[Family]:
    """What a collector yields."""
    return [
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            [(sample.name, sample.labels, sample.value) for sample in metric.samples],
        )
        for metric in metrics
    ]


def write(families: Iterable[Family]) -> bytes:
    return json.dumps([json.fields(family) for family in families])


def read(figures: bytes) -> list[Family]:
    """b"" is nothing."""
    return json.decode(figures, list[Family]) if figures else []


def counted(families: Iterable[Family]) -> list[Family]:
    """What may only grow: it stays when the worker that counted it is gone."""
    return [family for family in families if family.type in COUNTED]


def add(figures: Iterable[Sequence[Family]]) -> list[Family]:
    """One of each family; samples with the same labels become one."""
    sums: dict[str, tuple[Family, dict[tuple[str, Labels], float]]] = {}
    for families in figures:
        for family in families:
            _, samples = sums.setdefault(family.name, (family, {}))
            for name, labels, value in family.samples:
                place = (name, tuple(labels.items()))
                before = samples.get(place)
                samples[place] = value if before is None else _both(family, before, value)
    return [
        Family(
            family.name,
            family.type,
            family.told,
            [(name, dict(labels), value) for (name, labels), value in samples.items()],
        )
        for family, samples in sums.values()
    ]


def _both(family: Family, a: float, b: float) -> float:
    if family.type in COUNTED or family.name in ADDED:
        return a + b
    return min(a, b) if family.name in LEAST else max(a, b)


def exposition(families: Iterable[Family]) -> bytes:
    """Text format 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(tuple(families)))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.told, family.type)
            for name, labels, value in family.samples:
                metric.add_sample(name, labels, value)
            yield metric
