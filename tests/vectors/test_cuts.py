"""Streams cut off at every byte: what comes out is a prefix of the truth, never a false success."""

import copy
import json
from collections.abc import Iterator

import pytest

from gateway.core.request import Request
from gateway.core.target import Cause, Secret, Target
from gateway.providers import registry
from gateway.providers.dialects import repair
from gateway.providers.dialects.stream import Decoder
from tests.vectors import cases

pytestmark = pytest.mark.skipif(not cases.SHARED.exists(), reason="../shared/vectors is not here")

CHAT = registry.adapter(
    Target("t", "t", "p", "openai", "upstream-model", "https://up", secret=Secret("sk-x"))
)
EDGE = 2048  # every byte of so much at both ends; between, every 11th and all near an event's end


def offsets(body: bytes, start: int, end: int) -> Iterator[int]:
    """The cuts in one event: all of them in a short stream."""
    everywhere = len(body) <= 4 * EDGE
    for at in range(start, end):
        near = at - start < 4 or end - at < 6 or at < EDGE or len(body) - at < EDGE
        if everywhere or near or at % 11 == 0:
            yield at


def fork(decoder: Decoder) -> Decoder:
    twin = copy.copy(decoder)
    twin._splitter = copy.copy(decoder._splitter)
    twin._splitter._rest = bytearray(decoder._splitter._rest)
    if decoder._body is not None:
        twin._body = bytearray(decoder._body)
    twin._choices = {}
    for index, choice in decoder._choices.items():
        other = twin._choices[index] = copy.copy(choice)
        other.calls = [copy.copy(call) for call in choice.calls]
    return twin


class Truth:
    """Another reader, as simple as can be: which choices began, which are finished."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.done: set[int] = set()

    def read(self, line: bytes) -> bool:
        """Whether the line is an event of the dialect."""
        try:
            chunk = json.loads(line.removeprefix(b"data:"))
        except ValueError:
            return False
        if not line.startswith(b"data:") or not isinstance(chunk, dict):
            return False
        for choice in chunk.get("choices") or []:
            self.open.add(choice["index"])
            if choice.get("finish_reason") not in {None, "error"}:
                self.done.add(choice["index"])
        return True

    @property
    def finished(self) -> bool:
        return bool(self.open) and self.open == self.done

    def after(self, line: bytes) -> bool:
        """Whether it would be finished if `line` came as well."""
        twin = copy.copy(self)
        twin.open, twin.done = set(self.open), set(self.done)
        twin.read(line)
        return twin.finished


@pytest.mark.parametrize("case", cases.streams(), ids=repr)
def test_a_cut_stream_is_never_told_as_complete(
    case: cases.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "made_id", lambda prefix: f"{prefix}made")
    request = Request("chat", "m", {}, stream=True)
    body = case.body.replace(b"\r\n", b"\n")
    whole = CHAT.decoder(request)
    truth = list(whole.feed(body))
    if whole._over and not whole._done:
        truth = truth[:-1]
    base, simple, told = CHAT.decoder(request), Truth(), []
    start = 0
    while start < len(body) and not base._over:
        end = body.find(b"\n\n", start)
        end = len(body) if end < 0 else end + 2
        for at in offsets(body, start, end):
            twin = fork(base)
            part = body[start:at]
            events = [*told, *twin.feed(part), *twin.close()]
            finished = (
                simple.after(part.strip()) if part.rstrip().endswith(b"}") else simple.finished
            )
            failure = events[-1].failure if events else None
            assert (failure is None) is finished, at
            assert twin.complete is finished, at
            if failure is not None:
                assert failure.cause in {Cause.CUT_STREAM, Cause.MALFORMED, Cause.SERVER_ERROR}
                events.pop()
            assert events == truth[: len(events)], at
        told += base.feed(body[start:end])
        simple.read(body[start:end].strip())
        start = end
