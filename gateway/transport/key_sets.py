"""The public keys of token issuers (JWKS, RFC 7517): fetched beside the road, kept, served stale.

Hardly anybody is kept waiting: a set older than `FRESH` is fetched anew behind the callers' backs
and served meanwhile; while its issuer is down, until it is `STALE`. Waited for is only a set that
is not here yet, lacks the `kid` that is asked for, or was not looked at since it was `LATE` (what
was withdrawn meanwhile must not count): by `WAITERS` requests at most, never longer than `WAIT`.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from gateway.clock import Clock, Deadline
from gateway.core.events import Event, StateTrouble
from gateway.core.ports import Transport, UpstreamRequest
from gateway.core.snapshot import Issuer
from gateway.core.target import Failed, Timeouts
from gateway.errors import Overloaded
from gateway.wire import json

FRESH = 300.0  # seconds a set is served without asking again
LATE = 2 * FRESH
STALE = 24 * 3600.0  # and this long while it cannot be fetched
UNKNOWN = 30.0  # seconds between fetches for a kid that is not there: junk cannot make traffic
AGAIN = 5.0  # seconds between fetches otherwise
WAIT = 2.0  # seconds a fetch takes at most
WAITERS = 100  # requests that wait for one fetch
MOST_BYTES = 1024 * 1024
MOST_KEYS = 200

PublicKey = Mapping[str, Any]
"""One key of a set as it was published. The same object as long as its set is the same."""

_HEADERS = {"accept": "application/json", "accept-encoding": "identity"}


@dataclass(slots=True, eq=False)
class _Set:
    """What is known of one address; moments are monotonic seconds."""

    url: str
    allow_private: bool
    keys: Mapping[str, PublicKey] = field(default_factory=dict)  # by kid
    fetched: float = -STALE
    tried: float = -STALE
    searched: float = -STALE  # the last fetch for a kid that was not there
    failed: bool = False  # the last fetch
    over: asyncio.Event | None = None  # of the fetch under way
    waiting: int = 0


class KeySets:
    """Lives over reloads, so that one does not begin with every issuer unknown.

    Args:
        transport: with its rules for upstreams: public addresses, no redirects, no proxies.
        clock: whose monotonic time counts.
        heard: told of a fetch that failed.
        start: takes a fetch as a task, and owns it.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        heard: Callable[[Event], None],
        start: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._heard = heard
        self._start = start
        self._sets: dict[tuple[str, bool], _Set] = {}

    def use(self, issuers: Iterable[Issuer]) -> None:
        """Begin to fetch what is new, and forget what is no longer named."""
        wanted = {(issuer.jwks, issuer.allow_private) for issuer in issuers}
        self._sets = {at: known for at, known in self._sets.items() if at in wanted}
        for at in wanted - set(self._sets):
            self._sets[at] = _Set(*at)
            self._begin(self._sets[at], self._clock.monotonic())

    async def find(self, issuer: Issuer, kid: str) -> PublicKey | None:
        """The key of that name; None: the issuer has none.

        Raises:
            Overloaded: `issuer_unavailable`, no set of this issuer is younger than a day.
        """
        at = (issuer.jwks, issuer.allow_private)
        known = self._sets.get(at) or _Set(*at)  # forgotten: an older configuration's last requests
        now = self._clock.monotonic()
        if now - known.fetched >= FRESH and now - known.tried >= AGAIN:
            self._begin(known, now)
        age = now - known.fetched
        served = age < LATE or (known.failed and age < STALE)
        if served and kid in known.keys:
            return known.keys[kid]
        if served and now - known.searched >= UNKNOWN:
            known.searched = now
            self._begin(known, now)
        if known.over is not None and known.waiting < WAITERS:
            await self._wait(known.over, known)
        now = self._clock.monotonic()
        if now - known.fetched >= STALE:
            raise Overloaded(
                f"The keys of the token's issuer could not be fetched from {_host(known.url)}, so"
                " no token can be checked. A key of this gateway still works.",
                code="issuer_unavailable",
                retry_after=max(1.0, known.tried + AGAIN - now),
            )
        return known.keys.get(kid)

    async def _wait(self, over: asyncio.Event, known: _Set) -> None:
        known.waiting += 1
        try:
            await over.wait()
        finally:
            known.waiting -= 1

    def _begin(self, known: _Set, now: float) -> None:
        """One fetch at a time; its end is told whatever becomes of it."""
        if known.over is None:
            known.tried = now
            known.over = asyncio.Event()
            self._start(self._fetch(known, known.over))

    async def _fetch(self, known: _Set, over: asyncio.Event) -> None:
        try:
            known.keys = await self._keys(known)
            known.fetched = self._clock.monotonic()
            known.failed = False
        except Failed as failed:
            self._trouble(known, failed.failure.cause.value)
        except _Unusable as unusable:
            self._trouble(known, str(unusable))
        finally:
            known.over = None
            over.set()

    def _trouble(self, known: _Set, problem: str) -> None:
        known.failed = True
        self._heard(StateTrouble("jwks", "fetch", f"{_host(known.url)}: {problem}"))

    async def _keys(self, known: _Set) -> Mapping[str, PublicKey]:
        """Raises Failed, _Unusable."""
        request = UpstreamRequest(
            "GET", known.url, _HEADERS, b"", stream=False, allow_private=known.allow_private
        )
        ends = Deadline(self._clock.monotonic() + WAIT)
        async with self._transport.send(request, Timeouts(connect=WAIT), WAIT, ends) as reply:
            if reply.status != 200:
                raise _Unusable(f"status {reply.status}")
            body = await reply.read(MOST_BYTES)
        return _read(body)


class _Unusable(Exception):
    """An answer came, but no set of keys."""


def _read(body: bytes) -> Mapping[str, PublicKey]:
    """The keys that have a name and are there to check signatures."""
    try:
        told = json.loads(body)
    except json.JSONError:
        raise _Unusable("no JSON") from None
    listed = told.get("keys") if isinstance(told, dict) else None
    if not isinstance(listed, list):
        raise _Unusable('no set of keys ({"keys": [...]})')
    keys = {
        key["kid"]: key
        for key in listed[:MOST_KEYS]
        if isinstance(key, dict)
        and isinstance(key.get("kid"), str)
        and key.get("use", "sig") == "sig"
    }
    if not keys:
        raise _Unusable("a set without a key that has a kid")
    return keys


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""
