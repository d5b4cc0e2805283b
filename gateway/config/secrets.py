"""`${NAME}`, `${NAME:-default}` and `${file:/path}`: read once, never inside what was read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.config.nodes import Scalar, Wrong
from gateway.core.target import Secret

MAX_FILE = 64 * 1024
MAX_VALUE = 16 * 1024

_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(:-(.*))?\Z", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Hidden:
    """A secret of the file. `literal`: it stands there itself, without `${}`."""

    secret: Secret
    literal: bool


def expand(value: object, wanted: str, env: Mapping[str, str]) -> tuple[str, bool]:
    """The text with its references replaced, and whether there was any.

    Raises:
        Wrong: a reference is misspelt, its variable is not set, its file cannot be read; the
            variable or file is named, its content never.
    """
    if not isinstance(value, Scalar):
        raise Wrong(f"{wanted} is expected, not a map or list")
    if value.null:
        raise Wrong(f"{wanted} is expected; here is nothing")
    text = value.text
    if "${" in _REFERENCE.sub("", text):
        raise Wrong("${ without its }; write ${NAME}, ${NAME:-default} or ${file:/path}")
    found = _REFERENCE.sub(lambda match: _one(match[1], env), text)
    if len(found) > MAX_VALUE:
        raise Wrong(f"longer than {MAX_VALUE} characters")
    if not found.isprintable():
        raise Wrong(f"{wanted} must be printable and of one line")
    return found, found != text or "${" in text


def _one(inside: str, env: Mapping[str, str]) -> str:
    if inside.startswith("file:"):
        return _file(inside.removeprefix("file:"))
    parts = _VARIABLE.match(inside)
    if parts is None:
        raise Wrong("not a reference; write ${NAME}, ${NAME:-default} or ${file:/path}")
    name, has_default, default = parts[1], parts[2], parts[3]
    found = env.get(name, "")
    if found:
        return found
    if has_default:
        return default
    raise Wrong(f"the environment variable {name} is {'empty' if name in env else 'not set'}")


def _file(name: str) -> str:
    if not name.startswith("/") or not name.isprintable():
        raise Wrong("${file:…} needs a whole path: ${file:/run/secrets/name}")
    try:
        with Path(name).open("rb") as file:
            found = file.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise Wrong(f"the file {name} cannot be read: {reason or 'not a path'}") from None
    if len(found) > MAX_FILE:
        raise Wrong(f"the file {name} is larger than 64 KiB")
    try:
        text = found.decode().strip()
    except UnicodeDecodeError:
        raise Wrong(f"the file {name} is not text in UTF-8") from None
    if not text:
        raise Wrong(f"the file {name} is empty")
    return text
