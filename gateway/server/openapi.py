"""The OpenAPI 3.1 document of the admin API, made of the table of routes and the typed shapes."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any

from gateway.server.routes import ADMIN, Route
from gateway.wire import admin, json
from gateway.wire.admin import NAME

REFERENCE = "#/components/schemas/{name}"
JSON = "application/json"
PLAIN = "text/plain"
ALWAYS = (400, 429)  # a head that is none; a guessing address
KEYED = (401, 403)
BODY = (408, 413, 415)


@dataclass(frozen=True, slots=True)
class Operation:
    """What a handler does.

    Args:
        does: for people, one line.
        answer: the shape of a 200; None: text.
        body, query: the shapes of what is asked.
        refusals: statuses beyond those that every route of its role has.
        made: whether 201 says that something was made.
    """

    does: str
    answer: Any = None
    body: type[json.Struct] | None = None
    query: type[json.Struct] | None = None
    refusals: tuple[int, ...] = ()
    made: bool = False


OPERATIONS: Mapping[str, Operation] = {
    "healthz": Operation("Whether the process is alive.", admin.Alive),
    "readyz": Operation("Whether traffic may come.", admin.Ready),
    "metrics": Operation("Everything that is counted, for Prometheus."),
    "status": Operation("What the gateway says of itself.", admin.StatusTold),
    "requests": Operation("The last requests.", admin.RequestsTold, query=admin.RequestsQuery),
    "request": Operation("One request's story.", admin.Story, refusals=(404,)),
    "chains": Operation("Chains, targets, breakers.", admin.ChainsTold),
    "limits": Operation(
        "What is used and what is left of each limit and budget.",
        admin.LimitsTold,
        query=admin.LimitsQuery,
        refusals=(404,),
    ),
    "config": Operation("The configuration in force.", admin.ConfigTold),
    "audit": Operation("Who did what.", admin.AuditTold, query=admin.AuditQuery, refusals=(503,)),
    "openapi": Operation("This document.", dict[str, Any]),
    "keys": Operation("The caller keys.", admin.KeysTold, query=admin.KeysQuery),
    "key": Operation("One caller key.", admin.OneKeyTold, refusals=(404,)),
    "put_key": Operation(
        "Make a key, or change what it may. The same again changes nothing.",
        admin.MadeKeyTold,
        body=admin.KeyBody,
        refusals=(409, 503),
        made=True,
    ),
    "revoke_key": Operation(
        "End a key at once, and for good. Twice is once.",
        admin.ChangedKeyTold,
        refusals=(404, 409, 503),
    ),
    "rotate_key": Operation(
        "A new secret; the one before works on for the overlap.",
        admin.MadeKeyTold,
        body=admin.RotateBody,
        refusals=(404, 409, 503),
    ),
    "reload": Operation("Read the configuration again.", admin.ReloadTold),
    "drain": Operation("Take no more traffic, finish, leave.", admin.DrainTold),
    "breaker": Operation(
        "Hold a target's breakers open or closed, or let them be.",
        admin.BreakerTold,
        body=admin.BreakerBody,
        refusals=(404,),
    ),
}
"""By handler; every route of the admin port has one."""

NAMED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "id": ("the name of a request: `x-request-id` of its answer", {"type": "string"}),
    "name": ("the name of a key", {"type": "string", "pattern": NAME}),
    "target": ("a target, by its name or its id", {"type": "string"}),
}
"""What stands in braces in a path: in words, and its schema."""


@cache
def document(version: str) -> dict[str, Any]:
    """The whole document, as JSON values."""
    shapes = [shape for shape in _shapes() if shape is not None]
    schemas, components = json.schemas(shapes, REFERENCE)
    known = dict(zip(map(str, shapes), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in ADMIN:
        path = re.sub(r"\.\.\.}", "}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, known)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llm-gateway: the admin API",
            "version": version,
            "description": "For operators, on `server.admin`. No configuration is written over"
            " HTTP; keys are where `server.admin_keys` is true.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "GATEWAY_ADMIN_KEY, or a key of role admin"
                    " (for /metrics: or metrics)",
                }
            },
        },
    }


def _shapes() -> Iterator[Any]:
    yield admin.Refusal
    for operation in OPERATIONS.values():
        yield from (operation.answer, operation.body, operation.query)


def _operation(route: Route, known: Mapping[str, Any]) -> dict[str, Any]:
    operation = OPERATIONS[route.handler]
    head = route.method == "HEAD"
    told: dict[str, Any] = {
        "operationId": f"{route.handler}_head" if head else route.handler,
        "summary": operation.does,
        "security": [] if route.role == "anyone" else [{"key": []}],
        "parameters": [*_in_path(route.path), *_in_query(operation)],
        "responses": _responses(route, operation, known),
    }
    if operation.body is not None:
        told["requestBody"] = {
            "required": bool(json.required(operation.body)),
            "content": {JSON: {"schema": known[str(operation.body)]}},
        }
    return told


def _in_path(path: str) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)(?:\.\.\.)?}", path):
        described, schema = NAMED[name]
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "description": described,
            "schema": {**schema, "minLength": 1},
        }


def _in_query(operation: Operation) -> Iterator[dict[str, Any]]:
    if operation.query is None:
        return
    (_, components) = json.schemas([operation.query], REFERENCE)
    for name, schema in components[operation.query.__name__]["properties"].items():
        choices = schema.get("anyOf", [schema])
        spelled = next(choice for choice in choices if choice.get("type") != "null")
        described = {"description": schema.get("description", "")} | spelled
        if schema.get("default") is not None:
            described["default"] = schema["default"]
        yield {
            "name": name,
            "in": "query",
            "required": False,
            "description": described.pop("description"),
            "schema": described,
        }


def _responses(
    route: Route, operation: Operation, known: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    head = route.method == "HEAD"
    text = {"schema": {"type": "string"}}
    answered = (
        {JSON: {"schema": known[str(operation.answer)]}} if operation.answer else {PLAIN: text}
    )
    told = {"200": _response("what was asked for", {} if head else answered)}
    if operation.made:
        told["201"] = _response("it was made; its secret is shown this once", answered)
    refusal = {JSON: {"schema": known[str(admin.Refusal)]}}
    if route.role == "anyone":
        if route.handler == "readyz":
            told["503"] = _response("no traffic, please", {} if head else answered)
        return told
    statuses = {*ALWAYS, *KEYED, *operation.refusals}
    statuses |= set(BODY) if operation.body is not None else set()
    for status in sorted(statuses):
        told[str(status)] = _response(HTTPStatus(status).phrase, refusal)
    return told


def _response(described: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": described, **({"content": content} if content else {})}
