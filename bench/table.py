"""The figures as one Markdown table, and the facts of the machine they were taken on."""

import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import ROOT
from rig import Case, Report
from servers import Server

BEGIN, END = "<!-- bench: written by make bench ARGS=--write -->", "<!-- bench: end -->"
NOISY = 0.05  # of all CPUs taken by other processes while we measured
COLUMNS = (
    "case", "server", "CPU µs/request", "of it loop", "CPU µs/chunk", "x upstream", "x plain",
    "requests/s", "+p50 ms", "+p95 ms", "+p99 ms", "+first token ms",
)  # fmt: skip
PACKAGES = ("aiohttp", "uvloop", "msgspec", "orjson", "httptools")


def row_of(case: Case, rows: list[Report], server: str) -> Report:
    """Medians of one server's runs; what it adds is taken against the direct run of each round."""
    mine = [row for row in rows if row["case"] == case.name and row["server"] == server]
    direct = {
        row["round"]: row for row in rows if row["case"] == case.name and row["server"] == "direct"
    }
    told: Report = {"case": case.name, "server": server, "runs": len(mine)}
    for name in ("cpu_us", "loop_us", "cpu_us_chunk", "times_upstream", "rps", "rss_mb",
                 "upstream_us", "left_us_per_request", "cpu_share", "others_share"):  # fmt: skip
        told[name] = _median(row[name] for row in mine)
    told["cpu_us_least"] = min((row["cpu_us"] for row in mine), default=0.0)
    plain = {row["round"]: row for row in rows
             if row["case"] == case.name and row["server"] == "plain"}  # fmt: skip
    told["times_plain"] = _median(
        row["cpu_us"] / plain[row["round"]]["cpu_us"] for row in mine if row["round"] in plain
    )
    told["errors"] = sum(row["errors"] for row in mine)
    what = "chunk_delay_us" if case.stream else "latency_us"
    for quantile in ("p50", "p95", "p99"):
        told[f"added_{quantile}_ms"] = _median(
            (row[what][quantile] - direct[row["round"]][what][quantile]) / 1e3 for row in mine
        )
    if case.stream:
        told["added_first_ms"] = _median(
            (row["ttft_us"]["p50"] - direct[row["round"]]["ttft_us"]["p50"]) / 1e3 for row in mine
        )
    return told


def markdown(cases: Iterable[Case], told: list[Report], servers: list[Server], head: str) -> str:
    """The table, and what stands above and below it."""
    lines = [head, "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    by_name = {case.name: case for case in cases}
    lines += [
        f"| {' | '.join(_cells(by_name[row['case']], row))} |"
        for row in told
        if row["server"] != "direct"
    ]
    lines.append("")
    for server in servers:
        if server.process is not None:
            last = [row["rss_mb"] for row in told if row["server"] == server.name]
            lines.append(
                f"{server.name}: ready in {server.ready_s:.2f} s; resident {server.idle_mb:.0f} MB"
                f" idle{_against(server.idle_mb, 80) if server.name == 'gateway' else ''},"
                f" {max(last, default=0):.0f} MB at most after a case.  "
            )
    upstream = _median(row["upstream_us"] for row in told if row["case"] == "1k-c64")
    if upstream:
        lines.append(f"The upstream itself takes {upstream:.1f} µs a request at 1k-c64.  ")
    if any(row["server"] == "before" for row in told):
        lines.append(f"gateway over before: {_over_before(told)}.  ")
    noise = max((row["others_share"] for row in told), default=0.0)
    lines.append(
        f"Other processes took up to {noise:.0%} of the CPUs"
        + (": latencies and rates are **noisy**." if noise > NOISY else ": a quiet machine.")
    )
    return "\n".join(lines)


def _over_before(told: list[Report]) -> str:
    """CPU of this checkout over that of the other."""
    costs = {(row["case"], row["server"]): row["cpu_us"] for row in told}
    names = dict.fromkeys(row["case"] for row in told)
    return ", ".join(
        f"{name} {costs[name, 'gateway'] / max(1e-9, costs[name, 'before']):.2f}" for name in names
    )


def _cells(case: Case, row: Report) -> list[str]:
    bars = case.bars if row["server"] == "gateway" else {}
    said = [
        case.told, row["server"],
        f"{row['cpu_us']:.0f}" + _bar(bars, "cpu_us", row),
        f"{row['loop_us']:.0f}",
        f"{row['cpu_us_chunk']:.1f}" + _bar(bars, "cpu_us_chunk", row) if case.stream else "",
        f"{row['times_upstream']:.1f}",
        f"{row['times_plain']:.2f}" if row["times_plain"] else "",
        f"{row['rps']:.0f}" + (f" ({row['errors']} errors)" if row["errors"] else ""),
    ]  # fmt: skip
    for name in ("added_p50_ms", "added_p95_ms", "added_p99_ms", "added_first_ms"):
        said += [f"{row[name]:.2f}" + _bar(bars, name, row) if name in row else ""]
    return said


def _bar(bars: Mapping[str, float], name: str, row: Report) -> str:
    return _against(row[name], bars[name]) if name in bars else ""


def _against(value: float, bar: float) -> str:
    return f" (≤ {bar:g} {'✓' if value <= bar else '✗'})"


def facts(placed: str, command: str) -> dict[str, Any]:
    """Where, what and how, for whoever compares two tables."""
    commit = _said("git", "rev-parse", "--short=12", "HEAD")
    if _said("git", "--no-optional-locks", "status", "--porcelain", "--", "gateway", "bench"):
        commit += " with changes"
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith(("model name", "Model"))
        ),
        platform.machine(),
    )
    return {
        "commit": commit,
        "command": command,
        "machine": {"cpu": cpu, "kernel": platform.release(), "placed": placed},
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
            "nginx": _said("nginx", "-v").rpartition("/")[2],
        },
    }


def headline(told: Mapping[str, Any], when: str) -> str:
    machine = told["machine"]
    versions = ", ".join(f"{name} {found}" for name, found in told["versions"].items() if found)
    return (
        f"{when}, commit {told['commit'] or '?'}, `{told['command']}`  \n"
        f"{machine['cpu']}, Linux {machine['kernel']}; {machine['placed']}  \n{versions}"
    )


def write_into(readme: Path, block: str) -> None:
    """Replace what stands between the markers."""
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n\n{block}\n\n{END}{after}")


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.median(found) if found else 0.0


def _said(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return (made.stdout or made.stderr).strip() if made.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit("run bench/overhead.py")
