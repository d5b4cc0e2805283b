"""The OpenAPI document: every route, every shape, and nothing that is not served."""

import re

import pytest

from gateway.server.openapi import OPERATIONS, document
from gateway.server.routes import ADMIN

DOCUMENT = document("1.2.3")


def references(value: object) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_it_is_made_of_the_one_table_of_routes():
    told = {(method.upper(), path) for path, found in DOCUMENT["paths"].items() for method in found}
    assert told == {(route.method, route.path.replace("...}", "}")) for route in ADMIN}
    assert set(OPERATIONS) == {route.handler for route in ADMIN}
    assert (DOCUMENT["openapi"], DOCUMENT["info"]["version"]) == ("3.1.0", "1.2.3")


def test_every_reference_leads_somewhere_and_every_shape_is_used():
    shapes = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}
    assert references(DOCUMENT["paths"]) <= shapes
    assert shapes - references(DOCUMENT) <= {
        f"#/components/schemas/{operation.query.__name__}"
        for operation in OPERATIONS.values()
        if operation.query is not None
    }


@pytest.mark.parametrize("route", ADMIN, ids=lambda route: f"{route.method} {route.path}")
def test_an_operation_says_who_may_what_it_takes_and_how_it_may_end(route):
    told = DOCUMENT["paths"][route.path.replace("...}", "}")][route.method.lower()]
    assert told["security"] == ([] if route.role == "anyone" else [{"key": []}])
    named = [p["name"] for p in told["parameters"] if p["in"] == "path"]
    assert named == re.findall(r"{(\w+)", route.path)
    assert "200" in told["responses"]
    assert route.role == "anyone" or {"400", "401", "403"} <= set(told["responses"])


def test_no_field_takes_a_url_a_template_or_code():
    asked = [operation.body for operation in OPERATIONS.values() if operation.body is not None]
    names = {name for body in asked for name in body.__struct_fields__}
    assert names == {
        "tier", "team", "chains", "limits", "budgets", "role", "expires", "overlap_s", "set"
    }  # fmt: skip
