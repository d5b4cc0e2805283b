"""Limits over sockets: who is refused with what, when to come back, and who is not harmed.

A minute passes when a test wants it to: the gateway's clock is put forward by its Retry-After.
"""

import collections
import concurrent.futures
import contextlib
import json
import threading
import time

import openai
import pytest

from chaos import faults
from chaos.answers import Manner
from chaos.upstream import UpstreamThread
from gateway.clock import SystemClock
from gateway.core.events import GuardMoved
from gateway.pipeline.guard import ALL, EVERY
from gateway.state.embedded.keys import KeyStore
from tests.integration.rig import (
    HEAD,
    MESSAGES,
    Ears,
    Gateway,
    Leaping,
    Line,
    ask,
    chat,
    declared,
    post,
    provider,
    until,
)

SOON = 0.25


@pytest.fixture
def sim():
    with UpstreamThread() as running:
        yield running


@contextlib.contextmanager
def house(sim, folder, text, *, limits=None, **more):
    """Providers p and f of the simulator (`limits` of p), a chain `smart` of p and one of both."""
    held = f", limits: {{{limits}}}" if limits else ""
    whole = f"providers:\n{provider(sim, 'p', held)}{provider(sim, 'f')}{text}"
    whole += "" if "\nchains:" in whole else "chains: {smart: [p/m], both: [p/m, f/m]}\n"
    whole += "prices: {p/m: free, f/m: free}\n"
    clock = Leaping()
    with Gateway(whole, folder / "state", clock=clock, **more) as gateway:
        gateway.leap = lambda seconds: setattr(clock, "ahead", clock.ahead + seconds)
        yield gateway
        gateway.at_rest()


def call(gateway, who="k", model="smart", **members):
    return ask(gateway.port, chat(model, **members), x_api_key=who)


def at_once(*works):
    with concurrent.futures.ThreadPoolExecutor(len(works)) as pool:
        return [done.result() for done in [pool.submit(work) for work in works]]


@contextlib.contextmanager
def held(sim, gateway, who="k", model="smart", name="p", number=1):
    """So many requests hang at the upstream until the block ends."""
    before = sim.in_flight(name)
    sim.set(name, faults.silence())
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(Line(gateway.port)) for _ in range(number)]
        for line in lines:
            line.send(post(chat(model), x_api_key=who))
        until(lambda: sim.in_flight(name) == before + number)
        sim.set(name, None)
        yield lines
        for line in lines:
            with contextlib.suppress(OSError):
                line.rst()
    until(lambda: sim.in_flight(name) == before)
    until(lambda: gateway.house.in_flight == 0)


