"""`gateway why`: the story of core/story.py as a waterfall."""

import json
from typing import Any

import pytest

from gateway.cli.exits import NOT_AUTHORISED, NOT_FOUND, UNAVAILABLE
from gateway.cli.why import path_words, recalled, tokens
from tests.unit.cli.conftest import FakeGateway, Run

STORY: dict[str, Any] = {
    "ts": 1_800_000_000.0,
    "event": "request",
    "request_id": "req_1",
    "api": "chat",
    "chain": "smart",
    "status": 200,
    "stream": True,
    "key": "search-prod",
    "team": None,
    "user": "u1",
    "session": None,
    "path": "alpha:rate_limited,charlie:breaker_open,bravo:ok",
    "attempts": [
        {
            "target": "alpha", "key": "spare", "kind": "answer", "outcome": "rate_limited",
            "status": 429, "at_ms": 20, "ms": 30, "cost_usd": "0", "message": "slow down",
            "retry_after_ms": 3000,
        },
        {
            "target": "bravo", "key": "main", "kind": "retry", "outcome": "ok", "status": 200,
            "at_ms": 110, "ms": 90, "cost_usd": "0.00012", "first_content_ms": 40,
            "tokens": {"input": 9, "output": 20, "cached": 3, "reasoning": 12},
        },
    ],
    "skipped": [{"target": "charlie", "reason": "breaker_open", "detail": "being probed"}],
    "queue_ms": 20,
    "ms": 200,
    "cost_usd": "0.00012",
    "config": "0123456789ab",
    "target": "bravo",
    "ttft_ms": 150,
    "tokens": {"input": 9, "output": 20},
    "finish_reason": "stop",
}  # fmt: skip


def test_the_story_is_a_waterfall(run: Run, gateway: FakeGateway) -> None:
    gateway.says("/admin/requests/req_1", STORY)
    done = run("why", "req_1", "--admin-url", gateway.url, env={"GATEWAY_ADMIN_KEY": "adm"})
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    (alpha,) = (line for line in lines if line.startswith("alpha#spare"))
    (bravo,) = (line for line in lines if line.startswith("bravo (retry)"))
    assert "░▒" in alpha
    assert "█" not in alpha
    assert bravo.index("█") > alpha.index("▒")
    for word in ("rate_limited", "429", "come back in 3 s", "slow down"):
        assert word in alpha
    for word in ("ok", "$0.00012", "first content after 40 ms", "9 in (3 cached), 20 out"):
        assert word in bravo
    assert "queue" in done.stdout
    assert "waited" in done.stdout
    assert "skipped: breaker_open" in done.stdout
    assert "alpha rate_limited → charlie breaker_open → bravo ok" in done.stdout
    assert "2027-01-15 08:00:00 UTC" in done.stdout
    assert gateway.asked[0][3]["authorization"] == "Bearer adm"


def test_a_refused_request_has_a_story_too(run: Run, gateway: FakeGateway) -> None:
    refused = {
        **{name: STORY[name] for name in ("ts", "request_id", "api", "stream", "config")},
        "chain": "smart", "status": 429, "path": "", "attempts": [], "skipped": [],
        "queue_ms": 0, "ms": 0, "cost_usd": "0", "error": "rpm_exceeded", "scope": "key",
        "retry_after_ms": 1500,
    }  # fmt: skip
    gateway.says("/admin/requests/req_1", refused)
    done = run("why", "req_1", "--admin-url", gateway.url)
    assert "rpm_exceeded (the limit of key), come back in 1.5 s" in done.stdout


def test_json_is_what_the_gateway_said(run: Run, gateway: FakeGateway) -> None:
    gateway.says("/admin/requests/req_1", STORY)
    done = run("why", "req_1", "--json", "--admin-url", gateway.url)
    assert json.loads(done.stdout) == STORY


def test_without_an_id_the_last_are_listed(run: Run, gateway: FakeGateway) -> None:
    gateway.says("/admin/requests", {"requests": [STORY]})
    done = run("why", "--last", "3", "--admin-url", gateway.url)
    assert "req_1" in done.stdout
    assert "alpha rate_limited" in done.stdout
    assert gateway.asked[0][1] == "/admin/requests?limit=3"
    gateway.says("/admin/requests", {"requests": []})
    assert run("why", "--admin-url", gateway.url).stdout == ""


def test_an_id_cannot_leave_its_place_in_the_path(run: Run, gateway: FakeGateway) -> None:
    run("why", "../status", "--admin-url", gateway.url)
    assert gateway.asked[0][1] == "/admin/requests/..%2Fstatus"


def test_an_unknown_request(run: Run, gateway: FakeGateway) -> None:
    done = run("why", "req_9", "--admin-url", gateway.url)
    assert done.exit_code == NOT_FOUND
    assert "gateway why --last" in done.stderr


def test_without_the_admin_key(run: Run, gateway: FakeGateway) -> None:
    error = {"message": "No.", "type": "authentication_error", "code": "invalid_api_key"}
    gateway.says("/admin/requests/req_1", {"error": error}, status=401)
    done = run("why", "req_1", "--admin-url", gateway.url)
    assert done.exit_code == NOT_AUTHORISED
    assert "GATEWAY_ADMIN_KEY" in done.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense"])
def test_nobody_there(run: Run, url: str) -> None:
    done = run("why", "req_1", "--admin-url", url)
    assert done.exit_code == UNAVAILABLE
    assert "gateway serve" in done.stderr


def test_words() -> None:
    assert path_words("a:ok,+3") == "a ok → +3"
    assert path_words("") == ""
    assert tokens({"input": 1, "output": 2, "estimated": True}) == "1 in, 2 out (estimated)"


def test_an_answer_nobody_was_asked_for_says_where_it_was() -> None:
    assert recalled({"cache": "hit"}) == "from the cache"
    told = {"cache": "miss", "replayed": True, "detached": True}
    assert recalled(told) == (
        "not in the cache · told again under the caller's own key · detached from its caller"
    )
    assert recalled({"cache": "off"}) == recalled({}) == ""
