"""The upstream, the load and the servers between them; one run is one row of figures."""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bodies import BODIES
from machine import HERE, OUT, ROOT, Process, Unable, ask, busy, cpus, free_port, resident, used
from servers import CHAT, Gateway, Nginx, Plain, Server

Report = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One kind of load. `delay` and `chunks` are what the upstream does to a stream."""

    name: str
    told: str
    body: str
    connections: int
    delay_us: int = 0
    chunks: int = 32
    bars: Mapping[str, float] = field(default_factory=dict)  # column: at most

    @property
    def stream(self) -> bool:
        return self.body.endswith("-stream")


class Rig:
    """The upstream, the load, and the servers between them."""

    def __init__(self, names: list[str], extra: list[str], before: Path | None = None) -> None:
        OUT.mkdir(exist_ok=True)
        build()
        first, self.second, self.placed = cpus()
        port = free_port()
        log = OUT / "fakeup.log"
        log.unlink(missing_ok=True)
        self.upstream = Process([*self.second, str(OUT / "fakeup"), str(port)], log)
        self.direct = Server("direct", port)
        self.servers: list[Server] = [self.direct]
        self.notes: list[str] = []
        try:
            self.upstream.wait_for(f"http://127.0.0.1:{port}/health", 5)
            self._start(names, port, first, extra, before)
            for name, body in BODIES.items():
                (OUT / f"{name}.json").write_bytes(body)
        except BaseException:
            self.close()
            raise

    def _start(
        self,
        names: list[str],
        port: int,
        pinned: list[str],
        extra: list[str],
        before: Path | None,
    ) -> None:
        if "nginx" in names and shutil.which("nginx") is None:
            self.notes.append("nginx is not installed: no row of its own")
            names = [name for name in names if name != "nginx"]
        made: dict[str, Callable[[], Server]] = {
            "nginx": lambda: Nginx(port, pinned),
            "plain": lambda: Plain(port, pinned),
            "gateway": lambda: Gateway(port, pinned, extra, "gateway", ROOT),
        }
        if before is not None:
            made["before"] = lambda: Gateway(port, pinned, extra, "before", before)
            names = [*names, "before"]
        for name in names:
            server = made[name]()
            self.servers.append(server)
            server.up("/readyz" if isinstance(server, Gateway) else "/health")
        for server in self.servers:
            server.check()

    def close(self) -> None:
        for server in self.servers:
            if server.process is not None:
                server.process.end()
            if isinstance(server, Gateway):
                server.clear()
        self.upstream.end()

    def set_upstream(self, case: Case) -> None:
        query = f"latency_us=0&size=600&delay_us={case.delay_us}&chunks={case.chunks}"
        ask(f"http://127.0.0.1:{self.direct.port}/__set?{query}")

    @contextlib.contextmanager
    def load(
        self, server: Server, case: Case, seconds: float, warm: float
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """The load generator, running."""
        self.set_upstream(case)
        command = [
            *self.second, str(OUT / "loadgen"), "-p", str(server.port), "-c", str(case.connections),
            "-d", str(seconds), "-w", str(warm), "-b", str(OUT / f"{case.body}.json"), "-P", CHAT,
        ]  # fmt: skip
        if case.stream:
            command += ["-s", "-e", str(case.chunks)]
        for name, value in server.headers.items():
            command += ["-H", f"{name}: {value}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            try:
                yield child
            finally:
                child.kill()

    def measure(self, server: Server, case: Case, seconds: float, warm: float) -> Report:
        """One run: what the load saw, and the CPU the server took meanwhile."""
        with self.load(server, case, seconds, warm) as child:
            marks = [self._look(server, child.pid) for _ in _marks(child)]
            told = child.stdout.read() if child.stdout else b""
            child.wait()
        if len(marks) != 2:
            raise Unable(f"loadgen failed on {case.name} at {server.name}")
        report: Report = json.loads(told)
        server.sent += report["sent"]
        report |= _costs(*marks, report)
        after = server.quiet()
        report["left_us_per_request"] = after * 1e6 / max(1, report["window_requests"])
        report["rss_mb"] = resident(server.pids)
        report["errors"] = sum(
            report[name] for name in ("bad_status", "incomplete", "dropped", "unfinished")
        )
        return report

    def _look(self, server: Server, load: int) -> dict[str, Any]:
        return {
            "at": time.monotonic(),
            "server": used(server.pids),
            "upstream": used([self.upstream.pid]).all,
            "load": used([load]).all,
            "machine": busy(),
        }


def build() -> None:
    """The two C programs, made anew when their source is younger."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    for name in ("fakeup", "loadgen"):
        source, made = HERE / f"{name}.c", OUT / name
        if made.exists() and made.stat().st_mtime > source.stat().st_mtime:
            continue
        if compiler is None:
            raise Unable("A C compiler is needed: apt-get install gcc (or your system's package).")
        flags = ["-O2", "-Wall", "-Wextra", "-pthread"]
        subprocess.run([compiler, *flags, "-o", str(made), str(source)], check=True)


def _marks(child: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Yields where the window begins and where it ends."""
    for line in child.stderr or ():
        if line.startswith((b"MEASURE", b"END")):
            yield
        if line.startswith(b"END"):
            return


def _costs(first: dict[str, Any], last: dict[str, Any], report: Report) -> Report:
    """What was used between two looks, per request and per chunk."""
    requests, chunks = max(1, report["window_requests"]), report["window_chunks"]
    passed = last["at"] - first["at"]
    server = last["server"].all - first["server"].all
    main = last["server"].main - first["server"].main
    upstream = last["upstream"] - first["upstream"]
    ours = (server + upstream + last["load"] - first["load"]) / 1e9
    ticks = os.sysconf("SC_CLK_TCK")
    busy_s, all_s = (
        (after - before) / ticks
        for before, after in zip(first["machine"], last["machine"], strict=True)
    )
    return {
        "cpu_us": server / 1e3 / requests,
        "loop_us": main / 1e3 / requests,
        "cpu_us_chunk": server / 1e3 / chunks if chunks else 0.0,
        "upstream_us": upstream / 1e3 / requests,
        "times_upstream": server / upstream if upstream else 0.0,
        "cpu_share": server / 1e9 / passed,
        "others_share": max(0.0, busy_s - ours) / all_s if all_s else 0.0,
    }
