"""What the gateway adds to a call: CPU per request and chunk, latency, memory. Linux, no root.

make bench
make bench ARGS="--cases 1k-c64,hot-c64 --rounds 5 --seconds 3"
make bench ARGS="--before /tmp/main --only plain,gateway"
make bench ARGS=--write            # the block in bench/README.md anew
PY_SPY=/tmp/v/bin/py-spy make bench ARGS="--profile --cases 1k-c64"
"""

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from machine import HERE, OUT, Unable
from rig import Case, Report, Rig
from servers import Server
from spy import profile
from table import facts, headline, markdown, row_of, write_into

CASES = (
    Case("1k-c1", "1 KB, 1 connection", "1k", 1, bars={"added_p50_ms": 0.3}),
    Case("1k-c64", "1 KB, 64 connections", "1k", 64, bars={"cpu_us": 145}),
    Case("30k-c64", "30 KB with tools, 64", "30k", 64, bars={"cpu_us": 170}),
    Case("330k-c16", "330 KB with tools, 16", "330k", 16),
    Case("hot-c64", "hot stream, 64", "1k-stream", 64, 4_000, 128, {"cpu_us_chunk": 24}),
    Case("stream-c16", "stream, 16", "1k-stream", 16, 10_000),
    Case("stream-c64", "stream, 64", "1k-stream", 64, 20_000, bars={"added_first_ms": 0.6}),
)
MORE = (
    Case("1k-c16", "1 KB, 16 connections", "1k", 16),
    Case("1k-c256", "1 KB, 256 connections", "1k", 256),
    Case("stream-c1", "stream, 1", "1k-stream", 1, 5_000),
    Case("stream-c1000", "stream, 1000", "1k-stream", 1000, 100_000),
    Case("blast-c16", "stream without pauses, 16", "1k-stream", 16, 0, 256),
)
BY_NAME = {case.name: case for case in (*CASES, *MORE)}
KNOWN = {"nginx", "plain", "gateway"}
WARM_UP = (BY_NAME["1k-c64"], BY_NAME["hot-c64"])


def main() -> int:
    asked = _arguments()
    cases = _cases(asked.cases)
    rig = Rig(asked.only.split(","), asked.gateway_args.split(), asked.before)
    try:
        if asked.profile:
            return _profile(rig, cases)
        return _compare(rig, cases, asked)
    finally:
        rig.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    names = ", ".join(BY_NAME)
    parser.add_argument("--cases", default="", help=f"default, all, or some of: {names}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.8, help="measured in each run")
    parser.add_argument("--warm", type=float, default=0.4, help="before it")
    parser.add_argument(
        "--only", default="nginx,plain,gateway", help="servers beside the direct runs"
    )
    parser.add_argument("--gateway-args", default="", help="more for `gateway serve`: -q")
    parser.add_argument("--before", type=Path, help="a checkout to compare with: a git worktree")
    parser.add_argument("--profile", action="store_true", help="py-spy (PATH or $PY_SPY) instead")
    parser.add_argument("--write", action="store_true", help="put the table into bench/README.md")
    asked = parser.parse_args()
    if unknown := set(asked.only.split(",")) - KNOWN:
        parser.error(f"--only knows nginx, plain and gateway, not {', '.join(unknown)}")
    return asked


def _cases(names: str) -> list[Case]:
    if names in {"", "default"}:
        return list(CASES)
    if names == "all":
        return list(BY_NAME.values())
    if unknown := [name for name in names.split(",") if name not in BY_NAME]:
        raise Unable(f"There is no case {', '.join(unknown)}. There are: {', '.join(BY_NAME)}.")
    return [BY_NAME[name] for name in names.split(",")]


def _compare(rig: Rig, cases: list[Case], asked: argparse.Namespace) -> int:
    command = " ".join(["bench/overhead.py", *sys.argv[1:]]).replace(" --write", "")
    told = facts(rig.placed, command)  # of what was started, not of what is there at the end
    began = time.monotonic()
    for server in rig.servers[1:]:
        for case in WARM_UP:
            rig.measure(server, case, 1.0, 0.3)
    rows = []
    for turn in range(asked.rounds):
        for case in cases:
            for server in _in_turn(rig.servers, turn):
                _say(_left(began, len(rows), cases, rig, asked))
                row = rig.measure(server, case, asked.seconds, asked.warm)
                rows.append({"case": case.name, "server": server.name, "round": turn, **row})
    _say("")
    books = [f"Books of {s.name}: {book}.  " for s in rig.servers if (book := s.account())]
    table = [row_of(case, rows, server.name) for case in cases for server in rig.servers]
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    block = markdown(cases, table, rig.servers, headline(told, when))
    block = "\n".join([*(f"Note: {note}.  " for note in rig.notes), block + "  ", *books]).rstrip()
    print(block)
    _keep(told | {"when": when}, rig.servers, table, rows)
    if asked.write:
        write_into(HERE / "README.md", block)
    wrong = any(row["errors"] for row in rows) or any("DO NOT AGREE" in book for book in books)
    return 1 if wrong else 0


def _in_turn(servers: list[Server], turn: int) -> list[Server]:
    """Each round begins with another server, so that none always follows the same."""
    at = turn % len(servers)
    return servers[at:] + servers[:at]


def _left(began: float, done: int, cases: list[Case], rig: Rig, asked: argparse.Namespace) -> str:
    runs = asked.rounds * len(cases) * len(rig.servers)
    passed = time.monotonic() - began
    left = (runs - done) * (passed / done if done > 3 else asked.seconds + asked.warm + 0.4)
    return f"run {done + 1} of {runs}, about {left:.0f} s left  "


def _say(text: str) -> None:
    """How far it is, for who watches."""
    if sys.stderr.isatty():
        print(f"\r{text:<45}\r", end="", file=sys.stderr)


def _keep(
    told: dict[str, Any], servers: list[Server], table: list[Report], rows: list[Report]
) -> None:
    memory = {s.name: s.idle_mb for s in servers if s.process is not None}
    ready = {s.name: s.ready_s for s in servers if s.process is not None}
    whole = {**told, "idle_mb": memory, "ready_s": ready, "table": table, "runs": rows}
    (OUT / "result.json").write_text(json.dumps(whole, indent=1))


def _profile(rig: Rig, cases: list[Case]) -> int:
    gateway = next((server for server in rig.servers if server.name == "gateway"), None)
    if gateway is None:
        raise Unable("--profile looks at the gateway: leave it in --only")
    for case in cases:
        rig.measure(gateway, case, 1.0, 0.5)
        report = profile(rig, gateway, case)
        (OUT / f"profile-{case.name}.md").write_text(report + "\n")
        print(report + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Unable as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
