"""What an OpenAI-like error means (gateway.md 2.2): one table over status, code, type and message.

An error inside a 200 is judged by the same table, at the status it would have had.
"""

import email.utils
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from gateway.core.target import Cause, Failure
from gateway.wire import json

MOST_BODY = 2048
LONGEST_WAIT = 3600.0


class Told(NamedTuple):
    """What an error body says, whatever its shape; texts are "" where it says nothing."""

    code: str = ""
    type: str = ""
    message: str = ""
    param: str = ""
    inner: str = ""
    status: int | None = None
    reasons: bool = False  # OpenRouter's moderation


class _Row(NamedTuple):
    """An exception from the status: any code, or any phrase of the message, in lower case."""

    statuses: frozenset[int]
    cause: Cause
    codes: frozenset[str] = frozenset()
    phrases: tuple[str, ...] = ()
    feature: str | None = None
    throttles: bool = True


_REFUSED = frozenset({400, 413, 422})
_BUSY = frozenset({413, 429})

_EXCEPTIONS = (
    _Row(_BUSY, Cause.RATE_LIMITED, phrases=("request too large for",), throttles=False),
    _Row(
        _REFUSED,
        Cause.CONTEXT_LENGTH,
        codes=frozenset(
            {
                "context_length_exceeded",
                "exceed_context_size_error",
                "too_many_prompt_tokens",
                "too_many_tokens",
            }
        ),
        phrases=(
            "maximum context length is",
            "exceeds the context window",
            "exceeds the available context size",
            "exceeded max context length",
            "inputs tokens + max_new_tokens must be",
            "input token count exceeds the maximum",
            "prompt is too long",
        ),
    ),
    _Row(
        frozenset({400, 403}),
        Cause.CONTENT_POLICY,
        codes=frozenset(
            {"content_policy_violation", "content_filter", "responsibleaipolicyviolation"}
        ),
    ),
    _Row(
        frozenset({400, 402, 403, 429}),
        Cause.QUOTA,
        codes=frozenset(
            {
                "insufficient_quota",
                "billing_hard_limit_reached",
                "billing_not_active",
                "exceeded_current_quota_error",
            }
        ),
    ),
    _Row(
        frozenset({400}),
        Cause.AUTH,
        codes=frozenset({"invalid_api_key", "api_key_invalid"}),
        phrases=("incorrect api key", "api key not valid"),
    ),
    _Row(frozenset({400}), Cause.MALFORMED, codes=frozenset({"tool_use_failed"})),
    _Row(
        frozenset({400}),
        Cause.MODEL_GONE,
        codes=frozenset(
            {"model_not_found", "invalid_model", "model_not_exist", "deploymentnotfound"}
        ),
        phrases=("model not exist",),
    ),
    _Row(
        frozenset({400, 404}),
        Cause.UNABLE,
        phrases=(
            "does not support tools",
            "no endpoints found that support tool use",
            "tool choice requires --enable-auto-tool-choice",
        ),
        feature="tools",
    ),
    _Row(
        frozenset({400, 404}),
        Cause.UNABLE,
        phrases=("no endpoints found that support image input",),
        feature="vision",
    ),
    _Row(_REFUSED, Cause.UNABLE, phrases=("please use /v1/responses instead",)),
    _Row(
        _REFUSED,
        Cause.UNABLE,
        codes=frozenset({"unsupported_parameter", "unsupported_value"}),
        phrases=("unsupported parameter:", "unsupported value:"),
        feature="",  # what it names
    ),
)

_BY_STATUS: Mapping[int, Cause] = {
    401: Cause.AUTH,
    402: Cause.QUOTA,
    403: Cause.AUTH,
    404: Cause.MODEL_GONE,
    405: Cause.MODEL_GONE,
    408: Cause.SERVER_ERROR,
    409: Cause.SERVER_ERROR,
    410: Cause.MODEL_GONE,
    413: Cause.CONTEXT_LENGTH,
    421: Cause.MODEL_GONE,
    424: Cause.SERVER_ERROR,
    425: Cause.SERVER_ERROR,
    429: Cause.RATE_LIMITED,
    498: Cause.OVERLOADED,
    503: Cause.OVERLOADED,
    529: Cause.OVERLOADED,
}

