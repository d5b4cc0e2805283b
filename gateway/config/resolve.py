"""Names become objects: first every dangling or contradicting name is told, then all is built.

`Resolver.check` says what is wrong beyond shape; `Resolver.snapshot` may be called when that was
nothing, and then cannot fail.
"""

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal
from urllib.parse import urlsplit

from gateway.config import prices
from gateway.config.mistakes import Mistake, Path, nearest, no_model, no_such
from gateway.config.models import (
    AlertsSection,
    BreakerSection,
    BudgetSection,
    CacheSection,
    CallerLimits,
    ChainClocks,
    ClockSection,
    Document,
    Group,
    JwtIssuer,
    Key,
    Provider,
    RetrySection,
    Section,
    TargetSection,
    Tier,
    UpstreamLimits,
)
from gateway.config.nodes import Tree
from gateway.core.alerts import Alerts, SpendRule, Webhook
from gateway.core.budget import Budget, allowances, narrowed
from gateway.core.principal import Limits, Principal, Role, SubLimits
from gateway.core.snapshot import DeclaredKey, Grant, Issuer, ServerSettings, Snapshot
from gateway.core.target import (
    NO_SECRET,
    WAY_ON,
    Account,
    AccountKind,
    AccountScope,
    BreakerPolicy,
    Cache,
    Cause,
    Chain,
    Leaf,
    Next,
    OneOf,
    Params,
    Retry,
    Step,
    Target,
    Timeouts,
)
from gateway.core.usage import Cost, Price
from gateway.wire import json

OPENAI = "https://api.openai.com/v1"
KINDS: tuple[AccountKind, ...] = ("rpm", "tpm", "concurrency")
_MAX_STEPS = 200  # targets of one chain, nested chains inlined
_MAX_NESTING = 64  # chains that lead from one to the next
_DAY = 86_400.0
_OF_ALL = "no more than the ${} per {} of all together"
_PRIVATE = "a private or loopback address; if that is meant, add allow_private: true"
_ROLES: Mapping[str, Role] = {  # of a token with several the first counts
    "admin": "admin",
    "metrics": "metrics",
    "agent": "agent",
    "client": "client",
}


