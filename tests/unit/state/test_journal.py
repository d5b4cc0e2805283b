"""One worker's journal: what it promises, and what is made of it afterwards."""

import errno
import os
from pathlib import Path

import pytest

from gateway.core.events import Event, StateTrouble
from gateway.core.usage import Usage
from gateway.errors import Overloaded
from gateway.state import journal as module
from gateway.state.journal import Fold, Journal, Reader, estimate, orphans, sync
from tests.unit.state.make import line, opening


def made(folder: Path, *, roll: int = 1 << 20) -> Journal:
    return Journal(folder, "w1", roll=roll)


def records(path: Path) -> list[module.Record]:
    reader = Reader(path)
    found = reader.read(path.stat().st_size)
    reader.close()
    return found


def only(folder: Path) -> Path:
    (path,) = folder.glob("journal-*.jsonl")
    return path


def test_an_opening_is_with_the_operating_system_when_open_returns(tmp_path: Path) -> None:
    journal = made(tmp_path)
    journal.open(opening())
    (record,) = records(only(tmp_path))
    assert isinstance(record, module.Opened)
    assert record.opening == opening()
    journal.drop()


def test_an_ending_is_with_the_operating_system_when_close_returns(tmp_path: Path) -> None:
    journal = made(tmp_path)
    journal.open(opening())
    journal.close(line())
    assert [r.seq for r in records(only(tmp_path))] == [1, 2]
    journal.drop()


def test_a_line_may_lie_across_what_is_mapped_and_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEP", 4096)
    journal = made(tmp_path)
    for number in range(200):
        journal.open(opening(f"{number}.1"))
    journal.open(opening("long.1", user="x" * 20_000))
    assert [r.seq for r in records(only(tmp_path))] == list(range(1, 202))
    journal.drop()


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    journal = made(tmp_path)
    assert only(tmp_path).stat().st_mode & 0o777 == 0o600
    journal.drop()


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    journal = made(tmp_path)
    journal.open(opening(team=None, user="Zoë", tags=""))
    journal.checkpoint("req_1.1", 256)
    last = line(usage=Usage(1, 2, 3, 4, 5, 6, 7, 8, estimated=True), nano_usd=None, status=None)
    journal.close(last)
    (final,) = Fold().feed(records(only(tmp_path)))
    assert final.opening == opening(team=None, user="Zoë", tags="")
    assert final.line == last
    assert final.seq == 3
    journal.drop()


def test_the_first_ending_counts_and_a_stranger_has_none(tmp_path: Path) -> None:
    journal = made(tmp_path)
    journal.open(opening())
    journal.close(line(outcome="ok"))
    journal.close(line(outcome="stalled"))
    journal.close(line("never.1"))
    journal.checkpoint("never.1", 4)
    finals = list(Fold().feed([*records(only(tmp_path)), *records(only(tmp_path))]))
    assert [final.line.outcome for final in finals][:1] == ["ok"]
    assert len(records(only(tmp_path))) == 2
    journal.drop()


def test_text_no_json_can_hold_does_not_stop_a_request(tmp_path: Path) -> None:
    journal = made(tmp_path)
    journal.open(opening(user="\ud800", prompt=2**70))
    (record,) = records(only(tmp_path))
    assert isinstance(record, module.Opened)
    assert record.opening.user == "?"
    assert record.opening.prompt == 2**53
    journal.drop()


