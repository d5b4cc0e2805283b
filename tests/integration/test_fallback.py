"""Every way an upstream fails, met by the whole gateway over sockets.

Who answers, who is asked, who pays, and how soon whoever is no longer needed is let go.
"""

import collections
import concurrent.futures
import contextlib
import json
import statistics
import time
from dataclasses import dataclass, replace
from decimal import Decimal

import openai
import pytest

from chaos import faults
from chaos.answers import Manner, words
from chaos.upstream import UpstreamThread
from tests.integration.rig import (
    MESSAGES,
    Gateway,
    Line,
    ask,
    chat,
    declared,
    post,
    provider,
    until,
)

SOON = 0.25  # seconds: the promise for letting an upstream go
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
PADDED = "x" * ((1 << 20) + 4096)
OTHER_TEXTS = {  # what else the first target's whole answer may be
    ("malformed", True): "".join(w for at, w in enumerate(words(MESSAGES, Manner())) if at != 20),
    ("oversized", False): PADDED + FIRST_TEXT,
}


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
    clocks = {
        **dict.fromkeys(
            ("silence", "head_silence", "no_token"), "first_token: 150ms, answer: 150ms"
        ),
        "stall": "idle: 150ms, answer: 150ms",
    }
    providers = targets = chains = prices = ""
    for name, stream in MATRIX:
        own = place(name, stream)
        said = clocks.get(ALL[name][0].kind, "max_output: 9999")
        providers += provider(sim, own) + provider(sim, f"{own}.f")
        targets += f"  {own}: {{model: {own}/first, {said}}}\n"
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
    if expected.causes == ("connect", "connect") and len(rows) == 2:
        expected = replace(
            expected, causes=("connect",)
        )  # a line of the pool was replaced: no blip
    served = {"ok": own, "broken": own, "next": f"{own}.f", "told": None}[expected.how]
    if expected.how == "told":
        assert (answer.status, answer.error["code"]) == (expected.status, expected.code)
        assert [a["cause"] for a in answer.error["attempts"]] == list(expected.causes)
        assert answer.headers["x-should-retry"] == "false"
    else:
        judge_answer(answer, expected, name, stream)
    # The ledger has one row for each attempt, and both upstreams saw as many calls.
    causes = [*expected.causes, *(["ok"] if expected.how in {"ok", "next"} else [])]
    assert [row["outcome"] for row in rows] == causes
    mine = [row for row in rows if row["target"] == own]
    assert [row["outcome"] for row in rows if row not in mine] == ["ok"] * (served == f"{own}.f")
    assert len(sim.calls(f"{own}.f")) == len(rows) - len(mine)
    most = 2 if expected.causes[:1] == ("connect",) else len(mine)
    assert len(mine) <= len(sim.calls(own)) <= most
    judge_headers(answer, rows, served, stream, own)
    judge_money(sim, rows, expected)


def judge_answer(answer, expected, name, stream):
    assert answer.status == 200
    text, models, finishes = told_text(answer, stream)
    if expected.how == "broken":
        assert finishes == []
        assert "[DONE]" not in answer.events
        error = json.loads(answer.events[-1])["error"]
        assert error["code"] == expected.causes[-1]
        assert error["type"] == "upstream_error"
        assert text
        assert FIRST_TEXT.startswith(text)
        assert models == {"first"}
        return
    assert finishes == ["stop"]
    assert models == {"first" if expected.how == "ok" else "second"}
    if stream:
        assert answer.events[-1] == "[DONE]"
    mine = OTHER_TEXTS.get((name, stream), FIRST_TEXT)
    assert text == (mine if expected.how == "ok" else SECOND_TEXT)  # all of it, nothing else


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


# ------------------------------------------------------------------------- a gateway for each claim


@contextlib.contextmanager
def house(sim, folder, text, *, names=("p", "f"), **more):
    """Providers of these names on the simulator, and whatever else `text` says."""
    text = f"providers:\n{''.join(provider(sim, name) for name in names)}{text}"
    if "prices:" not in text:
        rows = "".join(f"  {name}/m: [{{input: 1.00, output: 4.00}}]\n" for name in names)
        text += f"prices:\n{rows}"
    with Gateway(text, folder / "state", **more) as running:
        yield running
        running.at_rest()


@pytest.fixture
def own():
    """A simulator nobody else uses."""
    with UpstreamThread() as running:
        yield running


CHAIN = "chains: {smart: [p/m, f/m]}\n"
ALONE = "chains: {smart: [p/m]}\n"
NO_BLIPS = "defaults: {retry: {same_target: 0}}\n"


