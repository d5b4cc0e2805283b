"""Repeats over sockets: one call of the provider, one row in the ledger, the same answer.

OpenAI's own client repeats; the simulator counts; the ledger says what was charged.
"""

import concurrent.futures
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import openai
import pytest

from chaos import faults
from chaos.answers import Manner
from chaos.upstream import UpstreamThread
from tests.integration.rig import (
    MESSAGES,
    Answer,
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

KEY = "run-7:0:3/a b"
SLOW = Manner(tokens=12, ttft=0.3)


@pytest.fixture
def sim() -> Iterator[UpstreamThread]:
    with UpstreamThread() as running:
        yield running


@pytest.fixture
def gateway(sim: UpstreamThread, tmp_path: Path) -> Iterator[Gateway]:
    text = (
        f"providers:\n{provider(sim, 'p')}"
        "chains:\n  smart: [p/m]\n  often: {try: [p/m], cache: {exact: 5m, scope: team}}\n"
        "prices: {p/m: [{input: 1, output: 2}]}\n"
        "tiers: {t: {may: [cache]}}\nteams: {one: {tier: t}}\n"
        f"keys:\n{declared('k', 'team: one')}{declared('other', 'team: one')}"
        f"{declared('stranger')}{declared('worker', 'role: agent')}{declared('spy', 'role: agent')}"
    )
    clock = Leaping()
    with Gateway(text, tmp_path / "state", clock=clock) as gateway:
        gateway.leap = lambda seconds: setattr(clock, "ahead", clock.ahead + seconds)
        yield gateway
        gateway.at_rest()
        until(lambda: gateway.do(lambda: gateway.house.detached.under_way) == 0)


def sdk(gateway: Gateway, who: str = "k", **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=gateway.base_url, api_key=who, max_retries=2, **options)


def say(gateway: Gateway, *, stream: bool, key: str = KEY, who: str = "k") -> tuple[str, Any]:
    """The text, and its usage if it was told."""
    headers = {"Idempotency-Key": key}
    with sdk(gateway, who) as client:
        if not stream:
            answer = client.chat.completions.create(
                model="smart", messages=MESSAGES, extra_headers=headers
            )
            return answer.choices[0].message.content, answer.usage
        told, usage = "", None
        for chunk in client.chat.completions.create(
            model="smart",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers=headers,
        ):
            told += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            usage = chunk.usage or usage
        return told, usage


@pytest.mark.parametrize("streams", [(True, True, False), (False, False, True)], ids=str)
def test_the_official_clients_repeats_join_or_are_told_what_is_kept(
    sim: UpstreamThread, gateway: Gateway, streams: tuple[bool, ...]
) -> None:
    sim.manner("p", SLOW)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        together = [pool.submit(say, gateway, stream=stream) for stream in streams[:2]]
        told = [done.result() for done in together]
    told.append(say(gateway, stream=streams[2]))
    assert len({text for text, _ in told}) == 1
    assert told[0][0]
    assert len({usage.completion_tokens for _, usage in told}) == 1
    assert len(sim.calls("p")) == 1
    assert len(gateway.rows()) == 1


def test_a_repeat_is_told_so_costs_nothing_and_has_a_story_of_its_own(
    sim: UpstreamThread, gateway: Gateway
) -> None:
    told = ask(gateway.port, chat("smart"), x_api_key="k", idempotency_key=KEY)
    again = ask(gateway.port, chat("smart"), x_api_key="k", idempotency_key=KEY)
    assert again.body == told.body
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["x-gateway-cost-usd"] == "0"
    assert told.headers["x-gateway-cost-usd"] != "0"
    assert "idempotency-replayed" not in told.headers
    assert again.headers["x-request-id"] != told.headers["x-request-id"]
    assert gateway.story(again.headers["x-request-id"])["replayed"] is True
    assert len(sim.calls("p")) == len(gateway.rows()) == 1


def test_the_official_client_is_told_when_its_key_stands_for_another_request(
    gateway: Gateway,
) -> None:
    say(gateway, stream=False)
    with sdk(gateway) as client, pytest.raises(openai.UnprocessableEntityError) as caught:
        client.chat.completions.create(
            model="smart", messages=MESSAGES, seed=7, extra_headers={"Idempotency-Key": KEY}
        )
    assert caught.value.code == "idempotency_key_reused"


def test_a_key_is_new_after_a_day_and_for_everybody_else(
    sim: UpstreamThread, gateway: Gateway
) -> None:
    say(gateway, stream=False)
    for who in ("other", "stranger"):
        say(gateway, stream=False, who=who)
    users = [
        ask(gateway.port, chat("smart"), x_api_key="k", idempotency_key=KEY, x_gateway_user=user)
        for user in ("anna", "bert")
    ]
    assert all("idempotency-replayed" not in told.headers for told in users)
    assert len(sim.calls("p")) == 5
    gateway.leap(86_399)
    say(gateway, stream=False)
    assert len(sim.calls("p")) == 5
    gateway.leap(1)
    say(gateway, stream=False)
    assert len(sim.calls("p")) == 6


def test_what_a_provider_refuses_for_good_is_told_again(
    sim: UpstreamThread, gateway: Gateway
) -> None:
    sim.set("p", faults.bad_request())
    first, again = (
        ask(gateway.port, chat("smart"), x_api_key="k", idempotency_key=KEY) for _ in range(2)
    )
    assert first.status == again.status == 400
    assert first.error["message"] == again.error["message"]
    assert again.headers["idempotency-replayed"] == "true"
    assert len(sim.calls("p")) == 1


@contextlib.contextmanager
def stalled(sim: UpstreamThread, gateway: Gateway, who: str = "worker") -> Iterator[Line]:
    """A detached stream that has begun and says no more for now."""
    sim.manner("p", Manner(tokens=12, gap=0.05))
    with Line(gateway.port) as line:
        line.send(
            post(
                chat("smart", stream=True),
                x_api_key=who,
                idempotency_key=KEY,
                x_gateway_detach="1",
            )
        )
        line.until(b'"content":"')
        yield line


def test_a_detached_call_is_finished_though_its_caller_died(
    sim: UpstreamThread, gateway: Gateway
) -> None:
    with stalled(sim, gateway) as line:
        line.rst()
    assert sim.in_flight("p") == 1
    told = say(gateway, stream=True, who="worker")
    assert told == say(gateway, stream=True, who="worker")
    (call,) = sim.calls("p")
    assert call.finished
    (row,) = gateway.rows()
    assert (row["outcome"], row["output"]) == ("ok", call.completion_tokens)
    assert told[1].completion_tokens == call.completion_tokens
    assert told[1].model_extra["cost_usd"] != "0"  # what it cost when it was made


def end(gateway: Gateway, who: str, key: str = KEY) -> Answer:
    with Line(gateway.port) as line:
        line.send(
            f"DELETE /v1/requests/{quote(key, safe='')} HTTP/1.1\r\nhost: g\r\n"
            f"x-api-key: {who}\r\n\r\n".encode()
        )
        return line.answer("DELETE")


def test_its_caller_alone_may_end_it(sim: UpstreamThread, gateway: Gateway) -> None:
    with stalled(sim, gateway) as line:
        for who in ("spy", "k"):
            assert end(gateway, who).status == 404
        assert end(gateway, "worker", "another").status == 404
        assert sim.in_flight("p") == 1
        ended = end(gateway, "worker")
        assert ended.json()["state"] == "ended"
        until(lambda: sim.in_flight("p") == 0)
        told = line.until(b"0\r\n\r\n")
    assert b'"code":"request_ended"' in told
    assert b"[DONE]" not in told
    (call,) = sim.calls("p")
    assert not call.finished
    (row,) = gateway.rows()
    assert (row["outcome"], row["flags"]) == ("cancelled", "estimated,partial")
    refused = ask(gateway.port, chat("smart"), x_api_key="worker", idempotency_key=KEY)
    assert (refused.status, refused.error["code"]) == (409, "request_ended")
    assert len(sim.calls("p")) == 1


def test_detaching_is_an_agents_right(gateway: Gateway) -> None:
    told = ask(
        gateway.port, chat("smart"), x_api_key="k", idempotency_key=KEY, x_gateway_detach="1"
    )
    assert (told.status, told.error["code"]) == (403, "override_not_allowed")


def test_a_drain_waits_for_a_detached_call(sim: UpstreamThread, gateway: Gateway) -> None:
    with stalled(sim, gateway) as line:
        line.rst()
    gateway.do(gateway.house.begin_drain)
    gateway.wait(gateway.house.over.wait())
    assert [call.finished for call in sim.calls("p")] == [True]


def test_a_cache_is_shared_by_its_team_and_by_nobody_else(
    sim: UpstreamThread, gateway: Gateway
) -> None:
    def cache(who: str, **headers: str) -> str:
        told = ask(gateway.port, chat("often"), x_api_key=who, **headers)
        assert told.status == 200
        return told.headers["x-gateway-cache"]

    assert [cache("k"), cache("other"), cache("stranger")] == ["miss", "hit", "miss"]
    assert cache("k", x_gateway_cache="off") == "off"
    assert cache("k", x_gateway_cache="refresh") == "miss"
    assert cache("other", x_gateway_cache="1m") == "hit"
    refused = ask(gateway.port, chat("often"), x_api_key="stranger", x_gateway_cache="refresh")
    assert (refused.status, refused.error["param"]) == (403, "x-gateway-cache")
    assert len(sim.calls("p")) == len(gateway.rows()) == 4
    gateway.leap(300)
    assert cache("other") == "miss"


def test_a_hit_is_the_same_answer_in_either_form_and_free(
    sim: UpstreamThread, gateway: Gateway
) -> None:
    whole = ask(gateway.port, chat("often"), x_api_key="k")
    asked = chat("often", stream=True, stream_options={"include_usage": True})
    stream = ask(gateway.port, asked, x_api_key="k")
    assert stream.headers["x-gateway-cache"] == "hit"
    *chunks, done = stream.events
    assert done == "[DONE]"
    read = [json.loads(chunk) for chunk in chunks]
    said = "".join(one["choices"][0]["delta"].get("content") or "" for one in read[:-1])
    assert said == whole.json()["choices"][0]["message"]["content"]
    assert read[-1]["usage"] == {**whole.json()["usage"], "cost_usd": "0"}
    assert len(sim.calls("p")) == 1


def test_identical_requests_at_once_are_one_call(sim: UpstreamThread, gateway: Gateway) -> None:
    sim.manner("p", SLOW)
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        asked = [
            pool.submit(ask, gateway.port, chat("often", stream=at % 2 == 0), x_api_key="k")
            for at in range(5)
        ]
        told = sorted(done.result().headers["x-gateway-cache"] for done in asked)
    assert told == ["miss", "shared", "shared", "shared", "shared"]
    assert len(sim.calls("p")) == len(gateway.rows()) == 1
