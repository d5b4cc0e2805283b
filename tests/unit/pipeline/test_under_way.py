"""The gauges of what is under way come back to 0 whatever becomes of a request."""

import pytest

from tests.support.fakes import World, answers, make_chain, refuses


@pytest.mark.parametrize("first", ["answers", "fails"])
async def test_counts_come_back_to_zero(first):
    scripts = {
        "gpt": answers() if first == "answers" else refuses("server_error"),
        "claude": answers(),
    }
    world = World(make_chain("gpt", "claude"), scripts)
    told = await world.begin().end()
    assert told.exchange.status == 200
    assert world.under_way.requests == {"smart": 0}
    assert set(world.under_way.attempts.values()) == {0}
