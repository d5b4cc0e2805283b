"""Tokens: which are taken, whom they name, and every forgery that is not."""

import base64
import hashlib
import hmac
import json
from dataclasses import replace

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.events import Event
from gateway.core.keys import read_key
from gateway.core.parked import Whose
from gateway.core.principal import Principal
from gateway.core.snapshot import Grant, Issuer, Snapshot
from gateway.core.target import Account
from gateway.errors import NotAllowed, Unauthenticated
from gateway.transport.http import HttpTransport
from gateway.transport.key_sets import KeySets
from gateway.transport.tokens import LONGEST_LIFE, MOST_REMEMBERED, REMEMBERED, Tokens, _claimed
from tests.support.clock import ManualClock
from tests.support.issuer import (
    AUDIENCE,
    ISSUER,
    LIFE,
    Errands,
    KeyServer,
    Signer,
    by_hand,
    published,
)

RSA, EC, ED = Signer("rsa"), Signer("ec", "ES256"), Signer("ed", "EdDSA")
PSS = Signer("rsa", "PS256")
STRANGER = Signer("rsa", number=1)
OTHER_EC = Signer("ec", "ES256", 1)
TEAM = Account("team:search:rpm", "team", "search", "rpm", 600)
WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)


def snapshot(*issuers: Issuer) -> Snapshot:
    search = Principal("", team="search", chains=("smart",), accounts=(TEAM,))
    free = Principal("", rights=frozenset({"skip"}), priority="low")
    return Snapshot(
        "c0ffee", {}, {}, {}, teams={"search": Grant(search)},
        tiers={"free": Grant(free, (("rpm", 20, 5),))}, issuers=issuers, keyless=False,
    )  # fmt: skip


class Desk:
    """Tokens of one issuer on loopback, and a clock."""

    def __init__(self, server: KeyServer, **changed) -> None:
        self.server = server
        self.clock = ManualClock()
        self.heard: list[Event] = []
        self.errands = Errands()
        self.transport = HttpTransport(self.clock)
        self.sets = KeySets(self.transport, self.clock, self.heard.append, self.errands.start)
        algorithms = frozenset({"RS256", "PS256", "ES256", "EdDSA"})
        said = {"team_claim": "team", "allow_private": True, "algorithms": algorithms, **changed}
        self.issuer = Issuer(ISSUER, AUDIENCE, server.url, **said)
        self.use(self.issuer)

    def use(self, *issuers: Issuer) -> None:
        self.sets.use(issuers)
        self.tokens = Tokens(snapshot(*issuers), self.sets, self.clock)

    async def asks(self, token: str) -> Principal | None:
        credential = read_key(token)
        assert credential.token is not None, "it does not look like a token"
        return await self.tokens.find(credential)

    def sign(self, signer: Signer = RSA, headers=None, **claims) -> str:
        return signer.sign(self.clock.now(), headers, **claims)


@pytest.fixture(scope="module")
def server():
    with KeyServer(RSA, EC, ED) as running:
        yield running


@pytest.fixture
async def desk(server):
    server.publish(RSA, EC, ED)
    made = Desk(server)
    yield made
    await made.transport.close()


# ------------------------------------------------------------------------------------ good ones


@pytest.mark.parametrize("signer", [RSA, PSS, EC, ED], ids=["RS256", "PS256", "ES256", "EdDSA"])
async def test_a_token_of_the_issuer_is_its_user_in_its_team(desk, signer):
    found = await desk.asks(desk.sign(signer))
    assert found == Principal(
        f"{ISSUER}#alice", team="search", user="alice", chains=("smart",), accounts=(TEAM,)
    )


async def test_an_audience_may_stand_among_others(desk):
    assert await desk.asks(desk.sign(aud=["somebody", AUDIENCE]))


async def test_a_tier_gives_each_user_limits_of_its_own(desk):
    desk.use(replace(desk.issuer, team_claim=None, tier="free", tier_claim="plan"))
    alice = await desk.asks(desk.sign(plan="free", team=None))
    bob = await desk.asks(desk.sign(sub="bob", team=None))
    assert alice.rights == {"skip"}
    assert alice.priority == "low"
    (mine,), (his,) = alice.accounts, bob.accounts
    assert (mine.scope, mine.kind, mine.limit, mine.burst) == ("key", "rpm", 20, 5)
    assert mine.id != his.id


