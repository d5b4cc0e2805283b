"""One tiny request to every target of a configuration: do keys, names and addresses hold?"""

import asyncio
from collections.abc import Mapping
from typing import Any

from gateway.cli import screen
from gateway.clock import Clock, Deadline, SystemClock
from gateway.config.load import Loaded
from gateway.core.attempt import StreamEvent
from gateway.core.ports import Transport
from gateway.core.request import Request
from gateway.core.target import Failed, Failure, Target, Timeouts
from gateway.core.usage import UNKNOWN, in_force
from gateway.providers.registry import adapter
from gateway.server.facades.chat import ChatFacade
from gateway.transport.http import HttpTransport
from gateway.wire import json

PATIENCE = 30.0  # seconds for an answer
AT_ONCE = 4
MAX_ANSWER = 1024 * 1024
MAX_ERROR = 64 * 1024
OPENAI_HOST = "https://api.openai.com/"  # newer models there refuse max_tokens


async def check_live(loaded: Loaded) -> list[dict[str, Any]]:
    """A row a target (and key), in order of the file; the simulator is left out.

    `{"target", "key", "model", "ok", "cause", "message", "status", "ms", "cost_usd"}`
    """
    targets = [t for t in loaded.snapshot.targets.values() if t.kind != "sim"]
    clock = SystemClock()
    transport = HttpTransport(clock)
    door = asyncio.Semaphore(AT_ONCE)
    rows: dict[str, dict[str, Any]] = {}
    try:
        with screen.progress(len(targets)) as bar:

            async def one(target: Target) -> None:
                async with door:
                    rows[target.id] = await ask(target, transport, clock)
                bar.step(target.id)

            async with asyncio.TaskGroup() as group:
                for target in targets:
                    group.create_task(one(target))
    finally:
        await transport.close()
    return [rows[target.id] for target in targets]


async def ask(target: Target, transport: Transport, clock: Clock) -> dict[str, Any]:
    """One request of one token, and what became of it."""
    began = clock.monotonic()
    row: dict[str, Any] = {
        "target": target.name,
        "key": target.key,
        "model": f"{target.provider}/{target.model}",
        "ok": False,
        "cause": None,
        "message": "",
        "status": None,
        "cost_usd": UNKNOWN.dollars(),
    }
    try:
        event = await _call(row, target, transport, clock)
    except Failed as failed:
        row |= {"cause": failed.failure.cause.value, "message": _message(failed.failure)}
    else:
        row["ok"] = True
        price = in_force(target.prices, clock.now())
        if price is not None and event.usage is not None:
            row["cost_usd"] = price.cost(event.usage).dollars()
    row["ms"] = round((clock.monotonic() - began) * 1000)
    return row


async def _call(
    row: dict[str, Any], target: Target, transport: Transport, clock: Clock
) -> StreamEvent:
    """The answer as an event. Raises Failed."""
    provider, request = adapter(target), request_for(target)
    sending = transport.send(
        provider.request(request, "check-live"),
        Timeouts(answer=PATIENCE),
        PATIENCE,
        Deadline(clock.monotonic() + PATIENCE),
    )
    async with sending as reply:
        row["status"] = reply.status
        if not 200 <= reply.status < 300:
            body = await reply.read(MAX_ERROR)
            raise Failed(provider.failure(reply.status, reply.headers, body))
        body = await reply.read(MAX_ANSWER)
    event = provider.completion(request, body)
    if event.failure is not None and not _cut_short(body):
        raise Failed(event.failure)
    return event


def _cut_short(body: bytes) -> bool:
    """Whether one token was too few for content, which is no fault of the target."""
    try:
        answer = json.loads(body)
        return bool(answer["choices"][0]["finish_reason"] == "length")
    except (json.JSONError, LookupError, TypeError):
        return False


def request_for(target: Target) -> Request:
    """`hi`, to be answered in one token."""
    newer = target.base_url.startswith(OPENAI_HOST.rstrip("/"))
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": "hi"}],
        "max_completion_tokens" if newer else "max_tokens": 1,
    }
    return ChatFacade().parse(json.dumps(body))


def _message(failure: Failure) -> str:
    return f"HTTP {failure.status}: {failure.message}" if failure.status else failure.message


def told(row: Mapping[str, Any]) -> str:
    """A row as a line."""
    name = row["target"] if row["key"] == "main" else f"{row['target']}#{row['key']}"
    time = screen.milliseconds(row["ms"])
    if row["ok"]:
        return f"live  {name}  ok  {time}  {screen.dollars(row['cost_usd'])}"
    return f"live  {name}  {row['cause']}  {time}  {row['message']}"
