"""The doors between rooms: what the road needs, said once, whoever stands behind.

Rooms implement these protocols and never import one another; `gateway.app` brings them together.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from gateway.clock import Deadline
from gateway.core.attempt import (
    Attempt,
    Demand,
    Headroom,
    Line,
    Opening,
    Refusal,
    Reservation,
    StreamEvent,
)
from gateway.core.audit import Act, AuditLine
from gateway.core.events import Event
from gateway.core.kept import Ending, Held, Kept, Owner
from gateway.core.keys import Change, KeyTerms, StoredKey
from gateway.core.parked import Order, Outcome, Seen, State, Whose
from gateway.core.plan import Standing
from gateway.core.principal import Credential, Principal
from gateway.core.request import Hints, Request
from gateway.core.target import Account, Failure, Target, Timeouts
from gateway.core.usage import Spending
from gateway.errors import GatewayError
from gateway.wire import json


class Limiter(Protocol):
    """Accounts (gateway.md 5): `settled(window) + held + n <= limit` at every instant.

    A demand on a budget is nano-dollars, the most a call may cost.
    """

    def try_reserve(
        self, id: str, demands: Sequence[Demand], told: Sequence[Account]
    ) -> Reservation | None:
        """`reserve` where nobody has to be asked; None: nothing is held, await `reserve`."""
        ...

    async def reserve(
        self, id: str, demands: Sequence[Demand], told: Sequence[Account]
    ) -> Reservation | Refusal:
        """Hold all demands or none; a refusal consumes nothing and names one that is full.

        An ask above the limit counts as the limit, but on a budget. `told`: the accounts whose
        headroom the reservation carries.

        Raises:
            gateway.errors.Overloaded: `store_unavailable`.
        """
        ...

    async def extend(self, reservation: Reservation, demands: Sequence[Demand]) -> Refusal | None:
        """Hold more under the same reservation, all or none. Raises as `reserve`."""
        ...

    def settle(
        self,
        reservation: Reservation,
        accounts: Iterable[Account],
        tokens: int,
        nano_usd: int = 0,
    ) -> None:
        """End the holds on `accounts`: rpm counts 1, tpm counts `tokens`, concurrency frees 1.

        A budget keeps `nano_usd` held until the ledger's line is in the store.
        Idempotent for each account; never waits. What is above the hold stays as debt.
        """
        ...

    def release(self, reservation: Reservation, accounts: Iterable[Account] | None = None) -> None:
        """Give holds back (None: all that is left) as if they had never been.

        A request counted long ago, or in a meter on which others came to lean, stays counted.
        """
        ...

    def wait(self, demands: Sequence[Demand]) -> float:
        """Seconds until `demands` would be admitted; 0: now, or only asking tells. Looks only."""
        ...

    def headroom(self, accounts: Sequence[Account]) -> Sequence[Headroom]: ...

    def on_room(self, wake: Callable[[], None]) -> None:
        """Call `wake` (once per loop turn at most) whenever a concurrency slot came back."""
        ...


class Ledger(Protocol):
    """Exactly one final line an attempt, through any crash (gateway.md 6)."""

    def open(self, opening: Opening) -> None:
        """Write the opening to the journal before a byte leaves.

        Raises:
            gateway.errors.Overloaded: `store_unavailable`, the journal cannot be written.
        """
        ...

    def checkpoint(self, attempt_id: str, tokens: int) -> None:
        """Output tokens so far, for what a lost worker leaves."""
        ...

    def close(self, line: Line) -> None:
        """The final line; said twice, the first counts. Never waits, never raises."""
        ...


class Keys(Protocol):
    """Only digests are stored; an unknown key costs the same as a known one."""

    async def find(self, credential: Credential | None) -> Principal | None:
        """Who shows this credential; None: nobody, expired, revoked, alike.

        Raises (of tokens only):
            gateway.errors.Unauthenticated: signed by an issuer of ours, but not good here and now.
            gateway.errors.NotAllowed: a team or tier that is not in the file.
            gateway.errors.Overloaded: the issuer's keys are not here yet.
        """
        ...

    async def again(self, whose: Whose) -> Principal | None:
        """Who parked a request, as he stands now; None: he would not be let in any more."""
        ...


class Register(Protocol):
    """The keys of the store, for operators. A change and its line in the audit log are one.

    Raises:
        gateway.errors.Overloaded: `store_unavailable`; nothing was changed.
    """

    def stored(self) -> Sequence[tuple[StoredKey, Principal | None]]:
        """All, oldest first, and whom each makes the caller; None: nobody."""
        ...

    async def find(self, name: str) -> StoredKey | None: ...

    async def put(self, name: str, terms: KeyTerms, who: str, config: str) -> Change:
        """Made, changed, or as it was. Raises gateway.core.keys.KeyTaken: it was revoked."""
        ...

    async def rotate(self, name: str, overlap: float, who: str, config: str) -> Change:
        """Both secrets count for `overlap` seconds. Raises gateway.core.keys.NoSuchKey."""
        ...

    async def revoke(self, name: str, who: str, config: str) -> Change:
        """From now on nobody; twice is once. Raises gateway.core.keys.NoSuchKey."""
        ...


class Audit(Protocol):
    """Who did what, append-only (gateway.core.audit)."""

    def note(self, act: Act) -> None:
        """Keep it; never waits. Of refusals and failed logins a sample is kept."""
        ...

    async def write(self) -> None:
        """Write what was noted; trouble is heard, not raised."""
        ...

    async def read(self, most: int, before: int | None = None) -> Sequence[AuditLine]:
        """The last lines (those below the number `before`), newest first.

        Raises:
            gateway.errors.Overloaded: `store_unavailable`.
        """
        ...


class Books(Protocol):
    """What was spent, for whoever spent it."""

    async def spending(self, key: str) -> Spending:
        """Of one key. Raises gateway.errors.Overloaded: `store_unavailable`, or too many ask."""
        ...

    async def budgets(self, ids: Sequence[str]) -> dict[str, int]:
        """Nano-dollars spent of those budgets of which anything was. Raises as `spending`."""
        ...


class Health(Protocol):
    """Breakers, throttles, keys aside, learnt abilities: asked on every request, never waits."""

    def standing(self, target_id: str) -> Standing:
        """How it stands now; see `gateway.core.plan.Standing`."""
        ...

    def enter(self, target: Target) -> bool:
        """Take the one probe of a half-open breaker; False: somebody else has it."""
        ...

    def leave(self, target: Target) -> None:
        """Give the probe back: the attempt was not made, or ended without a verdict."""
        ...

    def record(self, attempt: Attempt, target: Target) -> None:
        """Judge an ended attempt; one that neither finished nor failed counts for nobody."""
        ...

    def answered(self, attempt: Attempt, target: Target) -> None:
        """A probe has content: its breaker need not wait for the end of a long stream."""
        ...

    def deposit(self, target: Target, share: float) -> None:
        """A first attempt on a target feeds its retry budget by `share` of a retry."""
        ...

    def withdraw(self, target: Target) -> bool:
        """Take 1 from the retry budget; False: it is empty, do not retry."""
        ...


class Claim(Protocol):
    """The right to answer under a caller's key; renewed until one of its ends. None of them waits.

    Who lost it meanwhile (its process stood still for longer than the lease) keeps nothing.
    """

    def keep(self, kept: Kept) -> None:
        """The answer: whoever asks again gets it, for a day."""
        ...

    def release(self) -> None:
        """There is no answer: whoever asks next may try."""
        ...

    def on_end(self, end: Callable[[], None]) -> None:
        """Call `end` when the caller ends it by DELETE, on whichever worker that comes in."""
        ...


class Drawer(Protocol):
    """What is kept for one owner. Bound to it when made: no method takes a tenant."""

    async def get(self, name: str, seconds: float) -> Kept | None:
        """What was put under `name` in the last `seconds`."""
        ...

    def put(self, name: str, kept: Kept, seconds: float) -> None:
        """Keep for `seconds`, instead of what was there. Never waits."""
        ...

    async def claim(self, name: str, fingerprint: bytes, *, detached: bool) -> Claim | Kept | Held:
        """The right to answer, the answer that is there, or why there is neither.

        `fingerprint` tells requests under the same name apart; a `detached` one may be ended.

        Raises:
            gateway.errors.Overloaded: `store_unavailable`.
        """
        ...

    async def changed(self, name: str, until: float) -> None:
        """Wait until it is worth to claim again, at most until then (monotonic seconds)."""
        ...

    async def end(self, name: str) -> Ending | None:
        """End what is answered under `name` if that is detached; None: there is no such name.

        Raises:
            gateway.errors.Overloaded: `store_unavailable`.
        """
        ...


class Answers(Protocol):
    """Kept answers, of the exact cache and of callers' own keys (gateway.md 3.10)."""

    def of(self, owner: Owner) -> Drawer: ...


