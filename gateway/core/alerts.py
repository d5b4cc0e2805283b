"""When a user's spending is out of the ordinary: today against the mean of the days before.

Source: gateway.md 6, "Alert at twice the usual".
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from gateway.core.target import Secret
from gateway.core.usage import NANO

DAYS = 7  # before today, of which the mean is taken


@dataclass(frozen=True, slots=True)
class SpendRule:
    """Above `factor` times the usual, and above `floor` (nano-dollars), somebody should look."""

    factor: Fraction = Fraction(2)
    floor: int = NANO

    def broken_by(self, mover: "Mover") -> bool:
        if mover.spent <= self.floor:
            return False
        above, below = self.factor.as_integer_ratio()
        return mover.spent * max(1, mover.days) * below > above * mover.before


class Mover(NamedTuple):
    """What a user of a key spent today (UTC) and before; nano-dollars.

    Args:
        days: how many of the last 7 days before today are known: those since the user's first.
        before: spent on these days together; an idle day counts 0.
    """

    key: str
    user: str
    spent: int
    before: int
    days: int

    @property
    def usual(self) -> int:
        """The mean of a day, rounded up to a nano-dollar; 0 for somebody new."""
        return -(-self.before // max(1, self.days))


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where alerts are sent. The URL is a secret: whoever knows it can post there."""

    url: Secret
    allow_private: bool = False


@dataclass(frozen=True, slots=True)
class Alerts:
    """`observe.alerts` of the file."""

    spend: SpendRule = SpendRule()
    webhook: Webhook | None = None
