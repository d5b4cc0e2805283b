"""What was answered already is answered again: free, the same, and to nobody else."""

import asyncio
import json as plain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.kept import Owner
from gateway.core.plan import Standing
from gateway.core.principal import LOCAL, Principal
from gateway.core.request import Hints, Request
from gateway.core.target import Cache, Cause, Chain
from gateway.errors import (
    CallEnded,
    InProgress,
    InvalidRequest,
    KeyReused,
    Overloaded,
    RateLimited,
    UpstreamFailed,
    UpstreamTimedOut,
)
from gateway.pipeline import recall
from gateway.pipeline.recall import fingerprint, owner_of_cache, owner_of_keys
from gateway.wire import json
from tests.support.fakes import (
    FakeReply,
    Says,
    World,
    answers,
    finish,
    make_chain,
    make_facts,
    make_request,
    make_target,
    refuses,
    role,
    silent,
    slots,
    streams,
    text,
    turns,
    unreachable,
    usage,
)

KEYED = Hints(idempotency_key="k1")
AGENT = Hints(idempotency_key="k1", detach=True)
DAY = 86_400.0


def members(**said: Any) -> dict[str, json.Raw]:
    return {name: json.raw(value) for name, value in said.items()}


def cached(seconds: float = 300.0, **more: Any) -> Chain:
    return make_chain("gpt", cache=Cache(seconds, **more))


# -- under a key of the caller's


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("then", [True, False])
async def test_a_repeat_gets_the_answer_in_the_form_it_asks_for_and_for_free(
    first: bool, then: bool
) -> None:
    world = World(make_chain("gpt"))
    told = await world.ask(hints=KEYED, stream=first)
    again = await world.ask(hints=KEYED, stream=then, include_usage=then)
    assert told.reply.said == again.reply.said == "hello"
    assert world.upstreams.asked == ["gpt"]
    assert len(world.ledger.lines) == 1
    assert again.exchange.status == 200
    assert again.exchange.cost.nano_usd == 0
    headers = again.reply.headers
    assert headers is not None
    assert headers["idempotency-replayed"] == "true"
    assert headers["x-gateway-cost-usd"] == "0"
    assert (headers["x-gateway-target"], headers["x-gateway-model"]) == ("gpt", "m-gpt")
    assert told.reply.headers is not None
    assert "idempotency-replayed" not in told.reply.headers
    if then:  # what the answer cost when it was made, for who counts by it
        frame = json.loads(again.reply.events[-1].wire)
        assert ("usage" in frame) is first or frame["usage"]["cost_usd"] == "0.00002"


async def test_a_repeat_waits_for_the_first_and_asks_nobody() -> None:
    world = World(make_chain("gpt"), {"gpt": answers(delay=3.0)})
    first, second = world.begin(hints=KEYED), world.begin(hints=KEYED, stream=True)
    told, again = await first.end(), await second.end()
    assert told.reply.said == again.reply.said == "hello"
    assert world.upstreams.asked == ["gpt"]
    assert again.exchange.recalled is not None
    assert again.exchange.recalled.replayed


async def test_a_repeat_that_cannot_wait_any_longer_is_told_to_come_back() -> None:
    world = World(make_chain("gpt", deadline=5.0), {"gpt": answers(delay=3.0)})
    first = world.begin(hints=KEYED)
    short = Hints(idempotency_key="k1", deadline=1.0)
    second = world.begin(hints=short)
    told = await second.end()
    assert isinstance(told.refusal, InProgress)
    assert world.clock.monotonic() == pytest.approx(1001.0, abs=0.2)
    assert told.refusal.headers()["x-should-retry"] == "true"
    assert told.refusal.headers()["retry-after"] in {"1", "2"}  # spread
    assert (await first.end()).reply.said == "hello"


async def test_a_key_stands_for_one_body_only_running_or_done() -> None:
    world = World(make_chain("gpt"), {"gpt": answers(delay=3.0)})
    first = world.begin(hints=KEYED, members=members(seed=1))
    await turns()
    running = await world.ask(hints=KEYED, members=members(seed=2))
    await first.end()
    done = await world.ask(hints=KEYED, members=members(seed=2))
    assert isinstance(running.refusal, KeyReused)
    assert isinstance(done.refusal, KeyReused)
    assert done.refusal.status == 422
    assert world.upstreams.asked == ["gpt"]


