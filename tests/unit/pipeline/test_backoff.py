"""How long to wait: full jitter, or what was asked for and a little more."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.target import Retry
from gateway.pipeline.backoff import after_hint, jitter


@given(st.floats(0.001, 3600))
def test_a_hint_is_never_undercut(hint):
    assert hint <= after_hint(hint) <= hint * 1.1 + 0.1 + 1e-9


@given(st.floats(0.01, 5), st.floats(0.01, 30), st.integers(0, 20))
def test_jitter_is_full_and_bounded_by_the_doubled_backoff_and_the_cap(backoff, cap, done):
    pause = jitter(Retry(backoff=backoff, cap=cap), done)
    assert 0 <= pause <= min(cap, backoff * 2**done) + 1e-9
