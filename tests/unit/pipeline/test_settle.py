"""Usage, cost, slots and lines: told or honestly estimated, once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.attempt import Attempt, Exchange
from gateway.core.events import AttemptEnded, RequestEnded
from gateway.core.principal import Principal
from gateway.core.target import Account
from gateway.core.usage import Usage
from tests.support.fakes import (
    World,
    answers,
    fails,
    finish,
    make_chain,
    make_facts,
    make_target,
    refuses,
    silent,
    streams,
    text,
    unreachable,
    usage,
)

TPM = Account("key:k:tpm", "key", "k", "tpm", 100_000)
RPM = Account("key:k:rpm", "key", "k", "rpm", 10)
SLOT = Account("key:k:concurrency", "key", "k", "concurrency", 2)
CALLER = Principal("k", accounts=(RPM, TPM, SLOT))


def remaining(world):
    return [room.remaining for room in world.limiter.headroom(CALLER.accounts)]


async def test_told_usage_is_booked_as_it_is():
    world = World(make_chain("gpt"), {"gpt": answers(told=Usage(11, 7, cached=3))})
    await world.ask()
    (line,) = world.ledger.lines
    assert (line.usage, line.flags, line.nano_usd) == (Usage(11, 7, cached=3), "", 25_000)


async def test_usage_that_was_not_told_is_estimated_and_says_so():
    world = World(make_chain("gpt"), {"gpt": answers(told=None)})
    await world.ask()
    (line,) = world.ledger.lines
    assert line.usage == Usage(10, 2, estimated=True)
    assert line.flags == "estimated"


@pytest.mark.parametrize("told", [None, Usage(), Usage(0, 0)])
async def test_content_is_never_free(told):
    world = World(make_chain("gpt"), {"gpt": answers(told=told)})
    await world.ask(stream=True)
    assert world.ledger.lines[0].usage.output > 0
    assert world.ledger.lines[0].nano_usd > 0


async def test_usage_told_early_does_not_make_a_cut_answer_cheap():
    early = usage(Usage(50, 1))
    world = World(make_chain("gpt"), {"gpt": streams(early, text("x" * 700), fails("cut_stream"))})
    await world.ask(stream=True)
    assert world.ledger.lines[0].usage == Usage(50, 200, estimated=True)


async def test_usage_told_with_the_finish_is_the_truth_even_if_the_end_is_missing():
    world = World(make_chain("gpt"), {"gpt": streams(text("x" * 700), finish(), usage(), 9.0)})
    await world.ask(stream=True)
    assert world.ledger.lines[0].usage == Usage(10, 5)


@pytest.mark.parametrize(
    ("script", "booked"),
    [
        (unreachable("connect"), 0),
        (refuses("rate_limited", 429), 0),
        (refuses("server_error", 500), 0),
        (silent(), 10),  # the prompt was taken
    ],
)
async def test_a_failed_attempt_books_the_prompt_only_where_it_was_worked_on(script, booked):
    world = World(make_chain("gpt", "claude"), {"gpt": script})
    await world.ask()
    line = world.ledger.lines[0]
    assert line.usage.input == booked
    assert line.nano_usd == booked * 1000


async def test_a_request_costs_what_all_its_attempts_cost():
    world = World(make_chain("gpt", "claude"), {"gpt": silent()})
    told = await world.ask()
    assert told.exchange.cost.nano_usd == sum(line.nano_usd for line in world.ledger.lines)
    assert told.exchange.cost.nano_usd == 10_000 + 20_000


async def test_a_caller_is_charged_its_real_tokens_once_and_its_slot_comes_back():
    world = World(make_chain("gpt"), principal=CALLER)
    await world.ask()
    assert remaining(world) == [9, 100_000 - 15, 2]


async def test_a_request_that_nobody_could_answer_counts_one_request_and_no_tokens():
    world = World(make_chain("gpt"), {"gpt": refuses("bad_request", 400)}, principal=CALLER)
    await world.ask()
    assert remaining(world) == [9, 100_000, 2]


async def test_a_request_that_was_refused_counts_nothing():
    world = World(make_chain(make_target("gpt", prices=())), principal=CALLER)
    await world.ask()
    assert remaining(world)[1:] == [100_000, 2]


async def test_every_request_ends_with_one_event_and_every_attempt_with_one():
    world = World(make_chain("gpt", "claude"), {"gpt": refuses("overloaded", 503)})
    await world.ask()
    assert [type(event) for event in world.heard] == [AttemptEnded, AttemptEnded, RequestEnded]


async def test_settling_twice_changes_nothing():
    world = World(make_chain("gpt"), principal=CALLER)
    told = await world.ask()
    before = remaining(world), len(world.heard), len(world.ledger.lines)
    world.settle(told.exchange)
    for attempt in told.exchange.attempts:
        world.settle.attempt(told.exchange, attempt)
    assert (remaining(world), len(world.heard), len(world.ledger.lines)) == before


async def test_only_figures_the_provider_told_teach_what_to_expect():
    world = World(make_chain("gpt"), {"gpt": [answers(told=None), answers()]})
    await world.ask()
    assert world.outputs.expected("local", "gpt", 999) == 999
    await world.ask()
    assert world.outputs.expected("local", "gpt", 999) == 5


@given(
    st.none() | st.builds(Usage, st.integers(0, 100), st.integers(0, 100)),
    st.integers(0, 5000),
    st.booleans(),
    st.sampled_from([None, 200, 429, 500]),
    st.sampled_from([None, "cut_stream", "connect", "rate_limited", "first_token"]),
)
def test_delivered_content_always_has_usage(told, delivered, finished, status, cause):
    world = World(make_chain("gpt"))
    exchange = Exchange("r", "chat", 1000.0)
    exchange.facts = make_facts(world.chain)
    attempt = Attempt("r.1", world.chain.targets[0], 1000.0)
    attempt.usage, attempt.delivered, attempt.status = told, delivered, status
    attempt.first_content = 1000.0 if delivered else None
    attempt.finished = finished and cause is None
    attempt.failure = fails(cause) if cause else None
    world.under_way.asked(attempt.target.name)
    world.settle.attempt(exchange, attempt)
    assert attempt.usage is not None
    if delivered:
        assert attempt.usage.total > 0
        assert attempt.cost.nano_usd > 0
    if told is not None and told.total:
        assert attempt.usage.input == told.input
        assert attempt.usage.output >= told.output
