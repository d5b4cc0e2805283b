"""What can be looked up is complete, both ways: codes, headers, metrics, causes, numbers."""

import ast
import http.client
import inspect
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import errors
from gateway.config.lint import KINDS
from gateway.config.models import Document
from gateway.core.target import WAY_ON, Cause
from gateway.pipeline import tell as telling
from gateway.server import hints, routes
from gateway.telemetry import metrics
from gateway.wire import json
from tests.docs import made
from tests.docs.pages import ANCHOR, ROOT, page
from tests.support.house import ADMIN_KEY, Running

SOURCE = sorted((ROOT / "gateway").rglob("*.py"))
CODE = re.compile(r'<a id="([a-z_]+)"></a>`([a-z_]+)`')

# Codes that are made at run time, and of what.
COMPUTED = {
    "f'{account.kind}_exceeded'": {f"{kind}_exceeded" for kind in KINDS},
    "failure.cause.value": {cause.value for cause in WAY_ON},
    "_code(failures)": {cause.value for cause in WAY_ON} | {"chain_exhausted"},
    "code": {"deadline_exceeded"},
    "told['code']": set(),  # what was raised before, told again
}
OF_OTHERS = "codes.get(failure.cause) or (code if isinstance(code, str) and code else None)"
CLIENT = "gateway/client/http.py"  # raises again what it was told


def calls() -> Iterator[tuple[str, ast.keyword]]:
    """Every `code=` of a raise."""
    for path in SOURCE:
        name = path.relative_to(ROOT).as_posix()
        if name == CLIENT or "/cli/" in name or "/providers/" in name:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield from ((name, keyword) for keyword in node.keywords if keyword.arg == "code")


def raised() -> set[str]:
    """The codes a caller may hear."""
    found = {
        kind.default_code
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.GatewayError)
    }
    for where, keyword in calls():
        if isinstance(keyword.value, ast.Constant):
            found.add(str(keyword.value.value))
        elif (written := ast.unparse(keyword.value)) != OF_OTHERS:
            assert written in COMPUTED, f"{where} makes a code of {written}: say of what, above"
            found |= COMPUTED[written]
    codes = next(
        node for node in ast.walk(ast.parse(inspect.getsource(telling._as_told)))
        if isinstance(node, ast.Dict) and node.values and isinstance(node.values[0], ast.Constant)
    )  # fmt: skip
    return found | {str(value.value) for value in codes.values if isinstance(value, ast.Constant)}


def test_every_code_has_its_anchor_and_every_anchor_is_a_code() -> None:
    text = page("docs/errors.md")
    told = {code for _, code in CODE.findall(text)}
    assert told == raised()
    for anchor, code in CODE.findall(text):
        assert anchor in {code, f"{code}_cause"}
    found = ANCHOR.findall(text)
    assert len(found) == len(set(found)) == len(CODE.findall(text))


def test_the_status_of_a_code_is_the_one_told() -> None:
    rows = dict(re.findall(r"</a>`([a-z_]+)` \| ([\d, ]+) \|", page("docs/errors.md")))
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.GatewayError) and kind.default_code in rows:
            assert str(kind.status) in rows[kind.default_code], kind


def test_the_example_of_an_error_is_what_one_looks_like() -> None:
    found = re.search(r"```json\n(.*?)```", page("docs/errors.md"), re.DOTALL)
    assert found
    told = json.loads(found[1].encode())["error"]
    error = errors.RateLimited(
        told["message"], code=told["code"], retry_after=7.378, scope=told["scope"]
    )
    error.request_id = told["request_id"]
    error.attempts = told["attempts"]
    assert error.body()["error"] == told


# Headers


def spoken() -> set[str]:
    """The headers our source can put on an answer, but those HTTP itself needs."""
    found: set[str] = set()
    where = [*sorted((ROOT / "gateway/server").rglob("*.py")), ROOT / "gateway/errors.py",
             ROOT / "gateway/pipeline/tell.py", ROOT / "gateway/pipeline/park.py"]  # fmt: skip
    for path in where:
        if path.name in {"hints.py", "credential.py", "incoming.py", "facts.py"}:
            continue
        text = path.read_text()
        for name in re.findall(
            r"(x-[a-z-]+|server-timing|idempotency-replayed|retry-after(?:-ms)?)", text
        ):
            if name.endswith("-"):
                if name.count("-") == 3:  # x-ratelimit-limit-{sort}
                    found |= {f"{name}requests", f"{name}tokens"}
            else:
                found.add(name)
        if '"allow"' in text:
            found.add("allow")
        if '"location"' in text:
            found.add("location")
        if "cache-control" in text:
            found.add("cache-control")
    return found - {"x-api-key"}


