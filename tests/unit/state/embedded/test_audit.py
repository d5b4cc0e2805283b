"""The audit log in the store: it only grows, it ages with a seal, and it tells what is lost."""

import sqlite3
from contextlib import closing
from datetime import date
from pathlib import Path

import pytest

from gateway.core.alerts import Mover, SpendRule
from gateway.core.audit import FORBIDDEN, GENESIS, Act, Seal
from gateway.core.events import (
    Audited,
    Event,
    Lifecycle,
    Reloaded,
    SpendAlert,
    StateTrouble,
)
from gateway.core.usage import NANO
from gateway.state.embedded import audit
from gateway.state.embedded.audit import (
    A_SECOND,
    AN_HOUR,
    CLEANED,
    KEPT,
    UNKNOWN,
    WAITING,
    AuditFile,
    AuditLog,
)
from gateway.state.embedded.sqlite import FILE, Store, connect, transaction
from tests.support.clock import ManualClock

DRAIN = Act("operator", "drain")


class Desk:
    """A log, what it told, and the file as a command sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.heard: list[Event] = []
        self.store = Store(folder)
        self.log = AuditLog(self.store, "c0ffee", self.clock, self.heard.append)
        self.file = AuditFile(folder)

    @property
    def faults(self) -> list[str]:
        return self.file.verify(20)[1]

    def tamper(self, *statements: str) -> None:
        """As somebody with the file in hand: no trigger stops them."""
        with closing(sqlite3.connect(self.folder / FILE, isolation_level=None)) as db:
            for name in ("audit_stays", "audit_ages"):
                db.execute(f"DROP TRIGGER IF EXISTS {name}")
            for statement in statements:
                db.execute(statement)


@pytest.fixture
async def desk(tmp_path: Path):
    made = Desk(tmp_path)
    yield made
    await made.store.close()


async def test_what_was_noted_is_there_in_order_and_told_as_it_is_written(desk: Desk):
    desk.log.note(DRAIN)
    desk.log.use("beef")
    desk.log.note(Act("gk_abcdefgh", "breaker", "gpt", "ok, open"))
    newest, oldest = await desk.log.read(10)
    assert oldest[:8] == (1, 1_800_000_000_000, *("operator", "drain", "", "ok"), "c0ffee", GENESIS)
    assert (newest.seq, newest.who, newest.config) == (2, "gk_abcdefgh", "beef")
    assert newest.before == oldest.hash
    assert desk.heard == [Audited(oldest), Audited(newest)]
    assert await desk.log.read(10, before=2) == [oldest]
    assert desk.file.newest(1) == [newest]
    assert desk.faults == []


async def test_configurations_and_the_life_of_the_process_are_lines(desk: Desk):
    for event in (
        Lifecycle("started", "worker 1"),
        Reloaded("beef", "", 0.0),
        Reloaded("beef", "f:1:1 no", 0.0),
        Lifecycle("draining"),
        SpendAlert(Mover("ci", "u-17", 3 * NANO, 7 * NANO, 7), date(2027, 1, 15), SpendRule()),
        StateTrouble("embedded", "ship", "SQLITE_FULL"),
    ):
        desk.log.heard(event)
    told = [line[2:7] for line in reversed(await desk.log.read(10))]
    assert told == [
        ("gateway", "configuration", "c0ffee", "ok", "c0ffee"),
        ("gateway", "process", "worker 1", "started", "c0ffee"),
        ("gateway", "configuration", "beef", "ok", "beef"),
        ("gateway", "configuration", "beef", "refused: it has mistakes", "beef"),
        ("gateway", "process", "", "draining", "beef"),
        ("gateway", "alert", "ci/u-17", "$3 on 2027-01-15, usually $1", "beef"),
    ]


async def test_of_failed_logins_ten_a_second_are_kept_and_the_rest_is_counted(desk: Desk):
    for number in range(100):
        desk.log.note(Act("unknown", "login", f"192.0.2.{number}", "invalid_api_key"))
    desk.log.note(DRAIN)
    desk.clock.advance(1)
    desk.log.note(Act("unknown", "key.create", "bob", FORBIDDEN))
    lines = await desk.log.read(1000)
    assert [line.verb for line in lines] == ["key.create", "drain", *["login"] * A_SECOND]
    assert lines[0].result == "forbidden, and 90 more untold"


async def test_guessing_for_an_hour_does_not_push_the_rest_out(desk: Desk):
    for _ in range(200):
        desk.clock.advance(1)
        for _ in range(20):
            desk.log.note(Act("unknown", "login", "", "invalid_api_key"))
        await desk.log.write()
    assert len(await desk.log.read(10_000)) == AN_HOUR


async def test_what_does_not_fit_is_counted_and_told(desk: Desk):
    for _ in range(WAITING + 7):
        desk.log.note(DRAIN)
    (lost, last, *_) = await desk.log.read(2)
    assert (lost.verb, lost.result, last.verb) == ("lost", "7 lines", "drain")
    await desk.log.write()
    assert desk.file.newest(1) == [lost]


async def test_a_store_that_is_busy_is_heard_and_nothing_is_lost(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    await desk.store.run(lambda db: db.execute("ALTER TABLE audit RENAME TO away").close())
    desk.log.note(DRAIN)
    await desk.log.write()
    assert [type(event) for event in desk.heard] == [StateTrouble]
    await desk.store.run(lambda db: db.execute("ALTER TABLE away RENAME TO audit").close())
    assert [line.verb for line in await desk.log.read(9)] == ["drain"]


async def test_the_store_itself_lets_nobody_change_or_remove_a_line(desk: Desk):
    desk.log.note(DRAIN)
    await desk.log.write()
    with closing(connect(desk.folder)) as db:
        for statement in ("UPDATE audit SET who = 'eve'", "DELETE FROM audit"):
            with pytest.raises(sqlite3.IntegrityError, match="audit log"):
                db.execute(statement)


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE audit SET who = 'eve' WHERE seq = 2", "line 2 was changed"),
        ("UPDATE audit SET who = x'00' WHERE seq = 2", "line 2 was changed"),
        ("DELETE FROM audit WHERE seq = 2", "line 2 is missing"),
        ("DELETE FROM audit WHERE seq = 3", "line 3 is missing"),
        ("DELETE FROM audit", "lines 1 to 3 are missing"),
        ("DELETE FROM audit_seal", "line 1 does not follow what the anchor seals"),
    ],
)
async def test_who_changes_the_file_is_found_out(desk: Desk, statement: str, fault: str):
    for _ in range(3):
        desk.log.note(DRAIN)
    (last, *_) = await desk.log.read(1)
    desk.tamper(statement)
    assert desk.faults[0] == fault
    desk.log.note(DRAIN)
    await desk.log.write()
    assert desk.faults, "a log that goes on does not heal"
    assert desk.file.verify(20, holds="f" * 64)[1][-1] == UNKNOWN
    kept = "seq = 3" not in statement and statement != "DELETE FROM audit"
    assert (UNKNOWN in desk.file.verify(20, holds=last.hash)[1]) is not kept


async def test_old_lines_leave_and_the_chain_still_holds(desk: Desk):
    for _ in range(3):
        desk.log.note(DRAIN)
    await desk.log.write()
    desk.clock.advance(KEPT / 1000 + 1)
    desk.log.note(Act("operator", "reload"))
    await desk.log.write()
    await desk.log.clean()
    assert len(desk.file.newest(9)) == 4, "a day's worth is worth a line"
    desk.clock.advance(86_400)
    await desk.log.clean()
    await desk.log.clean()
    kept = desk.file.newest(10)
    assert [line.verb for line in kept] == ["trim", "reload"]
    assert kept[0].object == "1-3"
    assert desk.file.verify(20)[0].anchor == Seal(3, kept[0].result)
    assert desk.faults == []
    desk.tamper("DELETE FROM audit WHERE seq = 4", "UPDATE audit_seal SET seq = 4")
    assert desk.faults


async def test_lines_beyond_the_most_leave_a_little_at_a_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audit, "MOST", 2 * CLEANED)
    many = 3 * CLEANED

    def fill(db: sqlite3.Connection) -> None:
        with transaction(db):
            for _ in range(many):
                audit.append(db, 1_800_000_000_000, DRAIN, "c0ffee")

    await desk.store.run(fill)
    await desk.log.clean()
    assert len(desk.file.newest(many)) == CLEANED + 2
    await desk.log.clean()
    assert len(desk.file.newest(many)) == CLEANED + 2
    assert desk.faults == []


def test_a_store_without_a_log_holds(tmp_path: Path):
    assert AuditFile(tmp_path).newest(5) == []
    assert AuditFile(tmp_path).verify(5)[1] == []
    (tmp_path / FILE).write_bytes(b"no database at all, but long enough to be looked at" * 50)
    with pytest.raises(OSError, match="not a database"):
        AuditFile(tmp_path).verify(5)
