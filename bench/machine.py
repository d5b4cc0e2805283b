"""Processes, and what they use: /proc is read, CPUs are pinned, HTTP is asked by hand."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OUT = HERE / "out"


class Unable(Exception):
    """The bench cannot go on; the message is for the person who started it."""


class Used(NamedTuple):
    """CPU nanoseconds of a process tree: of all threads, and of the main ones."""

    all: int
    main: int


def cpus() -> tuple[list[str], list[str], str]:
    """How to start what is measured, how to start the load, and what is to be said about it."""
    usable = sorted(os.sched_getaffinity(0))
    if shutil.which("taskset") is None:
        return [], [], "taskset is missing: nothing is pinned, take the figures for a hint"
    if len(usable) < 2:
        return [], [], "one CPU only: nothing is pinned, latencies mean little"
    first, second = (["taskset", "-c", str(cpu)] for cpu in usable[:2])
    return first, second, f"server on CPU {usable[0]}, upstream and load on CPU {usable[1]}"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def used(pids: list[int]) -> Used:
    total = main = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                spent = int(stat.read_text().split()[0])
                total += spent
                main += spent if int(stat.parent.name) == pid else 0
    return Used(total, main)


def resident(pids: list[int]) -> float:
    """MB in memory, shared pages counted in each process."""
    kilobytes = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                kilobytes += int(line.split()[1]) if line.startswith("VmRSS:") else 0
    return kilobytes / 1024


def busy() -> tuple[int, int]:
    """Jiffies all CPUs spent on something, and in all."""
    cells = [int(cell) for cell in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return sum(cells) - cells[3] - cells[4], sum(cells)


def ask(
    url: str, data: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    request = urllib.request.Request(url, data=data, headers=dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


class Process:
    """A child in a session of its own: ended with its whole tree."""

    def __init__(self, command: list[str], log: Path, **given: Any) -> None:
        self.log = log
        with log.open("ab") as errors:
            given.setdefault("stdout", errors)
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=errors, start_new_session=True, **given
            )
        self.pid = self._child.pid

    def wait_for(self, url: str, seconds: float = 30.0) -> float:
        """Seconds until it answers 200."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if self._child.poll() is not None:
                told = self.log.read_text(errors="replace")[-2000:]
                raise Unable(f"{self.log.stem} ended ({self._child.returncode}):\n{told}")
            with contextlib.suppress(OSError):
                if ask(url)[0] == 200:
                    return time.monotonic() - began
            time.sleep(0.02)
        raise Unable(f"{self.log.stem} did not come up within {seconds:g} s, see {self.log}")

    def end(self) -> None:
        pids = tree(self.pid)
        self._child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(10)
        for pid in pids:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/stat").exists() and self._child.poll() is None:
                    os.kill(pid, signal.SIGKILL)
        self._child.wait()
