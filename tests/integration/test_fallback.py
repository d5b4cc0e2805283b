"""Every way an upstream fails, met by the whole gateway over sockets: who answers, who is asked,
who pays, and how soon whoever is no longer needed is let go.
"""

import collections
import contextlib
import json
import re
import statistics
import threading
import time
from dataclasses import dataclass
from decimal import Decimal

import openai
import pytest

from chaos import faults
from chaos.answers import Manner, words
from chaos.upstream import UpstreamThread
from tests.integration.rig import MESSAGES, Gateway, Line, ask, chat, post, provider, until

SOON = 0.25  # seconds: the promise for letting an upstream go
SILENT = 0.25  # seconds a silent target is given in these tests
SECOND = Manner(voice="second")  # the fallback says something else
FIRST_TEXT = "".join(words(MESSAGES, Manner()))
SECOND_TEXT = "".join(words(MESSAGES, SECOND))


@dataclass(frozen=True)
class Expected:
    """What becomes of a fault at the first of two targets.

    `how`: ok (the first answers), next (the second does), broken (an error event after content),
    told (an error of this `status` and `code`). `causes`: of the first target's attempts.
    """

    how: str
    causes: tuple[str, ...] = ()
    status: int = 200
    code: str = ""


def next_(*causes):
    return Expected("next", causes)


def told(cause, status, code):
    return Expected("told", (cause,), status, code)


def broken(cause):
    return Expected("broken", (cause,))


OK = Expected("ok")
TWICE = next_("malformed", "malformed")
FAILED_TWICE = next_("server_error", "server_error")
SILENCE = (next_("first_token"), next_("timeout"))

# fault, what comes of it in a stream, and without streaming
CASES = {
    "status": (faults.status(418), *[told("bad_request", 418, "invalid_request")] * 2),
    "rate_limited": (faults.rate_limited(), *[next_("rate_limited")] * 2),
    "quota": (faults.quota(), *[next_("quota")] * 2),
    "auth": (faults.auth(), *[next_("auth")] * 2),
    "model_gone": (faults.model_gone(), *[next_("model_gone")] * 2),
    "context_length": (
        faults.context_length(),
        *[told("context_length", 400, "context_length_exceeded")] * 2,
    ),
    "content_filter": (
        faults.content_filter(),
        *[told("content_policy", 400, "content_filter")] * 2,
    ),
    "bad_request": (
        faults.bad_request("no such thing", "odd_value"),
        *[told("bad_request", 400, "odd_value")] * 2,
    ),
    "unsupported_parameter": (faults.unsupported_parameter("seed"), *[next_("unable")] * 2),
    "server_error": (faults.server_error(), FAILED_TWICE, FAILED_TWICE),
    "overloaded": (faults.overloaded(), *[next_("overloaded")] * 2),
    "redirect": (faults.redirect(), *[next_("server_error")] * 2),
    "error_in_200": (faults.error_in_200(), FAILED_TWICE, FAILED_TWICE),
    "html": (faults.html(), TWICE, TWICE),
    "empty": (faults.empty(), TWICE, TWICE),
    "silence": (faults.silence(), *SILENCE),
    "slow": (faults.slow(0.02), OK, OK),
    "head_silence": (faults.head_silence(), *SILENCE),
    "reset": (faults.reset(), *[next_("connect", "connect")] * 2),
    "hang_up": (faults.hang_up(), *[next_("connect", "connect")] * 2),
    "junk": (faults.junk(), TWICE, TWICE),
    "no_token": (faults.no_token(), *SILENCE),
    "role_only": (faults.role_only(), next_("cut_stream"), TWICE),
    "stall": (faults.stall(), broken("stalled"), next_("timeout")),
    "cut": (faults.cut(), broken("cut_stream"), TWICE),
    "no_finish": (faults.no_finish(), broken("cut_stream"), TWICE),
    "done_without_finish": (faults.done_without_finish(), broken("cut_stream"), TWICE),
    "no_done": (faults.no_done(), OK, OK),
    "malformed": (faults.malformed(), OK, TWICE),
    "oversized": (faults.oversized(), broken("malformed"), OK),
    "error_event": (faults.error_event(), FAILED_TWICE, FAILED_TWICE),
    "usage_missing": (faults.usage_missing(), OK, OK),
    "usage_then_cut": (faults.usage_then_cut(), broken("cut_stream"), TWICE),
    "wrong_length": (faults.wrong_length(), OK, TWICE),
    "drip": (faults.drip(0.0002, 256), OK, OK),
    "gzip_lie": (faults.gzip_lie(), TWICE, TWICE),
    "stale": (faults.stale(), OK, OK),
}
MORE = {  # the same faults, otherwise
    "cut_rst": (faults.cut(20, "rst"), broken("cut_stream"), TWICE),
    "cut_event": (faults.cut(20, "event"), broken("cut_stream"), TWICE),
    "cut_chunk": (faults.cut(20, "chunk"), broken("cut_stream"), TWICE),
    "cut_at_once": (faults.cut(0), next_("cut_stream"), TWICE),
    "cut_at_once_rst": (faults.cut(0, "rst"), next_("cut_stream"), TWICE),
    "cut_before_finish": (faults.cut(40), broken("cut_stream"), TWICE),
    "done_at_once": (faults.done_without_finish(0), next_("cut_stream"), TWICE),
    "three_malformed": (faults.malformed(20, 3), broken("malformed"), TWICE),
    "all_malformed": (faults.malformed(0, 3), TWICE, TWICE),
    "late_error_event": (faults.error_event(20), broken("server_error"), FAILED_TWICE),
    "error_event_429": (faults.error_event(0, "rate_limit_exceeded"), *[next_("rate_limited")] * 2),
    "error_in_200_filter": (
        faults.error_in_200("content_filter"),
        *[told("content_policy", 400, "content_filter")] * 2,
    ),
    "no_done_closed": (faults.no_done(0), OK, OK),
    "html_502": (faults.html(502), FAILED_TWICE, FAILED_TWICE),
    "stale_after_answer": (faults.stale("answer"), OK, OK),
    "silence_without_comments": (faults.no_token(comments=None), *SILENCE),
}
STATUSES = {  # gateway.md 2.2, "By status"
    401: "auth", 402: "quota", 403: "auth", 404: "model_gone", 405: "model_gone",
    408: "server_error", 409: "server_error", 410: "model_gone", 421: "model_gone",
    424: "server_error", 425: "server_error", 429: "rate_limited", 498: "overloaded",
    500: "server_error", 501: "server_error", 502: "server_error", 503: "overloaded",
    504: "server_error", 520: "server_error", 529: "overloaded",
}  # fmt: skip
for number, cause in STATUSES.items():
    often = 2 if cause == "server_error" else 1
    MORE[f"status_{number}"] = (faults.status(number), *[next_(*[cause] * often)] * 2)