_STATUS_OF: Mapping[str, int] = {  # the status an error inside a 200 would have had
    "invalid_request_error": 400,
    "badrequesterror": 400,
    "context_length_exceeded": 400,
    "exceed_context_size_error": 400,
    "too_many_prompt_tokens": 400,
    "content_policy_violation": 400,
    "content_filter": 400,
    "tool_use_failed": 400,
    "unsupported_parameter": 400,
    "unsupported_value": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "notfounderror": 404,
    "model_not_found": 404,
    "timeout": 408,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "ratelimitreached": 429,
    "too_many_requests": 429,
    "resource_exhausted": 429,
    "insufficient_quota": 429,
    "tokens": 429,
    "requests": 429,
    "overloaded": 503,
    "overloaded_error": 503,
    "over_capacity": 503,
    "capacity_exceeded": 503,
    "engine_overloaded_error": 503,
    "service_unavailable": 503,
    "unavailable": 503,
    "insufficient_system_resource": 503,
}

_FEATURES: Mapping[str, str] = {  # a member that stands for an ability
    "tool_choice": "tools",
    "functions": "tools",
    "function_call": "tools",
    "parallel_tool_calls": "parallel_tools",
    "response_format": "json_schema",
    "reasoning_effort": "reasoning",
    "reasoning": "reasoning",
    "top_logprobs": "logprobs",
    "audio": "audio",
}
_PARTS: Mapping[str, str] = {"image_url": "vision", "input_audio": "audio", "file": "files"}

_RELAYED = frozenset({Cause.BAD_REQUEST, Cause.CONTEXT_LENGTH, Cause.CONTENT_POLICY})
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z_.]{1,47}")
_NUMBERS = re.compile(r"\s*\(\d+\)")
_NAMED = re.compile(r"unsupported (?:parameter|value): '([A-Za-z_0-9.\[\]]{1,64})'", re.IGNORECASE)
_MEMBER = re.compile(r"[A-Za-z_0-9]{1,64}")
_SECRETS = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|gk|pplx|hf|r8)[-_][A-Za-z0-9_\-*.…]{4,}"
    r"|AIza[A-Za-z0-9_\-*]{4,}"
    r"|(?i:bearer)\s+[^\s\"',;]+"
    r"|(?i:(?<=key=)|(?<=key:)|(?<=token=))\s*[^\s\"'&,;]+"
)
_AGAIN = re.compile(
    r"(?:try again|retry) (?:in|after) ((?:[0-9]{1,9}(?:\.[0-9]+)?\s*"
    r"(?:milliseconds?|ms|seconds?|minutes?|hours?|[smhd])\s*)+)",
    re.IGNORECASE,
)
_PIECE = re.compile(r"([0-9]{1,9}(?:\.[0-9]+)?)\s*(ms|milli|s|m|h|d)", re.IGNORECASE)
_UNITS = {"ms": 0.001, "milli": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_RESETS = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
)


def told(body: bytes) -> Told:
    """Read an error body of any shape; what is not JSON says nothing."""
    try:
        value = json.loads(body)
    except json.JSONError:
        return Told()
    return told_by(value)


