"""What a file may say, as models: shapes, units and bounds; what names mean is `resolve`'s.

A leaf is read by a function of `nodes` (or `secrets`), which has our words for what is wrong; a
docstring under a field is its line in the JSON Schema. What has a default in the core takes it
from there.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from gateway.config import nodes
from gateway.config.nodes import Wrong
from gateway.config.secrets import Hidden, expand
from gateway.core.alerts import SpendRule
from gateway.core.budget import Per
from gateway.core.kept import CacheScope
from gateway.core.principal import Priority, Role
from gateway.core.snapshot import MOST_WORKERS, ServerSettings
from gateway.core.target import ABILITIES, WAY_ON, BreakerPolicy, Cause, Secret
from gateway.core.usage import Cost

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z", re.ASCII)
_PAIR = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}/[^\s${}]{1,200}\Z", re.ASCII)
_HASH = re.compile(r"sha256:[0-9a-f]{64}\Z", re.ASCII)
_MEMBER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})\Z", re.ASCII)
_RESERVED = frozenset({"next", "stop"})
_CAUSES = tuple(cause.value for cause in WAY_ON)  # a call can come to these
_read_cause = nodes.one_word(*_CAUSES)
_CLAIM = re.compile(r"[!-~]{1,128}\Z", re.ASCII)
ALGORITHMS = (  # asymmetric ones: whoever can check a token cannot make one
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"),
)
_read_workers = nodes.whole(1, MOST_WORKERS)
_OURS = frozenset({"model", "messages", "stream"})  # members the gateway itself decides on
_A_NAME = "a name has a-z, 0-9, dot, dash or underscore and at most 64 characters"


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


# Readers that need more than `nodes` knows


def _name(value: object) -> str:
    found = nodes.scalar(value, "a name").text
    if not _NAME.match(found):
        raise Wrong(_A_NAME)
    if found in _RESERVED:
        raise Wrong("next and stop are words of on:, not names")
    return found


def _model(value: object) -> str:
    found = nodes.text(value)
    if not _PAIR.match(found):
        raise Wrong("a model is written provider/model: openai/gpt-5-mini")
    return found


def _reference(value: object) -> str:
    found = nodes.text(value)
    if not (_NAME.match(found) or _PAIR.match(found)):
        raise Wrong("the name of a target or chain is expected, or provider/model")
    return found


def _cause(value: object) -> Cause:
    return Cause(_read_cause(value))


def _onward(value: object) -> str:
    return nodes.scalar(value, "next, stop or a chain").text


def _member(value: object) -> str:
    found = nodes.scalar(value, "a name").text
    if not _MEMBER.match(found):
        raise Wrong("a member of the request is expected: temperature")
    if found in _OURS:
        raise Wrong("the gateway itself decides on model, messages and stream")
    return found


def _hash(value: object) -> bytes:
    found = nodes.scalar(value, "a hash").text
    if not _HASH.match(found):
        raise Wrong("a hash is written sha256: and 64 hex digits; `gateway keys create` makes one")
    return bytes.fromhex(found.removeprefix("sha256:"))


def _env(info: ValidationInfo) -> Mapping[str, str]:
    return info.context if isinstance(info.context, Mapping) else {}


def _hidden(value: object, info: ValidationInfo) -> Hidden:
    found, referred = expand(value, "a secret", _env(info))
    if any(character.isspace() for character in found):
        raise Wrong("a secret has no spaces")
    if not found.isascii():
        raise Wrong("a secret is made of ASCII")
    return Hidden(Secret(found), literal=not referred)


def _path(value: object, info: ValidationInfo) -> str:
    found, _ = expand(value, "a path", _env(info))
    if not found:
        raise Wrong("a path is expected; here is nothing")
    return found


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise Wrong("not a URL; write https://host/v1") from None
    if parts.scheme not in {"https", "http"} or not host or " " in url:
        raise Wrong("not a URL; write https://host/v1")
    return parts


def _url(value: object, info: ValidationInfo) -> str:
    found, _ = expand(value, "a URL", _env(info))
    parts = _parts(found)
    if parts.username is not None or parts.password is not None:
        raise Wrong("a URL holds no credentials; use key:")
    if parts.query or parts.fragment or found.endswith(("?", "#")):
        raise Wrong("a base URL ends with its path, without ? and #")
    return found.rstrip("/")


def _redis(value: object, info: ValidationInfo) -> Hidden | None:
    """None for an empty text: `"${REDIS_URL:-}"` where the variable is not set."""
    found, referred = expand(value, "a Redis URL", _env(info))
    if not found and referred:
        return None
    wrong = "not a Redis URL; write redis://host:6379, or rediss:// for TLS"
    try:
        parts = urlsplit(found)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise Wrong(wrong) from None
    if parts.scheme not in {"redis", "rediss"} or not host or any(map(str.isspace, found)):
        raise Wrong(wrong)
    if not re.fullmatch(r"/?[0-9]{0,5}", parts.path, re.ASCII):
        raise Wrong("a Redis URL ends with the number of a database, or nothing: redis://host/0")
    if parts.query or parts.fragment or found.endswith(("?", "#")):
        raise Wrong("a Redis URL has no options after ? or #; those of the connection are fixed")
    return Hidden(Secret(found), literal=not referred)


def _issuer(value: object, info: ValidationInfo) -> str:
    """Compared with `iss` letter by letter: nothing is added or taken away."""
    found, _ = expand(value, "an issuer", _env(info))
    if not found or len(found) > 512 or not found.isprintable() or " " in found:
        raise Wrong("the claim iss as the issuer writes it: https://login.example.com/")
    return found


def _claim(value: object) -> str:
    found = nodes.text(value)
    if not _CLAIM.match(found):
        raise Wrong("the name of a claim of the token is expected: sub")
    return found


def _audience(value: object) -> str:
    found = nodes.text(value)
    if not found or len(found) > 512 or not found.isprintable():
        raise Wrong("the claim aud that stands for this gateway is expected: gateway")
    return found


def _algorithm(value: object) -> str:
    found = nodes.text(value)
    if found.upper().startswith("HS"):
        raise Wrong("a shared secret lets whoever checks tokens also make them; use RS256 or ES256")
    if found.lower() == "none":
        raise Wrong("a token that nobody signed proves nothing; use RS256 or ES256")
    if found not in ALGORITHMS:
        raise Wrong(f"must be one of {', '.join(ALGORITHMS)}")
    return found


def _key_set(value: object, info: ValidationInfo) -> str:
    found, _ = expand(value, "a URL", _env(info))
    example = "https://login.example.com/.well-known/jwks.json"
    try:
        parts = urlsplit(found)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise Wrong(f"not a URL; write {example}") from None
    if parts.scheme not in {"https", "http"} or not host or not found.isascii() or " " in found:
        raise Wrong(f"not a URL; write {example}")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise Wrong("public keys are fetched without credentials: a URL without @ and #")
    return found


def _webhook(value: object, info: ValidationInfo) -> Secret | None:
    """Empty: none. What leads there is itself the credential, so a query is allowed."""
    found, _ = expand(value, "a URL", _env(info))
    if not found:
        return None
    parts = _parts(found)
    if parts.username is not None or parts.password is not None:
        raise Wrong("a webhook's URL holds no name and password; use one with a token in its path")
    if parts.fragment or not found.isascii():
        raise Wrong("a webhook's URL is ASCII and has no #")
    return Secret(found)


def _address(value: object, info: ValidationInfo) -> Address:
    found, _ = expand(value, "an address", _env(info))
    host, colon, port = found.rpartition(":")
    wrong = "an address is written host:port: 127.0.0.1:8080, [::1]:8080"
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > 65_535:
        raise Wrong(wrong)
    if host.startswith("[") and host.endswith("]"):
        try:
            return Address(str(ipaddress.IPv6Address(host[1:-1])), int(port))
        except ValueError:
            raise Wrong(wrong) from None
    if not _HOST.match(host):
        raise Wrong(wrong)
    return Address(host, int(port))


def _workers(value: object) -> int | str:
    found = nodes.scalar(value, "a whole number or auto")
    if found.text == "auto":
        return "auto"
    if nodes.integer(found) is None:
        raise Wrong("a whole number or auto is expected")
    return _read_workers(value)


def _cap(value: object) -> float:
    return float(nodes.number(value))


# How `gateway config show` writes a leaf


def spelled_duration(seconds: float) -> str:
    """`1m30s`."""
    left = round(seconds * 1000)
    said = ""
    for unit, ms in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, ms)
        said += f"{count}{unit}" if count else ""
    return said or "0s"


def _spelled_size(count: int) -> str:
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count % factor == 0:
            return f"{count // factor}{unit}"
    return f"{count}B"


def _spelled_share(part: float) -> str:
    return f"{(Decimal(repr(part)) * 100).normalize():f}%"


def _spelled_dollars(nano: int) -> Decimal:
    return Decimal(Cost(nano).dollars())


def _leaf(
    read: Callable[..., Any], schema: dict[str, Any], show: Callable[[Any], Any] | None = None
) -> tuple[Any, ...]:
    """What makes a type of a reader: validator, JSON Schema and, if it needs one, its spelling."""
    made: tuple[Any, ...] = (PlainValidator(read), WithJsonSchema(schema))
    return made if show is None else (*made, PlainSerializer(show))


_TEXT = {"type": "string"}
_DURATION = {"type": "string", "pattern": r"^(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$"}
_AMOUNT = {"type": "number", "minimum": 0, "maximum": 9_000_000}


def _words(*words: str) -> tuple[Any, ...]:
    return _leaf(nodes.one_word(*words), {"enum": list(words)})


def _whole(low: int, high: int) -> tuple[Any, ...]:
    return _leaf(nodes.whole(low, high), {"type": "integer", "minimum": low, "maximum": high})


Name = Annotated[str, *_leaf(_name, {"type": "string", "pattern": r"^[a-z0-9][a-z0-9._-]{0,63}$"})]
Model = Annotated[str, *_leaf(_model, {"type": "string", "pattern": r"^[a-z0-9][a-z0-9._-]*/\S+$"})]
Reference = Annotated[str, *_leaf(_reference, _TEXT)]
Member = Annotated[str, *_leaf(_member, {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"})]
Truth = Annotated[bool, *_leaf(nodes.truth, {"type": "boolean"})]
Duration = Annotated[float, *_leaf(nodes.duration, _DURATION, spelled_duration)]
SomeTime = Annotated[float, *_leaf(nodes.some_time, _DURATION, spelled_duration)]
Size = Annotated[
    int,
    *_leaf(nodes.size, {"type": "string", "pattern": r"^\d[\d_]*(B|KiB|MiB|GiB)$"}, _spelled_size),
]
Share = Annotated[
    float,
    *_leaf(nodes.share, {"type": "string", "pattern": r"^\d+(\.\d+)?%$"}, _spelled_share),
]
Dollars = Annotated[int, *_leaf(nodes.money, _AMOUNT, _spelled_dollars)]
SomeDollars = Annotated[
    int,
    *_leaf(
        nodes.some_money,
        {"type": "number", "exclusiveMinimum": 0, "maximum": 9_000_000},
        _spelled_dollars,
    ),
]
Factor = Annotated[float, *_leaf(nodes.factor, {"type": "number", "minimum": 1, "maximum": 100})]
Day = Annotated[date, *_leaf(nodes.day, {"type": "string", "format": "date"})]
Count = Annotated[int, *_whole(1, 1_000_000_000)]
Small = Annotated[int, *_whole(1, 1_000_000)]
Weight = Annotated[int, *_whole(1, 1_000_000)]
Workers = Annotated[
    int | Literal["auto"],
    *_leaf(
        _workers,
        {"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": MOST_WORKERS}]},
    ),
]
Anything = Annotated[Any, *_leaf(nodes.anything, {})]
Cap = Annotated[float, *_leaf(_cap, {"type": "number"})]
HiddenText = Annotated[Hidden, *_leaf(_hidden, _TEXT, lambda _: "…")]
FilePath = Annotated[str, *_leaf(_path, _TEXT)]
Url = Annotated[str, *_leaf(_url, {"type": "string", "format": "uri"})]
RedisUrl = Annotated[Hidden | None, *_leaf(_redis, _TEXT, lambda url: url and "…")]
WhenLost = Annotated[Literal["shrink", "reject"], *_words("shrink", "reject")]
IssuerName = Annotated[str, *_leaf(_issuer, _TEXT)]
Audience = Annotated[str, *_leaf(_audience, _TEXT)]
Claim = Annotated[str, *_leaf(_claim, _TEXT)]
Algorithm = Annotated[str, *_leaf(_algorithm, {"enum": list(ALGORITHMS)})]
KeySetUrl = Annotated[str, *_leaf(_key_set, {"type": "string", "format": "uri"})]
ClaimValue = Annotated[str, *_leaf(nodes.text, _TEXT)]
WebhookUrl = Annotated[
    Secret | None,
    *_leaf(_webhook, {"type": "string", "format": "uri"}, lambda url: "…" if url else None),
]
Listen = Annotated[Address, *_leaf(_address, _TEXT, str)]
Hash = Annotated[
    bytes,
    *_leaf(
        _hash,
        {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
        lambda digest: f"sha256:{digest.hex()}",
    ),
]
Ability = Annotated[str, *_words(*sorted(ABILITIES))]
CauseName = Annotated[Cause, *_leaf(_cause, {"enum": list(_CAUSES)}, str)]


class Section(BaseModel):
    """A map of the file: only known keys, and nothing in it changes."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        populate_by_name=False,
        protected_namespaces=(),
    )