async def test_a_day_later_the_key_is_new() -> None:
    world = World(make_chain("gpt"))
    await world.ask(hints=KEYED)
    world.clock.advance(DAY - 1)
    await world.ask(hints=KEYED)
    assert world.upstreams.asked == ["gpt"]
    world.clock.advance(1)
    await world.ask(hints=KEYED)
    assert world.upstreams.asked == ["gpt", "gpt"]


async def test_what_an_upstream_finds_wrong_with_a_request_is_told_again() -> None:
    body = b'{"error": {"message": "seed is odd", "code": "odd", "param": "seed"}}'
    world = World(make_chain("gpt"), {"gpt": refuses("bad_request", 422, body=body)})
    told, again = await world.ask(hints=KEYED), await world.ask(hints=KEYED)
    for error in (told.refusal, again.refusal):
        assert isinstance(error, InvalidRequest)
        assert (error.status, error.message, error.code, error.param) == (
            422, "seed is odd", "odd", "seed",
        )  # fmt: skip
    assert again.refusal.told["idempotency-replayed"] == "true"
    assert world.upstreams.asked == ["gpt"]


@pytest.mark.parametrize(
    ("says", "raised"),
    [
        (unreachable(), UpstreamFailed),
        (refuses("rate_limited", 429), RateLimited),
        (refuses("bad_request", 409), InvalidRequest),
        (streams(role(), text(), 0.0), UpstreamFailed),
    ],
    ids=["502", "429", "409 of an upstream", "cut"],
)
async def test_a_failure_is_not_kept(says: Says, raised: type[Exception]) -> None:
    world = World(make_chain("gpt"), {"gpt": [says, says, answers()]})
    told = await world.ask(hints=KEYED, stream=True)
    while told.error is not None:
        assert isinstance(told.refusal, raised)
        told = await world.ask(hints=KEYED, stream=True)
    assert (told.reply.said, told.exchange.recalled) == ("hello", None)


async def test_a_refusal_of_our_own_is_not_kept() -> None:
    world = World(make_chain(make_target("gpt", context=5)))
    told = await world.ask(hints=KEYED, prompt=1_000)
    assert told.refusal.code == "context_length_exceeded"
    assert not world.answers.rows


async def test_a_caller_who_left_takes_the_call_with_him_and_the_next_one_runs() -> None:
    world = World(make_chain("gpt"), {"gpt": [answers(delay=3.0), answers()]})
    first = world.begin(hints=KEYED)
    await turns()
    second = world.begin(hints=KEYED)
    await turns()
    await first.leave()
    told = await second.end()
    assert told.reply.said == "hello"
    assert told.exchange.recalled is None
    assert world.upstreams.asked == ["gpt", "gpt"]


async def test_who_waited_in_vain_plans_anew_with_the_time_that_is_left() -> None:
    """The target it would have asked has failed meanwhile, and so has half of its time."""
    chain = make_chain("gpt", "claude", deadline=10.0)
    world = World(chain, {"gpt": silent(), "claude": answers()})
    first = world.begin(hints=KEYED)
    await turns()
    second = world.begin(hints=KEYED)
    await turns()
    world.clock.advance(6.0)
    world.health.standings["gpt"] = Standing(open_until=9e9)
    await first.leave()
    told = await second.end()
    assert told.reply.said == "hello"
    assert world.upstreams.asked == ["gpt", "claude"]
    assert told.exchange.paused == pytest.approx(6.0, abs=0.2)
    assert told.reply.headers is not None
    assert told.reply.headers["x-gateway-path"] == "gpt:breaker_open,claude:ok"


async def test_an_answer_that_was_whole_is_kept_though_its_caller_did_not_take_it() -> None:
    world = World(make_chain("gpt"))
    reply = FakeReply()
    reply.blocks.add("write")
    first = world.begin(hints=KEYED, reply=reply)
    await turns()
    await first.leave()
    told = await world.ask(hints=KEYED)
    assert told.reply.said == "hello"
    assert world.upstreams.asked == ["gpt"]


