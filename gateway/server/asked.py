"""What operators ask, checked against the shapes of `gateway.wire.admin`."""

import re
from typing import TypeVar
from urllib.parse import parse_qsl

from gateway.errors import InvalidRequest
from gateway.server.incoming import Incoming
from gateway.wire import json

T = TypeVar("T", bound=json.Struct)

WORDS = 16  # of a query
TOLD = 300  # characters of what is wrong
PLACE = re.compile(r"at `\$\.?([^`]*)`")
REFERENCE = "GET /admin/openapi.json has the reference."


async def body_of(call: Incoming, type: type[T]) -> T:
    """The body; none at all is an empty object.

    Raises:
        InvalidRequest: naming the member, what it has to be, and where to look.
    """
    try:
        return json.decode(await call.body() or b"{}", type)
    except json.JSONError as error:
        raise _wrong("The body", error) from None


def query_of(text: str, type: type[T]) -> T:
    """The words behind `?`; each once. Raises InvalidRequest alike."""
    try:
        words = parse_qsl(text, keep_blank_values=True, max_num_fields=WORDS)
    except ValueError:
        raise InvalidRequest(f"The query has more than {WORDS} words. {REFERENCE}") from None
    twice = next((name for name, _ in words if [n for n, _ in words].count(name) > 1), None)
    if twice is not None:
        said = f"The query says {twice[:80]!r} twice: once is enough. {REFERENCE}"
        raise InvalidRequest(said, param=twice[:80])
    try:
        return json.convert(dict(words), type)
    except json.JSONError as error:
        raise _wrong("The query", error) from None


def _wrong(what: str, error: json.JSONError) -> InvalidRequest:
    said = str(error)[:TOLD]
    place = PLACE.search(said)
    return InvalidRequest(
        f"{what} is not what it has to be: {said}. {REFERENCE}",
        param=place[1] if place and place[1] else None,
    )