class Resolver:
    """One file's names."""

    def __init__(self, tree: Tree, document: Document) -> None:
        self.mistakes: list[Mistake] = []
        self._tree = tree
        self._document = document
        self._built: dict[str, tuple[Target, ...]] = {}
        self._chains: dict[str, Chain] = {}
        self._target_names = tree.names("targets")
        self._chain_names = tree.names("chains")
        self._provider_names = tree.names("providers")
        self._owners = {name: name for name in document.chains}  # public name: the chain's own
        for name, chain in document.chains.items():
            for other in chain.also:
                self._owners.setdefault(other, name)

    # What is wrong

    def check(self) -> list[Mistake]:
        """Everything that is wrong beyond shape."""
        self._check_server()
        for name, provider in self._document.providers.items():
            self._check_provider(name, provider)
        for name, target in self._document.targets.items():
            self._check_target(name, target)
        self._check_names()
        self._check_chains()
        self._check_cycles()
        self._check_callers()
        self._check_issuers()
        self._check_prices()
        self._check_webhook()
        return self.mistakes

    def _say(self, message: str, *path: str | int, key: bool = False) -> None:
        where = self._tree.original(path)
        self.mistakes.append(self._tree.mistake(where, message, key=key))

    def _sound(self, *prefix: str | int) -> bool:
        """Whether nothing below `prefix` was wrong, so that fields may be judged together."""
        return not any(gone[: len(prefix)] == prefix for gone in self._tree.gone)

    def _check_server(self) -> None:
        server = self._document.server
        if not self._sound("server"):
            return
        keyless = self._tree.at(("keys",)) is None and not self._tree.at(("auth", "jwt"))
        if keyless and not server.listen.loopback:
            self._say(
                "without keys only a loopback address is served; listen on "
                f"127.0.0.1:{server.listen.port}, or add the line  "
                'keys: [{name: me, hash: "sha256:…"}]  (`gateway keys create` makes one)',
                "server",
                "listen",
            )
        if server.listen == server.admin and server.listen.port:
            self._say("must differ from server.listen", "server", "admin")

    def _check_provider(self, name: str, provider: Provider) -> None:
        path = ("providers", name)
        self._check_burst(provider.limits, *path, "limits")
        if not self._sound(*path):
            return
        if provider.key is not None and provider.keys is not None:
            self._say("key and keys: only one of them", *path, "keys", key=True)
        if provider.keys is not None:
            if not provider.keys:
                self._say("at least one key is expected", *path, "keys")
            self._check_unique([key.name for key in provider.keys], *path, "keys")
        if provider.kind == "sim":
            if provider.base_url is not None:
                self._say("the simulator has no base_url; remove it", *path, "base_url")
            return
        if provider.base_url is None and provider.key is None and provider.keys is None:
            self._say('is missing: key: "${OPENAI_API_KEY}"', *path, "key")
        self._check_url(provider, *path)

    def _check_url(self, provider: Provider, *path: str) -> None:
        if provider.base_url is not None:
            self._check_public(provider.base_url, provider, "keys and prompts", *path, "base_url")

    def _check_webhook(self) -> None:
        alerts = self._document.observe.alerts
        if alerts.webhook is not None and self._sound("observe", "alerts"):
            path = ("observe", "alerts", "webhook")
            self._check_public(alerts.webhook.reveal(), alerts, "who spends what", *path)

    def _check_public(
        self, url: str, section: Provider | AlertsSection, what: str, *path: str
    ) -> None:
        """`what` would be sent in clear."""
        parts = urlsplit(url)
        if parts.scheme == "http" and not section.allow_http:
            said = f"http sends {what} unencrypted; use https, or add allow_http: true"
            self._say(said, *path)
        if _private(parts.hostname or "") and not section.allow_private:
            self._say(_PRIVATE, *path)

    def _check_unique(self, names: list[str], *path: str | int) -> None:
        seen: dict[str, int] = {}
        for index, name in enumerate(names):
            if name in seen:
                first = self._tree.mistake(
                    self._tree.original((*path, seen[name], "name")), ""
                ).line
                said = f"this name stands twice (first on line {first})"
                self._say(said, *path, index, "name")
            seen.setdefault(name, index)

    def _check_burst(self, limits: CallerLimits, *path: str | int) -> None:
        if limits.burst is not None and limits.rpm is None and self._sound(*path):
            self._say("burst needs rpm beside it", *path, "burst")

    def _check_target(self, name: str, target: TargetSection) -> None:
        path = ("targets", name)
        if target.like is not None:
            others = [other for other in self._target_names if other != name]
            if target.like not in others:
                self._say(no_such("other target", target.like, others), *path, "like")
                return
            model = self._document.targets.get(target.like)
            if model is not None and model.like is not None:
                self._say("that target is itself like another; name the first", *path, "like")
                return
        merged = self._merged(target)
        below = target.like or name
        if merged.model is None and self._sound(*path) and self._sound("targets", below):
            self._say("is missing: model: provider/model", *path, "model")
        if target.model is not None:
            self._check_provider_of(target.model, *path, "model")
        self._check_burst(merged.limits, *path, "limits")

    def _check_provider_of(self, model: str, *path: str | int) -> None:
        provider = model.partition("/")[0]
        if provider not in self._provider_names:
            self._say(no_such("provider", provider, self._provider_names), *path)

    def _check_names(self) -> None:
        """Targets, chains and `also` share one namespace."""
        taken: dict[str, Path] = {name: ("targets", name) for name in self._target_names}
        for name in self._chain_names:
            if name in taken:
                self._say(self._taken("target", taken[name]), "chains", name, key=True)
            taken[name] = ("chains", name)
        for name, chain in self._document.chains.items():
            for index, other in enumerate(chain.also):
                path = ("chains", name, "also", index)
                if other in taken:
                    self._say(self._taken("target or chain", taken[other]), *path)
                taken.setdefault(other, path)

    def _taken(self, what: str, path: Path) -> str:
        line = self._tree.mistake(self._tree.original(path), "", key=True).line
        return f"this name is already that of a {what} (line {line})"

    def _check_chains(self) -> None:
        for name, chain in self._document.chains.items():
            if not chain.try_ and self._sound("chains", name):
                self._say("at least one step is expected", "chains", name, "try")
            for path, key, reference in self._references(name):
                self._check_reference(reference, path, key=key)
            if chain.cache is not None and chain.cache.exact is None and not chain.cache.join:
                self._say(
                    "neither exact: nor join: there is nothing to do", "chains", name, "cache"
                )
            for cause, onward in chain.on.items():
                self._check_onward(cause, onward, "chains", name, "on", cause)

    def _references(self, chain: str) -> Iterator[tuple[Path, bool, str]]:
        """(path, whether the name is a key there, name) of each step and member."""
        for index, step in enumerate(self._document.chains[chain].try_):
            path: Path = ("chains", chain, "try", index)
            if not isinstance(step, Group):
                yield path, False, step
                continue
            inside = (*path, "one_of")
            if not step.one_of and self._sound("chains", chain):
                self._say("at least one member is expected", *inside)
            if isinstance(step.one_of, dict):
                for member in step.one_of:
                    yield (*inside, member), True, member
            else:
                for number, member in enumerate(step.one_of):
                    yield (*inside, number), False, member

    def _check_reference(self, name: str, path: Path, *, key: bool) -> None:
        if name in self._target_names or name in self._chain_names or name in self._owners:
            return
        if "/" in name:
            provider = name.partition("/")[0]
            if provider not in self._provider_names:
                said = no_such("provider", provider, self._provider_names)
                self._say(said, *path, key=key)
            return
        known = [*self._target_names, *self._chain_names]
        self._say(no_such("target or chain", name, known), *path, key=key)

    def _check_onward(self, cause: Cause, onward: str, *path: str) -> None:
        if WAY_ON[cause].next is Next.NEVER and onward != "stop":
            self._say("a wrong request is wrong everywhere: it always stops", *path)
        elif onward not in {"next", "stop", *self._owners, *self._chain_names}:
            known = ["next", "stop", *self._chain_names]
            self._say(f"must be next, stop or a chain{nearest(onward, known)}", *path)

    def _check_cycles(self) -> None:
        """No chain leads back to itself, by its steps or by `on`, nor to a great many targets."""
        done: dict[str, tuple[int, int]] = {}
        for name in self._document.chains:
            self._walk(name, [], done)

    def _walk(
        self, name: str, above: list[str], done: dict[str, tuple[int, int]]
    ) -> tuple[int, int]:
        """How many targets stand below a chain, and how many chains; each is judged once."""
        if name in done:
            return done[name]
        count = height = 0
        for path, key, other in self._onward(name):
            owner = self._owners.get(other)
            if owner is None or other in self._target_names:
                count += path[2] == "try"
            elif owner in {*above, name}:
                way = [*above, name, owner][[*above, name].index(owner) :]
                self._say(f"leads in a circle: {' → '.join(way[:8])}", *path, key=key)
            else:
                more, high = (
                    self._walk(owner, [*above, name], done)
                    if len(above) < _MAX_NESTING
                    else (0, _MAX_NESTING)
                )
                count += more if path[2] == "try" else 0
                height = max(height, high + 1)
        done[name] = self._bounded(name, count, height)
        return done[name]

    def _bounded(self, name: str, count: int, height: int) -> tuple[int, int]:
        """Both figures; what is too much is told, and then counts as little: it is told once."""
        if count > _MAX_STEPS:
            said = f"more than {_MAX_STEPS} targets, those of the chains in it included"
            self._say(said, "chains", name, key=True)
            count = 1
        if height > _MAX_NESTING:
            said = f"more than {_MAX_NESTING} chains lead from one to the next"
            self._say(said, "chains", name, key=True)
            height = 0
        return count, height

    def _onward(self, name: str) -> Iterator[tuple[Path, bool, str]]:
        for index, step in enumerate(self._document.chains[name].try_):
            path: Path = ("chains", name, "try", index)
            if isinstance(step, Group):
                for member in step.weights:
                    yield (*path, "one_of"), False, member
            else:
                yield path, False, step
        for cause, onward in self._document.chains[name].on.items():
            yield ("chains", name, "on", cause.value), False, onward

    def _check_callers(self) -> None:
        tiers = self._tree.names("tiers")
        for name, tier in self._document.tiers.items():
            self._check_burst(tier.limits, "tiers", name, "limits")
            self._check_share(tier.per_session.limits, tier.limits, "tiers", name, "per_session")
            self._check_budgets(tier.budgets, "tiers", name)
            self._check_budgets(tier.per_session.budgets, "tiers", name, "per_session")
            part = tier.per_session.budgets
            self._check_part(part, tier.budgets, _OF_ALL, "tiers", name, "per_session")
        for name, team in self._document.teams.items():
            if team.tier is not None and team.tier not in tiers:
                self._say(no_such("tier", team.tier, tiers), "teams", name, "tier")
            self._check_callable(team.chains, "teams", name, "chains")
        keys = self._document.keys or []
        self._check_unique([key.name for key in keys], "keys")
        digests: dict[bytes, int] = {}
        for index, key in enumerate(keys):
            if key.hash in digests:
                first = self._document.keys or []
                said = f"the same key as {first[digests[key.hash]].name}"
                self._say(said, "keys", index, "hash")
            digests.setdefault(key.hash, index)
            self._check_key(key, index)

    def _check_callable(self, chains: list[str] | None, *path: str | int) -> None:
        known = [*self._chain_names, *(n for n in self._owners if n not in self._chain_names)]
        for index, name in enumerate(chains or ()):
            if name not in known:
                self._say(no_such("chain", name, known), *path, index)

    def _check_key(self, key: Key, index: int) -> None:
        tiers, teams = self._tree.names("tiers"), self._tree.names("teams")
        path = ("keys", index)
        if key.tier is not None and key.tier not in tiers:
            self._say(no_such("tier", key.tier, tiers), *path, "tier")
        if key.team is not None and key.team not in teams:
            self._say(no_such("team", key.team, teams), *path, "team")
        self._check_callable(key.chains, *path, "chains")
        team = self._document.teams.get(key.team or "")
        if team is not None and team.chains is not None:
            theirs = {self._owners.get(name, name) for name in team.chains}
            for number, name in enumerate(key.chains or ()):
                if self._owners.get(name, name) not in theirs and name in self._owners:
                    said = f"a key only narrows; its team may call: {', '.join(team.chains)}"
                    self._say(said, *path, "chains", number)
        tier = self._tier_of(key)
        wide = self._document.tiers[tier].limits if tier else CallerLimits()
        for kind in (*KINDS, "burst"):
            own, outer = getattr(key.limits, kind), getattr(wide, kind)
            if own is not None and outer is not None and own > outer:
                said = f"a key only narrows; its tier has {outer}"
                self._say(said, *path, "limits", kind)
        if key.limits.rpm is None and wide.rpm is None:
            self._check_burst(key.limits, *path, "limits")
        narrow = wide.model_copy(update=_said(key.limits, *KINDS))
        self._check_share(key.per_user.limits, narrow, *path, "per_user")
        self._check_money(key, self._document.tiers[tier].budgets if tier else [], *path)

    def _check_money(self, key: Key, of_tier: list[BudgetSection], *path: str | int) -> None:
        self._check_budgets(key.budgets, *path)
        self._check_budgets(key.per_user.budgets, *path, "per_user")
        said = "a key only narrows; its tier has ${} per {}"
        self._check_part(key.budgets, of_tier, said, *path)
        for index, own in enumerate(key.budgets):
            outer = next((one for one in of_tier if one.per == own.per), None)
            if outer is not None and outer.hard and not own.hard:
                said = "a key only narrows; this budget of its tier is hard"
                self._say(said, *path, "budgets", index, "hard")
        whole = {one.per: one for one in [*of_tier, *key.budgets]}
        self._check_part(key.per_user.budgets, list(whole.values()), _OF_ALL, *path, "per_user")

    def _check_budgets(self, budgets: list[BudgetSection], *path: str | int) -> None:
        """One for each period."""
        seen: set[str] = set()
        for index, budget in enumerate(budgets):
            if budget.per in seen:
                said = f"two budgets per {budget.per}; keep one of them"
                self._say(said, *path, "budgets", index, "per")
            seen.add(budget.per)

    def _check_part(
        self,
        part: list[BudgetSection],
        whole: list[BudgetSection],
        said: str,
        *path: str | int,
    ) -> None:
        most = {one.per: one.usd for one in whole}
        for index, own in enumerate(part):
            if own.usd > (outer := most.get(own.per, own.usd)):
                told = said.format(Cost(outer).dollars(), own.per)
                self._say(told, *path, "budgets", index, "usd")

    def _check_share(self, part: CallerLimits, whole: CallerLimits, *path: str | int) -> None:
        """What each has lies within what all have."""
        self._check_burst(part, *path, "limits")
        for kind in KINDS:
            own, outer = getattr(part, kind), getattr(whole, kind)
            if own is not None and outer is not None and own > outer:
                self._say(f"no more than the {outer} of all together", *path, "limits", kind)

    def _tier_of(self, key: Key) -> str | None:
        """The tier that bounds a key: its own, else its team's."""
        team = self._document.teams.get(key.team or "")
        name = key.tier or (team.tier if team else None)
        return name if name in self._document.tiers else None

    def _check_prices(self) -> None:
        entries = self._document.prices.entries
        for name, entry in entries.items():
            if "/" not in name:
                self._say(no_model(name), "prices", name, key=True)
                continue
            provider = name.partition("/")[0]
            if provider not in self._provider_names:
                said = no_such("provider", provider, self._provider_names)
                self._say(said, "prices", name, key=True)
            if isinstance(entry, list):
                self._check_rows([row.from_ for row in entry], name)
            elif entry != "free":
                self._check_copy(name)

    def _check_rows(self, days: list[object], name: str) -> None:
        if not days and self._sound("prices", name):
            self._say("at least one row is expected", "prices", name)
        for index, first in enumerate(days):
            if first in days[:index]:
                said = "two rows begin on the same day"
                self._say(said, "prices", name, index)

    def _check_copy(self, name: str) -> None:
        entries, seen, here = self._document.prices.entries, [name], name
        while isinstance(entry := entries.get(here), str) and entry != "free":
            if entry in seen:
                if name == entry:  # told once for each name on the circle, not for those before it
                    self._say("copies itself in a circle", "prices", name)
                return
            seen.append(entry)
            here = entry

    def _check_issuers(self) -> None:
        if self._tree.at(("auth", "jwt")) == []:
            self._say("at least one issuer is expected", "auth", "jwt")
        seen: dict[str, int] = {}
        for index, issuer in enumerate(self._document.auth.jwt):
            path = ("auth", "jwt", index)
            if issuer.issuer in seen:
                first = self._tree.original(("auth", "jwt", seen[issuer.issuer], "issuer"))
                line = self._tree.mistake(first, "").line
                self._say(f"this issuer stands twice (first on line {line})", *path, "issuer")
            seen.setdefault(issuer.issuer, index)
            self._check_issuer(issuer, *path)

    def _check_issuer(self, issuer: JwtIssuer, *path: str | int) -> None:
        tiers, teams = self._tree.names("tiers"), self._tree.names("teams")
        if issuer.team is not None and issuer.team not in teams:
            self._say(no_such("team", issuer.team, teams), *path, "team")
        if issuer.tier is not None and issuer.tier not in tiers:
            self._say(no_such("tier", issuer.tier, tiers), *path, "tier")
        if not issuer.algorithms and self._sound(*self._tree.original((*path, "algorithms"))):
            self._say("at least one algorithm is expected: [RS256]", *path, "algorithms")
        if issuer.roles is not None and issuer.claims.role is None:
            said = "which claim holds them is not said; add claims: {role: …}"
            self._say(said, *path, "roles", key=True)
        parts = urlsplit(issuer.jwks)
        if parts.scheme == "http" and not issuer.allow_http:
            said = (
                "over http anybody in between can put in keys of his own; use https, or add"
                " allow_http: true"
            )
            self._say(said, *path, "jwks")
        if _private(parts.hostname or "") and not issuer.allow_private:
            self._say(_PRIVATE, *path, "jwks")

    # What it means

    def snapshot(self, config: str) -> Snapshot:
        """The file's meaning; `config` is its name, 12 hex digits."""
        document = self._document
        for name in document.targets:
            self._targets_of(name)
        chains = {name: self._chain(name) for name in document.chains}
        public = {name: chains[owner] for name, owner in self._owners.items()}
        return Snapshot(
            config=config,
            chains=public,
            direct=self._direct(),
            targets={target.id: target for made in self._built.values() for target in made},
            keys=tuple(self._declared(key) for key in document.keys or ()),
            tiers={name: self._tier_grant(name) for name in document.tiers},
            teams={name: self._team_grant(name) for name in document.teams},
            issuers=tuple(_issuer(issuer) for issuer in document.auth.jwt),
            keyless=document.keys is None and not document.auth.jwt,
            server=self._server(),
            log_format=document.observe.logs.format,
            public_metrics=document.observe.metrics.public,
            alerts=self._alerts(),
            source=self._tree.name,
        )

    def _alerts(self) -> Alerts:
        said = self._document.observe.alerts
        rule = SpendRule(Fraction(repr(said.spend.factor)), said.spend.floor_usd)
        return Alerts(rule, Webhook(said.webhook, said.allow_private) if said.webhook else None)

    def _server(self) -> ServerSettings:
        server = self._document.server
        return ServerSettings(
            host=server.listen.host,
            port=server.listen.port,
            admin_host=server.admin.host,
            admin_port=server.admin.port,
            workers=server.workers,
            admin_keys=server.admin_keys,
            max_body=server.max_body,
            max_in_flight=server.max_in_flight,
            queue_length=server.queue.length,
            queue_bytes=server.queue.bytes,
            lame_duck=server.lame_duck,
            drain=server.drain,
            lane=server.lane == "on",
            state_dir=self._document.state.dir,
            redis=None if (url := self._document.state.redis) is None else url.secret,
            when_lost=self._document.state.when_lost,
        )

    def _merged(self, target: TargetSection) -> TargetSection:
        """With what it is `like` below it: maps merged one level, the rest replaced."""
        base = self._document.targets.get(target.like or "")
        if base is None:
            return target
        changed: dict[str, object] = {}
        for name in target.model_fields_set:
            own, below = getattr(target, name), getattr(base, name)
            if isinstance(own, Section) and isinstance(below, Section):
                own = below.model_copy(
                    update={field: getattr(own, field) for field in own.model_fields_set}
                )
            changed[name] = own
        return base.model_copy(update=changed)

    def _section(self, name: str) -> tuple[TargetSection, str, str]:
        """What is said of a target, its provider, and its model as the provider calls it."""
        section = self._document.targets.get(name)
        section = self._merged(section) if section else TargetSection(model=None)
        provider, _, model = (section.model or name).partition("/")
        return section, provider, model

    def _targets_of(self, name: str) -> tuple[Target, ...]:
        """A Target for each key of the provider of a declared or implicit target."""
        if name not in self._built:
            section, provider_name, model = self._section(name)
            provider = self._document.providers[provider_name]
            base_url = "" if provider.kind == "sim" else provider.base_url or OPENAI
            rows, context, max_output = self._priced(provider_name, model)
            keys = [(key.name, key.secret.secret, key.weight) for key in provider.keys or ()]
            if not keys:
                keys = [("main", provider.key.secret if provider.key else NO_SECRET, 1)]
            self._built[name] = tuple(
                Target(
                    id=f"{name}#{key}" if len(keys) > 1 else name,
                    name=name,
                    provider=provider_name,
                    kind=provider.kind,
                    model=model,
                    base_url=base_url,
                    key=key,
                    secret=secret,
                    weight=weight,
                    accounts=(
                        *_upstream("provider", provider_name, key, provider.limits),
                        *_upstream("target", name, key, section.limits),
                    ),
                    prices=rows,
                    allow_unpriced=self._document.prices.unpriced == "allow",
                    context=section.context or context,
                    max_output=section.max_output or max_output,
                    can=None if section.can is None else frozenset(section.can),
                    params=_params(section),
                    breaker=_breaker(self._document.defaults.breaker),
                    allow_private=provider.allow_private,
                )
                for key, secret, weight in keys
            )
        return self._built[name]

    def _priced(
        self, provider: str, model: str
    ) -> tuple[tuple[Price, ...], int | None, int | None]:
        """Rows, context window and longest answer of a model, from the file or the catalogue."""
        name, seen = f"{provider}/{model}", set[str]()
        entries = self._document.prices.entries
        while isinstance(entry := entries.get(name), str) and entry != "free" and name not in seen:
            seen.add(name)
            name = entry
        if isinstance(entry, list):
            return prices.stated(name, entry), None, None
        if entry == "free":
            return (prices.FREE,), None, None
        source, _, model = name.partition("/")
        section = self._document.providers.get(source)
        if section is not None and section.kind == "sim":
            return (prices.SIMULATED,), None, None
        found = (
            prices.known(source, "", model)
            if section is None
            else prices.known(None, section.base_url or OPENAI, model)
        )
        return found.prices, found.context, found.max_output

    def _leaf(self, name: str, clocks: Timeouts) -> Leaf:
        section, _, _ = self._section(name)
        return Leaf(name, self._targets_of(name), _clocks(clocks, section))

    def _steps(self, chain: str, outer: Timeouts) -> tuple[Step, ...]:
        """A chain's steps, nested chains inlined; its own clocks go over those it stands in."""
        section = self._document.chains[chain]
        clocks = _clocks(outer, section)
        steps: list[Step] = []
        for step in section.try_:
            if isinstance(step, Group):
                members = tuple(
                    (weight, self._inlined(member, clocks))
                    for member, weight in step.weights.items()
                )
                steps.append(OneOf(members))
            else:
                steps.extend(self._inlined(step, clocks))
        return tuple(steps)

    def _inlined(self, name: str, clocks: Timeouts) -> tuple[Step, ...]:
        if name not in self._document.targets and name in self._owners:
            return self._steps(self._owners[name], clocks)
        return (self._leaf(name, clocks),)

    def _chain(self, name: str) -> Chain:
        if name not in self._chains:
            section = self._document.chains[name]
            made = self._plain_chain(name, self._steps(name, self._default_clocks()), section)
            self._chains[name] = replace(
                made,
                on={cause: self._way(onward) for cause, onward in section.on.items()},
                max_cost=section.max_cost_usd,
                cache=_cache(section.cache),
            )
        return self._chains[name]

    def _way(self, onward: str) -> "Literal['next', 'stop'] | Chain":
        if onward == "next":
            return "next"
        if onward == "stop":
            return "stop"
        return self._chain(self._owners[onward])

    def _plain_chain(
        self, name: str, steps: tuple[Step, ...], section: ChainClocks | None = None
    ) -> Chain:
        """With the clocks and retries of `defaults`, and the chain's own over them."""
        said = [self._document.defaults, *([section] if section else [])]
        chain = Chain(name, steps)
        retry = chain.retry
        for layer in said:
            chain = replace(chain, **_said(layer, "deadline", "keepalive", "midstream"))
            retry = _retry(retry, layer.retry)
        return replace(chain, retry=retry)

    def _default_clocks(self) -> Timeouts:
        return _clocks(Timeouts(), self._document.defaults)

    def _direct(self) -> Mapping[str, Chain]:
        """A chain of one for each target, by its name and by provider/model (the first of them)."""
        direct: dict[str, Chain] = {}
        for name in self._built:
            leaf = self._leaf(name, self._default_clocks())
            direct[name] = self._plain_chain(name, (leaf,))
        for name, made in self._built.items():
            direct.setdefault(f"{made[0].provider}/{made[0].model}", direct[name])
        return direct

    # Callers

    def _allowed(self, chains: list[str] | None) -> tuple[str, ...] | None:
        """Chains by their own names, in order of the file."""
        if chains is None:
            return None
        wanted = {self._owners[name] for name in chains}
        return tuple(name for name in self._document.chains if name in wanted)

    def _template(self, tier: str | None) -> Principal:
        if tier is None:
            return Principal("")
        section = self._document.tiers[tier]
        return Principal(
            "",
            tier=tier,
            rights=frozenset(section.may),
            default_max_tokens=section.default_max_tokens,
            priority=section.priority,
            wait=section.wait,
            parks=section.parks,
            sub_limits=_sub_limits(
                SubLimits(
                    per_session=_rows(section.per_session.limits),
                    session_budgets=_budgets(section.per_session.budgets),
                )
            ),
        )

    def _tier_grant(self, tier: str) -> Grant:
        section = self._document.tiers[tier]
        return Grant(self._template(tier), _rows(section.limits), _budgets(section.budgets))

    def _team_grant(self, name: str) -> Grant:
        team = self._document.teams[name]
        tier = self._document.tiers[team.tier] if team.tier else Tier()
        return Grant(
            replace(
                self._template(team.tier),
                team=name,
                chains=self._allowed(team.chains),
                accounts=accounts("team", name, _rows(tier.limits)),
                budgets=allowances("team", name, _budgets(tier.budgets)),
            )
        )

    def _declared(self, key: Key) -> DeclaredKey:
        team = self._team_grant(key.team).principal if key.team else Principal("")
        own = self._template(key.tier) if key.tier else team
        tier = self._document.tiers[key.tier] if key.tier else Tier()
        limits = tier.limits.model_copy(update=_said(key.limits, *KINDS, "burst"))
        if key.limits.burst is not None and limits.rpm is None:
            # the team's rate, spread more evenly for this key
            bound = self._document.tiers[self._tier_of(key) or ""].limits
            limits = limits.model_copy(update={"rpm": bound.rpm})
        principal = replace(
            own,
            key_id=key.name,
            team=key.team,
            role=key.role,
            chains=team.chains if key.chains is None else self._allowed(key.chains),
            accounts=(*accounts("key", key.name, _rows(limits)), *team.accounts),
            sub_limits=_sub_limits(
                replace(
                    own.sub_limits or SubLimits(),
                    per_user=_rows(key.per_user.limits),
                    user_budgets=_budgets(key.per_user.budgets),
                )
            ),
            budgets=(
                *allowances(
                    "key", key.name, narrowed(_budgets(tier.budgets), _budgets(key.budgets))
                ),
                *team.budgets,
            ),
        )
        expires = prices.midnight(key.expires) + _DAY if key.expires else None
        return DeclaredKey(key.name, key.hash, principal, expires)


