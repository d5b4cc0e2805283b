"""Money that is bounded, over sockets: never passed if hard, and whole again in time."""

import asyncio
import concurrent.futures
import contextlib
import json
import re
import sqlite3
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest

from chaos import faults
from chaos.answers import Manner
from chaos.upstream import UpstreamThread
from tests.integration.rig import Gateway, Leaping, Line, ask, chat, declared, post, provider
from tests.support.processes import Nursery

TOKENS = 50  # of every answer, and the most that is asked for
EACH = TOKENS * 1_000  # nano-dollars: a dollar a million; prompts are free unless a test says
PRICES = "prices:\n  p/m: [{input: 0, output: 1}]\n  f/m: [{input: 0, output: 4}]\n"
CHAINS = "chains: {smart: [p/m], both: [p/m, f/m]}\n"
DAY = 86_400.0


@pytest.fixture
def sim():
    with UpstreamThread(Manner(tokens=2 * TOKENS)) as running:
        yield running


@contextlib.contextmanager
def house(sim, folder, text, prices=PRICES, chains=CHAINS):
    whole = f"providers:\n{provider(sim, 'p')}{provider(sim, 'f')}{chains}{text}{prices}"
    whole += "defaults: {retry: {backoff: 1ms}}\n"
    clock = Leaping()
    with Gateway(whole, folder / "state", clock=clock) as gateway:
        gateway.leap = lambda seconds: setattr(clock, "ahead", clock.ahead + seconds)
        yield gateway
        gateway.at_rest()


def tier(budgets, more=""):
    return f"tiers: {{t: {{budgets: {budgets}{more}}}}}\nkeys:\n" + declared("k", "tier: t")


def call(gateway, model="smart", max_tokens=TOKENS, who="k", user=None, **members):
    hints = {} if user is None else {"x_gateway_user": user}
    body = chat(model, max_tokens=max_tokens, **members)
    return ask(gateway.port, body, x_api_key=who, **hints)


def dollars(nano):
    return f"{nano / 1e9:.9f}".rstrip("0").rstrip(".")


def judge_refusal(answer, *says):
    """A 429 that no SDK repeats."""
    error = answer.error
    assert answer.status == 429, answer.body
    assert (error["type"], error["code"]) == ("insufficient_quota",) * 2
    assert error["retryable"] is False
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    for words in says:
        assert words in error["message"]
    return error


def spent(folder):
    """Of every budget, and of all lines."""
    with contextlib.closing(sqlite3.connect(folder / "state/gateway.sqlite3")) as db:
        (lines,) = db.execute("SELECT coalesce(sum(nano_usd), 0) FROM ledger").fetchone()
        return dict(db.execute("SELECT account, nano_usd FROM budget").fetchall()), lines


# ------------------------------------------------------------------------------- a caller's money


def test_a_spent_budget_is_refused_until_its_period_ends_and_counts_what_the_ledger_has(
    sim, tmp_path
):
    with house(sim, tmp_path, tier(f"[{{usd: {dollars(3 * EACH)}, per: day}}]")) as gateway:
        left = [call(gateway).headers["x-gateway-budget-remaining-usd"] for _ in range(3)]
        assert left == [dollars(2 * EACH), dollars(EACH), "0"]
        refused = call(gateway)
        today = datetime.fromtimestamp(gateway.house.clock.now(), UTC)
        error = judge_refusal(
            refused,
            f"${dollars(3 * EACH)} per day of this API key",
            f"${dollars(3 * EACH)} is spent",
        )
        assert refused.headers["x-gateway-budget-remaining-usd"] == "0"
        assert error["scope"] == "key"
        ends = datetime.fromisoformat(error["resets_at"])
        assert (ends - today).total_seconds() <= DAY
        assert (ends.hour, ends.minute, ends.second) == (0, 0, 0)
        assert len(sim.calls()) == 3
        gateway.rows()
        assert spent(tmp_path) == (
            {f"key:k:budget:day:{today:%Y-%m-%d}": 3 * EACH},
            3 * EACH,
        )
        gateway.leap((ends - today).total_seconds())
        assert call(gateway).status == 200


