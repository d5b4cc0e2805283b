"""The client snippets run against a simulated gateway; curl's lines are sent as they stand."""

import ast
import http.client
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.docs.conftest import SIMULATED
from tests.docs.pages import Block, blocks, lines_of
from tests.support.house import ADMIN_KEY, Running

WHERE = "http://127.0.0.1:8080"
OPERATORS = "http://127.0.0.1:8081"


def imported(block: Block) -> set[str]:
    """The top packages a snippet needs."""
    found = set()
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names)


RUN = [block for block in blocks("python") if imported(block) == {"openai"}]
NOT_RUN = [block for block in blocks("python") if imported(block) != {"openai"}]


def test_openai_and_azure_are_run_and_only_frameworks_are_not() -> None:
    names = {node.id for block in RUN for node in ast.walk(ast.parse(block.text))
             if isinstance(node, ast.Name)}  # fmt: skip
    assert {"OpenAI", "AsyncOpenAI", "AzureOpenAI"} <= names
    assert "README.md" in {block.page for block in RUN}
    assert {name for block in NOT_RUN for name in imported(block)} == {
        "langchain_openai",
        "pydantic_ai",
    }


@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_snippet_runs(block: Block, gateway: Running) -> None:
    assert WHERE in block.text
    done = subprocess.run(
        [sys.executable, "-c", block.text.replace(WHERE, gateway.url)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or "print" not in block.text
    if "cost in dollars" in block.text:
        assert re.search(r"cost in dollars: 0\.0\d+$", done.stdout.strip())
    if "x-gateway-path" in block.text:
        assert done.stdout.startswith("gpt:ok 0.0")
    if "NotFoundError" in block.text:
        assert done.stdout.startswith("model_not_found req_")


@dataclass
class Curl:
    """What a line of curl sends."""

    url: str = ""
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None

    @classmethod
    def of(cls, line: str) -> "Curl":
        made = cls()
        words = iter(shlex.split(line)[1:])
        for word in words:
            if word == "-H":
                name, _, value = next(words).partition(":")
                made.headers[name.lower()] = value.strip()
            elif word == "-d":
                made.body = next(words)
                made.method = "POST" if made.method == "GET" else made.method
            elif word == "-X":
                made.method = next(words)
            else:
                assert word.startswith("http://"), f"{word} is not understood here"
                made.url = word
        return made


LINES = sorted({line for block in blocks("sh") for line in lines_of(block.text)
                if line.startswith("curl ")})  # fmt: skip


@pytest.mark.parametrize("line", [line for line in LINES if "/admin/keys/" not in line])
def test_a_line_of_curl_is_answered(line: str, gateway: Running) -> None:
    assert answered(line, gateway) == 200


@pytest.mark.parametrize("line", [line for line in LINES if "/admin/keys/" in line])
def test_a_line_of_curl_makes_a_key(line: str, tmp_path: Path) -> None:
    """At a gateway of its own: one with a key asks everybody for one."""
    with Running(SIMULATED, tmp_path, server=", admin_keys: true") as gateway:
        assert answered(line, gateway) == 201
        assert answered(line, gateway) == 200


def answered(line: str, gateway: Running) -> int:
    line = line.replace("$GATEWAY_API_KEY", "any").replace("$GATEWAY_ADMIN_KEY", ADMIN_KEY)
    sent = Curl.of(line)
    there = sent.url.replace(WHERE, gateway.url).replace(OPERATORS, gateway.admin_url)
    parts = urlsplit(there)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request(sent.method, parts.path, sent.body, sent.headers)
        answer = connection.getresponse()
        said = answer.read().decode()
    finally:
        connection.close()
        gateway.do(lambda: gateway.house.state.health.force("gpt", None))
    assert answer.status < 300, said
    if sent.body and '"stream":true' in sent.body:
        assert said.endswith("data: [DONE]\n\n")
    return answer.status
