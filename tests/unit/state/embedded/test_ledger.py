"""Exactly one row an attempt, through any crash; sums that are the sum of the rows."""

import asyncio
import random
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.events import Event
from gateway.core.usage import Usage
from gateway.state import backlog
from gateway.state import journal as journals
from gateway.state.embedded import ledger as module
from gateway.state.embedded.ledger import EmbeddedLedger, Shipper, clean, drift, recover
from gateway.state.embedded.sqlite import Store, connect, migrate
from gateway.state.journal import Final, Journal, Orphan
from tests.support.clock import ManualClock
from tests.unit.state.make import line, opening


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    found = memory()
    yield found
    found.close()


def memory() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    migrate(db)
    return db


def rows(db: sqlite3.Connection) -> dict[str, tuple[str, int | None, int]]:
    found = db.execute("SELECT attempt_id, outcome, nano_usd, output FROM ledger").fetchall()
    return {id: (outcome, nano_usd, output) for id, outcome, nano_usd, output in found}


def spent(db: sqlite3.Connection, scope: str = "key") -> dict[str, tuple[int, ...]]:
    query = (
        "SELECT name, requests, attempts, input, output, nano_usd, unknown FROM spent "
        "WHERE scope = ?"
    )
    return {name: tuple(rest) for name, *rest in db.execute(query, (scope,))}


def ship(
    shipper: Shipper, db: sqlite3.Connection, journal: Journal, *, live: bool = True
) -> set[Path]:
    """What is written, from memory or as if memory had not kept up."""
    parts, finals = journal.parts(), journal.taken()
    shipper.hand(parts, finals if live else None)
    return shipper.ship(db)


def life(folder: Path, worker: str) -> bytes:
    """A short run and its journal: settled, settled dear, unsettled with and without tokens."""
    journal = Journal(folder, worker)
    for number in range(4):
        journal.open(opening(f"r{number}.1"))
    journal.checkpoint("r2.1", 10)
    journal.close(line("r0.1"))
    journal.checkpoint("r2.1", 20)
    journal.close(line("r1.1", nano_usd=None, flags="cost_unknown", outcome="stalled"))
    (path,) = folder.glob(f"journal-{worker}-*")
    written = path.read_bytes()[: journal.parts()[-1].size]
    journal.drop()
    path.unlink()
    return written


def test_killed_at_any_byte_each_opened_attempt_has_exactly_one_row(tmp_path: Path) -> None:
    written = life(tmp_path, "w1")
    path = tmp_path / "journal-w1-000001.jsonl"
    lines = written.split(b"\n")
    ends = [sum(len(part) + 1 for part in lines[: n + 1]) for n in range(len(lines) - 1)]
    for cut in range(len(written) + 1):
        whole = sum(end <= cut for end in ends)  # lines that are all there
        path.write_bytes(written[:cut] + bytes(64))  # what is allocated but not written
        db = memory()
        lost = recover(db, tmp_path)
        found = rows(db)
        assert set(found) == {f"r{n}.1" for n in range(min(whole, 4))}
        tokens = 20 if whole >= 7 else 10 if whole >= 5 else 0
        for id, (outcome, nano_usd, output) in found.items():
            if (id, whole >= 6) == ("r0.1", True):
                assert (outcome, nano_usd) == ("ok", 325_000)
            elif (id, whole >= 8) == ("r1.1", True):
                assert (outcome, nano_usd) == ("stalled", None)
            else:
                assert (outcome, output) == ("worker_lost", tokens if id == "r2.1" else 0)
        assert lost == sum(outcome == "worker_lost" for outcome, _, _ in found.values())
        assert drift(db) == 0
        path.write_bytes(written[:cut])  # the same file once more, as if it had not been removed
        recover(db, tmp_path)
        assert rows(db) == found
        assert not list(tmp_path.glob("journal-*"))
        db.close()


@pytest.mark.parametrize("step", ["_book", "_move", "harden", "remove", "_forget"])
def test_killed_while_it_recovers_nothing_counts_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, db: sqlite3.Connection, step: str
) -> None:
    written = life(tmp_path, "w1")
    (tmp_path / "journal-w1-000001.jsonl").write_bytes(written)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Orphan if step == "remove" else module, step, killed)
        with pytest.raises(KeyboardInterrupt):
            recover(db, tmp_path)
    recover(db, tmp_path)
    recover(db, tmp_path)
    assert {id: outcome for id, (outcome, _, _) in rows(db).items()} == {
        "r0.1": "ok",
        "r1.1": "stalled",
        "r2.1": "worker_lost",
        "r3.1": "worker_lost",
    }
    assert spent(db)["search-prod"][1] == 4
    assert drift(db) == 0
    assert not list(tmp_path.glob("journal-*"))
    assert not db.execute("SELECT * FROM cursor").fetchall()


