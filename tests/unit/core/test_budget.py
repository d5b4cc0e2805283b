"""Periods of the calendar, and budgets that only narrow."""

from datetime import UTC, datetime

import pytest

from gateway.core.budget import Budget, allowances, narrowed, period, window


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("per", "now", "label", "ends"),
    [
        ("hour", "2026-11-21T05:59:59.999", "2026-11-21T05", "2026-11-21T06:00"),
        ("day", "2026-11-21T23:59:59.999", "2026-11-21", "2026-11-22T00:00"),
        ("day", "2028-02-28T12:00", "2028-02-28", "2028-02-29T00:00"),
        ("month", "2026-12-31T23:59", "2026-12", "2027-01-01T00:00"),
        ("month", "2028-02-01T00:00", "2028-02", "2028-03-01T00:00"),
        ("total", "2026-11-21T05:00", "", None),
    ],
)
def test_a_period_is_the_calendars_in_utc(per, now, label, ends):
    assert period(per, at(now)) == (label, None if ends is None else at(ends))


def test_the_id_of_an_account_names_whose_it_is_and_the_period():
    (mine,) = allowances("user", "ann", [Budget("day", 5)], "user:k:ann")
    found = window(mine, period("day", at("2026-11-21T05:00")))
    assert found.account.id == "user:k:ann:budget:day:2026-11-21"
    assert (found.account.scope, found.account.name, found.account.limit) == ("user", "ann", 5)
    (total,) = allowances("key", "ci", [Budget("total", 5)])
    assert window(total, period("total", 0.0)).account.id == "key:ci:budget:total"


def test_of_two_budgets_of_a_period_the_narrower_counts_and_hard_wins():
    outer = [Budget("day", 10, hard=True), Budget("month", 100, hard=False)]
    own = [Budget("day", 4, hard=False), Budget("month", 200), Budget("hour", 1)]
    assert narrowed(outer, own) == (
        Budget("day", 4, hard=True),
        Budget("month", 100, hard=True),
        Budget("hour", 1),
    )