def test_callers_and_operators_see_what_is_left_of_each_budget_through_a_restart(sim, tmp_path):
    text = (
        f"tiers:\n  t: {{budgets: [{{usd: {dollars(3 * EACH)}, per: day}},"
        " {usd: 1, per: request}]}\n"
        f"  us: {{budgets: [{{usd: 2, per: total, hard: false}}]}}\nteams: {{us: {{tier: us}}}}\n"
        "keys:\n" + declared("k", "tier: t, team: us") + declared("other", "tier: t")
    )
    for before in (0, 1):
        with house(sim, tmp_path, text) as gateway:

            def told(who):
                with Line(gateway.port) as line:
                    line.send(post(b"", "/v1/usage", x_api_key=who).replace(b"POST", b"GET", 1))
                    return line.answer("GET").json()["budgets"]

            today = datetime.fromtimestamp(gateway.house.clock.now(), UTC)
            day, team = told("k")
            assert [row["used_usd"] for row in (day, team)] == [dollars(before * EACH)] * 2
            assert call(gateway).status == 200
            gateway.at_rest()
            day, team = told("k")
            used = (before + 1) * EACH
            midnight = today.replace(hour=0, minute=0, second=0) + timedelta(days=1)
            assert day == {
                "account": f"key:k:budget:day:{today:%Y-%m-%d}",
                "scope": "key",
                "name": "k",
                "per": "day",
                "hard": True,
                "limit_usd": dollars(3 * EACH),
                "used_usd": dollars(used),
                "remaining_usd": dollars(3 * EACH - used),
                "resets_at": f"{midnight:%Y-%m-%dT%H:%M:%SZ}",
            }
            assert (team["account"], team["hard"], team["resets_at"]) == (
                "team:us:budget:total", False, None
            )  # fmt: skip
            assert team["remaining_usd"] == dollars(2 * 10**9 - used)
            assert [row["used_usd"] for row in told("other")] == ["0"]
            assert gateway.admin("/admin/limits?key=k")["budgets"] == [day, team]
            everybody = gateway.admin("/admin/limits")["budgets"]
            assert everybody == [team, day, *told("other")]
            assert gateway.admin("/admin/limits?limit=2")["more"]


def test_the_message_names_the_largest_max_tokens_that_fits(sim, tmp_path):
    with house(sim, tmp_path, tier(f"[{{usd: {dollars(EACH + 7_000)}, per: month}}]")) as gateway:
        assert call(gateway).status == 200
        judge_refusal(call(gateway), "max_tokens of at most 7 it fits now", "per month")
        assert call(gateway, max_tokens=8).status == 429
        assert call(gateway, max_tokens=7).status == 200


def test_a_hard_budget_bounds_the_prompt_by_its_bytes_and_tells_the_upstream_the_output(
    sim, tmp_path
):
    prices = "prices: {p/m: [{input: 1, output: 1}], f/m: free}\n"
    text = tier("[{usd: 1, per: total}]", ", default_max_tokens: 33")
    with house(sim, tmp_path, text, prices) as gateway:
        body = chat("smart")
        assert ask(gateway.port, body, x_api_key="k").status == 200
        assert json.loads(sim.calls()[0].body)["max_tokens"] == 33
        ask(gateway.port, chat("smart", n=2, max_completion_tokens=4), x_api_key="k")
        said = json.loads(sim.calls()[1].body)
        assert said["max_completion_tokens"] == 4
        assert "max_tokens" not in said
    with house(sim, tmp_path / "tight", tier("[{usd: 0.0001, per: total}]"), prices) as gateway:
        error = judge_refusal(call(gateway, max_tokens=5), "does not renew itself")
        assert error["resets_at"] is None
        held = Fraction(re.search(r"may cost \$(0\.\d+)", error["message"])[1]) * 10**9
        size = len(json.dumps(body["messages"]))
        assert size * 1_000 < held < (size + 120) * 1_000


def test_a_dearer_fallback_is_skipped_when_the_budget_cannot_hold_it_too(sim, tmp_path):
    sim.set("p", faults.overloaded())
    with house(sim, tmp_path, tier(f"[{{usd: {dollars(3 * EACH)}, per: day}}]")) as gateway:
        answer = call(gateway, "both")
        assert answer.status >= 500
        assert "f/m:too_dear" in answer.headers["x-gateway-path"]
        assert sim.calls("f") == []
        sim.set("p", faults.overloaded(), times=1)
        assert call(gateway, "both").status == 200
    with house(
        sim, tmp_path / "more", tier(f"[{{usd: {dollars(5 * EACH)}, per: day}}]")
    ) as gateway:
        sim.set("p", faults.overloaded())
        assert call(gateway, "both").headers["x-gateway-target"] == "f/m"


def test_one_request_may_cost_so_much_and_no_more(sim, tmp_path):
    text = tier(f"[{{usd: {dollars(2 * EACH)}, per: request}}]")
    with house(sim, tmp_path, text) as gateway:
        answer = call(gateway, "both")
        assert answer.headers["x-gateway-target"] == "p/m"
        sim.set("p", faults.overloaded())
        assert "f/m:too_dear" in call(gateway, "both").headers["x-gateway-path"]
        error = call(gateway, max_tokens=3 * TOKENS).error
        assert error["code"] == "no_capable_target"
        assert f"the budget per request is ${dollars(2 * EACH)}" in error["message"]


def test_a_soft_budget_lets_what_is_under_way_pass_it_and_then_nobody(sim, tmp_path):
    prices = "prices: {p/m: [{input: 100, output: 0}], f/m: free}\n"
    text = tier("[{usd: 0.000001, per: day, hard: false}]")
    with house(sim, tmp_path, text, prices) as gateway:
        assert call(gateway, max_tokens=None).status == 200
        assert json.loads(sim.calls()[0].body)["max_tokens"] is None
        judge_refusal(call(gateway))
    assert spent(tmp_path)[1] > 1_000


