"""The strict provider misses no window, and sees none that is not there."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from chaos.answers import Manner
from chaos.strict import Allowed, Meter
from chaos.upstream import Upstream
from tests.unit.chaos.test_upstream import HELLO, PROMPT, request


def asked(model):
    return {"model": model, "messages": HELLO}


moments = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=40)


@given(moments, st.integers(0, 6), st.integers(0, 30))
def test_it_counts_every_call_and_token_that_makes_a_window_too_full(calls, rpm, tpm):
    """Against the plain definition: at each moment, what came in the 60 s up to it."""
    calls = sorted((float(10 * at), tokens) for at, tokens in calls)
    meter = Meter(Allowed(rpm=rpm, tpm=tpm))
    for now, tokens in calls:
        meter.began(now)
        meter.used(now, tokens)
        meter.over()
    windows = [
        [n for at, n in calls[: last + 1] if at > calls[last][0] - 60] for last in range(len(calls))
    ]
    tally = meter.tally
    assert tally.violations.get("rpm", 0) == sum(len(window) > rpm for window in windows)
    assert tally.violations.get("tpm", 0) == sum(sum(window) > tpm for window in windows)
    assert tally.most_calls == max(map(len, windows), default=0)
    assert tally.most_tokens == max(map(sum, windows), default=0)
    assert (tally.calls, tally.tokens) == (len(calls), sum(n for _, n in calls))


async def test_each_key_and_model_is_counted_apart_and_nobody_is_refused():
    async with Upstream(Manner(tokens=3, latency=0.05)) as up:
        up.strict("p", {"m": Allowed(rpm=2, tpm=12, concurrency=1)})

        async def call(key, model="m"):
            reader, writer = await asyncio.open_connection("127.0.0.1", up.port)
            wire = request("p", asked(model))
            writer.write(wire.replace(b"host:", b"authorization: Bearer " + key + b"\r\nhost:"))
            told = await reader.read()
            writer.close()
            return told[9:12]

        told = await asyncio.gather(*(call(b"one") for _ in range(3)))
        told += [await call(b"two"), await call(b"two"), await call(b"one", "free")]
        assert set(told) == {b"200"}
        one, two = up.tallies("p")["Bearer one", "m"], up.tallies("p")["Bearer two", "m"]
        each = PROMPT + 3
        assert (one.calls, one.tokens, one.most_at_once) == (3, 3 * each, 3)
        assert one.violations == {"rpm": 1, "concurrency": 2, "tpm": 2}
        assert two.violations == {"tpm": 1}
        assert len(up.tallies("p")) == 2