class Lot(Protocol):
    """What one owner has parked. Bound to it when made: no method takes a tenant.

    Raises:
        gateway.errors.Overloaded: `store_unavailable`.
    """

    async def park(self, order: Order) -> str | None:
        """Keep it, durably once this returns, and give its id; None: its tier has too many."""
        ...

    async def look(self, id: str) -> Seen | None:
        """What became of it; None: there is none, or it is somebody else's."""
        ...

    async def drop(self, id: str) -> State | None:
        """Forget it, and end it if it is being answered; what it was, None as for `look`."""
        ...


class Lease(Protocol):
    """A parked request that this worker answers. Renewed until one of its ends; they do not wait.

    Who lost it meanwhile (its process stood still for longer than the lease) changes nothing.
    """

    id: str
    order: Order
    lost: int  # workers that took it before and were never heard of again

    def finish(self, outcome: Outcome) -> None:
        """The answer: its owner finds it for a day."""
        ...

    def back(self, due: float) -> None:
        """There is no answer. Its lane is not worth a look before `due` (epoch seconds)."""
        ...

    def on_end(self, end: Callable[[], None]) -> None:
        """Call `end` when its owner drops it, on whichever worker that comes in."""
        ...


class Parking(Protocol):
    """Requests that wait for room, over every worker and crash (gateway.md 5.7)."""

    def of(self, owner: Owner) -> Lot: ...

    async def take(self) -> Lease | None:
        """What to do next: the request with the oldest deadline of all lanes that are due.

        Also one whose deadline is over, for somebody has to say so; None: nothing.
        """
        ...


