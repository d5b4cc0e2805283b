"""`gateway explain`: the planner's answer in words and as JSON, and what a failure would bring."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.exits import NOT_AUTHORISED, NOT_FOUND, USAGE
from tests.unit.cli.conftest import Run

WITH_TOOLS = json.dumps(
    {
        "model": "whatever",
        "stream": True,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
)


def explained(run: Run, *args: str, input: str = "") -> dict[str, Any]:
    done = run("explain", "smart", "--json", *args, input=input)
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert isinstance(told, dict)
    return told


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


@pytest.mark.usefixtures("config")
def test_every_target_stands_in_the_plan(run: Run) -> None:
    told = explained(run)
    assert sorted(ids(told["tries"])) == ["bravo", "gpt#a", "gpt#b", "tiny"]
    first = told["tries"][0]
    assert first["seconds"] > 0
    assert first["cost_bound_usd"] not in {"0", "unknown"}
    assert (told["chain"], told["deadline_s"]) == ("smart", 60)


@pytest.mark.usefixtures("config")
def test_the_tree_is_plain_text_and_names_what_is_skipped(run: Run) -> None:
    done = run("explain", "smart", input=WITH_TOOLS)
    assert done.exit_code == 0
    assert "skipped: unable (lacks tools)" in done.stdout
    assert "├── 1 gpt#" in done.stdout
    assert "untouched" in done.stderr
    assert not any(line.endswith(" ") for line in done.stdout.splitlines())


@pytest.mark.usefixtures("config")
def test_a_request_on_stdin_is_what_is_explained(run: Run) -> None:
    told = explained(run, input=WITH_TOOLS)
    assert (told["stream"], told["needs"]) == (True, ["tools"])
    assert [(s["target"], s["cause"]) for s in told["skipped"]] == [("tiny", "unable")]


@pytest.mark.usefixtures("config")
def test_headers_count(run: Run) -> None:
    told = explained(run, "-H", "x-gateway-skip: gpt", "-H", "X-Gateway-Deadline: 5s")
    assert told["deadline_s"] == 5
    assert {s["cause"] for s in told["skipped"]} == {"excluded"}
    assert ids(told["tries"]) == ["tiny", "bravo"]


@pytest.mark.parametrize(
    ("cause", "again", "left", "ends"),
    [
        ("rate_limited", False, ["gpt", "tiny", "bravo"], False),
        ("auth", False, ["gpt", "tiny", "bravo"], False),
        ("timeout", False, ["tiny", "bravo"], False),
        ("server_error", True, ["tiny", "bravo"], False),
        ("bad_request", False, [], True),
        ("content_policy", False, [], True),
        ("context_length", False, ["bravo"], False),
    ],
)
@pytest.mark.usefixtures("config")
def test_what_follows_a_failure(
    run: Run, cause: str, left: list[str], *, again: bool, ends: bool
) -> None:
    after = explained(run, "--cause", cause)["after"]
    assert after["same_target_once_more"] is again
    assert [row["target"] for row in after["tries"]] == left
    assert after["ends"] is ends
    words = run("explain", "smart", "--cause", cause).stdout
    assert f"fails with {cause}" in words
    assert ("the request ends" in words) is ends
    assert ("once more" in words) is again


def test_a_chain_for_a_cause_is_followed(run: Run, config: Path) -> None:
    config.write_text(
        config.read_text().replace("deadline: 1m}", "deadline: 1m, on: {content_policy: cheap}}")
    )
    after = explained(run, "--cause", "content_policy")["after"]
    assert (after["chain"], ids(after["tries"])) == ("cheap", ["bravo"])
    assert "on with the chain cheap" in run("explain", "smart", "--cause", "content_policy").stdout


@pytest.mark.usefixtures("config")
def test_draws_follow_the_request_id(run: Run) -> None:
    firsts = {explained(run, "--id", f"req_{n}")["tries"][0]["id"] for n in range(12)}
    assert firsts == {"gpt#a", "gpt#b"}


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["smrt"], NOT_FOUND, "Did you mean smart?"),
        (["smart", "--cause", "bad luck"], USAGE, "bad luck"),
        (["smart", "-H", "x-gateway-deadlin: 5s"], USAGE, "x-gateway-deadlin"),
        (["smart", "-H", "x-gateway-deadline: soon"], USAGE, "duration"),
        (["smart", "-H", "authorization: Bearer x"], USAGE, "no x-gateway header"),
        (["smart", "-c", "other.yaml"], NOT_FOUND, "gateway init"),
        ([], USAGE, "MODEL"),
    ],
)
@pytest.mark.usefixtures("config")
def test_wrong_input(run: Run, args: list[str], code: int, said: str) -> None:
    done = run("explain", *args)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr


@pytest.mark.usefixtures("config")
@pytest.mark.parametrize("body", ["[1]", "{", '{"messages": 7}'])
def test_a_body_that_is_no_request(run: Run, body: str) -> None:
    done = run("explain", "smart", input=body)
    assert (done.exit_code, done.stdout) == (USAGE, "")
    assert done.stderr


def test_a_broken_configuration_tells_every_mistake(run: Run, config: Path) -> None:
    config.write_text(config.read_text().replace("rpm: 20", "rmp: 20").replace("1m}", "1}"))
    done = run("explain", "smart")
    assert done.exit_code == USAGE
    assert "did you mean rpm?" in done.stderr
    assert "a duration needs a unit" in done.stderr
    assert "gateway check" in done.stderr


def test_every_right_is_there(run: Run, config: Path) -> None:
    assert config.exists()
    for header in ("x-gateway-trace: 1", "x-gateway-priority: high", "x-gateway-target: bravo"):
        assert run("explain", "smart", "-H", header).exit_code not in {NOT_AUTHORISED, USAGE}
    assert ids(explained(run, "-H", "x-gateway-fallback: off")["tries"])[1:] == []
    assert (
        "x-gateway-fallback: off" in run("explain", "smart", "-H", "x-gateway-fallback: off").stdout
    )
