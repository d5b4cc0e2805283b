"""Tokens and roles over sockets: one walk for every route, whoever calls and with what."""

import contextlib
import json
import time

import openai
import pytest

from chaos.upstream import UpstreamThread
from gateway.server.routes import PUBLIC
from tests.integration.rig import (
    MESSAGES,
    Gateway,
    Leaping,
    Line,
    ask,
    chat,
    declared,
    get,
    provider,
    until,
)
from tests.support.issuer import AUDIENCE, ISSUER, KeyServer, Signer

RSA, EC = Signer("rsa"), Signer("ec", "ES256")
STRANGER = Signer("rsa", number=1)


@pytest.fixture(scope="module")
def sim():
    with UpstreamThread() as running:
        yield running


@pytest.fixture
def issuer():
    with KeyServer(RSA, EC) as running:
        yield running


def config(sim, issuer, text="", **said):
    """Providers p and f, the chain smart for the team search, tokens of the issuer."""
    entry = {
        "issuer": ISSUER, "audience": AUDIENCE, "jwks": issuer.url, "algorithms": "[RS256, ES256]",
        "claims": "{team: team, role: groups}", "roles": "{ops: admin, scrapers: metrics}",
        "allow_http": "true", "allow_private": "true", **said,
    }  # fmt: skip
    told = ", ".join(f"{name}: {value}" for name, value in entry.items())
    return (
        f"providers:\n{provider(sim, 'p')}{provider(sim, 'f')}"
        "chains: {smart: [p/m, f/m], secret: [f/m]}\n"
        "prices: {p/m: [{input: 1.00, output: 4.00}], f/m: free}\n"
        "tiers: {free: {limits: {rpm: 3}}, many: {}}\n"
        "teams: {search: {chains: [smart]}, other: {chains: [secret]}}\n"
        f"auth: {{jwt: [{{{told}}}]}}\n{text}"
    )


@contextlib.contextmanager
def house(sim, issuer, folder, text="", **said):
    clock = Leaping()
    with Gateway(config(sim, issuer, text, **said), folder / "state", clock=clock) as gateway:
        gateway.leap = lambda seconds: setattr(clock, "ahead", clock.ahead + seconds)
        gateway.now = clock.now
        yield gateway


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def fetch(port, path, method="GET", **headers):
    with Line(port) as line:
        line.send(get(path, **headers).replace(b"GET", method.encode(), 1))
        return line.answer(method)


