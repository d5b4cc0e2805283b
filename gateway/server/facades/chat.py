"""POST /v1/chat/completions: OpenAI's own spelling, which is ours, checked without reading it all.

The body is cut into members; the few that the road needs are decoded, the others travel as bytes.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from gateway.core.attempt import StreamEvent
from gateway.core.ports import Voice
from gateway.core.request import Request
from gateway.errors import GatewayError, InvalidRequest
from gateway.wire import json

MOST_MESSAGES = 20_000
MOST_CHOICES = 8
LONGEST_MODEL = 256
LONGEST_USER = 256
DEEPEST = 64
BYTES_A_TOKEN = 3.5
TOKENS_A_MESSAGE = 4
TOKENS_AN_IMAGE = 1000

FORBIDDEN = frozenset(
    {
        "api_base",
        "base_url",
        "api_key",
        "extra_headers",
        "proxy",
        "custom_llm_provider",
        "callbacks",
        "user_config",
    }
)

KNOWN = frozenset(
    {
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "metadata",
        "modalities",
        "model",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
        "input",
        "dimensions",
        "encoding_format",
    }
)
"""OpenAI's own names: nothing to refuse among them."""

LONGEST_SCAN = 2**20  # bytes
SMALL = 4096  # bytes of a body whose depth is checked as a whole

EVENT_STREAM = "text/event-stream"

_EMPTY = json.Raw(b"")
_NOT_BRACKETS = bytes(c for c in range(256) if c not in b"[]{}")
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)

_text = json.Decoder(str)
_flag = json.Decoder(bool | None)
_number = json.Decoder(int | None)


class _Object(json.Struct, gc=False):
    """A message of whose inside nothing is needed."""


class _Message(json.Struct, gc=False):
    content: json.Raw = _EMPTY


class _Part(json.Struct, gc=False):
    type: str = ""
    image_url: json.Raw = _EMPTY
    input_audio: json.Raw = _EMPTY
    file: json.Raw = _EMPTY


class _StreamOptions(json.Struct):
    include_usage: bool | None = None


class _Format(json.Struct):
    type: str = ""


_objects = json.Decoder(list[_Object])
_messages = json.Decoder(list[_Message])
_parts = json.Decoder(list[_Part])
_options = json.Decoder(_StreamOptions | None)
_format = json.Decoder(_Format | None)


class ChatFacade:
    """`Facade` of chat completions."""

    def parse(self, body: bytes) -> Request:
        members = members_of(body)
        model = model_of(members)
        needs: set[str] = set()
        one_list = body.find(b"[", body.find(b"[") + 1) < 0
        prompt = _prompt(members, needs, flat=one_list)
        stream = "stream" in members and bool(_read(members, "stream", _flag, "true or false"))
        n = (_count(members, "n", MOST_CHOICES) or 1) if "n" in members else 1
        most = _most_output(members)
        include_usage = False
        if "stream_options" in members:
            options = _read(members, "stream_options", _options, "an object")
            include_usage = options is not None and options.include_usage is True
        if n > 1:
            needs.add("n")
        if len(members) > 2:
            _abilities(members, needs)
        return Request(
            kind="chat",
            model=model,
            members=members,
            stream=stream,
            max_output=most,
            n=n,
            user=user_of(members),
            include_usage=include_usage,
            prompt=prompt,
            needs=frozenset(needs) if needs else _NO_NEEDS,
        )

    def voice(self, request: Request) -> Voice:
        return StreamVoice() if request.stream else WholeVoice()


_NO_NEEDS: frozenset[str] = frozenset()


class WholeVoice:
    """The answer in one piece: the JSON as it is."""

    content_type = "application/json"

    def say(self, event: StreamEvent) -> bytes:
        return event.wire

    def close(self, note: bytes) -> bytes:
        return b""

    def interrupted(self, error: GatewayError) -> bytes:
        return json.dumps(error.body())


class StreamVoice:
    """Server-sent events: one `data:` line an event, `[DONE]` only after a proper end."""

    content_type = EVENT_STREAM

    def say(self, event: StreamEvent) -> bytes:
        wire = event.wire
        if not wire or event.own:
            return b""
        return b"data: %b\n\n" % wire

    def close(self, note: bytes) -> bytes:
        if note:
            return b": gateway %b\n\ndata: [DONE]\n\n" % note
        return b"data: [DONE]\n\n"

    def interrupted(self, error: GatewayError) -> bytes:
        return b"data: %b\n\n" % json.dumps(error.body())


def members_of(body: bytes) -> dict[str, json.Raw]:
    """The members of a body that may be passed on.

    Raises:
        InvalidRequest: no JSON object, nested too deeply, or with a member nobody may send.
    """
    try:
        members = json.split(body)
    except json.JSONError as error:
        raise InvalidRequest(f"The body must be a JSON object: {error}.") from None
    if not KNOWN.issuperset(members):
        _refuse_forbidden(members)
    if len(body) < SMALL:
        check_depth(body, "", around=0)
        return members
    for name, value in members.items():
        if len(value) > 2 * DEEPEST and name != "messages":
            check_depth(bytes(value), name)
    return members


def _refuse_forbidden(names: Collection[str]) -> None:
    for name in sorted(names):
        if name in FORBIDDEN or name.startswith("callback"):
            raise InvalidRequest(
                f"'{name[:64]}' may not be sent: where requests go is the gateway's configuration.",
                code="unsupported_parameter",
                param=name[:64],
            )


def model_of(members: Mapping[str, json.Raw]) -> str:
    if "model" not in members:
        raise _wrong("model", "is missing: name a model, see GET /v1/models")
    model: str = _read(members, "model", _text, "a string")
    if not model or len(model) > LONGEST_MODEL:
        raise _wrong("model", f"must have 1 to {LONGEST_MODEL} characters")
    return model


