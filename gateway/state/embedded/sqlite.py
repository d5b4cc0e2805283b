"""One SQLite file (WAL) for all workers of a machine, spoken to from one thread of its own."""

import asyncio
import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

FILE = "gateway.sqlite3"
BUSY = 5.0  # seconds to wait for another process's write
PATIENCE = 100  # tries of 50 ms to enter WAL, where SQLite itself does not wait
CHECKPOINTS = 20  # tries of 50 ms to checkpoint where a sibling does
HOPELESS = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY}  # no use trying

_pause = threading.Event()  # never set: waiting on it is a pause


class Store:
    """A connection that lives in its own thread: `run` hands it work, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._db: sqlite3.Connection | None = None

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns; it must end its transactions. Raises sqlite3.Error."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._work, work)

    async def within(self, seconds: float, work: Callable[[sqlite3.Connection], T]) -> T:
        """`run`, but no longer: then what `work` does may be done all the same.

        Raises:
            TimeoutError: it took longer.
            sqlite3.Error: it went wrong.
        """
        async with asyncio.timeout(seconds):
            return await self.run(work)

    def hand(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """As `run`, for who does not wait; what was handed over is done, in order."""
        return asyncio.get_running_loop().run_in_executor(self._pool, self._work, work)

    async def close(self) -> None:
        """After all that was handed over before."""
        await asyncio.get_running_loop().run_in_executor(self._pool, self._close)
        self._pool.shutdown()

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._db is None:
            self._db = connect(self.folder)
        return work(self._db)

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def prepare(folder: Path) -> None:
    """The folder, for this user only, if it is not there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def connect(folder: Path) -> sqlite3.Connection:
    """Open, make or bring up to date; the caller closes it. Belongs to the thread it is used in."""
    prepare(folder)
    path = folder / FILE
    with suppress(FileExistsError):  # one that is there must not be opened and closed by hand:
        # that would drop every lock this process has on it, as POSIX wants, and a sibling that
        # closes would take the log away from under our other connections
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
    try:
        _enter_wal(db)
        db.execute("PRAGMA synchronous = NORMAL")
        migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def look(folder: Path) -> sqlite3.Connection | None:
    """Open for reading only; None when there is no store yet."""
    path = folder / FILE
    if not path.exists():
        return None
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", timeout=BUSY, isolation_level=None, uri=True
    )
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
    except BaseException:
        db.close()
        raise
    if not version:  # another process is making it just now
        db.close()
        return None
    return db


@contextmanager
def opened(folder: Path) -> Iterator[sqlite3.Connection]:
    """`connect` for a command: closed at the end.

    Raises:
        OSError: it cannot be used; `strerror` says why, such as "database is locked".
    """
    with _as_os_error(folder), closing(connect(folder)) as db:
        yield db


@contextmanager
def looked_into(folder: Path) -> Iterator[sqlite3.Connection | None]:
    """`look` alike."""
    with _as_os_error(folder):
        db = look(folder)
        if db is None:
            yield None
            return
        with closing(db):
            yield db


@contextmanager
def _as_os_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(errno.EIO, str(error), str(folder / FILE)) from None


def problem(error: Exception) -> str:
    """What is wrong, in a word that says more than a type: SQLITE_FULL, ENOSPC."""
    word = getattr(error, "sqlite_errorname", type(error).__name__)
    return errno.errorcode.get(error.errno or 0, word) if isinstance(error, OSError) else word


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; waits for other writers at its beginning, not at its end."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def harden(db: sqlite3.Connection) -> bool:
    """Put what was committed on the platter; False: a reader or writer was in the way.

    For those SQLite waits, but not for a sibling that is doing just this: then no page is told.
    """
    for left in reversed(range(CHECKPOINTS)):
        (busy, pages, _) = db.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
        if not busy:
            return True
        if pages >= 0 or not left:
            break
        _pause.wait(0.05)
    return False


def migrate(db: sqlite3.Connection) -> None:
    """Run the numbered files this store has not seen. A store of a newer gateway is left as is."""
    changes = _changes()
    if _version(db) >= changes[-1][0]:
        return
    with transaction(db):
        seen = _version(db)
        for number, script in changes:
            if number > seen:
                for statement in _statements(script):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {number}")


def _version(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def _changes() -> list[tuple[int, str]]:
    """(number, script) in order."""
    folder = resources.files("gateway.state.embedded").joinpath("schema")
    files = [file for file in folder.iterdir() if file.name.endswith(".sql")]
    return sorted((int(file.name.removesuffix(".sql")), file.read_text("utf-8")) for file in files)


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _enter_wal(db: sqlite3.Connection) -> None:
    for left in reversed(range(PATIENCE)):
        try:
            db.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if not left or error.sqlite_errorcode & 0xFF in HOPELESS:
                raise
            _pause.wait(0.05)
        else:
            return
