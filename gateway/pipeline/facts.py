"""From a parsed request to what is known of it: the chain it names, its rights, its deadline."""

import difflib
from urllib.parse import quote

from gateway.clock import Deadline
from gateway.core.plan import Facts
from gateway.core.ports import Call
from gateway.core.principal import OPEN_TO, Limits, Principal
from gateway.core.request import NO_HINTS, Hints, Request
from gateway.core.snapshot import Snapshot
from gateway.core.target import Account, AccountScope, Chain
from gateway.errors import InvalidRequest, NotAllowed, NotFound

CALLERS = OPEN_TO["client"]  # the roles that may call models
SHOWN = 80  # characters of a user or session in a message
RANK = {"low": 0, "normal": 1, "high": 2}


def gather(call: Call, principal: Principal, request: Request, snapshot: Snapshot) -> Facts:
    """Everything the planner has to know.

    Raises:
        NotFound: no such model, with near matches among those the caller may use.
        NotAllowed: a model or a header the caller has no right to.
        InvalidRequest: a hint names what does not exist.
    """
    hints = call.hints
    if principal.role not in CALLERS:
        raise NotAllowed(f"A key of role '{principal.role}' may not call models: use a client's.")
    if hints is not NO_HINTS:
        _rights(hints, principal)
        _detachable(hints, principal)
    if principal.user is not None:
        _same_user(principal.user, hints.user, request.user)
    chain = _chain(request.model, principal, snapshot)
    if hints.target is not None:
        direct = snapshot.direct.get(hints.target)
        if direct is None:
            raise InvalidRequest(
                f"x-gateway-target: there is no target '{hints.target}'.", param="x-gateway-target"
            )
        chain = direct
    if hints.skip:
        _known(hints.skip, snapshot)
    if hints.cache not in {None, "off"} and chain.cache is None:
        raise InvalidRequest(
            f"x-gateway-cache: the chain '{chain.name}' has no cache (chains.*.cache).",
            param="x-gateway-cache",
        )
    deadline = chain.deadline if hints.deadline is None else min(chain.deadline, hints.deadline)
    user = principal.user or hints.user or request.user
    return Facts(
        id=call.id,
        started=call.started,
        deadline=Deadline(call.started + deadline),
        principal=principal,
        request=request,
        chain=chain,
        hints=hints,
        user=user,
        session=hints.session,
        sub_accounts=()
        if principal.sub_limits is None
        else _sub_accounts(principal, user, hints.session),
    )


def allowed(principal: Principal, snapshot: Snapshot) -> tuple[str, ...]:
    """The model names this caller may use, in order of the file."""
    if principal.chains is None:
        return tuple(snapshot.chains)
    mine = {snapshot.chains[name].name for name in principal.chains if name in snapshot.chains}
    return tuple(name for name, chain in snapshot.chains.items() if chain.name in mine)


def _known(skip: frozenset[str], snapshot: Snapshot) -> None:
    if unknown := skip - {target.name for target in snapshot.targets.values()}:
        raise InvalidRequest(
            f"x-gateway-skip: there is no target '{min(unknown)}'.", param="x-gateway-skip"
        )


def _chain(model: str, principal: Principal, snapshot: Snapshot) -> Chain:
    chain = snapshot.chains.get(model)
    if chain is not None:
        if principal.chains is None or chain.name in principal.chains:
            return chain
        if any(snapshot.chains.get(name) is chain for name in principal.chains):
            return chain
        raise NotAllowed(
            f"This API key may not use the model '{chain.name}'.",
            code="model_not_allowed",
            param="model",
        )
    direct = snapshot.direct.get(model)
    if direct is not None and "target" in principal.rights:
        return direct
    names = allowed(principal, snapshot)
    near = difflib.get_close_matches(model[:200], names, n=3)
    if near:
        remedy = "Did you mean " + " or ".join(near) + "?"
    elif names:
        remedy = "There are: " + ", ".join(names[:10]) + (", …" if len(names) > 10 else "") + "."
    else:
        remedy = "This API key may use none."
    raise NotFound(
        f"There is no model '{model[:200]}' here. {remedy}", code="model_not_found", param="model"
    )


def _detachable(hints: Hints, principal: Principal) -> None:
    """A call that outlives its caller needs somebody who asks for the answer by its key."""
    if not hints.detach:
        return
    if principal.role != "agent":
        raise NotAllowed(
            f"The header x-gateway-detach needs a key of role 'agent'; this one is a"
            f" '{principal.role}'.",
            code="override_not_allowed",
            param="x-gateway-detach",
        )
    if hints.idempotency_key is None:
        raise InvalidRequest(
            "x-gateway-detach needs an Idempotency-Key: without one nobody could ask for the"
            " answer.",
            param="idempotency-key",
        )


def _rights(hints: Hints, principal: Principal) -> None:
    """Headers that widen need a right; without it they are refused, never ignored."""
    asked = (
        ("x-gateway-target", hints.target is not None, "target"),
        ("x-gateway-skip", bool(hints.skip), "skip"),
        ("x-gateway-fallback", not hints.fallback, "skip"),
        ("x-gateway-trace", hints.trace, "trace"),
        ("x-gateway-cache", hints.cache not in {None, "off"}, "cache"),
        ("x-gateway-park", hints.park, "park"),
    )
    for header, used, right in asked:
        if used and right not in principal.rights:
            raise NotAllowed(
                f"The header {header} needs the right '{right}' (tiers.*.may).",
                code="override_not_allowed",
                param=header,
            )
    if hints.priority is not None and RANK[hints.priority] > RANK[principal.priority]:
        raise NotAllowed(
            f"x-gateway-priority may only lower this key's priority, '{principal.priority}'.",
            code="override_not_allowed",
            param="x-gateway-priority",
        )


def _same_user(user: str, of_header: str | None, of_body: str | None) -> None:
    """Whom a token was made out to nobody may change by saying so."""
    for param, said in (("x-gateway-user", of_header), ("user", of_body)):
        if said is not None and said != user:
            raise NotAllowed(
                f"'{param}' names another user than the token was made out to: leave it out.",
                code="override_not_allowed",
                param=param,
            )


def _sub_accounts(
    principal: Principal, user: str | None, session: str | None
) -> tuple[Account, ...]:
    """The accounts of a user and of a session within the caller's.

    Requests that name no user share one account, or leaving the name out would be a way around;
    those without a session have none, for they could name a new one each time.
    """
    limits = principal.sub_limits
    if limits is None:
        return ()
    mine = _within("user", principal.key_id, user or "", limits.per_user)
    if session is not None:
        mine += _within("session", principal.key_id, session, limits.per_session)
    return mine


def _within(scope: AccountScope, key_id: str, name: str, limits: Limits) -> tuple[Account, ...]:
    """Quoted, a key's name has no colon: no two (key, name) have the same id."""
    before = f"{scope}:{quote(key_id, safe='/#@')}:{name}"
    return tuple(
        Account(f"{before}:{kind}", scope, name[:SHOWN], kind, limit, burst)
        for kind, limit, burst in limits
    )
