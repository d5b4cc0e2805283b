"""A file becomes a `Snapshot`, or a `ConfigError` with every mistake in it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from gateway.config import mistakes, nodes
from gateway.config.mistakes import ConfigError, Mistake
from gateway.config.models import Document
from gateway.config.nodes import MAX_BYTES, Tree, Wrong
from gateway.config.resolve import Resolver
from gateway.core.snapshot import Snapshot

_ROUNDS = 40  # each takes at least one wrong value out; real files need one or two

_OURS = {  # pydantic's error types; its texts quote values
    "model_type": "keys are expected here (key: value)",
    "model_attributes_type": "keys are expected here (key: value)",
    "dict_type": "keys are expected here (key: value)",
    "list_type": "a list is expected here: [a, b]",
    "missing": "is missing",
}


_STAND_INS = {  # for required leaves, by key; {} is unlike any other
    "name": "gone-{:.40}",
    "hash": "sha256:{}",
    "kind": "sim",
    "secret": "gone",
    "issuer": "gone-{:.40}",
    "audience": "gone",
    "jwks": "https://gone.invalid/",
    "wait": "1s",
    "input": "0",
    "output": "0",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file that holds: what it means, what it says, and where it says it."""

    snapshot: Snapshot
    document: Document
    tree: Tree = field(repr=False)
    path: Path | None = None


def load(path: Path, env: Mapping[str, str]) -> Loaded:
    """The configuration in a file (UTF-8, at most 1 MiB).

    Raises:
        ConfigError: with every mistake, in file order.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        said = f"cannot be read: {reason}"
        raise ConfigError([Mistake(str(path), 0, 0, (), said)]) from None
    loaded = load_text(_decoded(data, str(path)), str(path), env)
    return Loaded(loaded.snapshot, loaded.document, loaded.tree, path)


def load_text(text: str, name: str, env: Mapping[str, str]) -> Loaded:
    """The configuration in `text`; `name` stands before each mistake.

    Raises:
        ConfigError: with every mistake, in file order.
    """
    tree, found = nodes.read(text, name)
    if any(mistake.fatal for mistake in found):
        raise ConfigError(found)
    if not isinstance(tree.values, dict) or not tree.values:
        empty = not isinstance(tree.values, list) and tree.values in ({}, nodes.Scalar(""))
        whole = "the file is empty" if empty else "the file holds no keys (key: value)"
        raise ConfigError([*found, Mistake(name, 1, 1, (), f"{whole}; it needs {_NEEDED}")])
    document, wrong = _document(tree, env)
    found += wrong
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    if document is None:
        raise ConfigError(found)
    resolver = Resolver(tree, document)
    found += resolver.check()
    if found:
        raise ConfigError(found)
    return Loaded(resolver.snapshot(digest), document, tree)


_NEEDED = "at least providers: and chains:"


def _decoded(data: bytes, name: str) -> str:
    if len(data) > MAX_BYTES:
        raise ConfigError([Mistake(name, 1, 1, (), "larger than 1 MiB")])
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - (before.rfind(b"\n") + 1) + 1
        raise ConfigError([Mistake(name, line, column, (), "not UTF-8")]) from None


def _document(tree: Tree, env: Mapping[str, str]) -> tuple[Document | None, list[Mistake]]:
    """The document, and what is wrong with its shape.

    What is wrong is taken out and the rest read again, so that names can be checked in the same
    run; only the first reading's mistakes are told, the rest are their consequences.
    """
    told: list[Mistake] = []
    for turn in range(_ROUNDS):
        try:
            return Document.model_validate(tree.sound(), context=env), told
        except ValidationError as error:
            wrong = [
                (tree.original(_path(row["loc"])), row)
                for row in error.errors(include_url=False, include_input=False)
            ]
        for path, row in wrong:
            if not turn:
                told.append(_mistake(tree, path, row))
            if not _take_out(tree, path, row["type"]):
                return None, told
    return None, told


def _take_out(tree: Tree, path: mistakes.Path, kind: str) -> bool:
    """Take a wrong value out; False if nothing would be left.

    A required leaf gets a stand-in, so that the names beside it are still checked.
    """
    if not path:
        return False
    tree.gone.add(path)
    if kind == "extra_forbidden":
        return True
    stand_in = _STAND_INS.get(str(path[-1]))
    if stand_in is not None and path not in tree.standing and len(path) > 2:
        unique = hashlib.sha256(repr(path).encode()).hexdigest()
        tree.standing[path] = nodes.Scalar(stand_in.format(unique))
    elif kind == "missing" or path in tree.standing:
        tree.standing.pop(path, None)
        tree.gone.add(path[:-1])
        return bool(path[:-1])
    return True


def _path(loc: tuple[int | str, ...]) -> mistakes.Path:
    return loc[:-1] if loc and loc[-1] == "[key]" else loc


def _mistake(tree: Tree, path: mistakes.Path, row: Any) -> Mistake:
    kind, loc = row["type"], row["loc"]
    if len(path) == 2 and path[0] == "prices" and path[1] != "unpriced" and "/" not in str(path[1]):
        return tree.mistake(path, mistakes.no_model(str(path[1])), key=True)
    said = row.get("ctx", {}).get("error")
    if isinstance(said, Wrong):
        return tree.mistake(path, str(said), key=loc[-1] == "[key]")
    if kind == "extra_forbidden":
        near = mistakes.nearest(str(path[-1]), _known_keys(loc[:-1]))
        return tree.mistake(path, f"not a known key{near}", key=True)
    if _is_null(tree, path) and kind in _OURS and kind != "missing":
        return tree.mistake(path, "here is nothing; fill it in or remove the key")
    return tree.mistake(path, _OURS.get(kind, "not what is expected here"))


def _is_null(tree: Tree, path: mistakes.Path) -> bool:
    value = tree.at(path)
    return isinstance(value, nodes.Scalar) and value.null


def _known_keys(loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """The keys of the model at `loc` (pydantic's path)."""
    here: Any = Document
    for part in loc:
        here = _inside(here, part)
    model = _model_in(here)
    if model is None:
        return ()
    return tuple(info.alias or name for name, info in model.model_fields.items())


def _inside(here: Any, part: int | str) -> Any:
    """The annotation one step further in."""
    model = _model_in(here)
    if model is not None and isinstance(part, str):
        for name, info in model.model_fields.items():
            if (info.alias or name) == part:
                return info.annotation
    for origin, args in _containers(here):
        if origin is dict:
            return args[1]
        if origin is list and isinstance(part, int):
            return args[0]
    return here  # the tag of a union


def _model_in(here: Any) -> type[BaseModel] | None:
    if isinstance(here, type) and issubclass(here, BaseModel):
        return here
    if get_origin(here) in {dict, list}:
        return None
    for inner in get_args(here):
        found = _model_in(inner)
        if found is not None:
            return found
    return None


def _containers(here: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    if get_origin(here) in {dict, list}:
        return [(get_origin(here), get_args(here))]
    return [found for inner in get_args(here) for found in _containers(inner)]