def together(number, work):
    """`work` in so many threads at once; what they returned."""
    return at_once([work] * number)


def at_once(works):
    with concurrent.futures.ThreadPoolExecutor(len(works)) as pool:
        return [done.result() for done in [pool.submit(work) for work in works]]


def text_of(answer):
    return told_text(answer, stream="transfer-encoding" in answer.headers)[0]


def sdk(gateway, **more):
    return openai.OpenAI(base_url=gateway.base_url, api_key="x", **more)


# ------------------------------------------------------------------------------- callers who leave


def p99(times):
    return statistics.quantiles(times, n=100, method="inclusive")[98]


HOW = ("fin", "rst", "half_closed")  # one leaves


@pytest.mark.parametrize("when", ["whole", "before_content", "in_stream"])
def test_a_caller_who_leaves_frees_its_upstream_and_pays_for_what_came(own, tmp_path, when):
    own.set("p", None if when == "in_stream" else faults.no_token())
    own.manner("p", Manner(tokens=5000, gap=0.005))
    times, received = [], []
    with house(own, tmp_path, CHAIN) as gateway:
        for done in range(50):
            with Line(gateway.port) as line:
                line.send(post(chat("smart", stream=when != "whole")))
                call = until(lambda: own.calls("p")[done:], every=0.002)[0]  # noqa: B023
                heard = b""
                if when == "in_stream":
                    heard = line.until(b"\r\n\r\n") and b"".join(
                        line.until(b"\n\n\r\n") for _ in range(1 + done % 3)
                    )
                left = time.monotonic()
                getattr(line, HOW[done % 3])()
                until(lambda: call.ended, every=0.002)  # noqa: B023
                times.append(call.ended - left)
                received.append(heard)
        assert p99(times) <= SOON
        rows = until(lambda: (found := gateway.rows())[49:] and found)
    assert [row["outcome"] for row in rows] == ["cancelled"] * 50
    assert all(row["input"] > 0 and row["nano_usd"] > 0 for row in rows)
    assert own.calls("f") == []
    for row, heard in zip(rows, received, strict=True):
        said = "".join(
            json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
            for line in heard.decode().splitlines()
            if line.startswith("data: ")
        )
        assert row["output"] >= len(said.encode()) / 3.5
        assert (row["output"] > 0) is (when == "in_stream")


def test_a_caller_who_leaves_the_queue_was_never_sent_anywhere(own, tmp_path):
    own.set("p", faults.silence())
    text = CHAIN + (
        f"tiers: {{one: {{limits: {{concurrency: 1}}, when_full: {{wait: 30s}}}}}}\n"
        f"keys:\n{declared('caller', 'tier: one')}"
    )
    with house(own, tmp_path, text) as gateway, Line(gateway.port) as first:
        first.send(post(chat("smart"), x_api_key="caller"))
        until(lambda: own.calls("p"))
        queue = gateway.house.queue
        times = []
        for done in range(50):
            with Line(gateway.port) as line:
                line.send(post(chat("smart"), x_api_key="caller"))
                until(lambda: gateway.do(lambda: queue.waiting) == 1, every=0.002)
                left = time.monotonic()
                getattr(line, HOW[done % 3])()
                until(lambda: gateway.do(lambda: queue.waiting) == 0, every=0.002)
                times.append(time.monotonic() - left)
        assert p99(times) <= SOON
        assert len(own.calls()) == 1
        stories = gateway.do(lambda: gateway.house.state.stories.recent(50))
        assert {(told["status"], len(told["attempts"])) for told in stories} == {(499, 0)}
        own.set("p", None)
        first.fin()
        until(lambda: gateway.do(lambda: gateway.house.in_flight) == 0)
        assert ask(gateway.port, chat("smart"), x_api_key="caller").status == 200
        assert [row["outcome"] for row in gateway.rows()] == ["cancelled", "ok"]


def test_a_caller_who_leaves_while_a_retry_is_waited_for_ends_the_wait(own, tmp_path):
    own.set("p", faults.rate_limited(5))
    with house(own, tmp_path, ALONE) as gateway:
        with Line(gateway.port) as line:
            line.send(post(chat("smart")))
            until(lambda: own.calls("p") and own.calls("p")[0].ended)
            time.sleep(0.05)  # into the pause
            assert gateway.house.in_flight == 1
            left = time.monotonic()
            line.rst()
            until(lambda: gateway.house.in_flight == 0)
            assert time.monotonic() - left <= SOON
        assert len(own.calls()) == 1


# ------------------------------------------------------------------------------- which target next


