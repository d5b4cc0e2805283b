"""What will hurt although the file holds: what `gateway check` finds beyond shape and names."""

from collections.abc import Iterator

from gateway.config.load import Loaded
from gateway.config.mistakes import Mistake, Path, Severity, in_order
from gateway.config.models import Group, spelled_duration
from gateway.core.target import AccountKind, AccountScope, Chain, Leaf, OneOf, Step, Target

KINDS: tuple[AccountKind, ...] = ("rpm", "tpm", "concurrency")


def lint(loaded: Loaded) -> list[Mistake]:
    """Errors and warnings in file order; empty when there is nothing to say."""
    return list(in_order(_Lint(loaded).findings()))


class _Lint:
    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._snapshot = loaded.snapshot
        self._document = loaded.document

    def findings(self) -> Iterator[Mistake]:
        yield from self._secrets()
        yield from self._open_doors()
        yield from self._unpriced()
        for name in self._document.chains:
            chain = self._snapshot.chains[name]
            yield from self._shape(chain)
            yield from self._shared_keys(chain)
            yield from self._narrowing(chain)

    def _say(
        self, message: str, *path: str | int, severity: Severity = "warning", key: bool = False
    ) -> Mistake:
        tree = self._loaded.tree
        found = tree.mistake(tree.original(path), message, key=key)
        return Mistake(found.file, found.line, found.column, found.path, message, severity)

    def _secrets(self) -> Iterator[Mistake]:
        said = "a literal secret; write ${NAME} or ${file:/path} and keep it out of the file"
        for name, provider in self._document.providers.items():
            if provider.key is not None and provider.key.literal and provider.key.secret.reveal():
                yield self._say(said, "providers", name, "key")
            for index, key in enumerate(provider.keys or ()):
                if key.secret.literal:
                    yield self._say(said, "providers", name, "keys", index, "secret")
        redis = self._document.state.redis
        if redis is not None and redis.literal and "@" in redis.secret.reveal():
            yield self._say(said, "state", "redis")

    def _open_doors(self) -> Iterator[Mistake]:
        admin = self._document.server.admin
        if self._document.observe.metrics.public and not admin.loopback:
            said = f"whoever reaches {admin} reads the metrics without a key"
            yield self._say(said, "observe", "metrics", "public")
        for index, key in enumerate(self._document.keys or ()):
            if key.role == "client" and key.tier is None and not self._bounded(key.team):
                yield self._say(
                    "no tier, and no team with one: a key without limits", "keys", index
                )

        for index, issuer in enumerate(self._document.auth.jwt):
            claims = issuer.claims
            bounded = self._bounded(issuer.team) or issuer.tier or claims.tier or claims.team
            if not bounded:
                said = "neither a team nor a tier: its users are callers without limits"
                yield self._say(said, "auth", "jwt", index)

    def _bounded(self, team: str | None) -> bool:
        return team is not None and self._document.teams[team].tier is not None

    def _unpriced(self) -> Iterator[Mistake]:
        told: set[str] = set()
        for target in self._snapshot.targets.values():
            if target.prices or target.name in told:
                continue
            told.add(target.name)
            model = f"{target.provider}/{target.model}"
            if target.allow_unpriced:
                said = f"no price: its cost stays unknown; add prices: {model}"
                yield self._about(target.name, said)
            else:
                said = f"no price, so it is always skipped; add prices: {model}, or unpriced: allow"
                yield self._about(target.name, said, severity="error")

    def _about(self, target: str, message: str, severity: Severity = "warning") -> Mistake:
        """At the target's own section, else where a chain first names it."""
        return self._say(message, *self._place(target), severity=severity, key=True)

    def _place(self, target: str) -> Path:
        if target in self._document.targets:
            return ("targets", target)
        for name, section in self._document.chains.items():
            for index, step in enumerate(section.try_):
                if step == target:
                    return ("chains", name, "try", index)
                if isinstance(step, Group) and target in step.weights:
                    inside: Path = ("chains", name, "try", index, "one_of")
                    by_name = isinstance(step.one_of, dict)
                    return (*inside, target if by_name else list(step.one_of).index(target))
        return ("chains",)

    def _shape(self, chain: Chain) -> Iterator[Mistake]:
        leaves = chain.leaves()
        if len(leaves) == 1:
            said = "one target: when it fails there is nothing to fall back to"
            yield self._say(said, "chains", chain.name, key=True)
        if len(leaves) > chain.retry.attempts:
            said = (
                f"{len(leaves)} targets but at most {chain.retry.attempts} attempts: "
                "the last are reached only past skipped ones; raise retry.attempts"
            )
            yield self._say(said, "chains", chain.name, key=True)
        asked = leaves[: chain.retry.attempts]
        needed = sum(leaf.timeouts.first_token for leaf in asked)
        if len(asked) > 1 and chain.deadline < needed:
            said = (
                f"{spelled_duration(chain.deadline)} is less than the first_token of its targets "
                f"together ({spelled_duration(needed)}): the last may not be asked"
            )
            yield self._say(said, "chains", chain.name, "deadline")

    def _shared_keys(self, chain: Chain) -> Iterator[Mistake]:
        """Two steps that fall together when one provider key is refused or throttled."""
        behind: dict[tuple[str, str], str] = {}
        for leaf in chain.leaves():
            for target in leaf.targets:
                secret = target.secret.reveal()
                first = behind.setdefault((target.base_url, secret), leaf.name)
                if secret and first != leaf.name:
                    said = (
                        f"in chain {chain.name} behind the same provider key as {first}: "
                        "both go when it is refused"
                    )
                    yield self._about(leaf.name, said)
                    break

    def _narrowing(self, chain: Chain) -> Iterator[Mistake]:
        """Later steps that cannot carry what stands before them."""
        for index, step in enumerate(chain.steps):
            if index == 0:
                continue
            before = chain.steps[:index]
            if (said := _narrow(before, step)) is not None:
                yield self._at(step, chain, f"carries {said}".replace("@", f"chain {chain.name}"))
            for leaf in _leaves(step):
                yield from self._lesser(before, leaf, chain)

    def _at(self, step: Step, chain: Chain, message: str) -> Mistake:
        if isinstance(step, Leaf):
            return self._about(step.name, message)
        names = ", ".join(leaf.name for leaf in _leaves(step))
        return self._say(f"{names} together: {message}", "chains", chain.name, key=True)

    def _lesser(self, before: tuple[Step, ...], leaf: Leaf, chain: Chain) -> Iterator[Mistake]:
        own = leaf.targets[0]
        earlier = [found.targets[0] for step in before for found in _leaves(step)]
        windows = [target.context for target in earlier if target.context is not None]
        if own.context is not None and windows and own.context < max(windows):
            said = (
                f"reads {_part(own.context, max(windows))} of what stands before it in chain "
                f"{chain.name} (context {_spaced(own.context)} of {_spaced(max(windows))})"
            )
            yield self._about(leaf.name, said)
        lacking = _lacking(earlier, own)
        if lacking:
            said = (
                f"cannot do {', '.join(lacking)}, as what stands before it in chain "
                f"{chain.name} can"
            )
            yield self._about(leaf.name, said)


