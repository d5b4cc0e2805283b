"""Two listeners, from the first accept to the last byte of a drain; of several workers, a third."""

import asyncio
import errno
import resource
from collections.abc import Callable
from types import TracebackType
from typing import Self

from gateway.clock import Clock
from gateway.core.snapshot import ServerSettings
from gateway.core.target import Secret
from gateway.server.admin import AdminDesk, PrivateDesk
from gateway.server.connection import Bounds, Connection
from gateway.server.crew import Crew
from gateway.server.desk import BOUNDS, Desk
from gateway.server.doors import Current
from gateway.server.edge import Edge
from gateway.server.listen import refused

BACKLOG = 4096
PORTS_TRIED = 20  # with `next_free`
LAST_WORDS = 5.0  # seconds for evicted requests to say so
LOOK = 0.02  # seconds between looks whether all are gone


class Servers:
    """The API and the admin listener; `async with` opens and closes them.

    Args:
        current: the doors of the day.
        settings: addresses and bounds.
        clock: the time.
        admin_key: GATEWAY_ADMIN_KEY; "" when only keys of role admin are taken.
        next_free: take the next free port where one is taken (for demos).
        crew: what is shared with other workers; None: there are none.
        bounds: what one connection may take.
    """

    def __init__(  # noqa: PLR0913 - most have a default
        self,
        current: Current,
        settings: ServerSettings,
        clock: Clock,
        *,
        admin_key: Secret,
        next_free: bool = False,
        crew: Crew | None = None,
        bounds: Bounds = BOUNDS,
    ) -> None:
        self.edge = Edge(current, settings, clock, bounds)
        self.admin = AdminDesk(current, settings, clock, admin_key, crew, bounds)
        self._private = (
            None if crew is None else PrivateDesk(current, settings, clock, crew, bounds)
        )
        self._crew = crew
        self.api_port = settings.port
        self.admin_port = settings.admin_port
        self._settings = settings
        self._clock = clock
        self._next_free = next_free
        self._api: asyncio.Server | None = None
        self._operators: list[asyncio.Server] = []
        self._hurried = asyncio.Event()
        self._drained = False

    async def __aenter__(self) -> Self:
        """Raises PortTaken."""
        settings = self._settings
        if self._crew is not None and self._private is not None:
            await self._join(self._crew, self._private)
            return self
        self._api, self.api_port = await self._listen(self.edge, settings.host, settings.port)
        try:
            operators, self.admin_port = await self._listen(
                self.admin, settings.admin_host, settings.admin_port
            )
        except OSError:
            self._api.close()
            raise
        self._operators.append(operators)
        return self

    async def _join(self, crew: Crew, private: Desk) -> None:
        """Operators and siblings by the supervisor's sockets, callers by one of our own."""
        loop = asyncio.get_running_loop()
        for one in crew.admin:
            server = await loop.create_server(self._accept(self.admin), sock=one, backlog=BACKLOG)
            self._operators.append(server)
        server = await loop.create_unix_server(self._accept(private), sock=crew.door)
        self._operators.append(server)
        host, self.api_port = self._settings.host, crew.api_port
        try:
            self._api = await loop.create_server(
                self._accept(self.edge), host, crew.api_port, backlog=BACKLOG, reuse_port=True
            )
        except OSError as error:
            raise refused(error, host, crew.api_port) from None

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._drained:
            await self.drain(0.0, 0.0)
        for server in self._operators:
            server.close()
        await self._end(self.admin)
        if self._private is not None:
            await self._end(self._private)

    @property
    def in_flight(self) -> int:
        """Requests on a road."""
        return self.edge.in_flight

    async def drain(self, lame_duck: float, drain: float) -> None:
        """End the service: refuse readiness at once, accept for `lame_duck` seconds, finish.

        What is still being answered after `drain` seconds more is told so and ended.
        """
        self._drained = True
        edge = self.edge
        edge.draining = self.admin.api_draining = True
        await self._until(lambda: False, lame_duck)
        if self._api is not None:
            self._api.close()
        for connection in list(edge.connections):
            connection.retire()
        await self._until(lambda: not edge.connections, drain)
        await self._end(edge)

    def hurry(self) -> None:
        """Skip to the end of the drain: somebody asked twice."""
        self._hurried.set()

    async def _end(self, desk: Desk) -> None:
        """Evict what is being answered; whoever does not take its last words is cut off."""
        for connection in list(desk.connections):
            connection.evict()
        await self._until(lambda: not desk.connections, LAST_WORDS, hurried=False)
        for connection in list(desk.connections):
            connection.abort()
        await self._clock.sleep(0)

    async def _until(
        self, met: Callable[[], bool], seconds: float, *, hurried: bool = True
    ) -> None:
        """Until `met`, or `seconds` have passed, or (if `hurried`) somebody is in a hurry."""
        end = self._clock.monotonic() + seconds
        pause = 0.0
        while not met() and not (hurried and self._hurried.is_set()):
            left = end - self._clock.monotonic()
            if left <= 0:
                return
            await self._clock.sleep(min(pause, left))
            pause = min(LOOK, pause + 0.001)

    async def _listen(self, desk: Desk, host: str, port: int) -> tuple[asyncio.Server, int]:
        loop = asyncio.get_running_loop()
        accept = self._accept(desk)
        last = port + (PORTS_TRIED if self._next_free and port else 0)
        while True:
            try:
                server = await loop.create_server(accept, host, port, backlog=BACKLOG)
            except OSError as error:
                if error.errno == errno.EADDRINUSE and port < last:
                    port += 1
                    continue
                raise refused(error, host, port) from None
            return server, int(server.sockets[0].getsockname()[1])

    def _accept(self, desk: Desk) -> Callable[[], Connection]:
        loop = asyncio.get_running_loop()
        most = _most_connections()

        def accept() -> Connection:
            crowded = desk is self.edge and desk.current.doors.guard.crowded
            return Connection(desk, loop, full=crowded or len(desk.connections) >= most)

        return accept


def _most_connections() -> int:
    """Half of the file descriptors: the other half is for upstreams."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 65536 if soft == resource.RLIM_INFINITY else max(64, soft // 2)