def test_a_refused_key_is_set_aside_and_the_other_key_of_the_provider_serves(own, tmp_path):
    text = (
        f'providers: {{p: {{kind: openai, base_url: "{own.base_url("p")}", allow_http: true,'
        ' allow_private: true, keys: [{name: one, secret: "${ONE}"},'
        ' {name: two, secret: "${TWO}"}]}}\n'
        "chains: {smart: [p/m]}\nprices: {p/m: free}\n"
    )
    with Gateway(text, tmp_path / "state", {"ONE": "sk-one", "TWO": "sk-two"}) as gateway:
        own.script("p", [faults.auth()])
        answer = ask(gateway.port, chat("smart"))
        assert answer.status == 200
        assert answer.headers["x-gateway-path"] == "p/m:auth,p/m:ok"
        assert answer.headers["x-gateway-attempts"] == "2"
        refused, serving = [call.headers["authorization"] for call in own.calls("p")]
        assert {refused, serving} == {"Bearer sk-one", "Bearer sk-two"}
        for _ in range(20):
            assert ask(gateway.port, chat("smart")).headers["x-gateway-attempts"] == "1"
        assert {call.headers["authorization"] for call in own.calls("p")[1:]} == {serving}
        states = gateway.admin("/admin/status")["chains"][0]["targets"]
        assert sorted("aside_s" in state for state in states) == [False, True]


CONTEXTS = (
    "targets: {small: {model: p/m, context: 1000}, same: {model: q/m, context: 1000},"
    " large: {model: f/m, context: 100_000}}\n"
)


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_that_is_too_long_goes_to_a_larger_context_only(own, tmp_path, stream):
    own.set("p", faults.context_length(1000))
    text = f"{CONTEXTS}chains: {{smart: [small, same, large], tight: [small, same]}}\n"
    with house(own, tmp_path, text, names=("p", "q", "f")) as gateway:
        answer = ask(gateway.port, chat("smart", stream=stream))
        assert answer.status == 200
        path = answer.headers["x-gateway-path"]
        assert path == "small:context_length,same:context_length,large:ok"
        assert answer.headers["x-gateway-attempts"] == "2"
        answer = ask(gateway.port, chat("tight", stream=stream))
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
        assert answer.headers["x-should-retry"] == "false"
        assert own.calls("q") == []


def test_a_prompt_that_is_too_long_goes_to_the_chain_that_on_names(own, tmp_path):
    own.set("p", faults.context_length(1000))
    text = (
        f"{CONTEXTS}chains: {{smart: {{try: [small, same], on: {{context_length: long}}}},"
        " long: [large]}\n"
    )
    with house(own, tmp_path, text, names=("p", "q", "f")) as gateway:
        answer = ask(gateway.port, chat("smart"))
        assert answer.headers["x-gateway-path"] == "small:context_length,large:ok"
        assert own.calls("q") == []


def test_a_prompt_that_fits_no_window_is_refused_without_a_call(own, tmp_path):
    text = f"{CONTEXTS}chains: {{smart: [small, same]}}\n"
    with house(own, tmp_path, text, names=("p", "q", "f")) as gateway:
        long = {"model": "smart", "messages": [{"role": "user", "content": "word " * 4000}]}
        answer = ask(gateway.port, long)
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
        assert "1,000 tokens" in answer.error["message"]
        assert own.calls() == []


@pytest.mark.parametrize(("said", "asked"), [("", 0), ("stop", 0), ("next", 1)])
def test_a_filter_stops_the_walk_unless_the_chain_says_next(own, tmp_path, said, asked):
    own.set("p", faults.content_filter())
    on = f", on: {{content_policy: {said}}}" if said else ""
    with house(own, tmp_path, f"chains: {{smart: {{try: [p/m, f/m]{on}}}}}\n") as gateway:
        answer = ask(gateway.port, chat("smart"))
        assert (len(own.calls("p")), len(own.calls("f"))) == (1, asked)
        if asked:
            assert answer.headers["x-gateway-path"] == "p/m:content_policy,f/m:ok"
        else:
            assert (answer.status, answer.error["code"]) == (400, "content_filter")
            assert answer.error["message"].startswith("The response was filtered")


def test_a_parameter_that_was_refused_once_is_remembered(own, tmp_path):
    own.set("p", faults.unsupported_parameter("seed"))
    with house(own, tmp_path, CHAIN) as gateway:
        first = ask(gateway.port, chat("smart", seed=1))
        again = ask(gateway.port, chat("smart", seed=1))
        assert first.headers["x-gateway-path"] == "p/m:unable,f/m:ok"
        assert again.headers["x-gateway-path"] == "p/m:unable,f/m:ok"
        assert (first.headers["x-gateway-attempts"], again.headers["x-gateway-attempts"]) == (
            "2",
            "1",
        )
        own.set("p", None)
        assert ask(gateway.port, chat("smart")).headers["x-gateway-path"] == "p/m:ok"


