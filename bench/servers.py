"""What is measured: the upstream itself, nginx or plain aiohttp before it, and the gateway."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sqlite3
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from bodies import BODIES
from machine import HERE, OUT, Process, Unable, ask, free_port, resident, tree, used

CHAT = "/v1/chat/completions"
COST = "0.0001086"  # of fakeup's usage, 212 + 128 tokens, at the prices below
QUIET = 0.06  # of one CPU: below it a server has nothing left to do
PATIENCE = 4.0  # seconds to become quiet


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
        time.sleep(0.3)
        self.quiet()
        self.idle_mb = resident(self.pids)

    def quiet(self) -> float:
        """Wait until what the load left behind is done; CPU seconds that took."""
        return 0.0

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
    """`python -m gateway serve` of a checkout, with everything on."""

    def __init__(
        self, upstream: int, pinned: list[str], extra: list[str], name: str, root: Path
    ) -> None:
        self.folder = OUT / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.admin = free_port()
        key, self._admin_key = f"sk-bench-{secrets.token_hex(16)}", secrets.token_hex(16)
        port = free_port()
        config = self.folder / "gateway.yaml"
        config.write_text(configuration(port, self.admin, upstream, self.folder, key))
        self._lines = (self.folder / "requests.jsonl").open("wb")
        command = [*pinned, sys.executable, "-m", "gateway", "serve", "-c", str(config), *extra]
        env = os.environ | {"GATEWAY_ADMIN_KEY": self._admin_key, "UPSTREAM_KEY": "sk-upstream"}
        log = OUT / f"{name}.log"
        log.unlink(missing_ok=True)
        process = Process(command, log, cwd=root, env=env, stdout=self._lines)
        super().__init__(name, port, process)
        self.headers = {"Authorization": f"Bearer {key}"}

    def quiet(self) -> float:
        began = before = used(self.pids).all
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(0.3)  # longer than the gateway's slowest batch
            now = used(self.pids).all
            if now - before < QUIET * 0.3e9:
                break
            before = now
        return (used(self.pids).all - began) / 1e9

    def check(self) -> None:
        super().check()
        status, _, _ = ask(f"http://127.0.0.1:{self.port}{CHAT}", BODIES["1k"], {})
        if status != 401:
            raise Unable(f"{self.name} answered {status} to a caller without a key")

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


class Plain(Server):
    """aiohttp on both sides and nothing between: what Python itself costs on this machine."""

    def __init__(self, upstream: int, pinned: list[str]) -> None:
        port = free_port()
        log = OUT / "plain.log"
        log.unlink(missing_ok=True)
        command = [*pinned, sys.executable, str(HERE / "plain.py"), str(port), str(upstream)]
        super().__init__("plain", port, Process(command, log))


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


def configuration(port: int, admin: int, upstream: int, folder: Path, key: str) -> str:
    """Everything on: keys, all limits at every level, prices, a fallback that is never needed."""
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
daemon off; worker_processes 1; pid nginx.pid; error_log stderr error; @U@
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
