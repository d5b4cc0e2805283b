"""What a caller asks: the members of the body undecoded, and the few that the road needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gateway.core.principal import Priority
from gateway.wire import json

Kind = Literal["chat", "embeddings"]


@dataclass(frozen=True, slots=True)
class Hints:
    """The `x-gateway-*` headers of a request, parsed but not yet allowed.

    Durations in seconds, money in nano-dollars. `names` holds the headers that need a right.
    """

    deadline: float | None = None
    first_token: float | None = None
    max_cost: int | None = None
    priority: Priority | None = None
    session: str | None = None
    user: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    skip: frozenset[str] = frozenset()
    target: str | None = None
    fallback: bool = True
    trace: bool = False
    traceparent: str | None = None
    client_retry: bool = False  # x-stainless-retry-count > 0: a client's own retry
    idempotency_key: str | None = None
    detach: bool = False  # the call goes on when its caller has left
    cache: Literal["off", "refresh"] | float | None = None  # a number: seconds
    park: bool = False  # rather answered later than refused because all is full

    @property
    def plain(self) -> bool:
        """Whether nothing is asked that bears on the plan."""
        return self is NO_HINTS or (
            self.fallback
            and not self.skip
            and self.target is None
            and self.first_token is None
            and self.max_cost is None
        )


NO_HINTS = Hints()


class Request(json.Struct, frozen=True):
    """One request in our own dialect, OpenAI's.

    Args:
        kind: which endpoint.
        model: the name the caller asked for.
        members: every member of the body by name, as raw JSON: unknown ones travel.
        max_output: max_completion_tokens, else max_tokens.
        n: how many choices were asked for.
        include_usage: whether the caller wants the usage frame of a stream.
        prompt: estimated input tokens.
        needs: abilities a target must have.
        cap: output tokens of a choice that the upstream is told to keep to; None: nothing is said.
    """

    kind: Kind
    model: str
    members: Mapping[str, json.Raw]
    stream: bool = False
    max_output: int | None = None
    n: int = 1
    user: str | None = None
    include_usage: bool = False
    prompt: int = 0
    needs: frozenset[str] = frozenset()
    cap: int | None = None

    def body(self) -> bytes:
        """The members joined again, never the caller's own bytes."""
        return json.join(self.members)