def _lacking(earlier: list[Target], own: Target) -> list[str]:
    if own.can is None:
        return []
    able = {ability for target in earlier if target.can is not None for ability in target.can}
    return sorted(able - own.can)


def _leaves(step: Step) -> tuple[Leaf, ...]:
    return (step,) if isinstance(step, Leaf) else Chain("", (step,)).leaves()


def _narrow(before: tuple[Step, ...], step: Step) -> str | None:
    """`31 % of what stands before it in @ (rpm 600 of 1 940)`, of the narrowest kind."""
    worst: tuple[float, str] | None = None
    for kind in KINDS:
        own = _capacity(step, kind)
        others = [found for one in before if (found := _capacity(one, kind)) is not None]
        if own is None or not others or own >= max(others):
            continue
        ratio = own / max(others)
        if worst is None or ratio < worst[0]:
            said = (
                f"{_part(own, max(others))} of what stands before it in @ "
                f"({kind} {_spaced(own)} of {_spaced(max(others))})"
            )
            worst = (ratio, said)
    return worst[1] if worst else None


def _capacity(step: Step, kind: AccountKind) -> int | None:
    """What a step bears of a kind; None: no limit is known."""
    if isinstance(step, OneOf):
        parts = [_capacity(steps[0], kind) for _, steps in step.members if steps]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) and known else None
    scopes: tuple[AccountScope, ...] = ("target", "provider")
    bounds = [bound for scope in scopes if (bound := _bound(step, kind, scope)) is not None]
    return min(bounds, default=None)


def _bound(leaf: Leaf, kind: AccountKind, scope: AccountScope) -> int | None:
    limits = {
        account.id: account.limit
        for target in leaf.targets
        for account in target.accounts
        if account.kind == kind and account.scope == scope
    }
    return sum(limits.values()) if limits else None


def _part(own: int, whole: int) -> str:
    return f"{max(1, own * 100 // whole)} %" if own else "0 %"


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")
