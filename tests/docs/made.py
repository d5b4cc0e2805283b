"""The parts of docs/ that are made from the source.

`python -m tests.docs.made` writes them anew; the tests compare. A part stands between
`<!-- made: NAME -->` and `<!-- end -->`.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.core import Metric

from gateway.cli.main import COMMANDS
from gateway.config.load import load_text
from gateway.config.models import Document
from gateway.config.show import show
from gateway.core.principal import OPEN_TO
from gateway.core.target import WAY_ON, Cause
from gateway.server.routes import ADMIN, PUBLIC, Route
from gateway.telemetry.metrics import Gauges, Metrics
from gateway.wire import json

ROOT = Path(__file__).parents[2]
PART = re.compile(r"(<!-- made: ([a-z]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
Row = tuple[str, ...]


def table(heads: Row, rows: list[Row]) -> str:
    """Markdown."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


# What a call may come to (chains.md)

MEANINGS: Mapping[Cause, str] = {
    Cause.CONNECT: "no connection, or it was lost before the first byte",
    Cause.TIMEOUT: "not streaming: no whole answer within `answer`",
    Cause.FIRST_TOKEN: "streaming: no content within `first_token`",
    Cause.STALLED: "streaming: silent for `idle` after content",
    Cause.CUT_STREAM: "the answer ended before it was complete",
    Cause.MALFORMED: "what came is no answer: HTML, empty, broken JSON",
    Cause.RATE_LIMITED: "429 that time cures",
    Cause.QUOTA: "the account there has no money or plan left",
    Cause.AUTH: "the provider refuses our key",
    Cause.OVERLOADED: "the provider is full: 503, 529 and the like",
    Cause.SERVER_ERROR: "any other 5xx; also a redirect, which is not tried again",
    Cause.MODEL_GONE: "there is no such model there",
    Cause.CONTEXT_LENGTH: "the prompt is too long for this model",
    Cause.UNABLE: "it cannot do this, or refuses a parameter",
    Cause.CONTENT_POLICY: "a filter refused",
    Cause.BAD_REQUEST: "any other 4xx: the request itself is wrong",
}


def causes() -> str:
    """The retry and fallback policy."""
    rows = [
        (f"`{cause}`", MEANINGS[cause], way.same.value, way.next.value, way.fault.value)
        for cause, way in WAY_ON.items()
    ]
    return table(("cause", "what happened", "same target again", "next target", "aftermath"), rows)


# The map of modules (architecture.md)

ROOMS: Mapping[str, str] = {
    "pipeline": "the road, one verb a file",
    "providers": "pure translation: no socket, no clock",
    "transport": "the sockets to providers, one timer an attempt, which addresses may be dialled",
    "state": "limits, ledger, keys, health, stories: memory and one SQLite file",
    "telemetry": "listens to what the road says",
    "config": "from YAML to a frozen `Snapshot`, with every mistake at once",
    "client": "a small client of our own API, for the command line",
    "server": "two listeners over aiohttp's parser; one boundary of failures; several workers",
    "app": "wiring, reload and drain; what operators see; whether traffic may come",
    "core": "frozen types, and the doors rooms meet in",
    "wire": "JSON, server-sent events, the shapes of the public API",
}
NO_ROOM = {"cli"}  # one file a command: quickstart.md has them all


def modules() -> str:
    rows = []
    for room, told in ROOMS.items():
        folder = ROOT / "gateway" / room
        names = [f"`{path.stem}`" for path in sorted(folder.glob("*.py")) if path.stem[0] != "_"]
        names += [f"`{path.parent.name}/`" for path in sorted(folder.glob("*/__init__.py"))]
        rows.append((f"`{room}`", ", ".join(names), told))
    return table(("room", "modules", "what they do"), rows)


# Commands (quickstart.md)


def commands() -> str:
    rows = [(f"`gateway {name}`", told) for name, told in COMMANDS.items()]
    return table(("command", "what it does"), rows)


# Routes (http.md)

PORTS = (("API", PUBLIC), ("operators", ADMIN))
NEEDS = {
    "anyone": "nothing",
    **{
        access: " or ".join(f"`{role}`" for role in sorted(roles))
        for access, roles in OPEN_TO.items()
    },
}


