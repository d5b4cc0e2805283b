"""What a stored key may say of itself."""

import pytest

from gateway.config.load import load_text
from gateway.core.budget import Budget
from gateway.core.keys import KeyTerms
from gateway.core.terms import LATEST, objection

FILE = """
providers: {p: {kind: sim}}
chains: {smart: {try: [p/m], also: [gpt-4o]}, cheap: [p/m]}
tiers: {free: {limits: {rpm: 20, concurrency: 2}, budgets: [{usd: 2, per: day}]}, open: {}}
teams: {us: {tier: free, chains: [cheap]}, them: {}}
keys: []
"""
SNAPSHOT = load_text(FILE, "f", {}).snapshot
NOW = 1_800_000_000.0
USD = 10**9
DEAR = Budget("day", 2_500_000_000)


@pytest.mark.parametrize(
    "terms",
    [
        KeyTerms(),
        KeyTerms("free", "us", ("cheap",), (("rpm", 20, None), ("tpm", 10**9, None))),
        KeyTerms("open", "us", None, (("rpm", 10**6, None),)),
        KeyTerms("free", budgets=(Budget("day", 2 * USD), Budget("total", 9 * USD, hard=False))),
        KeyTerms("open", budgets=(Budget("day", 9 * USD, hard=False),)),
        KeyTerms(None, "them", ("gpt-4o",), (("concurrency", 9, None),), "admin", NOW + 1),
    ],
)
def test_what_the_file_allows_is_allowed(terms):
    assert objection("job", terms, SNAPSHOT, NOW) is None


@pytest.mark.parametrize(
    ("name", "terms", "field", "said"),
    [
        ("Job", KeyTerms(), "name", "no name"),
        ("a\n", KeyTerms(), "name", "no name"),
        ("job", KeyTerms(tier="fre"), "tier", "did you mean free?"),
        ("job", KeyTerms(team="nobody"), "team", "there are: us, them"),
        ("job", KeyTerms(chains=("smart", "dumb")), "chains", "no chain 'dumb'"),
        ("job", KeyTerms(team="us", chains=("gpt-4o",)), "chains", "us may not call gpt-4o"),
        ("job", KeyTerms("free", limits=(("rpm", 21, None),)), "limits.rpm", "21 is wider than"),
        ("job", KeyTerms("free", limits=(("rpm", 21, None),)), "limits.rpm", "the 20 of the tier"),
        (
            "job",
            KeyTerms(team="us", limits=(("concurrency", 3, None),)),
            "limits.concurrency",
            "the 2 of the team us",
        ),
        ("job", KeyTerms("free", budgets=(DEAR,)), "budgets", "$2.5 per day is more than the $2"),
        ("job", KeyTerms(team="us", budgets=(DEAR,)), "budgets", "$2 of the team us"),
        ("job", KeyTerms("free", budgets=(Budget("day", 1, hard=False),)), "budgets", "is hard"),
        ("job", KeyTerms(budgets=(DEAR, DEAR)), "budgets", "Two budgets per day"),
        ("job", KeyTerms(expires=NOW), "expires", "over"),
        ("job", KeyTerms(expires=LATEST + 1), "expires", "9998"),
    ],
)
def test_what_it_does_not_is_named_with_both_figures(name, terms, field, said):
    wrong = objection(name, terms, SNAPSHOT, NOW)
    assert wrong is not None
    assert (wrong.field, bool(wrong.remedy)) == (field, True)
    assert said in wrong.message