def test_a_batch_that_is_sent_twice_counts_once(tmp_path: Path, db: sqlite3.Connection) -> None:
    journal = Journal(tmp_path, "w1")
    journal.open(opening())
    journal.close(line())
    for _ in range(3):
        shipper = Shipper("w1")  # a new one has forgotten what it sent
        ship(shipper, db, journal, live=False)
        shipper.close()
    assert len(rows(db)) == 1
    assert spent(db) == {"search-prod": (1, 1, 900, 50, 325_000, 0)}
    journal.drop()


def test_what_the_store_refuses_is_sent_again(tmp_path: Path, db: sqlite3.Connection) -> None:
    journal = Journal(tmp_path, "w1")
    shipper = Shipper("w1")
    journal.open(opening())
    journal.close(line())
    db.execute("ALTER TABLE spent RENAME TO away")
    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError):
            ship(shipper, db, journal)
        assert not rows(db)
    db.execute("ALTER TABLE away RENAME TO spent")
    ship(shipper, db, journal)
    assert len(rows(db)) == 1
    assert drift(db) == 0
    shipper.close()
    journal.drop()


def test_a_known_attempt_id_is_booked_once_and_its_sums_too(
    tmp_path: Path, db: sqlite3.Connection
) -> None:
    for worker in ("w1", "w2"):
        journal = Journal(tmp_path, worker)
        journal.open(opening())
        journal.close(line())
        journal.open(opening(f"{worker}.1"))
        journal.close(line(f"{worker}.1"))
        journal.drop()
    recover(db, tmp_path)
    assert len(rows(db)) == 3
    assert spent(db)["search-prod"][1] == 3
    assert drift(db) == 0


def test_sums_are_kept_by_key_team_and_user(tmp_path: Path, db: sqlite3.Connection) -> None:
    journal = Journal(tmp_path, "w1")
    for id, changed in {
        "a.1": {}, "a.2": {}, "b.1": {"user": None}, "c.1": {"team": None, "key_id": "demo"}
    }.items():  # fmt: skip
        journal.open(opening(id, **changed))
        journal.close(line(id, nano_usd=None if id == "a.2" else 100, usage=Usage(10, 5)))
    journal.drop()
    recover(db, tmp_path)
    assert spent(db) == {"search-prod": (2, 3, 30, 15, 200, 1), "demo": (1, 1, 10, 5, 100, 0)}
    assert spent(db, "team") == {"search": (2, 3, 30, 15, 200, 1)}
    assert spent(db, "user") == {
        "search-prod/u1": (1, 2, 20, 10, 100, 1),
        "demo/u1": (1, 1, 10, 5, 100, 0),
    }


def test_lines_live_30_days_and_sums_400(tmp_path: Path, db: sqlite3.Connection) -> None:
    journal = Journal(tmp_path, "w1")
    today = 1_800_000_000 // 86_400
    for age in (0, 29, 30, 31, 400, 401):
        journal.open(opening(f"{age}.1"))
        journal.close(line(f"{age}.1", at=(today - age) * 86_400.0))
    journal.drop()
    recover(db, tmp_path)
    assert clean(db, today) == 3
    assert set(rows(db)) == {"0.1", "29.1", "30.1"}
    assert db.execute("SELECT count(*) FROM spent WHERE scope = 'key'").fetchone() == (5,)
    assert drift(db, today - 1) == 0


def test_drift_is_what_rows_and_sums_differ_by(tmp_path: Path, db: sqlite3.Connection) -> None:
    journal = Journal(tmp_path, "w1")
    journal.open(opening())
    journal.close(line())
    journal.drop()
    recover(db, tmp_path)
    assert drift(db) == 0
    db.execute("UPDATE spent SET nano_usd = nano_usd - 7 WHERE scope = 'key'")
    assert drift(db) == 7


