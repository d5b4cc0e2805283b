"""From a request to its facts: rights, chains, deadlines."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.principal import LOCAL, Principal, SubLimits
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
        ({"cache": "refresh"}, "x-gateway-cache"),
        ({"cache": 5.0}, "x-gateway-cache"),
        ({"detach": True, "idempotency_key": "k"}, "x-gateway-detach"),
    ],
)
def test_a_header_without_its_right_is_refused_by_name_never_ignored(hints, header):
    with pytest.raises(NotAllowed) as caught:
        facts(principal=Principal("k"), **hints)
    assert (caught.value.code, caught.value.param) == ("override_not_allowed", header)


def test_what_only_narrows_is_free():
    made = facts(principal=Principal("k"), priority="low", session="s", max_cost=1, cache="off")
    assert made.session == "s"


def test_a_detached_call_needs_somebody_who_asks_for_its_answer():
    agent = Principal("k", role="agent")
    assert facts(principal=agent, detach=True, idempotency_key="k").hints.detach
    with pytest.raises(InvalidRequest) as caught:
        facts(principal=agent, detach=True)
    assert caught.value.param == "idempotency-key"


def test_a_cache_that_is_not_there_is_not_refreshed():
    with pytest.raises(InvalidRequest, match=r"chains\.\*\.cache"):
        facts(cache="refresh")


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
    for said, param in (({"hint": "mallory"}, "x-gateway-user"), ({"body": "mallory"}, "user")):
        call = FakeCall(hints=Hints(user=said.get("hint")))
        request = make_request(model="smart", user=said.get("body"))
        with pytest.raises(NotAllowed) as caught:
            gather(call, bound, request, SNAPSHOT)
        assert (caught.value.code, caught.value.param) == ("override_not_allowed", param)
    assert facts(user="bob").user == "bob"


@pytest.mark.parametrize("role", ["metrics", "admin"])
def test_a_role_that_is_not_for_calling_models_calls_none(role):
    with pytest.raises(NotAllowed, match=role):
        facts(principal=Principal("k", role=role))
    assert facts(principal=Principal("k", role="agent"))


def sub_accounts(principal, *, session=None, body=None, header=None):
    call = FakeCall(hints=Hints(session=session, user=header))
    return gather(call, principal, make_request(model="smart", user=body), SNAPSHOT).sub_accounts


def test_each_user_and_each_session_of_a_caller_has_its_own_accounts():
    row = ("rpm", 5, None)
    limits = SubLimits(per_user=(row,), per_session=(("concurrency", 2, None), row))
    mine = Principal("k", sub_limits=limits)
    (alice,) = sub_accounts(mine, body="alice")
    assert (alice.scope, alice.name, alice.kind, alice.limit) == ("user", "alice", "rpm", 5)
    assert sub_accounts(mine, header="alice", body="bob") == (alice,), "the header is nearer"
    assert sub_accounts(mine, body="Alice")[0].id != alice.id
    assert sub_accounts(Principal("other", sub_limits=limits), body="alice")[0].id != alice.id
    with_session = sub_accounts(mine, body="alice", session="alice")
    assert [one.scope for one in with_session] == ["user", "session", "session"]
    assert len({one.id for one in with_session}) == 3
    assert sub_accounts(replace(mine, user="eve")) == sub_accounts(mine, header="eve")


def test_leaving_the_user_out_is_no_way_around_its_limit():
    mine = Principal("k", sub_limits=SubLimits(per_user=(("rpm", 5, None),)))
    assert sub_accounts(mine) == sub_accounts(mine, body="")
    assert sub_accounts(mine)[0].limit == 5


def test_without_sub_limits_a_request_makes_no_account():
    assert sub_accounts(Principal("k"), body="alice", session="s") == ()
    per_session = SubLimits(per_session=(("rpm", 5, None),))
    assert sub_accounts(Principal("k", sub_limits=per_session), body="alice") == ()


name = st.text(st.sampled_from("ab:#/%@ 1"), min_size=1, max_size=6)


@given(st.tuples(name, name), st.tuples(name, name))
def test_no_two_users_or_callers_share_an_account(one, other):
    """Whatever stands in a name: a colon, an escape, the name of another's account."""
    rows = (("rpm", 1, None), ("tpm", 1, None))
    limits = SubLimits(per_user=rows, per_session=rows)
    ids = [
        account.id
        for key_id, told in (one, other)
        for account in sub_accounts(Principal(key_id, sub_limits=limits), header=told, session=told)
    ]
    assert len(set(ids)) == (4 if one == other else 8)


def test_a_caller_sees_the_chains_it_may_use():
    assert allowed(LOCAL, SNAPSHOT) == ("smart", "gpt-4o", "cheap")
    assert allowed(Principal("k", chains=("cheap", "gone")), SNAPSHOT) == ("cheap",)
