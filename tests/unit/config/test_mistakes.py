"""Wrong files and exactly what is said about them; a wrong value itself is never said."""

import re

import pytest

from gateway.config.load import load_text
from gateway.config.mistakes import ConfigError

CANARY = "s3cr3t-canary-value"
HASH = "sha256:" + "0" * 64
HEAD = """\
providers:
  p: {kind: openai, key: "${KEY}"}
  sim: {kind: sim}
"""
CHAINS = "chains: {c: [sim/m]}\n"
BASE = HEAD + CHAINS  # lines 1-4; what a case adds begins on line 5
ENV = {"KEY": CANARY, "EMPTY": ""}


def said(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(text, "f", ENV)
    lines = str(caught.value).splitlines()
    count = len(lines) - 1
    assert lines[-1] == f"{count} error{'s' * (count != 1)}"
    return [re.sub(r"^(\S+) +", r"\1 ", line) for line in lines[:-1]]


DURATION_UNIT = "a duration needs a unit: 60s, 250ms, 2m"
BUDGET = "a budget needs dollars and a period: {usd: 20, per: day}"
NO_DOLLARS = "a budget must be more than 0 dollars; to let nobody in, revoke the key"
NOT_DURATION = "not a duration; write 250ms, 2s, 1m30s, 1h or 30d"
NO_VARIABLES = "${…} is read only in secrets, URLs, addresses and paths"
ADDRESS = "an address is written host:port: 127.0.0.1:8080, [::1]:8080"
REDIS = "not a Redis URL; write redis://host:6379, or rediss:// for TLS"
KEYS_EXPECTED = "keys are expected here (key: value)"
REFERENCE = "write ${NAME}, ${NAME:-default} or ${file:/path}"

CASES = {
    # the YAML itself
    "empty": ("", ["f:1:1 the file is empty; it needs at least providers: and chains:"]),
    "only a comment": (
        "# nothing\n",
        ["f:1:1 the file is empty; it needs at least providers: and chains:"],
    ),
    "a list": (
        "- a\n",
        ["f:1:1 the file holds no keys (key: value); it needs at least providers: and chains:"],
    ),
    "duplicate": (
        BASE + "chains: {d: [sim/m]}\n",
        ["f:5:1 chains — this key stands twice (first on line 4)"],
    ),
    "duplicate below": (
        HEAD + "  p: {kind: sim}\n" + CHAINS,
        ["f:4:3 providers.p — this key stands twice (first on line 2)"],
    ),
    "anchor": (
        HEAD + "chains: {c: &x [sim/m]}\n",
        ["f:4:13 chains.c — anchors (&) are not read; write the value out, or use like:"],
    ),
    "alias": (
        HEAD + "chains: {c: &x [sim/m], d: *x}\n",
        [
            "f:4:13 chains.c — anchors (&) are not read; write the value out, or use like:",
            "f:4:28 chains.d — aliases (*) are not read; write the value out, or use like:",
            "f:4:28 chains.d — here is nothing; fill it in or remove the key",
        ],
    ),
    "merge key": (
        HEAD + "targets: {t: {model: sim/m, <<: {context: 1}}}\n" + CHAINS,
        ["f:4:29 targets.t — merge keys (<<) are not read; use like:"],
    ),
    "tag": (
        HEAD + "chains: {c: [!!str sim/m]}\n",
        ["f:4:14 chains.c[0] — tags (!) are not read; quote the text"],
    ),
    "second document": (BASE + "---\na: 1\n", ["f:5:1 a second document; a file holds one"]),
    "directive": ("%YAML 1.1\n---\n" + BASE, ["f:1:1 directives (%) are not read"]),
    "tab": (BASE + "state:\t{dir: x}\n", ["f:5:7 a tab; use spaces"]),
    "deep": (
        BASE + "x: " + "[" * 40 + "]" * 40 + "\n",
        ["f:5:35 x[0][0][0] — nested deeper than 32"],
    ),
    "open quote": (
        BASE + 'state: {dir: "x\n',
        ["f:6:1 not valid YAML: a quote that is never closed"],
    ),
    "colon": (
        BASE + f"state: dir: {CANARY}\n",
        ["f:5:11 not valid YAML: a ': ' where no key can stand; quote the text or indent"],
    ),
    "bracket": (
        HEAD + "chains: {c: [sim/m}\n",
        ["f:4:19 not valid YAML: a comma or a closing bracket is missing"],
    ),
    "control character": (BASE + "a: \x07\n", ["f:5:4 a character YAML forbids"]),
    "no workers": (
        BASE + "server: {workers: 0}\n",
        ["f:5:19 server.workers — must be from 1 to 256"],
    ),
    "some workers": (
        BASE + "server: {workers: some}\n",
        ["f:5:19 server.workers — a whole number or auto is expected"],
    ),
    "redis of another kind": (
        BASE + f"state: {{redis: 'http://:{CANARY}@h:6379'}}\n",
        [f"f:5:16 state.redis — {REDIS}"],
    ),
    "redis without a host": (
        BASE + "state: {redis: redis:///0}\n",
        [f"f:5:16 state.redis — {REDIS}"],
    ),
    "redis with a port of words": (
        BASE + "state: {redis: redis://h:six}\n",
        [f"f:5:16 state.redis — {REDIS}"],
    ),
    "redis with a path": (
        BASE + "state: {redis: redis://h/zero}\n",
        [
            (
                "f:5:16 state.redis — a Redis URL ends with the number of a database, or nothing: "
                "redis://host/0"
            )
        ],
    ),
    "redis with options": (
        BASE + "state: {redis: 'redis://h/0?ssl_cert_reqs=none'}\n",
        [
            (
                "f:5:16 state.redis — a Redis URL has no options after ? or #; those of the "
                "connection are fixed"
            )
        ],
    ),
    "redis that is nothing": (
        BASE + "state: {redis: ''}\n",
        [f"f:5:16 state.redis — {REDIS}"],
    ),
    "when lost": (
        BASE + "state: {when_lost: shrug}\n",
        ["f:5:20 state.when_lost — can be: shrink, reject"],
    ),
    "null section": (
        BASE + "server:\n",
        ["f:5:8 server — here is nothing; fill it in or remove the key"],
    ),
    # keys
    "unknown, near": (
        BASE + "stat: {dir: x}\n",
        ["f:5:1 stat — not a known key; did you mean state?"],
    ),
    "unknown, below": (
        HEAD + "chains:\n  c: {try: [sim/m], fist_token: 3s}\n",
        ["f:5:21 chains.c.fist_token — not a known key; did you mean first_token?"],
    ),
    "unknown in a union": (
        HEAD + "chains: {c: [{one_of: [sim/m], bye: weight}]}\n",
        ["f:4:32 chains.c[0].bye — not a known key; did you mean by?"],
    ),
    "not built yet": (BASE + "console: true\n", ["f:5:1 console — not a known key"]),
    "no issuer": (
        BASE + "auth: {jwt: []}\n",
        ["f:5:13 auth.jwt — at least one issuer is expected"],
    ),
    "issuers": (
        BASE
        + """teams: {search: {}}
auth:
  jwt:
    - {issuer: "https://a/", audience: g, jwks: "http://a/k", algorithms: [HS256, NONE, rs256]}
    - issuer: https://a/
      audience: ""
      jwks: https://10.0.0.1/keys?p=x
      algorithms: []
      team: serch
      tier: free
      roles: {ops: root}
    - {issuer: "a b", audience: g, jwks: "https://u:p@a/", algorithms: [ES256], claims: {team: ""}}
    - {audience: g, jwks: a, algorithms: [ES256], claims: {teams: t}}
""",
        [
            (
                "f:8:49 auth.jwt[0].jwks — over http anybody in between can put in keys of his own;"
                " use https, or add allow_http: true"
            ),
            (
                "f:8:76 auth.jwt[0].algorithms[0] — a shared secret lets whoever checks tokens also"
                " make them; use RS256 or ES256"
            ),
            (
                "f:8:83 auth.jwt[0].algorithms[1] — a token that nobody signed proves nothing; use"
                " RS256 or ES256"
            ),
            (
                "f:8:89 auth.jwt[0].algorithms[2] — must be one of RS256, RS384, RS512, PS256,"
                " PS384, PS512, ES256, ES384, ES512, EdDSA"
            ),
            "f:9:15 auth.jwt[1].issuer — this issuer stands twice (first on line 8)",
            "f:10:17 auth.jwt[1].audience — text is expected; here is nothing",
            (
                "f:11:13 auth.jwt[1].jwks — a private or loopback address; if that is meant, add"
                " allow_private: true"
            ),
            "f:12:19 auth.jwt[1].algorithms — at least one algorithm is expected: [RS256]",
            "f:13:13 auth.jwt[1].team — no such team; there are: search; did you mean search?",
            "f:14:13 auth.jwt[1].tier — no such tier; there are none",
            "f:15:7 auth.jwt[1].roles — which claim holds them is not said; add claims: {role: …}",
            "f:15:20 auth.jwt[1].roles.ops — can be: client, agent, metrics, admin",
            (
                "f:16:16 auth.jwt[2].issuer — the claim iss as the issuer writes it:"
                " https://login.example.com/"
            ),
            (
                "f:16:42 auth.jwt[2].jwks — public keys are fetched without credentials: a URL"
                " without @ and #"
            ),
            "f:16:96 auth.jwt[2].claims.team — text is expected; here is nothing",
            "f:17:7 auth.jwt[3].issuer — is missing",
            (
                "f:17:27 auth.jwt[3].jwks — not a URL; write"
                " https://login.example.com/.well-known/jwks.json"
            ),
            "f:17:60 auth.jwt[3].claims.teams — not a known key; did you mean team?",
        ],
    ),
    "shares": (
        BASE
        + """tiers: {free: {limits: {rpm: 20}, per_session: {limits: {rpm: 21, burst: 1}}}}
keys:
  - name: demo
    tier: free
    hash: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    limits: {rpm: 10}
    per_user: {limits: {rpm: 11, concurrency: 0}}
""",
        [
            "f:5:63 tiers.free.per_session.limits.rpm — no more than the 20 of all together",
            "f:11:30 keys[0].per_user.limits.rpm — no more than the 10 of all together",
            "f:11:47 keys[0].per_user.limits.concurrency — must be from 1 to 1000000",
        ],
    ),
    "missing": (HEAD, ["f:1:1 chains — is missing"]),
    "missing kind": (
        "providers: {p: {}}\nchains: {c: [p/m]}\n",
        ["f:1:16 providers.p.kind — is missing"],
    ),
    # leaves
    "bare duration": (
        BASE + "defaults: {deadline: 60}\n",
        [f"f:5:22 defaults.deadline — {DURATION_UNIT}"],
    ),
    "odd duration": (
        BASE + "defaults: {idle: 2 weeks}\n",
        [f"f:5:18 defaults.idle — {NOT_DURATION}"],
    ),
    "no time": (
        BASE + "defaults: {answer: 0s}\n",
        ["f:5:20 defaults.answer — must be longer than 0s"],
    ),
    "too long": (
        BASE + "defaults: {answer: 400d}\n",
        ["f:5:20 defaults.answer — longer than 366d"],
    ),
    "size": (
        BASE + "server: {max_body: 20}\n",
        ["f:5:20 server.max_body — a size needs a unit: 64KiB, 20MiB"],
    ),
    "share": (
        BASE + "defaults: {retry: {budget: 0.2}}\n",
        ["f:5:28 defaults.retry.budget — a share is expected, from 0% to 100%: 20%"],
    ),
    "quoted number": (
        BASE + 'server: {max_in_flight: "2000"}\n',
        ["f:5:25 server.max_in_flight — a whole number is expected, without quotes: 600, 4_000"],
    ),
    "float": (
        BASE + "server: {max_in_flight: 1e3}\n",
        ["f:5:25 server.max_in_flight — a whole number is expected, without quotes: 600, 4_000"],
    ),
    "out of range": (
        BASE + "defaults: {retry: {attempts: 0}}\n",
        ["f:5:30 defaults.retry.attempts — must be from 1 to 100"],
    ),
    "version": (BASE + "version: 2\n", ["f:5:10 version — must be from 1 to 1"]),
    "yes is text": (
        BASE + "observe: {metrics: {public: yes}}\n",
        ["f:5:29 observe.metrics.public — true or false is expected, without quotes"],
    ),
    "choice": (
        BASE + "observe: {logs: {format: jason}}\n",
        ["f:5:26 observe.logs.format — can be: json, text, auto, none; did you mean json?"],
    ),
    "splice is not built": (
        BASE + "defaults: {midstream: splice}\n",
        ["f:5:23 defaults.midstream — can only be error"],
    ),
    "kind": (
        f"providers: {{p: {{kind: {CANARY}}}}}\n" + CHAINS.replace("sim", "p"),
        ["f:1:23 providers.p.kind — can be: openai, sim"],
    ),
    "map for a leaf": (
        BASE + "defaults: {idle: {a: 1}}\n",
        ["f:5:18 defaults.idle — a duration is expected, not a map or list"],
    ),
    "leaf for a map": (BASE + f"server: {CANARY}\n", [f"f:5:9 server — {KEYS_EXPECTED}"]),
    "leaf for a list": (BASE + "keys: x\n", ["f:5:7 keys — a list is expected here: [a, b]"]),
    "name": (
        HEAD + "chains: {Big: [sim/m]}\n",
        [
            (
                "f:4:10 chains.Big — a name has a-z, 0-9, dot, dash or underscore "
                "and at most 64 characters"
            )
        ],
    ),
    "reserved": (
        HEAD + "chains: {stop: [sim/m]}\n",
        ["f:4:10 chains.stop — next and stop are words of on:, not names"],
    ),
    "model": (
        HEAD + "targets: {t: {model: gpt}}\n" + CHAINS,
        ["f:4:22 targets.t.model — a model is written provider/model: openai/gpt-5-mini"],
    ),
    "ability": (
        HEAD + "targets: {t: {model: sim/m, can: [tool]}}\n" + CHAINS,
        [
            (
                "f:4:35 targets.t.can[0] — can be: audio, files, json_schema, logprobs, n, "
                "parallel_tools, prefill, reasoning, tools, vision; did you mean tools?"
            )
        ],
    ),
    "our members": (
        HEAD + "targets: {t: {model: sim/m, params: {set: {stream: true}}}}\n" + CHAINS,
        [
            (
                "f:4:44 targets.t.params.set.stream — "
                "the gateway itself decides on model, messages and stream"
            )
        ],
    ),
    "json number": (
        HEAD + "targets: {t: {model: sim/m, params: {set: {seed: 9007199254740993}}}}\n" + CHAINS,
        [
            (
                "f:4:50 targets.t.params.set.seed — "
                "JSON readers disagree about numbers beyond 2^53; quote it"
            )
        ],
    ),
    # references to environment and files
    "variable not set": (
        BASE.replace("KEY", "NOPE"),
        ["f:2:26 providers.p.key — the environment variable NOPE is not set"],
    ),
    "variable empty": (
        BASE.replace("KEY", "EMPTY"),
        ["f:2:26 providers.p.key — the environment variable EMPTY is empty"],
    ),
    "no such file": (
        BASE.replace("${KEY}", "${file:/nope/nope}"),
        ["f:2:26 providers.p.key — the file /nope/nope cannot be read: No such file or directory"],
    ),
    "relative file": (
        BASE.replace("${KEY}", "${file:nope}"),
        ["f:2:26 providers.p.key — ${file:…} needs a whole path: ${file:/run/secrets/name}"],
    ),
    "not a reference": (
        BASE.replace("${KEY}", f"${{{CANARY}}}"),
        [f"f:2:26 providers.p.key — not a reference; {REFERENCE}"],
    ),
    "reference in a default": (
        BASE.replace("${KEY}", "${KEY:-${KEY}}"),
        [f"f:2:26 providers.p.key — ${{ without its }}; {REFERENCE}"],
    ),
    "variable elsewhere": (
        BASE + 'defaults: {deadline: "${KEY}"}\n',
        [f"f:5:22 defaults.deadline — {NO_VARIABLES}"],
    ),
    # server and providers
    "open without keys": (
        BASE + "server: {listen: 0.0.0.0:80}\n",
        [
            (
                "f:5:18 server.listen — without keys only a loopback address is served; listen on "
                '127.0.0.1:80, or add the line  keys: [{name: me, hash: "sha256:…"}]  '
                "(`gateway keys create` makes one)"
            )
        ],
    ),
    "address": (BASE + "server: {listen: 8080}\n", [f"f:5:18 server.listen — {ADDRESS}"]),
    "same address": (
        BASE + "server: {admin: 127.0.0.1:8080}\n",
        ["f:5:17 server.admin — must differ from server.listen"],
    ),
    "no key": (
        "providers: {p: {kind: openai}}\nchains: {c: [p/m]}\n",
        ['f:1:16 providers.p.key — is missing: key: "${OPENAI_API_KEY}"'],
    ),
    "key and keys": (
        (
            'providers: {p: {kind: openai, key: "${KEY}", keys: [{name: a, secret: "${KEY}"}]}}\n'
            "chains: {c: [p/m]}\n"
        ),
        ["f:1:46 providers.p.keys — key and keys: only one of them"],
    ),
    "http": (
        'providers: {p: {kind: openai, base_url: "http://example.com/v1"}}\nchains: {c: [p/m]}\n',
        [
            (
                "f:1:41 providers.p.base_url — http sends keys and prompts unencrypted; "
                "use https, or add allow_http: true"
            )
        ],
    ),
    "webhook": (
        (
            "providers: {p: {kind: sim}}\nchains: {c: [p/m]}\n"
            'observe: {alerts: {webhook: "http://10.0.0.7/s3cr3t?t=s3cr3t"}}\n'
        ),
        [
            (
                "f:3:29 observe.alerts.webhook — http sends who spends what unencrypted; use https,"
                " or add allow_http: true"
            ),
            (
                "f:3:29 observe.alerts.webhook — a private or loopback address; if that is meant,"
                " add allow_private: true"
            ),
        ],
    ),
    "webhook with a password": (
        (
            "providers: {p: {kind: sim}}\nchains: {c: [p/m]}\n"
            'observe: {alerts: {webhook: "https://me:s3cr3t@example.com/"}}\n'
        ),
        [
            (
                "f:3:29 observe.alerts.webhook — a webhook's URL holds no name and password;"
                " use one with a token in its path"
            )
        ],
    ),
    "private": (
        'providers: {p: {kind: openai, base_url: "https://10.0.0.7/v1"}}\nchains: {c: [p/m]}\n',
        [
            (
                "f:1:41 providers.p.base_url — a private or loopback address; "
                "if that is meant, add allow_private: true"
            )
        ],
    ),
    "credentials in a URL": (
        (
            f'providers: {{p: {{kind: openai, base_url: "https://u:{CANARY}@h/v1"}}}}\n'
            "chains: {c: [p/m]}\n"
        ),
        ["f:1:41 providers.p.base_url — a URL holds no credentials; use key:"],
    ),
    "query in a URL": (
        (
            f'providers: {{p: {{kind: openai, base_url: "https://h/v1?k={CANARY}"}}}}\n'
            "chains: {c: [p/m]}\n"
        ),
        ["f:1:41 providers.p.base_url — a base URL ends with its path, without ? and #"],
    ),
    "sim with a URL": (
        'providers: {p: {kind: sim, base_url: "https://h/v1"}}\nchains: {c: [p/m]}\n',
        ["f:1:38 providers.p.base_url — the simulator has no base_url; remove it"],
    ),
    "burst": (
        "providers: {p: {kind: sim, limits: {burst: 3}}}\nchains: {c: [p/m]}\n",
        ["f:1:44 providers.p.limits.burst — burst needs rpm beside it"],
    ),
    # names
    "no such provider": (
        HEAD + "chains: {c: [simm/m]}\n",
        ["f:4:14 chains.c[0] — no such provider; there are: p, sim; did you mean sim?"],
    ),
    "no such target": (
        HEAD + "targets: {gpt: {model: sim/m}}\nchains: {c: [gtp]}\n",
        ["f:5:14 chains.c[0] — no such target or chain; there are: gpt, c; did you mean gpt?"],
    ),
    "no such member": (
        HEAD + "chains: {c: [{one_of: {x: 1}}]}\n",
        ["f:4:24 chains.c[0].one_of.x — no such target or chain; there are: c"],
    ),
    "no step": (HEAD + "chains: {c: []}\n", ["f:4:13 chains.c — at least one step is expected"]),
    "circle": (
        HEAD + "chains: {a: [sim/m, b], b: [c], c: {try: [sim/n], on: {auth: a}}}\n",
        ["f:4:62 chains.c.on.auth — leads in a circle: a → b → c → a"],
    ),
    "target and chain": (
        HEAD + "targets: {c: {model: sim/m}}\n" + CHAINS,
        ["f:5:10 chains.c — this name is already that of a target (line 4)"],
    ),
    "also": (
        HEAD + "chains: {c: {try: [sim/m], also: [d]}, d: [sim/m]}\n",
        ["f:4:35 chains.c.also[0] — this name is already that of a target or chain (line 4)"],
    ),
    "like nobody": (
        HEAD + "targets: {a: {like: b}}\n" + CHAINS,
        ["f:4:21 targets.a.like — no such other target; there are none"],
    ),
    "like like": (
        HEAD + "targets: {a: {model: sim/m}, b: {like: a}, d: {like: b}}\n" + CHAINS,
        ["f:4:54 targets.d.like — that target is itself like another; name the first"],
    ),
    "cause": (
        HEAD + "chains: {c: {try: [sim/m], on: {breaker_open: next}}}\n",
        [
            (
                "f:4:33 chains.c.on.breaker_open — can be: connect, timeout, first_token, stalled, "
                "cut_stream, malformed, rate_limited, quota, auth, overloaded, server_error, "
                "model_gone, context_length, unable, content_policy, bad_request"
            )
        ],
    ),
    "onward": (
        HEAD + "chains: {c: {try: [sim/m], on: {auth: nxt}}}\n",
        ["f:4:39 chains.c.on.auth — must be next, stop or a chain; did you mean next?"],
    ),
    "bad_request": (
        HEAD + "chains: {c: {try: [sim/m], on: {bad_request: next}}}\n",
        ["f:4:46 chains.c.on.bad_request — a wrong request is wrong everywhere: it always stops"],
    ),
    # callers
    "no such tier": (
        BASE
        + f'tiers: {{free: {{}}, team: {{}}}}\nkeys: [{{name: k, hash: "{HASH}", tier: fre}}]\n',
        ["f:6:105 keys[0].tier — no such tier; there are: free, team; did you mean free?"],
    ),
    "no such team": (
        BASE + f'keys: [{{name: k, team: x, hash: "{HASH}"}}]\n',
        ["f:5:24 keys[0].team — no such team; there are none"],
    ),
    "bad hash": (
        BASE + f"keys: [{{name: k, tier: x, hash: {CANARY}}}]\n",
        [
            "f:5:24 keys[0].tier — no such tier; there are none",
            (
                "f:5:33 keys[0].hash — a hash is written sha256: and 64 hex digits; "
                "`gateway keys create` makes one"
            ),
        ],
    ),
    "same name": (
        BASE + f'keys:\n- {{name: k, hash: "{HASH}"}}\n- {{name: k, hash: "{HASH[:-1]}1"}}\n',
        ["f:7:10 keys[1].name — this name stands twice (first on line 6)"],
    ),
    "same key": (
        BASE + f'keys:\n- {{name: k, hash: "{HASH}"}}\n- {{name: l, hash: "{HASH}"}}\n',
        ["f:7:19 keys[1].hash — the same key as k"],
    ),
    "wider than its tier": (
        BASE
        + "tiers: {t: {limits: {rpm: 20}}}\n"
        + f'keys: [{{name: k, tier: t, limits: {{rpm: 30}}, hash: "{HASH}"}}]\n',
        ["f:6:41 keys[0].limits.rpm — a key only narrows; its tier has 20"],
    ),
    "wider than its team": (
        HEAD
        + "chains: {c: [sim/m], d: [sim/m]}\nteams: {t: {chains: [c]}}\n"
        + f'keys: [{{name: k, team: t, chains: [d], hash: "{HASH}"}}]\n',
        ["f:6:36 keys[0].chains[0] — a key only narrows; its team may call: c"],
    ),
    "team's chains": (
        BASE + "teams: {t: {chains: [d]}}\n",
        ["f:5:22 teams.t.chains[0] — no such chain; there are: c"],
    ),
    "budget without a period": (
        BASE + "tiers: {t: {budgets: [20]}}\n",
        [f"f:5:23 tiers.t.budgets[0] — {BUDGET}"],
    ),
    "budgets are a list": (
        BASE + "tiers: {t: {budgets: 20}}\n",
        ["f:5:22 tiers.t.budgets — a list is expected here: [a, b]"],
    ),
    "budget without dollars": (
        BASE + "tiers: {t: {budgets: [{per: day}]}}\n",
        ["f:5:23 tiers.t.budgets[0].usd — is missing"],
    ),
    "budget of nothing": (
        BASE + "tiers: {t: {budgets: [{usd: 0, per: day}, {usd: -1, per: hour}]}}\n",
        [
            f"f:5:29 tiers.t.budgets[0].usd — {NO_DOLLARS}",
            f"f:5:49 tiers.t.budgets[1].usd — {NO_DOLLARS}",
        ],
    ),
    "budget out of bounds": (
        BASE + "tiers: {t: {budgets: [{usd: 9_000_000.01, per: day}, {usd: 0.0000000001, "
        "per: hour}]}}\n",
        [
            "f:5:29 tiers.t.budgets[0].usd — dollars must be from 0 to 9000000",
            "f:5:60 tiers.t.budgets[1].usd — more than 9 decimals",
        ],
    ),
    "budget of no period there is": (
        BASE + "tiers: {t: {budgets: [{usd: 1, per: dya}]}}\n",
        [
            (
                "f:5:37 tiers.t.budgets[0].per — can be: request, hour, day, month, total; "
                "did you mean day?"
            )
        ],
    ),
    "two budgets of a period": (
        BASE + "tiers: {t: {per_session: {budgets: [{usd: 1, per: day}, {usd: 2, per: day}]}}}\n",
        ["f:5:71 tiers.t.per_session.budgets[1].per — two budgets per day; keep one of them"],
    ),
    "a budget wider than its tier's": (
        BASE
        + "tiers: {t: {budgets: [{usd: 0.5, per: day}]}}\n"
        + 'keys: [{name: k, tier: t, budgets: [{usd: 0.75, per: day}], hash: "'
        + HASH
        + '"}]\n',
        ["f:6:43 keys[0].budgets[0].usd — a key only narrows; its tier has $0.5 per day"],
    ),
    "a budget softer than its tier's": (
        BASE
        + "tiers: {t: {budgets: [{usd: 0.5, per: day}]}}\n"
        + 'keys: [{name: k, tier: t, budgets: [{usd: 0.5, per: day, hard: false}], hash: "'
        + HASH
        + '"}]\n',
        ["f:6:64 keys[0].budgets[0].hard — a key only narrows; this budget of its tier is hard"],
    ),
    "a user's budget wider than all together": (
        BASE
        + 'keys: [{name: k, budgets: [{usd: 1, per: day}], hash: "'
        + HASH
        + '",\n  per_user: {budgets: [{usd: 2, per: day}]}}]\n',
        [("f:6:30 keys[0].per_user.budgets[0].usd — no more than the $1 per day of all together")],
    ),
    "expires": (
        BASE + f'keys: [{{name: k, expires: 2026-02-30, hash: "{HASH}"}}]\n',
        ["f:5:27 keys[0].expires — a date is expected, without quotes: 2026-12-31"],
    ),
    "rights": (
        BASE + "tiers: {t: {may: [admire]}}\n",
        ["f:5:19 tiers.t.may[0] — can be: cache, park, skip, target, trace"],
    ),
    "cache": (
        HEAD + "chains: {d: {try: [p/m], cache: {join: false}}}\n",
        ["f:4:33 chains.d.cache — neither exact: nor join: there is nothing to do"],
    ),
    "waiting": (
        BASE + "tiers: {t: {when_full: {wait: 5}}}\n",
        [f"f:5:31 tiers.t.when_full.wait — {DURATION_UNIT}"],
    ),
    # prices
    "price name": (
        BASE + "prices: {unprised: allow}\n",
        ["f:5:10 prices.unprised — prices are for provider/model; did you mean unpriced?"],
    ),
    "price of nobody": (
        BASE + "prices: {smi/m: free}\n",
        ["f:5:10 prices.smi/m — no such provider; there are: p, sim; did you mean sim?"],
    ),
    "decimals": (
        BASE + "prices: {sim/m: [{input: 0.0000000001, output: 1}]}\n",
        ["f:5:26 prices.sim/m[0].input — more than 9 decimals"],
    ),
    "price copy circle": (
        BASE + "prices: {sim/m: sim/n, sim/n: sim/m}\n",
        [
            "f:5:17 prices.sim/m — copies itself in a circle",
            "f:5:31 prices.sim/n — copies itself in a circle",
        ],
    ),
    "two rows": (
        BASE + "prices: {sim/m: [{input: 1, output: 1}, {input: 1, output: 1}]}\n",
        ["f:5:41 prices.sim/m[1] — two rows begin on the same day"],
    ),
    # all at once
    "everything": (
        (
            "providers:\n"
            "  p: {kind: opnai}\n"
            '  p: {kind: openai, key: "${KEY}"}\n'
            "tiers: {free: {}}\n"
            "chains:\n"
            "  c: {try: [q], fist_token: 1s, deadline: 60}\n"
            "keys:\n"
            f"  - {{name: k, tier: fre, hash: {CANARY}}}\n"
        ),
        [
            "f:2:13 providers.p.kind — can be: openai, sim; did you mean openai?",
            "f:3:3 providers.p — this key stands twice (first on line 2)",
            "f:6:13 chains.c.try[0] — no such target or chain; there are: c",
            "f:6:17 chains.c.fist_token — not a known key; did you mean first_token?",
            f"f:6:43 chains.c.deadline — {DURATION_UNIT}",
            "f:8:21 keys[0].tier — no such tier; there are: free; did you mean free?",
            (
                "f:8:32 keys[0].hash — a hash is written sha256: and 64 hex digits; "
                "`gateway keys create` makes one"
            ),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_file_is_told_exactly(case: str) -> None:
    text, lines = CASES[case]
    found = said(text)
    assert found == lines
    assert CANARY not in "\n".join(found)


def test_a_mistake_hides_no_other_and_makes_none() -> None:
    text = BASE.replace("chains: {c: [sim/m]}", "chains: {c: [sim/m, p/x, d], d: {try: 3}}")
    assert said(text) == ["f:4:39 chains.d.try — a list is expected here: [a, b]"]


def test_more_than_a_mebibyte_is_not_read() -> None:
    assert said(BASE + "#" * 1024 * 1024) == ["f:1:1 larger than 1 MiB"]


def test_there_are_enough_wrong_files() -> None:
    assert len(CASES) >= 50


def test_chains_cannot_multiply_without_end() -> None:
    doubled = [f"  c{n}: [c{n + 1}, c{n + 1}]" for n in range(40)]
    text = HEAD + "chains:\n" + "\n".join(doubled) + "\n  c40: [sim/m]\n"
    found = said(text)
    assert found[-1] == (
        "f:37:3 chains.c32 — more than 200 targets, those of the chains in it included"
    )


@pytest.mark.parametrize("order", [1, -1])
def test_chains_cannot_lead_on_without_end(order: int) -> None:
    nested = [f"  c{n}: [c{n + 1}]" for n in range(3000)][::order]
    text = HEAD + "chains:\n" + "\n".join(nested) + "\n  c3000: [sim/m]\n"
    found = said(text)
    assert found
    assert found[0].endswith("more than 64 chains lead from one to the next")


def test_a_great_many_mistakes_are_told_up_to_a_bound() -> None:
    assert len(said(BASE + "\n".join(f"x{n}: 1" for n in range(2000)))) == 500
