"""Price rows: the file's own, then the shipped catalogue (genai-prices); whole nano-dollars.

The catalogue is loaded only when a target has no price in the file: it costs up to 0.4 s and 10 MB.
"""

import functools
import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import ROUND_CEILING, Decimal
from typing import Any

from gateway.config.models import DearerRow, PriceRow
from gateway.core.usage import NANO, Price

FREE = Price("free", 0, 0)
SIMULATED = Price("sim", NANO // 4, 2 * NANO)

_FIELDS = {  # ours: the catalogue's
    "input": "input_mtok",
    "output": "output_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write_5m": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
    "reasoning": "output_reasoning_mtok",
    "audio_input": "input_audio_mtok",
    "audio_output": "output_audio_mtok",
}


@dataclass(frozen=True, slots=True)
class Known:
    """What the catalogue says of a model; `prices` may be empty."""

    prices: tuple[Price, ...] = ()
    context: int | None = None
    max_output: int | None = None


NOTHING_KNOWN = Known()


def midnight(day: date) -> float:
    """The first second of a day (UTC), since the epoch."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


def stated(name: str, rows: Sequence[PriceRow]) -> tuple[Price, ...]:
    """The rows of the file for `provider/model`, oldest first."""
    return tuple(sorted((_stated(name, row) for row in rows), key=lambda price: price.since))


def _stated(name: str, row: PriceRow) -> Price:
    since = midnight(row.from_) if row.from_ else 0.0
    price = Price(
        f"yaml:{name}@{row.from_}" if row.from_ else f"yaml:{name}",
        since=since,
        request=row.request,
        **{field: getattr(row, field) for field in _FIELDS},
    )
    if row.above is None:
        return price
    return replace(price, above=((row.above.context, _dearer(price, row.above)),))


def _dearer(price: Price, row: DearerRow) -> Price:
    said = {field: getattr(row, field) for field in _FIELDS if getattr(row, field) is not None}
    return replace(price, id=f"{price.id}>{row.context}", **said)


def known(provider: str | None, base_url: str, model: str) -> Known:
    """What the catalogue has for a model.

    Args:
        provider: the catalogue's own name of the provider; None: found by `base_url`.
        base_url: matched with the catalogue's patterns; a self-hosted server is in none.
        model: as the provider calls it.
    """
    try:
        found, info = _catalogue().find_provider_model(model, None, provider, base_url or None)
    except LookupError:
        return NOTHING_KNOWN
    name = f"genai:{found.id}/{info.id}@{_version()}"
    return Known(
        _dated(name, info.prices),
        getattr(info, "context_window", None),
        getattr(info, "max_output", None),
    )


@functools.cache
def _catalogue() -> Any:
    return importlib.import_module("genai_prices.data_snapshot").get_snapshot()


@functools.cache
def _version() -> str:
    return importlib.metadata.version("genai-prices")


def _dated(name: str, rows: Any) -> tuple[Price, ...]:
    """A model's rows by their first day; the first row holds from the beginning.

    Rows for hours of the day are left out: they are discounts, and a price here holds all day.
    """
    if not isinstance(rows, list):
        price = _converted(name, 0.0, rows)
        return (price,) if price else ()
    prices: dict[float, Price] = {}
    for index, row in enumerate(rows):
        first = getattr(row.constraint, "start_date", None)
        if row.constraint is not None and first is None:
            continue
        since = midnight(first) if first is not None and index else 0.0
        price = _converted(f"{name}#{first}" if since else name, since, row.prices)
        if price is not None:
            prices[since] = price
    return tuple(prices[since] for since in sorted(prices))


def _converted(name: str, since: float, rates: Any) -> Price | None:
    """One row; None if it does not price input tokens (models paid by the hour or the page)."""
    said = {ours: getattr(rates, theirs, None) for ours, theirs in _FIELDS.items()}
    if said["input"] is None:
        return None
    thresholds = sorted({tier.start for rate in said.values() for tier in _tiers(rate)})
    per_thousand = getattr(rates, "requests_kcount", None)
    request = _nano(per_thousand / 1000) if isinstance(per_thousand, Decimal) else 0
    base = _row(name, said, 0, request=request, since=since)
    above = tuple(
        (start, _row(f"{name}>{start}", said, start, request=request, since=since))
        for start in thresholds
    )
    return replace(base, above=above)


def _tiers(rate: Any) -> Sequence[Any]:
    return getattr(rate, "tiers", ())


def _row(name: str, said: Mapping[str, Any], start: int, *, request: int, since: float) -> Price:
    rates: dict[str, Any] = {field: _rate(rate, start) for field, rate in said.items()}
    return Price(
        name,
        input=rates.pop("input") or 0,
        output=rates.pop("output") or 0,
        request=request,
        since=since,
        **rates,
    )


def _rate(rate: Any, start: int) -> int | None:
    """Nano-dollars per million tokens for a prompt of more than `start` tokens."""
    if rate is None:
        return None
    if isinstance(rate, Decimal):
        return _nano(rate)
    found: Decimal = rate.base
    if start:
        for tier in rate.tiers:
            if tier.start <= start:
                found = tier.price
    return _nano(found)


def _nano(dollars: Decimal) -> int:
    """Rounded up: never cheaper than the provider says."""
    return int((dollars * NANO).to_integral_value(rounding=ROUND_CEILING))
