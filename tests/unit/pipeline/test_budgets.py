"""Budgets on the road: what binds a request, what is held, what a refusal says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.budget import Budget, allowances
from gateway.core.principal import Principal, SubLimits
from gateway.core.target import Account, Params
from gateway.core.usage import Price, Usage
from gateway.pipeline.budgets import Budgets, most_prompt
from gateway.wire import json
from tests.support.fakes import (
    Says,
    World,
    answers,
    broken,
    make_chain,
    make_facts,
    make_request,
    make_target,
    refuses,
    role,
    streams,
    text,
    turns,
)

NOON = 1_800_000_000.0  # of the ManualClock: 2027-01-15T08:00:00Z
COST = 20_000  # nano-dollars of `answers()`


def caller(*budgets, **more):
    return Principal("k", budgets=allowances("key", "k", budgets), **more)


def bound(prompt, output):
    """What the fakes' price makes of it, by the bytes of a request without members."""
    return prompt * 1_000 + output * 2_000


def chat(*contents):
    messages = [{"role": "user", "content": content} for content in contents]
    return make_request(members={"model": json.raw("m"), "messages": json.raw(messages)})


# -- what binds


def test_accounts_are_those_of_the_period_and_made_once_in_it():
    principal = caller(Budget("hour", 1), Budget("day", 2), Budget("month", 3), Budget("total", 4))
    facts = make_facts(make_chain("gpt"), principal=principal)
    budgets = Budgets()
    first = budgets.purse(facts, NOON)
    assert first.ids == (
        "key:k:budget:hour:2027-01-15T08",
        "key:k:budget:day:2027-01-15",
        "key:k:budget:month:2027-01",
        "key:k:budget:total",
    )
    assert budgets.purse(facts, NOON + 3_599).windows is first.windows
    later = budgets.purse(facts, NOON + 3_600)
    assert later.ids[0] == "key:k:budget:hour:2027-01-15T09"
    assert later.ids[1:] == first.ids[1:]
    before = budgets.purse(facts, NOON - 1)  # the clock was put back
    assert before.ids[0] == "key:k:budget:hour:2027-01-15T07"


def test_a_reload_with_other_budgets_is_followed_at_once():
    budgets = Budgets()
    facts = make_facts(make_chain("gpt"), principal=caller(Budget("day", 2)))
    budgets.purse(facts, NOON)
    wider = json.changed(facts, principal=caller(Budget("day", 3)))
    assert [one.account.limit for one in budgets.purse(wider, NOON).windows] == [3]


def test_users_of_different_keys_never_share_and_a_session_is_nothing_one_must_have():
    within = SubLimits(user_budgets=(Budget("day", 1),), session_budgets=(Budget("total", 2),))
    facts = make_facts(make_chain("gpt"), principal=Principal("a:b", sub_limits=within), user="c")
    of_colon = Budgets().purse(facts, NOON).ids
    other = json.changed(facts, principal=Principal("a", sub_limits=within), user="b:c")
    assert len({*of_colon, *Budgets().purse(other, NOON).ids}) == 2
    session = Budgets().purse(json.changed(facts, session="s"), NOON)
    assert session.ids[1] == "session:a%3Ab:s:budget:total"
    only = SubLimits(session_budgets=(Budget("total", 2),))
    nothing = json.changed(facts, principal=Principal("a", sub_limits=only))
    assert Budgets().purse(nothing, NOON) is None


# -- bounds


def test_the_prompt_is_bounded_by_bytes_messages_and_images():
    plain = most_prompt(chat("a" * 100))
    assert 100 + 16 < plain < 100 + 16 + 80
    assert most_prompt(chat("a" * 100, "")) - plain > 16
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9_000}}
    parts = [{"type": "text", "text": "a" * 100}, image]
    assert 3_000 < most_prompt(chat(parts)) - plain < 3_100