async def test_an_answer_above_the_bound_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "LARGEST", 3)
    world = World(make_chain("gpt"))
    for stream in (True, False):
        assert (await world.ask(hints=KEYED, stream=stream)).reply.said == "hello"
    assert world.upstreams.asked == ["gpt", "gpt"]


async def test_a_trace_is_of_its_own_request_and_never_kept() -> None:
    world = World(make_chain("gpt"))
    traced = Hints(idempotency_key="k1", trace=True)
    told = await world.ask(hints=traced)
    assert "gateway" in json.loads(told.reply.events[0].wire)
    again = await world.ask(hints=KEYED)
    assert "gateway" not in json.loads(again.reply.events[0].wire)


# -- whose it is


def test_keys_of_callers_are_told_apart_by_key_and_user() -> None:
    anna = Principal("search", user="anna")
    assert owner_of_keys(anna, Hints()) == Owner("key:search", "anna")
    assert owner_of_keys(Principal("search"), Hints(user="bert")) == Owner("key:search", "bert")
    assert owner_of_keys(Principal("search"), Hints()) == Owner("key:search")


@pytest.mark.parametrize(
    ("scope", "team", "user", "owner"),
    [
        ("user", "t", "anna", Owner("key:k", "anna")),
        ("user", "t", None, Owner("key:k")),
        ("key", "t", "anna", Owner("key:k")),
        ("team", "t", "anna", Owner("team:t")),
        ("team", None, "anna", Owner("key:k")),
    ],
)
def test_a_cache_is_shared_by_its_scope(scope, team, user, owner) -> None:
    facts = make_facts(make_chain("gpt"), principal=Principal("k", team=team), user=user)
    assert owner_of_cache(facts, scope) == owner


names = st.sampled_from(["search", "demo"])
CALLERS = st.tuples(names, st.sampled_from([None, "anna", "bert"]))


@given(st.lists(st.tuples(CALLERS, st.sampled_from(["k1", "k2"]), st.booleans()), max_size=12))
def test_nobody_ever_reads_what_another_caller_was_told(asked) -> None:
    async def tell_all() -> None:
        world = World(make_chain("gpt", cache=Cache(300.0)))
        mine: dict[tuple[str, str | None], str] = {}
        for (name, user), key, keyed in asked:
            canary = f"canary of {name} and {user}"
            world.upstreams.scripts["gpt"] = [streams(role(), text(canary), finish(), usage())]
            world.principal = world.keys.principal = Principal(name, user=user)
            hints = Hints(idempotency_key=key) if keyed else Hints()
            told = await world.ask(hints=hints, stream=True)
            assert told.reply.said == mine.setdefault((name, user), canary)

    asyncio.run(tell_all())


# -- the exact cache


async def test_an_identical_request_is_answered_from_the_cache_until_it_is_old() -> None:
    world = World(cached(300.0))
    seen = []
    for ahead in (0.0, 299.0, 1.0):
        world.clock.advance(ahead)
        told = await world.ask(stream=True, include_usage=True)
        assert told.reply.said == "hello"
        assert told.reply.headers is not None
        seen.append(told.reply.headers["x-gateway-cache"])
    assert seen == ["miss", "hit", "miss"]
    assert world.upstreams.asked == ["gpt", "gpt"]


async def test_a_hit_needs_no_target_and_no_room_and_costs_nothing() -> None:
    slot = slots(1, "key", "k")
    world = World(cached(), principal=Principal("k", accounts=(slot,)))
    await world.ask()
    reply = FakeReply()
    reply.blocks.add("write")
    holder = world.begin(members=members(other=True), reply=reply, stream=True)
    await turns()
    world.health.standings["gpt"] = Standing(open_until=9e9)
    told = await world.ask()
    assert (told.exchange.status, told.exchange.cost.nano_usd) == (200, 0)
    assert told.exchange.reservation is None
    await holder.leave()


async def test_a_wish_of_the_caller_leaves_the_cache_out_or_makes_it_new() -> None:
    world = World(make_chain("gpt", "gpt-2", cache=Cache(300.0)))
    seen = []
    for hints in (
        Hints(),
        Hints(cache="off"),
        Hints(cache="refresh"),
        Hints(),
        Hints(skip=frozenset({"gpt-2"})),
    ):
        told = await world.ask(hints=hints)
        assert told.reply.headers is not None
        seen.append(told.reply.headers["x-gateway-cache"])
    assert seen == ["miss", "off", "miss", "hit", "off"]
    world.clock.advance(100)
    younger = await world.ask(hints=Hints(cache=99.0))
    assert younger.exchange.recalled is not None
    assert younger.exchange.recalled.cache == "miss"


