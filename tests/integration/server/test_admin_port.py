"""The admin port: who may, what they see, five verbs."""

import pytest

from gateway.core.audit import Act
from gateway.core.budget import Budget
from gateway.core.keys import KeyTerms
from gateway.server.routes import ADMIN
from tests.integration.server.rig import (
    ADMIN_KEY,
    KEY,
    METRICS_KEY,
    OPERATOR_KEY,
    ask,
    dial,
    gateway,
    get,
    post,
)

BEARER = {"Authorization": f"Bearer {ADMIN_KEY}"}


@pytest.mark.parametrize(
    "path",
    [
        "/admin/status",
        "/admin/requests",
        "/admin/requests/req_1",
        "/admin/chains",
        "/admin/limits",
        "/admin/config",
        "/admin/audit",
        "/admin/keys",
        "/admin/keys/alice",
        "/admin/openapi.json",
    ],
)
async def test_reads_are_json(path):
    async with gateway() as g:
        answer = await ask(g.admin_port, get(path, **BEARER))
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert not g.events


async def test_every_route_needs_its_role():
    async with gateway(keyed=True, admin_keys=True) as g:
        for route in ADMIN:
            path = route.path.replace("{id}", "req_1").replace("{target...}", "gpt")
            path = path.replace("{name}", "alice")
            for key, role in (
                (None, None),
                (KEY, "client"),
                (METRICS_KEY, "metrics"),
                (OPERATOR_KEY, "admin"),
                (ADMIN_KEY, "admin"),
            ):
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                body = b'{"set":"auto"}' if route.handler == "breaker" else b"{}"
                request = get(path, **headers)
                if route.method in {"POST", "PUT", "DELETE"}:
                    request = post(body, path, **headers)
                    request = request.replace(b"POST", route.method.encode(), 1)
                if route.method == "HEAD":
                    continue
                allowed = (
                    route.role == "anyone"
                    or role == "admin"
                    or (route.role == "metrics" and role == "metrics")
                )
                expected = 200 if allowed else 401 if key is None else 403
                assert (await ask(g.admin_port, request)).status == expected, (path, role)


async def test_the_exposition_is_text():
    async with gateway() as g:
        answer = await ask(g.admin_port, get("/metrics", **BEARER))
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


async def test_public_metrics_need_no_key_but_the_rest_does():
    from dataclasses import replace

    async with gateway(keyed=True) as g:
        g.current.doors = replace(g.doors, public_metrics=True)
        assert (await ask(g.admin_port, get("/metrics"))).status == 200
        assert (await ask(g.admin_port, get("/admin/status"))).status == 401


async def test_verbs_reach_the_house():
    async with gateway() as g, dial(g.admin_port) as line:
        assert (await line.ask(post(b"", "/admin/reload", **BEARER))).status == 200
        assert (await line.ask(post(b"", "/admin/drain", **BEARER))).status == 200
        for target in ("gpt", "openai/gpt"):
            path = f"/admin/breaker/{target}"
            assert (await line.ask(post(b'{"set":"open"}', path, **BEARER))).status == 200
        assert g.admin.told == ["reload", "drain", ("gpt", "open"), ("openai/gpt", "open")]
        assert g.admin.acts == [
            Act("operator", "reload", "abc"),
            Act("operator", "drain"),
            Act("operator", "breaker", "gpt", "ok, open"),
            Act("operator", "breaker", "openai/gpt", "ok, open"),
        ]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/admin/breaker/gpt", b"{}", 400),
        ("/admin/breaker/gpt", b"junk", 400),
        ("/admin/breaker/gpt", b'{"set":["open"]}', 400),
        ("/admin/breaker/nobody", b'{"set":"open"}', 404),
        ("/admin/breaker/gpt", b"x" * 70_000, 413),
        ("/admin/nothing", b"", 404),
        ("/admin/status", b"", 405),
        ("/admin/keys/alice/rotate", b"{}", 403),
    ],
)
async def test_junk_is_refused_in_our_shape(path, body, status):
    async with gateway() as g:
        answer = await ask(g.admin_port, post(body, path, **BEARER))
        assert answer.status == status
        assert answer.error["request_id"]
        assert not g.admin.told