def test_a_blip_keeps_the_model_that_was_asked_for(own, tmp_path):
    own.script("p", [faults.server_error()])
    with house(own, tmp_path, CHAIN) as gateway:
        answer = ask(gateway.port, chat("smart"))
        assert answer.headers["x-gateway-path"] == "p/m:server_error,p/m:ok"
        assert [row["kind"] for row in gateway.rows()] == ["answer", "retry"]
        assert own.calls("f") == []


@pytest.mark.parametrize("fault", [faults.reset(), faults.hang_up()], ids=["reset", "hang_up"])
def test_an_upstream_that_resets_is_called_twice_at_most(own, tmp_path, fault):
    """S05, with connections in the pool."""
    with house(own, tmp_path, CHAIN) as gateway:
        own.manner("p", Manner(latency=0.1))
        together(4, lambda: ask(gateway.port, chat("smart")))
        own.set("p", fault)
        answer = ask(gateway.port, chat("smart"))
        assert answer.headers["x-gateway-target"] == "f/m"
        assert len(own.calls("p")) - 4 <= 2


def test_a_throttled_target_is_left_alone_until_its_time(own, tmp_path):
    own.script("p", [faults.rate_limited(None, 300)])
    with house(own, tmp_path, CHAIN) as gateway:
        began = time.monotonic()
        paths = [ask(gateway.port, chat("smart")).headers["x-gateway-path"] for _ in range(3)]
        assert paths == ["p/m:rate_limited,f/m:ok", *["p/m:throttled,f/m:ok"] * 2]
        until(lambda: ask(gateway.port, chat("smart")).headers["x-gateway-path"] == "p/m:ok")
        assert time.monotonic() - began >= 0.3
        assert own.calls("p")[1].started - own.calls("p")[0].started >= 0.3


def test_with_nobody_else_a_retry_after_is_waited_out_and_not_cut_short(own, tmp_path):
    own.script("p", [faults.rate_limited(None, 300)])
    with house(own, tmp_path, ALONE) as gateway:
        answer = ask(gateway.port, chat("smart"))
        assert answer.headers["x-gateway-path"] == "p/m:rate_limited,p/m:ok"
        first, second = own.calls("p")
        assert 0.3 <= second.started - first.started <= 0.3 * 1.1 + 0.1 + SOON


# --------------------------------------------------------------------------------- nobody answers

FAILING = {  # the faults of the two targets; status, code, x-should-retry
    "both_broken": (faults.server_error(), faults.server_error(), 502, "server_error", "false"),
    "unlike": (faults.server_error(), faults.html(), 502, "chain_exhausted", "false"),
    "limited_soon": (
        faults.rate_limited(30), faults.server_error(), 429, "chain_exhausted", "true",
    ),
    "limited_long": (
        faults.rate_limited(90), faults.rate_limited(80), 429, "chain_exhausted", "false",
    ),
    "limited_both": (
        faults.rate_limited(50), faults.rate_limited(20), 429, "chain_exhausted", "true",
    ),
    "silent": (faults.silence(), faults.silence(), 504, "timeout", "false"),
    "silent_last": (faults.server_error(), faults.silence(), 504, "chain_exhausted", "false"),
    "full": (faults.overloaded(), faults.overloaded(), 503, "no_healthy_target", "false"),
    "refused": (faults.auth(), faults.auth(), 502, "auth", "false"),
    "gone": (faults.model_gone(), faults.model_gone(), 502, "model_gone", "false"),
    "theirs_last": (faults.server_error(), faults.bad_request(), 400, "invalid_request", "false"),
    "unable_both": (
        faults.unsupported_parameter("seed"), faults.unsupported_parameter("seed"),
        400, "unsupported_parameter", "false",
    ),
}  # fmt: skip
TYPES = {
    400: "invalid_request_error",
    429: "rate_limit_error",
    502: "upstream_error",
    503: "overloaded_error",
    504: "upstream_error",
}
QUICK = (
    "defaults: {answer: 250ms, first_token: 250ms,"
    " retry: {same_target: 1, max_wait: 100ms, backoff: 5ms}}\n"
)