@pytest.mark.parametrize("tier", [None, "free"])
async def test_who_parked_a_request_is_found_again_as_the_file_has_him_now(desk, tier):
    desk.use(replace(desk.issuer, tier=tier))
    alice = await desk.asks(desk.sign())
    whose = Whose(alice.key_id, alice.user, alice.team, alice.own_tier, alice.role)
    desk.clock.advance(2 * LIFE)  # the token is over, what it asked for is not
    assert await desk.tokens.again(whose) == alice
    assert await desk.tokens.again(whose._replace(team="gone")) is None
    assert await desk.tokens.again(whose._replace(tier="gone")) is None
    desk.use()
    assert await desk.tokens.again(whose) is None


async def test_users_of_two_issuers_are_two_callers(desk):
    with KeyServer(EC) as second:
        other = replace(desk.issuer, issuer="https://other/", jwks=second.url)
        desk.use(desk.issuer, other)
        mine = await desk.asks(desk.sign())
        theirs = await desk.asks(desk.sign(EC, iss="https://other/"))
    assert mine.user == theirs.user == "alice"
    assert mine.key_id != theirs.key_id


@pytest.mark.parametrize(
    ("said", "roles", "role"),
    [
        ("admin", {"admin": "admin"}, "admin"),
        (["staff", "ops"], {"ops": "admin", "scrapers": "metrics"}, "admin"),
        (["scrapers", "ops"], {"scrapers": "metrics", "ops": "admin"}, "metrics"),
        ("admin", {"ops": "admin"}, "client"),
        (None, {"ops": "admin"}, "client"),
        ({"ops": 1}, {"ops": "admin"}, "client"),
        ([["ops"]], {"ops": "admin"}, "client"),
    ],
)
async def test_a_role_comes_from_the_claim_and_the_file_alone(desk, said, roles, role):
    desk.use(replace(desk.issuer, role_claim="groups", roles=roles))
    token = desk.sign(groups=said, role="admin")
    assert (await desk.asks(token)).role == role
    desk.use(replace(desk.issuer, roles=roles))
    assert (await desk.asks(token)).role == "client", "no claim is configured"


# ------------------------------------------------------------------------------------ forgeries


def pem(key) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def hmac_with(secret: bytes, now: float, algorithm: str = "HS256") -> str:
    """Signed with what everybody knows, as if it were a shared secret."""
    token = by_hand({"alg": algorithm, "kid": "rsa", "typ": "JWT"}, claims_at(now))
    signed = token.rpartition(".")[0]
    mark = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(mark).rstrip(b'=').decode()}"


def rsa_by_hand(header: dict, claims: dict, key) -> str:
    """Well signed with SHA-256 and PKCS#1, whatever the header says."""
    signed = by_hand(header, claims).rpartition(".")[0]
    mark = key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{base64.urlsafe_b64encode(mark).rstrip(b'=').decode()}"


def claims_at(now: float) -> dict:
    return {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "team": "search",
        "iat": int(now), "exp": int(now) + LIFE,
    }  # fmt: skip


def swapped(token: str, **claims) -> str:
    """The signature of a good token under other claims."""
    head, body, mark = token.split(".")
    told = json.loads(base64.urlsafe_b64decode(body + "=="))
    changed = base64.urlsafe_b64encode(json.dumps({**told, **claims}).encode())
    return ".".join((head, changed.rstrip(b"=").decode(), mark))