class QueueSection(Section):
    length: Small = ServerSettings().queue_length
    """Requests that may wait for a slot, per worker."""
    bytes: Size = ServerSettings().queue_bytes
    """Bytes of bodies that may wait, per worker."""


class ServerSection(Section):
    listen: Listen = Address(ServerSettings().host, ServerSettings().port)
    """The API; anything but loopback needs `keys:` or `auth:`."""
    admin: Listen = Address(ServerSettings().admin_host, ServerSettings().admin_port)
    """Metrics and admin API; always needs a key."""
    workers: Workers = ServerSettings().workers
    """Processes that share the API port; auto is one for each core."""
    admin_keys: Truth = ServerSettings().admin_keys
    """Keys may also be made, rotated and revoked over the admin API."""
    max_body: Size = ServerSettings().max_body
    """The largest request body; above it 413."""
    max_in_flight: Small = ServerSettings().max_in_flight
    """Requests at a time, per worker; above it 503 overloaded."""
    queue: QueueSection = QueueSection()
    """How much may wait for a slot (tiers with `when_full: {wait: ...}`)."""
    lame_duck: Duration = ServerSettings().lame_duck
    """After SIGTERM: not ready, still accepting."""
    drain: Duration = ServerSettings().drain
    """Then finish what is under way, settle, leave."""
    lane: Annotated[Literal["on", "off"], *_words("on", "off")] = "on"
    """Whole requests are read without aiohttp's parser (off: it reads all)."""


