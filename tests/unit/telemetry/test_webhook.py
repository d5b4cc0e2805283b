"""Alerts reach the webhook, and nobody waits for it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import date

from aiohttp import web

from gateway.core.alerts import Mover, SpendRule, Webhook
from gateway.core.events import Event, Lifecycle, SpendAlert, StateTrouble
from gateway.core.target import Secret
from gateway.core.usage import NANO
from gateway.telemetry.webhook import PAUSES, WAITING, Alarm
from gateway.transport.http import HttpTransport
from gateway.wire import json
from tests.support.clock import ManualClock

RULE = SpendRule()
DAY = date(2027, 1, 15)


def alert(user: str = "ann", days: int = 7) -> SpendAlert:
    return SpendAlert(Mover("k", user, 3 * NANO, 7 * NANO, days), DAY, RULE)


class Hook:
    """A server that answers what it is told to, and an alarm that posts there."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.got: list[bytes] = []
        self.clock = ManualClock()
        self.troubles: list[Event] = []
        self.webhook: Webhook | None = None
        self.alarm: Alarm

    async def answer(self, request: web.Request) -> web.Response:
        assert request.path_qs == "/in?token=s3cr3t"
        assert request.content_type == "application/json"
        self.got.append(await request.read())
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers={"location": "/elsewhere"})

    async def until(self, true: Callable[[], object]) -> None:
        """Let the alarm go on; a pause between tries is over as soon as it begins."""
        async with asyncio.timeout(10):
            while not true():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def hook(*statuses: int, allow_private: bool = True) -> AsyncIterator[Hook]:
    made = Hook(*statuses)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/in?token=s3cr3t"
    made.webhook = Webhook(Secret(url), allow_private)
    transport = HttpTransport(made.clock)
    made.alarm = Alarm(transport, made.clock, lambda: made.webhook, made.troubles.append)
    running = asyncio.ensure_future(made.alarm.run())
    try:
        yield made
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await transport.close()
        await runner.cleanup()


async def test_an_alert_is_posted_as_json_that_a_chat_can_show() -> None:
    async with hook() as made:
        made.alarm.heard(Lifecycle("started"))
        made.alarm.heard(alert("<!here> ann@x", days=0))
        made.alarm.heard(alert())
        await made.until(lambda: len(made.got) == 2)
        first, second = (json.loads(body) for body in made.got)
    who = {"key": "k", "user": "ann", "day": "2027-01-15", "spent_usd": "3", "usual_usd": "1"}
    assert second == who | {
        "event": "spend_alert",
        "id": "spend/2027-01-15/k/ann",
        "text": "ann of key k spent $3 today, usually $1 a day.",
    }
    assert first["text"] == "?!here? ann?x of key k spent $3 today, the first day."
    assert first["user"] == "<!here> ann@x"
    assert made.troubles == []


async def test_what_may_be_better_later_is_tried_again_and_then_told_without_the_address() -> None:
    async with hook(*[503] * (len(PAUSES) + 1)) as made:
        made.alarm.heard(alert())
        for number, pause in enumerate(PAUSES, 1):
            await made.until(lambda tries=number: len(made.got) == tries)
            await made.until(lambda due=pause: _due(made.clock, due))
            made.clock.advance(pause)
        await made.until(lambda: made.troubles)
        assert len(made.got) == len(PAUSES) + 1
        assert len(set(made.got)) == 1
        assert made.troubles == [StateTrouble("webhook", "send", "HTTP_503")]
        made.alarm.heard(alert())
        await made.until(lambda: len(made.got) == len(PAUSES) + 2)


def _due(clock: ManualClock, seconds: float) -> bool:
    """Whether somebody sleeps for so long."""
    return any(abs(when - clock.monotonic() - seconds) < 1e-6 for when, *_ in clock._timers)


async def test_a_refusal_or_a_redirect_is_final() -> None:
    for status in (404, 302):
        async with hook(status) as made:
            made.alarm.heard(alert())
            await made.until(lambda made=made: made.troubles)
            assert made.troubles == [StateTrouble("webhook", "send", f"HTTP_{status}")]
            assert len(made.got) == 1


async def test_a_private_address_is_not_dialled_unless_the_file_says_so() -> None:
    async with hook(allow_private=False) as made:
        made.alarm.heard(alert())
        for pause in PAUSES:
            await made.until(lambda due=pause: _due(made.clock, due))
            made.clock.advance(pause)
        await made.until(lambda: made.troubles)
        assert made.troubles == [StateTrouble("webhook", "send", "connect")]
        assert made.got == []


async def test_the_queue_is_bounded_and_the_oldest_go() -> None:
    async with hook() as made:
        for number in range(WAITING + 1):
            made.alarm.heard(alert(str(number)))
        assert made.troubles == [StateTrouble("webhook", "queue", "full")]
        await made.until(lambda: len(made.got) == WAITING)
        assert json.loads(made.got[0])["user"] == "1"


async def test_without_a_webhook_nothing_waits() -> None:
    async with hook() as made:
        there, made.webhook = made.webhook, None
        made.alarm.heard(alert("early"))
        made.webhook = there
        made.alarm.heard(alert("late"))
        await made.until(lambda: made.got)
        assert [json.loads(body)["user"] for body in made.got] == ["late"]
