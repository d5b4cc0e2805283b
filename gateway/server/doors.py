"""What the front door needs from the house: one value, swapped as a whole on reload."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from gateway.core.audit import Act
from gateway.core.events import Event
from gateway.core.kept import Ending
from gateway.core.keys import KeyTerms
from gateway.core.ports import Call, Reply
from gateway.core.principal import Principal
from gateway.core.request import Hints
from gateway.pipeline.guard import Guard
from gateway.wire.admin import (
    AuditTold,
    ChangedKeyTold,
    KeysTold,
    KeyTold,
    LimitsTold,
    MadeKeyTold,
)

Override = Literal["open", "closed", "auto"]


class Walk(Protocol):
    """The road of one endpoint.

    Raises:
        GatewayError: with everything the caller is to be told.
        asyncio.CancelledError: the caller is gone.
    """

    async def __call__(self, call: Call, reply: Reply) -> None: ...


class KeyRoom(Protocol):
    """The keys, for operators. `who` stands in the audit log.

    Raises:
        gateway.errors.InvalidRequest, NotFound, Conflict: what is asked for cannot be.
        gateway.errors.Overloaded: the store cannot be used.
    """

    def page(self, after: str | None, most: int) -> KeysTold:
        """By name, those behind `after`."""
        ...

    async def one(self, name: str) -> KeyTold | None: ...

    async def put(self, name: str, terms: KeyTerms, who: str) -> MadeKeyTold:
        """The key as `terms` have it; a secret only where one was made."""
        ...

    async def rotate(self, name: str, overlap: float, who: str) -> MadeKeyTold: ...

    async def revoke(self, name: str, who: str) -> ChangedKeyTold: ...


class Admin(Protocol):
    """What operators may see and do. What is returned is JSON; a secret only where one is made."""

    @property
    def keys(self) -> KeyRoom: ...

    def status(self) -> Mapping[str, Any]: ...

    def recent(self, n: int) -> Sequence[Mapping[str, Any]]:
        """The last `n` stories, the newest first."""
        ...

    async def request(self, id: str) -> Mapping[str, Any] | None:
        """The story of one request; None: not known, or too old."""
        ...

    def chains(self) -> Mapping[str, Any]: ...

    async def limits(self, key: str | None, most: int) -> LimitsTold | None:
        """Headroom of at most `most` accounts, and as many budgets, or of a key and its team.

        None: no such key.
        """
        ...

    async def audit(self, most: int, before: int | None) -> AuditTold:
        """The last lines of the audit log; raises gateway.errors.Overloaded."""
        ...

    def note(self, act: Act) -> None:
        """For the audit log; never waits."""
        ...

    async def witness(self, act: Act) -> None:
        """For the audit log, written before this returns if it can be written at all."""
        ...

    def config(self) -> Mapping[str, Any]: ...

    def metrics(self) -> bytes:
        """The exposition; called in a thread."""
        ...

    def figures(self) -> bytes:
        """The same for `summed`; called in a thread."""
        ...

    def summed(self, figures: Sequence[bytes], silent: Sequence[bytes]) -> bytes:
        """The exposition of several workers; called in a thread.

        `silent`: the last figures of those that do not answer, b"" if there are none.
        """
        ...

    async def reload(self) -> Mapping[str, Any]:
        """Read the configuration again; `{"config": ..., "problem": ""}`."""
        ...

    async def drain(self) -> None:
        """Begin to drain, every worker; returns at once."""
        ...

    def breaker(self, target: str, to: Override) -> Mapping[str, Any] | None:
        """Hold a target's breakers open or closed, or let them be; None: no such target."""
        ...


class Parked(Protocol):
    """What a caller parked: status, body and headers to answer with.

    Raises:
        gateway.errors.NotFound: there is none, or it is another caller's.
        gateway.errors.Overloaded: the store cannot be used.
    """

    async def look(
        self, principal: Principal, hints: Hints, id: str
    ) -> tuple[int, bytes, Mapping[str, str]]: ...

    async def drop(
        self, principal: Principal, hints: Hints, id: str
    ) -> tuple[int, bytes, Mapping[str, str]]: ...


@dataclass(frozen=True, slots=True)
class Doors:
    """Everything behind the edge.

    Args:
        chat, embeddings: a road each.
        models: the names a caller may use, in order.
        usage: what a caller spent and what it has left, of itself alone.
        authenticate: who calls; raises a GatewayError.
        end: end the call under an Idempotency-Key of the caller's; None: there is none.
        parked: requests that are answered later, of one caller.
        heard: told of requests the road never saw.
        ready: whether traffic may come, and the details for `/readyz`.
        admin: the admin port's other side.
        guard: whether this process takes any requests, and new connections.
        public_metrics: `/metrics` without a key.
    """

    chat: Walk
    embeddings: Walk
    models: Callable[[Principal], Sequence[str]]
    usage: Callable[[Principal], Awaitable[Mapping[str, Any]]]
    authenticate: Callable[[Call], Awaitable[Principal]]
    end: Callable[[Principal, Hints, str], Awaitable[Ending | None]]
    parked: Parked
    heard: Callable[[Event], None]
    ready: Callable[[], tuple[bool, Mapping[str, Any]]]
    admin: Admin
    guard: Guard
    public_metrics: bool = False


class Current:
    """The one mutable reference: a reload puts new doors here; requests under way keep theirs."""

    __slots__ = ("doors",)

    def __init__(self, doors: Doors) -> None:
        self.doors = doors
