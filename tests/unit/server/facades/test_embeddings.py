"""What embeddings may say."""

import pytest

from gateway.errors import InvalidRequest
from gateway.server.facades.embeddings import EmbeddingsFacade
from gateway.wire import json

FACADE = EmbeddingsFacade()


def parse(given, **members):
    return FACADE.parse(json.dumps({"model": "e", "input": given, **members}))


@pytest.mark.parametrize(
    ("given", "prompt"),
    [
        ("x" * 33, 10),
        (["a" * 31], 10),
        ([1, 2, 3], 3),
        ([[1, 2], [3]], 3),
        (["a", "b"], 3),
    ],
)
def test_input_is_estimated(given, prompt):
    request = parse(given, user="u")
    assert (request.kind, request.model, request.user) == ("embeddings", "e", "u")
    assert request.prompt == prompt
    assert not request.stream


@pytest.mark.parametrize("given", ["", [], None, 5, {}, True, ["x"] * 2049])
def test_odd_input_is_refused(given):
    with pytest.raises(InvalidRequest) as caught:
        parse(given)
    assert caught.value.param == "input"


@pytest.mark.parametrize("body", [b"", b"[]", b'{"model":"e"}', b'{"input":"x"}', b"\xff"])
def test_what_is_no_request_is_refused(body):
    with pytest.raises(InvalidRequest):
        FACADE.parse(body)


def test_members_that_steer_the_gateway_are_refused():
    with pytest.raises(InvalidRequest, match="api_base"):
        parse("x", api_base="http://evil")
