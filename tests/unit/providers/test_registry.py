"""Every vendor is on the list, and a target gets its own dialect."""

import pytest

from gateway.core.request import Request
from gateway.core.target import Secret, Target
from gateway.providers import registry
from gateway.wire import json


@pytest.mark.parametrize("kind", registry.KINDS)
def test_each_kind_makes_requests_to_its_base_url(kind: str) -> None:
    target = Target("t", "t", "p", kind, "up", "https://up/v1", secret=Secret("sk-secret"))
    sent = registry.adapter(target).request(Request("chat", "m", {"model": json.raw("m")}), "req_1")
    assert sent.url == "https://up/v1/chat/completions"
    assert sent.headers["authorization"] == "Bearer sk-secret"
    assert sent.id == "req_1"


@pytest.mark.parametrize("kind", registry.KINDS)
def test_without_a_key_there_is_no_authorization(kind: str) -> None:
    target = Target("t", "t", "p", kind, "up", "http://127.0.0.1:1/v1", allow_private=True)
    sent = registry.adapter(target).request(Request("chat", "m", {}), "req_1")
    assert "authorization" not in sent.headers
    assert sent.allow_private


def test_the_free_call_lists_models() -> None:
    target = Target("t", "t", "p", "openai", "up", "https://up/v1", secret=Secret("sk-secret"))
    sent = registry.adapter(target).models()
    assert (sent.method, sent.url, sent.body) == ("GET", "https://up/v1/models", b"")
    assert sent.headers["authorization"] == "Bearer sk-secret"