def _cache(section: CacheSection | None) -> Cache | None:
    if section is None:
        return None
    return Cache(section.exact or 0.0, section.scope, section.join)


def accounts(scope: AccountScope, name: str, limits: Limits) -> tuple[Account, ...]:
    """An account for each row, `team:search:rpm`."""
    return tuple(
        Account(f"{scope}:{name}:{kind}", scope, name, kind, limit, burst)
        for kind, limit, burst in limits
    )


def _rows(limits: CallerLimits) -> Limits:
    found = ((kind, getattr(limits, kind)) for kind in KINDS)
    return tuple(
        (kind, limit, limits.burst if kind == "rpm" else None)
        for kind, limit in found
        if limit is not None
    )


def _upstream(
    scope: AccountScope, name: str, key: str, limits: UpstreamLimits
) -> tuple[Account, ...]:
    return accounts(scope, f"{name}#{key}" if limits.per_key else name, _rows(limits))


def _said(section: Section, *fields: str) -> dict[str, Any]:
    """Those of `fields` that are not None."""
    found = {field: getattr(section, field) for field in fields}
    return {field: value for field, value in found.items() if value is not None}


def _clocks(outer: Timeouts, section: ClockSection) -> Timeouts:
    return replace(outer, **_said(section, *ClockSection.model_fields))


