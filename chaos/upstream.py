"""The simulator: a real HTTP server on loopback that speaks OpenAI's dialect and fails to order.

One piece of code for the demo, the tests, `gateway chaos` and `kind: sim`. Several named providers
live in one server, each below its own base URL `http://127.0.0.1:PORT/{name}/v1`:
`POST chat/completions` (streaming or not), `POST embeddings`, `GET models`.

Answers follow from the messages alone, so every provider says the same unless its `Manner` has a
`voice`. Tokens are exact by definition: `prompt_tokens` is the sum over the messages of the UTF-8
bytes of their text / 4, rounded up, at least 1; each content or tool-call event is one completion
token. Every call is logged and billed: prompt and written completion tokens if any content was
written or the answer was completed, nothing otherwise.

HTTP is spoken by hand, because a server library cannot lie about lengths, stop within a chunk or
reset. From outside: `POST /__sim/{name}/fault` with `{"kind": ..., "times": ..., options}`,
`DELETE` of the same, `GET /__sim/{name}/calls`. `python -m chaos.upstream --port 0` prints one JSON
line with the port and serves until SIGTERM.
"""

import argparse
import asyncio
import contextlib
import math
import re
import secrets
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from chaos import faults
from chaos.answers import Chat, Manner, Mistaken, chat_answer, embeddings, prompt_tokens
from chaos.connection import Asked, Connection, Unreadable
from chaos.faults import Answer, Fault, Step
from chaos.strict import Allowed, Meter, Tally
from gateway.clock import Clock, SystemClock
from gateway.wire import json

T = TypeVar("T")

FLUSH = 64 << 10  # what is due at once is written together, up to about this
KEEP_CALLS = 200_000
KEEP_NAMES = 1000
KEEP_BODIES = 64 << 20  # bytes; older calls keep everything but headers and body
ANY = "*"  # the name whose fault befalls every provider without one of its own

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# --------------------------------------------------------------------------------- what was called


@dataclass(slots=True)
class Call:
    """One call of a provider, filled in as it goes; times are the clock's monotonic seconds.

    `prompt_tokens` and `completion_tokens` are the billed ones. `finished`: the whole answer was
    written. `closed_by_client_after`: seconds from the whole request being read (`started`) to the
    client closing while the call was open, else None; that moment is `ended`. `status` is the one
    sent, 0 as long as no head was.
    """

    name: str
    attempt_id: str | None
    path: str
    headers: dict[str, str]
    body: bytes
    started: float
    fault: str | None = None
    status: int = 0
    ended: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finished: bool = False
    closed_by_client_after: float | None = None
    forgotten: bool = field(default=False, repr=False)  # `clear` came after it began
    meter: Meter | None = field(default=None, repr=False)  # of a strict provider


