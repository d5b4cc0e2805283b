"""The story of a request: its steps in order, and an end whatever happens."""

import asyncio

import pytest

from gateway.core.events import RequestEnded
from gateway.errors import InvalidRequest, RateLimited, TooLarge, Unauthenticated
from tests.support.fakes import (
    FakeCall,
    FakeReply,
    World,
    make_chain,
    make_request,
    make_target,
    slots,
    turns,
)


async def walk(world, call=None, **request):
    reply = FakeReply()
    await world.road(make_request(**request))(call or FakeCall(), reply)
    return reply


async def test_an_answer_comes_with_its_head_its_events_and_its_end():
    world = World(make_chain("gpt"))
    told = await world.ask()
    assert (told.reply.said, told.exchange.status) == ("hello", 200)
    assert told.exchange.finished
    assert told.reply.expected == 0


async def test_only_a_stream_is_kept_alive_while_it_waits():
    assert (await World(make_chain("gpt")).ask(stream=True)).reply.expected == 1


async def test_who_is_unknown_is_refused_before_the_body_is_read():
    class Unread(FakeCall):
        async def body(self):
            raise AssertionError("read")

    world = World(make_chain("gpt"))
    with pytest.raises(Unauthenticated):
        await walk(world, Unread(credential=None))
    (ended,) = [event for event in world.heard if isinstance(event, RequestEnded)]
    assert (ended.exchange.status, ended.exchange.chain_name) == (401, "_unknown")


@pytest.mark.parametrize("error", [TooLarge("large"), InvalidRequest("odd", param="messages")])
async def test_a_bad_body_ends_as_what_it_is(error):
    class Bad(FakeCall):
        async def body(self):
            raise error

    world = World(make_chain("gpt"))
    with pytest.raises(type(error)):
        await walk(world, Bad())
    assert world.ended("req1").status == error.status
    assert error.request_id == "req1"


async def test_a_mistake_of_ours_is_a_500_and_everything_is_back():
    world = World(make_chain(make_target("gpt", accounts=(slots(1),))))

    class Broken(FakeReply):
        async def write(self, events):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await world.road(make_request())(FakeCall(), Broken())
    assert world.ended("req1").status == 500
    assert world.upstreams.entered == world.upstreams.left == 1
    assert world.held([slots(1)]) == 0


@pytest.mark.parametrize("gone", [ConnectionResetError, asyncio.CancelledError])
async def test_a_caller_that_left_is_a_499(gone):
    world = World(make_chain("gpt"))

    class Gone(FakeReply):
        async def write(self, events):
            raise gone

    with pytest.raises(gone):
        await world.road(make_request(stream=True))(FakeCall(), Gone())
    assert world.ended("req1").status == 499
    assert world.health.recorded == [("gpt", "cancelled")]


async def test_a_caller_that_hangs_up_in_line_is_settled():
    from gateway.core.principal import Principal

    slot = slots(1, "key", "k")
    world = World(make_chain("gpt"), principal=Principal("k", accounts=(slot,), wait=9.0))
    world.upstreams.scripts["gpt"] = []
    reply = FakeReply()
    reply.blocks.add("write")
    first, second = world.begin(reply=reply), world.begin()
    await turns()
    assert world.queue.waiting == 1
    told = await second.leave()
    assert (told.exchange.status, world.queue.waiting) == (499, 0)
    assert told.exchange.attempts == []
    await first.leave()
    assert world.held([slot]) == 0


async def test_how_long_requests_take_teaches_the_line():
    world = World(make_chain("gpt"))
    await world.ask()
    assert "smart" in world.queue._service


async def test_an_error_tells_its_request_and_no_more_than_it_reached():
    world = World(make_chain("gpt"))
    world.authenticate._failures["192.0.2.1"] = 99
    world.authenticate._ends = 2000.0
    with pytest.raises(RateLimited) as caught:
        await walk(world)
    assert caught.value.told["x-gateway-chain"] == "_unknown"
    assert "x-gateway-attempts" not in caught.value.told
