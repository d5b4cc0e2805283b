"""Where a server's CPU goes: py-spy beside a loaded gateway, its shares told as µs a request."""

import collections
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from rig import OUT, ROOT, Case, Report, Rig, Server, Unable

SECONDS = 15
RATE = 200  # samples a second
MAIN = "MainThread"
LOOP = re.compile(r"^run \(asyncio/runners\.py|^Runner\.run \(asyncio/runners\.py")
IDLE = re.compile(r"\((threading|queue|selectors|logging/handlers)\.py|^_worker \(concurrent/")
_LINE = re.compile(r":\d+\)$")

Counter = collections.Counter[str]


def profile(rig: Rig, server: Server, case: Case) -> str:
    """A report in Markdown; the raw stacks stay in bench/out."""
    found = os.environ.get("PY_SPY") or shutil.which("py-spy")
    if not found:
        raise Unable("py-spy is missing: install it in some venv and set PY_SPY to its path")
    plain = rig.measure(server, case, 4.0, 1.0)
    raw = OUT / f"profile-{case.name}.raw"
    command = [
        found, "record", "-p", str(server.pids[0]), "-d", str(SECONDS), "-r", str(RATE),
        "-f", "raw", "-t", "-o", str(raw),
    ]  # fmt: skip
    with rig.load(server, case, SECONDS + 2.0, 1.0) as child:
        time.sleep(1.5)
        subprocess.run([*rig.second, *command], check=True, capture_output=True)
        child.wait()
    return told(raw, case, plain)


def told(raw: Path, case: Case, plain: Report) -> str:
    """The samples scaled to what a request (chunk) costs without the profiler beside it."""
    cost, unit = (plain["cpu_us"], "request")
    if case.stream:
        cost, unit = plain["cpu_us_chunk"], "chunk"
    stacks = _stacks(raw, plain["cpu_share"] * plain["loop_us"] / plain["cpu_us"])
    samples = sum(stacks.values())
    threads, files, own, whole, lines = (Counter() for _ in range(5))
    for (thread, *frames), n in stacks.items():
        names = [_LINE.sub(")", frame) for frame in frames]
        threads[thread] += n
        files[names[-1].rpartition(" (")[2].rstrip(")")] += n
        own[names[-1]] += n
        lines[frames[-1]] += n
        whole.update(dict.fromkeys(names, n))
    parts = [
        f"### {case.name}: {cost:.1f} µs a {unit} ({plain['times_upstream']:.1f} × upstream),"
        f" {samples:.0f} samples"
    ]
    for title, counted, most in (
        ("thread", threads, 6), ("self, by file", files, 30), ("self, by function", own, 45),
        ("self, by line", lines, 30), ("inclusive", whole, 110),
    ):  # fmt: skip
        parts.append(f"\n| {title} | µs | % |\n|---|---|---|")
        for name, n in counted.most_common(most):
            share = n / max(1, samples)
            parts.append(f"| {name} | {share * cost:.2f} | {share:.1%} |")
    return "\n".join(parts)


def _stacks(raw: Path, main: float) -> collections.Counter[tuple[str, ...]]:
    """Samples on a CPU, by stack; `main` is the share of one that the main thread had.

    What py-spy saw in the event loop itself is mostly waiting: only so much of it is kept as the
    main thread's own time has room for.
    """
    found: collections.Counter[tuple[str, ...]] = collections.Counter()
    wall = active = 0
    loops: list[tuple[str, ...]] = []
    for line in raw.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = (_short(frame) for frame in stack.split(";"))
        thread = thread.rpartition(": ")[2].strip() or thread
        key, n = (thread, *frames), int(count)
        if thread == MAIN:
            wall += n
            if LOOP.match(frames[-1]):
                loops.append(key)
            else:
                active += n
        if not IDLE.search(frames[-1]):
            found[key] += n
    waited = sum(found[key] for key in loops)
    kept = min(waited, max(0, round(main * wall) - active))
    for key in loops:
        found[key] = round(found[key] * kept / max(1, waited))
    return found


def _short(frame: str) -> str:
    return re.sub(r"\(/[^)]*?/(?:site-packages|python3\.\d+)/", "(", frame).replace(f"{ROOT}/", "")
