"""The admin API, fuzzed from its own OpenAPI document over a running gateway.

Never a 5xx; what is answered is what the document says; what the document forbids is refused.
"""

import random

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from gateway.core.keys import KeyTerms
from gateway.server.openapi import document
from tests.integration.rig import HEAD, Gateway, declared
from tests.support.house import ADMIN_KEY

TEXT = (
    "providers: {p: {kind: sim}}\nchains: {smart: [p/m], cheap: [p/m]}\n"
    "tiers: {free: {limits: {rpm: 20, tpm: 1_000}}}\nteams: {us: {tier: free, chains: [cheap]}}\n"
    "keys:\n" + declared("of-the-file", "tier: free")
)
DOCUMENT = document("0")
API = schemathesis.openapi.from_dict(DOCUMENT)
LEFT_OUT = {"/admin/drain"}  # ends what is fuzzed; tests/integration/server drains
OPERATIONS = [
    result.ok()
    for result in API.get_all_operations()
    if result.ok().path not in LEFT_OUT and result.ok().method != "head"
]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
THERE = ("alice", "bob", "gone", "of-the-file")
FUZZ = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    head = HEAD.replace("{listen", "{admin_keys: true, listen")
    with Gateway(TEXT, tmp_path_factory.mktemp("fuzz") / "state", head=head) as running:
        store = running.house.state.register
        for name in ("alice", "bob", "gone"):
            running.wait(running.house.current.doors.admin.keys.put(name, KeyTerms(), "test"))
        running.wait(store.revoke("gone", "test", ""))
        yield running


def test_the_document_has_every_route_of_the_port():
    assert {(op.path, op.method) for op in OPERATIONS} >= {
        ("/admin/keys/{name}", "put"),
        ("/admin/keys/{name}/rotate", "post"),
        ("/admin/breaker/{target}", "post"),
        ("/admin/audit", "get"),
    }


ASKED = [
    pytest.param(operation, mode, id=f"{operation.label} {mode.value}")
    for operation in OPERATIONS
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if mode is GenerationMode.POSITIVE or operation.path not in {"/healthz", "/readyz"}
]  # nothing is asked of these two, so nothing can be asked wrongly


@pytest.mark.parametrize(("operation", "mode"), ASKED)
def test_whatever_is_asked_the_answer_is_one_of_the_document(house, operation, mode):
    draw = random.Random(operation.label)
    heard = set()
    right = mode is GenerationMode.POSITIVE

    @FUZZ
    @given(operation.as_strategy(generation_mode=mode))
    def fuzz(case):
        if right and "name" in case.path_parameters and draw.random() < 0.6:
            case.path_parameters["name"] = draw.choice(THERE)
        if right and "target" in case.path_parameters:
            case.path_parameters["target"] = draw.choice(("p/m", "nobody"))
        answer = case.call_and_validate(
            base_url=house.admin_url,
            headers={"Authorization": f"Bearer {ADMIN_KEY}"},
            checks=CHECKS,
        )
        heard.add(answer.status_code)

    fuzz()
    assert heard & ({404} if operation.path == "/admin/requests/{id}" else {200}) or not right
    assert max(heard) < 500
