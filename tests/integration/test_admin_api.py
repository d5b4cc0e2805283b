"""Operators at work over HTTP, on a whole gateway: keys, limits, the audit log; and own usage."""

import json
from decimal import Decimal

import pytest

from chaos.upstream import UpstreamThread
from gateway.state.embedded.audit import AuditFile
from gateway.state.embedded.keys import KeyStore
from tests.integration.rig import (
    HEAD,
    Ears,
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
from tests.support.house import ADMIN_KEY

ALLOWED = HEAD.replace("{listen", "{admin_keys: true, listen")


def config(sim):
    return (
        f"providers:\n{provider(sim, 'p', ', limits: {concurrency: 9}')}"
        "targets: {m: {model: p/m, limits: {rpm: 100}}}\n"
        "chains: {smart: [m], cheap: [m]}\n"
        "tiers: {free: {limits: {rpm: 20, burst: 5, tpm: 5_000}}, team: {limits: {rpm: 60}}}\n"
        "teams: {us: {tier: team, chains: [smart]}}\n"
        "keys:\n" + declared("boss", "role: admin") + declared("app", "tier: free")
        + "prices: {p/m: [{input: 1.00, output: 4.00}]}\n"
    )  # fmt: skip


@pytest.fixture
def house(tmp_path):
    with (
        UpstreamThread() as sim,
        Gateway(config(sim), tmp_path / "state", head=ALLOWED, clock=Leaping()) as running,
    ):
        running.sim = sim
        yield running


def manage(gateway, method, path, body=None, key=ADMIN_KEY):
    """(status, what was answered)."""
    sent = b"" if body is None else json.dumps(body).encode()
    request = post(sent, path, authorization=f"Bearer {key}").replace(b"POST", method.encode(), 1)
    with Line(gateway.house.servers.admin_port) as line:
        line.send(request)
        answer = line.answer(method)
    return answer.status, answer.json()


def usage(gateway, key, path="/v1/usage"):
    with Line(gateway.port) as line:
        line.send(get(path, x_api_key=key))
        return line.answer("GET")


def test_a_key_lives_from_its_making_to_its_end_without_another_process(house):
    body = {"tier": "free", "team": "us", "chains": ["smart"], "limits": {"rpm": 7}}
    status, told = manage(house, "PUT", "/admin/keys/alice", body)
    first = told.pop("secret")
    assert (status, told["changed"]) == (201, True)
    assert ask(house.port, chat("smart"), x_api_key=first).status == 200
    assert ask(house.port, chat("cheap"), x_api_key=first).status == 403
    assert manage(house, "PUT", "/admin/keys/alice", body) == (200, told | {"changed": False})
    assert manage(house, "GET", "/admin/keys/alice") == (200, {"key": told["key"]})
    assert (told["key"]["limits"], told["key"]["state"]) == ({"rpm": 7}, "active")

    status, told = manage(house, "PUT", "/admin/keys/alice", {"team": "us"})
    assert (status, told["changed"], "secret" in told, told["key"]["tier"]) == (
        200,
        True,
        False,
        None,
    )
    status, told = manage(house, "POST", "/admin/keys/alice/rotate", {"overlap_s": 60})
    second = told["secret"]
    assert (status, first != second) == (200, True)
    for key in (first, second):
        assert ask(house.port, chat("smart"), x_api_key=key).status == 200
    house.house.clock.ahead += 61
    assert ask(house.port, chat("smart"), x_api_key=first).status == 401
    assert ask(house.port, chat("smart"), x_api_key=second).status == 200

    assert manage(house, "DELETE", "/admin/keys/alice")[1]["changed"] is True
    assert ask(house.port, chat("smart"), x_api_key=second).status == 401
    status, told = manage(house, "DELETE", "/admin/keys/alice")
    assert (status, told["changed"], told["key"]["state"]) == (200, False, "revoked")
    for method, path, code in (
        ("PUT", "/admin/keys/alice", 409),
        ("POST", "/admin/keys/alice/rotate", 404),
        ("DELETE", "/admin/keys/nobody", 404),
        ("GET", "/admin/keys/nobody", 404),
        ("PUT", "/admin/keys/app", 409),
        ("DELETE", "/admin/keys/app", 409),
    ):
        assert manage(house, method, path, {})[0] == code, (method, path)


@pytest.mark.parametrize(
    ("name", "body", "param", "said"),
    [
        ("bob", {"tier": "fre"}, "tier", "did you mean free?"),
        ("bob", {"tier": "free", "limits": {"rpm": 21}}, "limits.rpm", "21 is wider than the 20"),
        ("bob", {"team": "us", "chains": ["cheap"]}, "chains", "choose of: smart"),
        ("bob", {"expires": "2001-01-01"}, "expires", "over"),
        ("Bob", {}, "name", "a-z"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy_and_leaves_nothing(
    house, name, body, param, said
):
    status, told = manage(house, "PUT", f"/admin/keys/{name}", body)
    assert (status, told["error"]["param"]) == (400, param)
    assert said in told["error"]["message"]
    assert manage(house, "GET", f"/admin/keys/{name}")[0] == 404


def test_keys_are_listed_by_name_a_page_at_a_time(house):
    for name in ("d", "b", "c"):
        manage(house, "PUT", f"/admin/keys/{name}", {})
    seen, after = [], ""
    while after is not None:
        page = manage(house, "GET", f"/admin/keys?limit=2{after and f'&after={after}'}")[1]
        seen += [(key["name"], key["source"]) for key in page["keys"]]
        after = page["next"]
    assert seen == [
        ("app", "file"), ("b", "store"), ("boss", "file"), ("c", "store"), ("d", "store")
    ]  # fmt: skip


def test_who_did_what_is_in_a_chain_that_holds_and_in_the_log(tmp_path):
    ears = Ears()
    with (
        UpstreamThread() as sim,
        Gateway(config(sim), tmp_path / "state", head=ALLOWED, listeners=(ears,)) as house,
    ):
        secret = manage(house, "PUT", "/admin/keys/root", {"role": "admin"})[1]["secret"]
        manage(house, "POST", "/admin/breaker/m", {"set": "open"}, key=secret)
        manage(house, "POST", "/admin/reload", key="boss")
        assert manage(house, "GET", "/admin/status", key="app")[0] == 403
        assert manage(house, "GET", "/admin/status", key="gk_guess")[0] == 401
        told = manage(house, "GET", "/admin/audit?limit=6")[1]
        lines = [(ln["who"], ln["verb"], ln["object"], ln["result"]) for ln in told["lines"]]
        config_id = told["lines"][0]["config"]
        public = secret[:11]
        assert lines[:5] == [
            ("unknown", "login", "127.0.0.1", "invalid_api_key"),
            ("app", "login", "127.0.0.1 admin port", "forbidden"),
            ("boss", "reload", config_id, "ok"),
            ("gateway", "configuration", config_id, "ok"),
            (public, "breaker", "m", "ok, open"),
        ]
        assert lines[5] == ("operator", "key.create", "root", f"ok, {public}, role=admin")
        rest = manage(house, "GET", f"/admin/audit?before={told['next']}")[1]
        assert [ln["seq"] for ln in rest["lines"]] == list(range(told["next"] - 1, 0, -1))
        assert rest["next"] is None
        assert secret[12:] not in json.dumps([told, rest])
    file = AuditFile(tmp_path / "state")
    seals, faults = file.verify(5)
    assert faults == []
    assert file.newest(1)[0][2:6] == ("gateway", "process", "", "stopped")
    heard = [event.line for event in ears.events if type(event).__name__ == "Audited"]
    assert {line.verb for line in heard} >= {"reload", "breaker", "login", "key.create"}
    assert set(heard) <= set(file.newest(seals.head.seq))


def test_limits_of_everybody_are_told_those_of_stored_keys_too(house):
    secret = manage(house, "PUT", "/admin/keys/alice", {"tier": "free", "team": "us"})[1]["secret"]
    KeyStore(house.folder, house.house.clock).create("bob", limits=[("rpm", 3, None)])
    for _ in range(2):
        assert ask(house.port, chat("smart"), x_api_key=secret).status == 200
    until(lambda: "bob" in json.dumps(house.admin("/admin/limits")))
    told = house.admin("/admin/limits")
    rows = {row["account"]: row for row in told["limits"]}
    assert not told["more"]
    assert {
        "provider:p:concurrency", "target:m:rpm", "team:us:rpm", "key:app:tpm", "key:bob:rpm",
        "key:alice:tpm",
    } <= set(rows)  # fmt: skip
    assert (rows["key:alice:rpm"]["limit"], rows["key:alice:rpm"]["used"]) == (20, 2)
    assert (rows["team:us:rpm"]["used"], rows["target:m:rpm"]["remaining"]) == (2, 98)
    assert 0 < rows["key:alice:tpm"]["used"] < 5_000
    assert (rows["key:app:rpm"]["used"], rows["key:app:rpm"]["reset_s"]) == (0, 0)
    for row in told["limits"]:
        burst = row["name"] in {"alice", "app"} and row["kind"] == "rpm"
        assert row["used"] + row["remaining"] == (5 if burst else row["limit"])
    one = house.admin("/admin/limits?key=alice")["limits"]
    assert {row["account"] for row in one} == {
        "key:alice:rpm", "key:alice:tpm", "team:us:rpm"
    }  # fmt: skip
    assert house.admin("/admin/limits?limit=2")["more"]
    assert house.admin("/admin/limits?key=nobody", expect=(404,)) is None


def test_a_budget_put_on_a_key_binds_it_until_it_is_put_away(house):
    poor = {"team": "us", "budgets": [{"usd": "0.000000001", "per": "day"}]}
    told = manage(house, "PUT", "/admin/keys/alice", poor)[1]
    assert told["key"]["budgets"] == [{"usd": "0.000000001", "per": "day", "hard": True}]
    refused = ask(house.port, chat("smart", max_tokens=5), x_api_key=told["secret"])
    assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
    (row,) = usage(house, told["secret"]).json()["budgets"]
    assert (row["limit_usd"], row["remaining_usd"]) == ("0.000000001",) * 2
    manage(house, "PUT", "/admin/keys/alice", {"team": "us"})
    assert ask(house.port, chat("smart", max_tokens=5), x_api_key=told["secret"]).status == 200
    assert usage(house, told["secret"]).json()["budgets"] == []


def test_a_key_sees_its_own_usage_and_no_other(house):
    secret = manage(house, "PUT", "/admin/keys/alice", {"team": "us", "limits": {"rpm": 9}})[1][
        "secret"
    ]
    costs = [
        Decimal(ask(house.port, chat("smart"), x_api_key=secret).headers["x-gateway-cost-usd"])
        for _ in range(3)
    ]
    ask(house.port, chat("smart"), x_api_key="app")
    until(lambda: usage(house, secret).json()["total"]["requests"] == 3)
    told = usage(house, secret).json()
    assert (told["object"], told["key"], told["team"]) == ("usage", "alice", "us")
    for span in ("today", "month", "total"):
        assert Decimal(told[span]["cost_usd"]) == sum(costs)
    assert [(row["account"], row["used"]) for row in told["limits"]] == [
        ("key:alice:rpm", 3),
        ("team:us:rpm", 3),
    ]
    until(lambda: usage(house, "app").json()["total"]["requests"] == 1)
    assert "alice" not in usage(house, "app").body.decode()
    for door in ("/usage", "/openai/v1/usage", "/v1/usage?key=alice"):
        assert usage(house, "app", door).json()["key"] == "app"
    refused = usage(house, "nobody")
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")


def test_by_default_no_key_is_written_over_http(tmp_path):
    with UpstreamThread() as sim, Gateway(config(sim), tmp_path / "state") as house:
        status, told = manage(house, "PUT", "/admin/keys/alice", {})
        assert status == 403
        assert "admin_keys: true" in told["error"]["message"]
        assert manage(house, "GET", "/admin/keys/alice")[0] == 404
