"""What an answer used and what it costs: whole tokens and whole nano-dollars, never a float.

Usage follows OpenAI's inclusive convention: cached and cache-written tokens are parts of the
input, reasoning tokens of the output; each token is priced once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

from gateway.wire import json

MILLION = 1_000_000
NANO = 1_000_000_000  # nano-dollars in a dollar


class Usage(json.Struct, frozen=True, gc=False):
    """Tokens of one upstream call. `estimated`: counted by us, the provider said nothing."""

    input: int = 0
    output: int = 0
    cached: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    reasoning: int = 0
    audio_input: int = 0
    audio_output: int = 0
    estimated: bool = False

    @property
    def total(self) -> int:
        return self.input + self.output

    @property
    def sorted_input(self) -> int:
        """Input tokens of a sort that may have a price of its own."""
        return self.cached + self.cache_write_5m + self.cache_write_1h + self.audio_input

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input + other.input,
            self.output + other.output,
            self.cached + other.cached,
            self.cache_write_5m + other.cache_write_5m,
            self.cache_write_1h + other.cache_write_1h,
            self.reasoning + other.reasoning,
            self.audio_input + other.audio_input,
            self.audio_output + other.audio_output,
            self.estimated or other.estimated,
        )


class Cost(json.Struct, frozen=True, gc=False):
    """Nano-dollars. `known=False`: there is no price, which is never a silent zero."""

    nano_usd: int
    known: bool = True

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.nano_usd + other.nano_usd, known=self.known and other.known)

    def dollars(self) -> str:
        """The exact decimal, `0.00012`, or `unknown`."""
        if not self.known:
            return "unknown"
        whole, rest = divmod(self.nano_usd, NANO)
        return f"{whole}.{rest:09d}".rstrip("0").rstrip(".") if rest else str(whole)


NOTHING = Cost(0)
UNKNOWN = Cost(0, known=False)


@dataclass(frozen=True, slots=True)
class Price:
    """One row of a price list: nano-dollars per million tokens of a sort.

    A sort without a price of its own has that of the whole it is part of. `request` is
    nano-dollars a call. `above`: (input tokens, the row that holds for the whole call from there).
    `since`: the first second (epoch, UTC midnight) it is in force.
    """

    id: str
    input: int
    output: int
    cached_input: int | None = None
    cache_write_5m: int | None = None
    cache_write_1h: int | None = None
    reasoning: int | None = None
    audio_input: int | None = None
    audio_output: int | None = None
    request: int = 0
    since: float = 0.0
    above: tuple[tuple[int, "Price"], ...] = ()

    def cost(self, usage: Usage) -> Cost:
        """`ceil(sum(tokens x price per million) / 10^6)` in nano-dollars."""
        row = self
        for threshold, dearer in self.above:
            if usage.input > threshold:
                row = dearer
        plain_input, plain_output, total = usage.input, usage.output, 0
        if usage.sorted_input:
            for tokens, price in (
                (usage.cached, row.cached_input),
                (usage.cache_write_5m, row.cache_write_5m),
                (usage.cache_write_1h, row.cache_write_1h),
                (usage.audio_input, row.audio_input),
            ):
                if tokens and price is not None:
                    part = min(tokens, plain_input)
                    plain_input -= part
                    total += part * price
        if usage.reasoning or usage.audio_output:
            for tokens, price in (
                (usage.reasoning, row.reasoning),
                (usage.audio_output, row.audio_output),
            ):
                if tokens and price is not None:
                    part = min(tokens, plain_output)
                    plain_output -= part
                    total += part * price
        total += plain_input * row.input + plain_output * row.output
        return Cost(-(-total // MILLION) + row.request)

    def most(self, input: int, output: int, *, audio: bool) -> Cost:
        """The most that up to so many tokens may cost, of whatever sort they are.

        `audio`: they may be sound as well.
        """
        rows = [self, *(row for threshold, row in self.above if input > threshold)]
        total = request = 0
        for row in rows:
            inputs = [row.input, row.cached_input, row.cache_write_5m, row.cache_write_1h]
            outputs = [row.output, row.reasoning]
            if audio:
                inputs.append(row.audio_input)
                outputs.append(row.audio_output)
            dearest = max(price for price in inputs if price is not None)
            answer = max(price for price in outputs if price is not None)
            total = max(total, input * dearest + output * answer)
            request = max(request, row.request)
        return Cost(-(-total // MILLION) + request)


def in_force(prices: Sequence[Price], now: float) -> Price | None:
    """The row that holds at `now` (epoch seconds): the last that has begun; rows are in order."""
    for price in reversed(prices):
        if price.since <= now:
            return price
    return None


class Spent(NamedTuple):
    """What a key has spent from a day (UTC) on. `unknown`: calls without a price."""

    since: date
    requests: int
    attempts: int
    input: int
    output: int
    nano_usd: int
    unknown: int


class Spending(NamedTuple):
    """`total`: as far back as the ledger's sums go, 400 days."""

    today: Spent
    month: Spent
    total: Spent
