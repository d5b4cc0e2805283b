"""Processes and what they use: upstream, servers and load are started, pinned, checked, measured."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bodies import BODIES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OUT = HERE / "out"
CHAT = "/v1/chat/completions"
COST = "0.0001086"  # of fakeup's usage, 212 + 128 tokens, at the prices below
QUIET = 0.06  # of one CPU: below it a server has nothing left to do
PATIENCE = 4.0  # seconds to become quiet

Report = dict[str, Any]


class Unable(Exception):
    """The bench cannot go on; the message is for the person who started it."""


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


class Used(NamedTuple):
    """CPU nanoseconds of a process tree: of all threads, and of the main ones."""

    all: int
    main: int


# --- the machine


def cpus() -> tuple[list[str], list[str], str]:
    """How to start what is measured, how to start the load, and what is to be said about it."""
    usable = sorted(os.sched_getaffinity(0))
    if shutil.which("taskset") is None:
        return [], [], "taskset is missing: nothing is pinned, take the figures for a hint"
    if len(usable) < 2:
        return [], [], "one CPU only: nothing is pinned, latencies mean little"
    first, second = (["taskset", "-c", str(cpu)] for cpu in usable[:2])
    return first, second, f"server on CPU {usable[0]}, upstream and load on CPU {usable[1]}"


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


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                parent = int(stat.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def used(pids: list[int]) -> Used:
    total = main = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                stat = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text()
                spent = int(stat.split()[0])
                total += spent
                main += spent if int(thread) == pid else 0
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


# --- HTTP by hand, for checks


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


# --- what is measured


class Server:
    """Something that answers: the upstream itself, nginx before it, or the gateway."""

    def __init__(self, name: str, port: int, process: Process | None = None) -> None:
        self.name = name
        self.port = port
        self.process = process
        self.pids: list[int] = []
        self.headers: dict[str, str] = {}
        self.idle_mb = 0.0
        self.ready_s = 0.0
        self.sent = 0  # requests it was given

    def up(self, path: str) -> None:
        if self.process is None:
            return
        self.ready_s = self.process.wait_for(f"http://127.0.0.1:{self.port}{path}")
        self.pids = tree(self.process.pid)
        self.quiet()
        self.idle_mb = resident(self.pids)

    def quiet(self) -> float:
        """Wait until what the load left behind is done; CPU seconds that took."""
        began = before = used(self.pids).all
        end = time.monotonic() + PATIENCE
        while self.pids and time.monotonic() < end:
            time.sleep(0.3)  # longer than the gateway's slowest batch
            now = used(self.pids).all
            if now - before < QUIET * 0.3e9:
                break
            before = now
        return (used(self.pids).all - began) / 1e9

    def check(self) -> None:
        """Every body is answered, and answered truly."""
        for name, body in BODIES.items():
            headers = {"content-type": "application/json", **self.headers}
            status, told, reply = ask(f"http://127.0.0.1:{self.port}{CHAT}", body, headers)
            self.sent += 1
            if status != 200:
                raise Unable(f"{self.name} answered {name} with {status}: {reply[:500]!r}")
            problem = _stream_problem(reply) if name.endswith("-stream") else _problem(reply)
            problem = problem or self.told_wrong(told, stream=name.endswith("-stream"))
            if problem:
                raise Unable(f"{self.name} answered {name} wrongly: {problem}: {reply[-500:]!r}")

    def told_wrong(self, headers: Mapping[str, str], *, stream: bool) -> str:
        return ""

    def account(self) -> str:
        """What the server itself counted, once all is over; "" when it keeps no count."""
        return ""


class Gateway(Server):
    """`python -m gateway serve` with everything on."""

    def __init__(self, upstream: int, pinned: list[str], extra: list[str]) -> None:
        self.folder = OUT / "gateway"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.admin = free_port()
        key, self._admin_key = f"sk-bench-{secrets.token_hex(16)}", secrets.token_hex(16)
        port = free_port()
        config = self.folder / "gateway.yaml"
        config.write_text(_configuration(port, self.admin, upstream, self.folder, key))
        self._lines = (self.folder / "requests.jsonl").open("wb")
        command = [*pinned, sys.executable, "-m", "gateway", "serve", "-c", str(config), *extra]
        env = os.environ | {"GATEWAY_ADMIN_KEY": self._admin_key, "UPSTREAM_KEY": "sk-upstream"}
        log = OUT / "gateway.log"
        log.unlink(missing_ok=True)
        process = Process(command, log, cwd=ROOT, env=env, stdout=self._lines)
        super().__init__("gateway", port, process)
        self.headers = {"Authorization": f"Bearer {key}"}

    def check(self) -> None:
        super().check()
        status, _, _ = ask(f"http://127.0.0.1:{self.port}{CHAT}", BODIES["1k"], {})
        if status != 401:
            raise Unable(f"gateway answered {status} to a caller without a key")

    def told_wrong(self, headers: Mapping[str, str], *, stream: bool) -> str:
        if headers.get("x-gateway-path") != "main:ok":
            return "not by the first target"
        if "x-ratelimit-remaining-tokens" not in headers:
            return "no limits in force"
        cost = headers.get("x-gateway-cost-usd")
        return "" if stream or cost == COST else f"cost {cost} instead of {COST}"

    def account(self) -> str:
        """Requests sent against the ledger's rows, the metrics and the log: all is really on."""
        self.quiet()
        bearer = {"Authorization": f"Bearer {self._admin_key}"}
        _, _, page = ask(f"http://127.0.0.1:{self.admin}/metrics", headers=bearer)
        counted = sum(
            float(line.rpartition(" ")[2])
            for line in page.decode().splitlines()
            if line.startswith('gateway_requests_total{api="chat",chain="smart"')
        )
        store = f"file:{self.folder / 'state' / 'gateway.sqlite3'}?mode=ro"
        with contextlib.closing(sqlite3.connect(store, uri=True)) as db:
            ((rows, nano),) = db.execute("SELECT count(*), sum(nano_usd) FROM ledger")
            ((stories,),) = db.execute("SELECT count(*) FROM request")
        with (self.folder / "requests.jsonl").open("rb") as lines:
            logged = sum(b'"event":"request"' in line for line in lines) - 1  # that 401
        told = (
            f"{self.sent} sent, {counted:.0f} in metrics, {rows} ledger rows"
            f" (${nano / 1e9:.4f}), {logged} log lines, {stories} stories"
        )
        exact = counted == self.sent == rows and nano == rows * round(float(COST) * 1e9)
        return told if exact else f"THE BOOKS DO NOT AGREE: {told}"

    def clear(self) -> None:
        """The configuration and the last lines stay; the rest is large."""
        self._lines.close()
        path = self.folder / "requests.jsonl"
        with path.open("rb") as lines:
            lines.seek(max(0, path.stat().st_size - 16_384))
            rest = lines.read().split(b"\n", 1)[-1]
        path.write_bytes(rest)
        shutil.rmtree(self.folder / "state", ignore_errors=True)


