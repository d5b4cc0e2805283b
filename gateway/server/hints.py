"""The head of a request, read in one pass: its key, its `x-gateway-*` wishes, its body's size.

Wishes are read here and allowed by the road. Junk is refused by name, never ignored; so is an
`x-gateway-*` header that nobody reads.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from gateway.core.principal import Credential
from gateway.core.request import NO_HINTS, Hints
from gateway.core.usage import NANO
from gateway.errors import InvalidRequest
from gateway.server.credential import credential_of, token_of

LONGEST_DURATION = 24 * 3600.0  # seconds
MOST_TAGS = 8
MOST_SKIPPED = 32
REMEMBERED = 2048  # spellings of header names
MOST_SEEN = 1024  # values of a header with a key
LONGEST_SEEN = 512  # bytes of such a value

_DURATION = re.compile(
    rb"(?:(\d{1,4})h)?(?:(\d{1,5})m(?!s))?(?:(\d{1,6})s)?(?:(\d{1,9})ms)?", re.ASCII
)
_MONEY = re.compile(rb"(\d{1,9})(?:\.(\d{1,9}))?", re.ASCII)
_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._/#:-]{0,127}")
_TAG = re.compile(rb"([A-Za-z0-9._-]{1,64})=([\x21-\x2b\x2d-\x3c\x3e-\x7e]{1,64})")
_KEY = re.compile(rb"[\x20-\x7e]{1,255}")
_VISIBLE = re.compile(rb"[\x20-\x7e]{1,256}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Head:
    """What the edge needs of the headers. `length` is Content-Length, -1 when absent."""

    __slots__ = ("credential", "encoding", "expect", "hints", "length", "token", "wishes")

    def __init__(self) -> None:
        self.credential: Credential | None = None
        self.hints = NO_HINTS
        self.length = -1
        self.encoding = False  # whether the body is encoded
        self.expect = False  # whether the caller waits for 100 Continue
        self.token: tuple[str, str] | None = None  # (header, key)
        self.wishes: dict[str, Any] | None = None


def read_head(headers: Iterable[tuple[bytes, bytes]]) -> Head:
    """One pass over the headers.

    Raises:
        InvalidRequest: naming the header that is wrong.
    """
    head = Head()
    readers = _spellings
    for name, value in headers:
        try:
            read = readers[name]
        except KeyError:
            read = _learn(name)
        if read is not None:
            read(head, value)
    if head.token is not None:
        head.credential = credential_of(head.token[1])
        head.token = None
    if head.wishes is not None:
        head.hints = Hints(**head.wishes)
    return head


def duration(value: bytes) -> float | None:
    """`250ms`, `30s`, `1m30s`, `1h` in seconds; None when it is none, or 0, or above a day."""
    match = _DURATION.fullmatch(value)
    if match is None:
        return None
    hours, minutes, seconds, thousandths = (int(part or 0) for part in match.groups())
    total = hours * 3600 + minutes * 60 + seconds + thousandths / 1000
    return float(total) if 0 < total <= LONGEST_DURATION else None


def _learn(name: bytes) -> "Read | None":
    """How a header is read; each spelling of its name is looked up once."""
    lower = name.lower()
    read = READERS.get(lower)
    if read is None and lower.startswith(b"x-gateway-"):
        shown = lower[:80].decode("ascii", "replace")
        raise InvalidRequest(
            f"There is no header {shown}: nobody would read it. See the reference of headers.",
            param=shown,
        )
    if len(_spellings) < REMEMBERED and len(name) <= 64:
        _spellings[name] = read
    return read


Read = Callable[[Head, bytes], None]
_spellings: dict[bytes, Read | None] = {}


def _key(header: str) -> Read:
    seen: dict[bytes, str] = {}  # values shown often

    def read(head: Head, value: bytes) -> None:
        token = seen.get(value)
        if token is None:
            token = token_of(header, value)
            if len(value) <= LONGEST_SEEN:
                if len(seen) >= MOST_SEEN:
                    seen.clear()
                seen[value] = token
        if not token:
            return
        known = head.token
        if known is not None and (known[1] != token or known[0] == header):
            raise InvalidRequest(
                "Two API keys were sent: use one of Authorization, x-api-key and api-key.",
                param=header,
            )
        head.token = (header, token)

    return read


def _wish(header: str, name: str, understand: Callable[[bytes], Any], form: str) -> Read:
    """Reads one header that asks for something; `understand` gives None for junk."""

    def read(head: Head, value: bytes) -> None:
        understood = understand(value)
        wishes = head.wishes
        if wishes is None:
            wishes = head.wishes = {}
        if understood is None or name in wishes:
            told = "was sent twice" if name in wishes else f"is not {form}"
            raise InvalidRequest(f"The header {header} {told}.", param=header)
        wishes[name] = understood

    return read


def _money(value: bytes) -> int | None:
    match = _MONEY.fullmatch(value)
    if match is None:
        return None
    whole, part = match.groups()
    nano: int = int(whole) * NANO + int((part or b"").ljust(9, b"0"))
    return nano


def _tags(value: bytes) -> tuple[tuple[str, str], ...] | None:
    parts = value.split(b",")
    if len(parts) > MOST_TAGS:
        return None
    tags = []
    for part in parts:
        match = _TAG.fullmatch(part.strip())
        if match is None:
            return None
        tags.append((match[1].decode(), match[2].decode()))
    return tuple(tags)


def _names(value: bytes) -> frozenset[str] | None:
    parts = [part.strip() for part in value.split(b",")]
    if len(parts) > MOST_SKIPPED or not all(_NAME.fullmatch(part) for part in parts):
        return None
    return frozenset(part.decode() for part in parts)


def _one_name(value: bytes) -> str | None:
    return value.decode() if _NAME.fullmatch(value) else None


def _text(value: bytes) -> str | None:
    return value.decode() if _VISIBLE.fullmatch(value) else None


def _idempotency_key(value: bytes) -> str | None:
    return value.decode() if _KEY.fullmatch(value) else None


def _cache(value: bytes) -> str | float | None:
    return value.decode() if value in {b"off", b"refresh"} else duration(value)


def _word(**words: object) -> Callable[[bytes], Any]:
    known = {word.lstrip("_").encode(): meaning for word, meaning in words.items()}
    return known.get


def _length(head: Head, value: bytes) -> None:
    head.length = int(value) if len(value) < 19 and value.isdigit() else -1


def _encoding(head: Head, value: bytes) -> None:
    head.encoding = value.strip().lower() not in {b"", b"identity"}


def _expect(head: Head, value: bytes) -> None:
    head.expect = value.strip().lower() == b"100-continue"


def _traceparent(head: Head, value: bytes) -> None:
    if _TRACEPARENT.fullmatch(value):
        if head.wishes is None:
            head.wishes = {}
        head.wishes["traceparent"] = value.decode()


def _retries(head: Head, value: bytes) -> None:
    if value.isdigit() and value.strip(b"0"):
        if head.wishes is None:
            head.wishes = {}
        head.wishes["client_retry"] = True


_A_DURATION = "a duration such as 30s, 250ms or 1m30s, at most 24h"

READERS: dict[bytes, Read] = {
    b"authorization": _key("authorization"),
    b"x-api-key": _key("x-api-key"),
    b"api-key": _key("api-key"),
    b"content-length": _length,
    b"content-encoding": _encoding,
    b"expect": _expect,
    b"traceparent": _traceparent,
    b"x-stainless-retry-count": _retries,
} | {
    header.encode(): _wish(header, name, understand, form)
    for header, name, understand, form in (
        ("x-gateway-deadline", "deadline", duration, _A_DURATION),
        ("x-gateway-first-token", "first_token", duration, _A_DURATION),
        (
            "x-gateway-max-cost-usd",
            "max_cost",
            _money,
            "an amount of dollars such as 0.05, with at most 9 decimals",
        ),
        (
            "x-gateway-priority",
            "priority",
            _word(high="high", normal="normal", low="low"),
            "high, normal or low",
        ),
        ("x-gateway-session", "session", _text, "1 to 256 visible ASCII characters"),
        ("x-gateway-user", "user", _text, "1 to 256 visible ASCII characters"),
        ("x-gateway-tags", "tags", _tags, "a list such as team=a,job=b: 8 at most, 64 long"),
        ("x-gateway-skip", "skip", _names, "a list of targets such as gpt,claude"),
        ("x-gateway-target", "target", _one_name, "the name of a target"),
        ("x-gateway-fallback", "fallback", _word(off=False), "off"),
        ("x-gateway-trace", "trace", _word(_1=True), "1"),
        (
            "idempotency-key",
            "idempotency_key",
            _idempotency_key,
            "1 to 255 printable ASCII characters",
        ),
        ("x-gateway-detach", "detach", _word(_1=True), "1"),
        ("x-gateway-cache", "cache", _cache, "off, refresh, or a duration such as 5m"),
        ("x-gateway-park", "park", _word(allow=True), "allow"),
    )
}
