"""`gateway chat`: one shot and the conversation, against a gateway that streams."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from gateway.cli.chat import printable
from gateway.cli.exits import NOT_AUTHORISED, NOT_FOUND, UNAVAILABLE, USAGE
from tests.unit.cli.conftest import FakeGateway, Run

NOTE = {"target": "bravo", "attempts": 2, "path": "alpha:rate_limited,bravo:ok",
        "cost_usd": "0.00012", "time": "total=131"}  # fmt: skip


def answer(*pieces: str, end: str = "data: [DONE]\n\n") -> str:
    events = [{"model": "sim-1", "choices": [{"delta": {"content": piece}}]} for piece in pieces]
    events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    events.append({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 20}})
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return f"{text}: gateway {json.dumps(NOTE)}\n\n{end}"


@pytest.fixture
def talking(gateway: FakeGateway) -> FakeGateway:
    headers = {"x_request_id": "req_1", "x_gateway_chain": "default", "x_gateway_target": "bravo"}
    gateway.streams("/v1/chat/completions", answer("Hel", "lo."), **headers)
    gateway.says("/v1/models", {"data": [{"id": "smart"}, {"id": "default"}]})
    return gateway


def test_one_message(run: Run, talking: FakeGateway) -> None:
    env = {"GATEWAY_URL": talking.url + "/v1", "GATEWAY_API_KEY": "gk_1"}
    done = run("chat", "smart", "-m", "hi", env=env)
    assert (done.exit_code, done.stdout) == (0, "Hello.\n")
    for word in ("alpha rate_limited → bravo ok", "2 attempts", "9 in, 20 out", "$0.00012",
                 "req_1"):  # fmt: skip
        assert word in done.stderr
    method, path, body, headers = talking.asked[-1]
    assert (method, path, headers["authorization"]) == (
        "POST", "/v1/chat/completions", "Bearer gk_1",
    )  # fmt: skip
    asked = json.loads(body)
    assert (asked["model"], asked["stream"]) == ("smart", True)
    assert asked["messages"] == [{"role": "user", "content": "hi"}]


def test_what_is_piped_in_is_one_message(run: Run, talking: FakeGateway) -> None:
    done = run("chat", "-q", "--url", talking.url + "/v1", input="hi\nthere\n")
    assert (done.stdout, done.stderr) == ("Hello.\n", "")
    asked = json.loads(talking.asked[-1][2])
    assert (asked["model"], asked["messages"][0]["content"]) == ("default", "hi\nthere")


def test_json(run: Run, talking: FakeGateway) -> None:
    done = run("chat", "--json", "-m", "hi", "--url", talking.url + "/v1")
    told = json.loads(done.stdout)
    assert (told["content"], told["attempts"], told["cost_usd"]) == ("Hello.", 2, "0.00012")
    assert (told["finish_reason"], told["request_id"]) == ("stop", "req_1")


def test_a_refusal_ends_with_its_code(run: Run, gateway: FakeGateway) -> None:
    error = {"message": "No such key.", "type": "authentication_error", "code": "invalid_api_key"}
    gateway.says("/v1/chat/completions", {"error": error}, status=401)
    done = run("chat", "smart", "-m", "hi", "--url", gateway.url + "/v1")
    assert (done.exit_code, done.stdout) == (NOT_AUTHORISED, "")
    assert "GATEWAY_API_KEY" in done.stderr


def test_a_cut_answer_is_told(run: Run, gateway: FakeGateway) -> None:
    gateway.streams("/v1/chat/completions", answer("Hel", end=""), x_request_id="req_1")
    done = run("chat", "smart", "-m", "hi", "--url", gateway.url + "/v1")
    assert (done.exit_code, done.stdout) == (UNAVAILABLE, "Hel")
    assert "gateway why req_1" in done.stderr


def test_nothing_to_say_and_nobody_to_say_it_to(run: Run, gateway: FakeGateway) -> None:
    assert run("chat").exit_code == USAGE
    assert run("chat", "-m", "x", "--url", "http://127.0.0.1:1/v1").exit_code == UNAVAILABLE
    gateway.says("/v1/models", {"data": []})
    assert run("chat", "-m", "x", "--url", gateway.url + "/v1").exit_code == NOT_FOUND


def converse(run: Run, monkeypatch: pytest.MonkeyPatch, url: str, *lines: str) -> str:
    """What is on both streams after somebody typed `lines` and Ctrl-D."""
    typed: Iterator[str] = iter(lines)

    def read(prompt: str) -> str:
        print(prompt, end="")
        try:
            line = next(typed)
        except StopIteration:
            raise EOFError from None
        if line == "^C":
            raise KeyboardInterrupt
        return line

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("gateway.cli.chat.sys", type("Sys", (), {"stdin": Terminal()}))
    done = run("chat", "--url", url + "/v1")
    assert done.exit_code in {0, 130}
    return done.stdout + done.stderr


def test_a_conversation(
    run: Run, talking: FakeGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = converse(
        run, monkeypatch, talking.url,
        "", "hi", "/model", "/model smart", "and?", "/save", "/save", "/sav", "/help", "/clear",
        "new", "/quit", "never read",
    )  # fmt: skip
    assert "There are: smart, default" in said
    assert "Did you mean /save?" in said
    assert "chat.json exists already" in said
    assert "/quit" in said
    bodies = [json.loads(body) for method, _, body, _ in talking.asked if method == "POST"]
    assert [len(body["messages"]) for body in bodies] == [1, 3, 1]
    assert [body["model"] for body in bodies] == ["default", "smart", "smart"]
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert [m["role"] for m in saved["messages"]] == ["user", "assistant", "user", "assistant"]


def test_a_failed_turn_is_forgotten_and_the_talk_goes_on(
    run: Run, talking: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = talking.answers["/v1/chat/completions"]

    def first_refused(_: web.Request) -> web.StreamResponse:
        talking.answers["/v1/chat/completions"] = good
        return web.json_response({}, status=503)

    talking.answers["/v1/chat/completions"] = first_refused
    said = converse(run, monkeypatch, talking.url, "one", "two")
    assert "HTTP 503" in said
    assert "Hello." in said
    assert len(json.loads(talking.asked[-1][2])["messages"]) == 1


def test_ctrl_c_at_the_prompt_leaves(
    run: Run, talking: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Interrupted" in converse(run, monkeypatch, talking.url, "^C")


def test_a_models_words_do_not_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\x9b\tc\nd\r") == "a[2Jb\tc\nd"
