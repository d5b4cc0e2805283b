"""Shapes take their defaults from the core, and never print what they hold."""

import pytest

from gateway.config.models import Address, BreakerSection, Document
from gateway.config.nodes import Scalar
from gateway.core.target import BreakerPolicy


def test_defaults_are_the_cores() -> None:
    policy = BreakerPolicy()
    for name, value in BreakerSection():
        assert value == getattr(policy, name)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
    ],
)
def test_loopback_is_known(host: str, *, loopback: bool) -> None:
    assert Address(host, 1).loopback is loopback


def test_a_document_does_not_print_its_secrets() -> None:
    written = {
        "providers": {"p": {"kind": Scalar("openai"), "key": Scalar("canary")}},
        "chains": {"c": [Scalar("p/m")]},
    }
    assert "canary" not in repr(Document.model_validate(written, context={}))