class StateSection(Section):
    dir: FilePath = ServerSettings().state_dir
    """Journals and the embedded store (SQLite)."""
    redis: RedisUrl | None = None
    """State shared by several machines: Redis 6.2 or newer with an append-only file."""
    when_lost: WhenLost = ServerSettings().when_lost
    """Redis lost: every worker keeps its share of each limit (shrink), or 503 (reject)."""


class RetrySection(Section):
    same_target: Annotated[int, *_whole(0, 10)] | None = None
    """Further tries of one target after connect, server_error or malformed."""
    attempts: Annotated[int, *_whole(1, 100)] | None = None
    """Upstream calls of one request, over retries and fallbacks."""
    patience: Duration | None = None
    """How long to wait for a hinted target rather than take the next."""
    backoff: Duration | None = None
    """The first pause; doubled each time, with full jitter."""
    cap: Duration | None = None
    """The longest pause without a hint."""
    max_wait: Duration | None = None
    """The longest pause with a hint (Retry-After)."""
    budget: Share | None = None
    """Same-target retries as a share of first attempts."""


class ClockSection(Section):
    """Clocks of an attempt; what is not said comes from further out."""

    connect: SomeTime | None = None
    """DNS, TCP and TLS."""
    first_token: SomeTime | None = None
    """Streaming: to the first content."""
    answer: SomeTime | None = None
    """Not streaming: to the whole body."""
    idle: SomeTime | None = None
    """The longest silence between content events."""
    reasoning_slack: Factor | None = None
    """Multiplies first_token and answer for silent reasoning."""


