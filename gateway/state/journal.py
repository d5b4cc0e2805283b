"""What a worker promises to remember: one append-only file, written before a byte leaves.

A line is a JSON array. `["A", seq, [the fields of Opening]]`: an attempt is about to be made.
`["C", seq, attempt id, tokens]`: output tokens so far. `["S", seq, attempt id, at, [the fields of
Usage], the other fields of Line]`: it is settled. `seq` only grows, from segment to segment too.
A line is in the hands of the operating system when `open`, `close` or `checkpoint` returns; only on
a full disk `S` and `C` wait, for the next line that finds room.

The file is a shared mapping of blocks that are allocated before they are written (what lies behind
the last line is zeros): a line is a copy in memory, which no full disk can cut short, and which
does not let go of the interpreter's lock as `write(2)` does. That hand-over to the threads that
ship and log costs a request ten times the copy.

A crash may leave half a line at the end; whoever reads passes over what is no line. A segment that
is full is followed by another that begins with the openings still unsettled, so the old one can go.
A file is locked (flock) as long as its worker lives: a file that can be locked is an orphan.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gateway.core.attempt import Line, Opening
from gateway.core.events import Event, StateTrouble
from gateway.core.usage import MILLION, Usage
from gateway.errors import Overloaded
from gateway.wire import json

ROLL = 64 * 1024 * 1024
MOST = 2**53  # no number in a line is larger: beyond it JSON readers and SQLite's sums give in
PIECE = 1024 * 1024
STEP = 256 * 1024  # bytes allocated and mapped at once
LOST = "worker_lost"
LIVE = 10_000  # endings kept in memory for whoever ships them; beyond it they are read again

Counts = tuple[int, int, int, int, int, int, int, int, bool]  # the fields of Usage


class Opened(json.Struct, array_like=True, tag="A"):
    seq: int
    opening: Opening


class Progress(json.Struct, array_like=True, tag="C"):
    seq: int
    attempt_id: str
    tokens: int


class Settled(json.Struct, array_like=True, tag="S"):
    seq: int
    attempt_id: str
    at: float
    usage: Counts
    nano_usd: int | None
    price_id: str | None
    flags: str
    outcome: str
    status: int | None
    upstream_ms: int
    first_content_ms: int | None

    def line(self) -> Line:
        return Line(
            self.attempt_id,
            self.at,
            Usage(*self.usage),
            self.nano_usd,
            self.price_id,
            self.flags,
            self.outcome,
            self.status,
            self.upstream_ms,
            self.first_content_ms,
        )


Record = Opened | Progress | Settled
_decoder: json.Decoder[Record] = json.Decoder(Record)


class Final(NamedTuple):
    """The one final row of an attempt, with the seq of the line that made it so."""

    seq: int
    opening: Opening
    line: Line


def charges(finals: Iterable[Final]) -> dict[str, int]:
    """What these rows add to `spent` of budgets: nano-dollars by account id."""
    sums: dict[str, int] = {}
    for _, opening, line in finals:
        for name in opening.budgets:
            sums[name] = sums.get(name, 0) + min(max(line.nano_usd or 0, 0), MOST)
    return sums


class Part(NamedTuple):
    """One segment as far as it is written. `done`: nothing will be added any more."""

    path: Path
    size: int
    done: bool


class Journal:
    """One worker's journal. Everything but `sync` and `remove` happens on the loop.

    Args:
        folder: where the files are; exists.
        worker: unique for ever; part of the file name.
        heard: told of trouble.
        roll: bytes after which a new segment is begun.

    Raises:
        OSError: the first segment cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        worker: str,
        *,
        heard: Callable[[Event], None] = lambda _: None,
        roll: int = ROLL,
    ) -> None:
        self.worker = worker
        self.folder = folder
        self._heard = heard
        self._roll = roll
        self._open: dict[str, Opening] = {}
        self._tokens: dict[str, int] = {}
        self._pending: list[bytes] = []  # what found no room
        self._endings: list[Final] = []  # since `taken`
        self._written = 0  # so many of them are in the file
        self._whole = True  # none of them is missing
        self._seq = 0
        self._full: list[tuple[int, Part]] = []  # segments to ship and remove: (fd, part)
        self._number = 1
        self._dirty = True
        self._fresh = True  # the folder's entry for this segment is not on the platter
        self._fd, self._path, self._map = _begin(folder, worker, self._number, b"")
        self._base, self._room = 0, len(self._map)  # from where to where it is mapped
        self._size = 0

    def __len__(self) -> int:
        """Attempts that are open."""
        return len(self._open)

    def open(self, opening: Opening) -> None:
        """Raises gateway.errors.Overloaded: `store_unavailable`, nothing was written."""
        self._seq += 1
        attempt_id = opening.attempt_id
        values = ("A", self._seq, tuple(opening))
        try:
            line = json.dumps(values) + b"\n"
        except TypeError:
            line = _line(values)
            opening = Opening(*_clean(values[2]))  # as whoever reads it will know it
        pending = self._pending
        try:
            self._write(b"".join((*pending, line)) if pending else line)
        except OSError as error:
            self._trouble("open", error)
            raise Overloaded(
                "The gateway cannot write its journal, so nothing was sent; try again shortly.",
                code="store_unavailable",
                retry_after=1.0,
            ) from None
        pending.clear()
        self._open[attempt_id] = opening

    def checkpoint(self, attempt_id: str, tokens: int) -> None:
        if attempt_id not in self._open:
            return
        self._tokens[attempt_id] = tokens
        if not self._pending:
            self._seq += 1
            self._append(_line(("C", self._seq, attempt_id, tokens)))

    def close(self, line: Line) -> None:
        """Said twice, or for an attempt that was never opened: nothing happens."""
        attempt_id = line.attempt_id
        opening = self._open.pop(attempt_id, None)
        if opening is None:
            return
        self._tokens.pop(attempt_id, None)
        self._seq = seq = self._seq + 1
        values = ("S", seq, attempt_id, line.at, json.fields(line.usage), *line[3:])
        try:
            ending = json.dumps(values) + b"\n"
        except TypeError:
            ending = _line(values)
            self._lose()
        if len(self._endings) >= LIVE:
            self._lose()
        if self._whole:
            self._endings.append(tuple.__new__(Final, (seq, opening, line)))
        self._append(ending)

    def taken(self) -> list[Final] | None:
        """The endings written since the last time, for whoever has read `parts` until then.

        None: they were too many to keep, or cannot be kept as they are: read `parts`.
        """
        endings, written, whole = self._endings, self._written, self._whole
        self._endings, self._written = endings[written:], 0
        if not whole:
            self._whole = not self._pending
            return None
        return endings if written == len(endings) else endings[:written]

    def _lose(self) -> None:
        """What is written has to be read instead."""
        self._endings.clear()
        self._written = 0
        self._whole = False

    def flush(self) -> bool:
        """Write what waits; False: the disk refused, it stays and is tried again."""
        if not self._pending:
            return True
        try:
            self._write(b"".join(self._pending))
        except OSError as error:
            self._trouble("write", error)
            return False
        self._pending.clear()
        return True

    def parts(self) -> tuple[Part, ...]:
        """What can be read, oldest segment first."""
        return (*(part for _, part in self._full), Part(self._path, self._size, done=False))

    @property
    def full(self) -> bool:
        """The segment is: `turn` begins another as soon as the one before it is gone."""
        return self._size >= self._roll

    def turn(self) -> None:
        """Begin a new segment if this one is full and the one before it is gone."""
        if not self.full or self._full or not self.flush():
            return
        lines: list[bytes] = []
        for opening in self._open.values():
            self._seq += 1
            lines.append(_line(("A", self._seq, tuple(opening))))
        for attempt_id, tokens in self._tokens.items():
            self._seq += 1
            lines.append(_line(("C", self._seq, attempt_id, tokens)))
        first = b"".join(lines)
        try:
            fd, path, mapped = _begin(self.folder, self.worker, self._number + 1, first)
        except OSError as error:
            self._trouble("segment", error)
            return
        self._full.append((self._fd, Part(self._path, self._size, done=True)))
        self._map.close()
        self._number += 1
        self._fd, self._path, self._map, self._size = fd, path, mapped, len(first)
        self._base, self._room = 0, len(mapped)
        self._dirty = self._fresh = True

    def remove(self, part: Part) -> None:
        """A segment that is done and shipped."""
        for fd, full in self._full[:]:
            if full.path == part.path:
                self._full.remove((fd, full))
                full.path.unlink(missing_ok=True)
                os.close(fd)

    def unsynced(self) -> list[int]:
        """Descriptors for `sync`, of what is new since the last time."""
        fds = []
        if self._dirty:
            fds.append(os.dup(self._fd))
        if self._fresh:
            fds.append(os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC))
        self._dirty = self._fresh = False
        return fds

    def leave(self) -> bool:
        """All is shipped and the worker goes: the file with it, unless an attempt is still open."""
        if self._open or self._pending:
            return False
        for part in self.parts():
            part.path.unlink(missing_ok=True)
        return True

    def drop(self) -> None:
        """Let go of the files as a killed process would."""
        self._map.close()
        for fd, _ in self._full:
            os.close(fd)
        os.close(self._fd)
        self._full.clear()

    def _append(self, line: bytes) -> None:
        if self._pending:
            self._pending.append(line)
            self.flush()
            return
        try:
            self._write(line)
        except OSError as error:
            self._pending.append(line)
            self._trouble("write", error)

    def _write(self, data: bytes) -> None:
        """All of it, or nothing where the disk has no room."""
        end = self._size + len(data)
        if end > self._room:
            self._move(end)
        self._map[self._size - self._base : end - self._base] = data
        self._size = end
        self._dirty = True
        self._written = len(self._endings)

    def _move(self, end: int) -> None:
        """The mapping follows the writing. Blocks first: a page without one would kill us."""
        base = self._size // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        length = -(-(end - base) // STEP) * STEP
        os.posix_fallocate(self._fd, base, length)
        mapped = mmap.mmap(self._fd, length, offset=base)
        self._map.close()
        self._map, self._base, self._room = mapped, base, base + length

    def _trouble(self, op: str, error: OSError) -> None:
        self._heard(StateTrouble("journal", op, errno.errorcode.get(error.errno or 0, "EIO")))


