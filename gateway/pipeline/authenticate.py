"""Credential -> Principal, before the body is read; an address that guesses is held off."""

from gateway.clock import Clock
from gateway.core.audit import Act
from gateway.core.parked import Whose
from gateway.core.ports import Audit, Call, Keys
from gateway.core.principal import Principal
from gateway.errors import RateLimited, Unauthenticated

FAILURES_A_MINUTE = 20
ADDRESSES = 10_000  # remembered at most
MINUTE = 60.0


class Authenticate:
    """The first step. Unknown, wrong, expired, revoked: the same 401, the same work.

    Args:
        keys: who shows a key.
        audit: told of keys and tokens that open nothing.
        tokens: who shows a JWT; None: no issuer is configured, and it is a key like any other.
    """

    def __init__(self, keys: Keys, clock: Clock, audit: Audit, tokens: Keys | None = None) -> None:
        self._keys = keys
        self._tokens = tokens
        self._clock = clock
        self._audit = audit
        self._failures: dict[str, int] = {}
        self._ends = 0.0  # when the minute that is counted is over

    async def __call__(self, call: Call) -> Principal:
        """Who calls.

        Raises:
            Unauthenticated: nobody we know.
            RateLimited: too many failures from this address this minute.
            NotAllowed, Overloaded: see `Keys.find`.
        """
        if self._failures:
            self._hold_off(call.address)
        credential = call.credential
        if self._tokens is not None and credential is not None and credential.token is not None:
            return await self._signed(self._tokens, call)
        principal = await self._keys.find(credential)
        if principal is not None:
            return principal
        self._count(call.address)
        if credential is None:
            raise Unauthenticated(
                "No API key was sent. Send yours as 'Authorization: Bearer <key>'."
            )
        self._audit.note(failed_login(call, "invalid_api_key"))
        raise Unauthenticated("This API key is not valid: unknown, expired or revoked.")

    async def again(self, whose: Whose) -> Principal | None:
        """Who parked a request, as he stands now; None: he would not be let in any more."""
        keys = self._keys if whose.user is None else self._tokens
        return None if keys is None else await keys.again(whose)

    async def _signed(self, tokens: Keys, call: Call) -> Principal:
        """Whom a token names. One that an issuer of ours did sign is no guess: not counted."""
        principal = await tokens.find(call.credential)
        if principal is not None:
            return principal
        self._count(call.address)
        self._audit.note(failed_login(call, "invalid_api_key"))
        raise Unauthenticated(
            "This token is not valid: no key of an issuer that this gateway trusts has signed it."
        )

    def _hold_off(self, address: str) -> None:
        now = self._clock.monotonic()
        if now < self._ends and self._failures.get(address, 0) >= FAILURES_A_MINUTE:
            raise RateLimited(
                f"More than {FAILURES_A_MINUTE} invalid API keys a minute came from this address.",
                code="invalid_api_key",
                retry_after=self._ends - now,
            )

    def _count(self, address: str) -> None:
        now = self._clock.monotonic()
        if now >= self._ends:
            self._ends = (now // MINUTE + 1) * MINUTE
            self._failures.clear()
        if len(self._failures) < ADDRESSES or address in self._failures:
            self._failures[address] = self._failures.get(address, 0) + 1


def failed_login(call: Call, result: str) -> Act:
    """For the audit. The public part of the key is as it was shown, which proves nothing."""
    shown = call.credential.id if call.credential is not None else None
    return Act("unknown", "login", f"{call.address} gk_{shown}" if shown else call.address, result)
