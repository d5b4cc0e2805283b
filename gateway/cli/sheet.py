"""Rows for spreadsheets: comma-separated, and nothing in them runs."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gateway.cli.exits import USAGE, Stop

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would execute


class Form(NamedTuple):
    """How rows are told; as a table if neither."""

    csv: bool
    json: bool


def form(*, as_csv: bool, as_json: bool) -> Form:
    """What `--csv` and `--json` come to; both are a mistake."""
    if as_csv and as_json:
        raise Stop("Both --csv and --json were said.", "choose one", USAGE)
    return Form(as_csv, as_json)


def text(names: Sequence[str], rows: Iterable[Mapping[str, Any]], said: Collection[str]) -> str:
    """A line of `names`, then the rows; `said` are the columns that hold what callers said."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow(
            f"'{row[name]}" if name in said and str(row[name]).startswith(FORMULA) else row[name]
            for name in names
        )
    return written.getvalue().rstrip("\n")
