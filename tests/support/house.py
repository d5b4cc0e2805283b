"""The whole gateway in a thread of its own: synchronous SDKs and raw sockets may call it."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from gateway.app.house import House, Wishes
from gateway.app.source import Source
from gateway.clock import SystemClock
from gateway.core.ports import Listener
from gateway.core.target import Secret

T = TypeVar("T")
ADMIN_KEY = "admin-key-of-the-tests"


class Running:
    """`with Running(yaml, folder) as gateway:` serves on free ports until the block ends.

    `{state}` in the text is replaced by the folder; `server:` is added, and in it what `server`
    says, as in ", admin_keys: true".
    """

    def __init__(
        self,
        text: str,
        folder: Path,
        env: Mapping[str, str] | None = None,
        listeners: tuple[Listener, ...] = (),
        *,
        server: str = "",
        redis: Secret | None = None,
        when_lost: str = "shrink",
    ) -> None:
        shared = "" if redis is None else f', redis: "{redis.reveal()}", when_lost: {when_lost}'
        head = (
            "server: {listen: 127.0.0.1:0, admin: 127.0.0.1:0, lame_duck: 0s, drain: 5s"
            f"{server}}}\n"
            f"state: {{dir: {folder}{shared}}}\n"
        )
        self._source = Source(env or {}, text=head + text, name="test.yaml")
        self._wishes = Wishes(Secret(ADMIN_KEY), listeners=listeners)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="gateway", daemon=True)
        self._up = threading.Event()
        self._error: BaseException | None = None
        self._end: asyncio.Event
        self.house: House

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.house.servers.api_port}"

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.house.servers.admin_port}"

    @property
    def port(self) -> int:
        return self.house.servers.api_port

    def do(self, work: Callable[[], T]) -> T:
        """Call something inside the gateway's loop."""

        async def run() -> T:
            return work()

        return self.wait(run())

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def __enter__(self) -> Self:
        self._thread.start()
        self._up.wait(30)
        if self._error is not None:
            raise self._error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)
        if self._error is not None and error is None:
            raise self._error

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self._error = error
        finally:
            self._up.set()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _serve(self) -> None:
        self._end = asyncio.Event()
        self.house = House(self._source, SystemClock(), self._wishes)
        async with self.house.running():
            self._up.set()
            await self._end.wait()
