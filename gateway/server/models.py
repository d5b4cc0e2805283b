"""/v1/models: the names a key may call, in OpenAI's shape."""

from collections.abc import Sequence
from typing import Any

from gateway.wire import json


def model_list(names: Sequence[str]) -> bytes:
    return json.dumps({"object": "list", "data": [_model(name) for name in names]})


def one_model(name: str) -> bytes:
    return json.dumps(_model(name))


def _model(name: str) -> dict[str, Any]:
    """`created` is asked for by SDKs and means nothing here."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "gateway"}
