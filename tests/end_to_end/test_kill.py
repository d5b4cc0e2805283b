"""Promise 26: the ledger is the simulator's invoice at every crash point, over 200 kill -9.

An answer is settled in the journal before its last byte leaves: only what a caller does not have
to the end may be an estimate.
"""

import asyncio
import faulthandler
import os
import random
import signal
import time
from collections import Counter
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
SEED = 20_260_912

TROUBLE = (
    *(None,) * 14,
    faults.rate_limited(None, 3),
    faults.overloaded(),
    faults.slow(0.02),
    faults.cut(5),
    faults.cut(5, how="chunk"),
    faults.usage_missing(),
)


def mix(name: str, caller: int, rng: random.Random) -> Ask:
    """The first caller's answer never ends and is far enough to leave a checkpoint."""
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


@pytest.mark.xdist_group("kill")
async def test_200_kills_under_load_cost_no_attempt_its_row_and_no_row_its_truth(
    place: Place,
) -> None:
    faulthandler.cancel_dump_traceback_later()  # it is long, not stuck: see the bound at the end
    began = time.monotonic()
    rng = random.Random(SEED)
    tempt(place.simulator, rng)
    load = Load(CALLERS, mix, rng)
    ways: Counter[str] = Counter()
    for _ in range(KILLS):
        gateway = place.start("--quiet")
        way = rng.choices(("starting", "any time", "last byte"), (2, 5, 3))[0]
        ways[way] += 1
        if way == "starting":
            await asyncio.sleep(rng.uniform(0, 0.06))
            gateway.kill()
        else:
            port = await gateway.up()
            answers = rng.randint(1, 30) if way == "last byte" else 0

            def count() -> None:
                nonlocal answers
                answers -= 1
                if answers == 0:
                    gateway.kill()

            load.last_byte = count
            async with load.on(port):
                await asyncio.sleep(rng.uniform(0, 0.25) if way == "any time" else 1.0)
                gateway.kill()
        assert await gateway.ended() == -signal.SIGKILL
    seconds = time.monotonic() - began
    last = place.start("--quiet")
    await last.up()
    last.signal(signal.SIGTERM)
    assert await last.ended() == 0
    books = place.books()
    calls = place.simulator.calls()
    from tests.end_to_end import books as module
    if os.environ.get("NOAUDIT"):
        bad=[r for r in books.rows.values() if r.lost and {h.ask.name:h for h in load.heard}[r.session].whole]
        print("WHOLE BUT LOST", len(bad), [ (b.attempt_id) for b in bad][:5])
    print(ways, seconds, len(load.heard), len(calls), Counter(h.fate for h in load.heard))
    print(Counter((r.provider,r.outcome,r.flags) for r in books.rows.values()), books.files, books.cursors)
    found = audit(books, calls, load.heard, PRICES)
    print(found)
