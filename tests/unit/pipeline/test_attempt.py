"""The walk along the targets: what follows every cause, how often, how soon, and who is told."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.plan import Standing
from gateway.core.request import Hints
from gateway.core.target import WAY_ON, Account, Cause, Retry
from tests.support.fakes import (
    FakeReply,
    Says,
    World,
    answers,
    broken,
    fails,
    finish,
    make_chain,
    make_leaf,
    make_target,
    refuses,
    role,
    silent,
    slots,
    streams,
    text,
    turns,
    unreachable,
    until,
    usage,
)

NOISE = ["connect", "server_error", "malformed"]
MOVES = ["timeout", "first_token", "quota", "auth", "model_gone", "unable", "overloaded",
         "rate_limited", "cut_stream", "stalled"]  # fmt: skip
STOPS = ["bad_request", "content_policy"]
STATUS = {"rate_limited": 429, "quota": 402, "auth": 401, "overloaded": 503, "model_gone": 404,
          "unable": 400, "bad_request": 400, "content_policy": 400, "context_length": 400,
          "server_error": 500}  # fmt: skip
both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def says(cause: str, **changed) -> Says:
    status = STATUS.get(cause)
    return refuses(cause, status, **changed) if status else unreachable(cause)


def all_back(world: World) -> World:
    """Whatever happened: contexts, lines, slots and probes are all back."""
    assert world.upstreams.open == 0
    assert world.upstreams.entered == world.upstreams.left
    assert set(world.ledger.closed) == set(world.ledger.opened)
    assert getattr(world.health, "probes", set()) == set()
    for target in world.chain.targets:
        assert world.held([a for a in target.accounts if a.kind == "concurrency"]) == 0
    return world


# -- what follows each cause


@both
@pytest.mark.parametrize("cause", NOISE)
async def test_noise_is_tried_once_more_at_once_on_the_same_target(cause, stream):
    world = World(make_chain("gpt", "claude"), {"gpt": [says(cause), answers()]})
    told = await world.ask(stream=stream)
    assert told.error is None
    assert world.upstreams.asked == ["gpt", "gpt"]
    assert told.exchange.path() == f"gpt:{cause},gpt:ok"
    assert [a.kind for a in told.exchange.attempts] == ["answer", "retry"]
    assert world.clock.monotonic() - 1000 <= 0.25
    assert world.health.budget == 9
    all_back(world)


@both
@pytest.mark.parametrize("cause", NOISE)
async def test_noise_twice_goes_on_to_the_next_target(cause, stream):
    world = World(make_chain("gpt", "claude"), {"gpt": says(cause)})
    told = await world.ask(stream=stream)
    assert world.upstreams.asked == ["gpt", "gpt", "claude"]
    assert told.exchange.path() == f"gpt:{cause},gpt:{cause},claude:ok"
    assert told.reply.said == "hello"
    all_back(world)


@both
@pytest.mark.parametrize("cause", MOVES)
async def test_other_causes_move_on_at_once(cause, stream):
    world = World(make_chain("gpt", "claude"), {"gpt": says(cause)})
    told = await world.ask(stream=stream)
    assert world.upstreams.asked == ["gpt", "claude"]
    assert world.clock.monotonic() == 1000.0  # nobody slept
    assert told.exchange.path() == f"gpt:{cause},claude:ok"
    assert told.exchange.trail == [("gpt", cause)]
    assert [a.outcome for a in told.exchange.attempts] == [cause, "ok"]
    assert told.reply.headers["x-gateway-attempts"] == "2"
    all_back(world)


@both
@pytest.mark.parametrize("cause", STOPS)
async def test_the_callers_own_mistake_makes_exactly_one_call(cause, stream):
    world = World(make_chain("gpt", "claude"), {"gpt": says(cause)})
    told = await world.ask(stream=stream)
    assert world.upstreams.asked == ["gpt"]
    assert told.refusal.status == 400
    assert told.reply.headers is None
    all_back(world)


def test_every_cause_of_a_call_is_tested_here():
    assert {*NOISE, *MOVES, *STOPS, "context_length"} == {cause.value for cause in WAY_ON}


@pytest.mark.parametrize("cause", [*NOISE, *MOVES, *STOPS, "context_length"])
async def test_the_walk_is_the_same_streaming_or_not(cause):
    walks = []
    for stream in (False, True):
        world = World(make_chain("gpt", "claude", "llama"), {"gpt": says(cause)})
        told = await world.ask(stream=stream)
        walks.append((world.upstreams.asked, told.exchange.path(), told.exchange.status))
    assert walks[0] == walks[1]


async def test_bad_request_stops_even_where_on_says_next():
    chain = make_chain("gpt", "claude", on={Cause.BAD_REQUEST: "next"})
    world = World(chain, {"gpt": says("bad_request")})
    await world.ask()
    assert world.upstreams.asked == ["gpt"]


# -- noise


async def test_noise_that_took_long_is_not_repeated_while_another_is_left():
    world = World(make_chain("gpt", "claude"), {"gpt": refuses("server_error", delay=2.1)})
    await world.ask()
    assert world.upstreams.asked == ["gpt", "claude"]


async def test_a_retry_counts_on_the_targets_accounts_like_any_call():
    account = Account("target:gpt:rpm", "target", "gpt", "rpm", 10)
    chain = make_chain(make_target("gpt", accounts=(account,)))
    world = World(chain, {"gpt": [says("connect"), answers()]})
    await world.ask()
    assert world.held([account]) == 2


async def test_noise_is_not_repeated_without_retry_budget():
    world = World(make_chain("gpt", "claude"), {"gpt": says("server_error")})
    world.health.budget = 0
    await world.ask()
    assert world.upstreams.asked == ["gpt", "claude"]


async def test_noise_is_not_repeated_where_the_breaker_has_opened():
    world = World(make_chain("gpt", "claude"), {"gpt": says("server_error")})
    world.health.after = lambda attempt: world.health.standings.update(
        gpt=Standing(open_until=2000.0)
    )
    await world.ask()
    assert world.upstreams.asked == ["gpt", "claude"]


async def test_what_was_learnt_of_a_target_does_not_forbid_its_retry():
    world = World(make_chain("gpt", "claude"), {"gpt": [says("connect"), answers()]})
    world.health.standings["gpt"] = Standing(lacks=frozenset({"logit_bias"}))
    await world.ask()
    assert world.upstreams.asked == ["gpt", "gpt"]


async def test_noise_with_a_hint_is_not_repeated_before_its_moment():
    world = World(
        make_chain("gpt", "claude"), {"gpt": refuses("server_error", 500, retry_after=3.0)}
    )
    await world.ask()
    assert world.upstreams.asked == ["gpt", "claude"]


async def test_same_target_0_means_no_retry():
    chain = make_chain("gpt", "claude", retry=Retry(same_target=0))
    world = World(chain, {"gpt": says("server_error")})
    await world.ask()
    assert world.upstreams.asked == ["gpt", "claude"]


async def test_noise_is_at_once_only_once_whatever_same_target_says():
    chain = make_chain("gpt", "claude", retry=Retry(same_target=3))
    world = World(chain, {"gpt": says("server_error")})
    await world.ask()
    assert world.upstreams.asked == ["gpt", "gpt", "claude"]


async def test_a_first_attempt_feeds_the_budget_unless_it_is_a_clients_own_retry():
    world = World(make_chain("gpt"))
    await world.ask()
    await world.ask(hints=Hints(client_retry=True))
    assert world.health.deposits == ["gpt"]


# -- rate limits and waiting


@both
async def test_the_last_target_is_waited_for_but_never_asked_before_its_hint(stream):
    world = World(
        make_chain("gpt"), {"gpt": [refuses("rate_limited", 429, retry_after=2.0), answers()]}
    )
    told = await world.ask(stream=stream)
    assert told.error is None
    first, second = world.upstreams.times
    assert 2.0 <= second - first <= 2.0 + 0.2 + 0.1
    assert told.exchange.paused >= 2.0
    all_back(world)


async def test_a_throttle_that_outlasts_the_hint_is_respected():
    world = World(
        make_chain("gpt"), {"gpt": [refuses("rate_limited", 429, retry_after=1.0), answers()]}
    )
    world.health.after = lambda attempt: world.health.standings.update(
        gpt=Standing(throttled_until=1004.0)
    )
    await world.ask()
    assert world.upstreams.times[1] >= 1004.0


async def test_a_hint_beyond_max_wait_ends_with_429_and_the_time():
    world = World(make_chain("gpt"), {"gpt": refuses("rate_limited", 429, retry_after=9.0)})
    told = await world.ask()
    assert world.upstreams.asked == ["gpt"]
    assert world.clock.monotonic() == 1000.0
    assert told.refusal.status == 429
    assert 9.0 <= told.refusal.retry_after <= 9.0 * 1.25
    assert told.refusal.headers()["x-should-retry"] == "true"


async def test_a_hint_beyond_the_deadline_is_not_waited_for():
    chain = make_chain("gpt", deadline=3.0)
    world = World(chain, {"gpt": refuses("rate_limited", 429, retry_after=2.9)})
    told = await world.ask()
    assert world.clock.monotonic() == 1000.0
    assert told.refusal.status == 429


async def test_patience_waits_on_the_same_target_though_another_is_left():
    chain = make_chain("gpt", "claude", retry=Retry(patience=2.0))
    world = World(chain, {"gpt": [refuses("rate_limited", 429, retry_after=1.5), answers()]})
    await world.ask()
    assert world.upstreams.asked == ["gpt", "gpt"]
    assert world.upstreams.times[1] - world.upstreams.times[0] >= 1.5


async def test_a_hint_above_patience_moves_on_at_once():
    chain = make_chain("gpt", "claude", retry=Retry(patience=1.0))
    world = World(chain, {"gpt": refuses("rate_limited", 429, retry_after=1.5)})
    await world.ask()
    assert world.upstreams.asked == ["gpt", "claude"]
    assert world.clock.monotonic() == 1000.0


async def test_a_request_that_is_too_large_for_the_rate_is_not_waited_for():
    world = World(make_chain("gpt"), {"gpt": refuses("rate_limited", 429, throttles=False)})
    told = await world.ask()
    assert world.upstreams.asked == ["gpt"]
    assert told.refusal.status == 429


async def test_an_overloaded_target_is_asked_again_only_when_it_is_the_last():
    world = World(make_chain("gpt"), {"gpt": [says("overloaded"), answers()]})
    assert (await world.ask()).error is None
    assert world.upstreams.asked == ["gpt", "gpt"]
    world = World(make_chain("gpt"), {"gpt": says("overloaded")})
    told = await world.ask()
    assert world.upstreams.asked == ["gpt", "gpt"]
    assert (told.refusal.status, told.refusal.code) == (503, "no_healthy_target")
    assert not told.refusal.should_retry  # attempts were spent


async def test_when_all_have_failed_the_one_that_is_soonest_is_asked_again():
    world = World(
        make_chain("gpt", "claude"),
        {
            "gpt": refuses("rate_limited", 429, retry_after=5.0),
            "claude": [refuses("rate_limited", 429, retry_after=1.0), answers()],
        },
    )
    told = await world.ask()
    assert world.upstreams.asked == ["gpt", "claude", "claude"]
    assert told.exchange.path() == "gpt:rate_limited,claude:rate_limited,claude:ok"


@pytest.mark.parametrize(
    "standing",
    [Standing(open_until=1002.0), Standing(throttled_until=1002.0)],
    ids=["breaker", "throttle"],
)
async def test_a_rest_that_ends_in_time_is_waited_for(standing):
    world = World(make_chain("gpt"))
    world.health.standings["gpt"] = standing
    world.attempts.panic.take(1000.0)
    told = await world.ask()
    assert told.error is None
    assert world.upstreams.times[0] >= 1002.0


async def test_after_a_long_attempt_a_rest_is_still_waited_for():
    world = World(make_chain("gpt", "claude"), {"gpt": silent()})
    world.health.standings["claude"] = Standing(throttled_until=1012.0)
    told = await world.ask(stream=True)
    assert told.exchange.path() == "gpt:first_token,claude:throttled,claude:ok"
    assert world.upstreams.times[1] >= 1012.0


# -- all open


async def test_while_all_are_open_one_probe_goes_out_each_quarter_second():
    world = World(make_chain("gpt", "claude"))
    world.health.standings = {
        "gpt": Standing(open_until=1030.0),
        "claude": Standing(open_until=1020.0),
    }
    first, second = await world.ask(), await world.ask()
    assert first.error is None
    assert world.upstreams.asked == ["claude"]  # the soonest
    assert first.exchange.attempts[0].probe
    assert (second.refusal.status, second.refusal.code) == (503, "no_healthy_target")
    assert 20.0 <= second.refusal.retry_after <= 25.0
    assert second.refusal.should_retry
    world.clock.advance(0.25)
    assert (await world.ask()).error is None
    all_back(world)


async def test_targets_that_could_never_answer_do_not_hinder_the_panic_probe():
    lacking = make_target("claude", can=frozenset())
    world = World(make_chain("gpt", lacking))
    world.health.standings = {"gpt": Standing(open_until=1030.0)}
    told = await world.ask(needs=frozenset({"tools"}))
    assert told.error is None
    assert world.upstreams.asked == ["gpt"]


async def test_a_probe_that_fails_walks_on():
    world = World(make_chain("gpt", "claude"), {"gpt": says("overloaded")})
    world.health.standings["gpt"] = Standing(half_open=True)
    told = await world.ask()
    assert told.error is None
    assert world.upstreams.asked == ["gpt", "claude"]
    assert told.exchange.attempts[0].kind == "probe"
    all_back(world)


async def test_a_probe_somebody_else_has_is_passed_over():
    world = World(make_chain(make_target("gpt", accounts=(slots(1),)), "claude"))
    world.health.standings["gpt"] = Standing(half_open=True)
    world.health.probes.add("gpt")
    told = await world.ask()
    assert told.exchange.path() == "gpt:breaker_open,claude:ok"
    world.health.probes.clear()
    all_back(world)


async def test_a_probe_that_lasts_is_not_waited_for_without_end():
    world = World(make_chain("gpt"), {"gpt": silent()})
    world.health.standings["gpt"] = Standing(half_open=True, probing=True)
    world.health.probes.add("gpt")
    told = await world.ask()
    assert world.clock.monotonic() <= 1008.0
    assert (told.refusal.status, told.refusal.code) == (503, "no_healthy_target")
    assert told.refusal.should_retry


# -- keys, context, content policy, abilities


@pytest.mark.parametrize("cause", ["auth", "quota", "rate_limited"])
async def test_a_fault_of_the_key_goes_to_the_next_key_of_the_provider_first(cause):
    keys = make_leaf(make_target("gpt#a"), make_target("gpt#b"))
    world = World(make_chain(keys, "claude"), {"gpt#a": says(cause), "gpt#b": says(cause)})
    told = await world.ask()
    assert sorted(world.upstreams.asked[:2]) == ["gpt#a", "gpt#b"]
    assert world.upstreams.asked[2] == "claude"
    assert told.exchange.path() == f"gpt:{cause},gpt:{cause},claude:ok"


async def test_a_fault_of_the_target_passes_its_other_keys_by():
    keys = make_leaf(make_target("gpt#a"), make_target("gpt#b"))
    world = World(make_chain(keys, "claude"), {"gpt#a": silent(), "gpt#b": silent()})
    await world.ask(stream=True)
    assert len(world.upstreams.asked) == 2
    assert world.upstreams.asked[1] == "claude"


async def test_our_refused_key_is_never_the_callers_401():
    world = World(make_chain("gpt"), {"gpt": says("auth")})
    told = await world.ask()
    assert (told.refusal.status, told.refusal.type) == (502, "upstream_error")


async def test_context_length_goes_to_a_larger_context_only():
    small, same, large = (make_target(n, context=c) for n, c in
                          (("small", 1000), ("same", 1000), ("large", 9000)))  # fmt: skip
    world = World(make_chain(small, same, large), {"small": says("context_length")})
    told = await world.ask()
    assert world.upstreams.asked == ["small", "large"]
    assert told.exchange.path() == "small:context_length,same:context_length,large:ok"


async def test_context_length_goes_to_the_chain_that_on_names():
    long = make_chain("long", name="long")
    chain = make_chain("gpt", "claude", on={Cause.CONTEXT_LENGTH: long})
    world = World(chain, {"gpt": says("context_length")})
    await world.ask()
    assert world.upstreams.asked == ["gpt", "long"]


async def test_content_policy_goes_on_only_where_on_says_next():
    chain = make_chain("gpt", "claude", on={Cause.CONTENT_POLICY: "next"})
    world = World(chain, {"gpt": says("content_policy")})
    await world.ask()
    assert world.upstreams.asked == ["gpt", "claude"]


@both
@pytest.mark.parametrize("said", [None, "next"])
async def test_an_answer_filtered_before_any_content_goes_on_only_where_on_says_next(stream, said):
    whole = answers().whole._replace(size=0, finish_reason="content_filter")
    filtered = Says([role(), finish("content_filter"), usage()], whole=whole)
    on = {Cause.CONTENT_POLICY: said} if said else {}
    world = World(make_chain("gpt", "claude", on=on), {"gpt": filtered})
    told = await world.ask(stream=stream)
    assert told.error is None
    assert world.upstreams.asked == (["gpt", "claude"] if said else ["gpt"])
    assert told.reply.said == ("hello" if said or not stream else "")


async def test_on_stop_ends_the_walk():
    chain = make_chain("gpt", "claude", on={Cause.OVERLOADED: "stop"})
    world = World(chain, {"gpt": says("overloaded")})
    assert (await world.ask()).refusal.status == 503
    assert world.upstreams.asked == ["gpt"]


async def test_when_nobody_is_able_it_is_a_400_without_a_call():
    world = World(make_chain(*(make_target(n, can=frozenset()) for n in ("gpt", "claude"))))
    told = await world.ask(needs=frozenset({"vision"}))
    assert world.upstreams.asked == []
    assert (told.refusal.status, told.refusal.code) == (400, "no_capable_target")
    assert "vision" in told.refusal.message


async def test_fallback_off_asks_one_target_but_repeats_noise():
    world = World(make_chain("gpt", "claude"), {"gpt": says("server_error")})
    told = await world.ask(hints=Hints(fallback=False))
    assert world.upstreams.asked == ["gpt", "gpt"]
    assert told.refusal.status == 502


# -- accounts of targets


async def test_a_full_target_is_passed_by_and_said_so():
    account = slots(1)
    world = World(make_chain(make_target("gpt", accounts=(account,)), "claude"),
                  {"gpt": answers(delay=5.0)})  # fmt: skip
    first = world.begin()
    await turns()
    second = await world.ask()
    assert second.exchange.path() == "gpt:no_headroom,claude:ok"
    assert (await first.end()).exchange.path() == "gpt:ok"
    all_back(world)


async def test_a_failed_attempt_gives_its_slots_back_before_the_next_begins():
    shared = slots(1, "provider", "p")
    chain = make_chain(*(make_target(n, accounts=(shared,)) for n in ("gpt", "claude")))
    world = World(chain, {"gpt": says("overloaded")})
    told = await world.ask()
    assert told.exchange.path() == "gpt:overloaded,claude:ok"
    all_back(world)


async def test_past_the_first_step_a_target_that_is_full_for_a_moment_is_waited_for():
    rpm = Account("target:claude:rpm", "target", "claude", "rpm", 600, burst=1)
    world = World(make_chain("gpt", make_target("claude", accounts=(rpm,))))
    world.upstreams.scripts["gpt"] = [says("overloaded")]
    await world.ask()
    told = await world.ask()
    assert told.error is None
    assert told.exchange.path().endswith("claude:ok")


# -- the journal


async def test_nothing_is_sent_when_the_journal_cannot_be_written():
    world = World(make_chain(make_target("gpt", accounts=(slots(1),)), "claude"))
    world.health.standings["gpt"] = Standing(half_open=True)
    world.ledger.lost = True
    told = await world.ask()
    assert (told.refusal.status, told.refusal.code) == (503, "store_unavailable")
    assert world.upstreams.asked == []
    assert told.exchange.attempts == []
    assert told.refusal.should_retry
    all_back(world)


# -- time


@both
async def test_every_target_silent_ends_by_the_deadline_and_each_had_its_share(stream):
    chain = make_chain("a", "b", "c", deadline=8.0)
    world = World(chain, {name: silent() for name in "abc"})
    told = await world.ask(stream=stream)
    assert world.clock.monotonic() <= 1008.25
    assert told.refusal.status == 504
    if stream:
        assert world.upstreams.asked == ["a", "b", "c"]


async def test_a_request_without_time_is_a_504_without_a_call():
    world = World(make_chain("gpt", deadline=0.2))
    told = await world.ask()
    assert (told.refusal.status, told.refusal.code) == (504, "deadline_exceeded")
    assert world.upstreams.asked == []


async def test_an_error_status_whose_body_never_ends_is_judged_by_the_status():
    slow = Says([30.0], status=500, failure=fails("server_error"))
    world = World(make_chain("gpt", "claude"), {"gpt": slow})
    told = await world.ask(stream=True)
    assert told.exchange.path() == "gpt:server_error,claude:ok"


# -- the path


async def test_a_target_passed_over_later_is_told_in_its_place():
    world = World(make_chain("a", "b", "c"), {"a": says("overloaded")})
    world.health.standings["b"] = Standing(open_until=2000.0)
    told = await world.ask()
    assert told.exchange.path() == "a:overloaded,b:breaker_open,c:ok"
    assert [skip.target.id for skip in told.exchange.skips] == ["b"]


async def test_a_target_behind_the_one_that_answers_is_not_told():
    world = World(make_chain("a", "b"))
    world.health.standings["b"] = Standing(open_until=2000.0)
    told = await world.ask()
    assert told.exchange.path() == "a:ok"
    assert told.exchange.skips == []


# -- whatever the script


failing = st.builds(
    lambda cause, delay, hint, status: (
        refuses(cause, STATUS[cause], delay=delay, retry_after=hint)
        if cause in STATUS and status
        else unreachable(cause, delay=delay)
    ),
    st.sampled_from([*NOISE, *MOVES, "context_length"]),
    st.sampled_from([0.0, 0.3, 3.0]),
    st.sampled_from([None, 0.2, 2.0, 20.0]),
    st.booleans(),
)
steps = st.one_of(
    st.just(role()), st.just(text()), st.just(finish()), st.just(usage()),
    st.sampled_from([0.1, 5.0, 30.0]),
    st.sampled_from(["server_error", "malformed", "overloaded", "rate_limited"]).map(broken),
    st.sampled_from(["cut_stream", "stalled", "connect"]).map(fails),
    st.just((text("a"), text("b"), finish(), usage())),
    st.just((text("a"), broken("server_error"))),
)  # fmt: skip
scripts = st.one_of(
    failing, st.just(answers()), st.just(silent()), st.lists(steps, max_size=6).map(Says)
)


@settings(max_examples=250, deadline=None)
@given(
    st.lists(st.lists(scripts, min_size=1, max_size=3), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([1.0, 10.0, 60.0]),
    st.sampled_from([0.0, 3.0]),
    st.booleans(),
    st.booleans(),
)
def test_any_script_ends_once_in_time_and_within_its_attempts(
    script,
    attempts,
    same,
    deadline,
    patience,
    stream,
    real_health,
):
    names = "abcd"[: len(script)]
    targets = [make_target(n, accounts=(slots(1, name=n),), context=1000 * i + 1000)
               for i, n in enumerate(names)]  # fmt: skip
    retry = Retry(attempts=attempts, same_target=same, patience=patience)
    chain = make_chain(*targets, deadline=deadline, retry=retry)

    async def go() -> None:
        world = World(chain, dict(zip(names, script, strict=True)), real_health=real_health)
        for _ in range(3):  # what is learnt of the targets matters to the next
            await once(world)

    async def once(world: World) -> None:
        calls, began = len(world.upstreams.asked), world.clock.monotonic()
        told = await world.ask(stream=stream)
        assert len(world.upstreams.asked) - calls <= attempts
        assert len(told.exchange.attempts) == len(world.upstreams.asked) - calls
        assert world.clock.monotonic() <= began + deadline + 0.25
        complete = told.reply.note is not None
        assert complete == (told.error is None)
        if not complete:
            assert told.refusal.status >= 400
        begun = [a for a in told.exchange.attempts if a.first_content is not None]
        assert len(begun) == (told.reply.headers is not None)  # nothing of a failed one is said
        assert not begun or begun[0] is told.exchange.attempts[-1]
        assert all(line.usage.total > 0 for line in world.ledger.lines if line.outcome == "ok")
        all_back(world)

    asyncio.run(go())


# -- hanging up


@both
@pytest.mark.parametrize("after", [0.0, 0.05, 0.4, 1.0, 2.2, 3.5, 7.0, 9.9])
async def test_a_caller_who_hangs_up_is_still_settled(after, stream):
    """Wherever it waits: dialling, before a retry, reading an error, holding, streaming."""
    account = slots(1)
    chain = make_chain(make_target("gpt", accounts=(account,)))
    limping = Says([1.0, role(), 1.0, text(), 1.0, text(), 1.0, finish(), 1.0], delay=0.2)
    world = World(
        chain,
        {"gpt": [refuses("rate_limited", 429, retry_after=2.0, delay=0.3),
                 replace(limping, whole=answers(delay=3).whole)]},
    )  # fmt: skip
    if not stream:
        world.upstreams.scripts["gpt"][1] = answers(delay=7.0)
    going = world.begin(stream=stream)
    await turns()
    end = world.clock.monotonic() + after
    while world.clock.monotonic() < end:
        world.clock.advance(min(0.05, end - world.clock.monotonic()))
        await turns()
    if going.task.done():
        assert after > 7
        return
    told = await going.leave()
    assert told.exchange.status == 499
    assert [out for _, out in world.health.recorded if out != "rate_limited"] in ([], ["cancelled"])
    for line in world.ledger.lines:
        if line.outcome == "cancelled":
            assert "estimated" in line.flags
            assert line.usage.input == 10
    all_back(world)


@both
@pytest.mark.parametrize("where", ["start", "write", "finish"])
async def test_a_caller_whose_socket_is_full_may_hang_up_too(where, stream):
    world = World(make_chain(make_target("gpt", accounts=(slots(1),))))
    reply = FakeReply()
    reply.blocks.add(where)
    going = world.begin(stream=stream, reply=reply)
    await turns()
    told = await going.leave()
    assert told.exchange.status == 499
    all_back(world)


async def test_a_hang_up_counts_against_nobody_and_books_what_was_seen():
    world = World(make_chain("gpt"), {"gpt": streams(text("x" * 350), 9.0)})
    going = world.begin(stream=True)
    await turns()
    told = await going.leave()
    (line,) = world.ledger.lines
    assert line.outcome == "cancelled"
    assert set(line.flags.split(",")) == {"estimated", "partial"}
    assert (line.usage.input, line.usage.output) == (10, 100)
    assert world.health.recorded == [("gpt", "cancelled")]
    assert told.exchange.path() == "gpt:ok"


async def test_a_hang_up_while_a_probe_waits_gives_the_probe_back():
    world = World(make_chain("gpt"), {"gpt": silent()})
    world.health.standings["gpt"] = Standing(half_open=True)
    going = world.begin(stream=True)
    await turns()
    assert world.health.probes == {"gpt"}
    await going.leave()
    all_back(world)


async def test_a_target_that_fails_and_heals_is_left_alone_probed_and_taken_back():
    """The walk and the real breaker together."""
    world = World(make_chain("gpt", "claude"), {"gpt": says("server_error")}, real_health=True)
    paths = [(await world.ask()).exchange.path() for _ in range(5)]
    assert paths[0] == "gpt:server_error,gpt:server_error,claude:ok"
    assert paths[-1] == "gpt:breaker_open,claude:ok"
    world.upstreams.scripts["gpt"] = [answers()]
    world.clock.advance(5.0)
    probe = await world.ask()
    assert probe.exchange.attempts[0].kind == "probe"
    assert probe.exchange.path() == "gpt:ok"
    world.clock.advance(4.0)
    assert (await world.ask()).exchange.path() == "gpt:ok"


async def test_a_single_target_that_is_open_is_probed_in_panic_and_taken_back():
    world = World(make_chain("gpt"), {"gpt": says("overloaded")}, real_health=True)
    for _ in range(4):
        assert (await world.ask()).error is not None
    world.upstreams.scripts["gpt"] = [answers()]
    world.clock.advance(0.25)
    told = await world.ask()
    assert told.error is None
    assert told.exchange.attempts[0].kind == "probe"
    assert world.health.standing("gpt").open_until == 0.0


async def test_many_requests_at_once_all_end():
    account = slots(2)
    world = World(
        make_chain(make_target("gpt", accounts=(account,)), "claude"),
        {"gpt": streams(text(), 0.5, finish()), "claude": streams(text(), 0.2, broken("stalled"))},
    )
    going = [world.begin(stream=True) for _ in range(10)]
    await until(world.clock, *(one.task for one in going))
    told = [await one.end() for one in going]
    assert sum(one.error is None for one in told) == 2
    all_back(world)
