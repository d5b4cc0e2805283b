"""POST /v1/embeddings: one answer, never a stream."""

from gateway.core.ports import Voice
from gateway.core.request import Request
from gateway.errors import InvalidRequest
from gateway.server.facades.chat import (
    WholeVoice,
    check_depth,
    members_of,
    model_of,
    tokens_of,
    user_of,
)
from gateway.wire import json

MOST_INPUTS = 2048  # OpenAI's own bound

_inputs = json.Decoder(list[json.Raw])


class EmbeddingsFacade:
    """`Facade` of embeddings."""

    def parse(self, body: bytes) -> Request:
        members = members_of(body)
        raw = members.get("input")
        if raw is None:
            raise _wrong("is missing: it must be a string or a list")
        return Request(
            kind="embeddings",
            model=model_of(members),
            members=members,
            user=user_of(members),
            prompt=_prompt(raw),
        )

    def voice(self, request: Request) -> Voice:
        return WholeVoice()


def _prompt(raw: json.Raw) -> int:
    """Estimated tokens: of text by its bytes, of token lists by their length."""
    view = memoryview(raw)
    if view[0] == 0x22:  # "
        if len(view) == 2:
            raise _wrong("is empty")
        return tokens_of(len(raw))
    if view[0] != 0x5B:  # [
        raise _wrong("must be a string or a list")
    check_depth(bytes(raw), "input")
    inputs = _inputs.decode(raw)
    if not inputs:
        raise _wrong("is empty")
    first = memoryview(inputs[0])[0]
    if first in b"-0123456789":
        return len(inputs)
    if len(inputs) > MOST_INPUTS:
        raise _wrong(f"has more than {MOST_INPUTS} entries")
    if first == 0x5B:
        return bytes(view).count(b",") + 1
    return tokens_of(len(raw))


def _wrong(problem: str) -> InvalidRequest:
    return InvalidRequest(f"'input' {problem}.", param="input")
