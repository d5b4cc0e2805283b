"""The store's file."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from gateway.state.embedded import sqlite
from gateway.state.embedded.sqlite import FILE, Store, connect, look, migrate, transaction

CHANGES = list(Path(sqlite.__file__).with_name("schema").glob("*.sql"))
SIBLING = """
import pathlib, sys
from gateway.state.embedded.sqlite import connect
connect(pathlib.Path(sys.argv[1])).close()
"""


def test_the_folder_and_its_files_are_for_their_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    db = connect(folder)
    db.execute("UPDATE version SET value = 1")
    assert folder.stat().st_mode & 0o777 == 0o700
    for file in folder.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
    db.close()


def test_it_is_wal_and_up_to_date_however_often_it_is_opened(tmp_path: Path) -> None:
    newest = max(int(change.stem) for change in CHANGES)
    for _ in range(3):
        db = connect(tmp_path)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (1,)
        assert db.execute("PRAGMA user_version").fetchone() == (newest,)
        migrate(db)
        db.close()


def test_a_store_of_a_newer_gateway_is_left_as_it_is(tmp_path: Path) -> None:
    db = connect(tmp_path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    db = connect(tmp_path)
    assert db.execute("PRAGMA user_version").fetchone() == (99,)
    db.close()


def test_nothing_to_look_at_makes_no_file(tmp_path: Path) -> None:
    assert look(tmp_path) is None
    assert not list(tmp_path.iterdir())
    (tmp_path / FILE).touch()
    assert look(tmp_path) is None  # somebody is making it


def test_looking_cannot_write(tmp_path: Path) -> None:
    connect(tmp_path).close()
    db = look(tmp_path)
    assert db is not None
    with pytest.raises(sqlite3.OperationalError):
        db.execute("DELETE FROM ledger")
    db.close()


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    db = connect(tmp_path)
    with pytest.raises(ZeroDivisionError), transaction(db):
        db.execute("UPDATE version SET value = 7")
        raise ZeroDivisionError
    assert db.execute("SELECT max(value) FROM version").fetchone() == (0,)
    db.close()


async def test_work_is_done_in_order_in_one_thread_that_is_not_the_loops(tmp_path: Path) -> None:
    store = Store(tmp_path)
    threads = {await store.run(lambda _: os.getpid()) for _ in range(3)}
    names = [await store.run(lambda db: db.total_changes) for _ in range(3)]
    assert len(threads) == 1
    assert len(names) == 3
    with pytest.raises(sqlite3.OperationalError):
        await store.run(lambda db: db.execute("SELECT * FROM nothing").fetchall())
    await store.close()


def test_a_second_connection_does_not_cost_the_first_its_locks(tmp_path: Path) -> None:
    """Or a sibling that closes thinks it is the last, and takes away the log we write to."""
    with closing(connect(tmp_path)), closing(connect(tmp_path)):
        subprocess.run([sys.executable, "-c", SIBLING, str(tmp_path)], check=True, timeout=20)
        assert (tmp_path / f"{FILE}-wal").exists()
