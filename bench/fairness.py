"""Two keys on one target: what one that asks fifty times as much does to the other.

    .venv/bin/python bench/fairness.py [--seconds 30] [--rate 20] [--times 50]

The modest key asks alone first, then beside the greedy one; both at fixed rates, whatever they are
answered. The target has 20 slots; an answer takes 100 ms, of the greedy key between 60 and 140 ms,
or all slots would come free at the same moment. The modest key needs a tenth, the greedy one
would need five times as many as there are. Promised: the modest key succeeds in 99.9 % and its p95
at most doubles. Upstream and load share a CPU, the gateway has the other.
"""

import argparse
import asyncio
import hashlib
import json
import random
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from machine import OUT, ROOT, Process, Unable, busy, cpus, free_port, tree, used

SLOTS, GAP = 20, 0.02  # seconds a token of an answer
TOKENS = {"modest": (5, 5), "greedy": (3, 7)}  # of an answer, from and to
DICE = random.Random(1)
KEYS = {name: f"sk-bench-{name}-0123456789abcdef0123456789abcdef" for name in ("modest", "greedy")}
PATIENCE = 30.0


@dataclass
class Heard:
    """Of one key: seconds of each good answer, and how many there were of each status."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def p(self, share: int) -> float:
        """Milliseconds."""
        return statistics.quantiles(self.seconds, n=100)[share - 1] * 1000

    @property
    def good(self) -> float:
        return self.statuses[200] / max(1, self.statuses.total())

    def told(self) -> str:
        others = {status: n for status, n in sorted(self.statuses.items()) if status != 200}
        return (
            f"{self.statuses.total():6} asked  {self.good:8.3%} good  p50 {self.p(50):6.1f} ms"
            f"  p95 {self.p(95):6.1f} ms  p99 {self.p(99):6.1f} ms  {others or ''}"
        )


def configuration(port: int, upstream: int) -> str:
    keys = ""
    for name, key in KEYS.items():
        digest = hashlib.sha256(key.encode()).hexdigest()
        keys += f"  - {{name: {name}, tier: t, hash: 'sha256:{digest}'}}\n"
    return (
        f"server: {{listen: '127.0.0.1:{port}', admin: '127.0.0.1:0'}}\n"
        f"state: {{dir: '{OUT}/fairness/state'}}\n"
        f"providers: {{p: {{kind: openai, base_url: 'http://127.0.0.1:{upstream}/p/v1', key: x,"
        " allow_http: true, allow_private: true}}\n"
        f"targets: {{main: {{model: p/m, limits: {{concurrency: {SLOTS}}}}}}}\n"
        "chains: {smart: [main]}\nprices: {p/m: free}\n"
        f"tiers: {{t: {{when_full: {{wait: 2s}}}}}}\nkeys:\n{keys}"
    )


def wire(key: str, tokens: int) -> bytes:
    hello = [{"role": "user", "content": "hello"}]
    body = json.dumps({"model": "smart", "max_tokens": tokens, "messages": hello})
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()


async def ask_at(rate: float, seconds: float, port: int, key: str, heard: Heard) -> None:
    """So many a second, on connections of their own, none waiting for another."""
    wires = [wire(KEYS[key], tokens) for tokens in range(TOKENS[key][0], TOKENS[key][1] + 1)]
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    loop = asyncio.get_running_loop()

    async def ask() -> None:
        began = loop.time()
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(PATIENCE):
            writer.write(DICE.choice(wires))
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
        status = int(head[9:12])
        heard.statuses[status] += 1
        if status == 200:
            heard.seconds.append(loop.time() - began)
        idle.append((reader, writer))

    began = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
            group.create_task(ask())
    for _, writer in idle:
        writer.close()


async def play(port: int, rate: float, times: float, seconds: float) -> tuple[Heard, Heard, Heard]:
    solo, beside, greedy = Heard(), Heard(), Heard()
    await ask_at(rate, 1, port, "modest", Heard())
    await ask_at(rate, seconds, port, "modest", solo)
    async with asyncio.TaskGroup() as group:
        group.create_task(ask_at(rate * times, seconds, port, "greedy", greedy))
        group.create_task(ask_at(rate, seconds, port, "modest", beside))
    return solo, beside, greedy


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=50.0, help="of each of the two parts")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second, modest key")
    parser.add_argument("--times", type=float, default=50.0, help="as many from the greedy one")
    asked = parser.parse_args(arguments)
    folder = OUT / "fairness"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    server, load, said = cpus()
    port, upstream = free_port(), free_port()
    (folder / "gateway.yaml").write_text(configuration(port, upstream))
    python = sys.executable
    wishes = ["--port", str(upstream), "--gap", str(GAP), "--tokens", "10"]
    processes = [
        Process(
            [*load, python, "-m", "chaos.upstream", *wishes], folder / "upstream.log", cwd=ROOT
        ),
        Process(
            [*server, python, "-m", "gateway", "serve", "-q", "-c", str(folder / "gateway.yaml")],
            folder / "gateway.log",
            cwd=ROOT,
        ),
    ]
    try:
        processes[1].wait_for(f"http://127.0.0.1:{port}/readyz")
        pids, before = tree(processes[1].pid), busy()
        began = used(pids).all
        solo, beside, greedy = asyncio.run(play(port, asked.rate, asked.times, asked.seconds))
        spent, after = used(pids).all - began, busy()
    except Unable as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        for process in processes:
            process.end()
    slower = beside.p(95) / solo.p(95)
    kept = beside.good >= 0.999 and slower <= 2
    print(f"{asked.rate:g}/s and {asked.times:g} times as much, {SLOTS} slots;"
          f" {said}")  # fmt: skip
    for name, heard in (("modest, alone", solo), ("modest, beside", beside), ("greedy", greedy)):
        print(f"{name:15}{heard.told()}")
    share = (after[0] - before[0]) / max(1, after[1] - before[1])
    each = spent / 1e3 / (2 * solo.statuses.total() + greedy.statuses.total())
    print(f"the gateway took {each:.0f} µs CPU a request; the machine was {share:.0%} busy")
    print(f"p95 beside / alone: {slower:.2f}; the promise is {'kept' if kept else 'BROKEN'}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
