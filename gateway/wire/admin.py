"""The shapes of the admin API: what is asked of it, and what it answers.

What is asked is checked strictly: an unknown member is refused. What is answered may grow members.
"""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from gateway.wire import json

Meta = json.Meta

AMOUNT = r"^[0-9]{1,7}(\.[0-9]{1,9})?$"
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
MOMENT = r"^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]\d{2}:\d{2}))?$"

LISTED = 50  # stories, when nobody says how many
MOST_LISTED = 1000
OVERLAP = 86_400  # seconds, when nobody says how long
MOST_OVERLAP = 90 * 86_400

Name = Annotated[str, Meta(pattern=NAME, description="a-z, 0-9, dot, dash, underscore; at most 64")]
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Small = Annotated[int, Meta(ge=1, le=1_000_000)]
Moment = Annotated[str, Meta(description="RFC 3339, UTC", examples=["2027-01-01T00:00:00Z"])]
Hex = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Role = Literal["client", "agent", "metrics", "admin"]
Scope = Literal["team", "key", "user", "session", "provider", "target"]
Period = Literal["hour", "day", "month", "total"]
Per = Literal["request", "hour", "day", "month", "total"]


# What is asked


class LimitsBody(json.Struct, forbid_unknown_fields=True, frozen=True):
    """The key's own limits. They only narrow its tier's, or its team's."""

    rpm: Annotated[Count | None, Meta(description="requests in any 60 seconds")] = None
    tpm: Annotated[Count | None, Meta(description="tokens in any 60 seconds")] = None
    concurrency: Annotated[Small | None, Meta(description="requests at a time")] = None


class BudgetBody(json.Struct, forbid_unknown_fields=True, frozen=True):
    """A budget of the key's own. It only narrows its tier's, or its team's."""

    usd: Annotated[
        str,
        Meta(pattern=AMOUNT, description="dollars, more than 0 and at most 9,000,000"),
    ]
    per: Per
    hard: Annotated[bool, Meta(description="never passed")] = True


class KeyBody(json.Struct, forbid_unknown_fields=True, frozen=True):
    """A key as it has to be. What is left out is none: the whole key is described each time."""

    tier: Annotated[Name | None, Meta(description="whose limits it has")] = None
    team: Annotated[Name | None, Meta(description="whose limits it shares")] = None
    chains: Annotated[
        Annotated[list[Name], Meta(max_length=1000)] | None,
        Meta(description="what it may call; all, or its team's, if not said"),
    ] = None
    limits: LimitsBody = LimitsBody()
    budgets: Annotated[
        tuple[BudgetBody, ...], Meta(max_length=5, description="its own, one for each period")
    ] = ()
    role: Role = "client"
    expires: Annotated[
        Annotated[str, Meta(pattern=MOMENT, max_length=40)] | None,
        Meta(description="the last day (UTC) it works, or the moment it ends (RFC 3339)"),
    ] = None


class RotateBody(json.Struct, forbid_unknown_fields=True, frozen=True):
    """How long the secret before goes on working."""

    overlap_s: Annotated[int, Meta(ge=0, le=MOST_OVERLAP, description="seconds")] = OVERLAP


class BreakerBody(json.Struct, forbid_unknown_fields=True, frozen=True):
    """`open`: nobody is sent there. `closed`: everybody. `auto`: as it sees fit."""

    set: Literal["open", "closed", "auto"]


class RequestsQuery(json.Struct, forbid_unknown_fields=True, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=MOST_LISTED, description="how many")] = LISTED


class LimitsQuery(json.Struct, forbid_unknown_fields=True, frozen=True):
    key: Annotated[
        Annotated[str, Meta(pattern=NAME)] | None,
        Meta(description="of one key and its team; all if not said"),
    ] = None
    limit: Annotated[
        int, Meta(ge=1, le=10_000, description="how many limits, and how many budgets")
    ] = 1000


class KeysQuery(json.Struct, forbid_unknown_fields=True, frozen=True):
    after: Annotated[
        Annotated[str, Meta(pattern=NAME)] | None,
        Meta(description="the names behind this one: `next` of the page before"),
    ] = None
    limit: Annotated[int, Meta(ge=1, le=1000, description="how many")] = 100


class AuditQuery(json.Struct, forbid_unknown_fields=True, frozen=True):
    before: Annotated[
        Annotated[int, Meta(ge=1, le=2**53)] | None,
        Meta(description="lines below this number"),
    ] = None
    limit: Annotated[int, Meta(ge=1, le=1000, description="how many")] = 100


# What is answered


