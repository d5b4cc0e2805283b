"""Posts alerts to the file's webhook, off the road: a bounded queue, bounded tries, no secret.

Source: gateway.md 6, "Alert at twice the usual". The address rules are those of upstreams: https
and public unless the file says otherwise, checked when connecting; redirects are not followed.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from gateway.clock import Clock, Deadline
from gateway.core.alerts import Webhook
from gateway.core.events import Event, SpendAlert, StateTrouble
from gateway.core.ports import Transport, UpstreamRequest
from gateway.core.target import Failed, Timeouts
from gateway.wire import json

WAITING = 256  # alerts not yet sent; beyond it the oldest are dropped, and that is told
PATIENCE = 10.0  # seconds for one try
PAUSES = (1.0, 5.0, 25.0)  # seconds before each further try
MARKUP = str.maketrans(dict.fromkeys("<>@&*_`[]", "?"))  # a caller's user name calls nobody
AGAIN = frozenset({408, 429})  # and 5xx: may be better later


class Alarm:
    """A `Listener`; `run` is for its owner and never ends by itself."""

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        webhook: Callable[[], Webhook | None],
        heard: Callable[[Event], None],
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._webhook = webhook
        self._trouble = heard
        self._waiting: deque[SpendAlert] = deque()
        self._wake = asyncio.Event()

    def heard(self, event: Event) -> None:
        if not isinstance(event, SpendAlert) or self._webhook() is None:
            return
        if len(self._waiting) >= WAITING:
            self._waiting.popleft()
            self._trouble(StateTrouble("webhook", "queue", "full"))
        self._waiting.append(event)
        self._wake.set()

    async def run(self) -> None:
        """Send what waits, one after the other; what is not sent in the end is told in the log."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                problem = await self._deliver(body_of(self._waiting.popleft()))
                if problem:
                    self._trouble(StateTrouble("webhook", "send", problem))

    async def _deliver(self, body: bytes) -> str:
        """What went wrong the last time, or ""."""
        for pause in (*PAUSES, None):
            webhook = self._webhook()
            if webhook is None:  # the file was changed
                return ""
            problem, again = await self._post(webhook, body)
            if not problem or not again or pause is None:
                return problem
            await self._clock.sleep(pause)
        return ""

    async def _post(self, webhook: Webhook, body: bytes) -> tuple[str, bool]:
        """What went wrong, in a word without the address, and whether to try again."""
        request = UpstreamRequest(
            "POST",
            webhook.url.reveal(),
            {"content-type": "application/json", "user-agent": "llm-gateway"},
            body,
            stream=False,
            allow_private=webhook.allow_private,
        )
        deadline = Deadline(self._clock.monotonic() + PATIENCE)
        try:
            async with self._transport.send(request, Timeouts(), PATIENCE, deadline) as reply:
                status = reply.status
        except Failed as failed:
            return failed.failure.cause.value, True
        if 200 <= status < 300:
            return "", False
        return f"HTTP_{status}", status in AGAIN or status >= 500


def body_of(alert: SpendAlert) -> bytes:
    """`text` is what chat services show; `id` tells a repetition of the same alert."""
    told = alert.told()
    usual = f"usually ${told['usual_usd']} a day" if alert.mover.days else "the first day"
    user = told["user"].translate(MARKUP)
    text = f"{user} of key {told['key']} spent ${told['spent_usd']} today, {usual}."
    alone = "/".join((told["day"], told["key"], told["user"]))
    return json.dumps({"event": "spend_alert", "id": f"spend/{alone}", "text": text, **told})