def test_a_token_walks_the_whole_road_as_its_user_in_its_team(sim, issuer, tmp_path):
    with house(sim, issuer, tmp_path) as gateway:
        token = EC.sign(time.time())
        with openai.OpenAI(base_url=gateway.base_url, api_key=token, max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["smart"]
            raw = client.chat.completions.with_raw_response.create(
                model="smart", messages=MESSAGES, user="alice"
            )
            chunks = client.chat.completions.create(model="smart", messages=MESSAGES, stream=True)
            assert list(chunks)
            with pytest.raises(openai.PermissionDeniedError):
                client.chat.completions.create(model="secret", messages=MESSAGES)
        request_id = raw.headers["x-request-id"]
        (row,) = gateway.settled(request_id)
        assert (row["key"], row["team"], row["user"]) == (f"{ISSUER}#alice", "search", "alice")
        assert row["nano_usd"] > 0
        story = gateway.story(request_id)
        assert (story["key"], story["user"]) == (f"{ISSUER}#alice", "alice")
        mark = token.rpartition(".")[2]
        seen = json.dumps(story) + json.dumps(gateway.rows(), default=str)
        seen += fetch(gateway.house.servers.admin_port, "/metrics", **bearer(_ops())).body.decode()
        assert mark not in seen
        assert "alice" not in seen.partition("# HELP")[2], "no label of a metric"


def _ops():
    return RSA.sign(time.time(), sub="root", groups=["staff", "ops"], team="search")


def test_who_a_token_is_nobody_changes_by_saying_so(sim, issuer, tmp_path):
    with house(sim, issuer, tmp_path) as gateway:
        token = bearer(RSA.sign(time.time()))
        for headers, body in (({"x_gateway_user": "bob"}, {}), ({}, {"user": "bob"})):
            answer = ask(gateway.port, chat("smart", **body), **token, **headers)
            assert (answer.status, answer.error["code"]) == (403, "override_not_allowed")
        assert ask(gateway.port, chat("smart"), **token, x_gateway_user="alice").status == 200


def test_a_foreign_team_is_told_it_is_and_a_forgery_is_not_told_much(sim, issuer, tmp_path):
    with house(sim, issuer, tmp_path, text="keys:\n" + declared("known")) as gateway:
        now = time.time()
        answer = ask(gateway.port, chat("smart"), **bearer(RSA.sign(now, team="billing")))
        assert (answer.status, answer.error["code"]) == (403, "forbidden")
        assert "'billing'" in answer.error["message"]
        gone = RSA.sign(now, iat=int(now) - 700, exp=int(now) - 100)
        for _ in range(25):  # no guesses: an issuer did sign it
            answer = ask(gateway.port, chat("smart"), **bearer(gone))
            assert answer.status == 401
            assert "expired" in answer.error["message"]
        assert ask(gateway.port, chat("smart"), x_api_key="known").status == 200
        told = [ask(gateway.port, chat("smart"), **bearer(STRANGER.sign(now))) for _ in range(21)]
        assert [answer.status for answer in told] == [401] * 20 + [429]
        assert {answer.error["code"] for answer in told} == {"invalid_api_key"}


def test_until_the_issuer_has_answered_once_tokens_wait_for_it_and_keys_do_not(
    sim, issuer, tmp_path
):
    issuer.status = 500
    with house(sim, issuer, tmp_path, text="keys:\n" + declared("known")) as gateway:
        token = bearer(RSA.sign(time.time()))
        answer = ask(gateway.port, chat("smart"), **token)
        assert (answer.status, answer.error["code"]) == (503, "issuer_unavailable")
        assert answer.error["retryable"]
        assert ask(gateway.port, chat("smart"), x_api_key="known").status == 200
        issuer.status = 200
        gateway.leap(answer.error["retry_after_ms"] / 1000)
        assert ask(gateway.port, chat("smart"), **token).status == 200


def test_the_operators_port_opens_to_tokens_by_role(sim, issuer, tmp_path):
    with house(sim, issuer, tmp_path) as gateway:
        port = gateway.house.servers.admin_port
        now = time.time()
        roles = {"client": None, "metrics": ["scrapers"], "admin": ["staff", "ops"]}
        opened = {}
        for role, groups in roles.items():
            token = bearer(RSA.sign(now, groups=groups))
            opened[role] = (
                fetch(port, "/metrics", **token).status,
                fetch(port, "/admin/status", **token).status,
                fetch(gateway.port, "/v1/models", **token).status,
                ask(gateway.port, chat("smart"), **token).status,
            )
        assert opened == {
            "client": (403, 403, 200, 200),
            "metrics": (200, 403, 403, 403),
            "admin": (200, 200, 403, 403),
        }
        forged = bearer(STRANGER.sign(now, groups=["ops"]))
        assert fetch(port, "/admin/status", **forged).status == 401


def test_a_reload_brings_an_issuer_and_takes_it_away(sim, issuer, tmp_path):
    keys = f"keys:\n{declared('known')}"
    with_issuer = config(sim, issuer, keys)
    without = with_issuer.replace(
        next(line for line in with_issuer.splitlines(keepends=True) if line.startswith("auth:")), ""
    )
    with Gateway(without, tmp_path / "state", file=True) as gateway:
        token = bearer(RSA.sign(time.time()))
        assert ask(gateway.port, chat("smart"), **token).status == 401
        for text, status in ((with_issuer, 200), (without, 401)):
            gateway.write(text)
            assert gateway.wait(gateway.house.reload()).problem == ""
            assert ask(gateway.port, chat("smart"), **token).status == status


def test_issuers_alone_are_enough_to_listen_beyond_loopback(sim, issuer, tmp_path):
    with house(sim, issuer, tmp_path) as gateway:
        assert not gateway.house.snapshot.keyless
        assert ask(gateway.port, chat("smart")).status == 401
        assert ask(gateway.port, chat("smart"), x_api_key="any key").status == 401


# ----------------------------------------------------------------------------- route by route

CALLERS = [route for route in PUBLIC if route.role != "anyone"]


def asked(gateway, route, **headers):
    path = (
        route.path.replace("{model}", "smart")
        .replace("{id...}", "smart")
        .replace("{key...}", "none")
    )
    if route.method in {"GET", "DELETE"}:
        return fetch(gateway.port, path, route.method, **headers)
    body = {"model": "smart", "input": "x"} if route.api == "embeddings" else chat("smart")
    return ask(gateway.port, body, path, **headers)


@pytest.fixture(scope="module")
def walked(sim, tmp_path_factory):
    keys = "keys:\n" + "".join(
        declared(name, more)
        for name, more in (
            ("client", "tier: many, chains: [smart]"),
            ("scraper", "role: metrics"),
            ("operator", "role: admin"),
            *((f"few-{n}", "tier: free, chains: [smart]") for n in range(len(CALLERS))),
        )
    )
    with KeyServer(RSA) as issuer, house(sim, issuer, tmp_path_factory.mktemp("w"), keys) as made:
        yield made


@pytest.mark.parametrize("route", CALLERS, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_asks_who_calls_counts_it_and_writes_it_down(walked, route):
    gateway = walked
    gateway.leap(60.0)  # of wrong keys an address has twenty a minute
    nobody = asked(gateway, route)
    assert (nobody.status, nobody.error["code"]) == (401, "invalid_api_key")
    for role, key in (("metrics", "scraper"), ("admin", "operator")):
        answer = asked(gateway, route, x_api_key=key)
        assert (answer.status, answer.error["code"]) == (403, "forbidden")
        assert role in answer.error["message"]
    for headers in ({"x_api_key": "client"}, bearer(RSA.sign(gateway.now()))):
        answer = asked(gateway, route, **headers)
        assert answer.status == (404 if route.handler in {"end", "parked", "drop"} else 200), (
            answer.body
        )
    if route.api == "_other":  # lists cost nothing and are not counted
        return
    key = f"few-{CALLERS.index(route)}"
    told = [asked(gateway, route, x_api_key=key) for _ in range(4)]
    assert [answer.status for answer in told] == [200, 200, 200, 429]
    assert (told[3].error["code"], told[3].error["scope"]) == ("rpm_exceeded", "key")
    rows = [gateway.settled(answer.headers["x-request-id"]) for answer in told]
    assert [len(found) for found in rows] == [1, 1, 1, 0]
    assert {row["key"] for found in rows for row in found} == {key}


# ------------------------------------------------------------------------- users and sessions


def test_users_and_sessions_of_a_key_have_limits_of_their_own(sim, issuer, tmp_path):
    text = (
        "keys:\n"
        + declared("app", "tier: chatty, per_user: {limits: {rpm: 2}}")
        + declared("batch", "tier: chatty")
    )
    made = config(sim, issuer, text).replace(
        "tiers: {", "tiers: {chatty: {limits: {rpm: 9}, per_session: {limits: {rpm: 3}}}, "
    )
    clock = Leaping()
    with Gateway(made, tmp_path / "state", clock=clock) as gateway:

        def call(key, session=None, **body):
            headers = {"x_gateway_session": session} if session else {}
            return ask(gateway.port, chat("smart", **body), x_api_key=key, **headers)

        assert [call("app", user="alice").status for _ in range(3)] == [200, 200, 429]
        refused = call("app", user="alice")
        assert (refused.error["code"], refused.error["scope"]) == ("rpm_exceeded", "user")
        assert "2 requests per minute of the user 'alice'" in refused.error["message"]
        assert refused.headers["x-ratelimit-scope"] == "user"
        assert call("app", user="bob").status == 200
        assert call("batch", user="alice").status == 200
        assert [call("batch", session="s").status for _ in range(4)] == [200, 200, 200, 429]
        refused = call("batch", session="s")
        assert refused.error["scope"] == "session"
        assert call("batch", session="t").status == 200
        assert call("app", user="carol", session="s").status == 200, "another key's session"
        metrics = gateway.do(gateway.house.metrics.render).decode()
        assert 'gateway_limit_rejections_total{kind="rpm",scope="user"} 2.0' in metrics
        assert 'gateway_limit_rejections_total{kind="rpm",scope="session"} 2.0' in metrics
        assert "alice" not in metrics
        clock.ahead += refused.error["retry_after_ms"] / 1000
        until(lambda: call("batch", session="s").status == 200)


def test_users_with_tokens_have_the_limits_of_their_tier_each(sim, issuer, tmp_path):
    with house(sim, issuer, tmp_path, tier="free") as gateway:
        alice, bob = (bearer(RSA.sign(gateway.now(), sub=sub)) for sub in ("alice", "bob"))
        statuses = [ask(gateway.port, chat("smart"), **alice).status for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        again = bearer(RSA.sign(gateway.now(), jti="another token of the same user"))
        assert ask(gateway.port, chat("smart"), **again).status == 429
        assert ask(gateway.port, chat("smart"), **bob).status == 200
