"""Who calls; an address that guesses is held off."""

import pytest

from gateway.core.audit import Act
from gateway.core.principal import Credential, Principal
from gateway.core.target import Secret
from gateway.errors import RateLimited, Unauthenticated
from gateway.pipeline.authenticate import FAILURES_A_MINUTE, Authenticate
from tests.support.clock import ManualClock
from tests.support.fakes import FakeAudit, FakeCall, FakeKeys

ALICE, BOB = Principal("alice"), Principal("bob")
TOKEN = Credential(None, b"d", Secret("eyJ.a.b"))


def made() -> tuple[Authenticate, FakeKeys, ManualClock]:
    clock = ManualClock()
    keys = FakeKeys(ALICE)
    return Authenticate(keys, clock, FakeAudit()), keys, clock


async def fail(step: Authenticate, times: int, address: str = "192.0.2.1") -> None:
    for _ in range(times):
        with pytest.raises(Unauthenticated):
            await step(FakeCall(credential=None, address=address))


async def test_a_known_key_is_its_principal():
    step, _, _ = made()
    assert await step(FakeCall()) is ALICE


async def test_a_token_goes_to_the_issuers_and_a_key_to_the_keys():
    clock, keys, tokens = ManualClock(), FakeKeys(ALICE), FakeKeys(BOB)
    step = Authenticate(keys, clock, FakeAudit(), tokens)
    assert await step(FakeCall()) is ALICE
    assert await step(FakeCall(credential=TOKEN)) is BOB
    assert (keys.finds, tokens.finds) == (1, 1)
    assert await Authenticate(keys, clock, FakeAudit())(FakeCall(credential=TOKEN)) is ALICE


async def test_a_token_that_nobody_signed_counts_as_a_guess_and_one_that_ended_does_not():
    clock, keys, tokens = ManualClock(), FakeKeys(ALICE), FakeKeys(BOB)
    audit = FakeAudit()
    step = Authenticate(keys, clock, audit, tokens)
    tokens.refusal = Unauthenticated("This token has expired.")
    for _ in range(2 * FAILURES_A_MINUTE):
        with pytest.raises(Unauthenticated, match="expired"):
            await step(FakeCall(credential=TOKEN))
    assert audit.acts == [], "a token that was good once is no guess"
    tokens.refusal, tokens.principal = None, None
    for _ in range(FAILURES_A_MINUTE):
        with pytest.raises(Unauthenticated, match="not valid"):
            await step(FakeCall(credential=TOKEN))
    with pytest.raises(RateLimited):
        await step(FakeCall(credential=TOKEN))
    assert len(audit.acts) == FAILURES_A_MINUTE


async def test_an_unknown_key_is_a_401_that_does_not_say_why():
    step, keys, _ = made()
    keys.principal = None
    with pytest.raises(Unauthenticated) as caught:
        await step(FakeCall())
    assert caught.value.code == "invalid_api_key"


async def test_a_key_that_opens_nothing_is_told_to_the_audit_and_no_key_at_all_is_not():
    keys, audit = FakeKeys(ALICE), FakeAudit()
    step = Authenticate(keys, ManualClock(), audit)
    keys.principal = None
    for credential in (Credential("abcdefgh", b"d"), Credential(None, b"d"), None):
        with pytest.raises(Unauthenticated):
            await step(FakeCall(credential=credential, address="192.0.2.7"))
    assert audit.acts == [
        Act("unknown", "login", "192.0.2.7 gk_abcdefgh", "invalid_api_key"),
        Act("unknown", "login", "192.0.2.7", "invalid_api_key"),
    ]


async def test_twenty_failures_a_minute_are_followed_by_429_without_asking_the_store():
    step, keys, _ = made()
    await fail(step, FAILURES_A_MINUTE)
    finds = keys.finds
    with pytest.raises(RateLimited) as caught:
        await step(FakeCall())
    assert keys.finds == finds
    assert 0 < caught.value.retry_after <= 60


async def test_another_address_is_not_held_off():
    step, _, _ = made()
    await fail(step, FAILURES_A_MINUTE)
    assert await step(FakeCall(address="192.0.2.2")) is ALICE


async def test_the_penalty_ends_with_the_minute_it_told():
    step, _, clock = made()
    await fail(step, FAILURES_A_MINUTE)
    with pytest.raises(RateLimited) as caught:
        await step(FakeCall())
    clock.advance(caught.value.retry_after)
    assert await step(FakeCall()) is ALICE


async def test_no_failure_of_the_minute_is_forgotten():
    step, _, _ = made()
    await fail(step, 1)
    await fail(step, FAILURES_A_MINUTE - 1)
    with pytest.raises(RateLimited):
        await step(FakeCall())
