"""Who may use which names over which doors, and what changes while the gateway runs."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import http.server
import json
import socket
import threading
import time

import openai
import pytest

from chaos import faults
from chaos.answers import Manner, words
from chaos.upstream import UpstreamThread
from gateway.clock import SystemClock
from gateway.state.embedded.keys import KeyStore
from tests.integration.rig import (
    HEAD,
    MESSAGES,
    Gateway,
    Line,
    ask,
    chat,
    declared,
    get,
    post,
    provider,
    until,
)

FIRST_TEXT = "".join(words(MESSAGES, Manner()))


@pytest.fixture
def sim():
    with UpstreamThread() as running:
        yield running


def config(sim, text):
    """Providers p and f, prices for both, and the rest."""
    chains = "" if "chains:" in text else "chains: {smart: [p/m, f/m]}\n"
    return (
        f"providers:\n{provider(sim, 'p')}{provider(sim, 'f')}{chains}{text}"
        "prices: {p/m: [{input: 1.00, output: 4.00}], f/m: [{input: 1.00, output: 4.00}]}\n"
    )


def text_of(answer):
    if "transfer-encoding" not in answer.headers:
        return answer.json()["choices"][0]["message"]["content"]
    frames = [json.loads(data) for data in answer.events if data != "[DONE]"]
    return "".join(c["delta"].get("content") or "" for frame in frames for c in frame["choices"])


def fetch(port, path, **headers):
    with Line(port) as line:
        line.send(get(path, **headers))
        return line.answer("GET")


def names(answer):
    return [model["id"] for model in answer.json()["data"]]


def sdk(gateway, key="x", **more):
    return openai.OpenAI(base_url=gateway.base_url, api_key=key, max_retries=0, **more)


# -------------------------------------------------------------------------------- names and rights

CALLERS = (
    "targets: {one: {model: p/m}}\n"
    "chains:\n  smart: {try: [one, f/m], also: [gpt-4o, gpt-4o-mini]}\n  cheap: [f/m]\n"
    "  secret: [one]\n"
    "tiers: {all: {may: [skip, target, trace]}, none: {}}\nteams: {us: {chains: [cheap, secret]}}\n"
    "keys:\n"
    + declared("some", "tier: none, chains: [smart, cheap]")
    + declared("alias", "tier: none, chains: [gpt-4o]")
    + declared("teamed", "team: us")
    + declared("narrowed", "team: us, chains: [secret]")
    + declared("every", "tier: all")
    + declared("nothing", "chains: []")
)
LISTED = {
    "some": ["smart", "gpt-4o", "gpt-4o-mini", "cheap"],
    "alias": ["smart", "gpt-4o", "gpt-4o-mini"],
    "teamed": ["cheap", "secret"],
    "narrowed": ["secret"],
    "every": ["smart", "gpt-4o", "gpt-4o-mini", "cheap", "secret"],
    "nothing": [],
}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    with UpstreamThread() as sim, Gateway(config(sim, CALLERS), tmp_path_factory.mktemp("h")) as it:
        it.sim = sim
        yield it


@pytest.mark.parametrize("who", LISTED)
def test_models_are_those_a_key_may_use_and_it_may_use_those(house, who):
    doors = ("/v1/models", "/models", "/openai/v1/models")
    lists = [fetch(house.port, door, x_api_key=who) for door in doors]
    assert [sorted(names(told)) for told in lists] == [sorted(LISTED[who])] * 3
    with sdk(house, who) as client:
        assert {model.id for model in client.models.list()} == {*LISTED[who]}
    for name in LISTED["every"]:
        allowed = name in LISTED[who]
        answer = ask(house.port, chat(name), x_api_key=who)
        assert answer.status == (200 if allowed else 403), name
        one = fetch(house.port, f"/v1/models/{name}", x_api_key=who)
        assert one.status == (200 if allowed else 404)
        if allowed:
            assert one.json()["id"] == name


def test_an_alias_is_its_chain(house):
    answer = ask(house.port, chat("gpt-4o"), x_api_key="alias")
    assert answer.headers["x-gateway-chain"] == "smart"
    assert answer.headers["x-gateway-target"] == "one"


def test_single_targets_are_called_by_right_only(house):
    for name, target in (("one", "one"), ("p/m", "one"), ("f/m", "f/m")):
        answer = ask(house.port, chat(name), x_api_key="every")
        assert (answer.status, answer.headers["x-gateway-path"]) == (200, f"{target}:ok")
        assert ask(house.port, chat(name), x_api_key="some").error["code"] == "model_not_found"


def test_a_target_may_be_named_in_a_header(house):
    answer = ask(house.port, chat("smart"), x_api_key="every", x_gateway_target="f/m")
    assert answer.headers["x-gateway-path"] == "f/m:ok"
    assert answer.headers["x-gateway-attempts"] == "1"


def test_targets_may_be_skipped(house):
    answer = ask(house.port, chat("smart"), x_api_key="every", x_gateway_skip="one")
    assert answer.headers["x-gateway-path"] == "one:excluded,f/m:ok"
    answer = ask(house.port, chat("smart"), x_api_key="every", x_gateway_skip="one,f/m")
    assert (answer.status, answer.error["code"]) == (400, "no_capable_target")
    assert "x-gateway-skip" in answer.error["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_without_fallback_no_other_target_is_asked(sim, tmp_path, stream):
    sim.set("p", faults.model_gone())
    with Gateway(config(sim, ""), tmp_path / "state") as gateway:
        answer = ask(gateway.port, chat("smart", stream=stream), x_gateway_fallback="off")
        assert (answer.status, answer.error["code"]) == (502, "model_gone")
        assert [told["target"] for told in answer.error["attempts"]] == ["p/m"]
        assert len(sim.calls()) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_trace_tells_the_whole_story_to_who_may_ask(house, stream):
    house.sim.set("p", faults.overloaded(), times=1)
    answer = ask(house.port, chat("smart", stream=stream), x_api_key="every", x_gateway_trace="1")
    whole = json.loads(answer.events[-2]) if stream else answer.json()
    story = whole["gateway"]
    assert story["path"] == "one:overloaded,f/m:ok"
    assert [attempt["outcome"] for attempt in story["attempts"]] == ["overloaded", "ok"]
    assert story["request_id"] == answer.headers["x-request-id"]
    with sdk(house, "every") as client:
        told = client.chat.completions.create(
            model="smart", messages=MESSAGES, stream=stream,
            extra_headers={"x-gateway-trace": "1"},
        )  # fmt: skip
        if stream:
            told = list(told)[-1]
        assert told.gateway["chain"] == "smart"


def test_an_error_is_traced_too(house):
    house.sim.set("p", faults.bad_request(), times=1)
    answer = ask(house.port, chat("smart"), x_api_key="every", x_gateway_trace="1")
    assert answer.status == 400
    assert answer.json()["gateway"]["attempts"][0]["outcome"] == "bad_request"


@pytest.mark.parametrize(
    ("header", "value"),
    [("x_gateway_skip", "one"), ("x_gateway_target", "f/m"), ("x_gateway_fallback", "off"),
     ("x_gateway_trace", "1"), ("x_gateway_priority", "high")],
)  # fmt: skip
def test_what_widens_needs_its_right(house, header, value):
    before = len(house.sim.calls())
    for stream in (True, False):
        answer = ask(house.port, chat("smart", stream=stream), x_api_key="some", **{header: value})
        assert (answer.status, answer.error["code"]) == (403, "override_not_allowed")
        assert answer.error["param"] == header.replace("_", "-")
    assert len(house.sim.calls()) == before


def test_user_session_and_tags_stand_in_the_ledger(house):
    answer = ask(
        house.port, chat("smart", user="body"), x_api_key="some", x_gateway_session="s-1",
        x_gateway_tags="team=a,job=b",
    )  # fmt: skip
    (row,) = house.settled(answer.headers["x-request-id"])
    assert (row["key"], row["user"], row["session"]) == ("some", "body", "s-1")
    assert row["tags"] == "team=a,job=b"
    answer = ask(house.port, chat("smart", user="body"), x_api_key="some", x_gateway_user="head")
    assert house.settled(answer.headers["x-request-id"])[0]["user"] == "head"


# ------------------------------------------------------------------------------------------- doors


@pytest.mark.parametrize("header", ["x_api_key", "api_key", "bearer", "BEARER", "bare"])
def test_a_key_may_come_in_any_of_three_headers(house, header):
    scheme = {"bearer": "Bearer ", "BEARER": "BEARER  ", "bare": ""}
    headers = {"authorization": f"{scheme[header]}some"} if header in scheme else {header: "some"}
    assert ask(house.port, chat("smart"), **headers).status == 200


def test_the_same_key_twice_is_one_key(house):
    same = {"x_api_key": "some", "authorization": "Bearer some", "api_key": "some"}
    assert ask(house.port, chat("smart"), **same).status == 200
    assert ask(house.port, chat("smart"), **same | {"api_key": "every"}).status == 400


def test_azure_s_client_finds_its_deployments(house):
    client = openai.AzureOpenAI(
        azure_endpoint=house.url, api_key="some", api_version="2024-10-21", max_retries=0
    )
    with client:
        answer = client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
        assert answer.choices[0].message.content == FIRST_TEXT
        chunks = client.chat.completions.create(model="cheap", messages=MESSAGES, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == FIRST_TEXT
        vectors = client.embeddings.create(model="smart", input=["a", "b"])
        assert [vector.index for vector in vectors.data] == [0, 1]
        with pytest.raises(openai.PermissionDeniedError):
            client.chat.completions.create(model="secret", messages=MESSAGES)
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="gpt-5o", messages=MESSAGES)
        assert "gpt-4o" in caught.value.message
    body = {"model": "another", "messages": MESSAGES}
    path = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"
    assert ask(house.port, body, path, api_key="some").headers["x-gateway-chain"] == "smart"


@pytest.mark.parametrize("prefix", ["/v1", "", "/openai/v1"])
def test_every_prefix_leads_to_chat_and_embeddings(house, prefix):
    answer = ask(house.port, chat("smart"), f"{prefix}/chat/completions", x_api_key="some")
    assert answer.status == 200
    body = {"model": "smart", "input": "x"}
    assert ask(house.port, body, f"{prefix}/embeddings", x_api_key="some").status == 200


def test_the_admin_port_opens_to_its_roles_only(sim, tmp_path):
    text = "keys:\n" + "".join(
        declared(role, f"role: {role}") for role in ("client", "metrics", "admin")
    )
    with Gateway(config(sim, text), tmp_path / "state") as gateway:
        port = gateway.house.servers.admin_port
        opened = {
            who: (
                fetch(port, "/metrics", x_api_key=who).status,
                fetch(port, "/admin/status", x_api_key=who).status,
            )
            for who in ("client", "metrics", "admin", "nobody")
        }
        assert opened == {
            "client": (403, 403), "metrics": (200, 403), "admin": (200, 200), "nobody": (401, 401),
        }  # fmt: skip
        assert fetch(gateway.port, "/metrics", x_api_key="admin").status == 404
        assert fetch(gateway.port, "/admin/status", x_api_key="admin").status == 404


def test_without_keys_everybody_is_local_with_any_key_or_none(sim, tmp_path):
    with Gateway(config(sim, ""), tmp_path / "state") as gateway:
        assert ask(gateway.port, chat("smart")).status == 200
        assert ask(gateway.port, chat("p/m"), x_api_key="whatever").status == 200
        assert {row["key"] for row in gateway.rows()} == {"local"}


# -------------------------------------------------------------------------------------- embeddings


def test_embeddings_are_those_of_the_upstream_and_cost_what_it_bills(sim, tmp_path):
    with Gateway(config(sim, ""), tmp_path / "state") as gateway, sdk(gateway) as client:
        raw = client.embeddings.with_raw_response.create(
            model="smart", input=["the river", "a stone"], dimensions=16
        )  # the SDK asks for base64 and decodes it
        vectors = raw.parse()
        assert [len(vector.embedding) for vector in vectors.data] == [16, 16]
        assert sum(x * x for x in vectors.data[0].embedding) == pytest.approx(1, abs=1e-3)
        plain = client.embeddings.create(
            model="smart", input="the river", dimensions=16, encoding_format="float"
        )
        assert plain.data[0].embedding == pytest.approx(vectors.data[0].embedding, abs=1e-5)
        tokens = client.embeddings.create(model="smart", input=[[1, 2, 3], [4, 5]])
        assert tokens.usage.prompt_tokens == 5
        assert raw.headers["x-gateway-path"] == "p/m:ok"
        rows, owed = gateway.rows(), sim.invoice("p")
        assert sum(row["input"] for row in rows) == owed.prompt_tokens
        assert {row["output"] for row in rows} == {0}
        assert all(row["nano_usd"] == row["input"] * 1000 for row in rows)
        assert json.loads(sim.calls("p")[0].body)["model"] == "m"


@pytest.mark.parametrize(
    "fault", [faults.overloaded(), faults.rate_limited(), faults.auth(), faults.html(),
              faults.server_error(), faults.reset(), faults.empty(), faults.error_in_200()],
    ids=lambda fault: fault.kind,
)  # fmt: skip
def test_embeddings_fall_back_like_chats(sim, tmp_path, fault):
    sim.set("p", fault)
    with Gateway(config(sim, ""), tmp_path / "state") as gateway:
        answer = ask(gateway.port, {"model": "smart", "input": "x"}, "/v1/embeddings")
        assert (answer.status, answer.headers["x-gateway-target"]) == (200, "f/m")
        assert len(answer.json()["data"]) == 1


def test_a_wrong_embedding_is_the_upstream_s_to_judge_once(sim, tmp_path):
    sim.set("p", faults.bad_request("dimensions is too large", "invalid_value"))
    with Gateway(config(sim, ""), tmp_path / "state") as gateway, sdk(gateway) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="smart", input="x")
        assert caught.value.code == "invalid_value"
        assert len(sim.calls()) == 1


# --------------------------------------------------------------------------- keys that come and go


def test_a_stored_key_works_within_two_seconds_and_a_revoked_one_stops(sim, tmp_path):
    text = "tiers: {t: {limits: {rpm: 100_000}}}\nkeys: []\n"
    with Gateway(config(sim, text), tmp_path / "state") as gateway:
        store = KeyStore(gateway.folder, SystemClock())

        def works(secret):
            return ask(gateway.port, chat("smart"), x_api_key=secret.reveal()).status == 200

        made = store.create("app", tier="t", chains=["smart"])
        until(lambda: works(made.secret), seconds=2, every=0.15)
        turned = store.rotate("app", overlap=3600.0)
        until(lambda: works(turned.secret), seconds=2, every=0.15)
        assert works(made.secret)  # for the overlap both do
        store.revoke("app")
        until(lambda: not works(turned.secret), seconds=2, every=0.15)
        assert not works(made.secret)
        assert {row["key"] for row in gateway.rows()} == {"app"}


def test_an_expired_key_is_nobody_s(sim, tmp_path):
    text = "keys:\n" + declared("old", "expires: 2020-01-01")
    text += declared("new", "expires: 2099-12-31")
    with Gateway(config(sim, text), tmp_path / "state") as gateway:
        assert ask(gateway.port, chat("smart"), x_api_key="old").status == 401
        assert fetch(gateway.port, "/v1/models", x_api_key="old").status == 401
        assert ask(gateway.port, chat("smart"), x_api_key="new").status == 200
        store = KeyStore(gateway.folder, SystemClock())
        made = store.create("brief", expires=time.time() + 0.4)
        gateway.wait(gateway.house.state.keys.poll())
        secret = made.secret.reveal()
        assert ask(gateway.port, chat("smart"), x_api_key=secret).status == 200
        until(lambda: ask(gateway.port, chat("smart"), x_api_key=secret).status == 401, every=0.1)


def test_the_first_stored_key_shuts_a_keyless_door_for_good(sim, tmp_path):
    with Gateway(config(sim, ""), tmp_path / "state") as gateway:
        assert ask(gateway.port, chat("smart")).status == 200
        store = KeyStore(gateway.folder, SystemClock())
        store.create("first")
        until(lambda: ask(gateway.port, chat("smart")).status == 401, seconds=2, every=0.15)
        store.revoke("first")
        gateway.wait(gateway.house.state.keys.poll())
        assert ask(gateway.port, chat("smart")).status == 401
    with Gateway(config(sim, ""), tmp_path / "state") as gateway:  # nor does a restart open it
        assert ask(gateway.port, chat("smart")).status == 401


def test_a_revoked_key_s_request_under_way_is_finished(sim, tmp_path):
    sim.manner("p", Manner(tokens=20, gap=0.02))
    with Gateway(config(sim, "keys: []\n"), tmp_path / "state") as gateway:
        store = KeyStore(gateway.folder, SystemClock())
        secret = store.create("app").secret.reveal()
        gateway.wait(gateway.house.state.keys.poll())
        with Line(gateway.port) as line:
            line.send(post(chat("smart", stream=True), x_api_key=secret))
            until(sim.in_flight)
            store.revoke("app")
            gateway.wait(gateway.house.state.keys.poll())
            assert line.answer().events[-1] == "[DONE]"
            line.send(post(chat("smart"), x_api_key=secret))
            assert line.answer().status == 401


# ------------------------------------------------------------------------------------------ reload

ONE = "chains: {smart: [p/m]}\n"
OTHER = "chains: {smart: [f/m], new: [f/m]}\n"


def test_a_changed_file_is_in_force_by_itself_and_spares_what_runs(sim, tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.app.house.LOOK", 0.3)  # seconds between looks
    sim.manner("p", Manner(tokens=30, gap=0.05))
    with Gateway(config(sim, ONE), tmp_path / "state", file=True) as gateway:
        before = fetch(gateway.port, "/v1/models")
        assert names(before) == ["smart"]
        with Line(gateway.port) as line, Line(gateway.port) as kept:
            line.send(post(chat("smart", stream=True)))
            until(lambda: sim.in_flight("p"))
            kept.send(get("/v1/models"))
            assert names(kept.answer("GET")) == ["smart"]
            gateway.write(config(sim, OTHER))
            until(lambda: names(fetch(gateway.port, "/v1/models")) == ["smart", "new"], every=0.05)
            assert sim.in_flight("p")
            answer = ask(gateway.port, chat("smart"))
            assert answer.headers["x-gateway-path"] == "f/m:ok"
            kept.send(post(chat("new")))  # on a connection from before
            assert kept.answer().headers["x-gateway-config"] == answer.headers["x-gateway-config"]
            old = line.answer()
            assert old.events[-1] == "[DONE]"
            assert text_of(old) == "".join(words(MESSAGES, Manner(tokens=30)))
            assert old.headers["x-gateway-config"] != answer.headers["x-gateway-config"]


BAD = {
    "no YAML": "chains: [\n",
    "an unknown key": "chains: {smart: [p/m]}\nchain: {}\n",
    "an unknown target": "chains: {smart: [nobody]}\n",
    "a cycle": "chains: {smart: [other], other: [smart]}\n",
    "a tab": "chains:\n\tsmart: [p/m]\n",
    "a wrong unit": "defaults: {deadline: 30}\nchains: {smart: [p/m]}\n",
}


def test_a_bad_file_changes_nothing_and_shows_until_it_is_mended(sim, tmp_path):
    with Gateway(config(sim, ONE), tmp_path / "state", file=True) as gateway:
        config_before = ask(gateway.port, chat("smart")).headers["x-gateway-config"]
        until(lambda: fetch(gateway.port, "/readyz").json()["status"] == "ready")
        for name, text in BAD.items():
            gateway.write(config(sim, text) if name != "no YAML" else text)
            told = gateway.admin("/admin/reload", "POST")
            assert told["problem"], name
            assert told["config"] == config_before
            ready = fetch(gateway.port, "/readyz")
            assert (ready.status, ready.json()["status"]) == (200, "degraded")
            assert "the last good one is in force" in str(ready.json()["degraded"])
            assert gateway.admin("/admin/status")["config"] == config_before
            answer = ask(gateway.port, chat("smart"))
            assert (answer.status, answer.headers["x-gateway-config"]) == (200, config_before)
        gateway.path.unlink()
        assert gateway.admin("/admin/reload", "POST")["problem"]
        gateway.write(config(sim, OTHER))
        assert gateway.admin("/admin/reload", "POST")["problem"] == ""
        assert fetch(gateway.port, "/readyz").json() == {"status": "ready"}
        assert ask(gateway.port, chat("new")).status == 200


def test_what_needs_a_restart_is_said_and_the_command_line_is_no_change(sim, tmp_path):
    with Gateway(config(sim, ONE), tmp_path / "state", file=True) as gateway:
        house, good = gateway.house, gateway.path.read_text()
        moved = dataclasses.replace(house.snapshot.server, host="127.0.0.2", port=1)
        house.snapshot = dataclasses.replace(house.snapshot, server=moved)
        told = gateway.admin("/admin/reload", "POST")
        assert (told["problem"], told["note"]) == ("", "")
        gateway.path.write_text(good.replace("drain: 5s", "drain: 6s"))
        assert "restart" in gateway.admin("/admin/reload", "POST")["note"]
        assert house.snapshot.server.drain == 5
        gateway.path.write_text(good)
        assert gateway.admin("/admin/reload", "POST")["note"] == ""


def test_a_new_secret_is_tried_though_the_old_one_was_refused(sim, tmp_path):
    text = config(sim, ONE + "tiers: {}\n")

    def keyed(secret):
        line = provider(sim, "p")
        return text.replace(line, line.replace("allow_http", f"key: {secret}, allow_http"))

    with Gateway(keyed("sk-old"), tmp_path / "state", file=True) as gateway:
        sim.set("p", faults.auth(), times=1)
        assert ask(gateway.port, chat("smart")).status == 502
        gateway.wait(gateway.house.reload())
        assert ask(gateway.port, chat("smart")).status == 503  # the same key stays aside
        gateway.write(keyed("sk-new"))
        gateway.wait(gateway.house.reload())
        assert ask(gateway.port, chat("smart")).status == 200
        sent = [call.headers["authorization"] for call in sim.calls("p")]
        assert sent == ["Bearer sk-old", "Bearer sk-new"]


def test_a_reload_cannot_open_a_public_door(sim, tmp_path):
    """A file without keys, and with a loopback `listen`, is sound; our listener is the old one."""
    head = HEAD.replace("listen: 127.0.0.1", "listen: 0.0.0.0")
    text = config(sim, ONE)
    keyed = text + "keys:\n" + declared("k")
    with Gateway(keyed, tmp_path / "state", file=True, head=head) as gateway:
        gateway._head = gateway._head.replace("0.0.0.0", "127.0.0.1")
        gateway.write(text)
        assert "0.0.0.0 is listened on" in gateway.admin("/admin/reload", "POST")["problem"]
        assert ask(gateway.port, chat("smart")).status == 401
        assert ask(gateway.port, chat("smart"), x_api_key="k").status == 200
        assert fetch(gateway.port, "/readyz").json()["status"] == "degraded"
        gateway.write(text + "keys: []\n")
        assert gateway.admin("/admin/reload", "POST")["problem"] == ""
        assert ask(gateway.port, chat("smart"), x_api_key="k").status == 401


def test_a_reload_may_bring_the_simulator(sim, tmp_path):
    with Gateway(config(sim, ONE), tmp_path / "state", file=True) as gateway:
        gateway.write("providers: {sim: {kind: sim}}\nchains: {practice: [sim/sim-1]}\n")
        assert gateway.admin("/admin/reload", "POST")["problem"] == ""
        assert text_of(ask(gateway.port, chat("practice"))) == FIRST_TEXT


def test_a_hundred_reloads_lose_no_request(sim, tmp_path):
    sim.manner("p", Manner(gap=0.001))
    over = threading.Event()

    def caller():
        seen = collections.Counter()
        while not over.is_set():
            for stream in (True, False):
                answer = ask(gateway.port, chat("smart", stream=stream))
                whole = text_of(answer) == FIRST_TEXT
                seen[(answer.status, whole, answer.headers["x-gateway-path"])] += 1
        return seen

    with Gateway(config(sim, ONE), tmp_path / "state", file=True) as gateway:
        texts = [config(sim, ONE), config(sim, OTHER), "chains: [\n"]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            callers = [pool.submit(caller) for _ in range(4)]
            problems = 0
            for turn in range(100):
                gateway.write(texts[turn % 3])
                problems += bool(gateway.wait(gateway.house.reload()).problem)
            over.set()
            seen = sum((each.result() for each in callers), collections.Counter())
        assert problems == 33
        assert {(status, whole) for status, whole, _ in seen} == {(200, True)}
        assert {path for _, _, path in seen} == {"p/m:ok", "f/m:ok"}
        owed = sim.invoice("p") + sim.invoice("f")
        rows = gateway.rows()
        assert len(rows) == owed.calls
        assert sum(row["output"] for row in rows) == owed.completion_tokens


def test_a_key_that_is_taken_out_of_the_file_is_nobody_s(sim, tmp_path):
    text = config(sim, ONE + "keys:\n" + declared("a") + declared("b"))
    with Gateway(text, tmp_path / "state", file=True) as gateway:
        assert ask(gateway.port, chat("smart"), x_api_key="b").status == 200
        gateway.write(text.replace(declared("b"), declared("c")))
        gateway.wait(gateway.house.reload())
        answers = [ask(gateway.port, chat("smart"), x_api_key=name) for name in "abc"]
        assert [answer.status for answer in answers] == [200, 401, 200]


# --------------------------------------------------------------------------------------- readiness


class Models(http.server.BaseHTTPRequestHandler):
    """Answers the free models call with `status`."""

    status = 401

    def do_GET(self):
        body = b'{"error": {"message": "no", "code": "invalid_api_key"}}'
        self.send_response(type(self).status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def models(status):
    """A provider that answers its list of models so; give it another `status` at any time."""
    handler = type("Handler", (Models,), {"status": status})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield handler, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def providers(**urls):
    lines = "".join(
        f'  {name}: {{kind: openai, base_url: "{url}", key: sk-{name}, allow_http: true,'
        " allow_private: true}\n"
        for name, url in urls.items()
    )
    return f"providers:\n{lines}prices: {{unpriced: allow}}\n"


def test_it_is_not_ready_while_every_key_of_a_chain_is_refused(sim, tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.app.readiness.AGAIN", 0.1)
    with models(401) as (bad, url):
        text = providers(bad=url, well=sim.base_url("well"))
        text += "chains: {only: [bad/m], both: [bad/m, well/m]}\n"
        with Gateway(text, tmp_path / "state") as gateway:

            def waiting():
                told = fetch(gateway.port, "/readyz")
                return told if "refused" in str(told.json()) else None

            told = until(waiting)
            assert told.status == 503
            assert told.json() == {
                "status": "starting",
                "unready_chains": {"only": "every provider key was refused"},
            }
            assert fetch(gateway.house.servers.admin_port, "/readyz").status == 503
            assert fetch(gateway.port, "/healthz").status == 200
            assert gateway.admin("/admin/status")["ready"] is False
            bad.status = 200
            ready = until(lambda: (r := fetch(gateway.port, "/readyz")).status == 200 and r)
            assert ready.json()["status"] == "ready"
            bad.status = 401  # once ready, it stays so
            time.sleep(0.25)
            assert fetch(gateway.port, "/readyz").status == 200


@pytest.mark.parametrize("status", [500, 404, 429])
def test_a_provider_that_has_other_trouble_does_not_keep_it_from_being_ready(tmp_path, status):
    with models(status) as (_, url):
        text = providers(odd=url) + "chains: {only: [odd/m]}\n"
        with Gateway(text, tmp_path / "state") as gateway:
            until(lambda: fetch(gateway.port, "/readyz").status == 200)


def test_an_outage_is_degraded_and_never_unready(tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        text = providers(gone=f"http://127.0.0.1:{nobody.getsockname()[1]}/v1")
        text += (
            "chains: {only: [gone/m]}\n"
            "defaults: {retry: {same_target: 0, max_wait: 10ms},"
            " breaker: {failures: 2, cooldown: 30s}}\n"
        )
        with Gateway(text, tmp_path / "state") as gateway:
            until(lambda: fetch(gateway.port, "/readyz").json() == {"status": "ready"})
            assert [ask(gateway.port, chat("only")).status for _ in range(2)] == [502, 502]
            told = fetch(gateway.port, "/readyz")
            assert (told.status, told.json()["status"]) == (200, "degraded")
            assert told.json()["degraded"] == ["breaker of gone/m is open"]
            with Line(gateway.port) as line:
                line.send(get("/readyz").replace(b"GET", b"HEAD", 1))
                assert line.answer("HEAD").status == 200


# ----------------------------------------------------------------------------------------- the end

LAME = "server: {listen: 127.0.0.1:0, admin: 127.0.0.1:0, lame_duck: 400ms, drain: 5s}\n"


def test_a_drain_finishes_what_runs_and_takes_nothing_new(sim, tmp_path):
    sim.manner("p", Manner(tokens=40, gap=0.03))
    with Gateway(config(sim, ONE), tmp_path / "state", head=LAME) as gateway:
        port = gateway.port
        with Line(port) as stream, Line(port) as whole, Line(port) as idle:
            stream.send(post(chat("smart", stream=True)))
            whole.send(post(chat("smart")))
            idle.send(get("/healthz"))
            assert idle.answer("GET").status == 200
            until(lambda: sim.in_flight() == 2)
            began = time.monotonic()
            assert gateway.admin("/admin/drain", "POST") == {"status": "draining"}
            told = fetch(port, "/readyz")
            assert (told.status, told.json()) == (503, {"status": "draining"})
            assert time.monotonic() - began <= 0.1 + SOON
            assert fetch(gateway.house.servers.admin_port, "/readyz").status == 503
            assert fetch(port, "/healthz").status == 200
            lame = ask(port, chat("smart"))  # still accepted, and the connection ends with it
            assert (lame.status, lame.headers["connection"]) == (200, "close")
            assert text_of(stream.answer()) == FIRST_TEXT
            assert text_of(whole.answer()) == FIRST_TEXT
            assert idle.ended()
        until(lambda: refused(port))
        until(lambda: gateway.do(gateway.house.over.is_set))
        rows = gateway.rows()
        assert [row["outcome"] for row in rows] == ["ok"] * 3
        assert sum(row["output"] for row in rows) == sim.invoice().completion_tokens


SOON = 0.25


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_what_does_not_end_in_time_is_told_so_and_settled(sim, tmp_path):
    sim.manner("p", Manner(tokens=10_000, gap=0.02))
    head = LAME.replace("400ms", "0s").replace("5s", "200ms")
    with Gateway(config(sim, ONE), tmp_path / "state", head=head) as gateway:
        with Line(gateway.port) as stream, Line(gateway.port) as whole:
            stream.send(post(chat("smart", stream=True)))
            whole.send(post(chat("smart")))
            until(lambda: sim.in_flight() == 2)
            stream.until(b"content")
            gateway.do(gateway.house.begin_drain)
            told = stream.until(b"0\r\n\r\n").decode()
            assert "server_shutdown" in told
            assert "[DONE]" not in told
            answer = whole.answer()
            assert (answer.status, answer.error["code"]) == (503, "draining")
            assert answer.headers["x-should-retry"] == "true"
        until(lambda: sim.in_flight() == 0)
        until(lambda: gateway.do(gateway.house.over.is_set))
        rows = gateway.rows()
        assert [row["outcome"] for row in rows] == ["cancelled"] * 2
        assert all(row["input"] > 0 and row["nano_usd"] > 0 for row in rows)
