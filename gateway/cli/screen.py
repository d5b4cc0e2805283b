"""Tables, trees, bars and progress: rich on a terminal, the same words in plain text elsewhere."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import click
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

PLAIN_WIDTH = 4096  # off a terminal nothing is cut or wrapped

GOOD = "green"
BAD = "red"
WARN = "yellow"
FAINT = "dim"


def console(*, stderr: bool = False) -> Console:
    """A console for now: colour only on a terminal that wants it.

    `NO_COLOR` and `TERM=dumb` are rich's own; `--no-color` arrives as click's `color`.
    """
    context = click.get_current_context(silent=True)
    colour_off = context is not None and context.color is False
    made = Console(
        stderr=stderr, highlight=False, emoji=False, markup=False, no_color=colour_off or None
    )
    if made.is_terminal:
        return made
    return Console(
        stderr=stderr,
        highlight=False,
        emoji=False,
        markup=False,
        color_system=None,
        force_terminal=False,
        width=PLAIN_WIDTH,
    )


def show(renderable: RenderableType, *, stderr: bool = False) -> None:
    """Print data; off a terminal as plain text without trailing blanks."""
    target = console(stderr=stderr)
    if target.is_terminal:
        target.width = _width(renderable, target)
        target.print(renderable)
        return
    with target.capture() as captured:
        target.print(renderable)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    click.echo("\n".join(lines), err=stderr)


def _width(renderable: RenderableType, target: Console) -> int:
    """A table is never cut: an id that lost its end is of no use. A terminal wraps by itself."""
    if not isinstance(renderable, Table):
        return target.width
    options = target.options.update(max_width=PLAIN_WIDTH)
    return max(target.width, Measurement.get(target, options, renderable).maximum)


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[RenderableType]],
    *,
    right: Collection[str | int] = (),
    footer: Sequence[str] | None = None,
) -> Table:
    """Columns without lines; those in `right` (by name or place) are numbers."""
    made = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        show_header=any(headers),
        show_footer=footer is not None,
    )
    for number, header in enumerate(headers):
        made.add_column(
            header,
            footer=footer[number] if footer else "",
            justify="right" if header in right or number in right else "left",
            header_style="bold",
            footer_style="bold",
            no_wrap=True,
        )
    for row in rows:
        made.add_row(*row)
    return made


def tree(label: RenderableType) -> Tree:
    return Tree(label, guide_style=FAINT)


def words(*parts: str | tuple[str, str]) -> Text:
    """Text of plain and (text, style) parts."""
    return Text.assemble(*parts)


def bar(start: float, length: float, whole: float, mark: str, width: int = 24) -> str:
    """A bar to scale: `░░██████░░`; at least one cell, so that nothing short disappears."""
    if whole <= 0:
        return mark + "░" * (width - 1)
    first = min(width - 1, int(start / whole * width))
    cells = min(width - first, max(1, round(length / whole * width)))
    return "░" * first + mark * cells + "░" * (width - first - cells)


def milliseconds(ms: float) -> str:
    """`112 ms`, `1.83 s`, `2 m`, `2 m 5 s`."""
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 60_000:
        return f"{ms / 1000:.3g} s"
    minutes, rest = divmod(round(ms / 1000), 60)
    return f"{minutes} m {rest} s" if rest else f"{minutes} m"


def dollars(exact: str) -> str:
    """`$0.00012`, or `unknown` as it came: never rounded."""
    return exact if exact == "unknown" else f"${exact}"


class Bar:
    """The progress of a known number of steps."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total) if progress else None

    def step(self, what: str) -> None:
        """One more is done; `what` was the last."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=1, description=what)


@contextmanager
def progress(total: int) -> Iterator[Bar]:
    """A bar on stderr; off a terminal it is silent."""
    target = console(stderr=True)
    if not target.is_terminal:
        yield Bar(None, total)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=target,
        transient=True,
    ) as shown:
        yield Bar(shown, total)
