"""The list of models in OpenAI's shape."""

from gateway.server.models import model_list, one_model
from gateway.wire import json


def test_the_list_keeps_its_order():
    told = json.loads(model_list(["b", "a"]))
    assert told["object"] == "list"
    assert [model["id"] for model in told["data"]] == ["b", "a"]
    assert told["data"][0] == json.loads(one_model("b"))
    assert set(told["data"][0]) == {"id", "object", "created", "owned_by"}