def section(name: str, heading: str) -> str:
    text = page(name)
    return re.split(r"^## ", text.split(f"\n## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[
        0
    ]


def first_cells(text: str) -> set[str]:
    """The names in the first column of a table."""
    cells = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_header_that_is_read_is_told_and_no_other() -> None:
    text = section("docs/http.md", "Requests")
    read = {name.decode() for name in hints.READERS}
    assert {name for name in read if f"`{name}`" not in text} == set()
    assert first_cells(text) <= read


def test_every_header_of_an_answer_is_told_and_no_other() -> None:
    assert first_cells(section("docs/http.md", "Answers")) - {"x-request-id"} == spoken() - {
        "x-request-id"
    }


def test_headers_need_the_rights_that_are_told() -> None:
    rows = re.findall(r"^\| `(x-gateway-[a-z-]+)` \|.*\| (`[a-z]+`)? ?\|$",
                      section("docs/http.md", "Requests"), re.MULTILINE)  # fmt: skip
    told = {name: right.strip("`") for name, right in rows if right}
    source = (ROOT / "gateway/pipeline/facts.py").read_text()
    needed = dict(re.findall(r'\("(x-gateway-[a-z-]+)", .*?, "([a-z]+)"\),', source))
    assert told == needed


@pytest.mark.parametrize(("path", "body", "wishes"), [
    ("/v1/chat/completions", {"model": "smart"}, {"x-gateway-trace": "1"}),
    ("/v1/chat/completions", {"model": "smart", "stream": True}, {}),
    ("/v1/chat/completions", {"model": "nobody"}, {}),
    ("/v1/chat/completions", {"model": "smart"}, {"x-gateway-deadline": "soon"}),
    ("/v1/nothing", {}, {}),
])  # fmt: skip
def test_an_answer_has_only_headers_that_are_told(path, body, wishes, gateway: Running) -> None:
    parts = urlsplit(gateway.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    sent = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3} | body
    connection.request("POST", path, json.dumps(sent), wishes)
    found = connection.getresponse()
    found.read()
    names = {name.lower() for name, _ in found.getheaders()}
    connection.close()
    plain = {"content-type", "content-length", "date", "transfer-encoding", "connection"}
    assert names - plain <= first_cells(section("docs/http.md", "Answers"))


# Metrics


def exposition(gateway: Running) -> str:
    parts = urlsplit(gateway.admin_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    connection.request("GET", "/metrics", headers={"authorization": f"Bearer {ADMIN_KEY}"})
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def test_a_running_gateway_exposes_the_metrics_that_are_told_and_no_other(gateway: Running) -> None:
    families = list(text_string_to_metric_families(exposition(gateway)))
    assert {made.name_of(family) for family in families} == first_cells(made.metrics())


def test_every_label_and_its_values_are_told(gateway: Running) -> None:
    text = section("docs/metrics.md", "Labels")
    families = text_string_to_metric_families(exposition(gateway))
    shown = {label for family in families for sample in family.samples for label in sample.labels}
    assert shown - {"le"} - first_cells(text) == {"version", "python", "config_hash"}
    closed = {*metrics.APIS, metrics.OTHER, metrics.UNKNOWN, *metrics.SHED_REASONS}
    closed |= {*metrics.TOKEN_KINDS, *metrics.BREAKER, "first", "fallback", "plan", "total"}
    assert {value for value in closed if f"`{value}`" not in text} == set()


def test_every_expression_names_metrics_that_exist() -> None:
    known = first_cells(made.metrics())
    text = page("docs/metrics.md") + page("docs/operations.md") + page("docs/ledger.md")
    named = {
        re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"gateway_[a-z_]+", text)
    }
    assert named <= known


# Causes and skips


def test_every_cause_has_a_meaning() -> None:
    assert set(made.MEANINGS) == set(WAY_ON)


def test_the_reasons_to_skip_are_those_of_the_planner() -> None:
    source = "".join(path.read_text() for path in (ROOT / "gateway/pipeline").glob("*.py"))
    skipped = {
        Cause[name].value for name in re.findall(r"Skip\(\s*target, Cause\.([A-Z_]+)", source)
    }
    skipped |= {
        Cause[name].value for name in re.findall(r"standing\.\w+, Cause\.([A-Z_]+)", source)
    }
    skipped |= {Cause[name].value for name in re.findall(r", Cause\.([A-Z_]+), \"being", source)}
    told = first_cells(section("docs/chains.md", "Skipped before a call"))
    assert told == skipped


# Keys of the file


def test_the_reference_has_every_field_of_the_models() -> None:
    told = page("docs/configuration.md")
    fields: set[str] = set()
    todo, seen = [Document], set()
    while todo:
        model = todo.pop()
        if model in seen:
            continue
        seen.add(model)
        for name, field in model.model_fields.items():
            fields.add(field.alias or name)
            todo += made_of(field.annotation)
    missing = [name for name in sorted(fields) if not re.search(rf"[.`]{name}(`|\[\]`)", told)]
    assert not missing


def made_of(annotation: object) -> list[type]:
    """The models inside an annotation."""
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        return [annotation]
    return [found for inner in getattr(annotation, "__args__", ()) for found in made_of(inner)]


# Routes and modules


def test_every_handler_of_a_road_has_a_door() -> None:
    assert {route.role for route in (*routes.PUBLIC, *routes.ADMIN)} == set(made.NEEDS)


def test_every_room_is_on_the_map() -> None:
    there = {path.parent.name for path in (ROOT / "gateway").glob("*/__init__.py")}
    assert there == set(made.ROOMS) | made.NO_ROOM
    floors = page("docs/architecture.md").split("## The road")[0]
    assert {room for room in there if f"`{room}`" not in floors} == set()
