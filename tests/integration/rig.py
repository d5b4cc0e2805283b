"""What these tests share: a gateway that confesses its mistakes, a socket, its ledger, patience."""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import socket
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from chaos.upstream import UpstreamThread
from gateway.app.house import House
from gateway.app.source import Source
from gateway.clock import Clock, SystemClock
from gateway.core.events import Event, RequestEnded
from gateway.core.ports import Listener
from tests.support.house import ADMIN_KEY, Running

T = TypeVar("T")
HEAD = "server: {listen: 127.0.0.1:0, admin: 127.0.0.1:0, lame_duck: 0s, drain: 5s}\n"
MESSAGES = [{"role": "user", "content": "Say something about the river, please."}]


class Ears:
    """Hears what the road says aloud."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def heard(self, event: Event) -> None:
        self.events.append(event)

    @property
    def ended(self) -> list[RequestEnded]:
        return [event for event in self.events if isinstance(event, RequestEnded)]


class Leaping(SystemClock):
    """The machine's clock, and as much as `ahead` says: a minute passes when a test wants it to."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead

    def call_at(self, when: float, wake: Callable[[], None]) -> Callable[[], None]:
        return super().call_at(when - self.ahead, wake)


class Gateway(Running):
    """`Running`, but a mistake of ours inside it is a failure of the test.

    Args:
        text: the file without `server:` and `state:`.
        folder: the state directory; the configuration lies beside it if `file` is true.
        env: for `${NAME}`.
        listeners: more ears.
        head: instead of the usual `server:`.
        file: read from a file, as `gateway serve` does, so that it can be changed.
        clock: instead of the machine's.
    """

    def __init__(
        self,
        text: str,
        folder: Path,
        env: Mapping[str, str] | None = None,
        listeners: tuple[Listener, ...] = (),
        *,
        head: str = HEAD,
        file: bool = False,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(text, folder, env, listeners)
        self.folder = folder
        self.mistakes: list[dict[str, Any]] = []
        self._head = f"{head}state: {{dir: {folder}}}\n"
        self._clock = clock or SystemClock()
        self.path = folder.with_name(f"{folder.name}.yaml")
        if file:
            self.write(text)
            self._source = Source(env or {}, path=self.path)
        else:
            self._source = Source(env or {}, text=self._head + text, name="test.yaml")

    def write(self, text: str) -> None:
        """Change the file."""
        self.path.write_text(self._head + text)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if error[0] is None:
            assert not self.mistakes, self.mistakes

    async def _serve(self) -> None:
        self._loop.set_exception_handler(lambda _, told: self.mistakes.append(told))
        self._end = asyncio.Event()
        self.house = House(self._source, self._clock, self._wishes)
        async with self.house.running():
            self._up.set()
            await self._end.wait()

    def rows(self, request_id: str | None = None) -> list[dict[str, Any]]:
        """The ledger, of one request or all of it, in order of the attempts."""
        self.wait(self.house.state.ledger.ship())
        with contextlib.closing(sqlite3.connect(self.folder / "gateway.sqlite3")) as db:
            db.row_factory = sqlite3.Row
            found = db.execute("SELECT * FROM ledger ORDER BY at, attempt_id").fetchall()
        return [dict(row) for row in found if request_id in {None, row["request_id"]}]

    def settled(self, request_id: str) -> list[dict[str, Any]]:
        """The rows of a request once it has ended."""
        self.story(request_id)
        return self.rows(request_id)

    def story(self, request_id: str) -> dict[str, Any]:
        """What became of a request; waits for its end."""
        return until(lambda: self.admin(f"/admin/requests/{request_id}", expect=(200, 404)))

    def last_story(self) -> dict[str, Any]:
        return self.do(lambda: self.house.state.stories.recent(1))[0]

    def admin(self, path: str, method: str = "GET", expect: tuple[int, ...] = (200,)) -> Any:
        """What the admin listener answers; None where it is a 404 that was expected."""
        with Line(self.house.servers.admin_port) as line:
            line.send(
                get(path, authorization=f"Bearer {ADMIN_KEY}").replace(b"GET", method.encode(), 1)
            )
            told = line.answer(method)
        assert told.status in expect, told.body
        return None if told.status == 404 else told.json()

    def at_rest(self) -> None:
        """Wait until nothing is under way, and every slot is back."""
        until(lambda: self.do(lambda: self.house.in_flight) == 0)
        for row in self.admin("/admin/limits")["limits"]:
            if row["kind"] == "concurrency":
                assert row["remaining"] == row["limit"], row


def until(look: Callable[[], T], seconds: float = 5.0, every: float = 0.005) -> T:
    """What `look` says as soon as it is true; an AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"not within {seconds} s: {look}"
        time.sleep(every)
    return found


def provider(sim: UpstreamThread, name: str, more: str = "") -> str:
    """A line of `providers:` that leads to the simulator's `name`."""
    url = sim.base_url(name)
    said = f'kind: openai, base_url: "{url}", allow_http: true, allow_private: true{more}'
    return f"  {name}: {{{said}}}\n"


def declared(name: str, more: str = "role: client") -> str:
    """A line of `keys:` for a caller who shows his name."""
    return f"  - {{name: {name}, hash: 'sha256:{digest(name)}', {more}}}\n"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


# --------------------------------------------------------------------------------- a raw socket


@dataclasses.dataclass(slots=True)
class Answer:
    """One HTTP answer as it came. Header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json()["error"]

    @property
    def events(self) -> list[str]:
        """The data of every event, comments left out."""
        blocks = self.body.decode().split("\n\n")
        return [block[6:] for block in blocks if block.startswith("data: ")]

    @property
    def comments(self) -> list[str]:
        return [block for block in self.body.decode().split("\n\n") if block.startswith(":")]


class Line:
    """A TCP connection to a port of this machine."""

    def __init__(self, port: int, seconds: float = 10.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def fin(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def half_closed(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def rst(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def until(self, mark: bytes) -> bytes:
        """What came up to and with `mark`, which is taken out."""
        while mark not in self._buffer:
            self._more()
        before, _, self._buffer = self._buffer.partition(mark)
        return before + mark

    def answer(self, method: str = "POST") -> Answer:
        """The next answer, whole. ConnectionError: the connection ended before."""
        head = self.until(b"\r\n\r\n").decode("latin-1")
        first, *lines = head[:-4].split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in map(_parted, lines)}
        status = int(first.split(" ")[1])
        if method == "HEAD" or status in {204, 304}:
            return Answer(status, headers, b"")
        if status == 100:
            return self.answer(method)
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, b"".join(self._chunks()))
        return Answer(status, headers, self._exactly(int(headers["content-length"])))

    def ended(self) -> bool:
        """Whether the other side closes without another byte."""
        try:
            return not self._buffer and self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.until(b"\r\n"), 16):
            yield self._exactly(size)
            assert self._exactly(2) == b"\r\n"
        assert self._exactly(2) == b"\r\n"

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _more(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("closed in the middle of an answer")
        self._buffer += data


def _parted(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def post(body: Any, path: str = "/v1/chat/completions", **headers: str) -> bytes:
    """A request as bytes; `body` is JSON unless it is bytes. `x_api_key` becomes `x-api-key`."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {"host": "gateway", "content-length": str(len(data))}
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + data


def get(path: str, **headers: str) -> bytes:
    """A request without a body."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nhost: gateway\r\n{lines}\r\n".encode()


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": MESSAGES, **more}


def ask(port: int, body: Any, path: str = "/v1/chat/completions", **headers: str) -> Answer:
    """One request on a connection of its own."""
    with Line(port) as line:
        line.send(post(body, path, **headers))
        return line.answer()
