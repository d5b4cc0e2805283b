"""The planner: who, in which order, with how much time; a pure function."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import Deadline
from gateway.core.plan import Standing
from gateway.core.principal import Principal
from gateway.core.request import Hints
from gateway.core.target import OneOf, Params, Retry
from gateway.pipeline.plan import MIN_ATTEMPT, Spent, most_reserved, plan, shortcut
from gateway.wire import json
from tests.support.fakes import (
    PRICE,
    make_chain,
    make_facts,
    make_leaf,
    make_request,
    make_state,
    make_target,
)


def ids(made):
    return [candidate.target.id for candidate in made.tries]


def causes(made):
    return {skip.target.id: skip.cause.value for skip in made.skipped}


def planned(*steps, state=None, spent=None, **facts):
    chain = make_chain(*steps)
    return plan(make_facts(chain, **facts), state or make_state(), spent or Spent())


# -- why a target is skipped


def test_a_target_named_by_x_gateway_skip_is_excluded():
    made = planned("gpt", "claude", hints=Hints(skip=frozenset({"gpt"})))
    assert ids(made) == ["claude"]
    assert causes(made) == {"gpt": "excluded"}


def test_a_target_that_lacks_an_ability_is_unable():
    made = planned(
        make_target("gpt", can=frozenset({"vision"})),
        make_target("claude", can=frozenset({"tools", "vision"})),
        "unknown",
        request=make_request(needs=frozenset({"tools"})),
    )
    assert ids(made) == ["claude", "unknown"]
    assert causes(made) == {"gpt": "unable"}
    assert made.skipped[0].detail == "lacks tools"


def test_a_parameter_that_was_refused_before_makes_unable():
    state = make_state(standings={"gpt": Standing(lacks=frozenset({"logit_bias"}))})
    request = make_request(members={"logit_bias": json.raw({})})
    assert causes(planned("gpt", "claude", state=state, request=request)) == {"gpt": "unable"}
    assert causes(planned("gpt", "claude", state=state)) == {}


def test_a_prompt_with_its_output_has_to_fit_the_context():
    request = make_request(prompt=900, max_output=200)
    made = planned(make_target("gpt", context=1000), make_target("big", context=1100),
                   request=request)  # fmt: skip
    assert ids(made) == ["big"]
    assert causes(made) == {"gpt": "context_length"}


def test_after_context_length_only_a_larger_or_unknown_context_is_asked():
    made = planned(
        make_target("same", context=1000),
        make_target("larger", context=1001),
        "unknown",
        spent=Spent(larger_than=1000, calls=1),
    )
    assert ids(made) == ["larger", "unknown"]
    assert causes(made) == {"same": "context_length"}


def test_when_only_our_estimate_says_too_long_the_largest_is_asked_all_the_same():
    request = make_request(prompt=1500)
    steps = (make_target("small", context=800), make_target("large", context=1000))
    made = planned(*steps, request=request)
    assert ids(made) == ["large"]
    assert causes(made) == {"small": "context_length"}
    assert made.tries[0].bound.nano_usd == 1500 * 1000 + made.tries[0].output * 2000
    assert ids(planned(*steps, request=make_request(prompt=5000))) == []


def test_a_target_above_max_cost_is_too_dear():
    request = make_request(max_output=100)  # 10 x 1,000 + 100 x 2,000 nano
    chain = make_chain("gpt", max_cost=209_999)
    assert causes(plan(make_facts(chain, request=request), make_state())) == {"gpt": "too_dear"}
    chain = make_chain("gpt", max_cost=210_000)
    assert ids(plan(make_facts(chain, request=request), make_state())) == ["gpt"]
    made = planned("gpt", request=request, hints=Hints(max_cost=1))
    assert causes(made) == {"gpt": "too_dear"}


def test_a_target_without_a_price_is_too_dear_unless_that_is_allowed():
    made = planned(
        make_target("gpt", prices=()), make_target("free", prices=(), allow_unpriced=True)
    )
    assert causes(made) == {"gpt": "too_dear"}
    assert not made.tries[0].bound.known


def test_a_price_that_is_not_yet_in_force_is_none():
    later = replace(PRICE, since=2_000_000_000.0)
    assert causes(planned(make_target("gpt", prices=(later,)))) == {"gpt": "too_dear"}


@pytest.mark.parametrize(
    ("standing", "cause"),
    [
        (Standing(aside_until=1060.0), "key_aside"),
        (Standing(open_until=1005.0), "breaker_open"),
        (Standing(half_open=True, probing=True), "breaker_open"),
        (Standing(share=0.0), "breaker_open"),
        (Standing(throttled_until=1003.0), "throttled"),
        (Standing(aside_until=1060.0, open_until=1005.0, throttled_until=1003.0), "key_aside"),
    ],
)
def test_a_target_that_rests_is_skipped_with_the_moment_it_may_be_over(standing, cause):
    made = planned("gpt", "claude", state=make_state(standings={"gpt": standing}))
    assert ids(made) == ["claude"]
    assert causes(made) == {"gpt": cause}
    assert made.skipped[0].until > 1000.0


def test_rest_that_is_over_is_no_reason():
    rested = Standing(open_until=999.0, throttled_until=1000.0, aside_until=1.0)
    assert ids(planned("gpt", state=make_state(standings={"gpt": rested}))) == ["gpt"]


def test_a_target_whose_accounts_are_full_has_no_headroom():
    made = planned("gpt", state=make_state(waits={"gpt": 0.7}))
    assert causes(made) == {"gpt": "no_headroom"}
    assert made.skipped[0].until == 1000.7


def test_a_recovering_target_gets_its_share_of_requests():
    state = make_state(standings={"gpt": Standing(share=0.25)})
    chain = make_chain("gpt", "claude")
    firsts = Counter(ids(plan(make_facts(chain, id=f"r{n}"), state))[0] for n in range(2000))
    assert 400 < firsts["gpt"] < 600


# -- order


def test_targets_stand_in_the_order_of_the_file():
    assert ids(planned("a", "b", "c")) == ["a", "b", "c"]


def test_chains_hold_targets_groups_and_chains_and_repeats_are_dropped():
    inner = (make_leaf("b"), make_leaf("c"))
    group = OneOf(((1, (make_leaf("d"),)), (1, (*inner, OneOf(((1, (make_leaf("e"),)),))))))
    orders = {
        tuple(ids(plan(make_facts(make_chain("a", group, "b", "f", retry=Retry(attempts=9)),
                                  id=f"r{n}"), make_state())))
        for n in range(50)
    }  # fmt: skip
    assert orders == {("a", "d", "b", "c", "e", "f"), ("a", "b", "c", "e", "d", "f")}


def test_one_of_has_exact_shares():
    chain = make_chain(OneOf(((70, (make_leaf("east"),)), (30, (make_leaf("west"),)))))
    first = Counter(
        ids(plan(make_facts(chain, id=f"r{n}"), make_state()))[0] for n in range(10_000)
    )
    assert abs(first["east"] / 10_000 - 0.7) < 0.015


@given(st.text(min_size=1), st.integers(0, 3))
def test_losing_a_member_of_a_group_moves_only_its_share(draw, lost):
    group = OneOf(tuple((1 + n, (make_leaf(f"m{n}"),)) for n in range(4)))
    facts = make_facts(make_chain(group), id=draw)
    whole = ids(plan(facts, make_state()))
    down = make_state(standings={f"m{lost}": Standing(open_until=2000.0)})
    assert ids(plan(facts, down)) == [id for id in whole if id != f"m{lost}"]


def test_the_keys_of_a_provider_are_spread_by_weight_and_follow_one_another():
    keys = make_leaf(make_target("gpt#a", weight=3), make_target("gpt#b", weight=1))
    orders = [
        ids(plan(make_facts(make_chain(keys, "claude"), id=f"r{n}"), make_state()))
        for n in range(4000)
    ]
    assert all(order[2] == "claude" for order in orders)
    assert abs(sum(order[0] == "gpt#a" for order in orders) / 4000 - 0.75) < 0.025


def test_fallback_off_leaves_one_target():
    off = Hints(fallback=False)
    assert ids(planned("gpt", "claude", hints=off)) == ["gpt"]
    assert ids(planned("gpt", "claude", hints=off, spent=Spent(frozenset({"gpt"}), calls=1))) == []


def test_what_was_tried_is_not_asked_again():
    assert ids(planned("a", "b", spent=Spent(frozenset({"a"}), calls=1))) == ["b"]


def test_the_chain_in_on_is_walked_instead_but_keeps_the_requests_attempts():
    other = make_chain("big", "bigger", name="long", retry=Retry(attempts=1))
    made = planned("a", "b", spent=Spent(frozenset({"a"}), calls=2, chain=other))
    assert made.chain is other
    assert ids(made) == ["big", "bigger"]


# -- time


def test_no_more_targets_are_planned_than_calls_are_left():
    chain = make_chain(*"abcdef", retry=Retry(attempts=3))
    assert ids(plan(make_facts(chain), make_state())) == ["a", "b", "c"]
    assert len(plan(make_facts(chain), make_state(), Spent(frozenset("a"), calls=2)).tries) == 1


clocks = st.lists(st.floats(0.1, 60), min_size=1, max_size=5)


@given(clocks, st.integers(0, 120_000).map(lambda ms: ms / 1000), st.booleans())
def test_planned_times_end_by_the_deadline_and_leave_later_targets_their_share(
    firsts, left, stream
):
    steps = [make_leaf(f"t{n}", first_token=c, answer=c) for n, c in enumerate(firsts)]
    chain = make_chain(*steps, retry=Retry(attempts=5))
    facts = make_facts(chain, deadline=Deadline(1000.0 + left), request=make_request(stream=stream))
    made = plan(facts, make_state())
    if facts.deadline.at - 1000.0 < MIN_ATTEMPT:
        assert made.tries == ()
        return
    assert len(made.tries) == len(firsts)
    for candidate, clock in zip(made.tries, firsts, strict=True):
        assert 0 < candidate.seconds <= clock
        assert candidate.seconds <= left + 1e-9
    needs = sum(max(0.25, clock / 4) for clock in firsts)
    if needs + 0.01 <= left:  # every one of them hangs, and every one had its share
        gone = 0.0
        for n, clock in enumerate(firsts):
            again = plan(
                json.changed(facts, deadline=Deadline(1000.0 + left - gone)),
                make_state(),
                Spent(frozenset(f"t{m}" for m in range(n)), calls=n),
            )
            had = again.tries[0].seconds
            assert had >= min(clock, max(0.25, clock / 4)) - 1e-6
            gone += had
        assert gone <= left + 1e-6


def test_reserves_are_given_back_from_the_last_one_on():
    steps = [make_leaf(name, first_token=10.0) for name in "abc"]
    chain = make_chain(*steps)
    for left, seconds in ((100, 10.0), (12, 7.0), (6, 3.5), (3.5, 3.5)):
        facts = make_facts(
            chain, deadline=Deadline(1000.0 + left), request=make_request(stream=True)
        )
        assert plan(facts, make_state()).tries[0].seconds == seconds


def test_a_short_clock_is_no_reason_to_ask_nobody():
    made = planned("gpt", hints=Hints(first_token=0.1), request=make_request(stream=True))
    assert made.tries[0].seconds == 0.1


def test_a_probe_has_half_its_first_token_time():
    state = make_state(standings={"gpt": Standing(half_open=True)})
    made = planned("gpt", state=state, request=make_request(stream=True))
    assert made.tries[0].probe
    assert made.tries[0].seconds == 5.0


REASONS = frozenset({"reasoning"})


@pytest.mark.parametrize(
    ("target", "members", "seconds"),
    [
        (make_target("gpt"), {}, 10.0),
        (make_target("gpt", can=REASONS), {}, 60.0),
        (make_target("gpt", can=REASONS), {"reasoning_effort": "high"}, 60.0),
        (make_target("gpt", can=REASONS), {"reasoning_effort": "low"}, 10.0),
        (make_target("gpt", can=REASONS), {"reasoning_effort": "minimal"}, 10.0),
        (make_target("gpt", can=REASONS, params=Params(default={"reasoning_effort":
            json.raw("low")})), {}, 10.0),
        (make_target("gpt", can=REASONS, params=Params(default={"reasoning_effort":
            json.raw("low")})), {"reasoning_effort": "high"}, 60.0),
        (make_target("gpt", can=REASONS, params=Params(set={"reasoning_effort":
            json.raw("none")})), {"reasoning_effort": "high"}, 10.0),
        (make_target("gpt", can=REASONS, params=Params(drop=frozenset({"reasoning_effort"}))),
            {"reasoning_effort": "low"}, 60.0),
    ],
)  # fmt: skip
def test_silent_reasoning_has_more_time(target, members, seconds):
    raw = {name: json.raw(value) for name, value in members.items()}
    made = planned(target, request=make_request(stream=True, members=raw))
    assert made.tries[0].seconds == seconds


def test_x_gateway_first_token_only_shortens():
    stream = make_request(stream=True)
    for wish, seconds in ((2.0, 2.0), (99.0, 10.0)):
        made = planned("gpt", hints=Hints(first_token=wish), request=stream)
        assert made.tries[0].seconds == seconds


# -- bounds


@pytest.mark.parametrize(
    ("stated", "tier", "target", "cap", "n", "bound"),
    [
        (None, None, None, None, 1, 4096),
        (None, None, 800, None, 1, 800),
        (None, 1024, 800, None, 1, 800),
        (None, 1024, None, None, 1, 1024),
        (100, 1024, 800, None, 1, 100),
        (5000, None, 800, None, 1, 800),
        (5000, None, 8000, 600, 1, 600),
        (100, None, None, None, 3, 300),
    ],
)
def test_the_output_is_bounded_by_caller_tier_target_and_cap(stated, tier, target, cap, n, bound):
    params = Params(cap={"max_tokens": cap} if cap else {})
    made = planned(
        make_target("gpt", max_output=target, params=params),
        request=make_request(max_output=stated, n=n),
        principal=Principal("k", default_max_tokens=tier),
    )
    assert made.tries[0].output == bound
    assert made.tries[0].bound.nano_usd == 10 * 1000 + bound * 2000


# -- the same again

standings = st.builds(
    Standing,
    open_until=st.sampled_from([0.0, 1001.0]),
    half_open=st.booleans(),
    probing=st.booleans(),
    share=st.sampled_from([1.0, 0.5]),
    throttled_until=st.sampled_from([0.0, 1002.0]),
    aside_until=st.sampled_from([0.0, 1060.0]),
)


@given(st.text(min_size=1), st.dictionaries(st.sampled_from("abcd"), standings))
def test_a_stored_plan_replays_exactly(draw, standing):
    group = OneOf(((2, (make_leaf("b"),)), (3, (make_leaf("c"), make_leaf("d")))))
    facts = make_facts(make_chain("a", group), id=draw)
    state = make_state(standings=standing)
    assert plan(facts, state) == plan(facts, state)


@given(st.text(min_size=1), st.dictionaries(st.sampled_from("abcd"), standings))
def test_a_plan_is_the_same_streaming_or_not(draw, standing):
    group = OneOf(((2, (make_leaf("b"),)), (3, (make_leaf("c"), make_leaf("d")))))
    facts = make_facts(make_chain("a", group), id=draw)
    state = make_state(standings=standing)
    whole = plan(facts, state)
    stream = plan(json.changed(facts, request=make_request(stream=True)), state)
    assert ids(whole) == ids(stream)
    assert whole.skipped == stream.skipped


@given(st.dictionaries(st.sampled_from("abcd"), standings), st.integers(0, 4))
def test_every_target_is_either_asked_or_told_why_not(standing, calls):
    chain = make_chain(*"abcd", retry=Retry(attempts=9))
    made = plan(make_facts(chain), make_state(standings=standing), Spent(calls=calls))
    assert sorted([*ids(made), *causes(made)]) == list("abcd")


# -- the short way


@given(
    contexts=st.lists(st.sampled_from([None, 50, 5_000]), min_size=1, max_size=4),
    prompt=st.integers(1, 6_000),
    needs=st.sets(st.sampled_from(["tools", "vision"])),
    can=st.sampled_from([None, frozenset(), frozenset({"tools", "reasoning"})]),
    left=st.floats(0.1, 400),
    stream=st.booleans(),
    hints=st.sampled_from([Hints(), Hints(skip=frozenset({"t0"})), Hints(fallback=False)]),
)
def test_the_short_way_begins_where_the_whole_plan_does(
    contexts, prompt, needs, can, left, stream, hints
):
    chain = make_chain(
        *(make_target(f"t{i}", context=context, can=can) for i, context in enumerate(contexts))
    )
    request = make_request(prompt=prompt, needs=frozenset(needs), stream=stream)
    facts = make_facts(chain, request=request, hints=hints, deadline=Deadline(1000.0 + left))
    whole = plan(facts, make_state())
    calm = shortcut(facts, make_state(), most_reserved(chain))
    if calm is None:
        return
    assert not calm.whole
    assert calm.tries == whole.tries[:1]
    assert not [s for s in whole.skipped if s.target is calm.tries[0].target]


def test_most_requests_take_the_short_way():
    facts = make_facts(make_chain("gpt", "claude"))
    assert shortcut(facts, make_state(), most_reserved(facts.chain)) is not None