@dataclass(frozen=True, slots=True)
class Invoice:
    """What is owed: exact over all calls, also those no longer kept."""

    calls: int = 0
    billed_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Invoice") -> "Invoice":
        return Invoice(
            self.calls + other.calls,
            self.billed_calls + other.billed_calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(slots=True)
class _Provider:
    """One name: its manner, its faults to come, its counters."""

    manner: Manner | None = None
    script: deque[Fault | None] = field(default_factory=deque)
    standing: Fault | None = None
    times: int | None = None  # how often `standing` is still to happen; None: for ever
    invoice: Invoice = field(default_factory=Invoice)
    in_flight: int = 0
    max_in_flight: int = 0
    allowed: dict[str, Allowed] = field(default_factory=dict)  # by model
    meters: dict[tuple[str, str], Meter] = field(default_factory=dict)  # by key and model

    def next(self) -> Fault | None:
        if self.script:
            return self.script.popleft()
        if self.times is not None:
            if self.times <= 0:
                self.standing = self.times = None
                return None
            self.times -= 1
        return self.standing

    def forget(self) -> None:
        self.script.clear()
        self.manner = self.standing = self.times = None
        self.invoice, self.max_in_flight = Invoice(), self.in_flight
        self.allowed, self.meters = {}, {}

    def meter(self, key: str, model: str) -> Meter | None:
        allowed = self.allowed.get(model)
        if allowed is None:
            return None
        found = self.meters.get((key, model))
        if found is None and len(self.meters) < KEEP_NAMES:
            found = self.meters[key, model] = Meter(allowed)
        return found

    @property
    def troubled(self) -> bool:
        return bool(self.script) or (self.standing is not None and self.times != 0)


# -------------------------------------------------------------------------------------- the server


class Upstream:
    """The simulator in the caller's event loop; see the module.

    A name needs no registration: it is well until something else is asked for it.
    """

    def __init__(
        self, manner: Manner | None = None, *, clock: Clock | None = None, keep: int = KEEP_CALLS
    ) -> None:
        self._manner = manner or Manner()
        self._clock = clock or SystemClock()
        self._server: asyncio.Server | None = None
        self._open: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._providers: dict[str, _Provider] = {}
        self._calls: deque[Call] = deque(maxlen=keep)
        self._heavy: deque[Call] = deque()
        self._weight = 0
        self._in_flight = self._max_in_flight = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self.port = 0
        self.connections_total = 0

    async def start(self, port: int = 0) -> None:
        """Listen on 127.0.0.1; port 0 takes a free one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), "127.0.0.1", port, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening, reset what is open, end every task. The log stays readable."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for connection in list(self._open):
            connection.reset()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._empty.wait()  # aborted transports are lost in the next turns
        if server is not None:
            await server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def base_url(self, name: str) -> str:
        """What a client or a configuration calls `base_url`."""
        return f"http://127.0.0.1:{self.port}/{name}/v1"

    def set(self, name: str, fault: Fault | None, *, times: int | None = None) -> None:
        """`fault` on every call of `name` from now on, or on the next `times`; None: well.

        Ends a script. The name `*` stands for every provider with no fault of its own.
        """
        provider = self._provider(name)
        provider.script.clear()
        provider.standing, provider.times = fault, times

    def script(self, name: str, faults: Iterable[Fault | None]) -> None:
        """One of `faults` per call (None: a well one), in order; then well again."""
        self.set(name, None)
        self._provider(name).script.extend(faults)

    def manner(self, name: str, manner: Manner | None) -> None:
        """How `name` answers from now on; None: like all the others."""
        self._provider(name).manner = manner

    def strict(self, name: str, allowed: Mapping[str, Allowed]) -> None:
        """From now on `name` counts what each key asks of these models; it refuses nobody."""
        provider = self._provider(name)
        provider.allowed, provider.meters = dict(allowed), {}

    def tallies(self, name: str) -> dict[tuple[str, str], Tally]:
        """What a strict provider counted, by (`authorization` of the call, model); live objects."""
        return {pair: meter.tally for pair, meter in self._provider(name).meters.items()}

    def calls(self, name: str | None = None) -> list[Call]:
        """The calls of `name` or of all, oldest first, those under way included; live objects."""
        return [call for call in self._calls if name is None or call.name == name]

    def invoice(self, name: str | None = None) -> Invoice:
        """What `name` or all of them have billed so far, those under way included."""
        if name is not None:
            return self._provider(name).invoice
        return sum((one.invoice for one in self._providers.values()), Invoice())

    def in_flight(self, name: str | None = None) -> int:
        """Calls read and not yet over."""
        return self._in_flight if name is None else self._provider(name).in_flight

    def max_in_flight(self, name: str | None = None) -> int:
        """The most there were at once."""
        return self._max_in_flight if name is None else self._provider(name).max_in_flight

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._open)

    def clear(self) -> None:
        """Forget faults, manners, calls and invoices.

        Calls under way go on and stay in flight, but appear in no list and no invoice any more.
        """
        for call in self._calls:
            call.forgotten = True
        for provider in self._providers.values():
            provider.forget()
        self._calls.clear()
        self._heavy.clear()
        self._weight, self._max_in_flight = 0, self._in_flight
        self.connections_total = len(self._open)

    # what connections call

    def joined(self, connection: Connection) -> None:
        self.connections_total += 1
        self._open.add(connection)
        self._empty.clear()
        if self._server is None:  # accepted while we closed
            connection.reset()
            return
        door = self._providers.get(ANY)
        if door is not None and self._at_the_door(door):
            door.next()
            connection.close()
            return
        # Owned: `close` ends every task of this set, and `_over` reports what one dies of.
        task = asyncio.get_running_loop().create_task(self._converse(connection))
        connection.task = task
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def parted(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._empty.set()

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            told = {"message": "the simulator is broken", "exception": error, "task": task}
            task.get_loop().call_exception_handler(told)

    @staticmethod
    def _at_the_door(door: _Provider) -> bool:
        coming = door.script[0] if door.script else door.standing if door.troubled else None
        return coming is not None and coming.kind == "hang_up"

    async def _converse(self, connection: Connection) -> None:
        try:
            while not connection.closing:
                request = await connection.request()
                if not await self._answer(connection, request):
                    break
                if request.headers.get("connection", "").lower() == "close":
                    break
        except Unreadable as error:
            connection.write(_error(400, str(error)))
        finally:
            if not connection.stale:
                connection.close()

    async def _answer(self, connection: Connection, request: Asked) -> bool:
        """Whether the connection may be used again."""
        first, _, rest = request.path.strip("/").partition("/")
        if first == "__sim":
            name, _, what = rest.partition("/")
            connection.write(self._controlled(request, name, what))
        elif not _NAME.fullmatch(first) or self._full(first):
            connection.write(_error(404, "no such provider"))
        elif (request.method, rest) == ("GET", "v1/models"):
            connection.write(_models(first))
        elif request.method == "POST" and rest in ("v1/chat/completions", "v1/embeddings"):
            return await self._called(connection, request, first, rest)
        else:
            connection.write(_error(404, f"Invalid URL ({request.method} {request.path})"))
        return True

    async def _called(self, connection: Connection, request: Asked, name: str, path: str) -> bool:
        provider = self._provider(name)
        fault = provider.next() if provider.troubled else self._provider(ANY).next()
        started = self._clock.monotonic()
        sent_id = request.headers.get("x-request-id")
        call = Call(name, sent_id, request.path, request.headers, request.body, started)
        call.fault = None if fault is None else fault.kind
        self._began(provider, call)
        try:
            manner = provider.manner or self._manner
            try:
                answer, prompt = self._composed(path, call, manner)
            except Mistaken as mistake:
                fault, prompt = faults.bad_request(str(mistake)), 0
                answer = Answer(_identity(manner), manner.latency, 0.0, 0.0, stream=False)
            return await self._play(connection, faults.perform(fault, answer), call, prompt)
        finally:
            call.ended = self._clock.monotonic()
            if call.meter is not None:
                call.meter.over()
            if connection.left:
                call.closed_by_client_after = call.ended - started
            provider.in_flight -= 1
            self._in_flight -= 1

    def _began(self, provider: _Provider, call: Call) -> None:
        provider.invoice += Invoice(calls=1)
        provider.in_flight += 1
        provider.max_in_flight = max(provider.max_in_flight, provider.in_flight)
        self._in_flight += 1
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        self._calls.append(call)
        self._heavy.append(call)
        self._weight += len(call.body) + 1024
        while self._weight > KEEP_BODIES and len(self._heavy) > 1:
            old = self._heavy.popleft()
            self._weight -= len(old.body) + 1024
            old.body, old.headers = b"", {}

    def _composed(self, path: str, call: Call, manner: Manner) -> tuple[Answer, int]:
        """The well answer and its prompt tokens; raises Mistaken."""
        try:
            asked = json.loads(call.body)
        except json.JSONError:
            raise Mistaken("We could not parse the JSON body of your request.") from None
        if not isinstance(asked, dict):
            raise Mistaken("Invalid type for the body: expected an object.")
        self._weigh(call, str(asked.get("model")))
        headers = _identity(manner)
        try:
            if path == "v1/embeddings":
                return embeddings(asked, manner, headers)
            chat = Chat.of(asked)
            answer = chat_answer(chat, manner, int(self._clock.now()), headers)
            return answer, prompt_tokens(chat.messages)
        except Mistaken:
            raise
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            raise Mistaken("A member of the body has the wrong shape.") from None

    def _weigh(self, call: Call, model: str) -> None:
        """A strict provider counts the call."""
        provider = self._provider(call.name)
        if provider.allowed:
            call.meter = provider.meter(call.headers.get("authorization", ""), model)
            if call.meter is not None:
                call.meter.began(call.started)

    async def _play(
        self, connection: Connection, steps: Iterator[Step], call: Call, prompt: int
    ) -> bool:
        """Write the steps; what is due at once goes out together and is billed as it goes."""
        due, tokens, bills, finished = bytearray(), 0, False, False

        async def flush() -> None:
            nonlocal due, tokens, bills, finished
            await connection.room()
            if bills:
                self._bill(call, prompt, tokens)
            call.finished = call.finished or finished
            connection.write(bytes(due))
            due, tokens, bills, finished = bytearray(), 0, False, False

        end: faults.End = ""
        for step in steps:
            if due and (step.wait or len(due) > FLUSH):
                await flush()
            if step.wait:
                await self._wait(step.wait)
            due += step.data
            tokens, bills, finished = (
                tokens + step.tokens,
                bills or step.bills,
                finished or step.finished,
            )
            call.status = step.status or call.status
            end = step.end
        if due:
            await flush()
        return connection.end(end)

    async def _wait(self, seconds: float) -> None:
        if seconds == math.inf:
            await asyncio.get_running_loop().create_future()  # until the client or `close` ends it
        await self._clock.sleep(seconds)

    def _bill(self, call: Call, prompt: int, tokens: int) -> None:
        """The prompt once, the tokens as they go."""
        if call.forgotten:
            return
        first = call.prompt_tokens == 0 and call.completion_tokens == 0
        owed = Invoice(0, int(first), prompt if first else 0, tokens)
        call.prompt_tokens += owed.prompt_tokens
        call.completion_tokens += tokens
        if call.meter is not None:
            call.meter.used(self._clock.monotonic(), owed.prompt_tokens + tokens)
        self._provider(call.name).invoice += owed

    def _provider(self, name: str) -> _Provider:
        found = self._providers.get(name)
        if found is None:
            found = self._providers[name] = _Provider()
        return found

    def _full(self, name: str) -> bool:
        return name not in self._providers and len(self._providers) >= KEEP_NAMES

    # asked from outside

    def _controlled(self, request: Asked, name: str, what: str) -> bytes:
        if (name != ANY and not _NAME.fullmatch(name)) or self._full(name):
            return _error(404, "no such provider")
        match request.method, what:
            case "POST", "fault":
                return self._fault_asked(name, request.body)
            case "DELETE", "fault":
                self.set(name, None)
                return _json(200, {"fault": None})
            case "GET", "calls":
                return _json(200, self._told_calls(name))
            case _:
                return _error(404, "there are: POST and DELETE fault, GET calls")

    def _fault_asked(self, name: str, body: bytes) -> bytes:
        try:
            asked = json.loads(body)
            if not isinstance(asked, dict) or not isinstance(asked.get("kind"), str):
                raise faults.UnknownFault(f"'kind' is one of: {' '.join(sorted(faults.KINDS))}")
            times = asked.pop("times", None)
            if times is not None and (not isinstance(times, int) or times < 0):
                raise faults.UnknownFault("'times' is a whole number")
            kind = asked.pop("kind")
            self.set(name, faults.of(kind, asked), times=times)
        except ValueError as error:
            return _error(400, str(error), kinds=sorted(faults.KINDS))
        return _json(200, {"fault": kind, "times": times})

    def _told_calls(self, name: str) -> dict[str, Any]:
        invoice = self.invoice(name)
        return {
            "calls": [
                {
                    "attempt_id": call.attempt_id,
                    "path": call.path,
                    "started": call.started,
                    "ended": call.ended,
                    "fault": call.fault,
                    "status": call.status,
                    "prompt_tokens": call.prompt_tokens,
                    "completion_tokens": call.completion_tokens,
                    "finished": call.finished,
                    "closed_by_client_after": call.closed_by_client_after,
                }
                for call in self.calls(name)
            ],
            "invoice": {
                "calls": invoice.calls,
                "billed_calls": invoice.billed_calls,
                "prompt_tokens": invoice.prompt_tokens,
                "completion_tokens": invoice.completion_tokens,
            },
            "in_flight": self.in_flight(name),
            "max_in_flight": self.max_in_flight(name),
        }


def _identity(manner: Manner) -> faults.Headers:
    spent = f"{(manner.latency + manner.ttft) * 1000:.0f}"
    own = f"req_{secrets.token_hex(16)}"
    return (("x-request-id", own), ("openai-processing-ms", spent), *manner.headers)


def _json(status: int, value: Any) -> bytes:
    return faults.reply(status, (faults.JSON_TYPE,), json.dumps(value)).data


def _error(status: int, message: str, **more: Any) -> bytes:
    told = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return _json(status, {"error": {**told, **more}})


def _models(name: str) -> bytes:
    models = [
        {"id": model, "object": "model", "created": 1_700_000_000, "owned_by": "sim"}
        for model in ("sim", name)
    ]
    return _json(200, {"object": "list", "data": models})


# ------------------------------------------------------------------------------ in its own loop


class UpstreamThread:
    """An `Upstream` in a thread with its own loop: the same words, to be called from any thread."""

    def __init__(self, manner: Manner | None = None, *, keep: int = KEEP_CALLS) -> None:
        self._upstream = Upstream(manner, keep=keep)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def start(self, port: int = 0) -> None:
        """Returns when it listens."""
        up = threading.Event()
        failed: list[OSError] = []

        async def live() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            try:
                await self._upstream.start(port)
            except OSError as error:
                failed.append(error)
                return
            finally:
                up.set()
            try:
                await self._stop.wait()
            finally:
                await self._upstream.close()

        self._thread = threading.Thread(
            target=lambda: asyncio.run(live()), name="simulator", daemon=True
        )
        self._thread.start()
        up.wait()
        if failed:
            self._thread.join()
            raise failed[0]

    def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None and self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        return self._upstream.port

    @property
    def connections(self) -> int:
        return self._upstream.connections

    @property
    def connections_total(self) -> int:
        return self._upstream.connections_total

    def base_url(self, name: str) -> str:
        return self._upstream.base_url(name)

    def set(self, name: str, fault: Fault | None, *, times: int | None = None) -> None:
        self._do(lambda: self._upstream.set(name, fault, times=times))

    def script(self, name: str, faults: Iterable[Fault | None]) -> None:
        self._do(lambda: self._upstream.script(name, faults))

    def manner(self, name: str, manner: Manner | None) -> None:
        self._do(lambda: self._upstream.manner(name, manner))

    def strict(self, name: str, allowed: Mapping[str, Allowed]) -> None:
        self._do(lambda: self._upstream.strict(name, allowed))

    def tallies(self, name: str) -> dict[tuple[str, str], Tally]:
        return self._do(lambda: self._upstream.tallies(name))

    def calls(self, name: str | None = None) -> list[Call]:
        return self._do(lambda: self._upstream.calls(name))

    def invoice(self, name: str | None = None) -> Invoice:
        return self._do(lambda: self._upstream.invoice(name))

    def in_flight(self, name: str | None = None) -> int:
        return self._do(lambda: self._upstream.in_flight(name))

    def max_in_flight(self, name: str | None = None) -> int:
        return self._do(lambda: self._upstream.max_in_flight(name))

    def clear(self) -> None:
        self._do(self._upstream.clear)

    def _do(self, act: Callable[[], T]) -> T:
        """`act` between two turns of the simulator's loop; directly before and after its life."""
        if self._thread is None or self._loop is None:
            return act()

        async def done() -> T:
            return act()

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(timeout=10)


# ------------------------------------------------------------------------------ as a process


async def _serve(port: int, manner: Manner) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    upstream = Upstream(manner)
    await upstream.start(port)
    try:
        sys.stdout.write(json.dumps({"port": upstream.port}).decode() + "\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await upstream.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m chaos.upstream`."""
    usual = Manner()
    parser = argparse.ArgumentParser(prog="python -m chaos.upstream", description="The simulator.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--tokens", type=int, default=usual.tokens, help="length of an answer")
    parser.add_argument("--latency", type=float, default=usual.latency, help="s before the head")
    parser.add_argument("--ttft", type=float, default=usual.ttft, help="s to the first content")
    parser.add_argument("--gap", type=float, default=usual.gap, help="s between contents")
    asked = parser.parse_args(arguments)
    manner = Manner(asked.tokens, asked.ttft, asked.gap, asked.latency)
    asyncio.run(_serve(asked.port, manner))


if __name__ == "__main__":
    main()
