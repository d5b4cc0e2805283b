"""What a failure uses up, and whether anybody may be asked after it."""

import pytest

from gateway.core.target import WAY_ON, Cause, Next
from gateway.pipeline.onward import onward
from gateway.pipeline.plan import NOTHING_SPENT
from tests.support.fakes import make_chain, make_facts, make_target


def facts_of(on=None, context=None):
    target = make_target("gpt", context=context)
    return make_facts(make_chain(target, "claude", on=on or {})), target


@pytest.mark.parametrize("cause", sorted(WAY_ON))
def test_without_a_word_in_on_the_table_decides(cause):
    facts, target = facts_of()
    spent = onward(facts, NOTHING_SPENT, target, cause)
    assert (spent is not None) is (WAY_ON[cause].next is Next.YES)
    if spent is not None:
        assert spent.tried == {"gpt"}


def test_on_may_stop_send_on_or_lead_to_another_chain():
    other = make_chain("llama")
    said = {Cause.OVERLOADED: "stop", Cause.CONTENT_POLICY: "next", Cause.CONTEXT_LENGTH: other}
    facts, target = facts_of(said)
    assert onward(facts, NOTHING_SPENT, target, Cause.OVERLOADED) is None
    assert onward(facts, NOTHING_SPENT, target, Cause.CONTENT_POLICY) is not None
    assert onward(facts, NOTHING_SPENT, target, Cause.CONTEXT_LENGTH).chain is other


def test_a_callers_own_mistake_goes_nowhere_whatever_on_says():
    facts, target = facts_of({Cause.BAD_REQUEST: "next"})
    assert onward(facts, NOTHING_SPENT, target, Cause.BAD_REQUEST) is None


def test_a_prompt_too_long_for_a_known_window_goes_to_larger_ones():
    facts, target = facts_of(context=8192)
    assert onward(facts, NOTHING_SPENT, target, Cause.CONTEXT_LENGTH).larger_than == 8192