class Nginx(Server):
    """proxy_pass and nothing else: the least that passing on can cost."""

    def __init__(self, upstream: int, pinned: list[str]) -> None:
        folder = OUT / "nginx"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        port = free_port()
        owner = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(
            _NGINX.replace("@UP@", str(upstream)).replace("@PORT@", str(port)).replace("@U@", owner)
        )
        log = OUT / "nginx.log"
        log.unlink(missing_ok=True)
        command = [*pinned, "nginx", "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr"]
        super().__init__("nginx", port, Process(command, log))


class Rig:
    """The upstream, the load, and the servers between them."""

    def __init__(self, names: list[str], extra: list[str]) -> None:
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
            self._start(names, port, first, extra)
            for name, body in BODIES.items():
                (OUT / f"{name}.json").write_bytes(body)
        except BaseException:
            self.close()
            raise

    def _start(self, names: list[str], port: int, pinned: list[str], extra: list[str]) -> None:
        if "nginx" in names and shutil.which("nginx") is None:
            self.notes.append("nginx is not installed: no row of its own")
            names = [name for name in names if name != "nginx"]
        for name in names:
            server: Server
            if name == "nginx":
                server = Nginx(port, pinned)
                self.servers.append(server)
                server.up("/health")
            else:
                server = Gateway(port, pinned, extra)
                self.servers.append(server)
                server.up("/readyz")
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


def _problem(reply: bytes) -> str:
    try:
        told = json.loads(reply)
        text = told["choices"][0]["message"]["content"]
        right = told["usage"]["total_tokens"] == 340 and "brown fox" in text
    except (ValueError, LookupError, TypeError):
        right = False
    return "" if right else "not the upstream's completion"


def _stream_problem(reply: bytes) -> str:
    frames = [frame[6:] for frame in reply.split(b"\n\n") if frame.startswith(b"data: ")]
    if not frames or frames[-1] != b"[DONE]":
        return "no [DONE]"
    chunks = [json.loads(frame) for frame in frames[:-1]]
    told = [c["choices"][0] for c in chunks if c["choices"]]
    said = sum("@" in (choice["delta"].get("content") or "") for choice in told)
    if said != 32 or told[-1]["finish_reason"] != "stop":
        return f"{said} chunks of 32"
    usage = [chunk["usage"]["total_tokens"] for chunk in chunks if chunk.get("usage")]
    return "" if usage == [340] else f"usage {usage}"


def _configuration(port: int, admin: int, upstream: int, folder: Path, key: str) -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()
    limits = "limits: {rpm: 100_000_000, tpm: 1_000_000_000, concurrency: 10_000}"
    return f"""\
version: 1
server: {{listen: "127.0.0.1:{port}", admin: "127.0.0.1:{admin}", lame_duck: 0s, drain: 5s}}
state: {{dir: "{folder / "state"}"}}
providers:
  up:
    kind: openai
    base_url: "http://127.0.0.1:{upstream}/v1"
    key: "${{UPSTREAM_KEY}}"
    allow_http: true
    allow_private: true
    {limits}
targets:
  main: {{model: up/gpt-4o-mini, {limits}}}
  spare: {{model: up/gpt-4o, {limits}}}
chains:
  smart: {{try: [main, spare], max_cost_usd: 5}}
tiers:
  bench: {{{limits}}}
teams:
  load: {{tier: bench}}
keys:
  - {{name: bench, team: load, hash: "sha256:{digest}", {limits}}}
prices:
  up/gpt-4o-mini: [{{input: 0.15, cached_input: 0.075, output: 0.60}}]
  up/gpt-4o: [{{input: 2.50, cached_input: 1.25, output: 10.00}}]
observe:
  logs: {{format: json}}
"""


_NGINX = """\
daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn; @U@
worker_rlimit_nofile 20000;
events { worker_connections 8192; }
http {
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s;
  client_max_body_size 32m; client_body_buffer_size 64k;
  client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4;
  scgi_temp_path t5;
  upstream up {
    server 127.0.0.1:@UP@;
    keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 600s;
  }
  server {
    listen 127.0.0.1:@PORT@ reuseport backlog=4096;
    location / {
      proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }
  }
}
"""
