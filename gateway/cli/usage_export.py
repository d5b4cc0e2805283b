"""Reads what providers let one download of their own accounts, and a format of no provider.

The columns are those of OpenAI's usage and costs exports (platform.openai.com/usage) and of the
Claude Console's usage and cost exports. A file is read line by line; what is wrong is told with its
line, and nothing is guessed.
"""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from fractions import Fraction
from pathlib import Path

from gateway.cli.exits import NOT_FOUND, USAGE, Stop
from gateway.core.reconcile import NOTHING, Stated
from gateway.core.usage import NANO

MOST_ROWS = 1_000_000
MOST_TOLD = 20  # mistakes; the rest is counted
LONGEST = 100_000  # characters of a cell
HALF_A_CENT = Fraction(NANO, 200)

_TOKENS = re.compile(r"(\d{1,15})(\.0*)?\Z", re.ASCII)
_AMOUNT = re.compile(r"-?(\d{1,9}\.?|\d{0,9}\.\d{1,40})([eE][-+]?\d{1,2})?\Z", re.ASCII)
_CENTS = re.compile(r"-?\d+(\.\d{1,2})?\Z", re.ASCII)
_EPOCH = re.compile(r"\d{9,11}(\.0+)?\Z", re.ASCII)


class _Bad(Exception):
    """What is wrong with a row; the text is shown."""


Cells = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of export.

    Args:
        name: for people.
        needed: columns that make a file one of this kind.
        day: the column that says when.
        model: from a row, the model as the provider calls it.
        figures: metric -> the columns that are added up; a column that is not there counts 0.
        cost: the column of dollars, if there is one.
        currency: the column that says what the amounts are, if there is one.
        cents: amounts of two decimals are rounded to cents.
    """

    name: str
    needed: tuple[str, ...]
    day: str
    model: Callable[[Cells], str]
    figures: Mapping[str, tuple[str, ...]]
    cost: str = ""
    currency: str = ""
    cents: bool = False

    def metrics(self, columns: Sequence[str]) -> tuple[str, ...]:
        """What a file with these columns tells."""
        told = [metric for metric, parts in self.figures.items() if set(parts) & set(columns)]
        return (*told, "cost") if self.cost in columns else tuple(told)


@dataclass(frozen=True, slots=True)
class Export:
    """A file: its kind, its rows, and all days it speaks of, also those without a call."""

    format: str
    metrics: tuple[str, ...]
    rows: Sequence[Stated]
    days: Sequence[date]  # in order, each once


def _of_line_item(row: Cells) -> str:
    """`gpt-5-mini-2025-08-07, input` of OpenAI's costs."""
    return row.get("line_item", "").partition(", ")[0]


FORMATS = (
    Format(
        "OpenAI costs",
        ("start_time", "amount_value", "amount_currency", "line_item"),
        "start_time",
        _of_line_item,
        {},
        cost="amount_value",
        currency="amount_currency",
    ),
    Format(
        "OpenAI usage",
        ("start_time", "num_model_requests", "model", "input_tokens"),
        "start_time",
        lambda row: row.get("model", ""),
        {
            "input": ("input_tokens",),
            "output": ("output_tokens",),
            "cached": ("input_cached_tokens",),
        },
    ),
    Format(
        "Anthropic usage",
        (
            *("usage_date_utc", "model_version"),
            *("usage_input_tokens_no_cache", "usage_input_tokens_cache_read"),
            "usage_output_tokens",
        ),
        "usage_date_utc",
        lambda row: row.get("model_version", ""),
        {
            "input": (
                *("usage_input_tokens_no_cache", "usage_input_tokens_cache_read"),
                *("usage_input_tokens_cache_write_5m", "usage_input_tokens_cache_write_1h"),
            ),
            "output": ("usage_output_tokens",),
            "cached": ("usage_input_tokens_cache_read",),
        },
    ),
    Format(
        "Anthropic cost",
        ("usage_date_utc", "model", "token_type", "cost_usd"),
        "usage_date_utc",
        lambda row: row.get("model", ""),
        {},
        cost="cost_usd",
        cents=True,
    ),
    Format(
        "plain",
        ("date", "model", "input_tokens", "output_tokens", "cost_usd"),
        "date",
        lambda row: row.get("model", ""),
        {
            "input": ("input_tokens",),
            "output": ("output_tokens",),
            "cached": ("cached_tokens",),
        },
        cost="cost_usd",
        currency="currency",
    ),
)