class BreakerSection(Section):
    failures: Small = BreakerPolicy().failures
    """Failures in a row that open it."""
    window: SomeTime = BreakerPolicy().window
    """Over which the error rate is taken."""
    min_requests: Small = BreakerPolicy().min_requests
    """Requests in the window before the rate counts."""
    error_rate: Share = BreakerPolicy().error_rate
    """The share of failures that opens it."""
    cooldown: SomeTime = BreakerPolicy().cooldown
    """How long it stays open the first time; doubled each time."""
    max_cooldown: SomeTime = BreakerPolicy().max_cooldown
    """The longest it stays open."""


Midstream = Annotated[Literal["error"], *_words("error")]


class ChainClocks(ClockSection):
    """What a chain may say of time, and `defaults` for all chains."""

    deadline: SomeTime | None = None
    """The whole request: queue, all attempts, all waits. Callers may only shorten it."""
    keepalive: SomeTime | None = None
    """SSE comments to a client that waits."""
    retry: RetrySection | None = None
    """How often and when the same target is asked again."""
    midstream: Midstream | None = None
    """What follows a stream that is cut after content: a told error."""


class DefaultsSection(ChainClocks):
    """Every chain starts here and states only its differences."""

    breaker: BreakerSection = BreakerSection()
    """When a target is left alone; for every target."""