class UpstreamRequest(json.Struct, frozen=True):
    """What leaves for a provider. `headers` hold the credential: never log them.

    Args:
        headers: the same object for each request that has the same: it is spelled once.
        stream: whether the answer is read in pieces (first_token, idle) or whole (answer).
        allow_private: whether the address may be loopback or private.
        id: sent as `x-request-id`; "": none.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    stream: bool
    allow_private: bool = False
    dropped: tuple[str, ...] = ()
    id: str = ""


class StreamDecoder(Protocol):
    """Upstream bytes, cut anywhere, to events in our dialect. One an answer; keeps state."""

    def feed(self, data: bytes) -> Sequence[StreamEvent]:
        """What these bytes completed. After an event with a failure nothing more comes."""
        ...

    def close(self) -> Sequence[StreamEvent]:
        """The end came: nothing if the answer was complete, else one event with a failure."""
        ...

    @property
    def complete(self) -> bool:
        """Every choice has its finish_reason, and usage or `[DONE]` was seen as well."""
        ...


class Provider(Protocol):
    """One target's dialect: pure, no socket, no clock; made once per target when it is loaded."""

    def request(self, request: Request, attempt_id: str) -> UpstreamRequest:
        """What to send. `Request.members` are put through the target's `params`."""
        ...

    def completion(self, request: Request, body: bytes) -> StreamEvent:
        """A whole 200 answer as one event; with a failure when it is none."""
        ...

    def decoder(self, request: Request) -> StreamDecoder: ...

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> Failure:
        """What an error status means (gateway.md 2.2). Header names in lower case."""
        ...

    def models(self) -> UpstreamRequest:
        """The provider's free call that shows whether our key is accepted."""
        ...


