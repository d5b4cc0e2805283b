"""OpenAI's dialect, for everyone who speaks it: what to send, and what the answers mean."""

from collections.abc import Mapping

from gateway.core.attempt import StreamEvent
from gateway.core.ports import UpstreamRequest
from gateway.core.request import Request
from gateway.core.target import Cause, Failure, Params, Target
from gateway.providers.dialects import errors, repair
from gateway.providers.dialects import usage as usages
from gateway.providers.dialects.stream import Decoder, texts
from gateway.wire import json, openai

GATEWAY_ONLY = frozenset({"gateway", "models"})
"""Members of a body that are ours to read; no upstream sees them."""

_WITH_USAGE = json.raw({"include_usage": True})
_TRUE = json.raw(True)  # noqa: FBT003 - a JSON value
_OUTPUT_CAPS = ("max_tokens", "max_completion_tokens")
_OPENAI = "https://api.openai.com/"

_completion = json.Decoder(openai.Completion).decode
_embeddings = json.Decoder(openai.Embeddings).decode


class Chat:
    """A target that speaks OpenAI; everything that does not change is made once, here."""

    __slots__ = (
        "_caps", "_chat", "_embeddings", "_headers", "_model", "_models", "_own_cap", "_secret",
        "_streaming", "_target", "_touched",
    )  # fmt: skip

    def __init__(self, target: Target, authorization: Mapping[str, str]) -> None:
        self._target = target
        self._secret = target.secret.reveal()
        self._chat = f"{target.base_url}/chat/completions"
        self._embeddings = f"{target.base_url}/embeddings"
        self._models = f"{target.base_url}/models"
        self._model = json.raw(target.model)
        self._headers = {
            "content-type": "application/json",
            "accept": "application/json",
            "accept-encoding": "identity",
            "user-agent": "llm-gateway",
            **authorization,
        }
        self._streaming = {**self._headers, "accept": "text/event-stream"}
        self._caps = _caps(target.params)
        self._own_cap = _own_cap(target)
        params = target.params
        self._touched = bool(params.default or self._caps or params.set or params.drop)

    def request(self, request: Request, attempt_id: str) -> UpstreamRequest:
        """What to send: the caller's members, through the target's params, never its own bytes."""
        members = dict(request.members)
        for name in GATEWAY_ONLY:
            members.pop(name, None)
        members["model"] = self._model
        if request.stream:
            members["stream_options"] = _asking_usage(members.get("stream_options"))
        dropped: tuple[str, ...] = ()
        if self._touched:
            dropped = self._apply(members, request)
        if request.cap is not None and request.kind == "chat":
            self._bound(members, request.cap)
        if ours := GATEWAY_ONLY & request.members.keys():
            dropped = tuple(sorted({*dropped, *ours}))
        headers = self._streaming if request.stream else self._headers
        return UpstreamRequest(
            "POST",
            self._chat if request.kind == "chat" else self._embeddings,
            headers,
            json.join(members),
            request.stream,
            self._target.allow_private,
            dropped,
            attempt_id,
        )

    def models(self) -> UpstreamRequest:
        """The list of models: free, and shows whether our key is accepted."""
        headers = {k: v for k, v in self._headers.items() if k != "content-type"}
        return UpstreamRequest(
            "GET",
            self._models,
            headers,
            b"",
            stream=False,
            allow_private=self._target.allow_private,
        )

    def completion(self, request: Request, body: bytes) -> StreamEvent:
        """A whole 200 answer as one event; with a failure when it is none."""
        try:
            if request.kind == "embeddings":
                return self._vectors(body)
            return self._answer(body)
        except repair.Ended as ended:
            return StreamEvent(b"", failure=ended.failure)
        except repair.Broken:
            what = "answered an empty body" if not body.strip() else "answered no completion"
            return StreamEvent(b"", failure=Failure(Cause.MALFORMED, what))

    def decoder(self, request: Request) -> Decoder:
        return Decoder(request, self._target.model, self._secret)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> Failure:
        """What an error status means (gateway.md 2.2). Header names in lower case."""
        return errors.failure(status, headers, body, self._secret)

    # ------------------------------------------------------------------ what goes out

    def _apply(self, members: dict[str, json.Raw], request: Request) -> tuple[str, ...]:
        """default, cap, set, drop; the names that were dropped of what the caller sent."""
        params = self._target.params
        for name, value in params.default.items():
            members.setdefault(name, value)
        for name, most in self._caps.items():
            if name in members and _above(members[name], most):
                members[name] = json.raw(most)
        members.update(params.set)
        if request.stream and "stream_options" in params.set:
            members["stream_options"] = _asking_usage(members["stream_options"])
        members["model"] = self._model
        for name in params.drop:
            members.pop(name, None)
        return tuple(sorted(params.drop & request.members.keys()))

    def _bound(self, members: dict[str, json.Raw], cap: int) -> None:
        """No choice may have more than `cap` tokens, whatever caller and params say.

        Some know only the one name of this bound, some refuse the other, none takes both.
        """
        said = [name for name in _OUTPUT_CAPS if name in members]
        numbers = {name: _whole(members.pop(name)) for name in said}
        kept = next((name for name in reversed(_OUTPUT_CAPS) if numbers.get(name)), self._own_cap)
        members[kept] = json.raw(min([cap, *(number for number in numbers.values() if number)]))

    # ------------------------------------------------------------------ what comes back

    def _answer(self, body: bytes) -> StreamEvent:
        try:
            answer = _completion(body)
            if answer.usage is not None and not usages.inclusive(answer.usage):
                body, answer = self._repaired(body)
        except json.BROKEN:
            body, answer = self._repaired(body)
        size = 0
        for choice in answer.choices:
            size += texts(choice.message)
            for call in choice.message.tool_calls or ():
                size += len(call.function.name.encode()) + len(call.function.arguments.encode())
        usage = usages.read(answer.usage) if answer.usage is not None else None
        return StreamEvent(body, True, size, usage, answer.choices[0].finish_reason)  # noqa: FBT003

    def _repaired(self, body: bytes) -> tuple[bytes, openai.Completion]:
        wire = json.dumps(
            repair.completion(repair.readable(body, self._secret), self._target.model)
        )
        try:
            return wire, _completion(wire)
        except json.BROKEN:
            raise repair.Broken from None

    def _vectors(self, body: bytes) -> StreamEvent:
        try:
            answer = _embeddings(body)
            told = answer.usage
        except json.BROKEN:
            value = repair.embeddings(repair.readable(body, self._secret), self._target.model)
            body = json.dumps(value)
            try:
                answer = _embeddings(body)
            except json.BROKEN:
                raise repair.Broken from None
            told = answer.usage
        if not all(bytes(vector.embedding)[:1] in b'["' for vector in answer.data):
            raise repair.Broken
        usage = usages.vectors(told)
        return StreamEvent(body, content=True, usage=usage)


