"""A provider's figures against ours: nothing else than what is really left over is unexplained."""

from datetime import date
from fractions import Fraction
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.reconcile import SORTS, Booked, Figures, Match, Stated, dollars, matches

DAY = date(2026, 9, 1)
ALL = ("input", "output", "cached", "cost")


def stated(model: str = "m", day: date = DAY, rounding: int = 0, **figures: int) -> Stated:
    exact = {metric: Fraction(figure) for metric, figure in figures.items()}
    return Stated(day, model, exact, Fraction(rounding))


def line(model: str = "m", sort: str = "answers", day: date = DAY, **figures: Any) -> Booked:
    return Booked(day, "openai", model, sort, Figures(**{"calls": 1, **figures}))


def one(rows: list[Stated], lines: list[Booked], *metrics: str) -> Match:
    (match,) = matches(rows, lines, metrics or ALL)
    return match


COUNT = st.integers(0, 10**12)
LINES = st.lists(
    st.builds(
        lambda sort, i, o, c, n: line(sort=sort, input=i, output=o, cached=c, nano_usd=n),
        st.sampled_from(SORTS), COUNT, COUNT, COUNT, COUNT,
    ),
    min_size=1,
)  # fmt: skip


@given(LINES, st.sampled_from(ALL), st.integers(-5, 5), st.integers(1, 4))
def test_exactly_what_is_left_over_is_unexplained(
    lines: list[Booked], metric: str, off: int, parts: int
) -> None:
    """However the provider cuts his figures into rows, and however our lines are sorted."""
    whole = {
        "input": sum(line.figures.input for line in lines),
        "output": sum(line.figures.output for line in lines),
        "cached": sum(line.figures.cached for line in lines),
        "cost": sum(line.figures.nano_usd for line in lines),
    }
    whole[metric] += off
    rows = [stated(**{name: figure // parts for name, figure in whole.items()})] * (parts - 1)
    rows += [stated(**{n: f - (f // parts) * (parts - 1) for n, f in whole.items()})]
    match = one(rows, lines)
    assert match.unexplained == dict.fromkeys(ALL, 0) | {metric: off}
    assert match.explained is (off == 0)


def test_a_call_s_cost_is_rounded_up_and_that_is_no_difference() -> None:
    lines = [line(calls=3, nano_usd=100, priced=2)]
    for cost, left in ((101, 1), (100, 0), (Fraction(197, 2), 0), (98, 0), (97, -3)):
        match = one([stated(cost=cost)], lines, "cost")  # type: ignore[arg-type]
        assert match.unexplained["cost"] == left
    rounded = [stated(cost=105, rounding=5)]
    assert one(rounded, lines, "cost").explained
    assert not one([stated(cost=106, rounding=5)], lines, "cost").explained


def test_what_only_one_side_knows_is_unexplained() -> None:
    tomorrow = date(2026, 9, 2)
    found = matches([stated("a", input=5)], [line("b", day=tomorrow, input=7)], ("input",))
    assert [(m.day, m.model, m.unexplained) for m in found] == [
        (DAY, "a", {"input": 5}),
        (tomorrow, "b", {"input": -7}),
    ]


def test_only_what_the_export_tells_is_compared() -> None:
    assert one([stated(input=5)], [line(input=5, output=9, nano_usd=3)], "input").explained


def test_names_that_differ_by_their_date_are_one_model() -> None:
    for theirs, ours in (
        ("gpt-5-mini-2025-08-07", "gpt-5-mini"),
        ("gpt-5-mini", "gpt-5-mini-2025-08-07"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("Claude Haiku 4.5", "claude-haiku-4-5-20251001"),
        ("gpt-4.1", "GPT-4.1-latest"),
    ):
        match = one([stated(theirs, input=5)], [line(ours, input=5)], "input")
        assert (match.model, match.explained) == (ours, True)
    for theirs, ours in (("gpt-5-mini", "gpt-5"), ("o3-2025-04-16", "o3-mini")):
        assert len(matches([stated(theirs)], [line(ours)], ("input",))) == 2


def test_two_snapshots_of_a_model_stay_two_when_both_sides_name_them() -> None:
    names = ("gpt-4o-2024-05-13", "gpt-4o-2024-08-06")
    found = matches(
        [stated(name, input=5) for name in names], [line(name, input=5) for name in names], ALL[:1]
    )
    assert [(m.model, m.explained) for m in found] == [(name, True) for name in names]


def test_nano_dollars_are_spelled_exactly() -> None:
    assert dollars(Fraction(1_500_000_000)) == "1.5"
    assert dollars(Fraction(-1, 8)) == "-0.000000000125"
    assert dollars(Fraction(0)) == "0"