class CallerLimits(Section):
    rpm: Count | None = None
    """Requests in any 60 seconds."""
    burst: Small | None = None
    """At most so many at once, then evenly (needs rpm)."""
    tpm: Count | None = None
    """Tokens in any 60 seconds."""
    concurrency: Small | None = None
    """Requests at a time."""


class UpstreamLimits(CallerLimits):
    per_key: Truth = False
    """Count each key of the provider on its own."""


class ProviderKey(Section):
    name: Name
    """How health, metrics and logs call it."""
    secret: HiddenText
    """`${NAME}` or `${file:/path}`."""
    weight: Weight = 1
    """Its share of the provider's calls."""


class Provider(Section):
    kind: Annotated[Literal["openai", "sim"], *_words("openai", "sim")]
    """What it speaks: openai (and all who are compatible), or sim, the built-in simulator."""
    key: HiddenText | None = None
    """The one key, `${NAME}` or `${file:/path}`."""
    keys: list[ProviderKey] | None = None
    """Several keys, spread by weight; a refused one is set aside."""
    base_url: Url | None = None
    """Where the API begins, `/v1` included."""
    allow_http: Truth = False
    """Allow http:// (the key travels unencrypted)."""
    allow_private: Truth = False
    """Allow private and loopback addresses, checked when connecting."""
    limits: UpstreamLimits = UpstreamLimits()
    """What the provider bears, over all its models."""


class ParamsSection(Section):
    default: dict[Member, Anything] = Field(default_factory=dict)
    """Set if the caller did not."""
    cap: dict[Member, Cap] = Field(default_factory=dict)
    """Upper bounds."""
    set_: dict[Member, Anything] = Field(default_factory=dict, alias="set")
    """Always set."""
    drop: list[Member] = Field(default_factory=list)
    """Removed, and told in x-gateway-dropped."""


class TargetSection(ClockSection):
    model: Model | None = None
    """provider/model."""
    like: Name | None = None
    """Another target to start from; maps are merged one level deep, lists replaced."""
    limits: UpstreamLimits = UpstreamLimits()
    """What this model bears."""
    context: Count | None = None
    """Tokens of prompt and answer together; unknown if not said or in the catalogue."""
    max_output: Count | None = None
    """Tokens of the longest answer."""
    can: list[Ability] | None = None
    """Abilities; unknown ones are assumed, and learnt from refusals."""
    params: ParamsSection = ParamsSection()
    """What is changed in a request on its way here: default, cap, set, drop, in this order."""


