"""The strict reader of YAML: values as written, each with its place, and nothing hidden.

Events of PyYAML's parser are folded into maps, lists and `Scalar`s. A scalar is text until a field
reads it as something (`duration`, `money`, ...), so `1.10` stays `1.10` where text is wanted and
becomes an exact decimal where a number is. No message here quotes what was found.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal, InvalidOperation

import yaml

from gateway.config.mistakes import Mistake, Path, nearest

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_TEXT = 4096  # characters of one scalar: nothing in the file is longer than a URL
MAX_DIGITS = 18

_INTEGER = re.compile(r"[-+]?(?:0|[1-9](?:_?[0-9])*)\Z", re.ASCII)
_DECIMAL = re.compile(r"[-+]?(?:0|[1-9](?:_?[0-9])*)\.[0-9]+\Z", re.ASCII)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z", re.ASCII)
_DURATION = re.compile(
    r"(?:([0-9]{1,5})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,7})m)?(?:([0-9]{1,9})s)?(?:([0-9]{1,9})ms)?\Z",
    re.ASCII,
)
_SIZE = re.compile(r"([1-9](?:_?[0-9]){0,9})(B|KiB|MiB|GiB)\Z", re.ASCII)
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%\Z", re.ASCII)
_UNITS_MS = (86_400_000, 3_600_000, 60_000, 1000, 1)
_UNITS_BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_LONGEST = 366 * 86_400.0
_MOST_DOLLARS = 9_000_000  # 2^53 nano-dollars

_PROBLEMS = (  # how PyYAML's own words begin, and ours; its words may quote the file
    ("mapping values are not allowed", "a ': ' where no key can stand; quote the text or indent"),
    ("could not find expected ':'", "a key without its ': '"),
    ("expected <block end>", "this does not line up with what is above it"),
    ("found unexpected end of stream", "a quote that is never closed"),
    ("found unexpected document separator", "a quote that is never closed"),
    ("expected ',' or", "a comma or a closing bracket is missing"),
    ("expected the node content", "a value is missing, or begins with a sign that needs quotes"),
    ("found character", "this character cannot begin a value; quote it"),
    ("found unknown escape", "an unknown escape in a double-quoted text; use single quotes"),
    ("found undefined tag handle", "tags are not read; remove the !"),
)

_THROWN = "<thrown away>"  # a part of paths below the second of two equal keys


class Wrong(ValueError):
    """A scalar is not what its field wants; the text is the message, ours and without the value."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """One scalar as written. `plain`: without quotes, so it may be more than text."""

    text: str = field(repr=False)
    plain: bool = True

    @property
    def null(self) -> bool:
        return self.plain and self.text in {"", "~", "null"}


Value = Scalar | dict[str, "Value"] | list["Value"]


@dataclass(frozen=True, slots=True)
class Place:
    """Lines and columns from 1: of the value, and of the key it stands under."""

    line: int
    column: int
    key_line: int
    key_column: int


@dataclass(slots=True)
class Tree:
    """A file as values and their places.

    `gone` are the paths that were found wrong, `standing` what stands in for some of them so that
    the map around them can still be read.
    """

    name: str
    values: Value
    places: dict[Path, Place]
    gone: set[Path] = field(default_factory=set)
    standing: dict[Path, Value] = field(default_factory=dict)

    def mistake(self, path: Path, message: str, *, key: bool = False) -> Mistake:
        """At the value of `path`, or its key; where the path is not in the file, at its parent."""
        known = path
        while known not in self.places and known:
            known = known[:-1]
        place = self.places.get(known, Place(1, 1, 1, 1))
        if key:
            return Mistake(self.name, place.key_line, place.key_column, path, message)
        return Mistake(self.name, place.line, place.column, path, message)

    def at(self, path: Path) -> Value | None:
        """The value at `path`, or None."""
        found: Value = self.values
        for part in path:
            inner: Value | None = None
            if isinstance(found, dict) and isinstance(part, str):
                inner = found.get(part)
            elif isinstance(found, list) and isinstance(part, int) and part < len(found):
                inner = found[part]
            if inner is None:
                return None
            found = inner
        return found

    def names(self, *path: str) -> tuple[str, ...]:
        """The keys of the map at `path`, wrong ones too: what the writer meant to exist."""
        found = self.at(path)
        return tuple(found) if isinstance(found, dict) else ()

    def sound(self) -> Value:
        """A copy without what is gone."""
        return self._sound((), self.values)

    def _sound(self, path: Path, value: Value) -> Value:
        if isinstance(value, dict):
            kept = {
                key: self._sound((*path, key), inner)
                for key, inner in value.items()
                if (*path, key) not in self.gone
            }
            for there, stand_in in self.standing.items():
                if there[:-1] == path:
                    kept[str(there[-1])] = stand_in
            return kept
        if isinstance(value, list):
            return [
                self._sound((*path, index), inner)
                for index, inner in enumerate(value)
                if (*path, index) not in self.gone
            ]
        return value

    def original(self, path: Path) -> Path:
        """A path in `sound()` as a path of the file.

        Parts that only the models know (tags of unions, the `try` of a chain written as a list)
        are left out, and numbers count what is gone.
        """
        found: Path = ()
        for part in path:
            here = self.at(found)
            if isinstance(part, int) and isinstance(here, list):
                left = [i for i in range(len(here)) if (*found, i) not in self.gone]
                found = (*found, left[part] if part < len(left) else part)
            elif not (part == "try" and isinstance(here, list)) and not _is_tag(part):
                found = (*found, part)
        return found


def _is_tag(part: str | int) -> bool:
    return isinstance(part, str) and part.startswith("<")


def read(text: str, name: str) -> tuple[Tree, list[Mistake]]:
    """`text` as a tree, and everything that is wrong with it as YAML.

    After a syntax error the tree holds what stood before it, and is of no further use.
    """
    mistakes: list[Mistake] = []
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        tree = Tree(name, {}, {})
        return tree, [Mistake(name, 1, 1, (), "larger than 1 MiB", fatal=True)]
    for number, written in enumerate(text.split("\n"), 1):
        if "\t" in written:
            at = written.index("\t") + 1
            mistakes.append(Mistake(name, number, at, (), "a tab; use spaces"))
    folder = _Folder(name, mistakes)
    try:
        folder.fold(yaml.parse(text.replace("\t", " "), Loader=yaml.SafeLoader))
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1
        mistakes.append(Mistake(name, line, column, (), "a character YAML forbids", fatal=True))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        mistakes.append(Mistake(name, line, column, (), _problem(error), fatal=True))
    except (yaml.YAMLError, ValueError, OverflowError, IndexError) as error:
        # PyYAML lets chr() and int() fail on some escapes and directives
        del error
        mistakes.append(Mistake(name, folder.line, 1, (), "not valid YAML", fatal=True))
    except _Stop:
        pass
    return Tree(name, folder.root, folder.places), mistakes


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    for begins, ours in _PROBLEMS:
        if problem.startswith(begins):
            return f"not valid YAML: {ours}"
    return "not valid YAML"


class _Stop(Exception):
    """Beyond this nothing that follows is worth reading."""


@dataclass(slots=True)
class _Open:
    """A collection whose end has not come. `key` is the key that waits for its value."""

    path: Path
    value: dict[str, Value] | list[Value]
    key: str | None = None
    key_place: tuple[int, int] = (1, 1)
    drop: bool = False  # the value of this key is read and thrown away


def _spot(event: yaml.Event) -> tuple[int, int]:
    """Line and column, from 1."""
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)


class _Folder:
    """Events into values; an explicit stack, so depth is ours to limit."""

    def __init__(self, name: str, mistakes: list[Mistake]) -> None:
        self.name = name
        self.mistakes = mistakes
        self.places: dict[Path, Place] = {}
        self.root: Value = {}
        self.line = 1
        self._stack: list[_Open] = []
        self._documents = 0

    def fold(self, events: Iterator[yaml.Event]) -> None:
        for event in events:
            self.line, _ = _spot(event)
            if isinstance(event, yaml.DocumentStartEvent):
                self._document(event)
            elif isinstance(event, yaml.NodeEvent):
                self._node(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._stack.pop()

    def _wrong(self, event: yaml.Event, message: str, path: Path, *, fatal: bool = False) -> None:
        line, column = _spot(event)
        path = tuple(part for part in path if part != _THROWN)
        self.mistakes.append(Mistake(self.name, line, column, path, message, fatal=fatal))

    def _document(self, event: yaml.DocumentStartEvent) -> None:
        self._documents += 1
        if self._documents > 1:
            self._wrong(event, "a second document; a file holds one", ())
            raise _Stop
        if event.version or event.tags:
            self._wrong(event, "directives (%) are not read", ())

    def _path(self) -> Path:
        if not self._stack:
            return ()
        top = self._stack[-1]
        if isinstance(top.value, list):
            return (*top.path, len(top.value))
        return top.path if top.key is None else (*top.path, top.key)

    def _node(self, event: yaml.NodeEvent) -> None:
        path = self._path()
        if isinstance(event, yaml.AliasEvent):
            self._wrong(event, "aliases (*) are not read; write the value out, or use like:", path)
            self._put(event, path, Scalar(""))
            return
        if event.anchor is not None:
            self._wrong(event, "anchors (&) are not read; write the value out, or use like:", path)
        if getattr(event, "tag", None) is not None:
            self._wrong(event, "tags (!) are not read; quote the text", path)
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            self._key(event, top)
        elif isinstance(event, yaml.ScalarEvent):
            self._put(event, path, Scalar(event.value, plain=event.style is None))
        else:
            self._open(event, path)

    def _key(self, event: yaml.NodeEvent, top: _Open) -> None:
        if not isinstance(event, yaml.ScalarEvent):
            self._wrong(event, "a key must be text", top.path, fatal=True)
            raise _Stop
        key, plain = event.value, event.style is None
        top.key, top.key_place = key, _spot(event)
        top.drop = False
        path = (*top.path, key)
        if plain and key == "<<":
            self._wrong(event, "merge keys (<<) are not read; use like:", top.path)
            top.drop = True
        elif not key or len(key) > 200:
            self._wrong(event, "a key of 1 to 200 characters is expected", top.path)
            top.drop = True
        elif key in top.value:
            first = self.places[path].key_line
            self._wrong(event, f"this key stands twice (first on line {first})", path)
            top.drop = True

    def _put(self, event: yaml.NodeEvent, path: Path, value: Value) -> bool:
        """Store a value where the stack says; False if it is thrown away."""
        line, column = _spot(event)
        if not self._stack:
            self.root = value
            self.places[()] = Place(line, column, line, column)
            return True
        top = self._stack[-1]
        if isinstance(top.value, list):
            top.value.append(value)
            self.places[path] = Place(line, column, line, column)
            return True
        kept = not top.drop
        if top.key is not None and kept:
            top.value[top.key] = value
            self.places[path] = Place(line, column, *top.key_place)
        elif top.key is None:  # an alias in the place of a key: there is nothing to go on with
            raise _Stop
        top.key = None
        return kept

    def _open(self, event: yaml.NodeEvent, path: Path) -> None:
        if len(self._stack) >= MAX_DEPTH:
            self._wrong(event, f"nested deeper than {MAX_DEPTH}", path[:4], fatal=True)
            raise _Stop
        value: dict[str, Value] | list[Value] = (
            {} if isinstance(event, yaml.MappingStartEvent) else []
        )
        kept = self._put(event, path, value)
        # below a key that is thrown away nothing may claim a place: its path belongs to the first
        inside = path if kept else (*path, _THROWN)
        self._stack.append(_Open(inside, value))


# How a field reads a scalar. Each raises Wrong.


def scalar(value: object, wanted: str) -> Scalar:
    """`value`, one scalar or a key (str), which is neither empty nor holds `${`."""
    if isinstance(value, str):
        value = Scalar(value, plain=False)
    if not isinstance(value, Scalar):
        raise Wrong(f"{wanted} is expected, not a map or list")
    if value.null or not value.text.strip():
        raise Wrong(f"{wanted} is expected; here is nothing")
    if len(value.text) > MAX_TEXT:
        raise Wrong(f"longer than {MAX_TEXT} characters")
    if "${" in value.text:
        raise Wrong("${…} is read only in secrets, URLs, addresses and paths")
    return value


def text(value: object) -> str:
    """The scalar as written."""
    found = scalar(value, "text").text
    if not found.isprintable():
        raise Wrong("text must be printable and of one line")
    return found


def truth(value: object) -> bool:
    found = scalar(value, "true or false")
    if found.plain and found.text in {"true", "false"}:
        return found.text == "true"
    raise Wrong("true or false is expected, without quotes")


def whole(low: int, high: int) -> Callable[[object], int]:
    """A reader of integers from `low` to `high`."""

    def reader(value: object) -> int:
        found = scalar(value, "a whole number")
        number = integer(found)
        if number is None:
            raise Wrong("a whole number is expected, without quotes: 600, 4_000")
        if not low <= number <= high:
            raise Wrong(f"must be from {low} to {high}")
        return number

    return reader


def integer(found: Scalar) -> int | None:
    if not found.plain or len(found.text) > MAX_DIGITS * 2 or not _INTEGER.match(found.text):
        return None
    return int(found.text.replace("_", ""))


def decimal(found: Scalar) -> Decimal | None:
    """An integer or decimal, exact; None if it is neither."""
    if not found.plain or len(found.text) > MAX_DIGITS * 2:
        return None
    if not (_INTEGER.match(found.text) or _DECIMAL.match(found.text)):
        return None
    try:
        return Decimal(found.text.replace("_", ""))
    except InvalidOperation:
        return None


def number(value: object) -> Decimal:
    found = decimal(scalar(value, "a number"))
    if found is None:
        raise Wrong("a number is expected, without quotes: 2, 0.7")
    return found


def factor(value: object) -> float:
    """A number from 1 to 100."""
    found = number(value)
    if not 1 <= found <= 100:
        raise Wrong("must be from 1 to 100")
    return float(found)


def money(value: object) -> int:
    """Dollars as nano-dollars."""
    found = decimal(scalar(value, "an amount in dollars"))
    if found is None:
        raise Wrong("an amount in dollars is expected, without sign or quotes: 0.25")
    if not 0 <= found <= _MOST_DOLLARS:
        raise Wrong(f"dollars must be from 0 to {_MOST_DOLLARS}")
    nano = found * 1_000_000_000
    if nano != int(nano):
        raise Wrong("more than 9 decimals")
    return int(nano)


def some_money(value: object) -> int:
    """Dollars as nano-dollars, more than none."""
    found = decimal(scalar(value, "an amount in dollars"))
    if found is not None and found <= 0:
        raise Wrong("a budget must be more than 0 dollars; to let nobody in, revoke the key")
    return money(value)


def duration(value: object) -> float:
    """Seconds."""
    found = scalar(value, "a duration")
    if found.plain and decimal(found) is not None:
        raise Wrong("a duration needs a unit: 60s, 250ms, 2m")
    parts = _DURATION.match(found.text)
    if parts is None:
        raise Wrong("not a duration; write 250ms, 2s, 1m30s, 1h or 30d")
    seconds = (
        sum(int(part) * unit for part, unit in zip(parts.groups("0"), _UNITS_MS, strict=True))
        / 1000
    )
    if seconds > _LONGEST:
        raise Wrong("longer than 366d")
    return seconds


def some_time(value: object) -> float:
    """Seconds, more than none."""
    seconds = duration(value)
    if not seconds:
        raise Wrong("must be longer than 0s")
    return seconds


def size(value: object) -> int:
    """Bytes."""
    found = scalar(value, "a size")
    parts = _SIZE.match(found.text)
    if parts is None:
        raise Wrong("a size needs a unit: 64KiB, 20MiB")
    return int(parts[1].replace("_", "")) * _UNITS_BYTES[parts[2]]


def share(value: object) -> float:
    """A part of 1."""
    found = scalar(value, "a share")
    parts = _SHARE.match(found.text)
    if parts is None or Decimal(parts[1]) > 100:
        raise Wrong("a share is expected, from 0% to 100%: 20%")
    return float(Decimal(parts[1]) / 100)


def day(value: object) -> date:
    found = scalar(value, "a date")
    if found.plain and _DATE.match(found.text):
        try:
            return date.fromisoformat(found.text)
        except ValueError:
            pass
    raise Wrong("a date is expected, without quotes: 2026-12-31")


def one_word(*words: str) -> Callable[[object], str]:
    """A reader of one of `words`."""

    def reader(value: object) -> str:
        found = scalar(value, f"one of {', '.join(words)}" if len(words) > 1 else words[0]).text
        if found in words:
            return found
        if len(words) == 1:
            raise Wrong(f"can only be {words[0]}")
        raise Wrong(f"can be: {', '.join(words)}{nearest(found, words)}")

    return reader


def anything(value: object) -> object:
    """A JSON value: plain scalars by their form, quoted ones text."""
    if isinstance(value, Mapping):
        return {key: anything(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [anything(inner) for inner in value]
    if not isinstance(value, Scalar):
        raise Wrong("a value is expected")
    if "${" in value.text:
        raise Wrong("${…} is read only in secrets, URLs, addresses and paths")
    if value.null:
        return None
    if value.plain and value.text in {"true", "false"}:
        return value.text == "true"
    exact = decimal(value)
    return value.text if exact is None else _json_number(exact)


def _json_number(exact: Decimal) -> int | float:
    """The JSON number of the same digits, or a refusal: never a nearby one."""
    if exact == exact.to_integral_value() and exact.as_tuple().exponent == 0:
        if abs(exact) >= 2**53:
            raise Wrong("JSON readers disagree about numbers beyond 2^53; quote it")
        return int(exact)
    if Decimal(repr(float(exact))) != exact:
        raise Wrong("more digits than a JSON number keeps")
    return float(exact)
