"""What became of each request."""

from pathlib import Path

import pytest

from gateway.core.attempt import Exchange
from gateway.core.events import Event, Lifecycle, RequestEnded, StateTrouble
from gateway.state.embedded import stories as module
from gateway.state.embedded.sqlite import Store
from gateway.state.embedded.stories import Stories
from tests.support.clock import ManualClock


class Archive:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.trouble: list[Event] = []
        self.store = Store(folder)
        self.stories = Stories(self.store, "c0ffee", self.clock, self.trouble.append)

    def end(self, id: str) -> None:
        exchange = Exchange(id, "chat", 0.0)
        exchange.status = 200
        self.stories.heard(RequestEnded(exchange, self.clock.now()))

    def again(self) -> Stories:
        """As after a restart."""
        return Stories(self.store, "other", self.clock, self.trouble.append)


@pytest.fixture
async def archive(tmp_path: Path):
    found = Archive(tmp_path)
    yield found
    await found.store.close()


async def test_a_story_is_there_at_once_and_after_a_restart(archive: Archive) -> None:
    archive.end("req_1")
    early = await archive.stories.find("req_1")
    assert early is not None
    assert (early["request_id"], early["status"], early["config"]) == ("req_1", 200, "c0ffee")
    await archive.stories.write()
    assert await archive.stories.find("req_1") == early
    assert await archive.again().find("req_1") == early
    assert await archive.stories.find("req_2") is None


async def test_a_story_names_the_configuration_it_ended_under(archive: Archive) -> None:
    archive.end("req_1")
    archive.stories.use("f00d")
    archive.end("req_2")
    await archive.stories.write()
    assert [told["config"] for told in archive.stories.recent()] == ["f00d", "c0ffee"]


async def test_the_latest_come_first_written_or_not(archive: Archive) -> None:
    for number in range(5):
        archive.end(f"req_{number}")
        if number == 2:
            await archive.stories.write()
    archive.stories.heard(Lifecycle("draining"))
    told = [one["request_id"] for one in archive.stories.recent(4)]
    assert told == ["req_4", "req_3", "req_2", "req_1"]


async def test_memory_is_bounded_and_the_store_has_the_rest(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECENT", 10)
    for number in range(30):
        archive.end(f"req_{number}")
        await archive.stories.write()
    assert len(archive.stories.recent(100)) == 10
    assert await archive.stories.find("req_0")


async def test_what_cannot_be_written_in_time_is_dropped_and_counted(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITING", 10)
    for number in range(25):
        archive.end(f"req_{number}")
    assert archive.stories.dropped == 15
    await archive.stories.write()
    assert await archive.stories.find("req_14") is None
    assert await archive.stories.find("req_24")


async def test_a_story_is_kept_for_a_day(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLEANED", 2)
    for number in range(5):
        archive.end(f"req_{number}")
    await archive.stories.write()
    archive.clock.advance(86_400.0)
    await archive.stories.clean()
    assert await archive.again().find("req_0")
    archive.clock.advance(1.0)
    archive.end("late")
    await archive.stories.write()
    await archive.stories.clean()
    assert await archive.again().find("req_0") is None
    assert await archive.again().find("late")


async def test_the_store_keeps_only_so_many(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    for number in range(9):
        archive.end(f"req_{number}")
        archive.clock.advance(1.0)
    await archive.stories.write()
    await archive.stories.clean()
    found = [await archive.again().find(f"req_{number}") for number in range(9)]
    assert sum(one is not None for one in found) == 4


async def test_without_a_store_the_latest_are_still_told(archive: Archive) -> None:
    await archive.store.run(lambda db: db.execute("DROP TABLE request").close())
    archive.end("req_1")
    await archive.stories.write()
    assert archive.trouble == [StateTrouble("embedded", "stories", "OperationalError")]
    assert await archive.stories.find("req_1")
