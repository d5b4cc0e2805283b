"""What counts as out of the ordinary."""

from fractions import Fraction

import pytest

from gateway.core.alerts import Mover, SpendRule
from gateway.core.usage import NANO


@pytest.mark.parametrize(
    ("spent", "before", "days", "alarming"),
    [
        (2 * NANO + 1, 7 * NANO, 7, True),
        (2 * NANO, 7 * NANO, 7, False),  # twice the usual is not above it
        (2 * NANO + 1, 3 * NANO, 3, True),  # fewer days are known: the mean is of those
        (2 * NANO, 3 * NANO, 3, False),
        (NANO, 1, 7, False),  # not above the floor
        (NANO + 1, 0, 7, True),  # idle for a week
        (NANO + 1, 0, 0, True),  # nobody has seen this user before
    ],
)
def test_the_rule_of_two(spent: int, before: int, days: int, *, alarming: bool) -> None:
    assert SpendRule().broken_by(Mover("k", "u", spent, before, days)) is alarming


def test_the_factor_is_exact() -> None:
    rule = SpendRule(Fraction("1.1"), 0)
    assert not rule.broken_by(Mover("k", "u", 11 * 10**14, 7 * 10**15, 7))
    assert rule.broken_by(Mover("k", "u", 11 * 10**14 + 1, 7 * 10**15, 7))
    assert Mover("k", "u", 0, 8, 7).usual == 2
