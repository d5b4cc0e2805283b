"""Where a server's CPU goes: py-spy beside a loaded gateway, its shares told as µs a request."""

import collections
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from rig import OUT, ROOT, Case, Rig, Server, Unable

SECONDS = 12
RATE = 250  # samples a second
_PLACE = re.compile(r"\((.*?)(?::\d+)?\)$")


def profile(rig: Rig, server: Server, case: Case) -> str:
    """A report in Markdown; the raw stacks stay in bench/out."""
    found = os.environ.get("PY_SPY") or shutil.which("py-spy")
    if not found:
        raise Unable("py-spy is missing: install it in some venv and set PY_SPY to its path")
    plain = rig.measure(server, case, 3.0, 1.0)
    raw = OUT / f"profile-{case.name}.raw"
    command = [
        found, "record", "-p", str(server.pids[0]), "-d", str(SECONDS), "-r", str(RATE),
        "-f", "raw", "-F", "-t", "-o", str(raw),
    ]  # fmt: skip
    with rig.load(server, case, SECONDS + 1.0, 1.0) as child:
        time.sleep(1.5)
        subprocess.run([*rig.second, *command], check=True, capture_output=True)
        child.wait()
    cost, unit = plain["cpu_us"], "request"
    if case.stream:
        cost, unit = plain["cpu_us_chunk"], "chunk"
    return told(raw, case, cost, unit)


def told(raw: Path, case: Case, cost: float, unit: str) -> str:
    """The shares of a raw file, scaled to what a request (chunk) costs without the profiler."""
    samples = 0
    own: collections.Counter[str] = collections.Counter()
    files: collections.Counter[str] = collections.Counter()
    whole: collections.Counter[str] = collections.Counter()
    threads: collections.Counter[str] = collections.Counter()
    for line in raw.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        n, frames = int(count), [_short(frame) for frame in stack.split(";")]
        samples += n
        threads[frames[0]] += n
        own[frames[-1]] += n
        place = _PLACE.search(frames[-1])
        files[place[1] if place else frames[-1]] += n
        whole.update(dict.fromkeys(frames[1:], n))
    parts = [f"### {case.name}: {cost:.1f} µs a {unit}, {samples} samples"]
    for title, counted, most in (
        ("thread", threads, 6), ("self, by file", files, 25), ("self", own, 30),
        ("inclusive", whole, 60),
    ):  # fmt: skip
        parts.append(f"\n| {title} | µs | % |\n|---|---|---|")
        for name, n in counted.most_common(most):
            share = n / max(1, samples)
            parts.append(f"| {name} | {share * cost:.2f} | {share:.1%} |")
    return "\n".join(parts)


def _short(frame: str) -> str:
    return re.sub(r"\(/[^)]*?/(?:site-packages|python3\.\d+)/", "(", frame).replace(f"{ROOT}/", "")