def told_by(value: Any) -> Told:
    """As `told`, of a value that is already read."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, str):
        return Told(message=value)
    if not isinstance(value, dict):
        return Told()
    error = value.get("error")
    if isinstance(error, str):  # xAI and Ollama
        return Told(code=_text(value.get("code")), message=error)
    if not isinstance(error, dict):
        error = value
    detail = error.get("detail")  # FastAPI and Mistral
    if isinstance(detail, list):
        detail = detail[0].get("msg") if detail and isinstance(detail[0], dict) else None
    code = error.get("code")
    status = _status(code) or _status(error.get("status"))
    inner = error.get("innererror") or error.get("inner_error")
    metadata = error.get("metadata")
    return Told(
        code="" if isinstance(code, int) else _text(code),
        type=_text(error.get("type")) or _text(error.get("error_type")),
        message=_text(error.get("message")) or _text(detail),
        param=_text(error.get("param")),
        inner=_text(inner.get("code")) if isinstance(inner, dict) else "",
        status=status,
        reasons=isinstance(metadata, dict) and bool(metadata.get("reasons")),
    )


def in_band(value: Any, secret: str) -> Failure:
    """The failure an error inside a 200 stands for: that of the equal status."""
    error = told_by(value)
    status = error.status
    if status is None:
        names = (error.code.lower(), error.type.lower())
        status = next((_STATUS_OF[name] for name in names if name in _STATUS_OF), 500)
    failure = judge(status, error, json.dumps(value), secret, "answered an error inside a 200")
    wait = _said(error.message)
    if wait is None or not failure.throttles:
        return failure
    return Failure(
        failure.cause,
        failure.message,
        failure.status,
        failure.body,
        wait,
        failure.feature,
        failure.throttles,
    )


def failure(status: int, headers: Mapping[str, str], body: bytes, secret: str) -> Failure:
    """What an error status means. Header names in lower case."""
    error = told(body)
    judged = judge(status, error, body, secret, f"answered {status}")
    wait = how_long(headers, error.message, status=status) if judged.throttles else None
    if wait is None:
        return judged
    return Failure(
        judged.cause,
        judged.message,
        judged.status,
        judged.body,
        wait,
        judged.feature,
        judged.throttles,
    )


def judge(status: int, error: Told, body: bytes, secret: str, what: str) -> Failure:
    """The exceptions in order, then the status."""
    row = next((row for row in _EXCEPTIONS if _applies(row, status, error)), None)
    feature = None
    if row is not None:
        cause = row.cause
        if cause is Cause.UNABLE:
            feature = row.feature or (None if row.feature is None else _feature(error, secret))
    elif status == 403 and error.reasons:
        cause = Cause.CONTENT_POLICY
    else:
        cause = by_status(status)
    if 300 <= status < 400:
        what += " (redirects are not followed)"
    elif name := _name(error, secret):
        what += f" {name}"
    return Failure(
        cause,
        what,
        status,
        redacted(body, secret) if cause in _RELAYED else b"",
        feature=feature,
        throttles=row.throttles if row is not None else True,
    )


def by_status(status: int) -> Cause:
    """The cause of a status on its own."""
    cause = _BY_STATUS.get(status)
    if cause is not None:
        return cause
    if 300 <= status < 400 or status >= 500:
        return Cause.SERVER_ERROR
    if status >= 400:
        return Cause.BAD_REQUEST
    return Cause.MALFORMED


def _applies(row: _Row, status: int, error: Told) -> bool:
    if status not in row.statuses:
        return False
    if row.codes and not row.codes.isdisjoint(
        (error.code.lower(), error.type.lower(), error.inner.lower())
    ):
        return True
    if not row.phrases or not error.message:
        return False
    message = _NUMBERS.sub("", error.message.replace("`", "")).lower()
    return any(phrase in message for phrase in row.phrases)


def _feature(error: Told, secret: str) -> str | None:
    """The ability or the member that a refusal names."""
    param = error.param
    if not param and (named := _NAMED.search(error.message)):
        param = named.group(1)
    for part, ability in _PARTS.items():
        if param.endswith(part) and "." in param:
            return ability
    first = _MEMBER.match(_clean(param, secret))
    if first is None:
        return None
    return _FEATURES.get(first.group(), first.group())


def _name(error: Told, secret: str) -> str:
    """The upstream's own short word for it, when it is one."""
    for word in (error.code, error.type):
        if _IDENTIFIER.fullmatch(word) and _clean(word, secret) == word:
            return word
    return ""


# ---------------------------------------------------------------------- how long to wait


