"""What one of several workers has from its supervisor, and how it talks to it and to its siblings.

Each worker has a private door, a unix socket that only this user can open: the admin routes without
a key and without siblings' answers. The link to the supervisor carries a word a line: `drain`,
`hurry`, `reload` down, and up what became of it. It ends when the supervisor does.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Any, NamedTuple

from gateway.wire import json

ALIVE = 2.0  # seconds between two words for the supervisor: it must know that we are not stuck
PATIENCE = 1.0  # seconds for a sibling's answer
VERB_PATIENCE = 10.0  # for what makes it read its file again
MOST_ANSWER = 64 * 1024 * 1024  # bytes of a sibling's answer
PIECE = 256 * 1024
ORPHANED = ""  # the order of a supervisor that is gone


class Said(NamedTuple):
    """What worker `number` answered; status 0: nothing, in time."""

    number: int
    status: int = 0
    body: bytes = b""

    @property
    def told(self) -> Mapping[str, Any] | None:
        """Its answer, if it is one."""
        if self.status != 200:
            return None
        told: Mapping[str, Any] = json.loads(self.body)
        return told


@dataclass(frozen=True, slots=True)
class Crew:
    """One worker's share.

    Args:
        number: its name among its siblings, from 1; whoever is started in its place has it too.
        count: workers there are.
        restarts: how often this place was taken anew.
        api_port: that all of them bind.
        admin: listening sockets that all of them accept from.
        door: where siblings ask this one.
        link: to the supervisor.
        folder: where the doors and what is kept are found; private to this user.
    """

    number: int
    count: int
    restarts: int
    api_port: int
    admin: tuple[socket, ...]
    door: socket
    link: socket
    folder: Path

    def tell(self, word: str, **more: Any) -> None:
        """A word for the supervisor; if it is gone, nobody hears."""
        with suppress(OSError):
            self.link.send(json.dumps({"word": word, **more}) + b"\n")

    def follow(self, obey: Callable[[str], None]) -> None:
        """From now on in this loop: `obey` each order; ORPHANED once, as the last."""
        loop = asyncio.get_running_loop()
        rest = bytearray()

        def hear() -> None:
            try:
                data = self.link.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                loop.remove_reader(self.link.fileno())
                obey(ORPHANED)
                return
            rest.extend(data)
            *lines, left = bytes(rest).split(b"\n")
            rest[:] = left
            for line in lines:
                obey(line.decode())

        self.link.settimeout(0)
        loop.add_reader(self.link.fileno(), hear)

    async def ask(
        self, target: str, body: bytes | None = None, patience: float = PATIENCE
    ) -> list[Said]:
        """What each sibling says to GET `target` (or POST, with a body), all asked at once."""
        wire = _request(target, body)
        siblings = [number for number in range(1, self.count + 1) if number != self.number]
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._ask(n, wire, patience)) for n in siblings]
        return [task.result() for task in asked]

    async def _ask(self, number: int, wire: bytes, patience: float) -> Said:
        try:
            async with asyncio.timeout(patience):
                reader, writer = await asyncio.open_unix_connection(str(door(self.folder, number)))
                try:
                    writer.write(wire)
                    return _read(number, await _all(reader))
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError):
            return Said(number)

    def keep(self, figures: bytes) -> None:
        """What was told of this worker's counters: it must not sink when the worker dies."""
        new = self.folder / f"{self.number}.new"
        with suppress(OSError):  # a full disk: then they begin at 0 again, as after a restart
            new.write_bytes(figures)
            new.replace(self._kept(self.number))

    def kept(self, number: int) -> bytes:
        """What worker `number` told last, or whoever had its place; b"" if nothing."""
        try:
            return self._kept(number).read_bytes()
        except OSError:
            return b""

    def _kept(self, number: int) -> Path:
        return self.folder / f"{number}.figures"


def door(folder: Path, number: int) -> Path:
    return folder / f"{number}.sock"


def reached(folder: Path, fd: int) -> Path:
    """A short name for an open folder: the address of a unix socket has 100 bytes or so."""
    short = Path(f"/proc/self/fd/{fd}")
    return short if short.exists() else folder


def _request(target: str, body: bytes | None) -> bytes:
    method = "GET" if body is None else "POST"
    head = (
        f"{method} {target} HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n"
        f"content-length: {len(body or b'')}\r\n\r\n"
    )
    return head.encode() + (body or b"")


async def _all(reader: asyncio.StreamReader) -> bytes:
    """Raises ValueError: more than is held."""
    pieces: list[bytes] = []
    size = 0
    while piece := await reader.read(PIECE):
        size += len(piece)
        if size > MOST_ANSWER:
            raise ValueError
        pieces.append(piece)
    return b"".join(pieces)


def _read(number: int, answer: bytes) -> Said:
    """Raises ValueError: it broke off."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head[9:12])
    length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
    if int(length) != len(body):
        raise ValueError
    return Said(number, status, body)
