"""The table of keys as plain records, for a store that shares them between machines."""

import sqlite3
from collections.abc import Mapping

from gateway.state.embedded.sqlite import Store, transaction

Record = Mapping[str, str | int | float | None]
"""A row: column -> value, blobs as hex after `x:`."""


class KeyCopy:
    """Reads and writes them all at once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def read(self) -> Mapping[str, Record]:
        """By name. Raises sqlite3.Error."""
        return await self._store.run(_read)

    async def write(self, records: Mapping[str, Record]) -> None:
        """These as they are said here, the others as they were. Raises sqlite3.Error."""
        await self._store.run(lambda db: _write(db, records))


def _read(db: sqlite3.Connection) -> dict[str, Record]:
    found = db.execute("SELECT * FROM key")
    columns = [column for column, *_ in found.description]
    records: dict[str, Record] = {}
    for row in found:
        record = {
            column: f"x:{value.hex()}" if isinstance(value, bytes) else value
            for column, value in zip(columns, row, strict=True)
        }
        records[str(record["name"])] = record
    return records


def _write(db: sqlite3.Connection, records: Mapping[str, Record]) -> None:
    known = [column for _, column, *_ in db.execute("PRAGMA table_info(key)")]
    with transaction(db):
        for record in records.values():
            columns = [column for column in known if column in record]  # a newer gateway has more
            values = [_value(record[column]) for column in columns]
            marks = ", ".join("?" * len(columns))
            names = ", ".join(columns)
            db.execute(f"INSERT OR REPLACE INTO key ({names}) VALUES ({marks})", values)  # noqa: S608 - columns of our table
        db.execute("UPDATE version SET value = value + 1 WHERE name = 'key'")


def _value(told: str | float | None) -> str | bytes | float | None:
    if isinstance(told, str) and told.startswith("x:"):
        return bytes.fromhex(told.removeprefix("x:"))
    return told