class Error(TypedDict):
    """What went wrong, in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str
    retryable: bool
    request_id: str
    retry_after_ms: NotRequired[int]
    scope: NotRequired[str]


class Refusal(TypedDict):
    error: Error


class Alive(TypedDict):
    status: Literal["ok"]


class Ready(TypedDict):
    """`degraded` and `unready_chains` say why."""

    status: Literal["ready", "degraded", "starting", "draining"]
    degraded: NotRequired[list[str]]
    unready_chains: NotRequired[dict[str, str]]


class TargetTold(TypedDict):
    """A target of a chain, for one key of its provider; seconds until what rests is asked again.

    `held`: by an operator. `workers`: how many see the breaker so, where not all do.
    """

    target: str
    key: str
    provider: str
    model: str
    breaker: Literal["closed", "half-open", "open"]
    probe_in_s: NotRequired[float]
    throttled_s: NotRequired[float]
    aside_s: NotRequired[float]
    lacks: NotRequired[list[str]]
    held: NotRequired[Literal["open", "closed"]]
    workers: NotRequired[int]


class ChainTold(TypedDict):
    name: str
    also: list[str]
    targets: list[TargetTold]


Silent = Annotated[list[int], Meta(description="workers that did not answer")]


class ChainsTold(TypedDict):
    chains: list[ChainTold]
    silent: NotRequired[Silent]


class WorkerTold(TypedDict):
    """One of several processes; `silent` is one that did not answer."""

    worker: int
    status: Literal["ready", "degraded", "starting", "draining", "silent"]
    pid: NotRequired[int]
    config: NotRequired[str]
    in_flight: NotRequired[int]
    queue: NotRequired[int]


class ReloadedWorkerTold(TypedDict):
    worker: int
    problem: str
    config: NotRequired[str]


class StatusTold(TypedDict):
    version: str
    config: Annotated[str, Meta(description="12 hex digits that name the configuration in force")]
    ready: bool
    status: Literal["ready", "degraded", "starting", "draining"]
    in_flight: int
    queue: int
    keyless: bool
    ledger_drift_nano_usd: int
    chains: list[ChainTold]
    degraded: NotRequired[list[str]]
    unready_chains: NotRequired[dict[str, str]]
    pid: NotRequired[int]
    workers: NotRequired[list[WorkerTold]]
    silent: NotRequired[Silent]


class Story(TypedDict):
    """One request: attempts with times, causes, tokens, cost. Never a prompt or an answer."""

    request_id: str
    ts: float
    api: str
    status: int
    attempts: list[dict[str, Any]]


class RequestsTold(TypedDict):
    """Newest first."""

    requests: list[Story]
    silent: NotRequired[Silent]


class LimitTold(TypedDict):
    """An account: `used` of `limit` (of its burst, where it has one), whole again in `reset_s`."""

    account: str
    scope: Scope
    name: str
    kind: Literal["rpm", "tpm", "concurrency"]
    limit: int
    used: int
    remaining: int
    reset_s: float


Dollars = Annotated[str, Meta(description="dollars, exact", examples=["0.000812"])]


class BudgetTold(TypedDict):
    """A budget in the period that runs. `used_usd` is spent, or held by requests under way.

    Both figures are null while the ledger cannot be read.
    """

    account: str
    scope: Scope
    name: str
    per: Period
    hard: bool
    limit_usd: Dollars
    used_usd: Dollars | None
    remaining_usd: Dollars | None
    resets_at: Annotated[Moment | None, Meta(description="null: never")]


class LimitsTold(TypedDict):
    limits: list[LimitTold]
    budgets: list[BudgetTold]
    more: Annotated[bool, Meta(description="there are more of either than were asked for")]
    silent: NotRequired[Silent]


class ConfigTold(TypedDict):
    """The configuration in force; secrets are shown as an ellipsis."""

    config: str
    document: dict[str, Any]


class ReloadTold(TypedDict):
    """`problem`: why the file was not taken, "" if it was. `note`: what waits for a restart."""

    config: str
    problem: str
    note: str
    workers: NotRequired[list[ReloadedWorkerTold]]


class DrainTold(TypedDict):
    status: Literal["draining"]


class BreakerTold(TypedDict):
    set: Literal["open", "closed", "auto"]
    targets: list[TargetTold]
    silent: NotRequired[Silent]


class OwnBudgetTold(TypedDict):
    usd: Dollars
    per: Per
    hard: bool


class KeyTold(TypedDict):
    """A key without its secret, which is kept nowhere."""

    name: str
    id: Annotated[str | None, Meta(description="the public part; null for a key of the file")]
    state: Literal["active", "expired", "revoked"]
    role: Role
    tier: str | None
    team: str | None
    chains: Annotated[list[str] | None, Meta(description="null: all, or its team's")]
    limits: Annotated[dict[str, int], Meta(description="its own; they narrow its tier's")]
    budgets: Annotated[list[OwnBudgetTold], Meta(description="its own; they narrow its tier's")]
    expires: Moment | None
    created: Moment | None
    revoked: Moment | None
    previous_until: Annotated[
        Moment | None, Meta(description="until when the secret before works as well")
    ]
    source: Annotated[Literal["file", "store"], Meta(description="where it was made")]


class KeysTold(TypedDict):
    """By name. `next` is null on the last page."""

    keys: list[KeyTold]
    next: str | None


class OneKeyTold(TypedDict):
    key: KeyTold


class ChangedKeyTold(TypedDict):
    """`changed` is false where it was so already."""

    key: KeyTold
    changed: bool


class MadeKeyTold(TypedDict):
    """`secret` is shown this once, and only where one was made."""

    key: KeyTold
    changed: bool
    secret: NotRequired[str]


class AuditLineTold(TypedDict):
    """`before` is the hash of the line before; `config` the configuration then in force."""

    seq: int
    at: Moment
    who: str
    verb: str
    object: str
    result: str
    config: str
    before: Hex
    hash: Hex


class AuditTold(TypedDict):
    """Newest first. `next` is the `before` of the next page, null at the end."""

    lines: list[AuditLineTold]
    next: int | None