FORGERIES = {
    "signed by a stranger": STRANGER.sign,
    "signed by a stranger with the kid of another": OTHER_EC.sign,
    "none": lambda now: by_hand({"alg": "none", "kid": "rsa"}, claims_at(now)),
    "None": lambda now: by_hand({"alg": "None", "kid": "rsa"}, claims_at(now)),
    "none with the signature of a good one": lambda now: by_hand(
        {"alg": "none", "kid": "rsa"}, claims_at(now), b"x" * 256
    ),
    "unsigned": lambda now: RSA.sign(now).rpartition(".")[0] + ".",
    "the public key as a secret": lambda now: hmac_with(pem(RSA.key), now),
    "the public key as a secret, said to be RS256": lambda now: hmac_with(
        pem(RSA.key), now, "RS256"
    ),
    "the published modulus as a secret": lambda now: hmac_with(RSA.public()["n"].encode(), now),
    "an RSA key for ES256": lambda now: rsa_by_hand(
        {"alg": "ES256", "kid": "rsa"}, claims_at(now), RSA.key
    ),
    "an EC key under the kid of the RSA one": lambda now: EC.sign(now, {"kid": "rsa"}),
    "changed claims": lambda now: swapped(RSA.sign(now), sub="root"),
    "an algorithm that is not in the file": lambda now: jwt.encode(
        claims_at(now), RSA.key, "RS512", {"kid": "rsa"}
    ),
    "an unknown issuer": lambda now: RSA.sign(now, iss="https://evil.example/"),
    "an issuer but for a slash": lambda now: RSA.sign(now, iss=ISSUER.rstrip("/")),
    "no issuer": lambda now: RSA.sign(now, iss=None),
    "an unknown kid": lambda now: RSA.sign(now, {"kid": "nobody"}),
    "no kid": lambda now: RSA.sign(now, {"kid": None}),
    "its own key in the head": lambda now: STRANGER.sign(now, {"jwk": STRANGER.public()}),
    "its own key set in the head": lambda now: STRANGER.sign(now, {"jku": "https://evil/keys"}),
    "a critical extension": lambda now: RSA.sign(now, {"crit": ["b64"], "b64": False}),
    "an encryption key": lambda now: Signer("enc", "ES256").sign(now),
    "a weak key": lambda now: rsa_by_hand({"alg": "RS256", "kid": "weak"}, claims_at(now), WEAK),
    "a shared key in the set": lambda now: jwt.encode(
        claims_at(now), "0" * 64, "HS256", {"kid": "shared"}
    ),
    "a kid of 10 kB": lambda now: RSA.sign(now, {"kid": "k" * 10_000}),
    "deep": lambda now: by_hand({"alg": "RS256", "kid": "rsa"}, 0).replace(
        ".MA.", "." + base64.urlsafe_b64encode(b"[" * 4000).decode().rstrip("=") + "."
    ),
    "a claims list": lambda now: by_hand({"alg": "RS256", "kid": "rsa"}, [1]),
    "a head of junk": lambda now: "eyJ!.e30.x",
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_forged_token_is_nobody(desk, forgery):
    enc = Signer("enc", "ES256").public(use="enc")
    weak = published("weak", "RS256", WEAK)
    shared = {"kty": "oct", "kid": "shared", "k": base64.b64encode(b"0" * 64).decode()}
    desk.server.publish(RSA, EC, ED, more=(enc, weak, shared))
    desk.use(replace(desk.issuer, algorithms=desk.issuer.algorithms | {"HS256"}))
    assert await desk.asks(desk.sign())
    token = FORGERIES[forgery](desk.clock.now())
    assert await desk.asks(token) is None
    assert await desk.asks(desk.sign()), "and good ones still work"


async def test_a_key_is_used_only_as_its_issuer_says(desk):
    desk.server.publish(more=(RSA.public(alg="RS256"),))
    assert await desk.asks(desk.sign())
    assert await desk.asks(desk.sign(PSS)) is None


TOO_LONG = int(LONGEST_LIFE) + 1
REFUSED = {
    "expired": ({"iat": -LIFE - 60, "exp": -60}, "has expired"),
    "for another audience": ({"aud": "billing"}, "another audience (aud); this gateway is 'gate"),
    "for an audience but for a letter": ({"aud": "Gateway"}, "another audience"),
    "for a list of others": ({"aud": ["a", "b"]}, "another audience"),
    "for an audience of junk": ({"aud": 5}, "another audience"),
    "without an audience": ({"aud": None}, "claim aud"),
    "without an end": ({"exp": None}, "claim exp"),
    "without a beginning": ({"iat": None}, "claim iat"),
    "without a subject": ({"sub": None}, "claim sub"),
    "with a subject that is no text": ({"sub": ["alice"]}, "sub of this token is not text"),
    "with an empty subject": ({"sub": ""}, "has to name the user"),
    "with a subject of control characters": ({"sub": "a\nb"}, "has to name the user"),
    "with a long subject": ({"sub": "a" * 257}, "has to name the user"),
    "of the future": ({"iat": 60}, "not valid yet"),
    "for later": ({"nbf": 60}, "not valid yet"),
    "for more than a day": ({"exp": TOO_LONG}, "made for 24 hours (exp - iat); at most 24"),
    "with an end that is text": ({"exp": "tomorrow"}, "exp of this token is not a number"),
    "with an end that is true": ({"exp": True}, "exp of this token is not a number"),
    "with an endless end": ({"exp": 1e400}, "exp of this token is no moment"),
    "with a huge end": ({"exp": 10**30}, "exp of this token is no moment"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_signed_token_that_is_not_good_here_is_told_why(desk, case):
    claims, why = REFUSED[case]
    now = int(desk.clock.now())
    moved = {
        name: now + value if type(value) is int and abs(value) < 10**6 and name != "aud" else value
        for name, value in claims.items()
    }
    with pytest.raises(Unauthenticated) as caught:
        await desk.asks(desk.sign(**moved))
    assert why in caught.value.message


@pytest.mark.parametrize("team", ["billing", "SEARCH", None, 5, ["search"], ""])
async def test_a_team_that_is_not_in_the_file_is_forbidden(desk, team):
    with pytest.raises(NotAllowed) as caught:
        await desk.asks(desk.sign(team=team))
    assert caught.value.status == 403
    assert "'team'" in caught.value.message
    desk.use(replace(desk.issuer, team="search"))
    if team is None:
        assert (await desk.asks(desk.sign(team=team))).team == "search"


async def test_clocks_may_differ_by_half_a_minute(desk):
    now = int(desk.clock.now())
    assert await desk.asks(desk.sign(iat=now + 29))
    assert await desk.asks(desk.sign(iat=now - 60, exp=now - 29))


# ------------------------------------------------------------------------------- what is remembered


async def test_a_checked_token_is_remembered_but_never_past_its_end(desk):
    token = desk.sign(exp=int(desk.clock.now()) + 20)
    first = await desk.asks(token)
    desk.clock.advance(19)
    assert await desk.asks(token) is first
    desk.clock.advance(32)
    with pytest.raises(Unauthenticated, match="expired"):
        await desk.asks(token)


async def test_a_key_that_its_issuer_withdrew_counts_a_minute_at_most(desk):
    token = desk.sign()
    assert await desk.asks(token)
    desk.server.publish(EC)
    assert await desk.asks(desk.sign(EC, {"kid": "another"})) is None  # has the set fetched
    assert await desk.asks(token)
    desk.clock.advance(REMEMBERED)
    assert await desk.asks(token) is None


async def test_tokens_that_differ_in_one_letter_are_two(desk):
    good = desk.sign()
    assert await desk.asks(good)
    assert await desk.asks(good[:-20] + ("A" if good[-20] != "A" else "B") + good[-19:]) is None


async def test_what_is_remembered_has_a_most(desk):
    assert await desk.asks(desk.sign())
    until = desk.clock.monotonic() + 1
    desk.tokens._known |= {
        bytes([n // 256, n % 256]): (None, until) for n in range(MOST_REMEMBERED)
    }
    desk.tokens._known = dict(list(desk.tokens._known.items())[-MOST_REMEMBERED:])
    assert await desk.asks(desk.sign(sub="bob"))
    assert len(desk.tokens._known) == MOST_REMEMBERED


async def test_a_reload_forgets_whom_it_knew(desk):
    token = desk.sign()
    assert await desk.asks(token)
    desk.use(replace(desk.issuer, audience="elsewhere"))
    with pytest.raises(Unauthenticated):
        await desk.asks(token)


# ------------------------------------------------------------------------------------ any junk


part = st.binary(max_size=60).map(lambda b: base64.urlsafe_b64encode(b).decode().rstrip("="))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
objects = st.dictionaries(st.sampled_from(["alg", "kid", "iss", "crit", "b64", "x"]), values)


@given(
    st.one_of(
        st.text(max_size=80),
        st.tuples(part, part, part).map(".".join),
        st.builds(by_hand, objects, objects, st.binary(max_size=8)),
    )
)
def test_no_junk_is_a_crash(token):
    found = _claimed(token)
    assert found is None or all(isinstance(part, str) for part in found)


@given(st.text(max_size=80) | st.sampled_from(["eyJ.a.b", "eyJhbGciOi.e30.x"]))
def test_only_what_has_the_shape_of_a_token_is_one(token):
    signed = read_key(token).token is not None
    assert signed == (token.startswith("eyJ") and token.count(".") == 2)
