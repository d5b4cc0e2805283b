"""`make demo` and `make help`: what somebody sees who has just cloned this.

The demo is the real process: real gateway, real HTTP to simulated providers on loopback.
"""

import re
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from gateway.wire import json

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"```text\n(gateway .*?)```", re.DOTALL)

# In this order, whatever stands between them.
GOLDEN = (
    "gateway N · Python N · uvloop · config: built in (print it: gateway config show --demo)",
    "API U no keys configured: loopback only, any key works",
    "providers sim/alpha sim/bravo sim/charlie simulated on loopback: nothing leaves this machine",
    "chain default = alpha → bravo → charlie at most N attempts",
    "breaker opens after N failures in a row",
    "T chat default N N ms B alpha ok",
    "T — alpha answers N, Retry-After N —",
    "alpha rate_limited → bravo ok",
    "bravo ok (alpha skipped: rate limited)",
    "T — alpha answers N —",
    "alpha overloaded → bravo ok",
    "T breaker alpha: closed → open (N failures in a row, next probe in N s)",
    "T — bravo accepts and says nothing —",
    "bravo first_token after N ms → charlie ok",
    "T — alpha and bravo are well again —",
    "T breaker alpha: half-open → closed (probe ok, N ms)",
    "N requests · N answered · N lost · N saved by fallback · pN N ms pN N ms · $N",
    "(simulated prices; the ledger says the same)",
    "chain target share ok rate_limited overloaded",
    "default alpha N %",
    "bravo N %",
    "charlie N %",
    "Try it: curl U/chat/completions -H 'Content-Type: application/json' \\",
    "Next: gateway init write gateway.yaml for your own providers",
)


def masked(text: str) -> str:
    """Without what differs from run to run: numbers, times, ports, bars, columns."""
    text = re.sub(r"http://127\.0\.0\.1:\d+/v1", "U", text)
    text = re.sub(r"\b\d\d:\d\d:\d\d\b", "T", text)
    text = re.sub(r"[▒█░]+", "B", text)
    text = re.sub(r"\d+(?:[.,]\d+)*", "N", text)
    return re.sub(r"[ \t]+", " ", text)


def demo(*options: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """To its end, off a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", "demo", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_the_demo_loses_nothing_and_the_ledger_agrees() -> None:
    done = demo("--json", "--speed", "20", "--requests", "30")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.encode())
    assert told["problems"] == []
    assert told["answered"] == told["requests"] == 30
    assert told["lost"] == 0
    assert told["saved_by_fallback"] >= 10
    assert told["streams_switched_before_first_token"] >= 1
    assert told["breakers_opened"] >= 1
    assert told["breakers_closed"] >= 1
    assert Decimal(told["ledger_usd"]) == Decimal(told["cost_usd"]) > 0
    assert sum(target["outcomes"].get("ok", 0) for target in told["targets"].values()) == 30
    assert told["targets"]["alpha"]["outcomes"]["rate_limited"] >= 1
    assert done.stderr == ""


def test_the_transcript_tells_the_story_of_the_readme() -> None:
    """One run for both: the golden words in their order, and every line the README shows."""
    done = demo("--speed", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout, "colour off a terminal"
    told = masked(done.stdout)
    at = 0
    for words in GOLDEN:
        found = told.find(words, at)
        assert found >= 0, f"{words!r} is missing, or stands before its turn, in\n{done.stdout}"
        at = found + len(words)
    shown = FENCE.search((ROOT / "README.md").read_text())
    assert shown
    lines = {line.strip() for line in told.splitlines()}
    for line in masked(shown[1]).splitlines():
        assert line.strip() in lines | {""}, (
            f"the README shows {line!r}; the demo said\n{done.stdout}"
        )


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_lists_its_targets() -> None:
    done = make()
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^  make ([a-z-]+) +\S", done.stdout, re.MULTILINE)
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony
    assert listed == phony[1].split()
    assert {"demo", "test", "check", "install", "help"} <= set(listed)
    assert listed == re.findall(r"^([a-z-]+):.*##", text, re.MULTILINE)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["demo", "test", "check", "install", "run"])
def test_a_target_bootstraps_itself(target: str) -> None:
    """Whoever clones types one command: it depends on the environment being there."""
    done = make("-n", "-B", target)
    assert done.returncode == 0, done.stderr
    assert re.search(r"-m venv .*\.venv ", done.stdout)
    assert "--require-hashes -r requirements" in done.stdout