class Disk:
    """A disk that may be full: nothing can be allocated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = True
        self._allocate = os.posix_fallocate
        monkeypatch.setattr(module, "STEP", 4096)
        monkeypatch.setattr(module.os, "posix_fallocate", self.allocate)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "no space left")
        self._allocate(fd, offset, length)


def filled(journal: Journal) -> int:
    """Openings until the disk refuses one; how many it took."""
    for number in range(1, 1000):
        try:
            journal.open(opening(f"{number}.1"))
        except Overloaded as refusal:
            assert refusal.code == "store_unavailable"
            return number - 1
    raise AssertionError("the disk is not full")


def test_a_full_disk_refuses_the_request_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Event] = []
    monkeypatch.setattr(module, "STEP", 4096)
    journal = Journal(tmp_path, "w1", heard=heard.append)
    Disk(monkeypatch)
    taken = filled(journal)
    assert heard == [StateTrouble("journal", "open", "ENOSPC")]
    assert len(records(only(tmp_path))) == len(journal) == taken
    journal.drop()


def test_on_a_full_disk_an_ending_is_kept_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEP", 4096)
    journal = made(tmp_path)
    disk = Disk(monkeypatch)
    taken = filled(journal)
    for number in range(1, taken + 1):
        journal.close(line(f"{number}.1"))  # does not raise
    assert not journal.flush()
    before = len(records(only(tmp_path)))
    assert before < 2 * taken
    journal.checkpoint("1.1", 1)  # nothing piles up
    disk.full = False
    assert journal.flush()
    assert len(list(Fold().feed(records(only(tmp_path))))) == taken
    journal.drop()


def test_a_full_segment_is_followed_by_one_that_begins_with_what_is_open(tmp_path: Path) -> None:
    journal = made(tmp_path, roll=1_000)
    for number in range(5):
        journal.open(opening(f"{number}.1"))
    journal.checkpoint("4.1", 77)
    for number in range(3):
        journal.close(line(f"{number}.1"))
    journal.turn()
    journal.turn()  # the old one is still there: not yet another
    old, new = journal.parts()
    assert old.done
    assert not new.done
    assert [r.seq for r in records(new.path)] == [10, 11, 12]
    journal.remove(old)
    assert not old.path.exists()
    fold = Fold()
    assert not list(fold.feed(records(new.path)))
    assert [(f.opening.attempt_id, f.line.usage.output) for f in fold.lost()] == [
        ("3.1", 0),
        ("4.1", 77),
    ]
    journal.drop()


def test_only_the_journal_of_a_worker_that_is_gone_is_an_orphan(tmp_path: Path) -> None:
    journal = made(tmp_path)
    journal.open(opening())
    assert not list(orphans(tmp_path))
    journal.drop()
    (worker,) = [(orphan.worker, len(list(orphan.records()))) for orphan in orphans(tmp_path)]
    assert worker == ("w1", 1)


def test_two_heirs_do_not_bury_the_same_worker(tmp_path: Path) -> None:
    made(tmp_path).drop()
    for orphan in orphans(tmp_path):
        assert not list(orphans(tmp_path))
        orphan.remove()
    assert not list(tmp_path.iterdir())


def test_a_journal_that_was_buried_while_we_waited_for_it_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path).drop()
    path = only(tmp_path)
    flock = module.fcntl.flock

    def late(fd: int, how: int) -> None:
        path.unlink()  # the other heir was faster
        flock(fd, how)

    monkeypatch.setattr(module.fcntl, "flock", late)
    assert not list(orphans(tmp_path))


def test_a_worker_that_leaves_with_everything_settled_leaves_no_file(tmp_path: Path) -> None:
    journal = made(tmp_path)
    journal.open(opening())
    journal.close(line())
    assert journal.leave()
    journal.drop()
    assert not list(tmp_path.iterdir())


def test_a_worker_that_leaves_with_an_open_attempt_leaves_its_evidence(tmp_path: Path) -> None:
    journal = made(tmp_path)
    journal.open(opening())
    assert not journal.leave()
    journal.drop()
    assert len(records(only(tmp_path))) == 1


def test_only_what_is_new_is_synced(tmp_path: Path) -> None:
    journal = made(tmp_path)
    journal.open(opening())
    fds = journal.unsynced()
    assert len(fds) == 2  # the file and, once, its folder's entry
    sync(fds)
    assert not journal.unsynced()
    journal.close(line())
    fds = journal.unsynced()
    assert len(fds) == 1
    sync(fds)
    journal.drop()


def test_a_reader_waits_for_the_rest_of_a_line(tmp_path: Path) -> None:
    journal = made(tmp_path)
    journal.open(opening("a.1"))
    journal.open(opening("b.1"))
    path = only(tmp_path)
    size = journal.parts()[-1].size
    for cut in range(size):
        reader = Reader(path)
        found = [*reader.read(cut), *reader.read(size)]
        assert [r.seq for r in found] == [1, 2]
        reader.close()
    journal.drop()


def test_a_lost_attempt_costs_its_prompt_and_what_was_seen() -> None:
    told = estimate(opening(prompt=1_000), 500)
    assert told.nano_usd == (1_000 * 250_000_000 + 500 * 2_000_000_000) // 1_000_000 + 7
    assert (told.outcome, told.flags) == ("worker_lost", "estimated")
    assert told.usage == Usage(input=1_000, output=500, estimated=True)
    assert estimate(opening(prompt=1, input_price=1), 0).nano_usd == 1 + 7  # rounded up


def test_a_lost_attempt_without_a_price_is_unknown_never_free() -> None:
    told = estimate(opening(price_id=None), 10)
    assert told.nano_usd is None
    assert told.flags == "estimated,cost_unknown"
