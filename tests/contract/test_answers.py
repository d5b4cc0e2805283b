"""The port Answers: a caller's key is answered once, and what is kept is nobody else's."""

import asyncio

import pytest

from gateway.core.kept import Held, Kept, Owner
from gateway.core.ports import Answers, Claim
from tests.contract.conftest import Shelves
from tests.support.fakes import turns

ANNA = Owner("key:search", "anna")
OTHERS = (Owner("key:search", "bert"), Owner("key:search"), Owner("key:demo", "anna"))
HELLO = Kept(200, b'{"said":"h\xc3\xa9"}', "gpt", "m-1", "0.00002", "stop")
REFUSED = Kept(422, b'{"message":"odd"}')
DAY = 86_400.0


async def claim(
    answers: Answers, name: str = "chat:k1", *, detached: bool = False, body: bytes = b"f"
) -> Claim | Kept | Held:
    return await answers.of(ANNA).claim(name, body, detached=detached)


async def claimed(answers: Answers, name: str = "chat:k1", *, detached: bool = False) -> Claim:
    found = await claim(answers, name, detached=detached)
    assert not isinstance(found, Kept | Held), found
    return found


@pytest.mark.parametrize("kept", [HELLO, REFUSED])
async def test_what_was_answered_is_there_for_a_day_on_every_worker(
    shelves: Shelves, kept: Kept
) -> None:
    here, there = shelves.worker(), shelves.worker()
    mine = await claimed(here)
    assert await claim(here) is Held.RUNNING
    assert await claim(there) is Held.RUNNING
    mine.keep(kept)
    await shelves.written()
    assert await claim(here) == await claim(there) == kept
    await shelves.pass_(DAY - 1)
    assert await claim(there) == kept
    await shelves.pass_(1)
    assert not isinstance(await claim(there), Kept | Held)


async def test_another_request_under_the_same_name_is_told_apart(shelves: Shelves) -> None:
    worker = shelves.worker()
    mine = await claimed(worker)
    assert await claim(worker, body=b"g") is Held.OTHER
    mine.keep(HELLO)
    await shelves.written()
    assert await claim(worker, body=b"g") is Held.OTHER


async def test_what_came_to_nothing_may_be_tried_again_at_once(shelves: Shelves) -> None:
    here, there = shelves.worker(), shelves.worker()
    (await claimed(here)).release()
    await shelves.written()
    await claimed(there)


async def test_a_long_call_stays_its_workers_and_a_dead_workers_call_is_free_after_15_s(
    shelves: Shelves,
) -> None:
    here, there = shelves.worker(), shelves.worker()
    mine = await claimed(here)
    await shelves.pass_(100)
    assert await claim(there) is Held.RUNNING
    shelves.kill(here)
    await shelves.pass_(14.9)
    assert await claim(there) is Held.RUNNING
    await shelves.pass_(0.2)
    theirs = await claimed(there)
    mine.keep(REFUSED)  # it stood still and wakes up: too late
    mine.release()
    await shelves.written()
    assert await claim(there) is Held.RUNNING
    theirs.keep(HELLO)
    await shelves.written()
    assert await claim(there) == HELLO


async def test_who_waits_is_told_at_once_on_this_worker_and_soon_on_another(
    shelves: Shelves,
) -> None:
    here, there = shelves.worker(), shelves.worker()
    mine = await claimed(here)
    until = shelves.clock.monotonic() + 60
    near = asyncio.ensure_future(here.of(ANNA).changed("chat:k1", until))
    far = asyncio.ensure_future(there.of(ANNA).changed("chat:k1", until))
    await turns()
    assert not near.done()
    mine.keep(HELLO)
    await shelves.written()
    await near
    shelves.clock.advance(0.1)
    await far


async def test_nobody_waits_longer_than_he_said(shelves: Shelves) -> None:
    worker = shelves.worker()
    await claimed(worker)
    waiting = asyncio.ensure_future(
        worker.of(ANNA).changed("chat:k1", shelves.clock.monotonic() + 7)
    )
    await turns()
    shelves.clock.advance(7)
    await waiting
    assert await claim(worker) is Held.RUNNING


async def test_of_many_who_ask_at_once_one_may_answer(shelves: Shelves) -> None:
    workers = [shelves.worker() for _ in range(3)]
    found = await asyncio.gather(*(claim(workers[at % 3]) for at in range(12)))
    assert found.count(Held.RUNNING) == 11


@pytest.mark.parametrize("where", ["here", "there"])
async def test_a_detached_call_is_ended_from_any_worker(shelves: Shelves, where: str) -> None:
    here, there = shelves.worker(), shelves.worker()
    ended: list[bool] = []
    mine = await claimed(here, detached=True)
    mine.on_end(lambda: ended.append(True))
    drawer = (here if where == "here" else there).of(ANNA)
    assert await drawer.end("chat:k1") == "ended"
    await shelves.pass_(0.1)
    assert ended == [True]
    mine.keep(HELLO)
    mine.release()
    await shelves.written()
    assert await drawer.end("chat:k1") == "ended"
    assert await claim(here) is await claim(there) is Held.ENDED
    await shelves.pass_(60)
    await claimed(there)


async def test_what_is_not_detached_is_not_ended(shelves: Shelves) -> None:
    worker = shelves.worker()
    mine = await claimed(worker)
    assert await worker.of(ANNA).end("chat:k1") == "running"
    mine.keep(HELLO)
    await shelves.written()
    assert await worker.of(ANNA).end("chat:k1") == "kept"
    assert await worker.of(ANNA).end("chat:k2") is None


async def test_nothing_is_anybody_elses(shelves: Shelves) -> None:
    worker = shelves.worker()
    mine = await claimed(worker, detached=True)
    worker.of(ANNA).put("exact:1", HELLO, 60)
    await shelves.written()
    for other in OTHERS:
        drawer = worker.of(other)
        assert await drawer.get("exact:1", 60) is None
        assert await drawer.end("chat:k1") is None
        theirs = await drawer.claim("chat:k1", b"g", detached=False)
        assert not isinstance(theirs, Kept | Held)
        theirs.release()
    mine.keep(HELLO)
    await shelves.written()
    assert await claim(worker) == HELLO


async def test_the_cache_gives_what_is_young_enough_for_who_asks(shelves: Shelves) -> None:
    here, there = shelves.worker(), shelves.worker()
    here.of(ANNA).put("exact:1", HELLO, 60)
    await shelves.written()
    await shelves.pass_(30)
    assert await there.of(ANNA).get("exact:1", 31) == HELLO
    assert await there.of(ANNA).get("exact:1", 29) is None
    here.of(ANNA).put("exact:1", REFUSED, 60)
    await shelves.written()
    assert await there.of(ANNA).get("exact:1", 29) == REFUSED
    await shelves.pass_(60)
    assert await there.of(ANNA).get("exact:1", 3600) is None
