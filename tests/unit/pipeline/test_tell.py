"""What a caller is told: the most useful failure, when to come back, no URL and no key."""

import pytest

from gateway.core.plan import Standing
from gateway.core.principal import Principal
from gateway.core.request import Hints
from gateway.core.target import Account
from gateway.wire import json
from tests.support.fakes import (
    World,
    answers,
    fails,
    finish,
    make_chain,
    make_target,
    refuses,
    silent,
    streams,
    text,
    unreachable,
    usage,
)

STATUS = {"rate_limited": 429, "auth": 401, "overloaded": 503, "server_error": 500,
          "context_length": 400, "unable": 400, "quota": 402, "model_gone": 404}  # fmt: skip


async def failed(*causes, **changed):
    """Each target of the chain fails with its cause."""
    names = "abcd"[: len(causes)]
    scripts = {
        name: refuses(cause, STATUS[cause], **changed) if cause in STATUS else unreachable(cause)
        for name, cause in zip(names, causes, strict=True)
    }
    world = World(make_chain(*names), scripts)
    return (await world.ask()).refusal


@pytest.mark.parametrize(
    ("causes", "status", "code"),
    [
        (("unable", "rate_limited"), 400, "unsupported_parameter"),
        (("server_error", "rate_limited"), 429, "chain_exhausted"),
        (("rate_limited", "server_error"), 429, "chain_exhausted"),
        (("timeout", "rate_limited", "connect"), 429, "chain_exhausted"),
        (("timeout", "connect"), 504, "chain_exhausted"),
        (("timeout", "timeout"), 504, "timeout"),
        (("overloaded", "overloaded"), 503, "no_healthy_target"),
        (("overloaded", "server_error"), 502, "chain_exhausted"),
        (("auth", "quota"), 502, "chain_exhausted"),
        (("model_gone",), 502, "model_gone"),
        (("connect", "connect"), 502, "connect"),
    ],
)
async def test_the_most_useful_failure_chooses(causes, status, code):
    refusal = await failed(*causes)
    assert (refusal.status, refusal.code) == (status, code)
    names = [row["target"] for row in refusal.attempts]
    assert {*"abcd"[: len(causes)]} == set(names)


@pytest.mark.parametrize("causes", [("connect",), ("timeout",), ("overloaded",), ("auth",)])
async def test_after_attempts_were_spent_a_client_shall_not_retry(causes):
    assert (await failed(*causes)).headers()["x-should-retry"] == "false"


async def test_a_rate_limit_may_be_retried_up_to_a_minute():
    assert (await failed("rate_limited", retry_after=40.0)).headers()["x-should-retry"] == "true"
    assert (await failed("rate_limited", retry_after=90.0)).headers()["x-should-retry"] == "false"


async def test_retry_after_is_the_soonest_of_all_and_a_little_more():
    world = World(
        make_chain("a", "b", "c"),
        {"a": refuses("rate_limited", 429, retry_after=30.0),
         "b": refuses("rate_limited", 429, retry_after=20.0)},
    )  # fmt: skip
    world.health.standings["c"] = Standing(throttled_until=1050.0)
    refusal = (await world.ask()).refusal
    assert 20.0 <= refusal.retry_after <= 25.0
    assert int(refusal.headers()["retry-after"]) >= refusal.retry_after
    assert "a rate_limited (back in 30 s)" in refusal.message
    assert "c throttled (back in 50 s)" in refusal.message


async def test_a_refusal_always_says_when():
    headers = (await failed("rate_limited", throttles=False)).headers()
    assert headers["retry-after"] == "1"


async def test_targets_that_could_never_answer_do_not_hide_that_the_rest_is_open():
    world = World(make_chain(make_target("gpt", can=frozenset()), "claude"))
    world.health.standings["claude"] = Standing(open_until=1500.0)
    world.attempts.panic.take(1000.0)
    refusal = (await world.ask(needs=frozenset({"tools"}))).refusal
    assert (refusal.status, refusal.code) == (503, "no_healthy_target")


async def test_a_prompt_no_window_holds_names_the_largest():
    world = World(make_chain(make_target("a", context=1000), make_target("b", context=2000)))
    refusal = (await world.ask(prompt=50_000)).refusal
    assert (refusal.status, refusal.code) == (400, "context_length_exceeded")
    assert refusal.param == "messages"
    assert "2,000" in refusal.message


async def test_a_deadline_that_has_passed_says_so():
    world = World(make_chain("a", "b", deadline=5.0), {"a": silent(), "b": silent()})
    refusal = (await world.ask()).refusal
    assert (refusal.status, refusal.code) == (504, "deadline_exceeded")


# -- relayed


async def relayed(body, cause="bad_request", status=400, **changed):
    script = refuses(cause, status, body=body if isinstance(body, bytes) else json.dumps(body),
                     **changed)  # fmt: skip
    return (await World(make_chain("gpt"), {"gpt": script}).ask()).refusal