def sync(fds: Iterable[int]) -> None:
    """To the platter; closes the descriptors. For a thread."""
    for fd in fds:
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class Reader:
    """Reads a segment from where it stopped; bytes after the last line end wait for the rest."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.offset = 0
        self._rest = b""

    def read(self, upto: int) -> list[Record]:
        """The next lines before byte `upto`, at most about 1 MiB of them; [] at the end."""
        records: list[Record] = []
        while not records and self.offset < upto:
            data = self._file.read(min(PIECE, upto - self.offset))
            if not data:
                break
            self.offset += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            records.extend(record for line in lines if (record := _record(line)) is not None)
        return records

    def close(self) -> None:
        self._file.close()


class Fold:
    """Openings and endings, in any pieces and repeated, to exactly one final row an attempt."""

    def __init__(self) -> None:
        self._open: dict[str, Opening] = {}
        self._tokens: dict[str, int] = {}
        self.seq = 0

    def feed(self, records: Iterable[Record]) -> Iterator[Final]:
        for record in records:
            self.seq = max(self.seq, record.seq)
            if isinstance(record, Opened):
                self._open[record.opening.attempt_id] = record.opening
            elif isinstance(record, Progress):
                if record.attempt_id in self._open:
                    self._tokens[record.attempt_id] = record.tokens
            elif (opening := self._open.pop(record.attempt_id, None)) is not None:
                self._tokens.pop(record.attempt_id, None)
                yield Final(record.seq, opening, record.line())

    def lost(self) -> Iterator[Final]:
        """What nobody will settle any more, by evidence: the prompt and the last `C`."""
        seq = self.seq
        for attempt_id, opening in self._open.items():
            seq += 1
            yield Final(seq, opening, estimate(opening, self._tokens.get(attempt_id, 0)))


def estimate(opening: Opening, tokens: int) -> Line:
    """The line of an attempt whose worker is gone."""
    nano_usd = None
    flags = "estimated,cost_unknown"
    if opening.price_id is not None:
        total = opening.prompt * opening.input_price + tokens * opening.output_price
        nano_usd = -(-total // MILLION) + opening.request_price
        if opening.budgets:
            nano_usd = min(nano_usd, opening.bound)  # what they held for it
        flags = "estimated"
    return Line(
        attempt_id=opening.attempt_id,
        at=opening.at,
        usage=Usage(input=opening.prompt, output=tokens, estimated=True),
        nano_usd=nano_usd,
        price_id=opening.price_id,
        flags=flags,
        outcome=LOST,
        status=None,
        upstream_ms=0,
        first_content_ms=None,
    )


class Orphan:
    """The journal of a worker that is gone, locked as long as this object is open."""

    def __init__(self, worker: str, held: list[tuple[int, Path]]) -> None:
        self.worker = worker
        self._held = held

    def records(self) -> Iterator[Record]:
        for fd, path in self._held:
            reader = Reader(path)
            try:
                size = os.fstat(fd).st_size
                while found := reader.read(size):
                    yield from found
            finally:
                reader.close()

    def remove(self) -> None:
        for _, path in self._held:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        for fd, _ in self._held:
            os.close(fd)
        self._held = []


def orphans(folder: Path) -> Iterator[Orphan]:
    """Every journal whose worker is gone; each is closed again when the next is asked for."""
    workers: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("journal-*.jsonl")):
        worker = path.name.removeprefix("journal-").removesuffix(".jsonl").rpartition("-")[0]
        workers.setdefault(worker, []).append(path)
    for worker, paths in workers.items():
        held = _lock_all(paths)
        if held:
            orphan = Orphan(worker, held)
            try:
                yield orphan
            finally:
                orphan.close()


def _lock_all(paths: Iterable[Path]) -> list[tuple[int, Path]]:
    """All of one worker's segments, or none."""
    held: list[tuple[int, Path]] = []
    for path in paths:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            for other, _ in held:
                os.close(other)
            return []
        if os.fstat(fd).st_nlink == 0:  # whoever held it has shipped and removed it
            os.close(fd)
        else:
            held.append((fd, path))
    return held