@pytest.mark.parametrize("says", [unreachable(), streams(role(), text(), 0.0)], ids=["no", "cut"])
async def test_only_complete_answers_are_cached(says: Says) -> None:
    world = World(cached(), {"gpt": [says]})
    for _ in range(2):
        assert (await world.ask(stream=True)).error is not None
    assert not world.answers.rows
    assert not world.recall.flights


async def test_identical_requests_under_way_share_one_answer() -> None:
    world = World(cached(), {"gpt": answers(delay=3.0)})
    going = [world.begin(stream=stream) for stream in (True, False, True)]
    told = [await one.end() for one in going]
    assert [one.reply.said for one in told] == ["hello"] * 3
    caches = [one.exchange.recalled.cache for one in told if one.exchange.recalled]
    assert caches == ["miss", "shared", "shared"]
    assert world.upstreams.asked == ["gpt"]
    assert len(world.ledger.lines) == 1


async def test_without_join_each_runs_by_itself() -> None:
    world = World(cached(join=False), {"gpt": answers(delay=3.0)})
    for one in [world.begin() for _ in range(2)]:
        await one.end()
    assert world.upstreams.asked == ["gpt", "gpt"]


async def test_who_waited_for_a_failure_runs_himself() -> None:
    failing = unreachable(Cause.BAD_REQUEST, delay=1.0)
    world = World(cached(), {"gpt": [failing, answers()]})
    first, second = world.begin(), world.begin()
    assert (await first.end()).error is not None
    assert (await second.end()).reply.said == "hello"


async def test_when_the_first_caller_leaves_one_of_the_others_takes_over() -> None:
    world = World(cached(), {"gpt": answers(delay=3.0)})
    first, *others = [world.begin() for _ in range(4)]
    await turns()
    await first.leave()
    told = [await one.end() for one in others]
    assert [one.reply.said for one in told] == ["hello"] * 3
    assert world.upstreams.asked == ["gpt", "gpt"]


async def test_who_waits_for_another_waits_no_longer_than_his_own_deadline() -> None:
    world = World(cached(), {"gpt": answers(delay=30.0)})
    first = world.begin()
    told = await world.ask(hints=Hints(deadline=2.0))
    assert isinstance(told.error, UpstreamTimedOut)
    await first.leave()


async def test_what_came_from_the_cache_is_kept_under_the_callers_key_too() -> None:
    world = World(cached(10.0))
    await world.ask()
    await world.ask(hints=KEYED)
    world.clock.advance(1_000)
    told = await world.ask(hints=KEYED)
    assert told.exchange.recalled is not None
    assert told.exchange.recalled.replayed
    assert world.upstreams.asked == ["gpt"]


def test_a_new_configuration_asks_anew() -> None:
    request = make_request(members=members(seed=1))
    assert fingerprint(request, "smart", "abc") != fingerprint(request, "smart", "abd")
    assert fingerprint(request, "smart", "abc") != fingerprint(request, "cheap", "abc")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
bodies = st.dictionaries(st.sampled_from("abcdef"), values, max_size=4)


def asking(body: dict[str, Any], *, spaced: bool = False, **how: Any) -> Request:
    told = plain.dumps({**body, **how}, indent=1 if spaced else None)
    return make_request(members=json.split(told.encode()))


@given(bodies, bodies)
def test_every_member_counts_and_nothing_but_the_way_it_is_written_does_not(one, other) -> None:
    again = asking(dict(reversed(one.items())), spaced=True, stream=True)
    assert fingerprint(asking(one)) == fingerprint(again)
    if repr(sorted(one.items())) != repr(sorted(other.items())):
        assert fingerprint(asking(one)) != fingerprint(asking(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"seed":18446744073709551617}', b'{"seed":18446744073709551618}'),
        (b'{"top_p":0.1}', b'{"top_p":0.10000000000000001}'),
        (b'{"x":{"a":1,"a":2}}', b'{"x":{"a":2}}'),
        (b'{"x":"\\u00e9"}', '{"x":"é"}'.encode()),
        (b'{"x":"a b"}', b'{"x":"ab"}'),
    ],
)
def test_what_an_upstream_could_tell_apart_is_told_apart(one: bytes, other: bytes) -> None:
    requests = [make_request(members=json.split(body)) for body in (one, other)]
    assert fingerprint(requests[0]) != fingerprint(requests[1])


