"""From a request to its facts: rights, chains, deadlines."""

from dataclasses import replace

import pytest

from gateway.core.principal import LOCAL, Principal
from gateway.core.request import Hints
from gateway.errors import InvalidRequest, NotAllowed, NotFound
from gateway.pipeline.facts import allowed, gather
from tests.support.fakes import FakeCall, World, make_chain, make_request

SNAPSHOT = World(make_chain("gpt", "claude", deadline=60.0)).snapshot
ONE = make_chain("gpt", name="p/gpt")
SNAPSHOT = replace(
    SNAPSHOT,
    chains={**SNAPSHOT.chains, "gpt-4o": SNAPSHOT.chains["smart"],
            "cheap": make_chain("gpt", name="cheap")},
    direct={"p/gpt": ONE, "gpt": ONE},
)  # fmt: skip


def facts(model="smart", principal=LOCAL, **hints):
    call = FakeCall(hints=Hints(**hints))
    return gather(call, principal, make_request(model=model), SNAPSHOT)


def test_a_chain_is_found_by_each_of_its_names():
    assert facts().chain is facts("gpt-4o").chain


def test_an_unknown_model_is_a_404_with_near_matches_the_caller_may_use():
    with pytest.raises(NotFound, match="smart"):
        facts("smrt")
    with pytest.raises(NotFound) as caught:
        facts("smrt", Principal("k", chains=("cheap",)))
    assert "smart" not in caught.value.message
    assert caught.value.code == "model_not_found"


def test_a_chain_of_others_is_a_403():
    with pytest.raises(NotAllowed) as caught:
        facts("smart", Principal("k", chains=("cheap",)))
    assert caught.value.code == "model_not_allowed"
    assert facts("smart", Principal("k", chains=("gpt-4o",))).chain.name == "smart"


def test_a_single_target_needs_the_right():
    assert facts("p/gpt").chain is ONE
    with pytest.raises(NotFound):
        facts("p/gpt", Principal("k"))


@pytest.mark.parametrize(
    ("hints", "header"),
    [
        ({"target": "gpt"}, "x-gateway-target"),
        ({"skip": frozenset({"gpt"})}, "x-gateway-skip"),
        ({"fallback": False}, "x-gateway-fallback"),
        ({"trace": True}, "x-gateway-trace"),
        ({"priority": "high"}, "x-gateway-priority"),
    ],
)
def test_a_header_without_its_right_is_refused_by_name_never_ignored(hints, header):
    with pytest.raises(NotAllowed) as caught:
        facts(principal=Principal("k"), **hints)
    assert (caught.value.code, caught.value.param) == ("override_not_allowed", header)


def test_what_only_narrows_is_free():
    made = facts(principal=Principal("k"), priority="low", session="s", max_cost=1)
    assert made.session == "s"


@pytest.mark.parametrize("hints", [{"target": "nobody"}, {"skip": frozenset({"nobody"})}])
def test_a_target_that_is_not_there_is_a_400(hints):
    with pytest.raises(InvalidRequest, match="nobody"):
        facts(**hints)


def test_callers_may_only_shorten_the_deadline():
    assert facts().deadline.at == 1060.0
    assert facts(deadline=5.0).deadline.at == 1005.0
    assert facts(deadline=500.0).deadline.at == 1060.0


def test_the_user_of_a_token_is_not_contradicted():
    bound = Principal("k", user="alice")
    assert facts(principal=bound).user == "alice"
    assert facts(principal=bound, user="alice").user == "alice"
    with pytest.raises(NotAllowed):
        facts(principal=bound, user="mallory")
    assert facts(user="bob").user == "bob"


def test_a_caller_sees_the_chains_it_may_use():
    assert allowed(LOCAL, SNAPSHOT) == ("smart", "gpt-4o", "cheap")
    assert allowed(Principal("k", chains=("cheap", "gone")), SNAPSHOT) == ("cheap",)