def sweep(folder: Path) -> None:
    """What a worker left that was killed while it began a segment: nobody has seen it yet."""
    for path in folder.glob(".journal-*.new"):
        for fd, _ in _lock_all([path]):
            path.unlink(missing_ok=True)
            os.close(fd)


def _begin(folder: Path, worker: str, number: int, first: bytes) -> tuple[int, Path, mmap.mmap]:
    """A segment, locked before anybody can see it under its name."""
    path = folder / f"journal-{worker}-{number:06d}.jsonl"
    hidden = folder / f".journal-{worker}-{number:06d}.new"
    while (fd := _made(hidden)) is None:
        pass
    try:
        room = (len(first) // STEP + 1) * STEP
        os.posix_fallocate(fd, 0, room)
        mapped = mmap.mmap(fd, room)
        mapped[: len(first)] = first
        hidden.rename(path)
    except OSError:
        os.close(fd)
        hidden.unlink(missing_ok=True)
        raise
    return fd, path, mapped


def _made(path: Path) -> int | None:
    """A new file under our lock; None: a `sweep` took it before it was locked."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # a sweep holds it for a moment only
        if os.fstat(fd).st_nlink:
            return fd
    except OSError:
        os.close(fd)
        path.unlink(missing_ok=True)
        raise
    os.close(fd)
    return None


def _line(values: tuple[Any, ...]) -> bytes:
    try:
        return json.dumps(values) + b"\n"
    except TypeError:  # a lone surrogate, or an integer beyond 64 bits
        return json.dumps(_clean(values)) + b"\n"


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-MOST, min(value, MOST))
    if isinstance(value, tuple):
        return [_clean(one) for one in value]
    return value


def _record(line: bytes) -> Record | None:
    """A line, if it is a whole one of ours."""
    try:
        return _decoder.decode(line)
    except json.BROKEN:
        return None
