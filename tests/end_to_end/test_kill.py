"""Promise 26: the ledger is the simulator's invoice at every crash point, over 200 kill -9.

What may be an estimate: the attempt of a request whose answer its caller does not have to the end,
because the gateway was killed; and one whose upstream broke off or told no usage. There is no
window between the two: an attempt is settled in the journal before its answer's last byte leaves.
"""

import asyncio
import faulthandler
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos import faults
from chaos.answers import Manner
from chaos.upstream import UpstreamThread
from tests.end_to_end.books import audit
from tests.end_to_end.load import Ask, Load
from tests.end_to_end.place import PRICES, Place

KILLS = int(os.environ.get("GATEWAY_TEST_KILLS", "200"))
CALLERS = 16
SETTLING = 0.004  # seconds from a gateway's own journal to the end of the one before it
SEED = 20_260_912
A_KILL = 1.0  # seconds it may take, restart included, on a machine that is busy with other things

TROUBLE = (
    *(None,) * 14,
    faults.rate_limited(None, 3),
    faults.overloaded(),
    faults.reset(),
    faults.slow(0.02),
    faults.cut(5),
    faults.cut(5, how="chunk"),
    faults.usage_missing(),
)


class Nth:
    """Acts in the very turn it is called for the `n`th time."""

    def __init__(self, n: int, act: Callable[[], None]) -> None:
        self.done = asyncio.Event()
        self._left = n
        self._act = act

    def __call__(self) -> None:
        self._left -= 1
        if not self._left:
            self._act()
            self.done.set()


def mix(name: str, caller: int, rng: random.Random) -> Ask:
    """The first caller's answer never ends, and is long enough to leave a checkpoint."""
    if caller == 0:
        return Ask(name, "long", "Go on and on.", stream=True)
    prompt = "Say something about the river. " * rng.randint(1, 8)
    stream = rng.random() < 0.5
    return Ask(name, "smart", prompt, stream, stream and rng.random() < 0.5, rng.randint(1, 16))


def tempt(simulator: UpstreamThread, rng: random.Random) -> None:
    simulator.manner("first", Manner(tokens=16, ttft=0.002, gap=0.002))
    simulator.manner("second", Manner(tokens=12, ttft=0.001, gap=0.001))
    simulator.manner("long", Manner(tokens=600))
    simulator.set("long", faults.stall(after=500))
    simulator.script("first", rng.choices(TROUBLE, k=100_000))


async def kill(place: Place, load: Load, way: str, rng: random.Random) -> None:
    """One life and its end."""
    gateway = place.start("--quiet")
    if way == "starting":
        await asyncio.sleep(rng.uniform(0, 0.05))
        gateway.kill()
    elif way == "settling":  # what the one before left: it begins when its own journal is there
        left = journals(place)
        async with asyncio.timeout(20):
            while not journals(place) - left:
                await asyncio.sleep(0)
        moment = time.perf_counter() + rng.uniform(0, SETTLING)
        while time.perf_counter() < moment:
            pass
        gateway.kill()
    else:
        port = await gateway.up()
        last_byte = load.last_byte = Nth(rng.randint(1, 60), gateway.kill)
        async with load.on(port), asyncio.timeout(20):
            if way == "any time":
                await asyncio.sleep(rng.uniform(0, 0.3))
                gateway.kill()
            else:
                await last_byte.done.wait()
    assert await gateway.ended() == -signal.SIGKILL


def journals(place: Place) -> set[Path]:
    return set(place.state.glob("journal-*"))


@pytest.mark.xdist_group("kill")
async def test_200_kills_under_load_cost_no_attempt_its_row_and_no_row_its_truth(
    place: Place, record_property: Callable[[str, object], None]
) -> None:
    faulthandler.cancel_dump_traceback_later()  # it is long, not stuck: the end is bounded
    rng = random.Random(SEED)
    tempt(place.simulator, rng)
    load = Load(CALLERS, mix, rng)
    ways: Counter[str] = Counter()
    began = time.monotonic()
    for _ in range(KILLS):
        (way,) = rng.choices(("starting", "settling", "any time", "last byte"), (1, 4, 7, 8))
        await kill(place, load, way, rng)
        ways[way] += 1
    seconds = time.monotonic() - began
    last = place.start("--quiet")
    await last.up()
    last.signal(signal.SIGTERM)
    assert await last.ended() == 0

    books, calls = place.books(), place.simulator.calls()
    found = audit(books, calls, load.heard, PRICES)
    told = f"{KILLS} kills {dict(ways)} in {seconds:.1f} s, {len(load.heard)} requests: {found}"
    record_property("kills", told)
    print(told)
    invoice = place.simulator.invoice()
    assert invoice.prompt_tokens == sum(call.prompt_tokens for call in calls)
    assert invoice.completion_tokens == sum(call.completion_tokens for call in calls)
    served = ways["any time"] + ways["last byte"]
    assert found.lost <= CALLERS * served  # a request has one attempt under way at a time
    assert found.whole > 5 * served  # it was under load
    assert found.counted > served // 2  # and some of it had left a checkpoint
    assert books.cursors == 0
    assert not [name for name in books.files if "journal-" in name]
    assert seconds < 20 + A_KILL * KILLS
