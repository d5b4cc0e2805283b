"""Parking over sockets: 202 instead of 429, an answer later, one row in the ledger.

A minute passes when a test wants it to: the gateway's clock is put forward.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from chaos import faults
from chaos.upstream import UpstreamThread
from gateway.clock import SystemClock
from gateway.state.embedded.keys import KeyStore
from tests.integration.rig import (
    MESSAGES,
    Answer,
    Gateway,
    Leaping,
    Line,
    ask,
    chat,
    declared,
    get,
    post,
    provider,
    until,
)

TIERS = """tiers:
  one: {limits: {concurrency: 1}, may: [park]}
  parks: {limits: {concurrency: 1}, when_full: park}
"""


@pytest.fixture
def sim() -> Iterator[UpstreamThread]:
    with UpstreamThread() as running:
        yield running


@contextlib.contextmanager
def house(sim: UpstreamThread, folder: Path) -> Iterator[Gateway]:
    keys = (
        declared("k", "tier: one")
        + declared("auto", "tier: parks")
        + declared("other", "tier: one")
    )
    text = (
        f"providers:\n{provider(sim, 'p')}chains: {{smart: [p/m]}}\n"
        f"prices: {{p/m: [{{input: 1, output: 2}}]}}\n{TIERS}keys:\n{keys}"
    )
    clock = Leaping()
    with Gateway(text, folder / "state", clock=clock) as gateway:
        gateway.leap = lambda seconds: setattr(clock, "ahead", clock.ahead + seconds)
        yield gateway
        until(lambda: gateway.do(lambda: gateway.house.parked.under_way) == 0)
        gateway.at_rest()


@pytest.fixture
def gateway(sim: UpstreamThread, tmp_path: Path) -> Iterator[Gateway]:
    with house(sim, tmp_path) as gateway:
        yield gateway


@contextlib.contextmanager
def full(sim: UpstreamThread, gateway: Gateway, who: str = "k") -> Iterator[None]:
    """The one slot of this key is taken until the block ends."""
    sim.set("p", faults.silence())
    before = sim.in_flight("p")
    with Line(gateway.port) as line:
        line.send(post(chat("smart"), x_api_key=who))
        until(lambda: sim.in_flight("p") == before + 1)
        sim.set("p", None)
        yield
    until(lambda: sim.in_flight("p") == before)


def park(gateway: Gateway, who: str = "k", **more: Any) -> str:
    """The id of a request that found all full."""
    told = ask(gateway.port, chat("smart"), x_api_key=who, x_gateway_park="allow", **more)
    assert told.status == 202, told.body
    assert told.headers["location"] == f"/v1/parked/{told.json()['id']}"
    return told.json()["id"]


def look(gateway: Gateway, id: str, who: str = "k", method: str = "GET", **more: str) -> Answer:
    with Line(gateway.port) as line:
        wanted = get(f"/v1/parked/{id}", x_api_key=who, **more)
        line.send(wanted.replace(b"GET", method.encode(), 1))
        return line.answer(method)


def answered(gateway: Gateway, id: str, who: str = "k") -> Answer:
    gateway.leap(2)
    return until(lambda: (told := look(gateway, id, who)).status != 202 and told, 15.0, 0.05)


def test_the_official_client_is_told_202_and_finds_its_answer_later(
    sim: UpstreamThread, gateway: Gateway
) -> None:
    with openai.OpenAI(base_url=gateway.base_url, api_key="auto", max_retries=2) as client:
        with full(sim, gateway, "auto"):
            raw = client.chat.completions.with_raw_response.create(model="smart", messages=MESSAGES)
            assert raw.status_code == 202
            told = json.loads(raw.content)
            assert told["status"] == "parked"
            assert raw.headers["location"] == f"/v1/parked/{told['id']}"
            assert int(raw.headers["retry-after"]) >= 1
            assert look(gateway, told["id"], "auto").json() == told
        found = answered(gateway, told["id"], "auto")
        again = client.get(f"/parked/{told['id']}", cast_to=openai.types.chat.ChatCompletion)
    assert found.status == 200
    assert again.choices[0].message.content
    assert found.json()["choices"][0]["message"]["content"] == again.choices[0].message.content
    assert found.headers["x-gateway-target"] == "p/m"
    rows = [row for row in gateway.rows() if row["outcome"] == "ok"]
    assert len(rows) == 1
    assert rows[0]["key"] == "auto"
    story = gateway.story(rows[0]["request_id"])
    assert (story["status"], story["parked"]) == (200, told["id"])
    first = gateway.story(raw.headers["x-request-id"])
    assert (first["status"], first["parked"]) == (202, told["id"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/openai/deployments/smart/chat/completions", {"messages": MESSAGES}),
        ("/v1/embeddings", {"model": "smart", "input": "the river"}),
    ],
)
def test_every_endpoint_without_streams_may_be_parked(
    sim: UpstreamThread, gateway: Gateway, path: str, body: dict[str, Any]
) -> None:
    with full(sim, gateway):
        told = ask(gateway.port, body, path, x_api_key="k", x_gateway_park="allow")
        assert told.status == 202
    found = answered(gateway, told.json()["id"])
    assert found.status == 200
    assert found.json()["model"] == "m"


def test_a_stream_is_refused_and_told_why_it_was_not_parked(
    sim: UpstreamThread, gateway: Gateway
) -> None:
    with full(sim, gateway, "auto"):
        told = ask(gateway.port, chat("smart", stream=True), x_api_key="auto")
    assert told.status == 429
    assert "only requests without stream" in told.error["message"]


def test_nobody_else_finds_or_ends_what_is_parked(sim: UpstreamThread, gateway: Gateway) -> None:
    with full(sim, gateway):
        id = park(gateway, x_gateway_user="anna")
        for who, more in (
            ("other", {"x_gateway_user": "anna"}),
            ("k", {"x_gateway_user": "bert"}),
            ("k", {}),
        ):
            for method in ("GET", "DELETE"):
                told = look(gateway, id, who, method, **more)
                assert (told.status, told.error["code"]) == (404, "not_found")
        assert look(gateway, "parked_0", x_gateway_user="anna").status == 404
        assert look(gateway, id, x_gateway_user="anna").status == 202
        assert look(gateway, id, method="DELETE", x_gateway_user="anna").status == 200


def test_a_running_one_is_ended_by_delete_and_its_call_is_closed(
    sim: UpstreamThread, gateway: Gateway
) -> None:
    with full(sim, gateway):
        id = park(gateway)
        sim.set("p", faults.silence())
    until(lambda: sim.in_flight("p") == 1)
    assert look(gateway, id).json()["status"] == "running"
    told = look(gateway, id, method="DELETE")
    assert (told.status, told.json()) == (200, {"id": id, "status": "cancelled"})
    until(lambda: sim.in_flight("p") == 0)
    assert look(gateway, id).status == 404
    assert len(until(gateway.rows)) == 2


def test_what_is_parked_outlives_the_process(sim: UpstreamThread, tmp_path: Path) -> None:
    with house(sim, tmp_path) as gateway, full(sim, gateway):
        id = park(gateway)
    with house(sim, tmp_path) as gateway:
        assert answered(gateway, id).status == 200
    with house(sim, tmp_path) as gateway:
        assert look(gateway, id).status == 200
        assert len([row for row in gateway.rows() if row["outcome"] == "ok"]) == 1


def test_a_key_that_was_revoked_meanwhile_is_answered_for_no_more(
    sim: UpstreamThread, gateway: Gateway
) -> None:
    keys = KeyStore(gateway.folder, SystemClock())
    secret = keys.create("made", tier="one").secret.reveal()
    until(lambda: ask(gateway.port, chat("smart"), x_api_key=secret).status == 200, every=0.2)
    with full(sim, gateway, secret):
        park(gateway, secret)
        keys.revoke("made")
        until(lambda: ask(gateway.port, chat("smart"), x_api_key=secret).status == 401, every=0.2)
        calls = len(sim.calls("p"))

    def outcome() -> int | None:
        query = "SELECT status FROM parked"
        found = gateway.house.state.parking.run("look", lambda db: db.execute(query).fetchone())
        return gateway.wait(found)[0]

    assert until(outcome) == 401
    assert len(sim.calls("p")) == calls


def test_an_hour_without_room_ends_as_a_504(sim: UpstreamThread, gateway: Gateway) -> None:
    sim.set("p", faults.rate_limited(4000))
    id = park(gateway)
    gateway.leap(3600)
    told = answered(gateway, id)
    assert (told.status, told.error["code"]) == (504, "deadline_exceeded")
    assert len(sim.calls("p")) == 1