ALL = CASES | MORE
MATRIX = [(name, stream) for name in ALL for stream in (True, False)]


def place(name: str, stream: bool) -> str:
    """What a case's own provider and chain are called: no case disturbs another."""
    return f"{name.replace('_', '.')}.{'s' if stream else 'w'}"


def test_every_fault_of_the_simulator_is_here():
    assert {name for name in faults.KINDS if name not in CASES} == set()


@pytest.fixture(scope="module")
def sim():
    with UpstreamThread() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(sim, tmp_path_factory):
    """A chain of two targets of their own for each case."""
    clocks = f"first_token: {SILENT}s, answer: {SILENT}s, idle: {SILENT}s".replace("0.25s", "250ms")
    providers = targets = chains = prices = ""
    for name, stream in MATRIX:
        own = place(name, stream)
        silent = ALL[name][0].kind in {"silence", "head_silence", "no_token", "stall"}
        providers += provider(sim, own) + provider(sim, f"{own}.f")
        targets += f"  {own}: {{model: {own}/first{', ' + clocks if silent else ''}}}\n"
        targets += f"  {own}.f: {{model: {own}.f/second}}\n"
        chains += f"  chain.{own}: [{own}, {own}.f]\n"
        prices += f"  {own}/first: [{{input: 1.00, output: 4.00}}]\n"
        prices += f"  {own}.f/second: [{{input: 2.00, output: 8.00}}]\n"
        sim.set(own, ALL[name][0])
        sim.manner(f"{own}.f", SECOND)
    text = (
        "defaults: {retry: {backoff: 5ms}, breaker: {failures: 1000, min_requests: 1000000}}\n"
        f"providers:\n{providers}targets:\n{targets}chains:\n{chains}prices:\n{prices}"
    )
    with Gateway(text, tmp_path_factory.mktemp("fallback")) as running:
        yield running
        running.at_rest()


def told_text(answer, stream):
    """The text, the models that are named, and the finish reasons of an answer."""
    if not stream:
        body = answer.json()
        choice = body["choices"][0]
        return choice["message"]["content"], {body["model"]}, [choice["finish_reason"]]
    frames = [json.loads(data) for data in answer.events if data != "[DONE]"]
    chunks = [frame for frame in frames if "choices" in frame]
    deltas = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in deltas)
    finishes = [choice["finish_reason"] for choice in deltas if choice["finish_reason"]]
    assert len({chunk["id"] for chunk in chunks}) <= 1
    return text, {chunk["model"] for chunk in chunks}, finishes


