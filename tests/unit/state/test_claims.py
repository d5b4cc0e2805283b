"""Calls that hold a key, and those who wait for it."""

import asyncio

from gateway.state.claims import GLANCE, Claims, OwnClaim
from tests.support.clock import ManualClock
from tests.support.fakes import turns

HERE = ("key:k", "", "chat:1")


async def test_an_end_is_heard_once_whoever_is_first() -> None:
    claims, heard = Claims(ManualClock()), list[str]()
    claim = OwnClaim(HERE, detached=True)
    claims.began(claim)
    claims.ended("another's")
    claims.ended(claim.token)
    claim.on_end(lambda: heard.append("ended"))  # it was ended before it could be told how
    claims.ended_at(HERE)
    assert heard == ["ended"]
    claims.over(claim)
    assert claims.under_way() == []


async def test_what_is_under_way_here_is_waited_for_and_elsewhere_is_looked_at() -> None:
    clock = ManualClock()
    claims = Claims(clock)
    mine = OwnClaim(HERE, detached=False)
    claims.began(mine)
    near = asyncio.ensure_future(claims.wait(HERE, clock.monotonic() + 60))
    far = asyncio.ensure_future(claims.wait(("key:k", "", "chat:2"), clock.monotonic() + 60))
    await turns()
    clock.advance(GLANCE)
    await turns()
    assert (near.done(), far.done()) == (False, True)
    claims.over(mine)
    claims.ring(HERE)
    await near
    assert not claims._bells


async def test_an_older_claim_that_ends_does_not_end_the_newer_one_of_its_place() -> None:
    claims = Claims(ManualClock())
    older, newer = OwnClaim(HERE, detached=True), OwnClaim(HERE, detached=True)
    claims.began(older)
    claims.began(newer)
    claims.over(older)
    ended: list[bool] = []
    newer.on_end(lambda: ended.append(True))
    claims.ended_at(HERE)
    assert ended == [True]
    assert claims.under_way(detached=True) == [newer]
