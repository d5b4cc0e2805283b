"""A real inference server as upstream: llama.cpp with a model of 6 MB, judged by openai's SDK."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import openai
import pytest

from tests.support.house import Running

SHARED = Path(__file__).parents[3] / "shared" / "wire" / "realserver"
pytestmark = [
    pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not beside the project"),
    pytest.mark.xdist_group("real-server"),
]
pytest.importorskip("xllamacpp", reason="xllamacpp has no wheel for this platform")

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "schema": {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}},
            "required": ["ok"],
            "additionalProperties": False,
        },
    },
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The port of a running server."""
    folder = tmp_path_factory.mktemp("llama")
    model = folder / "tiny.gguf"
    subprocess.run(
        [sys.executable, SHARED / "make_gguf.py", model], check=True, capture_output=True
    )
    port = free_port()
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, SHARED / "xl_server.py", str(port), model], stdout=log, stderr=log
        )
        try:
            for _ in range(200):
                try:
                    if httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                except httpx2.TransportError:
                    time.sleep(0.05)
            else:
                pytest.fail((folder / "log").read_text()[-2000:])
            yield port
        finally:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def gateway(llama, tmp_path_factory):
    """A chain whose first target is dead, and whose second is the real server."""
    text = f"""
providers:
  dead: {{kind: openai, base_url: "http://127.0.0.1:{free_port()}/v1", key: "${{DEAD_KEY}}",
         allow_http: true, allow_private: true}}
  llama: {{kind: openai, base_url: "http://127.0.0.1:{llama}/v1",
         allow_http: true, allow_private: true}}
targets:
  gone: {{model: dead/tiny}}
  tiny: {{model: llama/tiny}}
chains:
  real: [tiny]
  falls: [gone, tiny]
prices:
  dead/tiny: free
  llama/tiny: [{{input: 0.10, output: 0.40}}]
"""
    with Running(text, tmp_path_factory.mktemp("state"), {"DEAD_KEY": "sk-dead"}) as running:
        yield running


@pytest.fixture
def client(gateway):
    with openai.OpenAI(base_url=gateway.base_url, api_key="x", max_retries=0) as made:
        yield made


def ask(text):
    return [{"role": "user", "content": text}]


def test_it_chats(client):
    raw = client.chat.completions.with_raw_response.create(
        model="real", messages=ask("Hello"), max_tokens=40
    )
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.completion_tokens > 0
    assert raw.headers["x-gateway-path"] == "tiny:ok"
    assert float(raw.headers["x-gateway-cost-usd"]) > 0


def test_it_streams_with_usage_only_if_asked(client):
    plain = list(
        client.chat.completions.create(
            model="real", messages=ask("Hello"), max_tokens=30, stream=True
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in plain if c.choices)
    assert plain[-1].choices[0].finish_reason in {"stop", "length"}
    assert all(chunk.usage is None for chunk in plain)
    with_usage = list(
        client.chat.completions.create(
            model="real", messages=ask("Hello"), max_tokens=30, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert with_usage[-1].choices == []
    assert with_usage[-1].usage.completion_tokens > 0
    assert float(with_usage[-1].usage.cost_usd) > 0
    assert len({chunk.id for chunk in with_usage}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_it_calls_a_tool_and_answers_after_its_result(client, stream):
    messages = ask("What is the weather in Paris?")
    options = {"model": "real", "tools": [TOOL], "tool_choice": "required", "max_tokens": 600}
    options |= {"seed": 7}  # the model is a toy: what it draws shall be the same each time
    if stream:
        with client.chat.completions.stream(messages=messages, **options) as events:
            for _ in events:
                pass
            message = events.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(messages=messages, **options).choices[0].message
    call = message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)
    messages += [
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": call.id or "call_1",
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": call.function.arguments,
                    },
                }
            ],
        },
        {"role": "tool", "tool_call_id": call.id or "call_1", "content": "sunny"},
    ]
    after = client.chat.completions.create(
        model="real", messages=messages, tools=[TOOL], max_tokens=60
    )
    assert after.choices[0].message.content


def test_it_keeps_to_a_json_schema(client):
    answer = client.chat.completions.create(
        model="real", messages=ask("Is it so?"), response_format=SCHEMA, max_tokens=60
    )
    assert json.loads(answer.choices[0].message.content)["ok"] in {True, False}


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_first_target_is_never_seen(client, stream):
    raw = client.chat.completions.with_raw_response.create(
        model="falls", messages=ask("Hello"), max_tokens=20, stream=stream
    )
    assert raw.headers["x-gateway-target"] == "tiny"
    path = raw.headers["x-gateway-path"]
    assert path.endswith("tiny:ok")
    assert path.startswith(("gone:connect", "gone:breaker_open"))
    answer = raw.parse()
    if stream:
        assert [c for c in answer if c.choices][-1].choices[0].finish_reason
    else:
        assert answer.choices[0].message.content


def test_embeddings_it_cannot_make_are_an_error_of_the_right_class(client):
    with pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(model="real", input="hi")
    assert caught.value.status_code in {400, 502}
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_prompt_that_is_too_long_is_the_callers_error(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="real", messages=ask("word " * 4000))
    assert caught.value.code == "context_length_exceeded"


def test_a_caller_who_leaves_frees_the_server(gateway, client):
    stream = client.chat.completions.create(
        model="real", messages=ask("Tell me a story"), max_tokens=1500, stream=True
    )
    next(iter(stream))
    stream.close()
    for _ in range(100):
        story = gateway.do(lambda: gateway.house.state.stories.recent(1))
        if story and story[0]["status"] in {200, 499} and gateway.house.in_flight == 0:
            break
        time.sleep(0.02)
    assert gateway.house.in_flight == 0
    answer = client.chat.completions.create(model="real", messages=ask("Hello"), max_tokens=5)
    assert answer.choices[0].finish_reason
