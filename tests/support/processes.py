"""Gateways as real processes, many a minute.

Python and its imports take half a second, so one process (`python -m tests.support.processes`)
imports everything once and forks: the child has no loop, no thread and no file of another gateway,
and goes through `gateway.cli.main` as `python -m gateway` does. Lines of JSON tell it what to do.
"""

import asyncio
import json
import os
import re
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
_API = re.compile(r"^  API +http://127\.0\.0\.1:(\d+)/v1 .*\n(?:.*\n)*\n", re.MULTILINE)
_ADMIN = re.compile(r"^  admin +(http://\S+)", re.MULTILINE)


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
        """The port of the API, as soon as it has greeted."""
        deadline = time.monotonic() + PATIENCE
        while (found := _API.search(self.log)) is None:
            if time.monotonic() > deadline or self._nursery.over(self):
                raise AssertionError(f"it did not come up: {self.log}")
            await asyncio.sleep(LOOK)
        return int(found[1])

    @property
    def greeted(self) -> bool:
        return _API.search(self.log) is not None

    @property
    def admin(self) -> str:
        """Where the admin API is; it is up."""
        found = _ADMIN.search(self.log)
        assert found is not None
        return found[1]

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
        self, arguments: Sequence[object], log: Path, env: Mapping[str, str] | None = None
    ) -> Gateway:
        """`gateway ARGUMENTS`, with `env` beside what is in ours."""
        log.touch()
        told = self._tell(
            {"start": [str(one) for one in arguments], "log": str(log), "env": dict(env or {})}
        )
        return Gateway(told["pid"], log, self)

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


def _nurse() -> list[str] | None:
    """Fork when told to; in a child the arguments of its gateway, at the end None."""
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
                _become(Path(order["log"]), order["env"])
                return list(order["start"])
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


def _become(log: Path, env: Mapping[str, str]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    for fd, place in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(fd, place)
    os.environ.update(env)


def _say(answer: dict[str, Any]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    arguments = _nurse()
    if arguments is not None:
        from gateway.cli.main import main

        sys.argv = ["gateway", *arguments]
        main()