def _retry(outer: Retry, section: RetrySection | None) -> Retry:
    return replace(outer, **_said(section, *RetrySection.model_fields)) if section else outer


def _breaker(section: BreakerSection) -> BreakerPolicy:
    return BreakerPolicy(**{name: getattr(section, name) for name in BreakerSection.model_fields})


def _params(section: TargetSection) -> Params:
    said = section.params
    return Params(
        default={name: json.raw(value) for name, value in said.default.items()},
        cap=dict(said.cap),
        set={name: json.raw(value) for name, value in said.set_.items()},
        drop=frozenset(said.drop),
    )


def _sub_limits(limits: SubLimits) -> SubLimits | None:
    return None if limits == SubLimits() else limits


def _budgets(said: list[BudgetSection]) -> tuple[Budget, ...]:
    return tuple(Budget(one.per, one.usd, one.hard) for one in said)


def _issuer(said: JwtIssuer) -> Issuer:
    claims = said.claims
    return Issuer(
        issuer=said.issuer,
        audience=said.audience,
        jwks=said.jwks,
        algorithms=frozenset(said.algorithms),
        user=claims.user,
        team_claim=claims.team,
        tier_claim=claims.tier,
        role_claim=claims.role,
        roles=_ROLES if said.roles is None else said.roles,
        team=said.team,
        tier=said.tier,
        allow_private=said.allow_private,
    )


def _private(host: str) -> bool:
    """Whether a host says by itself that it is not a public one."""
    if host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_global
    except ValueError:
        return False