def user_of(members: Mapping[str, json.Raw]) -> str | None:
    if "user" not in members or _is(members["user"], b"null"):
        return None
    user: str = _read(members, "user", _text, "a string")
    if len(user) > LONGEST_USER:
        raise _wrong("user", f"must have at most {LONGEST_USER} characters")
    return user or None


def tokens_of(size: int) -> int:
    return -int(-size // BYTES_A_TOKEN)


def check_depth(text: bytes, param: str, around: int = 1) -> None:
    """Refuse what makes the body nested deeper than 64.

    The brackets alone are taken, and pairs of neighbours removed, one or two layers at a time.
    Brackets inside strings may spoil that: too many are counted again properly; what they hide, or
    what is longer than 1 MiB, is left to the parser's own bound of about 1,000.

    Args:
        text: JSON.
        param: the member it is of; "" for the body.
        around: layers around it.
    """
    most = DEEPEST - around
    if text.count(b"[") + text.count(b"{") <= most:  # no layer without an opening
        return
    brackets = text.translate(None, _NOT_BRACKETS)
    if len(brackets) <= most or len(brackets) > LONGEST_SCAN:
        return
    for layer in range(1, DEEPEST // 2):
        shorter = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if 2 * layer + len(shorter) <= most:
            return
        if len(shorter) == len(brackets):
            break
        brackets = shorter
    if len(text) > LONGEST_SCAN or not _deeper(text, most):
        return
    told = f"'{param}'" if param else "The body"
    message = f"{told} is nested too deeply: {DEEPEST} layers are the most."
    raise InvalidRequest(message, param=param or None)


def _deeper(text: bytes, most: int) -> bool:
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in {b"[", b"{"}:
            depth += 1
            if depth > most:
                return True
        elif token in {b"]", b"}"}:
            depth -= 1
    return False


def _prompt(members: Mapping[str, json.Raw], needs: set[str], *, flat: bool) -> int:
    """Estimated input tokens; what the messages need is added to `needs`.

    `flat`: the body has one list and no more, so no message is made of parts.
    """
    raw = members.get("messages")
    if raw is None:
        raise _wrong("messages", "is missing: it must be a list of messages")
    size = len(raw)
    images = passed = 0
    messages: Sequence[_Message] = ()
    try:
        if flat:
            count = len(_objects.decode(raw))
        else:
            messages = _messages.decode(raw)
            count = len(messages)
    except json.BROKEN:
        raise _wrong("messages", "must be a list of messages (objects)") from None
    if not count:
        raise _wrong("messages", "is empty: it must have one message at least")
    if count > MOST_MESSAGES:
        raise _wrong("messages", f"has more than {MOST_MESSAGES} messages")
    if messages:
        images, passed = _in_parts(messages, needs)
    if "tools" in members:
        size += len(members["tools"])
    return tokens_of(size - passed) + TOKENS_A_MESSAGE * count + TOKENS_AN_IMAGE * images


def _in_parts(messages: Iterable[_Message], needs: set[str]) -> tuple[int, int]:
    """Images in these messages, and the bytes that are no text."""
    images = passed = 0
    for message in messages:
        content = message.content
        if len(content) and memoryview(content)[0] == 0x5B:  # [
            found, size = _look(content, needs)
            images += found
            passed += size
    return images, passed


def _look(content: json.Raw, needs: set[str]) -> tuple[int, int]:
    """Images in the parts of a message, and the bytes that are no text."""
    if len(content) > 2 * DEEPEST:
        check_depth(bytes(content), "messages", around=3)
    try:
        parts = _parts.decode(content)
    except json.BROKEN:
        return 0, 0  # odd parts are the upstream's to judge
    images = passed = 0
    for part in parts:
        if part.type == "image_url":
            needs.add("vision")
            images += 1
            passed += len(part.image_url)
        elif part.type == "input_audio":
            needs.add("audio")
        elif part.type == "file":
            needs.add("files")
    return images, passed


def _abilities(members: Mapping[str, json.Raw], needs: set[str]) -> None:
    tools = members.get("tools")
    if tools is not None and len(tools) > 2 and not _is(tools, b"null"):
        needs.add("tools")
    if "parallel_tool_calls" in members and _is(members["parallel_tool_calls"], b"true"):
        needs.add("parallel_tools")
    if "logprobs" in members and _is(members["logprobs"], b"true"):
        needs.add("logprobs")
    if "response_format" in members:
        form = _read(members, "response_format", _format, "an object with a type")
        if form is not None and form.type == "json_schema":
            needs.add("json_schema")


def _is(value: json.Raw, word: bytes) -> bool:
    return len(value) == len(word) and bytes(value) == word


def _most_output(members: Mapping[str, json.Raw]) -> int | None:
    """max_completion_tokens, else max_tokens; both are checked."""
    older = newer = None
    if "max_tokens" in members:
        older = _count(members, "max_tokens", json.MAX_SAFE_INTEGER)
    if "max_completion_tokens" in members:
        newer = _count(members, "max_completion_tokens", json.MAX_SAFE_INTEGER)
    return newer if newer is not None else older


def _count(members: Mapping[str, json.Raw], name: str, most: int) -> int | None:
    number: int | None = _read(members, name, _number, "a whole number")
    if number is not None and not 1 <= number <= most:
        raise _wrong(name, f"must be from 1 to {most}")
    return number


def _read(members: Mapping[str, json.Raw], name: str, decoder: Any, form: str) -> Any:
    try:
        return decoder.decode(members[name])
    except json.BROKEN:
        raise _wrong(name, f"must be {form}") from None


def _wrong(param: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"'{param}' {problem}.", param=param)
