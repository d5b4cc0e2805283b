"""Money end to end: the ledger and the provider's invoice, prices by day, alerts that arrive."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Self

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from chaos import faults
from chaos.upstream import UpstreamThread
from gateway.cli.main import cli
from gateway.core.events import SpendAlert
from gateway.wire import json
from tests.integration.rig import (
    Ears,
    Gateway,
    Leaping,
    Line,
    ask,
    chat,
    post,
    provider,
    until,
)

DAY = 86_400.0
PRICES = """
prices:
  p/m: [{input: 0.15, output: 0.0375}]
  f/m: [{input: 1, output: 3}]
"""
CLOCKS = "defaults: {first_token: 300ms, answer: 300ms, idle: 300ms, retry: {backoff: 1ms}}\n"


@pytest.fixture
def sim() -> Iterator[UpstreamThread]:
    with UpstreamThread() as running:
        yield running


def price(name: str, prompt: int, completion: int) -> Fraction:
    """Dollars, as a provider would write them."""
    into, out = {"p": ("0.15", "0.0375"), "f": ("1", "3")}[name]
    return (prompt * Fraction(into) + completion * Fraction(out)) / 10**6


def invoice(sim: UpstreamThread, name: str) -> str:
    """What the simulator would let us download: a row a call."""
    rows = ["date,model,input_tokens,output_tokens,cost_usd"]
    for call in sim.calls(name):
        cost = price(name, call.prompt_tokens, call.completion_tokens)
        figures = f"{call.prompt_tokens},{call.completion_tokens},{float(cost):.12f}"
        rows.append(f"{today()},m,{figures}")
    return "\n".join(rows) + "\n"


def reconciled(gateway: Gateway, text: str, *more: str) -> Result:
    """`gateway spend reconcile` beside the running gateway."""
    gateway.rows()  # everything is shipped
    path = gateway.folder.with_name("export.csv")
    path.write_text(text)
    return CliRunner().invoke(
        cli, ["spend", "reconcile", str(path), "-c", str(gateway.path), *more]
    )


@contextlib.contextmanager
def house(sim: UpstreamThread, folder: Path) -> Iterator[Gateway]:
    text = f"providers:\n{provider(sim, 'p')}{provider(sim, 'f')}"
    text += "chains: {smart: [p/m, f/m]}\n" + CLOCKS + PRICES
    with Gateway(text, folder / "state", file=True) as gateway:
        yield gateway


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def test_nothing_is_unexplained_after_failures_and_fallbacks(
    sim: UpstreamThread, tmp_path: Path
) -> None:
    with house(sim, tmp_path) as gateway:
        for fault in (
            None,
            faults.rate_limited(),
            faults.server_error(),
            faults.no_done(),
            faults.context_length(),
            faults.usage_then_cut(),
            faults.auth(),
        ):
            for stream in (False, True):
                sim.set("p", fault)
                ask(gateway.port, chat("smart", stream=stream))
        gateway.at_rest()
        for name, sorts in (("p", {"answers", "failures"}), ("f", {"answers"})):
            assert sum(call.prompt_tokens for call in sim.calls(name))
            done = reconciled(gateway, invoice(sim, name), "--provider", name, "--json")
            assert done.exit_code == 0, done.output
            (row,) = json.loads(done.stdout.encode())["rows"]
            assert sorts <= set(row)
            assert "estimates" not in row
        one_more = invoice(sim, "p") + f"{today()},m,1,0,0\n"
        done = reconciled(gateway, one_more, "--provider", "p", "--csv")
        assert done.exit_code == 10
        assert f"{today()},m,unexplained,,1,0,,0" in done.stdout


def test_a_caller_who_leaves_is_cancelled_and_its_estimate_stands_apart(
    sim: UpstreamThread, tmp_path: Path
) -> None:
    with house(sim, tmp_path) as gateway:
        sim.set("p", faults.stall(20))
        with Line(gateway.port) as line:
            line.send(post(chat("smart", stream=True)))
            line.until(b"data: ")
            line.rst()
        gateway.at_rest()
        done = reconciled(gateway, invoice(sim, "p"), "--json")
        (row,) = json.loads(done.stdout.encode())["rows"]
        billed = sim.invoice("p")
        assert row["provider"]["input"] == billed.prompt_tokens > 0
        assert row["estimates"]["calls"] == 1
        left = {
            "input": billed.prompt_tokens - row["estimates"]["input"],
            "output": billed.completion_tokens - row["estimates"]["output"],
        }
        assert left.items() <= row["unexplained"].items()
        assert (done.exit_code == 0) is (not any(left.values()))


def test_a_call_has_the_price_of_its_day(sim: UpstreamThread, tmp_path: Path) -> None:
    """Across midnight (UTC), and whatever the file says of yesterday later."""
    clock = Leaping()
    midnight = (clock.now() // DAY + 1) * DAY
    tomorrow = datetime.fromtimestamp(midnight, UTC).date()
    head = f"providers:\n{provider(sim, 'p')}chains: {{smart: [p/m]}}\nprices:\n  p/m:\n"
    rows = "    - {from: 2025-01-01, input: 1, output: 1}\n"
    later = f"    - {{from: {tomorrow}, input: 2, output: 2}}\n"
    with Gateway(head + rows + later, tmp_path / "state", clock=clock, file=True) as gateway:
        before = ask(gateway.port, chat("smart"))
        clock.ahead += midnight - clock.now()
        after = ask(gateway.port, chat("smart"))
        gateway.at_rest()
        first, second = booked = gateway.rows()
        assert first["price_id"] == "yaml:p/m@2025-01-01"
        assert second["price_id"] == f"yaml:p/m@{tomorrow}"
        assert second["day"] == first["day"] + 1
        assert second["nano_usd"] == 2 * first["nano_usd"] > 0
        costs = [Fraction(told.headers["x-gateway-cost-usd"]) * 10**9 for told in (before, after)]
        assert costs == [row["nano_usd"] for row in booked]
        gateway.write(head + rows.replace("input: 1", "input: 5") + later)
        assert gateway.wait(gateway.house.reload()).problem == ""
        assert gateway.rows() == booked, "what was booked stays"


class Hook:
    """A webhook in a thread of its own."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    async def _answer(self, request: web.Request) -> web.Response:
        self.got.append(await request.read())
        return web.Response()

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/s3cr3t", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/s3cr3t"
        return runner

    def _serve(self) -> None:
        runner = self._loop.run_until_complete(self._start())
        self._up.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