def _kind_of_members(value: object) -> str:
    return "<names>" if isinstance(value, list) else "<weights>"


class Group(Section):
    one_of: Annotated[
        Annotated[dict[Reference, Weight], Tag("<weights>")]
        | Annotated[list[Reference], Tag("<names>")],
        Discriminator(_kind_of_members),
    ]
    """Members with weights, or a list; one is picked, the others follow when it fails."""
    by: Annotated[Literal["weight"], *_words("weight")] = "weight"
    """How it is picked."""

    @property
    def weights(self) -> Mapping[str, int]:
        return self.one_of if isinstance(self.one_of, dict) else dict.fromkeys(self.one_of, 1)


def _kind_of_step(value: object) -> str:
    return "<group>" if isinstance(value, dict | Group) else "<name>"


Step = Annotated[
    Annotated[Reference, Tag("<name>")] | Annotated[Group, Tag("<group>")],
    Discriminator(_kind_of_step),
]
Onward = Annotated[str, *_leaf(_onward, _TEXT)]


class CacheSection(Section):
    """Answers that are given again to identical requests."""

    exact: SomeTime | None = None
    """How long an answer is kept; not said: only requests under way share one."""
    scope: Annotated[CacheScope, *_words("user", "key", "team")] = "user"
    """Who shares answers: a user (else the key), the key, or the team."""
    join: Truth = True
    """Wait for the answer of an identical request that is under way on this worker."""


class ChainSection(ChainClocks):
    """A public model name. A list is short for `{try: [...]}`."""

    try_: list[Step] = Field(alias="try")
    """Steps in order: targets, provider/model, chains, or `one_of`."""
    also: list[Name] = Field(default_factory=list)
    """More names for this chain."""
    on: dict[CauseName, Onward] = Field(default_factory=dict)
    """What differs from the table of causes: next, stop, or a chain to go on with."""
    max_cost_usd: Dollars | None = None
    """Dollars a request; a target that cannot stay under it is skipped."""
    cache: CacheSection | None = None
    """Give an answer again, to the same caller and an identical request."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return {"try": value} if isinstance(value, list) else value


Right = Annotated[
    Literal["cache", "park", "skip", "target", "trace"],
    *_words("cache", "park", "skip", "target", "trace"),
]


class Wait(Section):
    wait: SomeTime
    """The longest a request waits for a slot."""


def _kind_of_full(value: object) -> str:
    return "<wait>" if isinstance(value, dict | Wait) else "<word>"


class BudgetSection(Section):
    """What may be spent in a period, by the UTC calendar."""

    usd: SomeDollars
    """Dollars, exact to 9 decimals."""
    per: Annotated[Per, *_words("request", "hour", "day", "month", "total")]
    """request, hour, day, month, or total: what it never starts anew after."""
    hard: Truth = True
    """Never passed; false: what is under way when it is used up may pass it."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        if isinstance(value, nodes.Scalar):
            raise Wrong("a budget needs dollars and a period: {usd: 20, per: day}")
        return value


class SubLimitsSection(Section):
    """What each user or each session has of a caller's limits."""

    limits: CallerLimits = CallerLimits()
    """Of each of them."""
    budgets: list[BudgetSection] = Field(default_factory=list)
    """Of each of them."""


