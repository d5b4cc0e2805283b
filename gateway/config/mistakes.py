"""Everything that is wrong with a file: where, what, and what was probably meant. Never a value."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Path = tuple[str | int, ...]
Severity = Literal["error", "warning"]

MOST = 500


@dataclass(frozen=True, slots=True)
class Mistake:
    """One finding. Line and column from 1; line 0: the file as a whole.

    `fatal`: the rest of the file could not be read, so nothing more is said about it.
    """

    file: str
    line: int
    column: int
    path: Path
    message: str
    severity: Severity = "error"
    fatal: bool = False

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file

    @property
    def where(self) -> str:
        return spelled(self.path)

    @property
    def text(self) -> str:
        """`path — message`, with the word `warning` before it when it is one."""
        said = f"{self.where} — {self.message}" if self.path else self.message
        return said if self.severity == "error" else f"warning  {said}"

    def __str__(self) -> str:
        return f"{self.place}  {self.text}"


class ConfigError(Exception):
    """A file cannot be used; all of its mistakes (at most `MOST`), in file order."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = in_order(mistakes)[:MOST]
        super().__init__(printed(self.mistakes))


def in_order(mistakes: Iterable[Mistake]) -> tuple[Mistake, ...]:
    """By place in the file, each once."""
    return tuple(sorted(dict.fromkeys(mistakes), key=lambda m: (m.line, m.column, m.where)))


def printed(mistakes: Sequence[Mistake]) -> str:
    """A line each, messages aligned, and the count below."""
    width = max((len(mistake.place) for mistake in mistakes), default=0)
    lines = [f"{mistake.place:<{width}}  {mistake.text}" for mistake in mistakes]
    return "\n".join([*lines, counted(mistakes)])


def counted(mistakes: Sequence[Mistake]) -> str:
    """`4 errors, 1 warning`."""
    errors = sum(mistake.severity == "error" for mistake in mistakes)
    warnings = len(mistakes) - errors
    said = [f"{errors} error{'s' * (errors != 1)}"] if errors or not warnings else []
    if warnings:
        said.append(f"{warnings} warning{'s' * (warnings != 1)}")
    return ", ".join(said)


def spelled(path: Path) -> str:
    """`keys[0].tier`."""
    said = ""
    for part in path:
        said += f"[{part}]" if isinstance(part, int) else f".{part}" if said else part
    return said if said.isprintable() else repr(said)[1:-1]


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean first_token?`, or nothing when nothing is near."""
    found = difflib.get_close_matches(name[:200], list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def no_such(what: str, name: str, known: Iterable[str], limit: int = 12) -> str:
    """`no such tier; there are: free, team; did you mean free?`."""
    names = list(known)
    if not names:
        return f"no such {what}; there are none"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"no such {what}; there are: {', '.join(names[:limit])}{more}{nearest(name, names)}"


def no_model(name: str) -> str:
    """What is said of a key of `prices` that names no model."""
    return f"prices are for provider/model{nearest(name, ['unpriced'])}"
