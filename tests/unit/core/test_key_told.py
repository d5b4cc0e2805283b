"""A key as it is shown."""

from gateway.core.budget import Budget, allowances
from gateway.core.key_told import all_told, moment
from gateway.core.keys import StoredKey
from gateway.core.principal import Principal
from gateway.core.snapshot import DeclaredKey, Snapshot

BIG = Budget("month", 10**12)
NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z


def test_no_digest_is_shown_and_moments_are_rfc_3339():
    stored = StoredKey(
        name="job",
        id="abcdefgh",
        digest=b"d" * 32,
        previous=b"p" * 32,
        previous_until=NOW + 60,
        tier="free",
        team=None,
        chains=("smart",),
        limits=(("rpm", 5, None),),
        role="agent",
        expires=None,
        created=NOW - 0.5,
        revoked=None,
        budgets=(Budget("day", 500_000_000, hard=False),),
    )
    theirs = (*allowances("key", "app", [Budget("total", 1)]), *allowances("team", "t", [BIG]))
    declared = DeclaredKey("app", b"d" * 32, Principal("app", role="metrics", budgets=theirs), NOW)
    snapshot = Snapshot("c", {}, {}, {}, keys=(declared,))
    app, job = all_told([stored], snapshot, NOW)
    assert (app["name"], app["source"], app["state"]) == ("app", "file", "expired")
    assert app["budgets"] == [{"usd": "0.000000001", "per": "total", "hard": True}]
    assert app["expires"] == "2027-01-15T08:00:00Z"
    assert job == {
        "name": "job",
        "id": "abcdefgh",
        "state": "active",
        "role": "agent",
        "tier": "free",
        "team": None,
        "chains": ["smart"],
        "limits": {"rpm": 5},
        "budgets": [{"usd": "0.5", "per": "day", "hard": False}],
        "expires": None,
        "created": "2027-01-15T07:59:59Z",
        "revoked": None,
        "previous_until": "2027-01-15T08:01:00Z",
        "source": "store",
    }
    assert all_told([stored], snapshot, NOW + 60)[1]["previous_until"] is None


def test_a_moment_that_no_calendar_has_is_its_last():
    assert moment(1e15) == "9999-12-31T23:59:59Z"
