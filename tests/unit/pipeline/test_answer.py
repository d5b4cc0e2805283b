"""An answer that has begun: held, committed, delivered, ended, or broken off in plain words."""

import pytest

from gateway.core.request import Hints
from gateway.core.target import Cause, Failed
from gateway.core.usage import Usage
from gateway.pipeline.answer import MAX_HELD
from gateway.wire import json
from tests.support.fakes import (
    World,
    answers,
    broken,
    fails,
    finish,
    make_chain,
    make_target,
    role,
    streams,
    text,
    turns,
    usage,
)


async def streamed(*steps, chain=None, **request):
    world = World(chain or make_chain("gpt"), {"gpt": streams(*steps)})
    return world, await world.ask(stream=True, **request)


# -- before the commit


async def test_nothing_of_a_failed_attempt_reaches_the_caller():
    world = World(
        make_chain("gpt", "claude"), {"gpt": streams(role(), usage(), fails("cut_stream"))}
    )
    told = await world.ask(stream=True)
    assert told.exchange.path() == "gpt:cut_stream,claude:ok"
    assert told.reply.said == "hello"
    assert len(told.reply.events) == 4  # claude's own


async def test_a_200_whose_first_event_is_an_error_falls_back():
    world = World(make_chain("gpt", "claude"), {"gpt": streams(role(), broken("overloaded"))})
    told = await world.ask(stream=True)
    assert told.exchange.path() == "gpt:overloaded,claude:ok"
    assert world.ledger.lines[0].status == 200


async def test_an_empty_stream_falls_back():
    world = World(make_chain("gpt", "claude"), {"gpt": streams()})
    assert (await world.ask(stream=True)).exchange.path() == "gpt:cut_stream,claude:ok"


async def test_a_role_is_no_content_and_content_commits():
    world = World(make_chain("gpt"), {"gpt": streams(role(), 3.0, text(), 3.0, finish())})
    going = world.begin(stream=True)
    await turns()
    assert going.reply.headers is None
    world.clock.advance(3.0)
    await turns()
    assert [event.content for event in going.reply.events] == [False, True]
    told = await going.end()
    assert told.exchange.attempts[0].first_content == 1003.0


async def test_no_more_than_64_kib_are_held():
    big = role()._replace(wire=b"{" + b" " * MAX_HELD + b"}")
    world = World(make_chain("gpt", "claude"), {"gpt": streams(big, 5.0, fails("cut_stream"))})
    told = await world.ask(stream=True)
    assert world.upstreams.asked == ["gpt"]
    assert told.refusal.code == "cut_stream"


async def test_usage_told_before_a_failure_is_booked():
    world = World(make_chain("gpt"), {"gpt": streams(usage(Usage(input=70)), broken("quota"))})
    await world.ask(stream=True)
    assert world.ledger.lines[0].usage.input == 70


# -- after it


@pytest.mark.parametrize(
    ("end", "cause", "status"),
    [
        (broken("server_error"), "server_error", 502),
        (broken("malformed"), "malformed", 502),
        (fails("stalled"), "stalled", 504),
        (fails("cut_stream"), "cut_stream", 502),
        (30.0, "stalled", 504),
    ],
)
async def test_a_failure_after_content_is_told_and_what_came_before_is_delivered(
    end, cause, status
):
    world = World(make_chain("gpt", "claude"), {"gpt": streams(text("a"), text("b"), end)})
    told = await world.ask(stream=True)
    assert world.upstreams.asked == ["gpt"]
    assert told.reply.said == "ab"
    assert told.reply.note is None
    assert (told.refusal.code, told.refusal.status) == (cause, status)
    assert told.exchange.path() == f"gpt:{cause}"
    (line,) = world.ledger.lines
    assert line.outcome == cause
    assert line.usage.output >= 1
    assert "estimated" in line.flags
    assert "partial" in line.flags


async def test_content_before_an_error_in_the_same_read_is_delivered():
    _, told = await streamed([text("a"), broken("server_error"), text("never")])
    assert told.reply.said == "a"
    assert told.refusal.code == "server_error"


async def test_an_end_without_a_finish_is_cut_stream():
    _, told = await streamed(text("a"))
    assert told.refusal.code == "cut_stream"


# -- the end


@pytest.mark.parametrize("rest", [(9.0,), (fails("cut_stream"),), (broken("malformed"),), ()])
async def test_after_the_finish_nothing_can_spoil_the_answer(rest):
    world, told = await streamed(text(), finish(), *rest)
    assert told.error is None
    assert told.reply.note is not None
    assert world.clock.monotonic() <= 1002.0
    (line,) = world.ledger.lines
    assert (line.outcome, line.flags) == ("ok", "estimated")


async def test_silence_after_finish_and_usage_lasts_a_quarter_second():
    world, told = await streamed(text(), finish(), usage(), 9.0)
    assert told.error is None
    assert world.clock.monotonic() == 1000.25


async def test_a_slow_drip_after_the_finish_does_not_draw_out_the_end():
    drip = [1.0, usage()._replace(usage=None)] * 20
    world, told = await streamed(text(), finish(), *drip)
    assert told.error is None
    assert world.clock.monotonic() <= 1002.0


