"""Gateways as real processes, many a minute.

Python and its imports take half a second, so one process (`python -m tests.support.processes`)
imports everything once and forks: the child has no loop, no thread and no file of another gateway,
and goes through `gateway.cli.main` as `python -m gateway` does. Lines of JSON tell it what to do.
"""

import asyncio
import ctypes
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parent.parent.parent
LOOK = 0.002  # seconds between looks at a log or a child
PATIENCE = 20.0  # seconds a gateway may take to come up or to end
ADMIN_KEY = "admin-key-of-the-tests"
_ADMIN = re.compile(r"^  admin +http://127\.0\.0\.1:(\d+) ", re.MULTILINE)
_API = re.compile(r"^  API +http://127\.0\.0\.1:(\d+)/v1 .*\n(?:.*\n)*\n", re.MULTILINE)


class Gateway:
    """One process; what it says on stdout and stderr is in `log`.

    Attributes:
        code: how it ended, as of `subprocess`; None before `ended`.
    """

    def __init__(self, pid: int, log: Path, nursery: "Nursery") -> None:
        self.pid = pid
        self.code: int | None = None
        self._log = log
        self._nursery = nursery

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def up(self) -> int:
        """The port of the API, as soon as it greets and answers."""
        deadline = time.monotonic() + PATIENCE
        while (found := _API.search(self.log)) is None:
            if time.monotonic() > deadline or self._nursery.over(self):
                raise AssertionError(f"it did not come up: {self.log}")
            await asyncio.sleep(LOOK)
        port = int(found[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n")
        told = await reader.read()
        writer.close()
        assert told.startswith(b"HTTP/1.1 200 "), told
        return port

    @property
    def admin_port(self) -> int:
        """Where operators ask; it is told once it is up."""
        found = _ADMIN.search(self.log)
        assert found is not None
        return int(found[1])

    def signal(self, number: signal.Signals) -> None:
        if self.code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    async def ended(self, within: float = PATIENCE) -> int:
        """Its exit code, or the negative number of the signal that ended it."""
        deadline = time.monotonic() + within
        while not self._nursery.over(self):
            if time.monotonic() > deadline:
                raise AssertionError(f"it did not end within {within} s: {self.log}")
            await asyncio.sleep(LOOK)
        assert self.code is not None
        return self.code


class Nursery:
    """`with Nursery() as nursery:` can start gateways; what is left of them ends with it."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.processes"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "GATEWAY_ADMIN_KEY": ADMIN_KEY},
        )  # fmt: skip
        try:
            self._hear()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()

    def start(
        self,
        arguments: Sequence[object],
        log: Path,
        *,
        fresh: bool = False,
        most: int | None = None,
        pace: float = 1.0,
    ) -> Gateway:
        """`gateway ARGUMENTS`.

        Args:
            arguments: of the command line.
            log: what it says is added to this file.
            fresh: by way of exec and `python -m gateway`, slow as in life.
            pace: seconds that pass for it in one of ours (not if `fresh`).
            most: bytes a file of this process may have: the nearest to a full disk.
        """
        log.touch()
        words = [str(one) for one in arguments]
        order = {"start": words, "log": str(log), "fresh": fresh, "most": most, "pace": pace}
        return Gateway(self._tell(order)["pid"], log, self)

    def over(self, gateway: Gateway) -> bool:
        if gateway.code is None:
            gateway.code = self._tell({"look": gateway.pid})["code"]
        return gateway.code is not None

    def _tell(self, order: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that forks gateways is gone"
        return json.loads(line)


def _nurse() -> tuple[list[str], float] | None:
    """Fork when told to; in a child its gateway's arguments and pace, at the end None."""
    import gc

    import gateway.cli.main
    import gateway.cli.serve  # noqa: F401 - so that no child has to

    assert threading.active_count() == 1
    gc.collect()
    gc.freeze()  # or the children's first collection would copy every page
    children: set[int] = set()
    _say({})
    for line in sys.stdin.buffer:
        order = json.loads(line)
        if "start" in order:
            pid = os.fork()
            if not pid:
                _become(order)
                return list(order["start"]), order["pace"]
            children.add(pid)
            _say({"pid": pid})
        else:
            pid, status = os.waitpid(order["look"], os.WNOHANG)
            children.discard(pid)
            _say({"code": os.waitstatus_to_exitcode(status) if pid else None})
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return None


def _become(order: Mapping[str, Any]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    out = os.open(order["log"], os.O_WRONLY | os.O_APPEND)
    for fd, place in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(fd, place)
    _obey_permissions()
    if (most := order["most"]) is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    if order["fresh"]:
        os.execv(sys.executable, [sys.executable, "-m", "gateway", *order["start"]])


def _obey_permissions() -> None:
    """What a folder forbids is forbidden, even if it is root who runs the tests in a container."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(0x2008_0522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
    if libc.capget(head, sets) == 0:
        for at in (0, 1, 2):
            sets[at] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.capset(head, sets)


def _say(answer: dict[str, Any]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    born = _nurse()
    if born is not None:
        from gateway.cli.main import main
        from tests.support.clock import hasten

        arguments, pace = born
        if pace != 1.0:
            hasten(pace)
        sys.argv = ["gateway", *arguments]
        main()
