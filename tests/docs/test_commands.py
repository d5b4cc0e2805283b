"""Every `gateway ...` of the documents exists with its options; those that may be run are run."""

import re
import shlex
import urllib.request
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gateway.cli.main import COMMANDS, cli
from gateway.wire import json
from tests.docs.conftest import SIMULATED
from tests.docs.pages import SPAN, blocks, lines_of, name_of, pages, prose
from tests.support.house import ADMIN_KEY, Running

NOT_RUN = {"serve", "demo"}  # tests/end_to_end runs them
ASK_A_GATEWAY = {"chat", "healthcheck", "limits", "status", "why"}
INSIDE = re.compile(r"\$\((gateway [^)]*)\)")
CLEAN = dict.fromkeys(
    ("GATEWAY_CONFIG", "GATEWAY_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY",
     "GROQ_API_KEY", "MISTRAL_API_KEY", "DEEPSEEK_API_KEY", "OPENROUTER_API_KEY", "OLLAMA_HOST")
)  # fmt: skip


def of_shell(line: str) -> list[str]:
    """The words behind `gateway` in a command line; [] when it is none of ours."""
    if inside := INSIDE.search(line):
        line = inside[1]
    line = re.split(r"\s[<>|]|&&", line)[0]
    words = shlex.split(line)
    if not words or words[0] not in {"gateway", ".venv/bin/gateway"}:
        return []
    return words[1:]


def typed() -> list[str]:
    """Each command line of a shell block, once."""
    lines = [line for block in blocks("sh") for line in lines_of(block.text)]
    return sorted({shlex.join(words) for line in lines if (words := of_shell(line))})


def mentioned() -> list[str]:
    """Each `gateway command ...` in running text, once."""
    spans = {span for path in pages() for span in SPAN.findall(prose(path.read_text()))}
    spans |= {
        "gateway " + found
        for block in blocks("text")
        for found in re.findall(r"gateway (config show --demo|init|chat)", block.text)
    }
    return sorted(span for span in spans if re.match(r"(\.venv/bin/)?gateway -?-?[a-z]", span))


def understood(words: list[str]) -> click.Context:
    """The reading of click of the words; raises what a user would be told."""
    command: click.Command = cli
    context = click.Context(cli, info_name="gateway")
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        below = command.get_command(context, name)
        assert below is not None, f"there is no command {name}"
        command = below
        context = click.Context(command, info_name=name, parent=context)
    if isinstance(command, click.Group) and not rest:
        return context
    return command.make_context(context.info_name, rest, parent=context.parent)


def test_there_are_commands_to_look_at() -> None:
    assert len(typed()) > 25
    assert len(mentioned()) > 15


@pytest.mark.parametrize("line", typed())
def test_a_command_line_exists_with_its_options(line: str) -> None:
    assert understood(shlex.split(line)).command.name


@pytest.mark.parametrize("span", mentioned())
def test_a_command_that_is_mentioned_exists(span: str) -> None:
    words = re.split(r"\s[<>|]", span.removeprefix(".venv/bin/"))[0]
    if "," in words.split()[1]:  # a list of commands
        names = words.removeprefix("gateway ").replace(",", " ").split()
        assert set(names) <= set(COMMANDS)
        return
    told = shlex.split(words)[1:]
    try:
        assert understood(told).command.name
    except click.MissingParameter:  # named, not typed
        assert all(word.isalpha() for word in told)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_told_of(name: str) -> None:
    told = [name_of(path) for path in pages() if f"gateway {name}" in path.read_text()]
    assert told


def ask(gateway: Running) -> None:
    """So that there is something to tell of."""
    asked = urllib.request.Request(
        f"{gateway.base_url}/chat/completions",
        data=b'{"model":"smart","messages":[{"role":"user","content":"hi"}],"max_tokens":3}',
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:
        assert answer.status == 200


def a_request(gateway: Running) -> str:
    ask(gateway)
    asked = urllib.request.Request(
        f"{gateway.admin_url}/admin/requests?limit=1",
        headers={"authorization": f"Bearer {ADMIN_KEY}"},
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return str(json.loads(answer.read())["requests"][0]["request_id"])


@pytest.mark.parametrize("line", [t for t in typed() if t.split()[0] not in NOT_RUN])
def test_what_may_be_run_is_run(
    line: str, gateway: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, env, stdin = shlex.split(line), dict(CLEAN), ""
    state = gateway.house.snapshot.server.state_dir if words[0] == "spend" else tmp_path / "state"
    monkeypatch.chdir(tmp_path)
    Path("gateway.yaml").write_text(f"state: {{dir: {state}}}\n{SIMULATED}")
    if words[0] in ASK_A_GATEWAY:
        env |= {
            "GATEWAY_URL": gateway.base_url,
            "GATEWAY_ADMIN_URL": gateway.admin_url,
            "GATEWAY_ADMIN_KEY": ADMIN_KEY,
            "GATEWAY_HEALTHCHECK_URL": gateway.admin_url,
        }
        words = [a_request(gateway) if w == "REQUEST_ID" else w for w in words]
        words = [w.replace("http://127.0.0.1:8080", gateway.url) for w in words]
        stdin = "hi\n"
    if words[:2] == ["spend", "reconcile"]:
        Path(words[2]).write_text(
            "date,model,input_tokens,output_tokens,cost_usd\n2001-01-01,,,,\n"
        )
    if words[0] == "init":
        Path("gateway.yaml").unlink()
    if words[:2] in (["keys", "rotate"], ["keys", "revoke"], ["keys", "show"]):
        made = CliRunner().invoke(cli, ["keys", "create", words[2]], env=env)
        assert made.exit_code == 0, made.output
    words = ["smart" if w == "MODEL" else w for w in words]
    done = CliRunner().invoke(cli, words, env=env, input=stdin)
    assert done.exit_code == 0, done.output
    assert done.output or "github" in words  # which says nothing of a file that holds
