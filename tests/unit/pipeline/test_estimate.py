"""Tokens before the call."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.principal import Principal
from gateway.core.target import Account
from gateway.pipeline.estimate import PAIRS, Outputs, caller_demands, target_demands, tokens_of
from tests.support.fakes import make_chain, make_facts, make_request, make_target, slots


@given(st.integers(0, 10**9))
def test_some_text_is_never_no_tokens(size):
    assert (tokens_of(size) == 0) == (size == 0)
    assert tokens_of(size) >= size / 3.5


def test_what_is_expected_is_the_p90_of_recent_outputs_within_the_bound():
    outputs = Outputs()
    assert outputs.expected("k", "t", 500) == 500
    for tokens in range(1, 33):
        outputs.learn("k", "t", tokens)
    assert outputs.expected("k", "t", 500) == 29
    assert outputs.expected("k", "t", 7) == 7
    assert outputs.expected("other", "t", 500) == 500


def test_only_so_many_pairs_are_remembered_and_the_busy_ones_stay():
    outputs = Outputs()
    outputs.learn("busy", "t", 3)
    for n in range(PAIRS - 1):
        outputs.learn(f"k{n}", "t", 3)
    outputs.learn("busy", "t", 3)
    outputs.learn("one more", "t", 3)
    assert outputs.expected("busy", "t", 99) == 3
    assert outputs.expected("k0", "t", 99) == 99


def test_a_callers_tokens_are_held_with_the_bound_of_the_output():
    tpm = Account("key:k:tpm", "key", "k", "tpm", 1000)
    rpm = Account("key:k:rpm", "key", "k", "rpm", 5)
    facts = make_facts(make_chain("gpt"), principal=Principal("k", accounts=(rpm, tpm)))
    assert [d.n for d in caller_demands(facts, 90)] == [1, 100]


def test_a_targets_tokens_are_held_with_what_is_expected_of_it():
    tpm = Account("target:gpt:tpm", "target", "gpt", "tpm", 1000)
    target = make_target("gpt", accounts=(slots(3), tpm), max_output=50)
    facts = make_facts(make_chain(target))
    outputs = Outputs()
    assert [d.n for d in target_demands(facts, target, outputs)] == [1, 60]
    outputs.learn("local", "gpt", 7)
    assert [d.n for d in target_demands(facts, target, outputs)] == [1, 17]


def test_embeddings_hold_no_output():
    tpm = Account("target:gpt:tpm", "target", "gpt", "tpm", 1000)
    target = make_target("gpt", accounts=(tpm,))
    facts = make_facts(make_chain(target), request=make_request(kind="embeddings"))
    assert [d.n for d in target_demands(facts, target, Outputs())] == [10]
