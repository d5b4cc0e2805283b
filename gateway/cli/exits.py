"""How a command ends: the exit codes, and the failure that says what, why and what mends it."""

import click

from gateway.errors import GatewayError

OK = 0
INTERNAL = 1
USAGE = 2
NOT_AUTHORISED = 3
NOT_FOUND = 4
CONFLICT = 5
UNAVAILABLE = 6
FAILED = 10  # a check, a drill, an eval or chaos
INTERRUPTED = 130

_BY_STATUS = {
    0: UNAVAILABLE,  # nobody answered
    400: USAGE,
    401: NOT_AUTHORISED,
    403: NOT_AUTHORISED,
    404: NOT_FOUND,
    405: USAGE,
    408: UNAVAILABLE,
    409: CONFLICT,
    413: USAGE,
    415: USAGE,
    422: USAGE,
    429: UNAVAILABLE,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}


class Stop(click.ClickException):
    """A command cannot go on.

    Args:
        what: what happened, and why: a sentence, or lines.
        mend: what to do next: a command, or a line to add.
        code: one of the exit codes above.
    """

    def __init__(self, what: str, mend: str = "", code: int = INTERNAL) -> None:
        super().__init__(what)
        self.mend = mend
        self.code = code

    def format_message(self) -> str:
        return f"{self.message}\n  → {self.mend}" if self.mend else self.message


def code_of(error: GatewayError) -> int:
    """The exit code of what the gateway (or nobody) answered."""
    return _BY_STATUS.get(error.status, INTERNAL)


def stopped_by(error: GatewayError) -> Stop:
    """The same failure in the words of a command line; the request id as the way to its story."""
    what = error.message
    if error.code not in what:
        what = f"{what} ({error.code})"
    for attempt in error.attempts:
        what += f"\n  {attempt.get('target')}: {attempt.get('cause')} after {attempt.get('ms')} ms"
    return Stop(what, _mend(error), code_of(error))


def _mend(error: GatewayError) -> str:
    if error.status == 0:
        return "gateway serve    (or point GATEWAY_URL, --url, --admin-url at a running one)"
    if error.status == 401:
        return "set GATEWAY_API_KEY (GATEWAY_ADMIN_KEY for the admin API) to a key of this gateway"
    if error.retry_after is not None:
        return f"try again in {error.retry_after:.0f} s"
    if error.status >= 500 and error.request_id:
        return f"gateway why {error.request_id}"
    return ""