def routes() -> str:
    rows = [
        (port, route.method, f"`{route.path}`", NEEDS[route.role])
        for port, known in PORTS
        for route in _merged(known)
    ]
    return table(("port", "method", "path", "role"), rows)


def _merged(known: tuple[Route, ...]) -> Iterator[Route]:
    """GET and HEAD of one path in one row."""
    heads = {route.path for route in known if route.method == "HEAD"}
    for route in known:
        if route.method == "GET" and route.path in heads:
            yield Route("GET, HEAD", route.path, route.role, route.handler)
        elif route.method != "HEAD":
            yield route


# Metrics (metrics.md)


def wired() -> Gauges:
    """As `gateway.app` hands them over: only what stands there is ever exposed."""
    tree = ast.parse((ROOT / "gateway/app/house.py").read_text())
    call = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Gauges"
    )
    looks: dict[str, Any] = {"ledger_drift": lambda: 0, "loop_lag": lambda: 0.0}
    looks["state_degraded"] = lambda: 0.0
    looks["headroom"] = tuple
    return Gauges(**{word.arg: looks.get(word.arg, dict) for word in call.keywords if word.arg})


def metrics() -> str:
    """Every metric a gateway exposes."""
    rows = [
        (f"`{name_of(family)}`", family.type, ", ".join(family._labelnames), family.documentation)
        for family in Metrics("0", wired()).collect()
    ]
    return table(("metric", "type", "labels", "what it is"), sorted(rows))


def name_of(family: Metric) -> str:
    """As an exposition spells it."""
    return family.name + ("_total" if family.type == "counter" else "")


# Keys of the file (configuration.md)

SMALLEST = "providers: {p: {kind: sim}}\nchains: {c: [p/m]}\n"
ORDER = ("version", "server", "state", "defaults", "providers", "targets", "chains", "tiers",
         "teams", "keys", "prices", "observe")  # fmt: skip
NAMES = {"providers": "NAME", "targets": "NAME", "chains": "NAME", "tiers": "NAME",
         "teams": "NAME", "prices": "PROVIDER/MODEL"}  # fmt: skip
CLOCKS = ("connect", "first_token", "answer", "idle", "reasoning_slack")
LIMITS = ("rpm", "burst", "tpm", "concurrency")
RATES = ("input", "output", "cached_input", "cache_write_5m", "cache_write_1h", "reasoning",
         "audio_input", "audio_output")  # fmt: skip
TOLD_ONCE: Mapping[str, tuple[tuple[str, ...], str]] = {
    "ChainSection": ((*CLOCKS, "deadline", "keepalive", "retry", "midstream"), "defaults"),
    "TargetSection": (CLOCKS, "defaults"),
    "UpstreamLimits": (LIMITS, "tiers.NAME.limits"),
    "DearerRow": (RATES, "prices.PROVIDER/MODEL[]"),
}
"""Keys of a model that stand elsewhere with the same meaning."""


def keys() -> str:
    """A row for each key of a configuration, from the models."""
    return table(("key", "is", "default", "meaning"), list(_Reference().rows()))