@pytest.mark.parametrize("name", FAILING)
def test_when_all_fail_the_most_useful_error_is_told(own, tmp_path, name):
    first, second, status, code, again = FAILING[name]
    own.set("p", first)
    own.set("f", second)
    with house(own, tmp_path, QUICK + CHAIN) as gateway:
        answer = ask(gateway.port, chat("smart", seed=1))
        error = answer.error
        assert (answer.status, error["type"], error["code"]) == (status, TYPES[status], code)
        assert answer.headers["x-should-retry"] == again
        assert error["retryable"] is (again == "true")
        rows = gateway.settled(answer.headers["x-request-id"])
        told = [(attempt["target"], attempt["cause"]) for attempt in error["attempts"]]
        assert told == [(row["target"], row["outcome"]) for row in rows]
        assert {target for target, _ in told} == {"p/m", "f/m"}
        assert int(answer.headers["x-gateway-attempts"]) == len(own.calls()) == len(rows)
        path = answer.headers["x-gateway-path"].split(",")
        assert path == [f"{target}:{cause}" for target, cause in told]
        if status in {429, 503}:
            assert int(answer.headers["retry-after"]) >= 1
            ms = int(answer.headers["retry-after-ms"])
            assert int(answer.headers["retry-after"]) == -(-ms // 1000)
        if status >= 429:
            for target, cause in told:
                assert f"{target} {cause}" in error["message"]


@pytest.mark.parametrize(("first", "second", "least"), [(50, 20, 20), (90, 30, 30), (5, 40, 5)])
def test_the_soonest_of_all_is_when_to_come_back(own, tmp_path, first, second, least):
    own.set("p", faults.rate_limited(first))
    own.set("f", faults.rate_limited(second))
    with house(own, tmp_path, QUICK + CHAIN) as gateway:
        told = [ask(gateway.port, chat("smart")) for _ in range(2)]  # the second makes no call
        assert len(own.calls()) == 2
        for answer in told:
            assert least - 0.5 <= int(answer.headers["retry-after-ms"]) / 1000 <= least * 1.25 + 0.5
            assert answer.headers["x-should-retry"] == "true"
        assert "throttled (back in" in told[1].error["message"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", ["both_broken", "silent", "full", "refused", "theirs_last"])
def test_the_sdk_with_its_usual_retries_walks_the_chain_once(own, tmp_path, name, stream):
    first, second, status, *_ = FAILING[name]
    own.set("p", first)
    own.set("f", second)
    with house(own, tmp_path, QUICK + CHAIN) as gateway, sdk(gateway, timeout=20) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="smart", messages=MESSAGES, stream=stream)
        assert caught.value.status_code == status
        assert len(own.calls()) == len(caught.value.body["attempts"])
        assert len(gateway.do(lambda: gateway.house.state.stories.recent(10))) == 1


def test_the_caller_s_mistake_makes_exactly_one_call_with_the_sdk_too(own, tmp_path):
    own.set("p", faults.bad_request("messages[0].content is odd", "invalid_value"))
    with house(own, tmp_path, CHAIN) as gateway, sdk(gateway) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="smart", messages=MESSAGES)
        assert caught.value.code == "invalid_value"
        assert "messages[0].content is odd" in caught.value.message
        assert len(own.calls()) == 1


def test_a_429_with_a_short_wait_is_worth_the_sdk_s_retry(own, tmp_path):
    text = "defaults: {retry: {max_wait: 10ms}}\n" + ALONE
    with house(own, tmp_path, text) as gateway, sdk(gateway) as client:
        own.script("p", [faults.rate_limited(None, 200)])
        answer = client.chat.completions.create(model="smart", messages=MESSAGES)
        assert answer.choices[0].message.content == FIRST_TEXT
        first, second = own.calls("p")
        assert second.started - first.started >= 0.2


# ------------------------------------------------------------------------------------------- time


HUNG = ("silence", "head_silence", "no_token", "stall")


def test_a_silent_upstream_is_let_go_when_it_is_given_up(own, tmp_path):
    """Eight callers at once; the upstream's own clock is the judge."""
    cases = [(name, stream) for name in HUNG for stream in (True, False)]
    names = [f"{name}-{stream}".lower() for name, stream in cases]
    for (name, _), place in zip(cases, names, strict=True):
        own.set(place, faults.KINDS[name]())
    chains = "".join(f"  c-{place}: [{place}/m, f/m]\n" for place in names)
    text = f"defaults: {{first_token: 300ms, answer: 300ms, idle: 300ms}}\nchains:\n{chains}"
    with house(own, tmp_path, text, names=(*names, "f")) as gateway:
        at_once([
            lambda place=place, stream=stream: ask(gateway.port, chat(f"c-{place}", stream=stream))
            for (_, stream), place in zip(cases, names, strict=True)
        ])  # fmt: skip
        for place in names:
            (call,) = own.calls(place)
            until(lambda: call.ended)  # noqa: B023
            assert 0.25 <= call.closed_by_client_after <= 0.3 + SOON
        assert own.in_flight() == 0