def with_bearer(target: Target) -> Chat:
    """Authorized by `Authorization: Bearer`, or not at all where the target has no key."""
    secret = target.secret.reveal()
    return Chat(target, {"authorization": f"Bearer {secret}"} if secret else {})


def _own_cap(target: Target) -> str:
    """By which name we bound an answer: OpenAI's newer models refuse the older one."""
    older, newer = _OUTPUT_CAPS
    if older in target.params.drop:
        return newer
    openai_itself = target.base_url.startswith(_OPENAI) and newer not in target.params.drop
    return newer if openai_itself else older


def _caps(params: Params) -> dict[str, int | float]:
    caps: dict[str, int | float] = {
        name: int(most) if float(most).is_integer() else most for name, most in params.cap.items()
    }
    for name in _OUTPUT_CAPS:
        if name in caps:
            for other in _OUTPUT_CAPS:
                caps.setdefault(other, caps[name])
            break
    return caps


def _whole(value: json.Raw) -> int | None:
    try:
        number = json.loads(value)
    except json.JSONError:
        return None
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _above(value: json.Raw, most: float) -> bool:
    try:
        number = json.loads(value)
    except json.JSONError:
        return False
    return isinstance(number, int | float) and not isinstance(number, bool) and number > most


def _asking_usage(options: json.Raw | None) -> json.Raw:
    """`stream_options` with `include_usage: true` and whatever else the caller said there."""
    if options is None:
        return _WITH_USAGE
    try:
        members = json.split(bytes(options))
    except json.JSONError:
        return _WITH_USAGE
    members["include_usage"] = _TRUE
    return json.Raw(json.join(members))