def test_what_has_no_price_is_not_asked_under_a_hard_budget(sim, tmp_path):
    prices = "prices: {unpriced: allow, f/m: [{input: 0, output: 1}]}\n"
    with house(sim, tmp_path, tier("[{usd: 1, per: day}]"), prices) as gateway:
        assert call(gateway, "both").headers["x-gateway-path"].startswith("p/m:too_dear,f/m")
        assert "has no bound" in call(gateway).error["message"]
    soft = tier("[{usd: 1, per: day, hard: false}]")
    with house(sim, tmp_path / "soft", soft, prices) as gateway:
        assert call(gateway).headers["x-gateway-cost-usd"] == "unknown"


def test_users_sessions_and_teams_have_budgets_of_their_own(sim, tmp_path):
    one = f"[{{usd: {dollars(EACH)}, per: day}}]"
    text = (
        f"tiers:\n  us: {{budgets: [{{usd: {dollars(4 * EACH)}, per: day}}]}}\n"
        f"  t: {{per_session: {{budgets: {one}}}}}\nteams: {{us: {{tier: us}}}}\nkeys:\n"
        + declared("k", f"team: us, per_user: {{budgets: {one}}}")
        + declared("s", "team: us, tier: t")
    )
    with house(sim, tmp_path, text) as gateway:
        assert call(gateway, user="ann").status == 200
        assert judge_refusal(call(gateway, user="ann"), "the user 'ann'")["scope"] == "user"
        assert call(gateway, user="bob").status == 200
        body = chat("smart", max_tokens=TOKENS)
        in_session = {"x_api_key": "s", "x_gateway_session": "s1"}
        assert ask(gateway.port, body, **in_session).status == 200
        judge_refusal(ask(gateway.port, body, **in_session), "the session 's1'")
        assert call(gateway, who="s").status == 200
        assert judge_refusal(call(gateway, who="s"), "the team 'us'")["scope"] == "team"


def test_a_cut_stream_is_paid_for_and_its_rest_is_free_again(sim, tmp_path):
    sim.set("p", faults.cut(after=10), times=1)
    with house(sim, tmp_path, tier(f"[{{usd: {dollars(2 * EACH)}, per: day}}]")) as gateway:
        cut = call(gateway, stream=True)
        assert b"[DONE]" not in cut.body
        gateway.at_rest()
        (row,) = gateway.rows()
        assert 0 < row["nano_usd"] < EACH
        assert spent(tmp_path) == (
            {next(iter(spent(tmp_path)[0])): row["nano_usd"]},
            row["nano_usd"],
        )
        assert call(gateway).status == 200


def test_an_answer_that_a_budget_cut_short_is_not_kept_for_who_has_none(sim, tmp_path):
    chains = "chains: {smart: {try: [p/m], cache: {exact: 5m, scope: team}}}\n"
    text = (
        "tiers: {t: {budgets: [{usd: 1, per: day}], default_max_tokens: 5}}\nteams: {us: {}}\n"
        "keys:\n" + declared("k", "team: us, tier: t") + declared("free", "team: us")
    )
    with house(sim, tmp_path, text, chains=chains) as gateway:
        used = [
            ask(gateway.port, chat("smart"), x_api_key=who).json()["usage"]["completion_tokens"]
            for who in ("k", "free", "k", "free")
        ]
        assert used == [5, 2 * TOKENS] * 2
        assert len(sim.calls()) == 2


# ------------------------------------------------------------------------------------- a crowd


def test_two_hundred_at_once_over_four_processes_spend_what_forty_may(sim, tmp_path):
    number, room = 200, 40
    sim.manner("p", Manner(tokens=2 * TOKENS, latency=1.5))
    file = tmp_path / "gateway.yaml"
    file.write_text(
        "server: {listen: 127.0.0.1:0, admin: 127.0.0.1:0, lame_duck: 0s, drain: 5s}\n"
        f"state: {{dir: {tmp_path}/state}}\nproviders:\n{provider(sim, 'p')}"
        f"chains: {{smart: [p/m]}}\nprices: {{p/m: [{{input: 0, output: 1}}]}}\n"
        + tier(f"[{{usd: {dollars(room * EACH)}, per: month}}]")
    )
    with Nursery() as nursery, concurrent.futures.ThreadPoolExecutor(number) as pool:
        arguments = ["serve", "--config", file]
        gateways = [nursery.start(arguments, tmp_path / f"log{n}") for n in range(4)]

        async def up():
            return await asyncio.gather(*(gateway.up() for gateway in gateways))

        ports = asyncio.run(up())
        body = chat("smart", max_tokens=TOKENS)
        asked = [pool.submit(ask, ports[n % 4], body, x_api_key="k") for n in range(number)]
        answers = [one.result() for one in asked]
        for gateway in gateways:
            gateway.signal(15)
        assert [asyncio.run(gateway.ended()) for gateway in gateways] == [0] * 4
    good = [answer for answer in answers if answer.status == 200]
    for answer in answers:
        if answer.status != 200:
            judge_refusal(answer)
    budgets, lines = spent(tmp_path)
    assert list(budgets.values()) == [lines]
    assert lines == len(sim.calls()) * EACH <= room * EACH
    assert room // 2 <= len(good) == len(sim.calls()) <= room
