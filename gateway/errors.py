"""Every failure a caller can see: status, OpenAI `type`, our closed `code`, and what to do next.

The tree (status, type; what a client should do):

    GatewayError 500 api_error
      RequestRejected - change the request first; x-should-retry: false
        InvalidRequest 400 invalid_request_error
        Unauthenticated 401 authentication_error
        NotAllowed 403 permission_error
        NotFound 404 not_found_error
        Conflict 409 invalid_request_error
        CallEnded 409, KeyReused 422 invalid_request_error - of an Idempotency-Key
        TooLarge 413, UnsupportedEncoding 415 invalid_request_error
      Shed - come back at retry_after; x-should-retry: true up to 60 s
        InProgress 409 invalid_request_error - the same request is still being answered
        RateLimited 429 rate_limit_error - also a chain whose targets were rate limited
        Overloaded 503 overloaded_error - draining, no healthy target, store lost
      BudgetSpent 429 insufficient_quota - x-should-retry: false; `resets_at` says when it is whole
      UpstreamFailed 502 upstream_error - x-should-retry: false, we already tried
        UpstreamTimedOut 504 upstream_error

Messages name the thing, the limit and the remedy; never a secret, never an exception's text.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

RETRY_WORTH_WAITING = 60.0  # seconds: beyond it a client should not sit and wait


class GatewayError(Exception):
    """The base of what the public API answers with.

    Args:
        message: for the person who reads it; safe to show.
        code: one of the closed list; the class's own when absent.
        param: the member of the request that is wrong, as OpenAI names it.
        retry_after: seconds after which a repeat may succeed.
        scope: which limit refused: key, team, user, session, provider, target.
    """

    status: int = 500
    type: str = "api_error"
    default_code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        scope: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.retry_after = retry_after
        self.scope = scope
        self.request_id = ""  # the edge's
        self.attempts: Sequence[Mapping[str, Any]] = ()  # {target, cause, status, ms}, the road's
        self.told: Mapping[str, str] = {}  # x-gateway-* headers, the road's
        self.extra: Mapping[str, Any] = {}  # further members beside `error`, the road's

    @property
    def should_retry(self) -> bool:
        """Whether the same request, sent again, may succeed: the header `x-should-retry`."""
        if not self.retryable:
            return False
        return self.retry_after is None or self.retry_after <= RETRY_WORTH_WAITING

    def body(self) -> dict[str, Any]:
        """`{"error": {...}}` in OpenAI's shape, with our members inside."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
            "retryable": self.should_retry,
        }
        if self.retry_after is not None:
            error["retry_after_ms"] = math.ceil(self.retry_after * 1000)
        if self.scope is not None:
            error["scope"] = self.scope
        if self.request_id:
            error["request_id"] = self.request_id
        if self.attempts:
            error["attempts"] = list(self.attempts)
        return {"error": error, **self.extra}

    def headers(self) -> dict[str, str]:
        """`x-should-retry` always; `retry-after` (whole seconds, at least 1) and `-ms` if known."""
        headers = dict(self.told)
        headers["x-should-retry"] = "true" if self.should_retry else "false"
        after = self.retry_after
        if after is None and self.retryable and self.status in {429, 503}:
            after = 1.0
        if after is not None:
            headers["retry-after"] = str(max(1, math.ceil(after)))
            headers["retry-after-ms"] = str(max(1, math.ceil(after * 1000)))
        return headers


class RequestRejected(GatewayError):
    """The request itself has to change."""


class InvalidRequest(RequestRejected):
    status = 400
    type = "invalid_request_error"
    default_code = "invalid_request"


class Unauthenticated(RequestRejected):
    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class NotAllowed(RequestRejected):
    status = 403
    type = "permission_error"
    default_code = "forbidden"


class NotFound(RequestRejected):
    status = 404
    type = "not_found_error"
    default_code = "not_found"


class MethodNotAllowed(RequestRejected):
    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class Conflict(RequestRejected):
    """What is asked for contradicts what is there."""

    status = 409
    type = "invalid_request_error"
    default_code = "conflict"


class SlowRequest(RequestRejected):
    """The request itself did not arrive in time (RFC 9110, 15.5.9)."""

    status = 408
    type = "invalid_request_error"
    default_code = "request_timeout"


class CallEnded(RequestRejected):
    """Its caller ended it by DELETE."""

    status = 409
    type = "invalid_request_error"
    default_code = "request_ended"


class KeyReused(RequestRejected):
    """An Idempotency-Key stands for another request."""

    status = 422
    type = "invalid_request_error"
    default_code = "idempotency_key_reused"


class TooLarge(RequestRejected):
    status = 413
    type = "invalid_request_error"
    default_code = "body_too_large"


class UnsupportedEncoding(RequestRejected):
    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_encoding"


class Shed(GatewayError):
    """Nothing is wrong with the request: come back."""

    retryable = True


class InProgress(Shed):
    """The first request under this Idempotency-Key is still being answered."""

    status = 409
    type = "invalid_request_error"
    default_code = "idempotency_in_progress"


class RateLimited(Shed):
    status = 429
    type = "rate_limit_error"
    default_code = "rpm_exceeded"


class BudgetSpent(GatewayError):
    """Money is up until `resets_at` (RFC 3339; None: it does not renew itself)."""

    status = 429
    type = "insufficient_quota"
    default_code = "insufficient_quota"

    def __init__(self, message: str, *, scope: str, resets_at: str | None) -> None:
        super().__init__(message, scope=scope)
        self.resets_at = resets_at

    def body(self) -> dict[str, Any]:
        """`resets_at` stands where others say when to come back."""
        body = super().body()
        body["error"]["resets_at"] = self.resets_at
        return body


class Overloaded(Shed):
    status = 503
    type = "overloaded_error"
    default_code = "overloaded"

    @property
    def should_retry(self) -> bool:
        return super().should_retry and not self.attempts


class UpstreamFailed(GatewayError):
    """Every target was tried; a client's own retry would only walk the chain again."""

    status = 502
    type = "upstream_error"
    default_code = "chain_exhausted"


class UpstreamTimedOut(UpstreamFailed):
    status = 504
    default_code = "deadline_exceeded"
