"""Promise of gateway.md 5.1: no minute, wherever it begins, sees more than its limit.

Four workers, twice as much load as is allowed, one worker killed under way and another one joining
in its place; a provider that counts in sliding windows says what came through. In the suite time
runs five times as fast for the gateway, which makes nothing easier: what a call takes weighs five
times as much. `make soak` takes five minutes of real time.
"""

import asyncio
import faulthandler
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chaos.answers import Manner
from chaos.strict import Allowed, Tally
from chaos.upstream import UpstreamThread
from tests.end_to_end.load import PATIENCE, Connection
from tests.support.processes import Gateway, Nursery

WORKERS = 4
PROMPT = "Say something about the river."
TOKENS = 40  # of an answer
SLOTS = 8


@dataclass(frozen=True, slots=True)
class Scene:
    """How long, how fast, how much; seconds are real ones.

    `rpm` and `tpm` per minute of the gateways; a minute of theirs is 60 / `pace` seconds. `latency`
    of an answer: SLOTS / latency requests a second fit into the slots.
    """

    seconds: float
    pace: float
    rpm: int
    tpm: int
    latency: float

    @property
    def minute(self) -> float:
        return 60 / self.pace

    def load(self, model: str) -> float:
        """Requests a second: twice what the limit of this model allows."""
        each = len(PROMPT) // 4 + 1 + TOKENS
        fits = {
            "rpm": self.rpm / self.minute,
            "tpm": self.tpm / each / self.minute,
            "slots": SLOTS / self.latency,
        }
        return 2 * fits[model]

    def config(self, base_url: str, state: Path) -> str:
        return (
            "server: {listen: 127.0.0.1:0, admin: 127.0.0.1:0, lame_duck: 0s, drain: 5s}\n"
            f"state: {{dir: {state}}}\n"
            f'providers: {{p: {{kind: openai, base_url: "{base_url}", key: one,'
            " allow_http: true, allow_private: true}}\n"
            "targets:\n"
            f"  a: {{model: p/rpm, limits: {{rpm: {self.rpm}}}}}\n"
            f"  b: {{model: p/tpm, limits: {{tpm: {self.tpm}}}}}\n"
            f"  c: {{model: p/slots, limits: {{concurrency: {SLOTS}}}}}\n"
            "chains: {rpm: [a], tpm: [b], slots: [c]}\n"
            "prices: {p/rpm: free, p/tpm: free, p/slots: free}\n"
        )


SUITE = Scene(seconds=20, pace=5, rpm=600, tpm=30_000, latency=0.16)
SOAK = Scene(seconds=300, pace=1, rpm=3_000, tpm=150_000, latency=0.16)


@dataclass
class Crowd:
    """Callers that ask at a fixed rate, whatever they are answered; each is some worker's."""

    port: int
    heard: Counter[tuple[str, int]] = field(default_factory=Counter)
    broken: int = 0
    over: bool = False

    async def ask(self, model: str, rate: float, group: asyncio.TaskGroup) -> None:
        """So many callers that none has to wait for its own last answer."""
        callers = max(8, int(rate))
        for number in range(callers):
            group.create_task(self._call(model, callers / rate, number / rate))

    async def _call(self, model: str, period: float, delay: float) -> None:
        asked = {"model": model, "max_tokens": TOKENS,
                 "messages": [{"role": "user", "content": PROMPT}]}  # fmt: skip
        body = json.dumps(asked)
        wire = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        ).encode()
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        line: Connection | None = None
        while not self.over:
            await asyncio.sleep(max(0.0, due - loop.time()))
            due = max(due + period, loop.time())
            try:
                if line is None or not line.usable:
                    _, line = await loop.create_connection(
                        lambda: Connection(lambda: None), "127.0.0.1", self.port
                    )
                async with asyncio.timeout(PATIENCE):
                    head, _ = await line.ask(wire)
            except ConnectionError:
                self.broken += 1
            else:
                self.heard[model, int(head[9:12])] += 1
        if line is not None:
            line.close()


