"""Keys over the admin API: read always, written only where the file has `server.admin_keys`."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.core.audit import FORBIDDEN, Act, Verb
from gateway.core.budget import MOST_USD, Budget, amount
from gateway.core.keys import KeyTerms, LimitRow
from gateway.core.snapshot import ServerSettings
from gateway.core.target import AccountKind
from gateway.errors import InvalidRequest, NotAllowed, NotFound
from gateway.server.asked import body_of, query_of
from gateway.server.doors import Admin
from gateway.server.incoming import Incoming
from gateway.wire.admin import MOMENT, BudgetBody, KeyBody, KeysQuery, RotateBody

WRITES: dict[str, Verb] = {
    "put_key": "key.create",
    "rotate_key": "key.rotate",
    "revoke_key": "key.revoke",
}
HANDLERS = frozenset({"keys", "key", *WRITES})
KINDS: tuple[AccountKind, ...] = ("rpm", "tpm", "concurrency")
DAY = timedelta(days=1)

_MOMENT = re.compile(MOMENT.removeprefix("^").removesuffix("$"), re.ASCII)

Told = tuple[int, Any]
"""A status and what is told with it."""


async def answer(  # noqa: PLR0913, PLR0917 - a request has as many parts
    admin: Admin,
    settings: ServerSettings,
    handler: str,
    call: Incoming,
    name: str,
    query: str,
    who: str,
) -> Told:
    """One of HANDLERS.

    Raises:
        NotAllowed: a write, and the file does not allow it.
        InvalidRequest, NotFound, Conflict: what is asked for.
        Overloaded: the store cannot be used.
    """
    if handler in WRITES and not settings.admin_keys:
        admin.note(Act(who, WRITES[handler], name, FORBIDDEN))
        raise NotAllowed(
            "Keys are not written over HTTP here. To allow it add the line  admin_keys: true "
            " below server: in the configuration, and restart; or use `gateway keys`."
        )
    room = admin.keys
    match handler:
        case "keys":
            asked = query_of(query, KeysQuery)
            return 200, room.page(asked.after, asked.limit)
        case "put_key":
            told = await room.put(name, terms_of(await body_of(call, KeyBody)), who)
            return (201 if "secret" in told else 200), told
        case "rotate_key":
            overlap = (await body_of(call, RotateBody)).overlap_s
            return 200, await room.rotate(name, float(overlap), who)
        case "revoke_key":
            return 200, await room.revoke(name, who)
        case _:
            key = await room.one(name)
            if key is None:
                raise NotFound("There is no such key. GET /admin/keys lists them.")
            return 200, {"key": key}


def terms_of(body: KeyBody) -> KeyTerms:
    """What a body says of a key. Raises InvalidRequest."""
    said = [(kind, getattr(body.limits, kind)) for kind in KINDS]
    limits: tuple[LimitRow, ...] = tuple((kind, n, None) for kind, n in said if n is not None)
    chains = None if body.chains is None else tuple(body.chains)
    expires = None if body.expires is None else _moment(body.expires)
    budgets = tuple(_budget(one) for one in body.budgets)
    return KeyTerms(body.tier, body.team, chains, limits, body.role, expires, budgets)


def _budget(said: BudgetBody) -> Budget:
    nano_usd = amount(said.usd)
    if nano_usd is None:
        raise InvalidRequest(
            f"A budget is more than 0 dollars and at most {MOST_USD:,}, with at most 9 decimals:"
            ' {"usd": "20", "per": "day"}. To let nobody in, revoke the key.',
            param="budgets",
        )
    return Budget(said.per, nano_usd, said.hard)


def _moment(text: str) -> float:
    """Epoch seconds: the end of a day, or a moment."""
    try:
        moment = datetime.fromisoformat(text if _MOMENT.fullmatch(text) else "")
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC) + DAY
        return moment.timestamp()
    except (ValueError, OverflowError):
        raise InvalidRequest(
            "'expires' is no day or moment: write 2026-12-31, the last day it works, or"
            " 2026-12-31T18:00:00Z.",
            param="expires",
        ) from None