async def test_every_choice_has_to_finish():
    _, told = await streamed(text(), finish(), n=2)
    assert told.refusal.code == "cut_stream"
    _, told = await streamed(text(), finish(), finish(), n=2)
    assert told.error is None


async def test_a_stream_that_only_its_end_made_complete_is_finished():
    class Late:
        complete = False

        def feed(self, data):
            return ()

        def close(self):
            return (text("late"), finish(), usage())

    world = World(make_chain("gpt"), {"gpt": streams(role())})
    world.attempts.adapters["gpt"].decoder = lambda request: Late()
    told = await world.ask(stream=True)
    assert told.reply.said == "late"
    assert world.ledger.lines[0].outcome == "ok"
    assert world.ledger.lines[0].flags == ""


# -- usage


async def test_the_usage_frame_a_caller_asked_for_is_priced():
    _, told = await streamed(text(), finish(), usage(Usage(input=10, output=5)))
    assert json.loads(told.reply.events[-1].wire)["usage"]["cost_usd"] == "0.00002"
    assert told.exchange.cost.nano_usd == 20_000


async def test_the_price_in_the_usage_frame_counts_failed_attempts_too():
    world = World(make_chain("gpt", "claude"), {"gpt": streams(role(), 60.0)})
    told = await world.ask(stream=True)
    shown = json.loads(told.reply.events[-1].wire)["usage"]["cost_usd"]
    assert shown == told.exchange.cost.dollars() == "0.00003"


async def test_a_usage_frame_of_our_own_is_left_as_it_is():
    frame = usage(own=True)
    _, told = await streamed(text(), finish(), frame)
    assert told.reply.events[-1].wire == frame.wire
    assert told.exchange.attempts[0].usage == Usage(input=10, output=5)


async def test_an_unpriced_answer_is_never_free():
    chain = make_chain(make_target("gpt", prices=(), allow_unpriced=True))
    world, told = await streamed(text(), finish(), usage(), chain=chain)
    assert json.loads(told.reply.events[-1].wire)["usage"]["cost_usd"] is None
    assert world.ledger.lines[0].nano_usd is None
    assert b'"unknown"' in told.reply.note


async def test_the_last_usage_wins():
    world, _ = await streamed(usage(Usage(3, 1)), text(), finish(), usage(Usage(10, 7)))
    assert world.ledger.lines[0].usage == Usage(10, 7)


# -- checkpoints and trace


async def test_a_long_stream_leaves_checkpoints():
    world, _ = await streamed(*[text("x" * 350)] * 10, finish(), usage())
    assert [tokens for _, tokens in world.ledger.checkpoints] == [300, 600, 900]
    world, _ = await streamed(text("x"), 2.5, text("y"), finish(), usage())
    assert [tokens for _, tokens in world.ledger.checkpoints] == [1]


async def test_a_trace_comes_as_one_more_frame_of_the_same_answer():
    _, told = await streamed(text(), finish(), usage(), hints=Hints(trace=True))
    frame = json.loads(told.reply.events[-1].wire)
    assert frame["id"] == "c1"
    assert frame["choices"] == []
    assert frame["gateway"]["path"] == "gpt:ok"


async def test_a_whole_answer_carries_its_trace_and_its_cost():
    world = World(make_chain("gpt"), {"gpt": answers()})
    told = await world.ask(hints=Hints(trace=True))
    assert json.loads(told.reply.events[0].wire)["gateway"]["path"] == "gpt:ok"
    assert told.reply.headers["x-gateway-cost-usd"] == "0.00002"


async def test_the_idle_clock_starts_with_the_content_not_with_the_callers_read():
    """A caller that is slow to take the head must not make the upstream look silent."""
    world = World(make_chain("gpt"), {"gpt": streams(text(), finish(), usage())})
    seen = []
    real = world.upstreams.send

    def send(*args):
        sending = real(*args)
        progressed = sending.progressed
        sending.progressed = lambda: (seen.append(len(reply.events)), progressed())
        return sending

    world.upstreams.send = send
    going = world.begin(stream=True)
    reply = going.reply
    reply.blocks.add("start")
    await turns()
    assert seen == [0]
    await going.leave()


async def test_the_deadline_that_comes_while_the_caller_does_not_read_is_nobodys_fault():
    world = World(make_chain("gpt"), {"gpt": streams(text(), 1.0, finish())})
    real = world.upstreams.send

    def send(*args):
        sending = real(*args)
        leave = sending.__class__.__aexit__

        class Late(sending.__class__):
            async def __aexit__(self, kind, error, trace):
                await leave(self, kind, error, trace)
                if kind is not None:
                    raise Failed(fails(Cause.STALLED))

        sending.__class__ = Late
        return sending

    world.upstreams.send = send
    going = world.begin(stream=True)
    going.reply.blocks.add("write")
    await turns()
    going.task.cancel()  # as the transport's watchdog does it
    told = await going.end()
    assert (told.refusal.status, told.refusal.code) == (504, "deadline_exceeded")
    assert world.health.recorded == [("gpt", "deadline")]
    assert world.ledger.lines[0].usage.output >= 1
