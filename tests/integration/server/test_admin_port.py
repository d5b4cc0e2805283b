"""The admin port: who may, what they see, five verbs."""

import pytest

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
    async with gateway(keyed=True) as g:
        for route in ADMIN:
            path = route.path.replace("{id}", "req_1").replace("{target...}", "gpt")
            for key, role in (
                (None, None),
                (KEY, "client"),
                (METRICS_KEY, "metrics"),
                (OPERATOR_KEY, "admin"),
                (ADMIN_KEY, "admin"),
            ):
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                body = b'{"set":"auto"}'
                request = (
                    get(path, **headers) if route.method != "POST" else post(body, path, **headers)
                )
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
        assert (await ask(g.admin_port, get("/admin/requests?limit=x", **BEARER))).status == 400
        assert (await ask(g.admin_port, get("/admin/requests/req_2", **BEARER))).status == 404


async def test_the_admin_key_opens_no_other_door():
    async with gateway(keyed=True) as g:
        assert (await ask(g.port, get("/v1/models", **BEARER))).status == 401
        assert (await ask(g.port, get("/admin/status", **BEARER))).status == 401
