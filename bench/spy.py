"""Where a server's CPU goes: py-spy beside a loaded gateway, its shares told as µs a request."""

import collections
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from machine import OUT, ROOT, Unable
from rig import Case, Report, Rig
from servers import Server

SECONDS = 15
RATE = 200  # samples a second
_LINE = re.compile(r":\d+\)$")

Counter = collections.Counter[str]


def profile(rig: Rig, server: Server, case: Case) -> str:
    """A report in Markdown; the raw stacks stay in bench/out.

    Only who holds the GIL is looked at: a thread that waits for it stands on a line that costs
    nothing, and so does one that sleeps. What the kernel, libuv and SQLite take without it is
    spread over the rest.
    """
    found = os.environ.get("PY_SPY") or shutil.which("py-spy")
    if not found:
        raise Unable("py-spy is missing: install it in some venv and set PY_SPY to its path")
    plain = rig.measure(server, case, 4.0, 1.0)
    raw = OUT / f"profile-{case.name}.raw"
    command = [
        found, "record", "-p", str(server.pids[0]), "-d", str(SECONDS), "-r", str(RATE),
        "-f", "raw", "-t", "--gil", "-o", str(raw),
    ]  # fmt: skip
    with rig.load(server, case, SECONDS + 2.0, 1.0) as child:
        time.sleep(1.5)
        subprocess.run([*rig.second, *command], check=True, capture_output=True)
        child.wait()
    return told(raw, case, plain)


def told(raw: Path, case: Case, plain: Report) -> str:
    """Shares of the samples, as µs of what a request (chunk) costs without the profiler."""
    cost, unit, rate = plain["cpu_us"], "request", plain["window_requests"] / plain["seconds"]
    if case.stream:
        cost, unit = plain["cpu_us_chunk"], "chunk"
        rate = plain["window_chunks"] / plain["seconds"]
    rows = raw.read_text().splitlines()
    scale = cost / max(1, sum(int(row.rpartition(" ")[2]) for row in rows))
    threads, files, own, whole, lines = (Counter() for _ in range(5))
    for line in rows:
        stack, _, count = line.rpartition(" ")
        thread, *frames = (_short(frame) for frame in stack.split(";"))
        spent = int(count) * scale
        names = [_LINE.sub(")", frame) for frame in frames]
        threads[thread.rpartition(": ")[2]] += spent
        files[names[-1].rpartition(" (")[2].rstrip(")")] += spent
        own[names[-1]] += spent
        lines[frames[-1]] += spent
        whole.update(dict.fromkeys(names, spent))
    parts = [f"### {case.name}: {cost:.1f} µs a {unit} at {rate:.0f} {unit}s a second"]
    for title, counted, most in (
        ("thread", threads, 6), ("self, by file", files, 30), ("self, by function", own, 50),
        ("self, by line", lines, 30), ("inclusive", whole, 120),
    ):  # fmt: skip
        parts.append(f"\n| {title} | µs | % |\n|---|---|---|")
        for name, spent in counted.most_common(most):
            parts.append(f"| {name} | {spent:.2f} | {spent / max(1e-9, cost):.1%} |")
    return "\n".join(parts)


def _short(frame: str) -> str:
    return re.sub(r"\(/[^)]*?/(?:site-packages|python3\.\d+)/", "(", frame).replace(f"{ROOT}/", "")