# -- detached


async def test_a_detached_call_goes_on_when_its_caller_left_and_is_settled_once() -> None:
    slot = slots(1, "key", "k")
    agent = Principal("k", role="agent", accounts=(slot,))
    world = World(make_chain("gpt"), {"gpt": streams(role(), text(), 5.0, finish(), usage())},
                  principal=agent)  # fmt: skip
    first = world.begin(hints=AGENT, stream=True)
    await turns()
    assert first.reply.said == "hello"  # it hears it live
    first.task.cancel()
    await turns()
    assert first.task.cancelled()
    assert world.held([slot]) == 1
    told = await world.ask(hints=KEYED)
    assert told.reply.said == "hello"
    assert world.upstreams.asked == ["gpt"]
    (line,) = world.ledger.lines
    assert (line.outcome, line.usage.output) == ("ok", 5)
    ended = world.ended(first.id)
    assert (ended.status, ended.finished, ended.detached) == (200, True, True)
    assert world.held([slot]) == 0
    assert world.detached.under_way == 0


async def test_a_detached_call_whose_caller_stays_is_like_any_other() -> None:
    world = World(make_chain("gpt"))
    for stream in (True, False):
        hints = Hints(idempotency_key=f"k{stream}", detach=True)
        told = await world.ask(hints=hints, stream=stream)
        assert (told.reply.said, told.exchange.status) == ("hello", 200)
        assert told.error is None
        assert told.reply.headers is not None
        assert told.reply.headers["x-gateway-path"] == "gpt:ok"


async def test_its_failure_is_told_to_the_caller_who_stayed() -> None:
    world = World(make_chain("gpt"), {"gpt": unreachable()})
    told = await world.ask(hints=AGENT)
    assert isinstance(told.refusal, UpstreamFailed)
    assert told.refusal.attempts
    assert told.exchange.status == 502
    assert not world.answers.rows


async def test_its_caller_ends_it_and_nobody_starts_it_again_by_accident() -> None:
    world = World(make_chain("gpt"), {"gpt": answers(delay=60.0)})
    first, waiting = world.begin(hints=AGENT), world.begin(hints=KEYED)
    await turns()
    stranger = Principal("other", role="agent")
    assert await world.recall.end(stranger, Hints(), "k1") is None
    assert await world.recall.end(LOCAL, Hints(), "k2") is None
    assert await world.recall.end(LOCAL, Hints(), "k1") == "ended"
    await turns()
    assert world.upstreams.open == 0
    for told in (await first.end(), await waiting.end(), await world.ask(hints=KEYED)):
        assert isinstance(told.refusal, CallEnded)
        assert told.exchange.status == 409
        assert told.refusal.headers()["x-should-retry"] == "false"
    (line,) = world.ledger.lines
    assert line.outcome == "cancelled"
    assert await world.recall.end(LOCAL, Hints(), "k1") == "ended"


async def test_what_is_kept_or_belongs_to_a_caller_who_stays_is_not_ended() -> None:
    world = World(make_chain("gpt"), {"gpt": answers(delay=3.0)})
    first = world.begin(hints=KEYED)
    await turns()
    assert await world.recall.end(LOCAL, Hints(), "k1") == "running"
    assert (await first.end()).reply.said == "hello"
    assert await world.recall.end(LOCAL, Hints(), "k1") == "kept"


async def test_the_end_of_the_process_ends_it_and_leaves_the_key_free() -> None:
    world = World(make_chain("gpt"), {"gpt": answers(delay=60.0)})
    async with world.detached:
        first = world.begin(hints=AGENT)
        await turns()
    told = await first.end()
    assert isinstance(told.refusal, Overloaded)
    assert told.refusal.code == "draining"
    assert world.ledger.lines[0].outcome == "cancelled"
    assert not world.answers.rows