async def test_the_callers_mistake_is_relayed_with_its_words_param_and_code():
    error = {"message": "bad temperature", "param": "temperature", "code": "out_of_range"}
    refusal = await relayed({"error": error}, status=422)
    assert (refusal.status, refusal.message) == (422, "bad temperature")
    assert (refusal.param, refusal.code) == ("temperature", "out_of_range")
    assert refusal.type == "invalid_request_error"
    assert refusal.headers()["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[1]", b'"x"', {"error": {"message": 5, "code": 3, "param": []}},
     {"error": None}, {"error": {"message": ""}}],
)  # fmt: skip
async def test_a_body_of_another_shape_does_not_harm(body):
    refusal = await relayed(body)
    assert (refusal.status, refusal.message) == (400, "it met bad_request")
    assert refusal.param is None


@pytest.mark.parametrize("body", [{"error": "plain"}, {"detail": "plain"}, {"message": "plain"}])
async def test_other_shapes_of_errors_are_understood(body):
    assert (await relayed(body)).message == "plain"


async def test_a_mistake_told_inside_a_200_is_a_400():
    refusal = await relayed({"error": {"message": "no"}}, status=200)
    assert refusal.status == 400


async def test_an_endless_message_is_cut():
    assert len((await relayed({"error": {"message": "x" * 9000}})).message) == 2048


@pytest.mark.parametrize(
    ("cause", "code"),
    [("context_length", "context_length_exceeded"), ("content_policy", "content_filter")],
)
async def test_our_own_codes_name_what_we_understood(cause, code):
    refusal = await relayed({"error": {"message": "m", "code": "theirs"}}, cause)
    assert (refusal.code, refusal.message) == (code, "m")


async def test_what_is_refused_as_unable_is_told_in_our_words():
    refusal = await relayed({"error": {"message": "theirs"}}, "unable", feature="logit_bias")
    assert (refusal.param, refusal.message) == ("logit_bias", "it met unable")


async def test_no_url_and_no_key_leaves_with_an_error():
    refusal = await failed("auth", "connect", "server_error")
    told = json.dumps(refusal.body()) + str(refusal.headers()).encode()
    assert b"http" not in told
    assert b"upstream.invalid" not in told


# -- headers


async def test_an_answer_carries_the_headers_of_its_way():
    accounts = (
        Account("key:k:rpm", "key", "k", "rpm", 10),
        Account("team:t:rpm", "team", "t", "rpm", 5),
        Account("key:k:tpm", "key", "k", "tpm", 9000),
    )
    world = World(
        make_chain("gpt", "claude"),
        {"gpt": refuses("overloaded", 503)},
        principal=Principal("k", accounts=accounts),
    )
    told = await world.ask(max_output=100)
    headers = told.reply.headers
    assert headers["x-gateway-config"] == "abcdef123456"
    assert headers["x-gateway-chain"] == "smart"
    assert headers["x-gateway-target"] == "claude"
    assert headers["x-gateway-model"] == "m-claude"
    assert headers["x-gateway-attempts"] == "2"
    assert headers["x-gateway-path"] == "gpt:overloaded,claude:ok"
    assert headers["x-gateway-cost-usd"] == "0.00002"
    assert headers["x-ratelimit-limit-requests"] == "5"
    assert headers["x-ratelimit-remaining-requests"] == "4"
    assert headers["x-ratelimit-remaining-tokens"] == "8890"
    assert headers["x-gateway-time"].startswith("queue=0;first=0;total=0;own=")
    assert headers["server-timing"].startswith("queue;dur=0")


async def test_our_own_time_leaves_out_what_we_waited_for():
    world = World(
        make_chain("gpt"), {"gpt": [refuses("rate_limited", 429, retry_after=3.0), answers()]}
    )
    told = await world.ask()
    assert told.reply.headers["x-gateway-time"].endswith("own=0.00")


async def test_a_stream_tells_its_cost_at_its_end():
    world = World(make_chain("gpt"))
    told = await world.ask(stream=True)
    assert "x-gateway-cost-usd" not in told.reply.headers
    note = json.loads(told.reply.note)
    assert note["target"] == "gpt"
    assert note["attempts"] == 1
    assert note["path"] == "gpt:ok"
    assert note["cost_usd"] == "0.00002"


async def test_a_long_path_is_cut_at_eight():
    names = [f"t{n}" for n in range(10)]
    world = World(make_chain(*names))
    for name in names[:9]:
        world.health.standings[name] = Standing(throttled_until=1050.0)
    told = await world.ask()
    assert told.exchange.path().endswith("t7:throttled,+2")


async def test_an_error_tells_its_way_and_its_trace():
    world = World(make_chain("gpt"), {"gpt": refuses("auth", 401)})
    refusal = (await world.ask(hints=Hints(trace=True))).refusal
    assert refusal.told["x-gateway-path"] == "gpt:auth"
    assert refusal.extra["gateway"]["path"] == "gpt:auth"
    assert refusal.request_id == "req1"
    assert refusal.attempts == [{"target": "gpt", "cause": "auth", "status": 401, "ms": 0}]


async def test_a_broken_stream_names_who_broke_off():
    world = World(make_chain("gpt"), {"gpt": streams(text(), fails("cut_stream"))})
    refusal = (await world.ask(stream=True)).refusal
    assert refusal.message.startswith("The answer of gpt broke off")
    assert not refusal.should_retry


async def test_an_empty_finish_is_an_answer():
    world = World(make_chain("gpt"), {"gpt": streams(finish(), usage())})
    assert (await world.ask(stream=True)).error is None
