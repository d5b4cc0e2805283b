"""Server-sent events out of bytes cut anywhere: only their data, never a line at a time."""

_BOM = b"\xef\xbb\xbf"


class EventTooLong(ValueError):
    """One event is longer than the limit; the splitter is of no use any more."""


class Splitter:
    """An incremental parser of the event-stream format (CR, LF and CRLF; comments; several lines).

    Args:
        limit: the most bytes one event may have, ended or not.
    """

    __slots__ = ("_carriage", "_fresh", "_limit", "_rest")

    def __init__(self, limit: int = 1024 * 1024) -> None:
        self._limit = limit
        self._rest = bytearray()  # an event whose end has not come
        self._carriage = False  # the last byte was CR: an LF that follows belongs to it
        self._fresh = True  # nothing was cut yet: a BOM may stand at the very start

    @property
    def between(self) -> bool:
        """Whether the last byte ended an event, so that the next one begins another."""
        return not (self._rest or self._carriage or self._fresh)

    def feed(self, data: bytes) -> list[bytes]:
        """The data of every event that these bytes end, in order.

        Raises:
            EventTooLong: an event is above the limit.
        """
        rest = self._rest
        if (
            data.find(b"\n") == len(data) - 2
            and data.startswith(b"data: ")
            and data.endswith(b"\n\n")
            and not (rest or self._carriage or self._fresh or b"\r" in data)
            and 8 < len(data) <= self._limit
        ):
            return [data[6:-2]]  # a read that is just one event, as most are
        if self._carriage or b"\r" in data:
            data = self._without_carriages(data)
        if rest:
            seen = len(rest) - 1
            rest += data
            end = rest.rfind(b"\n\n", max(0, seen))
            if end < 0:
                self._bound()
                return []
            blocks = bytes(rest[:end])
            del rest[: end + 2]
        else:
            end = data.rfind(b"\n\n")
            if end < 0:
                rest += data
                self._bound()
                return []
            blocks = data[:end]
            if end + 2 != len(data):
                rest += data[end + 2 :]
        if self._fresh:
            self._fresh = False
            blocks = blocks.removeprefix(_BOM)
        if len(blocks) > self._limit:
            return self._cut_long(blocks)
        if rest:
            self._bound()
        found = [
            block[6:] if block.startswith(b"data: ") and b"\n" not in block else _data(block)
            for block in blocks.split(b"\n\n")
        ]
        return found if b"" not in found else [payload for payload in found if payload]

    def close(self) -> list[bytes]:
        """The data of a last event that nothing ended, if there is any."""
        block = bytes(self._rest).rstrip(b"\n")
        self._rest.clear()
        if self._fresh:
            block = block.removeprefix(_BOM)
        payload = _data(block)
        return [payload] if payload else []

    def _without_carriages(self, data: bytes) -> bytes:
        if self._carriage and data[:1] == b"\n":
            data = data[1:]
            if not data:
                self._carriage = False
                return data
        if data:
            self._carriage = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _bound(self) -> None:
        """Comments alone may go on for ever; everything else has a limit."""
        rest = self._rest
        if len(rest) > self._limit:
            lines = bytes(rest).split(b"\n")
            kept = [line for line in lines[:-1] if not line.startswith(b":")]
            rest[:] = b"\n".join([*kept, lines[-1]])
            if len(rest) > self._limit:
                raise EventTooLong

    def _cut_long(self, blocks: bytes) -> list[bytes]:
        """Many events in one read are fine, a long one is not."""
        found = [payload for block in blocks.split(b"\n\n") if (payload := _data(block))]
        if any(len(payload) > self._limit for payload in found):
            raise EventTooLong
        return found


def _data(block: bytes) -> bytes:
    """The `data` lines of an event, joined; b"" when it has none."""
    found: list[bytes] = []
    for line in block.split(b"\n"):
        if line.startswith(b"data:"):
            found.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line == b"data":
            found.append(b"")
    return found[0] if len(found) == 1 else b"\n".join(found)
