"""A provider's account of a day and a model against ours, token by token and nano-dollar.

Pure: where the figures come from is `gateway.state`'s and the command line's business. Source:
gateway.md 6, "Reconcile".
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import NamedTuple

from gateway.core.usage import NANO

SORTS = ("answers", "failures", "hedges", "cancelled", "drills", "estimates")
METRICS = ("input", "output", "cached", "cost")  # tokens, and nano-dollars
NOTHING = Fraction(0)

_DATED = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|latest)\Z")


class Figures(NamedTuple):
    """What some lines of the ledger say together.

    `priced` of the calls cost something, `unknown` had no price and are not in `nano_usd`.
    """

    calls: int = 0
    input: int = 0
    output: int = 0
    cached: int = 0
    nano_usd: int = 0
    priced: int = 0
    unknown: int = 0

    def plus(self, other: "Figures") -> "Figures":
        return Figures(*(a + b for a, b in zip(self, other, strict=True)))


class Booked(NamedTuple):
    """One sort of lines of a day, a provider and a model."""

    day: date
    provider: str
    model: str
    sort: str
    figures: Figures


class Stated(NamedTuple):
    """A row of a provider's export.

    Args:
        figures: by metric, those the row tells; `cost` in nano-dollars, exact.
        rounding: nano-dollars by which the cost may be off because it was rounded.
    """

    day: date
    model: str
    figures: Mapping[str, Fraction]
    rounding: Fraction = NOTHING


@dataclass(frozen=True, slots=True)
class Match:
    """A day and a model: what the provider states, and what we booked by sort of line."""

    day: date
    model: str
    stated: Mapping[str, Fraction]
    booked: Mapping[str, Figures]
    rounding: Fraction = NOTHING
    whole: Figures = field(init=False)

    def __post_init__(self) -> None:
        total = Figures()
        for figures in self.booked.values():
            total = total.plus(figures)
        object.__setattr__(self, "whole", total)

    @property
    def unexplained(self) -> Mapping[str, Fraction]:
        """By metric the provider tells: its figure less ours; 0 where each of ours is his.

        A line's cost is rounded up to the next nano-dollar, so that ours may be higher by less
        than one for each call that cost something.
        """
        whole = self.whole
        ours = {
            "input": whole.input,
            "output": whole.output,
            "cached": whole.cached,
            "cost": whole.nano_usd,
        }
        less = {metric: stated - ours[metric] for metric, stated in self.stated.items()}
        if "cost" in less and -whole.priced - self.rounding <= less["cost"] <= self.rounding:
            less["cost"] = NOTHING
        return less

    @property
    def explained(self) -> bool:
        return not any(self.unexplained.values())


def matches(
    stated: Iterable[Stated], booked: Iterable[Booked], metrics: Sequence[str]
) -> list[Match]:
    """Every day and model of either side, in order.

    Args:
        stated: rows of the export; several of a day and a model are added up.
        booked: lines of the same days and of that provider.
        metrics: what the export tells; a day and model it leaves out counts 0 of each.
    """
    rows, lines = list(stated), list(booked)
    names = _same({row.model for row in rows}, {line.model for line in lines})
    theirs: dict[tuple[date, str], dict[str, Fraction]] = {}
    rounding: dict[tuple[date, str], Fraction] = {}
    ours: dict[tuple[date, str], dict[str, Figures]] = {}
    for row in rows:
        place = (row.day, names[row.model])
        sums = theirs.setdefault(place, dict.fromkeys(metrics, NOTHING))
        for metric in metrics:
            sums[metric] += row.figures.get(metric, NOTHING)
        rounding[place] = rounding.get(place, NOTHING) + row.rounding
    for line in lines:
        sorts = ours.setdefault((line.day, names[line.model]), {})
        sorts[line.sort] = sorts.get(line.sort, Figures()).plus(line.figures)
    return [
        Match(
            *place,
            theirs.get(place, dict.fromkeys(metrics, NOTHING)),
            {sort: ours[place][sort] for sort in SORTS if sort in ours.get(place, {})},
            rounding.get(place, NOTHING),
        )
        for place in sorted(theirs.keys() | ours.keys())
    ]


def dollars(nano: Fraction) -> str:
    """Nano-dollars as an exact decimal; what comes from decimals is one."""
    with localcontext() as context:
        context.prec = 60
        told = Decimal(nano.numerator) / Decimal(nano.denominator) / NANO
        return f"{told.normalize():f}"


def _same(theirs: set[str], ours: set[str]) -> dict[str, str]:
    """Every name -> the name under which it is compared.

    We ask for `gpt-5-mini`, the export says `gpt-5-mini-2025-08-07` or `GPT 5 mini`: names that
    are alike without their date are one model, unless each of theirs is one of ours to the letter.
    """
    alike: dict[str, set[str]] = {}
    for name in theirs | ours:
        alike.setdefault(_plain(name), set()).add(name)
    found: dict[str, str] = {}
    for names in alike.values():
        one = min(names & ours or names, key=lambda name: (len(name), name))
        exact = names & theirs <= ours
        found.update({name: name if exact else one for name in names})
    return found


def _plain(name: str) -> str:
    return _DATED.sub("", re.sub(r"[ ._]", "-", name.strip().lower()))