class UpstreamReply(Protocol):
    """An answer whose head is here. Header names in lower case."""

    status: int
    headers: Mapping[str, str]

    async def read(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            gateway.core.target.Failed: cut, silent, or longer than `limit` bytes.
        """
        ...

    async def more(self) -> bytes:
        """What the next read brings, b"" at the end; raises `Failed` alike."""
        ...

    def progressed(self) -> None:
        """Content came: from now on `idle` counts, from this moment."""
        ...

    def ending(self, seconds: float) -> None:
        """The answer is complete; the rest (usage, `[DONE]`) may take `seconds` at most."""
        ...


class Transport(Protocol):
    """The sockets. Leaving the context closes what is not fully read, in the same loop turn."""

    def send(
        self, request: UpstreamRequest, timeouts: Timeouts, seconds: float, deadline: Deadline
    ) -> AbstractAsyncContextManager[UpstreamReply]:
        """Dial, send, and wait for the head.

        `seconds` bounds the time to content (stream) or to the whole answer, from now; the
        `deadline` cuts everything. A reused connection that died with 0 bytes is replaced once.

        Raises:
            gateway.core.target.Failed: connect, timeout, first_token, stalled, cut_stream,
                malformed (not HTTP); what leaves is ours, never a library's text.
        """
        ...


class Call(Protocol):
    """A request at the edge: its head is here, its body not yet read."""

    id: str
    api: str
    started: float
    address: str  # the caller's IP, for counting failed logins only
    credential: Credential | None
    hints: Hints

    async def body(self) -> bytes:
        """The decoded body.

        Raises:
            gateway.errors.TooLarge, gateway.errors.UnsupportedEncoding,
            gateway.errors.SlowRequest, gateway.errors.InvalidRequest.
        """
        ...


class Voice(Protocol):
    """How an answer is spelled on the caller's socket; one an answer, may keep state."""

    content_type: str

    def say(self, event: StreamEvent) -> bytes:
        """The bytes of an event, b"" if the caller is not to see it."""
        ...

    def close(self, note: bytes) -> bytes:
        """The proper end; `note` is JSON for people who look (`: gateway {...}` in a stream)."""
        ...

    def interrupted(self, error: GatewayError) -> bytes:
        """The error frame after the head is out: no `[DONE]`, no finish_reason."""
        ...


class Facade(Protocol):
    """How a public endpoint is spelled."""

    def parse(self, body: bytes) -> Request:
        """Raises gateway.errors.InvalidRequest naming what is wrong and where."""
        ...

    def voice(self, request: Request) -> Voice: ...


class Reply(Protocol):
    """The caller's socket. Until `start` the road may change its mind."""

    def expect(
        self, voice: Voice, keepalive: float, headers: Callable[[], Mapping[str, str]]
    ) -> None:
        """A stream will follow: after `keepalive` seconds of silence send head, then comments."""
        ...

    async def start(self, headers: Mapping[str, str], voice: Voice) -> None: ...

    async def write(self, events: Sequence[StreamEvent]) -> None:
        """One socket write for the events of one upstream read; waits for the caller's socket."""
        ...

    async def finish(self, note: bytes) -> None: ...

    def accepted(self, headers: Mapping[str, str], body: bytes) -> None:
        """Instead of all that: 202, it is answered later."""
        ...


class Listener(Protocol):
    def heard(self, event: Event) -> None: ...
