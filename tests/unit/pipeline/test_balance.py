"""The pick within a group: exact shares, no state, stable when a member is lost."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.pipeline.balance import hash01, ranked

NAMES = [f"m{n}" for n in range(8)]
groups = st.lists(st.integers(1, 100), min_size=2, max_size=8).map(
    lambda weights: [(w, NAMES[n], NAMES[n]) for n, w in enumerate(weights)]
)


def test_a_pick_by_weight_has_exact_shares():
    members = [(70, "a", "a"), (30, "b", "b")]
    picks = Counter(ranked(f"req{n}", members)[0] for n in range(20_000))
    assert abs(picks["a"] / 20_000 - 0.7) < 0.012


@given(st.text(), groups, st.data())
def test_losing_a_member_moves_only_its_own_share(draw, members, data):
    whole = ranked(draw, members)
    lost = data.draw(st.sampled_from(members))
    rest = ranked(draw, [member for member in members if member is not lost])
    assert rest == [name for name in whole if name != lost[1]]


@given(st.text(), groups)
def test_every_member_follows_the_pick_once(draw, members):
    assert sorted(ranked(draw, members)) == sorted(name for _, name, _ in members)


def test_a_member_without_weight_stands_last():
    for n in range(50):
        assert ranked(f"r{n}", [(0, "a", "a"), (1, "b", "b")]) == ["b", "a"]


@given(st.text(), st.text())
def test_a_draw_is_strictly_between_0_and_1_and_the_same_again(draw, name):
    assert 0 < hash01(draw, name) < 1
    assert hash01(draw, name) == hash01(draw, name)