class Tier(Section):
    """A bundle of limits; a team or key that names it gets accounts of its own."""

    limits: CallerLimits = CallerLimits()
    """Of each team or key of this tier."""
    budgets: list[BudgetSection] = Field(default_factory=list)
    """Dollars of each team or key of this tier, one for each period."""
    per_session: SubLimitsSection = SubLimitsSection()
    """Within those: of each x-gateway-session."""
    default_max_tokens: Count | None = None
    """The output bound of callers who state none."""
    priority: Annotated[Priority, *_words("high", "normal", "low")] = "normal"
    """Who waits first and is shed last."""
    when_full: Annotated[
        Annotated[Literal["reject", "park"], *_words("reject", "park"), Tag("<word>")]
        | Annotated[Wait, Tag("<wait>")],
        Discriminator(_kind_of_full),
    ] = "reject"
    """reject; {wait: 5s}; or park: what is not a stream is answered later."""
    may: list[Right] = Field(default_factory=list)
    """Rights: skip targets by header, name single ones, ask for a trace, refresh a cache, park."""

    @property
    def wait(self) -> float:
        return self.when_full.wait if isinstance(self.when_full, Wait) else 0.0

    @property
    def parks(self) -> bool:
        return self.when_full == "park"


class Team(Section):
    tier: Name | None = None
    """Whose limits the team as a whole has."""
    chains: list[Name] | None = None
    """What it may call; all if not said."""


class Key(Section):
    """A declared caller key; others are made by `gateway keys create`."""

    name: Name
    """How logs and ledger call it."""
    hash: Hash
    """SHA-256 of the whole key; the key itself stands nowhere."""
    team: Name | None = None
    """Whose limits it shares."""
    tier: Name | None = None
    """Limits of its own."""
    chains: list[Name] | None = None
    """What it may call, at most what its team may."""
    expires: Day | None = None
    """The last day (UTC) it works."""
    role: Annotated[Role, *_words("client", "agent", "metrics", "admin")] = "client"
    """What it is for."""
    limits: CallerLimits = CallerLimits()
    """Narrower than its tier's."""
    budgets: list[BudgetSection] = Field(default_factory=list)
    """Narrower than its tier's."""
    per_user: SubLimitsSection = SubLimitsSection()
    """Within those: of each user this key calls for."""


class ClaimsSection(Section):
    """Which claims of a token say who calls."""

    user: Claim = "sub"
    """Whom it was made out to."""
    team: Claim | None = None
    """One of `teams`; a token without it, or of another team, is refused with 403."""
    tier: Claim | None = None
    """One of `tiers`: limits of the user's own."""
    role: Claim | None = None
    """A text, or a list of them, that `roles` translates; without it everybody is a client."""


_ROLE = _words("client", "agent", "metrics", "admin")


class JwtIssuer(Section):
    """Who signs tokens that are taken instead of a key."""

    issuer: IssuerName
    """The claim iss, letter by letter."""
    audience: Audience
    """What the claim aud must be, or hold: this gateway's name there."""
    jwks: KeySetUrl
    """Where its public keys are; public addresses only, redirects are not followed."""
    algorithms: list[Algorithm]
    """The only ones that are taken; asymmetric: RS256, ES256, EdDSA and the like."""
    claims: ClaimsSection = ClaimsSection()
    """Which claims say who calls: {user: sub, team: team}."""
    roles: dict[ClaimValue, Annotated[Role, *_ROLE]] | None = None
    """What values of the role claim mean, the first that is found; else they are roles' names."""
    team: Name | None = None
    """The team of tokens that say none."""
    tier: Name | None = None
    """The tier, for each user, of tokens that say none."""
    allow_http: Truth = False
    """Allow http:// for jwks (whoever sits in between can then sign for anybody)."""
    allow_private: Truth = False
    """Allow private and loopback addresses for jwks."""


class AuthSection(Section):
    """Callers who show something else than a key."""

    jwt: list[JwtIssuer] = Field(default_factory=list)
    """Whose tokens (JWT) are taken."""


class DearerRow(Section):
    """Prices of the whole call from a size of prompt on; what is not said stays."""

    context: Count
    """For prompts of more than so many tokens."""
    input: Dollars | None = None
    output: Dollars | None = None
    cached_input: Dollars | None = None
    cache_write_5m: Dollars | None = None
    cache_write_1h: Dollars | None = None
    reasoning: Dollars | None = None
    audio_input: Dollars | None = None
    audio_output: Dollars | None = None