def test_a_deadline_is_kept_with_hung_targets_of_every_sort(own, tmp_path):
    """Eight callers at once, each with a chain of three targets that hang in its way."""
    chains = ""
    for name in HUNG:
        for n in range(3):
            own.set(f"{name}-{n}", faults.KINDS[name]())
        chains += f"  {name}: [{name}-0/m, {name}-1/m, {name}-2/m]\n"
    names = [f"{name}-{n}" for name in HUNG for n in range(3)]

    def caller(name, stream):
        began = time.monotonic()
        answer = ask(gateway.port, chat(name, stream=stream), x_gateway_deadline="700ms")
        assert 0.4 <= time.monotonic() - began <= 0.7 + SOON
        return answer

    with house(own, tmp_path, f"chains:\n{chains}", names=names) as gateway:
        began = time.monotonic()
        told = at_once([lambda n=n, s=s: caller(n, s) for n in HUNG for s in (True, False)])
        for answer in told:
            if answer.status == 200:  # it had begun
                assert "[DONE]" not in answer.events
                error = json.loads(answer.events[-1])["error"]
            else:
                assert answer.headers["x-should-retry"] == "false"
                error = answer.error
            assert (error["type"], error["retryable"]) == ("upstream_error", False)
        assert sorted(answer.status for answer in told) == [200, *[504] * 7]
        for call in own.calls():
            until(lambda: call.ended)  # noqa: B023
            assert call.ended - began <= 0.7 + SOON + 0.1


def test_later_targets_keep_their_share_of_the_deadline(own, tmp_path):
    own.set("p", faults.silence())
    own.set("q", faults.no_token())
    text = (
        "defaults: {first_token: 1400ms}\nchains: {smart: {try: [p/m, q/m, f/m], deadline: 2s}}\n"
    )
    with house(own, tmp_path, text, names=("p", "q", "f")) as gateway:
        began = time.monotonic()
        answer = ask(gateway.port, chat("smart", stream=True))
        assert answer.headers.get("x-gateway-target") == "f/m"
        assert time.monotonic() - began <= 2 + SOON


def test_keepalive_comments_reach_the_sdk_without_harm(own, tmp_path):
    own.manner("p", Manner(ttft=0.3, tokens=3, gap=0.15))
    text = "chains: {smart: {try: [p/m, f/m], keepalive: 50ms}}\n"
    with house(own, tmp_path, text) as gateway, sdk(gateway) as client:
        raw = ask(gateway.port, chat("smart", stream=True))
        comments = [told for told in raw.comments if told == ": keepalive"]
        assert len(comments) >= 5
        raw = client.chat.completions.with_raw_response.create(
            model="smart", messages=MESSAGES, stream=True
        )
        assert raw.headers["x-gateway-chain"] == "smart"  # the head came before the content
        assert "x-gateway-path" not in raw.headers
        chunks = list(raw.parse())
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "".join(
            words(MESSAGES, Manner(tokens=3))
        )
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_after_a_keepalive_a_fallback_is_invisible_and_a_failure_is_an_event(own, tmp_path):
    own.set("p", faults.silence())
    text = (
        "targets: {p: {model: p/m, first_token: 250ms}, f: {model: f/m, first_token: 250ms}}\n"
        "chains: {smart: {try: [p, f], keepalive: 50ms}}\n"
    )
    with house(own, tmp_path, text) as gateway, sdk(gateway) as client:
        answer = ask(gateway.port, chat("smart", stream=True))
        assert (text_of(answer), answer.events[-1]) == (FIRST_TEXT, "[DONE]")
        assert json.loads(answer.comments[-1][10:])["path"] == "p:first_token,f:ok"
        own.set("f", faults.silence())
        answer = ask(gateway.port, chat("smart", stream=True))
        assert (answer.status, len(answer.events)) == (200, 1)
        error = json.loads(answer.events[0])["error"]
        assert (error["code"], error["type"]) == ("first_token", "upstream_error")
        assert [told["cause"] for told in error["attempts"]] == ["first_token"] * 2
        with pytest.raises(openai.APIError) as caught:
            list(client.chat.completions.create(model="smart", messages=MESSAGES, stream=True))
        assert caught.value.code == "first_token"
        assert len(own.calls("p")) == 3


# ---------------------------------------------------------------------------------------- breakers


def breaker(gateway, target="p/m"):
    targets = gateway.admin("/admin/status")["chains"][0]["targets"]
    return next(told["breaker"] for told in targets if told["target"] == target)


