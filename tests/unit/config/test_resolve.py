"""Names become targets, chains, accounts and principals."""

from datetime import UTC, datetime

from gateway.config.load import load_text
from gateway.core.budget import Budget
from gateway.core.principal import SubLimits
from gateway.core.snapshot import Snapshot
from gateway.core.target import Account, Cache, Cause, Leaf, OneOf
from gateway.wire import json

HASH = "sha256:" + "ab" * 32
SIM = "providers: {s: {kind: sim}}\n"


def snapshot(text: str, **env: str) -> Snapshot:
    return load_text(text, "f", env).snapshot


def test_workers_are_a_number_or_auto() -> None:
    chains = "chains: {c: [s/m]}\n"
    assert snapshot(SIM + chains).server.workers == 1
    assert snapshot(SIM + chains + "server: {workers: 16}\n").server.workers == 16
    assert snapshot(SIM + chains + "server: {workers: auto}\n").server.workers == "auto"


def test_provider_keys_make_targets_of_one_name() -> None:
    found = snapshot(
        """
providers:
  p:
    kind: openai
    keys: [{name: main, secret: "${A}", weight: 3}, {name: spare, secret: "${B:-b}"}]
    limits: {concurrency: 400}
targets:
  gpt: {model: p/m-1, limits: {rpm: 60, burst: 5, per_key: true}}
chains: {c: [gpt]}
prices: {p/m-1: free}
""",
        A="a",
    )
    assert list(found.targets) == ["gpt#main", "gpt#spare"]
    main, spare = found.targets.values()
    assert (main.name, main.model, main.key, main.weight) == ("gpt", "m-1", "main", 3)
    assert (main.secret.reveal(), spare.secret.reveal()) == ("a", "b")
    assert main.base_url == "https://api.openai.com/v1"
    assert spare.accounts == (
        Account("provider:p:concurrency", "provider", "p", "concurrency", 400),
        Account("target:gpt#spare:rpm", "target", "gpt#spare", "rpm", 60, 5),
    )
    assert spare.accounts[1].limit == 60
    assert found.chains["c"].leaves()[0].targets == (main, spare)


def test_clocks_come_from_defaults_then_chain_then_target() -> None:
    found = snapshot(
        SIM
        + """
defaults: {first_token: 9s, idle: 7s, deadline: 5m, retry: {attempts: 6, backoff: 1s}}
targets: {slow: {model: s/m, first_token: 30s}}
chains:
  outer: {try: [slow, inner], first_token: 3s, deadline: 1m, retry: {backoff: 2s}}
  inner: {try: [s/n], idle: 1s}
"""
    )
    slow, inner = found.chains["outer"].leaves()
    assert (slow.timeouts.first_token, slow.timeouts.idle) == (30, 7)
    assert (inner.timeouts.first_token, inner.timeouts.idle) == (3, 1)
    assert found.chains["inner"].leaves()[0].timeouts.first_token == 9
    outer = found.chains["outer"]
    assert (outer.deadline, outer.retry.attempts, outer.retry.backoff) == (60, 6, 2)
    assert found.chains["inner"].deadline == 300
    assert found.direct["slow"].deadline == 300
    assert found.direct["s/m"] is found.direct["slow"]


def test_steps_groups_and_nested_chains() -> None:
    found = snapshot(
        SIM
        + """
chains:
  a:
    try: [{one_of: {s/x: 70, b: 30}}, {one_of: [s/y, s/z]}, b]
    also: [gpt-4o]
    on: {context_length: b, content_policy: next, auth: stop}
    max_cost_usd: 0.02
  b: [s/x, s/w]
"""
    )
    chain = found.chains["a"]
    assert found.chains["gpt-4o"] is chain
    group, even, *rest = chain.steps
    assert isinstance(group, OneOf)
    assert isinstance(even, OneOf)
    assert [(weight, [s.name for s in steps]) for weight, steps in group.members] == [
        (70, ["s/x"]),
        (30, ["s/x", "s/w"]),
    ]
    assert [weight for weight, _ in even.members] == [1, 1]
    assert [step.name for step in rest if isinstance(step, Leaf)] == ["s/x", "s/w"]
    assert chain.on == {
        Cause.CONTEXT_LENGTH: found.chains["b"],
        Cause.CONTENT_POLICY: "next",
        Cause.AUTH: "stop",
    }
    assert chain.max_cost == 20_000_000


def test_like_copies_and_own_keys_override_one_level_deep() -> None:
    found = snapshot(
        SIM
        + """
targets:
  a:
    model: s/m
    limits: {rpm: 10, tpm: 20}
    context: 5
    can: [tools, vision]
    params: {default: {x: 1}, set: {temperature: 0.7, user: "1.10", stop: [a, null]}}
  b: {like: a, model: s/n, limits: {rpm: 3}, can: [tools], params: {default: {y: 2}}}
chains: {c: [a, b]}
"""
    )
    b = found.targets["b"]
    assert [(account.kind, account.limit) for account in b.accounts] == [("rpm", 3), ("tpm", 20)]
    assert (b.model, b.context, b.can) == ("n", 5, frozenset({"tools"}))
    assert {name: json.loads(value) for name, value in b.params.default.items()} == {"y": 2}
    assert {name: json.loads(value) for name, value in b.params.set.items()} == {
        "temperature": 0.7,
        "user": "1.10",
        "stop": ["a", None],
    }