class _Reference:
    """Walks the JSON Schema that pydantic makes of the models."""

    def __init__(self) -> None:
        whole = Document.model_json_schema(by_alias=True)
        self._models: dict[str, Any] = whole["$defs"]
        self._top: dict[str, Any] = whole["properties"]
        self._needed: list[str] = whole["required"]
        self._shown = json.loads(show(load_text(SMALLEST, "f", {})).encode())
        self._seen: dict[str, str] = {}

    def rows(self) -> Iterator[Row]:
        for name in (*ORDER, *(name for name in self._top if name not in ORDER)):
            yield from self._key(name, self._top[name], required=name in self._needed)

    def _key(self, path: str, told: Mapping[str, Any], *, required: bool) -> Iterator[Row]:
        """The key itself, then what stands below it."""
        said = _text(told.get("description", ""))
        below = list(self._below(path, told))
        kind = "" if below and not _scalars(told) else self._kind(told)
        default = "required" if required else self._default(path, told)
        if len(below) == 1 and below[0][1] in self._seen:
            yield (f"`{path}`", f"as `{self._seen[below[0][1]]}`", "", said)
            return
        yield (f"`{path}`", kind, default, said)
        for inner, name in below:
            yield from self._section(inner, name)

    def _section(self, path: str, name: str) -> Iterator[Row]:
        model = self._models[name]
        again, where = TOLD_ONCE.get(name, ((), ""))
        if path != where:
            self._seen.setdefault(name, path)
        for key, inner in model.get("properties", {}).items():
            if key not in again:
                required = key in model.get("required", ())
                yield from self._key(f"{path}.{key}", inner, required=required)
        if again:
            listed = ", ".join(f"`{key}`" for key in again)
            yield (f"`{path}.…`", f"as `{where}.…`", "", listed)
        if name == "PricesSection":
            yield from self._key(f"{path}.{NAMES['prices']}", model["additionalProperties"] | {
                "description": _text(model["description"])}, required=False)  # fmt: skip

    def _below(self, path: str, told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """(path, model) of the maps inside."""
        if "$ref" in told:
            yield path, told["$ref"].rpartition("/")[2]
        for one in (*told.get("anyOf", ()), *told.get("oneOf", ()), *told.get("allOf", ())):
            yield from self._below(path, one)
        if isinstance(told.get("items"), dict):
            yield from self._below(f"{path}[]", told["items"])
        for inner in told.get("patternProperties", {}).values():
            yield from self._below(f"{path}.{NAMES.get(path, 'NAME')}", inner)

    def _default(self, path: str, told: Mapping[str, Any]) -> str:
        found: Any = self._shown if path.partition(".")[0] in _FILLED else None
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found is None:
            found = told.get("default")
        if found is None or isinstance(found, dict | list):
            return ""
        if isinstance(found, bool):
            return f"`{str(found).lower()}`"
        return f"`{int(found) if isinstance(found, float) and found == int(found) else found}`"

    def _kind(self, told: Mapping[str, Any]) -> str:
        choices = [*told.get("anyOf", ()), *told.get("oneOf", ())]
        if choices:
            kinds = [self._kind(one) for one in choices if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
        if words := told.get("enum") or ([told["const"]] if "const" in told else []):
            return " · ".join(f"`{word}`" for word in words)
        if told.get("type") == "array":
            return f"list of {self._kind(told['items'])}"
        if "$ref" in told or told.get("type") == "object":
            inner = [*told.get("patternProperties", {}).values()]
            inner += [one for one in (told.get("additionalProperties"),) if isinstance(one, dict)]
            return f"map to {self._kind(inner[0])}" if inner else "map"
        return _word(told)


_FILLED = {"version", "server", "state", "defaults", "observe"}


def _scalars(told: Mapping[str, Any]) -> bool:
    """Whether it may also be something without keys."""
    choices = [*told.get("anyOf", ()), *told.get("oneOf", ())]
    kinds = [one for one in choices if one.get("type") != "null" and "$ref" not in one]
    inner = told.get("items")
    return bool(kinds) or (isinstance(inner, dict) and _scalars(inner))


def _word(told: Mapping[str, Any]) -> str:
    """What a scalar is, in the words of the loader rules."""
    pattern = str(told.get("pattern", ""))
    for mark, word in (("ms)?", "duration"), ("KiB", "size"), ("%", "share"), ("sha256", "hash")):
        if mark in pattern:
            return word
    if told.get("maximum") == 9_000_000:
        return "dollars"
    formats = {"date": "date", "uri": "URL"}
    words = {"integer": "whole number", "number": "number", "boolean": "`true` · `false`",
             "string": "text"}  # fmt: skip
    return formats.get(str(told.get("format"))) or words.get(str(told.get("type")), "any value")


def _text(said: str) -> str:
    return " ".join(said.split()).replace("|", "\\|")


PARTS: Mapping[str, Callable[[], str]] = {
    "causes": causes,
    "commands": commands,
    "keys": keys,
    "metrics": metrics,
    "modules": modules,
    "routes": routes,
}


def written(page: str) -> str:
    """A page with its made parts as the source has them now."""
    return PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}{part[4]}", page)


def main() -> None:
    for path in sorted((ROOT / "docs").glob("*.md")):
        before = path.read_text()
        after = written(before)
        if after != before:
            path.write_text(after)
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