class Run:
    """Several lives of one worker after the other, over one store that outlives them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.db = memory()
        self.lives = 0
        self.opened: set[str] = set()
        self.settled: set[str] = set()
        self.begin()

    def begin(self) -> None:
        self.lives += 1
        self.journal = Journal(self.folder, f"w{self.lives}", roll=4_000)
        self.shipper = Shipper(self.journal.worker)
        self.open: list[str] = []

    def act(self, action: str) -> None:
        getattr(self, f"do_{action}")()

    def do_open(self) -> None:
        id = f"q{len(self.opened)}.1"
        self.journal.open(opening(id))
        self.opened.add(id)
        self.open.append(id)

    def do_close(self) -> None:
        if self.open:
            id = self.open.pop(self.rng.randrange(len(self.open)))
            self.journal.close(line(id, nano_usd=self.rng.randrange(1000)))
            self.settled.add(id)

    def do_checkpoint(self) -> None:
        if self.open:
            self.journal.checkpoint(self.rng.choice(self.open), self.rng.randrange(999))

    def do_turn(self) -> None:
        self.journal.flush()

    def do_ship(self) -> None:
        parts = self.journal.parts()
        self.shipper.hand(parts, self.journal.taken())
        done = self.shipper.ship(self.db)
        for part in parts:
            if part.path in done:
                self.journal.remove(part)
        self.journal.turn()

    def do_kill(self) -> None:
        """Kill -9, which may leave half a line; the next one recovers."""
        last = self.journal.parts()[-1]
        self.journal.drop()
        self.shipper.close()
        with last.path.open("r+b") as file:
            file.seek(last.size)
            file.write(b'["S",99999,"q0.'[: self.rng.randrange(16)])
        recover(self.db, self.folder)
        self.begin()


ACTIONS = st.sampled_from(
    ["open", "open", "open", "close", "close", "checkpoint", "turn", "ship", "ship", "kill"]
)


@pytest.mark.parametrize("kept", [2, 10_000])
@settings(max_examples=100, deadline=None)
@given(actions=st.lists(ACTIONS, min_size=1, max_size=80), seed=st.integers(0, 999))
def test_through_any_lives_each_attempt_ends_once_and_sums_are_the_sum_of_rows(
    kept: int, actions: list[str], seed: int
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(journals, "LIVE", kept)  # 2: memory often has not kept up
        run = Run(Path(folder), seed)
        for action in actions:
            run.act(action)
            assert drift(run.db) == 0
            assert set(rows(run.db)) <= run.opened
        run.do_kill()
        assert set(rows(run.db)) == run.opened
        assert spent(run.db).get("search-prod", (0, 0))[1] == len(run.opened)
        for id, (outcome, _, _) in rows(run.db).items():
            assert outcome == "worker_lost" or id in run.settled
        run.journal.drop()
        run.db.close()


# The class around it, with a real file and a real thread.


async def test_what_is_settled_is_in_the_store_after_one_shipment(tmp_path: Path) -> None:
    heard: list[Event] = []
    store = Store(tmp_path)
    journal = Journal(tmp_path, "w1")
    ledger = EmbeddedLedger(journal, store, ManualClock(), heard.append)
    for number in range(50):
        ledger.open(opening(f"{number}.1"))
        ledger.checkpoint(f"{number}.1", 5)
        ledger.close(line(f"{number}.1"))
    assert await ledger.ship()
    await ledger.sync()
    await ledger.clean()
    assert ledger.drift == 0
    assert len(await store.run(rows)) == 50
    await ledger.leave()
    await store.close()
    assert not heard
    assert not list(tmp_path.glob("journal-*"))
    again = connect(tmp_path)
    assert not again.execute("SELECT * FROM cursor").fetchall()
    again.close()


async def test_a_store_that_fails_is_told_and_loses_nothing(tmp_path: Path) -> None:
    heard: list[Event] = []
    store = Store(tmp_path)
    journal = Journal(tmp_path, "w1")
    ledger = EmbeddedLedger(journal, store, ManualClock(), heard.append)
    await store.run(lambda db: db.execute("ALTER TABLE cursor RENAME TO away").close())
    ledger.open(opening())
    ledger.close(line())
    assert not await ledger.ship()
    assert [getattr(event, "op", "") for event in heard] == ["ship"]
    await ledger.leave()  # cannot ship: the journal stays
    await store.run(lambda db: db.execute("ALTER TABLE away RENAME TO cursor").close())
    assert await store.run(lambda db: recover(db, tmp_path)) == 0
    assert await store.run(rows) == {"req_1.1": ("ok", 325_000, 50)}
    await store.close()


async def test_segments_turn_while_traffic_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    journal = Journal(tmp_path, "w1", roll=5_000)
    ledger = EmbeddedLedger(journal, store, ManualClock(), lambda _: None)
    for number in range(200):
        ledger.open(opening(f"{number}.1"))
        if number % 10:
            ledger.close(line(f"{number}.1"))
        await ledger.ship()
        assert len(list(tmp_path.glob("journal-*"))) <= 2
    ledger._shipper.close()
    journal.drop()
    assert await store.run(lambda db: recover(db, tmp_path)) == 20
    assert len(await store.run(rows)) == 200
    assert await store.run(drift) == 0
    await store.close()


async def test_a_shipment_that_was_called_off_loses_nothing(tmp_path: Path) -> None:
    journal, store = Journal(tmp_path, "w1"), Store(tmp_path)
    ledger = EmbeddedLedger(journal, store, ManualClock(), lambda _: None)
    journal.open(opening("a.1"))
    journal.close(line("a.1"))
    gate = threading.Event()
    busy = asyncio.ensure_future(store.run(lambda _: gate.wait(10)))
    waiting = asyncio.ensure_future(ledger.ship())
    await asyncio.sleep(0)
    waiting.cancel()
    gate.set()
    await asyncio.gather(busy, waiting, return_exceptions=True)
    await ledger.leave()
    assert set(await store.run(rows)) == {"a.1"}
    assert not list(tmp_path.glob("journal-*"))
    await store.close()


def test_what_waits_in_memory_is_bounded_and_read_again(
    tmp_path: Path, db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "BATCH", 3)
    journal, shipper = Journal(tmp_path, "w1"), Shipper("w1")
    for number in range(8):
        journal.open(opening(f"{number}.1"))
        journal.close(line(f"{number}.1"))
        shipper.hand(journal.parts(), journal.taken())
    assert sum(len(finals or ()) for _, finals in shipper._handed) <= 3
    shipper.ship(db)
    assert len(rows(db)) == 8
    journal.open(opening("8.1"))
    journal.close(line("8.1"))
    ship(shipper, db, journal)
    assert shipper._live
    assert len(rows(db)) == 9
    assert drift(db) == 0
    shipper.close()
    journal.drop()


def test_text_no_json_can_hold_is_booked_as_it_was_written(
    tmp_path: Path, db: sqlite3.Connection
) -> None:
    journal, shipper = Journal(tmp_path, "w1"), Shipper("w1")
    journal.open(opening("a.1", user="\ud800"))
    journal.close(line("a.1"))
    journal.open(opening("b.1"))
    journal.close(line("b.1", outcome="\ud800", status=2**70))
    ship(shipper, db, journal)
    query = "SELECT user, outcome, status FROM ledger ORDER BY attempt_id"
    assert db.execute(query).fetchall() == [("?", "ok", 200), ("u1", "?", 2**53)]
    shipper.close()
    journal.drop()


async def test_each_line_that_is_in_the_store_is_told_once(tmp_path: Path) -> None:
    """Whoever holds money for it lets go then; one told twice would free another's."""
    told: list[str] = []

    def booked(finals: Sequence[Final]) -> None:
        told.extend(final.line.attempt_id for final in finals)

    store, journal = Store(tmp_path), Journal(tmp_path, "w1")
    ledger = EmbeddedLedger(journal, store, ManualClock(), lambda _: None, booked=booked)
    for number in range(3):
        journal.open(opening(f"{number}.1"))
    journal.close(line("0.1"))
    assert await ledger.ship()
    assert told == ["0.1"]
    journal._lose()  # memory has not kept up: everything is read again from the file
    journal.close(line("1.1"))
    while not await ledger.ship():
        pass
    journal.close(line("2.1"))
    assert await ledger.ship()
    assert told == ["0.1", "1.1", "2.1"]
    await ledger.leave()
    assert told == ["0.1", "1.1", "2.1"]
    await store.close()