@pytest.mark.parametrize(
    "request_",
    [
        chat([{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]),
        chat([{"type": "file", "file": {"file_id": "f"}}]),
        chat([{"type": "text", "text": "a"}, {"type": "of_next_year"}]),
        make_request(members={"messages": json.raw([]), "web_search_options": json.raw({})}),
    ],
)
def test_what_no_count_of_bytes_bounds_has_no_bound(request_):
    assert most_prompt(request_) is None


tokens = st.integers(0, 300_000)
prices = st.builds(
    Price,
    st.just("p"),
    *(st.integers(0, 10**10) for _ in range(2)),
    cached_input=st.none() | st.integers(0, 10**10),
    cache_write_5m=st.none() | st.integers(0, 10**10),
    reasoning=st.none() | st.integers(0, 10**10),
    request=st.integers(0, 10**6),
    above=st.lists(
        st.tuples(
            st.integers(1, 250_000),
            st.builds(Price, st.just("q"), st.integers(0, 10**10), st.integers(0, 10**10)),
        ),
        max_size=2,
    ).map(lambda rows: tuple(sorted(rows, key=lambda row: row[0]))),
)


@given(prices, tokens, tokens, st.data())
def test_nothing_within_the_bounds_costs_more_than_was_held(price, prompt, output, data):
    used = Usage(
        input=data.draw(st.integers(0, prompt)),
        output=data.draw(st.integers(0, output)),
        cached=data.draw(st.integers(0, prompt)),
        cache_write_5m=data.draw(st.integers(0, prompt)),
        reasoning=data.draw(st.integers(0, output)),
    )
    assert price.cost(used).nano_usd <= price.most(prompt, output, audio=False).nano_usd


async def test_where_the_prompt_has_no_bound_the_context_is_held_or_the_target_skipped():
    odd = chat([{"type": "file", "file": {}}])
    for context, path in ((None, "gpt:too_dear"), (100, "gpt:ok")):
        target = make_target("gpt", context=context)
        principal = caller(Budget("day", bound(100, 10)))
        world = World(make_chain(target), {"gpt": answers()}, principal=principal)
        told = await world.ask(max_output=10, members=odd.members)
        assert told.exchange.path() == path


async def test_a_target_that_may_not_be_told_a_bound_is_skipped():
    drops = Params(drop=frozenset({"max_tokens", "max_completion_tokens"}))
    world = World(
        make_chain(make_target("gpt", params=drops), "claude"),
        {"claude": answers()},
        principal=caller(Budget("day", 10**9)),
    )
    told = await world.ask(max_output=10)
    assert told.exchange.path() == "gpt:too_dear,claude:ok"


# -- held, extended, settled


def left(world, account):
    (room,) = world.limiter.headroom([account])
    return room.remaining


async def test_each_attempt_is_held_before_it_is_made_and_settled_once():
    name = "key:k:budget:day:2027-01-15"
    world = World(
        make_chain("gpt", "claude"),
        {"gpt": refuses("overloaded", 503), "claude": answers(delay=1.0)},
        principal=caller(Budget("day", 10**9)),
    )
    going = world.begin(max_output=10)
    await turns()
    first, second = world.ledger.opened.values()
    assert first.budgets == second.budgets == (name,)
    account = Account(name, "key", "k", "budget", 10**9)
    assert left(world, account) == 10**9 - first.bound - second.bound
    told = await going.end()
    assert told.error is None
    assert left(world, account) == 10**9 - COST
    assert told.exchange.cost.nano_usd == sum(one.nano_usd for one in world.ledger.lines) == COST


async def test_a_retry_that_the_budget_cannot_hold_is_not_made():
    world = World(
        make_chain("gpt"),
        {"gpt": [refuses("server_error"), answers()]},
        principal=caller(Budget("day", 50_000)),
    )
    told = await world.ask(max_output=10)
    assert world.upstreams.asked == ["gpt"]
    assert told.exchange.path() == "gpt:server_error,gpt:too_dear"
    assert told.refusal.status == 502
    assert (await world.ask(max_output=10)).error is None  # what failed was free


async def test_an_estimate_of_a_broken_answer_is_never_above_what_was_held():
    says: Says = streams(role(), text("x" * 9_000), broken("cut_stream"))
    world = World(make_chain("gpt"), {"gpt": says}, principal=caller(Budget("day", 10**9)))
    told = await world.ask(max_output=10, stream=True)
    (opening,), (line,) = world.ledger.opened.values(), world.ledger.lines
    assert line.flags == "estimated,partial"
    assert line.nano_usd == opening.bound == told.exchange.cost.nano_usd


# -- refused


async def test_who_comes_while_all_is_held_hears_what_would_fit():
    principal = caller(Budget("total", 100_000))
    world = World(make_chain("gpt"), {"gpt": answers(delay=1.0)}, principal=principal)
    first = world.begin(max_output=30)
    await turns()
    refusal = (await world.begin(max_output=30).end()).refusal
    assert (refusal.status, refusal.type, refusal.code) == (429,) + ("insufficient_quota",) * 2
    assert refusal.body()["error"]["resets_at"] is None
    assert refusal.headers()["x-should-retry"] == "false"
    assert "retry-after" not in refusal.headers()
    assert "$0.0001 in total of this API key" in refusal.message
    assert "$0.000076 is spent or held" in refusal.message
    assert "max_tokens of at most 4 it fits now" in refusal.message
    fits = world.begin(max_output=4)
    await turns()
    assert (await first.end()).error is None
    assert (await fits.end()).error is None


async def test_a_refusal_leaves_nothing_held():
    budgets = (Budget("hour", 10**9), Budget("day", 10))
    world = World(make_chain("gpt"), {}, principal=caller(*budgets))
    for _ in range(3):
        told = await world.ask(max_output=10)
        assert told.refusal.code == "insufficient_quota"
        assert "per day" in told.refusal.message
    rooms = world.limiter.headroom(told.exchange.facts.purse.accounts)
    assert [room.remaining for room in rooms] == [10**9, 10]


async def test_the_message_says_when_the_period_ends():
    world = World(make_chain("gpt"), {}, principal=caller(Budget("month", 10)))
    told = await world.ask(max_output=10)
    assert told.refusal.body()["error"]["resets_at"] == "2027-02-01T00:00:00Z"
    assert "whole again at 2027-02-01T00:00:00Z" in told.refusal.message


async def test_at_midnight_a_day_begins_anew_and_who_runs_over_it_counts_where_it_began():
    principal = caller(Budget("day", 40_000))
    world = World(
        make_chain("gpt"),
        {"gpt": answers(delay=30.0)},
        principal=principal,
    )
    world.clock.advance(16 * 3_600.0 - 10.0)  # ten seconds before midnight
    late = world.begin(max_output=10)
    await turns()
    assert (await world.ask(max_output=10)).refusal.code == "insufficient_quota"
    world.clock.advance(11.0)
    early = world.begin(max_output=10)
    await turns()
    assert (await late.end()).error is None
    assert (await early.end()).error is None
    assert [one.budgets for one in world.ledger.opened.values()] == [
        ("key:k:budget:day:2027-01-15",),
        ("key:k:budget:day:2027-01-16",),
    ]


async def test_a_caller_without_budgets_has_none():
    world = World(make_chain("gpt"), {"gpt": answers()}, principal=Principal("k"))
    told = await world.ask()
    assert told.exchange.facts.purse is None
    assert not told.exchange.principal.budgeted
    (opening,) = world.ledger.opened.values()
    assert opening.budgets == ()