def test_who_spends_too_much_is_told_once_to_everybody_who_listens(
    sim: UpstreamThread, tmp_path: Path
) -> None:
    ears = Ears()
    with Hook() as hook:
        text = f"""
providers:
{provider(sim, "p")}
chains: {{smart: [p/m]}}
prices: {{p/m: [{{input: 1, output: 1, request: 0.02}}]}}
observe:
  alerts:
    spend: {{floor_usd: 0.03}}
    webhook: "${{HOOK}}"
    allow_http: true
    allow_private: true
"""
        env = {"HOOK": hook.url}
        with Gateway(text, tmp_path / "state", env, (ears,), file=True) as gateway:
            for user in ("ann", "ann", "bob"):
                ask(gateway.port, chat("smart"), x_gateway_user=user)
            until(lambda: hook.got)
            ask(gateway.port, chat("smart"), x_gateway_user="ann")
            gateway.rows()
            gateway.wait(gateway.house.state.watch.look())
            (alert,) = [event for event in ears.events if isinstance(event, SpendAlert)]
            (told,) = [json.loads(body) for body in hook.got]
            assert (told["key"], told["user"], told["usual_usd"]) == ("local", "ann", "0")
            assert told == told | alert.told()
            done = CliRunner().invoke(
                cli, ["spend", "--movers", "-c", str(gateway.path), "--json"], env=env
            )
            assert [m["user"] for m in json.loads(done.stdout.encode())["movers"]] == ["ann"]
            metrics = gateway.do(gateway.house.metrics.render).decode()
            assert "gateway_spend_alerts_total 1.0" in metrics
            assert "s3cr3t" not in json.dumps(gateway.admin("/admin/config")).decode()