def test_a_breaker_opens_spares_the_target_and_closes_after_one_probe(own, tmp_path):
    text = (
        "defaults: {retry: {same_target: 0},"
        " breaker: {failures: 3, cooldown: 400ms, max_cooldown: 400ms}}\n"
    )
    with house(own, tmp_path, text + CHAIN) as gateway:
        own.set("p", faults.server_error())
        for _ in range(3):
            assert ask(gateway.port, chat("smart")).status == 200
        assert breaker(gateway) == "open"
        answer = ask(gateway.port, chat("smart"))
        assert answer.headers["x-gateway-path"] == "p/m:breaker_open,f/m:ok"
        assert len(own.calls("p")) == 3
        until(lambda: breaker(gateway) != "open")
        assert ask(gateway.port, chat("smart")).status == 200  # the probe, and it fails
        assert (len(own.calls("p")), breaker(gateway)) == (4, "open")
        own.set("p", None)
        own.manner("p", Manner(latency=0.3))
        until(lambda: breaker(gateway) != "open")
        paths = together(10, lambda: ask(gateway.port, chat("smart")).headers["x-gateway-path"])
        assert collections.Counter(paths) == {"p/m:ok": 1, "p/m:breaker_open,f/m:ok": 9}
        assert (len(own.calls("p")), breaker(gateway)) == (5, "closed")
        kinds = [row["kind"] for row in gateway.rows() if row["target"] == "p/m"]
        assert kinds == ["answer", "answer", "answer", "probe", "probe"]


def test_with_every_breaker_open_the_caller_is_told_when(own, tmp_path):
    text = (
        "defaults: {retry: {same_target: 0, max_wait: 10ms},"
        " breaker: {failures: 1, cooldown: 20s}}\n"
    )
    with house(own, tmp_path, text + CHAIN) as gateway:
        own.set("p", faults.server_error())
        own.set("f", faults.server_error())
        assert ask(gateway.port, chat("smart")).status == 502
        told = [ask(gateway.port, chat("smart")) for _ in range(5)]
        refused = [answer for answer in told if answer.status == 503]
        assert refused
        for answer in refused:
            assert answer.error["code"] == "no_healthy_target"
            assert 1 <= int(answer.headers["retry-after"]) <= 25
            assert answer.headers["x-should-retry"] == "true"  # nothing was spent
        assert len(own.calls()) <= 2 + 2 * (len(told) - len(refused))


@pytest.mark.parametrize("header", ["x_gateway_deadline", "x_gateway_first_token"])
def test_a_caller_in_a_hurry_cannot_open_a_breaker_for_the_others(own, tmp_path, header):
    """Callers may only narrow: a well target that was given 300 ms is not to blame."""
    own.manner("p", Manner(ttft=0.6))
    with house(own, tmp_path, ALONE) as gateway:
        together(6, lambda: ask(gateway.port, chat("smart", stream=True), **{header: "300ms"}))
        own.manner("p", None)
        assert breaker(gateway) == "closed"
        assert ask(gateway.port, chat("smart")).status == 200


def test_a_deadline_in_the_middle_of_a_well_stream_is_told_as_that(own, tmp_path):
    own.manner("p", Manner(gap=0.1))
    with house(own, tmp_path, ALONE) as gateway:
        hurried = {"x_gateway_deadline": "400ms"}
        for answer in together(6, lambda: ask(gateway.port, chat("smart", stream=True), **hurried)):
            assert json.loads(answer.events[-1])["error"]["code"] == "deadline_exceeded"
        assert breaker(gateway) == "closed"


# -------------------------------------------------------------------------------- all of it at once


def test_in_a_storm_every_caller_gets_one_whole_answer_and_the_bill_agrees(own, tmp_path):
    """Eight callers, a first target that fails in every way that is seen before content."""
    silent = {"silence", "head_silence", "no_token"}
    stops = {"context_length", "content_filter", "bad_request", "status", "unsupported_parameter"}
    aside = {"auth", "quota", "model_gone", "rate_limited"}  # these would end the storm
    quick = [
        fault for name, (fault, *_) in CASES.items()
        if name not in silent | stops | aside | {"stall", "oversized", "drip", "no_done", "stale"}
    ]  # fmt: skip
    own.script("p", quick * 3)
    own.manner("f", SECOND)
    text = (
        "defaults: {retry: {backoff: 5ms, budget: 100%},"
        " breaker: {failures: 1000, min_requests: 100_000}}\n" + CHAIN
    )

    def caller():
        seen = []
        for turn in range(12):
            answer = ask(gateway.port, chat("smart", stream=turn % 2 == 0))
            assert answer.status == 200
            said, _, finishes = told_text(answer, stream=turn % 2 == 0)
            seen.append((said, finishes, answer.events[-1:]))
        return seen

    with house(own, tmp_path, text) as gateway:
        told = [each for seen in together(8, caller) for each in seen]
        finished = [said for said, finishes, _ in told if finishes]
        assert all(text_is_whole(said) for said in finished)
        for said, finishes, last in told:
            if not finishes:  # a stream that broke
                assert json.loads(last[0])["error"]["code"] in {"cut_stream", "malformed"}
                assert FIRST_TEXT.startswith(said)
        rows = gateway.rows()
        assert len({row["attempt_id"] for row in rows}) == len(rows)
        second = [row for row in rows if row["target"] == "f/m"]
        owed = own.invoice("f")
        assert len(second) == owed.calls
        assert sum(row["input"] for row in second) == owed.prompt_tokens
        assert sum(row["output"] for row in second) == owed.completion_tokens
        assert own.in_flight() == 0