def how_long(headers: Mapping[str, str], message: str, *, status: int) -> float | None:
    """Seconds an error answer asks us to wait; the larger of what it says, at most an hour.

    `x-ratelimit-reset-*` stands on every answer and is when a limit is whole again, later than need
    be: it counts only on a 429 that says nothing else, and that of a used-up limit first.
    """
    waits: tuple[float | None, ...] = (
        _scaled(headers.get("retry-after-ms"), 0.001),
        _retry_after(headers),
        _said(message),
    )
    if status == 429 and not any(waits):
        waits = tuple(_reset(headers, reset) for left, reset in _RESETS if headers.get(left) == "0")
    if status == 429 and not any(waits):
        waits = tuple(_reset(headers, reset) for _, reset in _RESETS)
    found = [wait for wait in waits if wait]
    return min(max(found), LONGEST_WAIT) if found else None


def _scaled(text: str | None, unit: float) -> float | None:
    """A plain number above 0; junk, NaN, infinity and signs are nothing."""
    number = "" if text is None else text.strip()
    return (float(number) * unit or None) if _NUMBER.fullmatch(number) else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, or a date against the answer's own `date`: we have no clock here."""
    text = headers.get("retry-after")
    seconds = _scaled(text, 1.0)
    if text is None or seconds is not None:
        return seconds
    then, now = _moment(text), _moment(headers.get("date"))
    if then is None or now is None:
        return None
    return then - now if then > now else None


def _moment(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError, TypeError):
        return None


def _said(message: str) -> float | None:
    """`Please try again in 644ms`, `retry in 48.9s`, `retry after 33 seconds`."""
    found = _AGAIN.search(message)
    return _span(found.group(1)) if found else None


def _reset(headers: Mapping[str, str], name: str) -> float | None:
    """`6m0s`, `59.874s`, plain seconds, or an epoch against the answer's own `date`."""
    text = headers.get(name)
    if text is None:
        return None
    seconds = _scaled(text, 1.0)
    if seconds is None:
        return _span(text)
    if seconds < 1e9:
        return seconds
    epoch = seconds if seconds < 1e12 else seconds / 1000
    now = _moment(headers.get("date"))
    return epoch - now if now is not None and epoch > now else None


def _span(text: str) -> float | None:
    """`6m0s`, `1.5 hours`, `120ms` in seconds."""
    total = sum(float(n) * _UNITS[unit.lower()] for n, unit in _PIECE.findall(text[:64]))
    return total or None


# ---------------------------------------------------------------------- what may be shown


def redacted(body: bytes, secret: str) -> bytes:
    """An error body without secrets, at most 2 KiB, still JSON when it was JSON."""
    try:
        value = json.loads(body)
    except json.JSONError:
        text = _clean(body[: 4 * MOST_BODY].decode(errors="replace"), secret)
        return text.encode()[:MOST_BODY].decode(errors="ignore").encode()
    value = _cleaned(value, secret)
    whole = json.dumps(value)
    if len(whole) <= MOST_BODY:
        return whole
    error = told_by(value)
    short = {
        "message": error.message.encode()[:1024].decode(errors="ignore"),
        "type": error.type[:64] or None,
        "param": error.param[:64] or None,
        "code": error.code[:64] or None,
    }
    cut = json.dumps({"error": short})
    return cut if len(cut) <= MOST_BODY else json.dumps({"error": {**short, "message": ""}})


def _cleaned(value: Any, secret: str, depth: int = 32) -> Any:
    if isinstance(value, str):
        return _clean(value, secret)
    if isinstance(value, list | dict) and not depth:
        return None
    if isinstance(value, list):
        return [_cleaned(item, secret, depth - 1) for item in value]
    if isinstance(value, dict):
        return {_clean(k, secret): _cleaned(v, secret, depth - 1) for k, v in value.items()}
    return value


def _clean(text: str, secret: str) -> str:
    if secret and secret in text:
        text = text.replace(secret, "…")
    return _SECRETS.sub("…", text)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _status(value: Any) -> int | None:
    """An HTTP error status said as a number or as digits (`"429"`)."""
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600:
        return value
    return None