BUDGETS = ("key:k:budget:day:2026-11-21", "team:t:budget:total")


def charged(db: sqlite3.Connection) -> dict[str, int]:
    return dict(db.execute("SELECT account, nano_usd FROM budget").fetchall())


def test_lines_move_the_budgets_of_their_attempt_once_whoever_books_them(
    tmp_path: Path, db: sqlite3.Connection
) -> None:
    journal = Journal(tmp_path, "w1")
    for number in range(3):
        journal.open(opening(f"r{number}.1", budgets=BUDGETS, bound=10**9))
    journal.close(line("r0.1", nano_usd=5))
    shipper = Shipper("w1")
    ship(shipper, db, journal)
    assert charged(db) == dict.fromkeys(BUDGETS, 5)
    journal.close(line("r1.1", nano_usd=None))
    journal.drop()
    assert recover(db, tmp_path) == 1
    ((lost,),) = db.execute("SELECT nano_usd FROM ledger WHERE outcome = 'worker_lost'").fetchall()
    assert lost > 0
    assert charged(db) == dict.fromkeys(BUDGETS, 5 + lost)


def test_what_a_lost_worker_left_is_booked_at_no_more_than_was_held(
    tmp_path: Path, db: sqlite3.Connection
) -> None:
    journal = Journal(tmp_path, "w1")
    journal.open(opening(budgets=BUDGETS, bound=3))
    journal.checkpoint("req_1.1", 10**6)
    journal.drop()
    recover(db, tmp_path)
    assert charged(db) == dict.fromkeys(BUDGETS, 3)