def text_is_whole(said):
    return said in {FIRST_TEXT, SECOND_TEXT, OTHER_TEXTS["malformed", True]}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "parameters": {
                "type": "object",
                "properties": {"word": {"type": "string"}, "page": {"type": "integer"}},
            },
        },
    }
]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("fault", [faults.error_event(), faults.cut(0), faults.malformed(0, 3)])
def test_a_tool_call_comes_whole_from_the_second_target(own, tmp_path, fault, n):
    own.set("p", fault)
    with house(own, tmp_path, CHAIN) as gateway, sdk(gateway) as client:
        with client.chat.completions.stream(
            model="smart", messages=MESSAGES, tools=TOOLS, tool_choice="required", n=n
        ) as events:
            for _ in events:
                pass
            answer = events.get_final_completion()
        assert len(answer.choices) == n
        for choice in answer.choices:
            (call,) = choice.message.tool_calls
            assert call.function.name == "look_up"
            assert json.loads(call.function.arguments).keys() == {"word", "page"}
            assert choice.finish_reason == "tool_calls"


@pytest.mark.parametrize("lost", [1, 3])
def test_a_tool_call_that_lost_a_piece_is_not_told_as_whole(own, tmp_path, lost):
    own.set("p", faults.malformed(lost))
    with house(own, tmp_path, CHAIN) as gateway:
        answer = ask(gateway.port, chat("smart", stream=True, tools=TOOLS, tool_choice="required"))
        frames = [json.loads(data) for data in answer.events if data != "[DONE]"]
        calls = [
            call["function"].get("arguments") or ""
            for frame in frames
            for choice in frame.get("choices", ())
            for call in choice["delta"].get("tool_calls") or ()
        ]
        try:
            json.loads("".join(calls))
        except ValueError:
            assert "[DONE]" not in answer.events


def test_a_target_above_the_caller_s_price_is_passed_over(own, tmp_path):
    prices = (
        "prices: {p/m: [{input: 100.00, output: 400.00}], f/m: [{input: 0.01, output: 0.01}]}\n"
    )
    with house(own, tmp_path, CHAIN + prices) as gateway:
        answer = ask(gateway.port, chat("smart", max_tokens=99), x_gateway_max_cost_usd="0.01")
        assert answer.headers["x-gateway-path"] == "p/m:too_dear,f/m:ok"
        assert Decimal(answer.headers["x-gateway-cost-usd"]) <= Decimal("0.01")
        assert own.calls("p") == []


@pytest.mark.parametrize("fault", [faults.rate_limited(5), faults.overloaded()])
def test_a_chain_may_say_that_a_cause_stops_it(own, tmp_path, fault):
    own.set("p", fault)
    text = "chains: {smart: {try: [p/m, f/m], on: {rate_limited: stop, overloaded: stop}}}\n"
    with house(own, tmp_path, text) as gateway:
        answer = ask(gateway.port, chat("smart"))
        assert answer.status in {429, 503}
        assert len(own.calls("f")) == 0


def test_usage_is_always_asked_for_and_shown_only_to_who_asked(own, tmp_path):
    with house(own, tmp_path, CHAIN) as gateway:
        plain = ask(gateway.port, chat("smart", stream=True))
        wanted = ask(
            gateway.port, chat("smart", stream=True, stream_options={"include_usage": True})
        )
        for call in own.calls("p"):
            assert json.loads(call.body)["stream_options"]["include_usage"] is True
        assert not any(json.loads(data).get("usage") for data in plain.events[:-1])
        usage = json.loads(wanted.events[-2])
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == 40
        assert [row["flags"] for row in gateway.rows()] == ["", ""]