def read(path: Path) -> Export:
    """The export in a file of comma-, semicolon- or tab-separated values, UTF-8.

    Raises:
        Stop: it is not there, of no kind we know, or rows are wrong (told with their lines).
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline(LONGEST)
            delimiter = max(",;\t", key=head.count)
            columns = next(csv.reader([head], delimiter=delimiter), [])
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            lines = ((rows.line_num + 1, cells) for cells in rows)
            return _read(path, [name.strip() for name in columns], lines)
    except OSError as error:
        said = f"{path} cannot be read: {error.strerror}."
        raise Stop(said, "gateway spend reconcile FILE.csv", NOT_FOUND) from None
    except (UnicodeDecodeError, csv.Error):
        said = f"{path} is no table of comma-separated values in UTF-8."
        raise Stop(said, "export it as CSV", USAGE) from None


def _read(path: Path, columns: list[str], lines: Iterator[tuple[int, list[str]]]) -> Export:
    kind = _kind(path, columns)
    metrics = kind.metrics(columns)
    found: list[Stated] = []
    days: set[date] = set()
    currencies: dict[str, int] = {}  # and the line that first says it
    wrong: list[str] = []
    for number, cells in lines:
        if number > MOST_ROWS:
            raise Stop(f"{path} has more than {MOST_ROWS:,} rows.", "export fewer days", USAGE)
        if not any(cell.strip() for cell in cells):
            continue
        try:
            row = _row(columns, cells)
            day = _day(kind, row)
            days.add(day)
            if (stated := _stated(kind, row, day, metrics)) is not None:
                found.append(stated)
                if currency := row.get(kind.currency, "").upper():
                    currencies.setdefault(currency, number)
        except _Bad as bad:
            wrong.append(f"{path}:{number}  {bad}")
    _complain(wrong)
    _only_dollars(path, currencies)
    if not days:
        raise Stop(f"{path} has no rows.", "export at least a day", USAGE)
    return Export(kind.name, metrics, found, sorted(days))


def _row(columns: list[str], cells: list[str]) -> Cells:
    if len(cells) != len(columns):
        raise _Bad(f"{len(cells)} cells, but the head has {len(columns)}")
    return {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}


def _kind(path: Path, columns: list[str]) -> Format:
    there = set(columns)
    for kind in FORMATS:
        if there.issuperset(kind.needed):
            twice = sorted({name for name in columns if name and columns.count(name) > 1})
            if twice:
                raise Stop(f"{path}: {', '.join(twice)} stands twice.", "remove one", USAGE)
            return kind
    near = max(FORMATS, key=lambda kind: len(there & set(kind.needed)) / len(kind.needed))
    missing = ", ".join(name for name in near.needed if name not in there)
    known = "\n".join(f"  {kind.name}: {', '.join(kind.needed)}" for kind in FORMATS)
    what = f"{path} has not the columns of an export that is known. There are:\n{known}"
    if there & set(near.needed):
        what += f"\nIt is nearest to {near.name}, but without {missing}."
    raise Stop(what, "name the columns date,model,input_tokens,output_tokens,cost_usd", USAGE)


def _complain(wrong: list[str]) -> None:
    if not wrong:
        return
    told = "\n".join(wrong[:MOST_TOLD])
    if len(wrong) > MOST_TOLD:
        told += f"\nand {len(wrong) - MOST_TOLD:,} more rows"
    raise Stop(told, "mend these rows, or export again; nothing was compared", USAGE)


def _only_dollars(path: Path, currencies: Mapping[str, int]) -> None:
    if set(currencies) <= {"USD"}:
        return
    told = ", ".join(f"{name} (line {number})" for name, number in currencies.items())
    what = "mixes currencies" if len(currencies) > 1 else "is not in dollars"
    raise Stop(f"{path} {what}: {told}. The ledger is in USD.", "export in USD", USAGE)


def _day(kind: Format, row: Cells) -> date:
    said = row.get(kind.day, "")
    if _EPOCH.match(said):
        return datetime.fromtimestamp(int(said.partition(".")[0]), UTC).date()
    with suppress(ValueError):
        moment = datetime.fromisoformat(said)
        return (moment.astimezone(UTC) if moment.tzinfo else moment).date()
    raise _Bad(f"{kind.day}: {said[:40]!r} is no date; 2026-12-31 is one")


def _stated(kind: Format, row: Cells, day: date, metrics: tuple[str, ...]) -> Stated | None:
    """None: a day on which nothing was used."""
    columns = [name for metric in metrics if metric != "cost" for name in kind.figures[metric]]
    told = [row[name] for name in (*columns, kind.cost) if name in row]
    model = kind.model(row)
    if not any(told) and not model:
        return None
    if not model:
        raise _Bad("no model; export it grouped by model (OpenAI's costs: by line item)")
    figures = {
        metric: sum((_tokens(name, row[name]) for name in kind.figures[metric] if name in row),
                    NOTHING)
        for metric in metrics
        if metric != "cost"
    }  # fmt: skip
    if not kind.cost:
        return Stated(day, model, figures)
    amount = row[kind.cost]
    figures["cost"] = _dollars(kind.cost, amount) * NANO
    rounded = kind.cents and _CENTS.match(amount) is not None
    return Stated(day, model, figures, HALF_A_CENT if rounded else NOTHING)


def _tokens(name: str, said: str) -> Fraction:
    found = _TOKENS.match(said)
    if found is None:
        raise _Bad(f"{name}: {said[:40]!r} is no count of tokens")
    return Fraction(found[1])


def _dollars(name: str, said: str) -> Fraction:
    if not _AMOUNT.match(said):
        raise _Bad(f"{name}: {said[:40]!r} is no amount of dollars; 0.25 is one")
    return Fraction(said)
