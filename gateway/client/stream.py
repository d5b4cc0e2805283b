"""Server-sent events as a reader of answers needs them: data, event names and comments.

Comments matter here: a gateway tells the story of a stream in `: gateway {...}`.
"""

from typing import NamedTuple

MAX_FRAME = 8 * 1024 * 1024
DONE = b"[DONE]"


class StreamBroken(ValueError):
    """The bytes are not an event stream we are willing to hold."""


class Frame(NamedTuple):
    """One event, or one comment (then `data` is empty)."""

    data: bytes = b""
    event: str = ""
    comment: str = ""


class Frames:
    """Bytes, cut anywhere, to frames; CR, LF and CRLF end a line (WHATWG HTML, 9.2)."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._rest = b""
        self._data: list[bytes] = []
        self._held = 0
        self._event = ""
        self._first = True

    def feed(self, received: bytes) -> list[Frame]:
        """What these bytes completed.

        Raises:
            StreamBroken: a frame longer than the limit.
        """
        buffer = self._rest + received
        if self._first and len(buffer) >= 3:
            buffer = buffer.removeprefix(b"\xef\xbb\xbf")
            self._first = False
        if b"\r" in buffer:  # a CR at the very end may be half of a CRLF: keep it
            tail = b"\r" if buffer.endswith(b"\r") else b""
            whole = buffer[: len(buffer) - len(tail)]
            buffer = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + tail
        *lines, self._rest = buffer.split(b"\n")
        frames: list[Frame] = []
        for line in lines:
            frame = self._line(line)
            if frame is not None:
                frames.append(frame)
        if len(self._rest) + self._held > self._limit:
            raise StreamBroken(f"an event is longer than {self._limit} bytes")
        return frames

    def _line(self, line: bytes) -> Frame | None:
        if not line:
            return self._end()
        if line.startswith(b":"):
            return Frame(comment=line[1:].decode(errors="replace").strip())
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._held += len(value) + 1
            if self._held > self._limit:
                raise StreamBroken(f"an event is longer than {self._limit} bytes")
        elif name == b"event":
            self._event = value.decode(errors="replace")
        return None

    def _end(self) -> Frame | None:
        frame = Frame(b"\n".join(self._data), self._event) if self._data else None
        self._data, self._held, self._event = [], 0, ""
        return frame
