"""The stream of whoever speaks OpenAI, as events that OpenAI's own SDK types accept.

Two depths: a strict typed look at each event, which passes on untouched when it is already valid
and goes on with the story told so far; anything else is read whole, repaired, and looked at again.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gateway.core.attempt import StreamEvent
from gateway.core.request import Request
from gateway.core.target import Cause, Failure
from gateway.core.usage import Usage
from gateway.providers.dialects import errors, repair
from gateway.providers.dialects import usage as usages
from gateway.wire import json, openai
from gateway.wire.sse import EventTooLong, Splitter

MOST_MALFORMED = 3  # in a row
MOST_BODY = 64 * 1024  # of a 200 that is no stream

_peek = json.Decoder(openai.Chunk).decode
_made = tuple.__new__  # a StreamEvent at half the price
_PLAIN = bytes(c for c in range(0x20, 0x7F) if c not in b'"\\')  # what a JSON text holds as it is


class _Call:
    """One tool call of a choice, as the caller knows it; our index is its place in the list."""

    __slots__ = ("arguments", "id", "upstream")

    def __init__(self, upstream: int | None, id: str) -> None:
        self.upstream = upstream  # its index there
        self.id = id
        self.arguments = False  # some came


class _Choice:
    """What one choice has told so far."""

    __slots__ = ("calls", "finished", "role")

    def __init__(self) -> None:
        self.role = False
        self.finished = False
        self.calls: list[_Call] = []


_NEW = _Choice()


class _Frame(NamedTuple):
    """What stands around the text of a plain content event, there and here.

    The next event is likely to differ in that text alone (and in OpenAI's padding between
    `middle` and `tail`): then nothing need be read again. `middle` begins with the quote that
    ends the text. Without padding there is no `tail`, and all but the text stands still: `first`
    and `last` are the bytes around it in a read that is just this event.
    """

    head: bytes
    middle: bytes
    tail: bytes
    our_head: bytes
    our_tail: bytes
    same: bool
    first: bytes = b""  # b"": there is padding
    last: bytes = b""


class Decoder:
    """One streamed answer. `malformed` counts the events that were skipped."""

    __slots__ = (
        "_asked", "_body", "_choices", "_created", "_done", "_empty", "_frame", "_framings", "_id",
        "_malformed", "_model", "_n", "_name", "_open", "_over", "_secret", "_splitter", "_told",
        "_usage", "malformed",
    )  # fmt: skip

    def __init__(self, request: Request, model: str, secret: str) -> None:
        self._asked = request.include_usage
        self._n = request.n
        self._name = model  # for an upstream that does not say its own
        self._secret = secret
        self._splitter = Splitter()
        self._body: bytearray | None = bytearray()  # until its first byte says what this is
        self._id = ""
        self._created = 0
        self._model = ""
        self._choices: dict[int, _Choice] = {}
        self._open = 0  # choices begun and not finished
        self._usage: dict[str, Any] | None = None  # came beside choices, not yet shown
        self._told = False  # a usage frame went out
        self._done = False  # the end was proper
        self._over = False  # nothing more comes of this decoder
        self._empty = True  # no event of the dialect came
        self._malformed = 0  # in a row
        self._frame: _Frame | None = None
        self._framings = 4  # how often it is worth looking for a frame
        self.malformed = 0

    @property
    def complete(self) -> bool:
        """Every choice has its finish_reason, and usage or `[DONE]` was seen as well."""
        if self._open or not self._choices or (self._over and not self._done):
            return False
        return self._done or (self._told and len(self._choices) >= self._n)

    def feed(self, data: bytes) -> Sequence[StreamEvent]:
        """What these bytes completed. After an event with a failure nothing more comes."""
        if self._over:
            return ()
        frame = self._frame
        if frame is not None and (plain := self._single(frame, data)) is not None:
            return (plain,)
        if self._body is not None:
            data = self._begin(self._body, data)
            if not data:
                return self._too_long()
        try:
            payloads = self._splitter.feed(data)
        except EventTooLong:
            self._over = True
            return (_failed(Cause.MALFORMED, "sent an event above 1 MiB"),)
        events: list[StreamEvent] = []
        for payload in payloads:
            frame = self._frame
            if frame is not None and payload.startswith(frame.head):
                text, mark, pad = payload[len(frame.head) :].partition(frame.middle)
                if (
                    mark
                    and text
                    and not text.translate(None, _PLAIN)
                    and (pad == frame.tail or _only_padded(pad, frame.tail))
                ):
                    wire = payload if frame.same else frame.our_head + text + frame.our_tail
                    self._malformed = 0
                    event = (wire, True, len(text), None, None, None, False)
                    events.append(_made(StreamEvent, event))
                    continue
            self._event(payload, events)
            if self._is_over():
                break
        return events

    def _single(self, frame: _Frame, data: bytes) -> StreamEvent | None:
        """A read that is one more plain event, as most are; None: it is not."""
        first, last = frame.first, frame.last
        if not (first and data.startswith(first) and data.endswith(last)) or len(data) > MOST_BODY:
            return None
        text = data[len(first) : -len(last)]
        if not text or text.translate(None, _PLAIN) or not self._splitter.between:
            return None
        wire = data[6:-2] if frame.same else frame.our_head + text + frame.our_tail
        self._malformed = 0
        return _made(StreamEvent, (wire, True, len(text), None, None, None, False))

    def close(self) -> Sequence[StreamEvent]:
        """The end came: nothing if the answer was complete, else one event with a failure."""
        if self._over:
            return ()
        events: list[StreamEvent] = []
        if self._body:
            events.append(self._no_stream(bytes(self._body)))
        else:
            for payload in self._splitter.close():
                self._event(payload, events)
            if not self._is_over():
                self._end(events, said=False)
        self._over = True
        return events

    # ------------------------------------------------------------------ the strict look

    def _event(self, payload: bytes, events: list[StreamEvent]) -> None:
        """One event of theirs: none, one or two of ours."""
        try:
            chunk = _peek(payload)
        except json.BROKEN:
            self._read(payload, events)
            return
        if self._follows(chunk):
            events.append(self._learn(chunk, payload, payload))
        else:
            self._read(payload, events)

    def _follows(self, chunk: openai.Chunk) -> bool:
        """Whether a valid event also goes on with the story: then its bytes may stay."""
        if (
            chunk.id != self._id or chunk.created != self._created or chunk.model != self._model
        ) and self._id:
            return False
        usage, choices = chunk.usage, chunk.choices
        if not choices:
            return usage is not None and not self._told and usages.inclusive(usage)
        if usage is not None:
            return False
        if len(choices) == 1:
            return self._goes_on(choices[0])
        if len({choice.index for choice in choices}) != len(choices):
            return False
        return all(self._goes_on(choice) for choice in choices)

    def _goes_on(self, choice: openai.ChunkChoice) -> bool:
        known = self._choices.get(choice.index, _NEW)
        delta = choice.delta
        if known.finished or (delta.role is not None) is known.role:
            return False
        pieces, finish = delta.tool_calls, choice.finish_reason
        if pieces:
            return finish is None and _go_on(pieces, known.calls)
        if finish is None or finish == "length":
            return True
        return all(call.arguments for call in known.calls)

    def _learn(self, chunk: openai.Chunk, wire: bytes, payload: bytes) -> StreamEvent:
        """Take in a valid event that follows; `payload` is what it was upstream."""
        self._malformed = 0
        self._empty = False
        if not self._id:
            self._id, self._created, self._model = chunk.id, chunk.created, chunk.model
        if not chunk.choices:
            self._told = True
            usage = usages.read(chunk.usage) if chunk.usage is not None else None
            return StreamEvent(wire, usage=usage, own=not self._asked)
        size = 0
        finish: str | None = None
        content = False
        for choice in chunk.choices:
            known = self._choices.get(choice.index) or self._new(choice.index)
            delta = choice.delta
            if delta.role is not None:
                known.role = True
            size += texts(delta)
            if delta.tool_calls:
                content = True
                size += _take(delta.tool_calls, known.calls)
            elif delta.function_call is not None:
                content = True
            if choice.finish_reason is not None:
                finish = choice.finish_reason
                known.finished = True
                self._open -= 1
                self._frame = None
        if self._framings and size and finish is None:
            self._framings -= 1
            self._frame = _framed(chunk, wire, payload)
        return StreamEvent(
            wire, content or size > 0 or finish is not None, size, finish_reason=finish
        )

    def _new(self, index: int) -> _Choice:
        known = self._choices[index] = _Choice()
        self._open += 1
        return known

    # ------------------------------------------------------------------ read, repaired

    def _read(self, payload: bytes, events: list[StreamEvent]) -> None:
        """An event that cannot go out as it is: the end, an error, junk, or in want of repair."""
        if payload.strip() == b"[DONE]":
            self._over = True
            self._end(events, said=True)
            return
        try:
            self._repaired(repair.readable(payload, self._secret), payload, events)
        except repair.Ended as ended:
            self._over = True
            events.append(StreamEvent(b"", failure=ended.failure))
        except (repair.Broken, json.JSONError):
            self.malformed += 1
            self._malformed += 1
            if any(known.calls and not known.finished for known in self._choices.values()):
                self._over = True  # the piece that is lost may be one of the arguments
                events.append(_failed(Cause.MALFORMED, "sent a broken event within a tool call"))
            elif self._malformed >= MOST_MALFORMED:
                self._over = True
                events.append(
                    _failed(Cause.MALFORMED, f"sent {MOST_MALFORMED} broken events in a row")
                )

    def _repaired(self, chunk: dict[str, Any], payload: bytes, events: list[StreamEvent]) -> None:
        """Make of an odd event what OpenAI would have sent, and take that in."""
        told, choices = repair.chunk(chunk)
        if not choices:
            self._malformed = 0
            self._empty = False
            if told is not None:
                self._frame_of_usage(chunk, told, events)
            return  # else a frame of somebody's filter, or a sign of life
        usage = _read_usage(told)
        event = self._fitted_event(chunk, choices, payload)
        self._malformed = 0
        self._empty = False
        if usage is not None:  # each such event has its own: the text is not all that differs
            self._frame = None
            event = (event or StreamEvent(b"", own=True))._replace(usage=usage)
        if event is not None:
            events.append(event)
        if told is not None:
            self._usage = told
            if not self._open:
                self._frame_of_usage({}, told, events)

    def _fitted_event(
        self, chunk: dict[str, Any], choices: list[dict[str, Any]], payload: bytes
    ) -> StreamEvent | None:
        """The event with choices that go on with the story; None: they add nothing.

        Raises:
            repair.Broken: it cannot be; nothing of it is remembered.
        """
        before = {index: len(known.calls) for index, known in self._choices.items()}
        try:
            fitted = [one for choice in choices if (one := self._fitted(choice)) is not None]
            if not fitted:
                return None
            self._identify(chunk)
            chunk["choices"] = fitted
            chunk.pop("usage", None)
            wire = json.dumps(chunk)
            return self._learn(_peek(wire), wire, payload)
        except (repair.Broken, *json.BROKEN):
            for index, known in list(self._choices.items()):
                if index in before:
                    del known.calls[before[index] :]
                else:
                    del self._choices[index]
                    self._open -= 1
            raise repair.Broken from None

    def _frame_of_usage(
        self, chunk: dict[str, Any], told: dict[str, Any], events: list[StreamEvent]
    ) -> None:
        """Usage is shown once, in the frame OpenAI would have sent; later ones only count."""
        usage = _read_usage(told)
        if self._told:
            events.append(StreamEvent(b"", usage=usage, own=True))
            return
        self._told = True
        chunk = {**chunk, "object": "chat.completion.chunk", "choices": [], "usage": told}
        self._identify(chunk)
        events.append(StreamEvent(json.dumps(chunk), usage=usage, own=not self._asked))

    def _identify(self, chunk: dict[str, Any]) -> None:
        """One id, created and model for the whole stream."""
        if not self._id:
            name, model = chunk.get("id"), chunk.get("model")
            self._id = name if name and isinstance(name, str) else repair.made_id("chatcmpl-")
            self._model = model if model and isinstance(model, str) else self._name
            self._created = repair.moment(chunk.get("created"))
        chunk["id"], chunk["model"], chunk["created"] = self._id, self._model, self._created

    def _fitted(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        """A repaired choice made to go on with the story; None: it adds nothing."""
        known = self._choices.get(choice["index"]) or self._new(choice["index"])
        delta = choice["delta"]
        if known.finished:
            if repair.says_something(delta):
                raise repair.Ended(Failure(Cause.MALFORMED, "went on after its end"))
            return None
        if known.role:
            delta.pop("role", None)
        else:
            delta["role"] = "assistant"
        if delta.get("tool_calls"):
            delta["tool_calls"] = [self._call(call, known.calls) for call in delta["tool_calls"]]
        if choice["finish_reason"] not in {None, "length"}:
            repair.give_arguments(delta, [call.arguments for call in known.calls])
        return choice

    @staticmethod
    def _call(call: dict[str, Any], known: list[_Call]) -> dict[str, Any]:
        place = repair.renumbered(call, known)
        if place is not None:
            return repair.call_piece(call, place)
        head = repair.call_head(call, len(known))
        if not head["function"]["name"]:
            raise repair.Broken
        index = call.get("index")
        known.append(_Call(index if isinstance(index, int) else None, head["id"]))
        return head

    # ------------------------------------------------------------------ ends

    def _is_over(self) -> bool:
        return self._over

    def _end(self, events: list[StreamEvent], *, said: bool) -> None:
        """`[DONE]` (`said`) or the end of the bytes: proper only if every choice is finished."""
        if self._choices and not self._open and (said or len(self._choices) >= self._n):
            self._done = True
            if said and self._usage is not None and not self._told:
                self._frame_of_usage({}, self._usage, events)
        elif self._empty:
            events.append(_failed(Cause.MALFORMED, "answered an empty stream"))
        else:
            events.append(_failed(Cause.CUT_STREAM, "ended without a finish_reason"))

    def _begin(self, body: bytearray, data: bytes) -> bytes:
        """Hold back what is no stream: a JSON body or a page under a 200."""
        body += data
        start = body.lstrip()[:1]
        if start and start not in b"{[<":
            self._body = None
            return bytes(body)
        return b""

    def _too_long(self) -> Sequence[StreamEvent]:
        if self._body is None or len(self._body) <= MOST_BODY:
            return ()
        self._over = True
        return (_failed(Cause.MALFORMED, "answered no event stream"),)

    def _no_stream(self, body: bytes) -> StreamEvent:
        if not body.strip():
            return _failed(Cause.MALFORMED, "answered an empty stream")
        try:
            error = repair.error_in(json.loads(body))
        except json.JSONError:
            error = None
        if error is not None:
            return StreamEvent(b"", failure=errors.in_band(error, self._secret))
        return _failed(Cause.MALFORMED, "answered no event stream")


def texts(said: openai.Delta | openai.Message) -> int:
    """UTF-8 bytes of everything a caller would read in it, but for tool calls."""
    size = 0
    for text in (said.content, said.reasoning_content or said.reasoning, said.refusal):
        if text:
            size += len(text) if text.isascii() else len(text.encode())
    if said.function_call is not None and said.function_call.arguments:
        size += len(said.function_call.arguments.encode())
    return size


def _go_on(pieces: list[openai.ToolCallDelta], calls: list[_Call]) -> bool:
    """Whether the pieces are numbered and headed as OpenAI does it."""
    begun = len(calls)
    for piece in pieces:
        function = piece.function
        if piece.index < begun:
            if piece.id or (function is not None and function.name):
                return False
            if piece.index < len(calls) and calls[piece.index].upstream != piece.index:
                return False
        elif (
            piece.index == begun
            and piece.id
            and piece.type is not None
            and function is not None
            and function.name
            and function.arguments is not None
        ):
            begun += 1
        else:
            return False
    return True


def _take(pieces: list[openai.ToolCallDelta], calls: list[_Call]) -> int:
    """Remember what came of the calls; UTF-8 bytes of names and arguments."""
    size = 0
    for piece in pieces:
        if piece.index == len(calls):
            calls.append(_Call(piece.index, piece.id or ""))
        function = piece.function
        if function is not None:
            if function.arguments:
                calls[piece.index].arguments = True
                size += len(function.arguments.encode())
            if function.name:
                size += len(function.name.encode())
    return size


def _framed(chunk: openai.Chunk, wire: bytes, payload: bytes) -> _Frame | None:
    """The frame of a plain content event of a one-choice stream, if this is one."""
    choice = chunk.choices[0]
    delta = choice.delta
    text = delta.content
    if len(chunk.choices) != 1 or not text or not text.isascii() or delta.role is not None:
        return None
    if texts(delta) != len(text) or delta.tool_calls or choice.logprobs is not None:
        return None
    theirs, ours = _around(payload, text), _around(wire, text)
    if theirs is None or ours is None:
        return None
    head, tail = theirs
    first = last = b""
    if b"\n" not in payload:
        first, last = b"data: " + head, tail + b"\n\n"
    if payload is not wire:
        return _Frame(head, tail, b"", *ours, same=False, first=first, last=last)
    padding = b'"obfuscation":' + json.dumps(chunk.obfuscation or "")
    middle, found, rest = tail.partition(padding)
    if not found or b'"obfuscation"' in rest:
        return _Frame(head, tail, b"", *ours, same=True, first=first, last=last)
    return _Frame(head, middle + b'"obfuscation":"', b'"' + rest, *ours, same=True)


def _around(data: bytes, text: str) -> tuple[bytes, bytes] | None:
    """What stands before and after the text of the only `content` in `data`."""
    quoted = json.dumps(text)
    for name in (b'"content":', b'"content": '):
        head, found, tail = data.partition(name + quoted)
        if found and b'"content"' not in head and b'"content"' not in tail:
            return head + name + b'"', b'"' + tail
    return None


def _only_padded(pad: bytes, tail: bytes) -> bool:
    return bool(tail) and pad.endswith(tail) and not pad[: -len(tail)].translate(None, _PLAIN)


def _read_usage(told: dict[str, Any] | None) -> Usage | None:
    return usages.read(json.decode(json.dumps(told), openai.Usage)) if told is not None else None


def _failed(cause: Cause, message: str) -> StreamEvent:
    return StreamEvent(b"", failure=Failure(cause, message))
