"""What a worker's journal holds that the store does not have yet."""

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from gateway.state.journal import Final, Fold, Part, Reader

BATCH = 20_000  # rows at a time; the rest waits in the journal

Handed = tuple[Sequence[Part], list[Final] | None]


class Backlog:
    """How far the own journal was applied: from memory while nothing is missing there, else read.

    `hand` belongs to the loop, `gather` may read files: it is for a thread. The file is always
    enough: it is read from its beginning when memory is not, and the cursor knows what was applied.

    Attributes:
        rows: not yet applied; whoever has applied some takes them out.
        behind: more is to be read than what was gathered.
    """

    def __init__(self) -> None:
        self._fold = Fold()
        self.rows: list[Final] = []
        self._readers: dict[Path, Reader] = {}
        self._handed: deque[Handed] = deque()
        self._live = True  # `_rows` is what memory had, and all before it is applied
        self._level = False  # what was read reaches to where the next `hand` begins
        self.behind = False

    def hand(self, parts: Sequence[Part], finals: list[Final] | None) -> None:
        """What is written, and its endings since the last time; None: they have to be read."""
        waiting = tuple(self._handed)  # at once: the thread may be taking from it
        if sum(len(more or ()) for _, more in waiting) + len(finals or ()) > BATCH:
            self._handed.clear()
            finals = None
        self._handed.append((parts, finals))

    def gather(self) -> set[Path]:
        """Add to `rows` what was handed over; the segments that hold nothing more."""
        parts: Sequence[Part] = ()
        finals: list[Final] | None = []
        while self._handed:
            parts, more = self._handed.popleft()
            finals = None if finals is None or more is None else finals + more
        self.behind = False
        return self._follow(parts, finals) if parts else set()

    def forget(self, paths: Iterable[Path]) -> None:
        """Segments that go."""
        for path in paths:
            if path in self._readers:
                self._readers.pop(path).close()

    def rewind(self) -> None:
        """The store has forgotten what it was told: everything is read again."""
        self.rows.clear()
        self.close()
        self._fold = Fold()
        self._live = self._level = False
        self.behind = True

    def at(self, parts: Iterable[Part]) -> bool:
        """Whether everything in `parts` is applied."""
        readers = self._readers
        return not self.rows and (
            self._live
            or all(
                part.done or (part.path in readers and readers[part.path].offset == part.size)
                for part in parts
            )
        )

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def _follow(self, parts: Iterable[Part], finals: list[Final] | None) -> set[Path]:
        """Add to `_rows` what is new; the segments that have no more."""
        whole = self._live or self._level
        if finals is None or not whole or len(self.rows) + len(finals) > BATCH:
            if self._live:
                self.rows.clear()
                self._live = False
            return self._read(parts)
        if not self._live:
            self.close()
            self._fold = Fold()
            self._live = True
        self.rows += finals
        return {part.path for part in parts if part.done}

    def _read(self, parts: Iterable[Part]) -> set[Path]:
        done: set[Path] = set()
        self._level = False
        for part in parts:
            reader = self._readers.get(part.path)
            if reader is None:
                reader = self._readers[part.path] = Reader(part.path)
            while len(self.rows) < BATCH and (records := reader.read(part.size)):
                self.rows.extend(self._fold.feed(records))
            if reader.offset < part.size:
                self.behind = True
                return done
            if part.done:
                done.add(part.path)
        self._level = True
        return done
