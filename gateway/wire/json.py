"""The one door to JSON: msgspec for shapes and raw members, orjson for whole values.

A body is cut into its top-level members without reading them (`split`), the few that are needed
are decoded with types (`decode`), and `join` puts the object together again, so that a duplicated
name cannot be authorised as one thing and served as another.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec
import orjson

Raw = msgspec.Raw
Struct = msgspec.Struct
Meta = msgspec.Meta
UNSET = msgspec.UNSET
UnsetType = msgspec.UnsetType
Decoder = msgspec.json.Decoder
changed = msgspec.structs.replace  # a Struct with some fields set anew
fields = msgspec.structs.astuple  # the values of a Struct, in order

T = TypeVar("T")

MAX_SAFE_INTEGER = 2**53  # beyond it JSON readers disagree (RFC 8259, section 6)

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()


class JSONError(ValueError):
    """The bytes are not the JSON that was asked for; the message never quotes them."""


# RecursionError: nesting beyond about 1,000; UnicodeDecodeError: bad UTF-8 in a member's name.
BROKEN = (msgspec.DecodeError, orjson.JSONDecodeError, RecursionError, UnicodeDecodeError)


def split(body: bytes) -> dict[str, Raw]:
    """The members of a JSON object, undecoded; of a duplicate name the last survives.

    Raises:
        JSONError: not a JSON object in UTF-8.
    """
    try:
        if not body.isascii():
            body.decode()
        return _members.decode(body)
    except BROKEN as error:
        raise JSONError(_reason(error)) from None


def join(members: Mapping[str, Raw]) -> bytes:
    """One JSON object of raw members, each byte inside them kept."""
    return _encoder.encode(members)


def squeezed(data: bytes) -> bytes:
    """The same JSON without white space between its parts; every other byte is kept.

    Raises:
        JSONError: not JSON.
    """
    try:
        return msgspec.json.format(data, indent=-1)
    except BROKEN as error:
        raise JSONError(_reason(error)) from None


def raw(value: Any) -> Raw:
    """A member made of a Python value: the only way a `Raw` may be made."""
    return Raw(orjson.dumps(value))


def encode(value: Struct) -> bytes:
    """A Struct, with whatever is in it, such that `decode` gives the same again."""
    return _encoder.encode(value)


def decode(data: bytes | Raw, type: type[T]) -> T:
    """`data` as `type`, checked strictly.

    Raises:
        JSONError: says what was expected and where (`$.path`), never what was found.
    """
    try:
        return msgspec.json.decode(data, type=type)
    except BROKEN as error:
        raise JSONError(_reason(error)) from None


def convert(value: Any, type: type[T]) -> T:
    """Words of a query as `type`, checked; numbers and truths may be spelled as text.

    Raises:
        JSONError: says what was expected and where, never what was found.
    """
    try:
        return msgspec.convert(value, type, strict=False)
    except msgspec.ValidationError as error:
        raise JSONError(_reason(error)) from None


def schemas(types: Iterable[Any], template: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The JSON Schema (2020-12) of each type, and what they refer to, by name.

    `template` is a reference, `{name}` in it: `#/components/schemas/{name}`.
    """
    return msgspec.json.schema_components(types, ref_template=template)


def required(type: type[Struct]) -> tuple[str, ...]:
    """The fields without a default."""
    return tuple(field.name for field in msgspec.structs.fields(type) if field.required)


def loads(data: bytes | Raw) -> Any:
    """A whole value: dict, list, str, int, float, bool or None.

    Raises:
        JSONError: not JSON.
    """
    try:
        return orjson.loads(memoryview(data) if isinstance(data, Raw) else data)
    except BROKEN as error:
        raise JSONError(_reason(error)) from None


def dumps(value: Any) -> bytes:
    """Compact JSON."""
    return orjson.dumps(value)


def pretty(value: Any) -> str:
    """Indented JSON for people and `--json`."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(error, msgspec.ValidationError):
        return str(error)  # types and paths only: msgspec does not echo values
    return "not valid JSON"
