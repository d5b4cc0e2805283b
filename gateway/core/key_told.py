"""A key as it is shown, by the command line and the admin API alike: never its secret."""

from collections.abc import Iterable
from datetime import UTC, datetime

from gateway.core.budget import Budget
from gateway.core.keys import StoredKey
from gateway.core.snapshot import DeclaredKey, Snapshot
from gateway.core.usage import Cost
from gateway.wire.admin import KeyTold, OwnBudgetTold

LAST = 253_402_300_799.0  # 9999-12-31 23:59:59 UTC


def all_told(stored: list[StoredKey], snapshot: Snapshot, now: float) -> list[KeyTold]:
    """Those of the file, then those of the store, oldest first."""
    return [
        *(declared_told(key, now) for key in snapshot.keys),
        *(stored_told(key, now) for key in stored),
    ]


def stored_told(key: StoredKey, now: float) -> KeyTold:
    return {
        "name": key.name,
        "id": key.id,
        "state": key.state(now),
        "role": key.role,
        "tier": key.tier,
        "team": key.team,
        "chains": None if key.chains is None else list(key.chains),
        "limits": {kind: limit for kind, limit, _ in key.limits},
        "budgets": _budgets(key.budgets),
        "expires": _moment(key.expires),
        "created": _moment(key.created),
        "revoked": _moment(key.revoked),
        "previous_until": _moment(key.previous_until) if key.overlaps(now) else None,
        "source": "store",
    }


def declared_told(key: DeclaredKey, now: float) -> KeyTold:
    """Its limits are what it comes to with its tier, of which nothing more is known."""
    principal = key.principal
    expired = key.expires is not None and key.expires <= now
    return {
        "name": key.name,
        "id": None,
        "state": "expired" if expired else "active",
        "role": principal.role,
        "tier": None,
        "team": principal.team,
        "chains": None if principal.chains is None else list(principal.chains),
        "limits": {a.kind: a.limit for a in principal.accounts if a.scope == "key"},
        "budgets": _budgets(one.budget for one in principal.budgets if one.scope == "key"),
        "expires": _moment(key.expires),
        "created": None,
        "revoked": None,
        "previous_until": None,
        "source": "file",
    }


def moment(seconds: float) -> str:
    """`2027-01-01T00:00:00Z`: RFC 3339, whole seconds."""
    shown = datetime.fromtimestamp(min(seconds, LAST), UTC).replace(microsecond=0)
    return shown.isoformat().replace("+00:00", "Z")


def _budgets(said: Iterable[Budget]) -> list[OwnBudgetTold]:
    return [{"usd": Cost(one.nano_usd).dollars(), "per": one.per, "hard": one.hard} for one in said]


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else moment(seconds)