async def test_requests_are_listed_as_many_as_asked_for():
    async with gateway() as g:
        answer = await ask(g.admin_port, get("/admin/requests?limit=3", **BEARER))
        assert answer.body.count(b"request_id") == 3
        for wrong in ("limit=x", "limit=0", "limit=1001", "limit=1&limit=2", "most=3", "&" * 99):
            answer = await ask(g.admin_port, get(f"/admin/requests?{wrong}", **BEARER))
            assert answer.status == 400, wrong
        assert (await ask(g.admin_port, get("/admin/requests/req_2", **BEARER))).status == 404


async def test_the_admin_key_opens_no_other_door():
    async with gateway(keyed=True) as g:
        assert (await ask(g.port, get("/v1/models", **BEARER))).status == 401
        assert (await ask(g.port, get("/admin/status", **BEARER))).status == 401


def put(body: bytes, path: str) -> bytes:
    return post(body, path, **BEARER).replace(b"POST", b"PUT", 1)


async def test_a_key_is_put_as_the_body_has_it():
    async with gateway(admin_keys=True) as g, dial(g.admin_port) as line:
        body = (
            b'{"tier":"free","team":"search","chains":["smart"],"role":"agent",'
            b'"limits":{"rpm":5,"tpm":null},"expires":"2030-12-31",'
            b'"budgets":[{"usd":"0.5","per":"day"},{"usd":"9000000","per":"total","hard":false}]}'
        )
        assert (await line.ask(put(body, "/admin/keys/alice"))).status == 200
        assert (await line.ask(put(b"", "/admin/keys/bob"))).status == 200
        end = 1_924_992_000.0  # 2031-01-01
        money = (Budget("day", 500_000_000), Budget("total", 9_000_000 * 10**9, hard=False))
        alice = KeyTerms("free", "search", ("smart",), (("rpm", 5, None),), "agent", end, money)
        assert g.admin.told == [
            ("alice", alice, "operator"),
            ("bob", KeyTerms(), "operator"),
        ]


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        (b"[]", None, "object"),
        (b"{", None, "not valid JSON"),
        (b'{"teir":"free"}', None, "teir"),
        (b'{"tier":5}', "tier", "str"),
        (b'{"limits":{"rpm":0}}', "limits.rpm", ">= 1"),
        (b'{"limits":{"rpm":1000000001}}', "limits.rpm", "<= 1000000000"),
        (b'{"budgets":[{"usd":"0.0","per":"day"}]}', "budgets", "more than 0 dollars"),
        (b'{"budgets":[{"usd":"9000000.1","per":"day"}]}', "budgets", "9,000,000"),
        (b'{"role":"king"}', "role", "role"),
        (b'{"expires":"soon"}', "expires", "expires"),
        (b'{"expires":"2030-02-31"}', "expires", "2026-12-31"),
        (b'{"base_url":"https://evil"}', None, "base_url"),
    ],
)
async def test_a_body_that_is_none_is_told_what_is_wrong_and_where_to_look(body, param, said):
    async with gateway(admin_keys=True) as g:
        answer = await ask(g.admin_port, put(body, "/admin/keys/alice"))
        assert (answer.status, answer.error["param"]) == (400, param)
        assert said in answer.error["message"]
        assert not g.admin.told


async def test_without_the_flag_nothing_is_written_and_the_line_to_add_is_named():
    async with gateway() as g:
        for method, path in (
            ("PUT", "/admin/keys/alice"),
            ("DELETE", "/admin/keys/alice"),
            ("POST", "/admin/keys/alice/rotate"),
        ):
            request = post(b"{}", path, **BEARER).replace(b"POST", method.encode(), 1)
            answer = await ask(g.admin_port, request)
            assert (answer.status, answer.error["code"]) == (403, "forbidden")
            assert "admin_keys: true" in answer.error["message"]
        assert not g.admin.told
        assert [(act.verb, act.object, act.result) for act in g.admin.acts] == [
            ("key.create", "alice", "forbidden"),
            ("key.revoke", "alice", "forbidden"),
            ("key.rotate", "alice", "forbidden"),
        ]


async def test_a_key_without_the_role_is_told_to_the_audit_by_its_name():
    async with gateway(keyed=True) as g:
        await ask(g.admin_port, get("/admin/status", Authorization=f"Bearer {KEY}"))
        assert g.admin.acts == [Act("client", "login", "127.0.0.1 admin port", "forbidden")]
