"""The fast lane: a whole POST in one read, as every SDK sends it, is cut out without a parser.

What it takes is strict: HTTP/1.1, one Content-Length, all of the body and nothing after it, no
header that asks for anything of the connection, none twice. Anything else is aiohttp's to judge,
from its first byte. A head is checked and read once: a caller's next one differs in its length
alone, and is known by its bytes.
"""

import re
from typing import Final

from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion, HttpVersion11
from aiohttp.streams import StreamReader

from gateway.errors import GatewayError
from gateway.server.hints import Head, read_head

REMEMBERED: Final = 1024  # heads
LONGEST: Final = 8190  # bytes of a line, as `Bounds.line`
LONGEST_HEAD: Final = 16 * 1024
MOST_HEADERS: Final = 64

_LENGTHS: Final = (b"\r\ncontent-length: ", b"\r\nContent-Length: ")
_HEAD: Final = re.compile(
    rb"POST (/[!-~]*) HTTP/1\.1((?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*)*+)"
)
_FIELD: Final = re.compile(rb"\r\n([^:]+):[\t ]*([^\r\n]*)")
_NOT_HERE: Final = frozenset(
    {
        b"connection",
        b"content-encoding",
        b"content-length",
        b"expect",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)


class Message:
    """What is known of a head; shared by all requests that have the same."""

    __slots__ = ("head", "path")

    method: Final = "POST"
    version: Final[HttpVersion] = HttpVersion11
    should_close: Final = False

    def __init__(self, path: str, head: Head) -> None:
        self.path = path
        self.head = head


class Body:
    """A body that is all here, read as aiohttp's `StreamReader` is."""

    __slots__ = ("_data", "total_bytes")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.total_bytes = len(data)

    def is_eof(self) -> bool:
        return True

    def read_nowait(self) -> bytes:
        return self._data


Asked = RawRequestMessage | Message
Payload = StreamReader | Body

_known: dict[bytes, Message] = {}


def head_of(message: Asked) -> Head:
    """What its headers say.

    Raises:
        InvalidRequest: naming the header that is wrong.
    """
    return message.head if isinstance(message, Message) else read_head(message.raw_headers)


def cut(data: bytes) -> tuple[Message, Body] | None:
    """The request that `data` is; None: it is not one for this lane."""
    end = data.find(b"\r\n\r\n", 0, LONGEST_HEAD)
    at = data.find(_LENGTHS[0], 0, end + 2)
    if at < 0:
        at = data.find(_LENGTHS[1], 0, end + 2)
    if at < 0 or end < 0:
        return None
    start = at + len(_LENGTHS[0])
    stop = data.find(b"\r\n", start, end + 2)
    digits = data[start:stop]
    if not digits.isdigit() or len(digits) > 9 or end + 4 + int(digits) != len(data):
        return None
    rest = data[:at] + data[stop:end]
    message = _known.get(rest)
    if message is None:
        message = _read(rest)
        if message is None:
            return None
        if len(_known) >= REMEMBERED:
            _known.clear()
        _known[rest] = message
    return message, Body(data[end + 4 :])


def _read(rest: bytes) -> Message | None:
    """A head without its length; None: something about it is unusual or wrong."""
    found = _HEAD.fullmatch(rest)
    if found is None or max(map(len, rest.split(b"\r\n"))) > LONGEST:
        return None
    fields = [(name, value.rstrip(b" \t")) for name, value in _FIELD.findall(found[2])]
    names = {name.lower() for name, _ in fields}
    if len(names) < len(fields) or len(fields) >= MOST_HEADERS or names & _NOT_HERE:
        return None
    if b"host" not in names:  # RFC 9112, 3.2
        return None
    try:
        return Message(found[1].decode(), read_head(fields))
    except GatewayError:
        return None  # said at its place