async def play(
    scene: Scene, nursery: Nursery, simulator: UpstreamThread, folder: Path
) -> tuple[Crowd, dict[str, Tally], dict[str, float]]:
    """Who heard what, what the provider counted, and the mean use of a minute, 1: all of it."""
    minute = scene.minute
    simulator.manner("p", Manner(tokens=TOKENS, latency=scene.latency))
    simulator.strict("p", {
        "rpm": Allowed(rpm=scene.rpm, span=minute),
        "tpm": Allowed(tpm=scene.tpm, span=minute),
        "slots": Allowed(concurrency=SLOTS, span=minute),
    })  # fmt: skip
    file = folder / "gateway.yaml"
    file.write_text(scene.config(simulator.base_url("p"), folder / "state"))
    words = ["serve", "-c", file, "--quiet", "--workers", WORKERS]
    gateway = nursery.start(words, folder / "log", pace=scene.pace)
    try:
        crowd = Crowd(await gateway.up())
        before = workers(gateway)
        began = time.monotonic()

        async def until(share: float) -> None:
            await asyncio.sleep(began + scene.seconds * share - time.monotonic())

        async with asyncio.TaskGroup() as group:
            for model in ("rpm", "tpm", "slots"):
                await crowd.ask(model, scene.load(model), group)
            await until(0.4)
            os.kill(min(before), signal.SIGKILL)
            await until(1.0)
            crowd.over = True
        after = workers(gateway)
        assert (len(before), len(after), len(before & after)) == (WORKERS, WORKERS, WORKERS - 1)
    finally:
        gateway.signal(signal.SIGTERM)
        await gateway.ended()
    used = usage(scene, simulator, began)
    return crowd, {model: told for (_, model), told in simulator.tallies("p").items()}, used


def workers(gateway: Gateway) -> set[int]:
    """Process ids: those the supervisor forked."""
    children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text()
    return {int(pid) for pid in children.split()}


def usage(scene: Scene, simulator: UpstreamThread, began: float) -> dict[str, float]:
    """Calls and tokens in the minutes that end between the first full one and the end."""
    minute, used = scene.minute, {"rpm": 0.0, "tpm": 0.0}
    ends = [began + minute + n * (scene.seconds - minute) / 40 for n in range(41)]
    for call in simulator.calls("p"):
        model = json.loads(call.body)["model"] if call.body else ""
        amount = {
            "rpm": 1 / scene.rpm,
            "tpm": (call.prompt_tokens + call.completion_tokens) / scene.tpm,
        }
        if model in used:
            used[model] += amount[model] * sum(end - minute < call.started <= end for end in ends)
    return {model: sum_ / len(ends) for model, sum_ in used.items()}


def judge(scene: Scene, crowd: Crowd, tallies: dict[str, Tally], used: dict[str, float]) -> str:
    told = (
        f"violations {[tally.violations for tally in tallies.values()]}, used {used}, most at once"
        f" {tallies['slots'].most_at_once}, heard {dict(crowd.heard)}, broken {crowd.broken}"
    )
    assert set(tallies) == {"rpm", "tpm", "slots"}
    assert [tally.violations for tally in tallies.values()] == [{}, {}, {}], told
    assert used["rpm"] >= 0.90, told
    assert used["tpm"] >= 0.85, told
    assert tallies["slots"].most_at_once == SLOTS, told
    assert {status for _, status in crowd.heard} == {200, 429}, told
    for model in tallies:
        asked = sum(n for (one, _), n in crowd.heard.items() if one == model)
        assert asked > 0.75 * scene.seconds * scene.load(model), f"too little load: {told}"
        assert crowd.heard[model, 429] > 0.2 * asked, told
    return told


async def test_no_minute_exceeds_its_limit_over_four_workers_of_which_one_dies_and_one_joins(
    nursery: Nursery,
    simulator: UpstreamThread,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    told = judge(SUITE, *await play(SUITE, nursery, simulator, tmp_path))
    record_property("limits", told)
    print(told)


@pytest.mark.soak
async def test_five_minutes_at_twice_the_limits(
    nursery: Nursery,
    simulator: UpstreamThread,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    faulthandler.cancel_dump_traceback_later()  # it is long, not stuck: the end is bounded
    told = judge(SOAK, *await play(SOAK, nursery, simulator, tmp_path))
    record_property("limits", told)
    print(told)