def judge_refusal(answer, code, scope, *says):
    """A 429 that says what is full, whose it is, and when to come back."""
    error = answer.error
    assert (answer.status, error["type"], error["code"]) == (429, "rate_limit_error", code)
    assert error["scope"] == scope
    for words in says:
        assert words in error["message"]
    ms, whole = int(answer.headers["retry-after-ms"]), int(answer.headers["retry-after"])
    assert whole == max(1, -(-ms // 1000))
    assert error["retry_after_ms"] == pytest.approx(ms, abs=1)
    assert answer.headers["x-should-retry"] == ("true" if ms <= 60_000 else "false")
    assert error["retryable"] is (ms <= 60_000)
    assert answer.headers["x-request-id"] == error["request_id"]
    return ms / 1000


SCOPES = {
    "key": "tiers: {t: {limits: {LIMIT}}}\nkeys:\n" + declared("k", "tier: t"),
    "team": (
        "tiers: {t: {limits: {LIMIT}}}\nteams: {us: {tier: t}}\nkeys:\n" + declared("k", "team: us")
    ),
    "target": (
        "targets: {one: {model: p/m, limits: {LIMIT}}}\n"
        "chains: {smart: [one], both: [one, f/m]}\nkeys:\n" + declared("k")
    ),
    "provider": "keys:\n" + declared("k"),
}


def limited(scope, limit):
    """A file in which the caller `k` meets this limit; and the limits of the provider p."""
    return SCOPES[scope].replace("LIMIT", limit), limit if scope == "provider" else None


def named(scope):
    return {"key": "this API key", "team": "the team 'us'"}.get(scope, "every target")


# ------------------------------------------------------------------------------ each sort of limit


@pytest.mark.parametrize("scope", SCOPES)
def test_requests_per_minute(sim, tmp_path, scope):
    text, limits = limited(scope, "rpm: 3")
    with house(sim, tmp_path, text, limits=limits) as gateway:
        assert [call(gateway).status for _ in range(3)] == [200] * 3
        answer = call(gateway)
        wait = judge_refusal(
            answer, "rpm_exceeded", scope, "3 requests per minute", named(scope), "Come back in"
        )
        assert 55 <= wait <= 75
        assert len(sim.calls()) == 3
        assert call(gateway, model="both").status == (429 if scope in {"key", "team"} else 200)
        gateway.leap(wait)
        assert call(gateway).status == 200


@pytest.mark.parametrize("scope", SCOPES)
def test_tokens_per_minute(sim, tmp_path, scope):
    text, limits = limited(scope, "tpm: 200")
    with house(sim, tmp_path, text, limits=limits) as gateway:
        # Above the limit: it counts as the limit and passes alone; its real use (50) stays.
        assert call(gateway, max_tokens=5000).status == 200
        assert call(gateway, max_tokens=60).status == 200
        answer = call(gateway, max_tokens=150)
        if scope in {"key", "team"}:  # callers hold what they state
            wait = judge_refusal(answer, "tpm_exceeded", scope, "200 tokens per minute")
            assert len(sim.calls()) == 2
            gateway.leap(wait)
            answer = call(gateway, max_tokens=150)
        assert answer.status == 200  # targets hold what is usual


@pytest.mark.parametrize("scope", SCOPES)
def test_requests_at_once(sim, tmp_path, scope):
    text, limits = limited(scope, "concurrency: 2")
    with house(sim, tmp_path, text, limits=limits) as gateway:
        with held(sim, gateway, number=2):
            answer = call(gateway)
            judge_refusal(answer, "concurrency_exceeded", scope, "2 requests at once", named(scope))
            assert len(sim.calls()) == 2
        assert call(gateway).status == 200
        sim.manner("p", Manner(latency=0.02))
        answers = at_once(*[lambda: call(gateway)] * 12)
        assert {answer.status for answer in answers} <= {200, 429}
        assert sim.max_in_flight("p") <= 2


@pytest.mark.parametrize("scope", SCOPES)
def test_a_burst_at_once_and_then_evenly(sim, tmp_path, scope):
    text, limits = limited(scope, "rpm: 600, burst: 2")
    with house(sim, tmp_path, text, limits=limits) as gateway:
        began = time.monotonic()
        served = refused = 0
        while served < 6:
            answer = call(gateway)
            if answer.status == 200:
                served += 1
                assert served <= 2 + (time.monotonic() - began) * 600 / 60 + 1e-6
            else:
                refused += 1
                wait = judge_refusal(answer, "rpm_exceeded", scope, "600 requests per minute")
                assert wait <= 0.1 * 1.25 + 0.001
                time.sleep(wait)  # real: after it the next one passes
                answer = call(gateway)
                assert answer.status == 200
                served += 1
        assert refused >= 2


@pytest.mark.parametrize("scope", SCOPES)
def test_many_at_once_are_never_more_than_the_limit(sim, tmp_path, scope):
    text, limits = limited(scope, "rpm: 5")
    with house(sim, tmp_path, text, limits=limits) as gateway:
        answers = at_once(*[lambda: call(gateway)] * 16)
        assert collections.Counter(answer.status for answer in answers) == {200: 5, 429: 11}
        assert len(sim.calls()) == 5


def test_a_full_target_is_passed_over_for_the_next(sim, tmp_path):
    text, _ = limited("target", "rpm: 1")
    with house(sim, tmp_path, text) as gateway:
        paths = [call(gateway, model="both").headers["x-gateway-path"] for _ in range(2)]
        assert paths == ["one:ok", "one:no_headroom,f/m:ok"]


def test_a_limit_per_provider_key_counts_each_key_on_its_own(sim, tmp_path):
    url = sim.base_url("p")
    text = (
        f'providers: {{p: {{kind: openai, base_url: "{url}", allow_http: true, allow_private: true,'
        " keys: [{name: a, secret: ka}, {name: b, secret: kb}], limits: {rpm: 2, per_key: true}}}\n"
        "chains: {smart: [p/m]}\nprices: {p/m: free}\n"
    )
    with Gateway(text, tmp_path / "state") as gateway:
        assert [ask(gateway.port, chat("smart")).status for _ in range(5)] == [200] * 4 + [429]
        used = collections.Counter(call.headers["authorization"] for call in sim.calls())
        assert used == {"Bearer ka": 2, "Bearer kb": 2}


def test_no_alias_and_no_other_way_in_is_another_account(sim, tmp_path):
    text = (
        "targets: {one: {model: p/m, limits: {rpm: 4}}}\n"
        "chains: {smart: {try: [one], also: [gpt-4o]}, other: [one]}\n"
        "tiers: {t: {may: [target]}}\nkeys:\n" + declared("k", "tier: t")
    )
    with house(sim, tmp_path, text) as gateway:
        for model in ("smart", "gpt-4o", "other", "one"):
            assert call(gateway, model=model).status == 200
        for model in ("smart", "gpt-4o", "other", "one", "p/m"):
            judge_refusal(call(gateway, model=model), "rpm_exceeded", "target")


def test_embeddings_count_like_chats(sim, tmp_path):
    text, _ = limited("key", "rpm: 2")
    with house(sim, tmp_path, text) as gateway:

        def embed():
            body = {"model": "smart", "input": "hello"}
            return ask(gateway.port, body, "/v1/embeddings", x_api_key="k")

        assert (embed().status, call(gateway).status) == (200, 200)
        judge_refusal(embed(), "rpm_exceeded", "key")


# ------------------------------------------------------------------------------------ what is told


def test_the_headers_tell_what_is_left(sim, tmp_path):
    text, _ = limited("key", "rpm: 3, tpm: 10_000, concurrency: 4")
    with house(sim, tmp_path, text) as gateway:
        told = [call(gateway, max_tokens=100).headers for _ in range(3)]
        assert [each["x-ratelimit-limit-requests"] for each in told] == ["3"] * 3
        assert [each["x-ratelimit-remaining-requests"] for each in told] == ["2", "1", "0"]
        assert [each["x-ratelimit-limit-tokens"] for each in told] == ["10000"] * 3
        left = [int(each["x-ratelimit-remaining-tokens"]) for each in told]
        assert 9_800 <= left[0] < 9_900  # the bound is held
        assert left[0] - left[1] == left[1] - left[2] == 50  # and then what was really used
        for each in told:
            assert each["x-ratelimit-scope"] == "key"
            for sort in ("requests", "tokens"):
                assert each[f"x-ratelimit-reset-{sort}"].removesuffix("ms").isdigit()
        with openai.OpenAI(base_url=gateway.base_url, api_key="k", max_retries=0) as client:
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(model="smart", messages=MESSAGES)
            assert caught.value.code == "rpm_exceeded"


def test_the_tightest_of_the_caller_s_accounts_is_told_and_no_upstream_s(sim, tmp_path):
    text = (
        "tiers: {wide: {limits: {rpm: 100}}, tight: {limits: {rpm: 5}}}\n"
        "teams: {us: {tier: tight}}\nkeys:\n"
        + declared("k", "team: us, tier: wide")
        + declared("free")
    )
    with house(sim, tmp_path, text, limits="rpm: 2") as gateway:
        told = call(gateway).headers
        assert told["x-ratelimit-limit-requests"] == "5"
        assert told["x-ratelimit-scope"] == "team"
        told = call(gateway, "free").headers
        assert not [name for name in told if name.startswith("x-ratelimit")]


def test_a_stream_tells_it_in_its_head(sim, tmp_path):
    text, _ = limited("key", "rpm: 3")
    with house(sim, tmp_path, text) as gateway:
        assert call(gateway, stream=True).headers["x-ratelimit-remaining-requests"] == "2"


def test_too_many_requests_for_the_process_are_a_503_to_come_back_from(sim, tmp_path):
    head = HEAD.replace("{", "{max_in_flight: 2, ", 1)
    with house(sim, tmp_path, "", head=head) as gateway:
        with held(sim, gateway, number=2):
            answer = call(gateway)
            assert (answer.status, answer.error["code"]) == (503, "overloaded")
            assert "server.max_in_flight" in answer.error["message"]
            assert answer.headers["x-should-retry"] == "true"
            assert answer.headers["retry-after"] == "2"
            assert 1000 <= int(answer.headers["retry-after-ms"]) <= 1250
        assert call(gateway).status == 200


# ---------------------------------------------------------------------------------- all or nothing


def test_a_refusal_takes_nothing_from_any_account(sim, tmp_path):
    text = (
        "tiers: {one: {limits: {concurrency: 1}}, own: {limits: {rpm: 2, tpm: 100_000}}}\n"
        "teams: {us: {tier: one}}\nkeys:\n"
        + declared("a", "team: us, tier: own")
        + declared("b", "team: us, tier: own")
    )
    with house(sim, tmp_path, text) as gateway:
        with held(sim, gateway, "a"):
            for _ in range(5):
                judge_refusal(call(gateway, "b"), "concurrency_exceeded", "team")
        answers = [call(gateway, "b") for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert answers[0].headers["x-ratelimit-remaining-requests"] == "1"


def test_what_was_refused_before_it_was_admitted_counts_nothing(sim, tmp_path):
    text, _ = limited("key", "rpm: 1")
    with house(sim, tmp_path, text) as gateway:
        for body in ({"model": "smart"}, chat("nothing"), chat("smart", n=0)):
            assert ask(gateway.port, body, x_api_key="k").status in {400, 404}
        assert call(gateway).status == 200


BREAKS = {
    "server_error": faults.server_error(), "reset": faults.reset(), "html": faults.html(),
    "bad_request": faults.bad_request(), "cut": faults.cut(5), "silence": faults.silence(),
    "stall": faults.stall(5), "no_token": faults.no_token(), "no_finish": faults.no_finish(),
}  # fmt: skip
ONE_AT_A_TIME = (
    "defaults: {first_token: 250ms, answer: 250ms, idle: 250ms,"
    " breaker: {failures: 1000, min_requests: 100_000}}\n"
    "targets: {one: {model: p/m, limits: {concurrency: 1}}}\nchains: {smart: [one]}\n"
    "tiers: {t: {limits: {concurrency: 1}}}\nteams: {us: {tier: t}}\nkeys:\n"
    + declared("k", "team: us, tier: t")
)


@pytest.mark.parametrize("name", BREAKS)
def test_a_slot_comes_back_whatever_becomes_of_its_request(sim, tmp_path, name):
    with house(sim, tmp_path, ONE_AT_A_TIME, limits="concurrency: 1") as gateway:
        for stream in (True, False):
            sim.set("p", BREAKS[name])
            answer = call(gateway, stream=stream)
            assert answer.status >= 400 or "error" in json.loads(answer.events[-1])
            sim.set("p", None)
            assert call(gateway).status == 200


@pytest.mark.parametrize("how", ["fin", "rst", "half_closed"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_slot_comes_back_when_its_caller_leaves(sim, tmp_path, how, stream):
    with house(sim, tmp_path, ONE_AT_A_TIME, limits="concurrency: 1") as gateway:
        sim.manner("p", Manner(ttft=0.0 if stream else 5.0, gap=0.02, tokens=1000))
        for done in range(5):
            with Line(gateway.port) as line:
                line.send(post(chat("smart", stream=stream), x_api_key="k"))
                if stream:
                    line.until(b"content")
                until(lambda: len(sim.calls()) > done)  # noqa: B023
                getattr(line, how)()
                until(lambda: gateway.house.in_flight == 0)
        sim.manner("p", None)
        assert call(gateway).status == 200


def test_a_slot_comes_back_when_its_upstream_is_killed(tmp_path):
    again = UpstreamThread()
    with (
        UpstreamThread(Manner(gap=0.02, tokens=1000)) as doomed,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        house(doomed, tmp_path, ONE_AT_A_TIME, limits="concurrency: 1") as gateway,
    ):
        caller = pool.submit(call, gateway, stream=True)
        until(doomed.in_flight)
        port = doomed.port
        doomed.close()
        broken = caller.result(10)
        assert json.loads(broken.events[-1])["error"]["code"] == "cut_stream"
        assert call(gateway).status == 502
        again.start(port)
        assert call(gateway).status == 200
        again.close()


# ------------------------------------------------------------------------------------------ waiting


def waiting(wait):
    limits = f"limits: {{concurrency: 1}}, when_full: {{wait: {wait}}}, priority: high"
    return f"tiers: {{t: {{{limits}}}}}\nkeys:\n" + declared("k", "tier: t")


def queued(gateway):
    return gateway.do(lambda: gateway.house.queue.waiting)


def line_up(gateway, stack, who, number, **headers):
    """One more caller in the queue, `number` in its body; its connection."""
    before = queued(gateway)
    line = stack.enter_context(Line(gateway.port))
    line.send(post(chat("smart", user=str(number)), x_api_key=who, **headers))
    until(lambda: queued(gateway) == before + 1)
    return line


def order(sim):
    return [json.loads(call.body).get("user") for call in sim.calls("p")]


def test_who_waits_is_served_in_order(sim, tmp_path):
    with house(sim, tmp_path, waiting("10s")) as gateway, contextlib.ExitStack() as stack:
        with held(sim, gateway):
            lines = [line_up(gateway, stack, "k", n) for n in range(6)]
        answers = [line.answer() for line in lines]
        assert [answer.status for answer in answers] == [200] * 6
        assert order(sim)[1:] == [str(n) for n in range(6)]
        assert all("queue=0;" not in answer.headers["x-gateway-time"] for answer in answers)
        assert sim.max_in_flight("p") == 1


def test_who_waited_long_enough_is_told_the_queue_is_full(sim, tmp_path):
    with house(sim, tmp_path, waiting("300ms")) as gateway, held(sim, gateway):
        began = time.monotonic()
        answer = call(gateway)
        assert 0.3 <= time.monotonic() - began <= 0.3 + SOON
        judge_refusal(answer, "queue_full", "key", "concurrency", "0.3 s it may wait are over")
        assert len(sim.calls()) == 1
        assert queued(gateway) == 0


def test_a_stream_in_line_is_kept_alive_and_then_answered_or_told(sim, tmp_path):
    chains = "chains: {smart: {try: [p/m], keepalive: 50ms}}\n"
    text = f"\n{chains}{waiting('400ms')}"
    with house(sim, tmp_path, text) as gateway, Line(gateway.port) as line:
        with held(sim, gateway):
            answer = call(gateway, stream=True)
            assert answer.status == 200  # the head had gone with the first comment
            assert answer.comments.count(": keepalive") >= 3
            (event,) = answer.events
            error = json.loads(event)["error"]
            assert (error["code"], error["type"]) == ("queue_full", "rate_limit_error")
            line.send(post(chat("smart", stream=True), x_api_key="k"))
            line.until(b": keepalive")
        assert line.until(b"0\r\n\r\n").count(b"data: [DONE]") == 1


def test_a_caller_s_deadline_bounds_its_wait(sim, tmp_path):
    with house(sim, tmp_path, waiting("30s")) as gateway, held(sim, gateway):
        began = time.monotonic()
        answer = ask(gateway.port, chat("smart"), x_api_key="k", x_gateway_deadline="600ms")
        assert time.monotonic() - began <= 0.6 + SOON
        assert answer.status == 429


def test_a_full_line_refuses_at_once(sim, tmp_path):
    head = HEAD.replace("{", "{queue: {length: 3, bytes: 1MiB}, ", 1)
    with (
        house(sim, tmp_path, waiting("10s"), head=head) as gateway,
        contextlib.ExitStack() as stack,
    ):
        with held(sim, gateway):
            lines = [line_up(gateway, stack, "k", n) for n in range(3)]
            began = time.monotonic()
            judge_refusal(call(gateway), "queue_full", "key")
            assert time.monotonic() - began <= SOON
        assert [line.answer().status for line in lines] == [200] * 3


def test_a_lower_priority_waits_behind(sim, tmp_path):
    with house(sim, tmp_path, waiting("10s")) as gateway, contextlib.ExitStack() as stack:
        with held(sim, gateway):
            lines = [
                line_up(gateway, stack, "k", "low", x_gateway_priority="low"),
                line_up(gateway, stack, "k", "normal", x_gateway_priority="normal"),
                line_up(gateway, stack, "k", "high", x_gateway_priority="high"),
                line_up(gateway, stack, "k", "own"),
            ]
        assert [line.answer().status for line in lines] == [200] * 4
        assert order(sim)[1:] == ["high", "own", "normal", "low"]


def test_minute_limits_are_not_waited_for(sim, tmp_path):
    text = "tiers: {t: {limits: {rpm: 1}, when_full: {wait: 10s}}}\nkeys:\n"
    text += declared("k", "tier: t")
    with house(sim, tmp_path, text) as gateway:
        assert call(gateway).status == 200
        began = time.monotonic()
        judge_refusal(call(gateway), "rpm_exceeded", "key")
        assert time.monotonic() - began <= SOON


def test_a_full_upstream_is_waited_for_by_those_who_may(sim, tmp_path):
    text = (
        "tiers: {patient: {when_full: {wait: 10s}}, hasty: {}}\nkeys:\n"
        + declared("patient", "tier: patient")
        + declared("hasty", "tier: hasty")
    )
    with (
        house(sim, tmp_path, text, limits="concurrency: 1") as gateway,
        Line(gateway.port) as line,
    ):
        with held(sim, gateway, "hasty"):
            line.send(post(chat("smart"), x_api_key="patient"))
            until(lambda: queued(gateway) == 1)
            assert call(gateway, "hasty").status == 429
        assert line.answer().status == 200


@pytest.mark.parametrize("scope", ["target", "key"])
def test_a_flooded_key_does_not_starve_another(sim, tmp_path, scope):
    """20 callers of one key all the time; another key's calls all succeed, and soon."""
    upstream = "concurrency: 2" if scope == "target" else None
    own = "" if scope == "target" else "limits: {concurrency: 2}, "
    text = (
        f"tiers: {{t: {{{own}when_full: {{wait: 20s}}}}}}\nkeys:\n"
        + declared("flood", "tier: t")
        + declared("quiet", "tier: t")
    )
    sim.manner("p", Manner(latency=0.01))
    over = threading.Event()

    def flood(gateway):
        statuses = []
        while not over.is_set():
            statuses.append(call(gateway, "flood").status)
        return statuses

    with house(sim, tmp_path, text, limits=upstream) as gateway:
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            flooding = [pool.submit(flood, gateway) for _ in range(20)]
            until(lambda: queued(gateway) >= 10)
            took = []
            for _ in range(15):
                began = time.monotonic()
                assert call(gateway, "quiet").status == 200
                took.append(time.monotonic() - began)
            over.set()
            assert {status for each in flooding for status in each.result()} <= {200, 429}
        assert sorted(took)[-2] <= 0.5


# ------------------------------------------------------------------------------ tiers, teams, keys


def test_a_team_s_limit_is_shared_and_a_tier_s_is_each_key_s_own(sim, tmp_path):
    text = (
        "tiers: {shared: {limits: {rpm: 5}}, own: {limits: {rpm: 3}}}\n"
        "teams: {us: {tier: shared}}\nkeys:\n"
        + declared("a", "team: us, tier: own")
        + declared("b", "team: us, tier: own")
        + declared("c", "tier: own")
    )
    with house(sim, tmp_path, text) as gateway:
        assert [call(gateway, "a").status for _ in range(3)] == [200] * 3
        judge_refusal(call(gateway, "a"), "rpm_exceeded", "key", "3 requests")
        assert [call(gateway, "b").status for _ in range(2)] == [200] * 2
        judge_refusal(call(gateway, "b"), "rpm_exceeded", "team", "5 requests", "'us'")
        assert [call(gateway, "c").status for _ in range(3)] == [200] * 3


def test_a_key_s_own_limits_narrow_its_tier_s(sim, tmp_path):
    text = (
        "tiers: {t: {limits: {rpm: 5, concurrency: 9}}}\nkeys:\n"
        + declared("narrow", "tier: t, limits: {rpm: 2}")
        + declared("wide", "tier: t")
    )
    with house(sim, tmp_path, text) as gateway:
        assert [call(gateway, "narrow").status for _ in range(3)] == [200, 200, 429]
        assert [call(gateway, "wide").status for _ in range(6)] == [200] * 5 + [429]


def test_a_stored_key_s_limits_narrow_its_tier_s_too(sim, tmp_path):
    text = "tiers: {t: {limits: {rpm: 5}}}\nteams: {us: {tier: t}}\nkeys: []\n"
    with house(sim, tmp_path, text) as gateway:
        store = KeyStore(gateway.folder, SystemClock())
        made = {
            "narrow": store.create("narrow", tier="t", limits=[("rpm", 2, None)]),
            "wider": store.create("wider", tier="t", limits=[("rpm", 50, None)]),
            "teamed": store.create("teamed", team="us", limits=[("concurrency", 1, None)]),
        }
        gateway.wait(gateway.house.state.keys.poll())
        secret = {name: key.secret.reveal() for name, key in made.items()}
        assert [call(gateway, secret["narrow"]).status for _ in range(3)] == [200, 200, 429]
        assert [call(gateway, secret["wider"]).status for _ in range(6)] == [200] * 5 + [429]
        answers = [call(gateway, secret["teamed"]) for _ in range(6)]
        assert [answer.status for answer in answers] == [200] * 5 + [429]
        judge_refusal(answers[-1], "rpm_exceeded", "team")


def test_the_tier_bounds_what_is_held_for_who_states_no_max_tokens(sim, tmp_path):
    sim.manner("p", Manner(latency=0.2))
    text = "tiers: {t: {limits: {tpm: 400}, default_max_tokens: 50}}\nkeys:\n"
    text += declared("k", "tier: t")
    with house(sim, tmp_path, text) as gateway:
        answers = at_once(*[lambda: call(gateway)] * 4)  # 4 x (about 25 + 50) at once
        assert [answer.status for answer in answers] == [200] * 4
    text = text.replace(", default_max_tokens: 50", "")
    with house(sim, tmp_path / "again", text) as gateway:
        answers = at_once(*[lambda: call(gateway)] * 4)
        assert sorted(answer.status for answer in answers) == [200, 429, 429, 429]


def test_a_reload_keeps_what_was_counted_and_takes_the_new_limit(sim, tmp_path):
    text, _ = limited("key", "rpm: 3")
    with house(sim, tmp_path, text, file=True) as gateway:
        assert [call(gateway).status for _ in range(3)] == [200] * 3
        gateway.path.write_text(gateway.path.read_text().replace("rpm: 3", "rpm: 4"))
        assert gateway.wait(gateway.house.reload()).problem == ""
        assert [call(gateway).status for _ in range(2)] == [200, 429]


def test_a_process_that_cannot_keep_up_sheds_by_priority_and_says_so_everywhere(sim, tmp_path):
    text = "tiers: {low: {priority: low}, high: {priority: high}}\nkeys:\n"
    text += declared("l", "tier: low") + declared("h", "tier: high")
    ears = Ears()
    with house(sim, tmp_path, text, listeners=(ears,)) as gateway:
        assert call(gateway, "l").status == 200

        def struggle():
            """Longer than between two looks, so that each time one of them comes late."""
            gateway.do(lambda: time.sleep(1.5 * EVERY))
            return gateway.house.guard.level < ALL

        until(struggle)
        refused = call(gateway, "l")
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert refused.error["scope"] == "process"
        assert "event loop" in refused.error["message"]
        assert refused.headers["x-should-retry"] == "true"
        assert call(gateway, "h").status == 200
        assert any("turned away" in one for one in gateway.house.degraded())
        moved = [event for event in ears.events if isinstance(event, GuardMoved)]
        assert moved[0].sheds in {"low", "normal"}
        page = gateway.house.metrics.render().decode()
        assert 'gateway_shed_total{chain="smart",reason="guard"} 1.0' in page
