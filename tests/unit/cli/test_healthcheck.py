"""`gateway healthcheck`: an exit code for a container."""

import pytest
from aiohttp import web

from gateway.cli.exits import UNAVAILABLE, USAGE
from tests.unit.cli.conftest import FakeGateway, Run


def test_alive_and_ready(run: Run, gateway: FakeGateway) -> None:
    gateway.says("/healthz", {"status": "ok"})
    gateway.says("/readyz", {"status": "draining"}, status=503)
    assert run("healthcheck", "--url", gateway.url).stdout == "ok\n"
    assert run("healthcheck", "-q", "--url", gateway.url).stdout == ""
    done = run("healthcheck", "--ready", "--url", gateway.url)
    assert (done.exit_code, done.stdout) == (UNAVAILABLE, "")
    assert "503" in done.stderr


def test_a_redirect_is_not_health(run: Run, gateway: FakeGateway) -> None:
    gateway.answers["/healthz"] = lambda _: web.Response(status=302, headers={"location": "/"})
    assert run("healthcheck", "--url", gateway.url).exit_code == UNAVAILABLE


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1:1", UNAVAILABLE),
        ("127.0.0.1:8081", USAGE),
        ("http://h:port", USAGE),
        ("ftp://h", USAGE),
    ],
)
def test_wrong_addresses(run: Run, url: str, code: int) -> None:
    assert run("healthcheck", "--url", url).exit_code == code
