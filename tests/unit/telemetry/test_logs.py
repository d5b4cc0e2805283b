"""Lines: what they say, what they never say, and that nobody waits for them."""

import errno
import io
import logging
import time
from datetime import date

import pytest

from gateway.core.alerts import Mover, SpendRule
from gateway.core.audit import Act, Seal, line_after
from gateway.core.events import (
    AttemptEnded,
    Audited,
    BreakerMoved,
    GuardMoved,
    KeyAside,
    Lifecycle,
    Reloaded,
    RequestEnded,
    SpendAlert,
    StateTrouble,
    StoreMoved,
)
from gateway.core.target import Cause
from gateway.core.usage import NANO
from gateway.errors import UpstreamFailed
from gateway.telemetry.logs import PIECE, RequestLog
from gateway.wire import json
from tests.support.clock import ManualClock
from tests.unit.telemetry.stories import CANARY, CLAUDE, GPT, exchange

NOW = 1_800_000_000.412


def log(form="json", **options):
    out = io.StringIO()
    return RequestLog(ManualClock(), form, out, lambda: "abc123", **options), out


def lines(out):
    return [json.loads(line.encode()) for line in out.getvalue().splitlines()]


def test_a_request_is_one_line():
    made, out = log()
    ended = exchange((GPT, Cause.FIRST_TOKEN), (CLAUDE, None), stream=True)
    made.heard(AttemptEnded(ended, ended.attempts[0]))
    made.heard(RequestEnded(ended, NOW))
    assert out.getvalue() == ""  # nothing is written in the request's turn
    made.flush()
    (line,) = lines(out)
    assert line["ts"] == "2027-01-15T08:00:00.412Z"
    assert (line["level"], line["event"], line["request_id"]) == ("info", "request", "req_1")
    assert (line["key"], line["user"], line["chain"]) == ("search-prod", "u_1", "default")
    assert (line["target"], line["status"], line["stream"]) == ("claude", 200, True)
    assert [a["outcome"] for a in line["attempts"]] == ["first_token", "ok"]
    assert line["tokens"]["output"] == 20
    assert (line["cost_usd"], line["config"]) == ("0.00012", "abc123")


def test_beside_other_processes_each_write_is_whole_lines_that_a_pipe_takes_at_once():
    made, out = log(shared=True)
    writes = []
    out.write = writes.append
    for size in (300, 5_000, 300, 2_000, 2_500, 100):
        made.say({"level": "info", "event": "log", "message": "x" * size})
    made.flush()
    assert len([line for text in writes for line in text.splitlines()]) == 6
    assert all(text.endswith("\n") for text in writes)
    assert [len(text) <= PIECE for text in writes] == [True, False, True, True]


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_line_holds_a_prompt_a_key_an_address_or_an_upstream_s_words(form):
    made, out = log(form)
    made.heard(
        RequestEnded(exchange((GPT, Cause.AUTH), status=502, error=UpstreamFailed("no")), NOW)
    )
    made.heard(RequestEnded(exchange((GPT, None)), NOW))
    made.flush()
    assert out.getvalue().count("\n") == 2
    assert CANARY not in out.getvalue()


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (
            BreakerMoved("gpt#a", "gpt", "closed", "open", "5 failures"),
            {"event": "breaker", "level": "warning", "target": "gpt", "to": "open"},
        ),
        (BreakerMoved("gpt#a", "gpt", "half-open", "closed", ""), {"level": "info"}),
        (
            KeyAside("gpt", "openai", "main", "auth", 60.0),
            {"event": "key", "level": "error", "cause": "auth", "seconds": 60},
        ),
        (Reloaded("abc", "", NOW), {"event": "config", "level": "info", "config": "abc"}),
        (
            Reloaded("abc", "line 3", NOW),
            {"event": "config", "level": "error", "problem": "line 3"},
        ),
        (Lifecycle("draining", "SIGTERM"), {"event": "drain", "detail": "SIGTERM"}),
        (StateTrouble("sqlite", "ship", "disk full"), {"event": "state", "op": "ship"}),
        (
            StoreMoved("redis", True, "timeout"),
            {"event": "store", "level": "error", "lost": True, "detail": "timeout"},
        ),
        (StoreMoved("redis", False), {"event": "store", "level": "info", "lost": False}),
        (
            GuardMoved("low", crowded=False, why="late"),
            {"event": "guard", "level": "warning", "sheds": "low", "detail": "late"},
        ),
        (GuardMoved("nobody", crowded=False, why=""), {"event": "guard", "level": "info"}),
        (
            SpendAlert(Mover("k", "u", 12 * NANO, 7, 3), date(2027, 1, 15), SpendRule()),
            {"event": "spend", "level": "warning", "key": "k", "user": "u", "day": "2027-01-15"}
            | {"spent_usd": "12", "usual_usd": "0.000000003"},
        ),
    ],
)
def test_other_events_are_lines_too(event, told):
    made, out = log()
    made.heard(event)
    made.flush()
    assert told.items() <= lines(out)[0].items()
    text, out = log("text")
    text.heard(event)
    text.flush()
    assert out.getvalue().count("\n") == 1


