"""The table of routes."""

import pytest

from gateway.core.principal import OPEN_TO
from gateway.server.routes import ACCESS, ADMIN, PUBLIC, Route, Table, path_of


def test_a_route_without_a_role_cannot_be_made():
    with pytest.raises(ValueError, match="has no role"):
        Route("GET", "/x", "", "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no role"):
        Route("GET", "/x", None, "x")  # type: ignore[arg-type]


def test_only_health_and_the_greeting_need_no_key():
    open_paths = {route.path for route in (*PUBLIC, *ADMIN) if route.role == "anyone"}
    assert open_paths == {"/", "/healthz", "/readyz"}
    assert all(route.role == "admin" for route in ADMIN if route.path.startswith("/admin"))


@pytest.mark.parametrize("role", ["client", "agent", "metrics", "admin"])
def test_a_role_opens_what_the_table_says_and_nothing_else(role):
    opened = {route.role for route in (*PUBLIC, *ADMIN) if route.admits(role)}
    assert (
        opened
        == {
            "client": {"anyone", "client"},
            "agent": {"anyone", "client"},
            "metrics": {"anyone", "metrics"},
            "admin": {"anyone", "metrics", "admin"},
        }[role]
    )
    closed = next(route for route in (*PUBLIC, *ADMIN) if not route.admits(role))
    assert role in closed.refused(role).message
    assert set(OPEN_TO) == ACCESS - {"anyone"}


@pytest.mark.parametrize(
    ("target", "handler", "name"),
    [
        ("/v1/chat/completions", "chat", ""),
        ("/v1/chat/completions?a=b", "chat", ""),
        ("http://h:1/v1/chat/completions", "chat", ""),
        ("/v1/chat/completions#x", "chat", ""),
        ("/openai/deployments/gpt/chat/completions?api-version=1", "chat", "gpt"),
        ("/openai/deployments/a%20b/embeddings", "embeddings", "a b"),
    ],
)
def test_posts_are_found(target, handler, name):
    route, found = Table(PUBLIC).find("POST", target)
    assert route is not None
    assert (route.handler, found) == (handler, name)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/chat/completions/",
        "/v1/chat%2Fcompletions",
        "/openai/deployments//chat/completions",
        "/openai/deployments/a/b/chat/completions",
        "/openai/deployments/%ff/embeddings",
        "",
        "*",
        "x",
        "/v1/models/",
    ],
)
def test_what_is_not_exact_is_not_found(target):
    assert Table(PUBLIC).find("POST", target) == (None, "")
    assert Table(PUBLIC).find("GET", target)[0] is None


def test_a_name_is_decoded_once():
    assert Table(PUBLIC).find("GET", "/v1/models/a%2Fb%252F")[1] == "a/b%2F"


def test_a_key_of_a_callers_own_may_look_like_a_path():
    found, key = Table(PUBLIC).find("DELETE", "/v1/requests/run%3A0/turn%203")
    assert found is not None
    assert (found.handler, key) == ("end", "run:0/turn 3")


def test_missing_paths_are_named_without_their_query():
    error = Table(PUBLIC).missing("GET", "/v1/embedding?key=canary\u00e9")
    assert error.status == 404
    assert "/v1/embeddings" in error.message
    assert "canary" not in error.message
    assert Table(PUBLIC).missing("DELETE", "/v1/models/x").status == 405


def test_the_path_is_cut_out_undecoded():
    assert path_of("HTTPS://evil/%2e%2e/a?b#c") == "/%2e%2e/a"
    assert path_of("http://evil") == "/"
    assert path_of("evil") == "evil"