def test_keys_have_their_own_accounts_and_their_teams() -> None:
    found = snapshot(
        SIM
        + f"""
chains: {{c: {{try: [s/m], also: [d]}}, e: [s/m]}}
tiers:
  free: {{limits: {{rpm: 20, burst: 5}}, may: [skip], default_max_tokens: 9, priority: low}}
  team: {{limits: {{tpm: 1_000}}, when_full: {{wait: 5s}}}}
teams: {{search: {{tier: team, chains: [e, d]}}}}
keys:
  - {{name: k, team: search, tier: free, limits: {{rpm: 7}}, expires: 2026-12-31, hash: "{HASH}"}}
"""
    )
    (key,) = found.keys
    assert not found.keyless
    assert key.digest == b"\xab" * 32
    assert key.expires == datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    caller = key.principal
    assert [(a.id, a.limit, a.burst) for a in caller.accounts] == [
        ("key:k:rpm", 7, 5),
        ("team:search:tpm", 1000, None),
    ]
    assert caller.chains == ("c", "e")
    assert (caller.key_id, caller.team, caller.role) == ("k", "search", "client")
    assert (caller.priority, caller.wait, caller.default_max_tokens) == ("low", 0, 9)
    assert caller.rights == {"skip"}
    assert found.tiers["free"].limits == (("rpm", 20, 5),)
    assert found.teams["search"].principal.wait == 5
    assert found.teams["search"].principal.accounts[0].id == "team:search:tpm"


def test_keyless_and_empty_keys_differ() -> None:
    assert snapshot(SIM + "chains: {c: [s/m]}\n").keyless
    open_wide = snapshot(SIM + "chains: {c: [s/m]}\nkeys: []\nserver: {listen: '[::]:80'}\n")
    assert not open_wide.keyless
    assert (open_wide.server.host, open_wide.server.port) == ("::", 80)


def test_references_are_read_once(tmp_path) -> None:
    secret = tmp_path / "key"
    secret.write_text("from-file\n")
    found = snapshot(
        f"""
providers:
  a: {{kind: openai, key: "${{file:{secret}}}"}}
  b: {{kind: openai, key: "${{ONE}}", base_url: "https://${{HOST:-example.com}}/v1/"}}
chains: {{c: [a/m, b/m]}}
prices: {{a/m: free, b/m: free}}
""",
        ONE="${TWO}",
        TWO="never",
    )
    a, b = found.targets.values()
    assert a.secret.reveal() == "from-file"
    assert b.secret.reveal() == "${TWO}"
    assert b.base_url == "https://example.com/v1"


def test_an_empty_redis_url_means_one_machine() -> None:
    text = 'providers: {s: {kind: sim}}\nchains: {c: [s/m]}\nstate: {redis: "${REDIS_URL:-}"}\n'
    assert load_text(text, "f", {}).snapshot.server.redis is None
    found = load_text(text, "f", {"REDIS_URL": "redis://:secret@h:6379"}).snapshot.server.redis
    assert found is not None
    assert found.reveal() == "redis://:secret@h:6379"
    assert "secret" not in repr(found)


def test_a_cache_is_what_its_section_says() -> None:
    found = snapshot(
        SIM
        + """
chains:
  plain: [s/m]
  short: {try: [s/m], cache: {exact: 5m}}
  wide: {try: [s/m], cache: {exact: 1h, scope: team, join: false}}
  joined: {try: [s/m], cache: {scope: key}}
"""
    )
    assert {name: chain.cache for name, chain in found.chains.items()} == {
        "plain": None,
        "short": Cache(300.0, "user", join=True),
        "wide": Cache(3600.0, "team", join=False),
        "joined": Cache(0.0, "key", join=True),
    }


def test_budgets_are_of_the_key_its_team_and_each_of_its_users_and_sessions() -> None:
    found = snapshot(
        SIM
        + """
chains: {c: [s/m]}
tiers:
  own:
    budgets: [{usd: 0.5, per: day}, {usd: 0.000000001, per: request, hard: false}]
    per_session: {budgets: [{usd: 2, per: total}]}
  ours: {budgets: [{usd: 9_000_000, per: month}]}
teams: {us: {tier: ours}}
keys:
  - name: k
    team: us
    tier: own
    hash: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    budgets: [{usd: 0.25, per: day}, {usd: 0.1, per: hour, hard: false}]
    per_user: {budgets: [{usd: 0.05, per: day}]}
"""
    )
    principal = found.keys[0].principal
    assert [(one.owner, one.budget) for one in principal.budgets] == [
        ("key:k", Budget("day", 250_000_000)),
        ("key:k", Budget("request", 1, hard=False)),
        ("key:k", Budget("hour", 100_000_000, hard=False)),
        ("team:us", Budget("month", 9_000_000 * 10**9)),
    ]
    assert principal.budgeted
    assert principal.sub_limits == SubLimits(
        user_budgets=(Budget("day", 50_000_000),), session_budgets=(Budget("total", 2 * 10**9),)
    )
    assert found.tiers["own"].budgets == (
        Budget("day", 500_000_000),
        Budget("request", 1, hard=False),
    )