def test_a_line_of_the_audit_bears_witness_in_json_and_spares_people():
    line = line_after(Seal(6, "a" * 64), 0, Act("operator", "drain"), "c0ffee")
    for form, told in (("json", 1), ("text", 0)):
        made, out = log(form)
        made.heard(Audited(line))
        made.flush()
        assert out.getvalue().count("\n") == told
        assert all(
            found.items() >= {"event": "audit", "seq": 7, "hash": line.hash}.items()
            for found in lines(out)
        )


def test_text_obeys_no_control_characters():
    made, out = log("text")
    made.heard(StateTrouble("sqlite", "ship", "a\x1b[2Jb\nc"))
    ended = exchange((GPT, None))
    ended.chain_name = "a\x1b]0;x\x07"
    made.heard(RequestEnded(ended, NOW))
    made.flush()
    assert "\x1b[2J" not in out.getvalue()
    assert "\x07" not in out.getvalue()
    assert out.getvalue().count("\n") == 2


def test_auto_is_json_where_nobody_looks():
    made, out = log("auto")
    made.heard(Lifecycle("started"))
    made.flush()
    assert lines(out)[0]["event"] == "start"


def test_none_says_nothing():
    made, out = log("none")
    made.heard(Lifecycle("started"))
    made.say({"event": "log"})
    made.flush()
    assert out.getvalue() == ""


def test_what_does_not_fit_is_dropped_counted_and_told():
    made, out = log(kept=3)
    for _ in range(10):
        made.heard(Lifecycle("started"))
    assert made.dropped == 7
    made.flush()
    told = lines(out)
    assert len(told) == 4
    assert told[-1]["dropped"] == 7
    made.flush()
    assert len(lines(out)) == 4


def test_a_blocked_stdout_holds_nobody_up():
    class Blocked(io.StringIO):
        def write(self, text):
            time.sleep(0.5)
            return len(text)

    made = RequestLog(ManualClock(), "json", Blocked(), kept=10)
    with made:
        began = time.perf_counter()
        for _ in range(1000):
            made.heard(Lifecycle("started"))
        assert time.perf_counter() - began < 0.4
    assert made.dropped > 0


def test_a_stdout_that_is_gone_ends_the_log_quietly():
    tried = []

    class Gone(io.StringIO):
        def write(self, text):
            tried.append(text)
            raise BrokenPipeError

    made = RequestLog(ManualClock(), "json", Gone())
    made.heard(Lifecycle("started"))
    made.flush()
    made.heard(Lifecycle("stopped"))
    made.flush()
    assert len(tried) == 1


def test_a_full_disk_does_not_end_the_log():
    class Full(io.StringIO):
        full = True

        def write(self, text):
            if self.full:
                raise OSError(errno.ENOSPC, "no room")
            return super().write(text)

    out = Full()
    made = RequestLog(ManualClock(), "json", out)
    made.heard(Lifecycle("started"))
    made.flush()
    out.full = False
    made.heard(Lifecycle("stopped"))
    made.flush()
    assert '"stop"' in out.getvalue()


def test_the_thread_writes_by_itself_and_ends_with_the_log():
    made, out = log()
    with made:
        made.heard(Lifecycle("started"))
        end = time.monotonic() + 3
        while not out.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
        assert lines(out)
        made.heard(Lifecycle("stopped"))
    assert [line["event"] for line in lines(out)] == ["start", "stop"]


def test_third_parties_speak_through_us_and_their_exceptions_without_their_words():
    made, out = log()
    foreign = logging.getLogger("aiohttp.server")
    with made:
        foreign.warning("slow %s", CANARY)
        foreign.info("not told")
        try:
            raise KeyError(CANARY)
        except KeyError:
            foreign.exception("a request failed: %s", CANARY)
    told = lines(out)
    assert [(line["level"], line["event"]) for line in told] == [
        ("warning", "log"),
        ("error", "log"),
    ]
    assert told[0]["message"] == "slow %s"
    assert told[1]["message"] == "KeyError"
    assert told[1]["at"][0].endswith(f"test_logs.py:{told[1]['at'][0].rpartition(':')[2]}")
    assert CANARY not in out.getvalue()


def test_the_handlers_of_before_are_put_back():
    before = logging.getLogger().handlers[:]
    made, _ = log()
    with made:
        assert logging.getLogger().handlers != before
    assert logging.getLogger().handlers == before
