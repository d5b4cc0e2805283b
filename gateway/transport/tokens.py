"""JSON Web Tokens (RFC 7519) of the issuers in the file: a second `Keys`.

PyJWT checks the signature; which algorithm and which key may be used is decided before, from the
file and the issuer's set, never from the token. What a token says of time is held against our own
clock. Of a good token the caller is remembered, a minute at most and never past `exp`.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.exceptions import InvalidSubjectError

from gateway.clock import Clock
from gateway.core.budget import allowances
from gateway.core.parked import Whose
from gateway.core.principal import Credential, Principal, Role
from gateway.core.snapshot import Issuer, Snapshot
from gateway.core.target import Account
from gateway.errors import NotAllowed, Unauthenticated
from gateway.transport.key_sets import KeySets, PublicKey

LEEWAY = 30.0  # seconds two clocks may differ
LONGEST_LIFE = 24 * 3600.0  # seconds from iat to exp
REMEMBERED = 60.0  # seconds
MOST_REMEMBERED = 10_000  # tokens
MOST_PREPARED = 1000  # keys of issuers
LONGEST_NAME = 256  # characters of a user, a kid
SHOWN = 80  # characters of a claim in a message
SMALLEST_RSA, LARGEST_RSA = 2048, 8192  # bits: a larger one costs milliseconds a token

_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class _Prepared(NamedTuple):
    """A key, and the algorithms it may be used with."""

    published: PublicKey
    key: Any
    algorithms: frozenset[str]


class _Claimed(NamedTuple):
    """What a token says of itself, before anything is checked."""

    algorithm: str
    kid: str
    issuer: str


class Tokens:
    """The port `Keys` for tokens, made anew for each configuration.

    Args:
        snapshot: its issuers, teams and tiers.
        key_sets: the issuers' public keys.
        clock: for `exp`, `iat` and `nbf`, and for what is remembered.
    """

    def __init__(self, snapshot: Snapshot, key_sets: KeySets, clock: Clock) -> None:
        self._snapshot = snapshot
        self._issuers = {issuer.issuer: issuer for issuer in snapshot.issuers}
        self._key_sets = key_sets
        self._clock = clock
        self._known: dict[bytes, tuple[Principal, float]] = {}  # by SHA-256, until (monotonic)
        self._prepared: dict[tuple[str, str], _Prepared] = {}  # by issuer and kid

    async def find(self, credential: Credential | None) -> Principal | None:
        """See `gateway.core.ports.Keys`."""
        if credential is None or credential.token is None:
            return None
        known = self._known.get(credential.digest)
        if known is not None and self._clock.monotonic() < known[1]:
            return known[0]
        token = credential.token.reveal()
        claimed = _claimed(token)
        issuer = self._issuers.get(claimed.issuer) if claimed else None
        if claimed is None or issuer is None or claimed.algorithm not in issuer.algorithms:
            return None
        key = await self._key(issuer, claimed)
        claims = None if key is None else _verified(token, claimed.algorithm, key, issuer)
        if claims is None:
            return None
        ends = self._in_time(claims)
        principal = _principal(issuer, claims, self._snapshot)
        self._remember(credential.digest, principal, ends)
        return principal

    async def again(self, whose: Whose) -> Principal | None:
        """See `gateway.core.ports.Keys`. A token may be over by now: it was good when it asked."""
        user, teams, tiers = whose.user, self._snapshot.teams, self._snapshot.tiers
        if user is None or whose.key_id.removesuffix(f"#{user}") not in self._issuers:
            return None
        if whose.team is not None and whose.team not in teams:
            return None
        if whose.tier is not None and whose.tier not in tiers:
            return None
        return _made(whose, self._snapshot)

    async def _key(self, issuer: Issuer, claimed: _Claimed) -> Any | None:
        """The public key that may be used with the claimed algorithm, if the issuer has it."""
        published = await self._key_sets.find(issuer, claimed.kid)
        if published is None:
            return None
        prepared = self._prepare(issuer, claimed.kid, published)
        return prepared.key if claimed.algorithm in prepared.algorithms else None

    def _prepare(self, issuer: Issuer, kid: str, published: PublicKey) -> _Prepared:
        """The key in the form the check needs; read once as long as its set is the same."""
        at = (issuer.issuer, kid)
        prepared = self._prepared.get(at)
        if prepared is None or prepared.published is not published:
            if len(self._prepared) >= MOST_PREPARED:
                self._prepared.clear()
            key, algorithms = _read(published)
            prepared = self._prepared[at] = _Prepared(published, key, algorithms)
        return prepared

    def _in_time(self, claims: Mapping[str, Any]) -> float:
        """Raises Unauthenticated; returns `exp`."""
        now = self._clock.now()
        ends, made = _moment(claims, "exp"), _moment(claims, "iat")
        begins = _moment(claims, "nbf") if "nbf" in claims else made
        if ends + LEEWAY <= now:
            raise Unauthenticated("This token has expired: get a new one from its issuer.")
        if max(made, begins) > now + LEEWAY:
            raise Unauthenticated(
                "This token is not valid yet (iat, nbf): the clocks differ, or it is for later."
            )
        if ends - made > LONGEST_LIFE:
            raise Unauthenticated(
                f"This token is made for {(ends - made) / 3600:.0f} hours (exp - iat); at most 24"
                " are taken."
            )
        return ends

    def _remember(self, digest: bytes, principal: Principal, ends: float) -> None:
        left = min(REMEMBERED, ends - self._clock.now())
        if left > 0:
            known = self._known
            if len(known) >= MOST_REMEMBERED:
                del known[next(iter(known))]
            known[digest] = (principal, self._clock.monotonic() + left)


def _claimed(token: str) -> _Claimed | None:
    """None: it is no token, or one that names no key."""
    try:
        told = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    header, issuer = told["header"], told["payload"].get("iss")
    algorithm, kid = header.get("alg"), header.get("kid")
    if not (isinstance(algorithm, str) and isinstance(kid, str) and isinstance(issuer, str)):
        return None
    return _Claimed(algorithm, kid, issuer) if len(kid) <= LONGEST_NAME else None


def _verified(token: str, algorithm: str, key: Any, issuer: Issuer) -> Mapping[str, Any] | None:
    """The claims of a token that this key signed; None: it did not.

    Raises:
        Unauthenticated: signed, but not for us, or without what we need.
    """
    try:
        claims: Mapping[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=issuer.audience,
            issuer=issuer.issuer,
            options={
                "require": ["exp", "iat", "sub", "aud"],
                "verify_exp": False,  # against our own clock, below
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
    except jwt.MissingRequiredClaimError as missing:
        raise Unauthenticated(
            f"This token lacks the claim {missing.claim}: exp, iat, sub and aud are needed."
        ) from None
    except jwt.InvalidAudienceError:
        raise Unauthenticated(
            f"This token is for another audience (aud); this gateway is '{issuer.audience}'."
        ) from None
    except InvalidSubjectError:
        raise Unauthenticated("The claim sub of this token is not text.") from None
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        return None
    return claims


def _read(published: PublicKey) -> tuple[Any, frozenset[str]]:
    """A public key, and what it may be used with; (None, nothing) for any other."""
    try:
        key = jwt.PyJWK.from_dict(dict(published)).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None, frozenset()
    stated = published.get("alg")
    able: frozenset[str] = frozenset()
    if isinstance(key, RSAPublicKey):
        able = _RSA if SMALLEST_RSA <= key.key_size <= LARGEST_RSA else able
    elif isinstance(key, EllipticCurvePublicKey):
        able = frozenset({_CURVES.get(key.curve.name, "")})
    elif isinstance(key, Ed25519PublicKey):
        able = frozenset({"EdDSA"})
    return key, able if stated is None else able & {stated}


def _moment(claims: Mapping[str, Any], name: str) -> float:
    found = claims[name]
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise Unauthenticated(f"The claim {name} of this token is not a number of seconds.")
    if not (abs(found) < 1e15 and math.isfinite(found)):
        raise Unauthenticated(f"The claim {name} of this token is no moment.")
    return float(found)


# Who a token makes the caller


def _principal(issuer: Issuer, claims: Mapping[str, Any], snapshot: Snapshot) -> Principal:
    """As a key of that team and that tier, one for each user of the issuer.

    Raises:
        Unauthenticated: nobody is named.
        NotAllowed: a team or a tier that is not in the file.
    """
    user = claims.get(issuer.user)
    if not (isinstance(user, str) and 0 < len(user) <= LONGEST_NAME and user.isprintable()):
        raise Unauthenticated(
            f"The claim {issuer.user} of this token has to name the user: 1 to {LONGEST_NAME}"
            " characters of text."
        )
    team = _named("team", issuer.team_claim, claims, issuer.team, snapshot.teams)
    tier = _named("tier", issuer.tier_claim, claims, issuer.tier, snapshot.tiers)
    whose = Whose(f"{issuer.issuer}#{user}", user, team, tier, _role(issuer, claims))
    return _made(whose, snapshot)


def _made(whose: Whose, snapshot: Snapshot) -> Principal:
    """As a key of that team and that tier, both of which are in the file."""
    key_id = whose.key_id
    shared = snapshot.teams[whose.team].principal if whose.team else Principal("")
    grant = snapshot.tiers[whose.tier] if whose.tier else None
    rows = grant.limits if grant else ()
    return replace(
        grant.principal if grant else shared,
        key_id=key_id,
        team=whose.team,
        user=whose.user,
        role=whose.role,
        own_tier=whose.tier,
        chains=shared.chains,
        accounts=(
            *(
                Account(f"key:{key_id}:{kind}", "key", key_id, kind, limit, burst)
                for kind, limit, burst in rows
            ),
            *shared.accounts,
        ),
        budgets=(*allowances("key", key_id, grant.budgets if grant else ()), *shared.budgets),
    )


def _named(
    what: str,
    claim: str | None,
    claims: Mapping[str, Any],
    otherwise: str | None,
    there: Mapping[str, object],
) -> str | None:
    """The team or tier a token is of; where a claim is configured, it or `otherwise` decides."""
    if claim is None:
        return otherwise
    found = claims.get(claim, otherwise)
    if found is None:
        raise NotAllowed(
            f"This token says no {what}: its claim '{claim}' is missing. Ask whoever runs its"
            f" issuer to add it, or the operators of this gateway for a {what} of all its tokens"
            f" (auth.jwt[].{what})."
        )
    if not isinstance(found, str) or found not in there:
        said = f"'{found[:SHOWN]}'" if isinstance(found, str) else "no text"
        raise NotAllowed(
            f"The {what} of this token is unknown here: its claim '{claim}' is {said}, which is"
            f" none of the {what}s of this gateway ({what}s: in its configuration)."
        )
    return found


def _role(issuer: Issuer, claims: Mapping[str, Any]) -> Role:
    """The first role of the file that the token has; else a client."""
    said = claims.get(issuer.role_claim) if issuer.role_claim else None
    has = said if isinstance(said, list) else [said]
    for value, role in issuer.roles.items():
        if value in has:
            return role
    return "client"
