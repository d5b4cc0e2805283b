"""A request whose head is here: the `Call` a road is given, and the limits of its body."""

from collections.abc import Callable

from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestPayloadError

from gateway.clock import Clock
from gateway.core.principal import Credential
from gateway.core.request import NO_HINTS, Hints
from gateway.errors import InvalidRequest, SlowRequest, TooLarge, UnsupportedEncoding
from gateway.server.connection import CONTINUE, Bounds, Connection
from gateway.server.hints import Head
from gateway.server.lane import Body, Payload
from gateway.wire import json

LOOK = 1.0  # seconds between looks at a body that is slow to come


class Incoming:
    """The `Call` of one request: its head is here, its body not yet read."""

    __slots__ = (
        "_connection", "_deployment", "_head", "_most", "_payload", "address", "api",
        "credential", "hints", "id", "started",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, payload: Payload, id: str, started: float, most: int
    ) -> None:
        self._connection = connection
        self._most = most
        self._payload = payload
        self._head: Head | None = None
        self._deployment = ""
        self.id = id
        self.api = "_other"
        self.started = started
        self.address = connection.address
        self.credential: Credential | None = None
        self.hints: Hints = NO_HINTS

    def headed(self, head: Head, deployment: str = "") -> None:
        """What its head says; `deployment` is the model named by an Azure path."""
        self._head = head
        self._deployment = deployment
        self.credential = head.credential
        self.hints = head.hints

    async def body(self) -> bytes:
        head, most = self._head, self._most
        if head is not None:
            if head.encoding:
                raise UnsupportedEncoding(
                    "The body is compressed: send it as it is, without Content-Encoding."
                )
            if head.length > most:
                raise _too_large(most)
        payload = self._payload
        if isinstance(payload, Body) or payload.is_eof():
            data = payload.read_nowait()
            if len(data) > most:
                raise _too_large(most)
        else:
            if head is not None and head.expect:
                self._connection.send(CONTINUE)
            data = await self._receive(payload, most)
        return _with_model(data, self._deployment) if self._deployment else data

    async def _receive(self, payload: StreamReader, most: int) -> bytes:
        """The body as it comes, within `most` bytes and the clocks of a body."""
        clock: Clock = self._connection.clock
        bounds: Bounds = self._connection.bounds
        began = clock.monotonic()
        pieces: list[bytes] = []
        size = 0
        cancel: list[Callable[[], None]] = []

        def look() -> None:
            passed = clock.monotonic() - began
            if passed >= bounds.body or payload.total_bytes < bounds.body_rate * passed:
                payload.set_exception(
                    SlowRequest(
                        f"The body came too slowly: {payload.total_bytes} bytes in {passed:.0f} s."
                    )
                )
                return
            due = min(clock.monotonic() + LOOK, began + bounds.body)
            cancel[0] = clock.call_at(due, look)

        cancel.append(clock.call_at(began + min(bounds.body_grace, bounds.body), look))
        try:
            while piece := await payload.readany():
                size += len(piece)
                if size > most:
                    raise _too_large(most)
                pieces.append(piece)
        except RequestPayloadError:
            raise InvalidRequest("The body is not what its headers say.") from None
        finally:
            cancel[0]()
        return b"".join(pieces)


def _with_model(body: bytes, deployment: str) -> bytes:
    """Azure names the model in the path; it wins over the body's."""
    try:
        members = json.split(body)
    except json.JSONError as error:
        raise InvalidRequest(f"The body is not a JSON object: {error}.") from None
    members["model"] = json.raw(deployment)
    return json.join(members)


def _too_large(most: int) -> TooLarge:
    return TooLarge(
        f"The body is longer than {most} bytes: so many the API takes (server.max_body), and the"
        " operators' port 65536."
    )
