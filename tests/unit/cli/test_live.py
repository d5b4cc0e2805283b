"""One tiny request per target: what is sent, and what each answer means."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway.cli.exits import FAILED
from gateway.cli.live import check_live, request_for, told
from gateway.config.load import load
from gateway.core.target import Target
from tests.unit.cli.conftest import FakeGateway, Run

ANSWER: dict[str, Any] = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"},
                 "finish_reason": "length"}],
    "usage": {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9},
}  # fmt: skip


def rows(gateway: FakeGateway, tmp_path: Path) -> list[dict[str, Any]]:
    path = tmp_path / "gateway.yaml"
    path.write_text(
        "providers:\n  sim: {kind: sim}\n"
        f'  up: {{kind: openai, base_url: "{gateway.url}", allow_http: true, allow_private: true,'
        ' key: "${K}"}\n'
        "chains: {c: [up/m, sim/x]}\nprices: {up/m: [{input: 1, output: 2}]}\n"
    )
    return asyncio.run(check_live(load(path, {"K": "sk-secret"})))


def test_an_answer_has_a_time_and_a_cost(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.says("/chat/completions", ANSWER)
    (row,) = rows(gateway, tmp_path)
    assert (row["ok"], row["model"], row["status"]) == (True, "up/m", 200)
    assert row["cost_usd"] == "0.00001"
    assert told(row).startswith("live  up/m  ok")
    (_, _, body, headers) = gateway.asked[0]
    assert json.loads(body)["max_tokens"] == 1
    assert headers["authorization"] == "Bearer sk-secret"


def test_one_token_may_be_too_few_for_words(gateway: FakeGateway, tmp_path: Path) -> None:
    silent = {**ANSWER["choices"][0], "message": {"role": "assistant", "content": ""}}
    gateway.says("/chat/completions", {**ANSWER, "choices": [silent]})
    assert rows(gateway, tmp_path)[0]["ok"]


@pytest.mark.parametrize(
    ("status", "body", "cause"),
    [
        (401, {"error": {"message": "Incorrect API key sk-secret"}}, "auth"),
        (404, {"error": {"message": "no such model"}}, "model_gone"),
        (429, {"error": {"message": "slow"}}, "rate_limited"),
        (200, {"hello": "world"}, "malformed"),
    ],
)
def test_a_refusal_has_its_cause_and_no_secret(
    gateway: FakeGateway, tmp_path: Path, status: int, body: object, cause: str
) -> None:
    gateway.says("/chat/completions", body, status=status)
    (row,) = rows(gateway, tmp_path)
    assert (row["ok"], row["cause"], row["status"]) == (False, cause, status)
    assert "sk-secret" not in told(row)
    assert cause in told(row)


def test_no_json_and_nobody(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answers["/chat/completions"] = lambda _: web.Response(text="<html>")
    assert rows(gateway, tmp_path)[0]["cause"] == "malformed"
    gateway.url = "http://127.0.0.1:1"
    assert rows(gateway, tmp_path)[0]["cause"] == "connect"


def test_openai_itself_wants_the_newer_name() -> None:
    target = Target("t", "t", "openai", "openai", "gpt-5-mini", "https://api.openai.com/v1")
    assert "max_completion_tokens" in request_for(target).members


def test_check_live_prints_and_counts_it(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.says("/chat/completions", ANSWER)
    rows(gateway, tmp_path)
    done = run("check", "--live")
    assert (done.exit_code, "live  up/m  ok" in done.stdout) == (0, True)
    gateway.says("/chat/completions", {"error": {"message": "no"}}, status=401)
    done = run("check", "--live", "--json")
    assert (done.exit_code, json.loads(done.stdout)["live"][0]["cause"]) == (FAILED, "auth")
