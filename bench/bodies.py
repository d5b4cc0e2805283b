"""Bodies as agents send them, made by code: always the same, different in every word."""

import json
import random
from typing import Any

MODEL = "smart"  # the chain of the generated configuration; the other servers do not look

_PROSE = (
    "the order was promised for Monday and the carrier says «held at depot» while our ledger shows"
    " a second charge of 49,90 € on the same seat so please check whether a refund is due under"
    " policy number seven and answer in two short sentences naming the document you found it in"
    " naïve customers café Zürich invoice March April shipment warehouse status pending delivered"
)
_WORDS = _PROSE.split()
_TOOLS = (
    "search_orders", "get_order", "refund_order", "search_documents", "read_document", "send_email",
    "open_ticket", "close_ticket", "list_shipments", "get_customer", "update_customer", "run_query",
)  # fmt: skip


def chat(size: int, *, tools: bool = False, stream: bool = False) -> bytes:
    """A request of about `size` bytes as OpenAI's SDK spells it (compact, UTF-8)."""
    draw = random.Random(size)
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": _text(draw, 30 if size < 4096 else 160)}
    ]
    body: dict[str, Any] = {"model": MODEL, "messages": messages}
    if tools:
        body["tools"] = [_tool(draw, name) for name in _TOOLS]
        body["tool_choice"] = "auto"
    body |= {"temperature": 0.2, "max_tokens": 256, "user": "u-12345"}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    turn = 0
    while (left := size - len(_spelled(body))) > 120:
        if not tools:
            messages.append({"role": "user", "content": _text(draw, max(5, left // 7))})
        else:
            messages += _turn(draw, turn)
            turn += 1
    return _spelled(body)


def _turn(draw: random.Random, turn: int) -> list[dict[str, Any]]:
    """One question, the call the model made for it, what the tool said, and the answer."""
    call = f"call_{draw.getrandbits(96):024x}"
    arguments = json.dumps({"order_id": 1000 + turn, "fields": ["status", "lines"], "limit": 5})
    found = json.dumps({"order_id": 1000 + turn, "status": "pending", "note": _text(draw, 35)})
    function = {"name": draw.choice(_TOOLS), "arguments": arguments}
    return [
        {"role": "user", "content": f"Question {turn}: {_text(draw, 45)}"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": call, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call, "content": found},
        {"role": "assistant", "content": _text(draw, 25)},
    ]


def _tool(draw: random.Random, name: str) -> dict[str, Any]:
    properties = {
        "order_id": {"type": "integer", "description": _text(draw, 8)},
        "fields": {"type": "array", "items": {"type": "string", "enum": ["status", "lines"]}},
        "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 10},
        "filter": {
            "type": "object",
            "properties": {"since": {"type": "string"}, "note": {"type": ["string", "null"]}},
            "additionalProperties": False,
        },
    }
    parameters = {"type": "object", "properties": properties, "required": ["order_id"]}
    function = {"name": name, "description": _text(draw, 25), "parameters": parameters}
    return {"type": "function", "function": function}


def _text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(_WORDS) for _ in range(words))


def _spelled(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


BODIES = {
    "1k": chat(1000),
    "1k-stream": chat(1000, stream=True),
    "30k": chat(30_000, tools=True),
    "330k": chat(330_000, tools=True),
}