class PriceRow(Section):
    """Dollars per million tokens."""

    from_: Day | None = Field(default=None, alias="from")
    """The first day (UTC); older days keep their older row."""
    input: Dollars
    output: Dollars
    cached_input: Dollars | None = None
    cache_write_5m: Dollars | None = None
    cache_write_1h: Dollars | None = None
    reasoning: Dollars | None = None
    audio_input: Dollars | None = None
    audio_output: Dollars | None = None
    request: Dollars = 0
    """Dollars a call."""
    above: DearerRow | None = None
    """Dearer long prompts: {context: 200_000, input: 2.50, ...}."""


def _price_word(value: object) -> str:
    found = nodes.text(value)
    if found != "free" and not _PAIR.match(found):
        raise Wrong("rows, free, or provider/model to copy from")
    return found


def _kind_of_price(value: object) -> str:
    return "<rows>" if isinstance(value, list) else "<word>"


PriceEntry = Annotated[
    Annotated[list[PriceRow], Tag("<rows>")]
    | Annotated[str, *_leaf(_price_word, _TEXT), Tag("<word>")],
    Discriminator(_kind_of_price),
]


class PricesSection(Section):
    """`provider/model` to rows, to a name to copy, or to `free`; the catalogue fills the rest."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, PriceEntry]

    unpriced: Annotated[Literal["reject", "allow"], *_words("reject", "allow")] = "reject"
    """A target without a price: skipped and an error of `check`, or allowed at unknown cost."""

    @property
    def entries(self) -> Mapping[str, list[PriceRow] | str]:
        return self.__pydantic_extra__ or {}


class LogsSection(Section):
    format: Annotated[
        Literal["json", "text", "auto", "none"], *_words("json", "text", "auto", "none")
    ] = "auto"
    """auto: text on a terminal, else JSON."""


class MetricsSection(Section):
    public: Truth = False
    """/metrics without a key."""


class SpendAlertSection(Section):
    factor: Factor = float(SpendRule().factor)
    """Above so many times the mean of the user's last 7 days."""
    floor_usd: Dollars = SpendRule().floor
    """And above so many dollars a day."""


class AlertsSection(Section):
    spend: SpendAlertSection = SpendAlertSection()
    """When a user of a key spends more today (UTC) than usual: told once a day, blocks nothing."""
    webhook: WebhookUrl = None
    """Where alerts are posted as JSON; a secret, empty: nowhere."""
    allow_http: Truth = False
    """Allow http:// for the webhook (who spends what travels unencrypted)."""
    allow_private: Truth = False
    """Allow a private or loopback address for the webhook, checked when connecting."""


class ObserveSection(Section):
    logs: LogsSection = LogsSection()
    """One line a request."""
    metrics: MetricsSection = MetricsSection()
    """Prometheus, on the admin listener."""
    alerts: AlertsSection = AlertsSection()
    """What somebody should look at, and where it is sent."""


class Document(Section):
    """The configuration of the gateway."""

    version: Annotated[Literal[1], *_leaf(nodes.whole(1, 1), {"const": 1})] = 1
    """Of this format."""
    server: ServerSection = ServerSection()
    """Listeners and bounds; a change needs a restart."""
    state: StateSection = StateSection()
    """Where things are kept; a change needs a restart."""
    defaults: DefaultsSection = DefaultsSection()
    """Where every chain starts."""
    providers: dict[Name, Provider]
    """Who, where, which keys."""
    targets: dict[Name, TargetSection] = Field(default_factory=dict)
    """One provider, one model, and what it can do."""
    chains: dict[Name, ChainSection]
    """The public model names."""
    tiers: dict[Name, Tier] = Field(default_factory=dict)
    """Bundles of limits and rights."""
    teams: dict[Name, Team] = Field(default_factory=dict)
    """Keys that share limits."""
    keys: list[Key] | None = None
    """Declared caller keys. Without them and `auth` only loopback is served, to everyone there."""
    auth: AuthSection = AuthSection()
    """Tokens of an identity provider, instead of keys."""
    prices: PricesSection = Field(default_factory=lambda: PricesSection.model_validate({}))
    """Dollars per million tokens."""
    observe: ObserveSection = ObserveSection()
    """Logs, metrics, alerts."""