@pytest.mark.parametrize(("name", "stream"), MATRIX)
def test_a_fault_at_the_first_target(sim, gateway, name, stream):
    own, expected = place(name, stream), ALL[name][1 if stream else 2]
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    answer = ask(gateway.port, chat(f"chain.{own}", stream=stream, seed=1, **usage))
    id = answer.headers["x-request-id"]
    rows = gateway.settled(id)
    served = {"ok": own, "broken": own, "next": f"{own}.f", "told": None}[expected.how]
    if expected.how == "told":
        assert (answer.status, answer.error["code"]) == (expected.status, expected.code)
        assert [a["cause"] for a in answer.error["attempts"]] == list(expected.causes)
        assert answer.headers["x-should-retry"] == "false"
    else:
        judge_answer(answer, expected, stream)
    # The ledger has one row for each attempt, and both upstreams saw as many calls.
    causes = [*expected.causes, *(["ok"] if expected.how in {"ok", "next"} else [])]
    assert [row["outcome"] for row in rows] == causes
    mine = [row for row in rows if row["target"] == own]
    assert [row["outcome"] for row in rows if row not in mine] == ["ok"] * (served == f"{own}.f")
    assert len(sim.calls(f"{own}.f")) == len(rows) - len(mine)
    assert len(sim.calls(own)) == len(mine)
    judge_headers(answer, rows, served, stream, own)
    judge_money(sim, rows, expected)


def judge_answer(answer, expected, stream):
    assert answer.status == 200
    text, models, finishes = told_text(answer, stream)
    if expected.how == "broken":
        assert finishes == []
        assert "[DONE]" not in answer.events
        error = json.loads(answer.events[-1])["error"]
        assert error["code"] == expected.causes[-1]
        assert error["type"] == "upstream_error"
        assert FIRST_TEXT.startswith(text) or "x" * 100 in text
        assert models == {"first"}
        return
    assert finishes == ["stop"]
    assert models == {"first" if expected.how == "ok" else "second"}
    if stream:
        assert answer.events[-1] == "[DONE]"
    if expected.how == "next":
        assert text == SECOND_TEXT  # all of it, and nothing of the first
    else:
        assert text == FIRST_TEXT or set(text.split()) <= {*FIRST_TEXT.split(), *xs(text)}


def xs(text):
    return re.findall(r"x{100,}\S*", text)


def judge_headers(answer, rows, served, stream, own):
    """What the headers and the note at the end say is what the ledger says."""
    headers = answer.headers
    paid = sum((Decimal(row["nano_usd"]) for row in rows), Decimal(0)) / 10**9
    path = ",".join(f"{row['target']}:{row['outcome']}" for row in rows)
    assert headers["x-gateway-chain"] == f"chain.{own}"
    assert int(headers["x-gateway-attempts"]) == len(rows)
    if served is None:
        assert "x-gateway-target" not in headers
        assert headers["x-gateway-path"] == path
        assert Decimal(headers["x-gateway-cost-usd"]) == paid
        return
    assert headers["x-gateway-target"] == served
    assert headers["x-gateway-model"] == ("second" if served.endswith(".f") else "first")
    if rows[-1]["outcome"] != "ok":  # it broke after the head had gone
        return
    assert headers["x-gateway-path"] == path
    if stream:
        note = json.loads(answer.comments[-1].removeprefix(": gateway "))
        assert (note["target"], note["attempts"], note["path"]) == (served, len(rows), path)
        assert Decimal(note["cost_usd"]) == paid
        frames = [json.loads(data) for data in answer.events if data != "[DONE]"]
        usage = [frame["usage"] for frame in frames if frame.get("usage")]
        assert [Decimal(told["cost_usd"]) for told in usage] in ([paid], [])
    else:
        assert Decimal(headers["x-gateway-cost-usd"]) == paid


def judge_money(sim, rows, expected):
    """Finished answers cost what the upstream bills; what it may have done is never free."""
    for row in rows:
        if row["outcome"] == "ok" and "estimated" not in row["flags"]:
            owed = sim.invoice(row["provider"])
            assert (row["input"], row["output"]) == (owed.prompt_tokens, owed.completion_tokens)
        if row["outcome"] in {"timeout", "first_token", "stalled", "cut_stream", "malformed"}:
            assert row["input"] > 0
            assert row["nano_usd"] > 0
    if expected.how == "broken":
        assert rows[-1]["output"] > 0
        assert "partial" in rows[-1]["flags"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", ["silence", "head_silence", "no_token", "stall"])
def test_a_silent_upstream_is_let_go_when_it_is_given_up(sim, gateway, name, stream):
    """Judged from what the tests above left in the simulator's log."""
    own = place(name, stream)
    if not sim.calls(own):
        ask(gateway.port, chat(f"chain.{own}", stream=stream))
    (call,) = sim.calls(own)
    until(lambda: call.ended)
    assert call.closed_by_client_after is not None
    assert SILENT - 0.05 <= call.closed_by_client_after <= SILENT + SOON
