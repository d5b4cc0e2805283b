"""Two tenants on one gateway, each with words that only it may ever read: canaries.

Random calls of both, with keys and tokens, that also name what is the other's. Whatever an answer,
a row of the ledger or a story holds, it holds no canary of the other, and the limits of one know
nothing of the other's calls.
"""

import collections
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.upstream import UpstreamThread
from tests.integration.rig import MESSAGES, Gateway, Line, declared, get, post, provider
from tests.support.issuer import AUDIENCE, ISSUER, KeyServer, Signer

SIGNER = Signer("tenants", "ES256")
OTHER = {"cedar": "birch", "birch": "cedar"}
LIMIT = 100_000


def config(sim, issuer):
    keys = "".join(
        declared(f"key-{tenant}", f"team: team-{tenant}, per_user: {{limits: {{rpm: {LIMIT}}}}}")
        for tenant in OTHER
    )
    return (
        f"providers:\n{provider(sim, 'p')}"
        "chains: {shared: [p/m], only-cedar: [p/m], only-birch: [p/m]}\n"
        "prices: {p/m: [{input: 1.00, output: 4.00}]}\n"
        f"tiers: {{wide: {{limits: {{rpm: {LIMIT}}}}}}}\n"
        "teams:\n"
        "  team-cedar: {tier: wide, chains: [shared, only-cedar]}\n"
        "  team-birch: {tier: wide, chains: [shared, only-birch]}\n"
        f"auth: {{jwt: [{{issuer: {ISSUER}, audience: {AUDIENCE}, jwks: {issuer.url},"
        " algorithms: [ES256], claims: {team: team}, allow_http: true, allow_private: true}]}\n"
        f"keys:\n{keys}"
    )


class Estate:
    """The gateway, a connection for each tenant, and what each was given."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.lines = {tenant: Line(gateway.port) for tenant in OTHER}
        now = gateway.house.clock.now()
        self.shown = {
            (tenant, how): header
            for tenant in OTHER
            for how, header in (
                ("key", {"x_api_key": f"key-{tenant}"}),
                ("token", {"authorization": f"Bearer {self._token(tenant, now)}"}),
            )
        }
        self.admitted = collections.Counter()  # by tenant
        self.ids = collections.defaultdict(set)

    def _token(self, tenant: str, now: float) -> str:
        return SIGNER.sign(now, sub=f"user-{tenant}", team=f"team-{tenant}")

    def call(self, tenant: str, request: bytes, method: str):
        line = self.lines[tenant]
        line.send(request)
        return line.answer(method)

    def checked(self, tenant: str, answer, sent: str = "") -> None:
        """No word of the other's, but what the caller itself has just said."""
        told = (answer.body.decode() + json.dumps(answer.headers)).replace(sent or "\0", "")
        assert OTHER[tenant] not in told, told
        if "x-request-id" in answer.headers:
            self.ids[tenant].add(answer.headers["x-request-id"])


@pytest.fixture(scope="module")
def estate(tmp_path_factory):
    with (
        UpstreamThread() as sim,
        KeyServer(SIGNER) as issuer,
        Gateway(config(sim, issuer), tmp_path_factory.mktemp("t") / "state") as gateway,
    ):
        made = Estate(gateway)
        yield made
        for line in made.lines.values():
            line.fin()


tenants = st.sampled_from(sorted(OTHER))
ways = st.sampled_from(["key", "token"])
whose = st.booleans()  # whether the call names what is its own
calls = st.one_of(
    st.tuples(st.just("chat"), whose, st.booleans(), st.booleans()),
    st.tuples(st.just("look"), whose),
    st.tuples(st.just("list")),
    st.tuples(st.just("guess"), st.sampled_from(["only-", "only-birc", "only-ceda", "share"])),
    st.tuples(st.just("admin"), st.sampled_from(["requests", "limits", "status", "requests/ID"])),
    st.tuples(st.just("junk"), st.sampled_from([b"{", b"[]", b'{"model": 5}'])),
)


def act(estate: Estate, tenant: str, way: str, call: tuple) -> None:
    shown = estate.shown[tenant, way]
    match call:
        case ("chat", own, shared, stream):
            chat(estate, tenant, way, own=own, shared=shared, stream=stream)
        case ("look", own):
            name = f"only-{tenant if own else OTHER[tenant]}"
            answer = estate.call(tenant, get(f"/v1/models/{name}", **shown), "GET")
            assert answer.status == (200 if own else 404)
            estate.checked(tenant, answer)
        case ("list",):
            answer = estate.call(tenant, get("/v1/models", **shown), "GET")
            assert {one["id"] for one in answer.json()["data"]} == {"shared", f"only-{tenant}"}
            estate.checked(tenant, answer)
        case ("guess", name):
            body = {"model": name, "messages": MESSAGES}
            answer = estate.call(tenant, post(body, **shown), "POST")
            assert answer.status == 404
            estate.checked(tenant, answer, name)
        case ("admin", path):
            path = path.replace("ID", next(iter(estate.ids[OTHER[tenant]]), "req_1"))
            with Line(estate.gateway.house.servers.admin_port) as line:
                line.send(get(f"/admin/{path}", **shown))
                answer = line.answer("GET")
            assert answer.status == 403
            estate.checked(tenant, answer)
        case ("junk", body):
            answer = estate.call(tenant, post(body, **shown), "POST")
            assert answer.status == 400
            estate.checked(tenant, answer)


def chat(estate, tenant, way, *, own, shared, stream):
    """A call under one's own name, or under every name of the other that may be said."""
    named = tenant if own else OTHER[tenant]
    model = "shared" if shared else f"only-{named}"
    headers = {"x_gateway_session": f"session-{tenant}", "x_gateway_tags": f"of={tenant}"}
    if way == "key":
        headers["x_gateway_user"] = f"user-{tenant}"
    elif not own:
        headers["x_gateway_user"] = f"user-{named}"
    body = {"model": model, "messages": [{"role": "user", "content": tenant}], "stream": stream}
    answer = estate.call(tenant, post(body, **estate.shown[tenant, way], **headers), "POST")
    allowed = (shared or own) and (own or way == "key")
    assert answer.status == (200 if allowed else 403), answer.body
    estate.checked(tenant, answer, model)
    if allowed:
        estate.admitted[tenant] += 1
        left = int(answer.headers["x-ratelimit-remaining-requests"])
        assert left >= LIMIT - estate.admitted[tenant], "another's calls were counted"


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(tenants, ways, calls), min_size=20, max_size=60))
def test_no_tenant_reads_or_spends_what_is_the_others(estate, acts):
    for tenant, way, call in acts:
        act(estate, tenant, way, call)


def test_every_row_and_every_story_belongs_to_one_tenant(estate):
    for tenant in OTHER:  # also when it runs alone
        chat(estate, tenant, "key", own=True, shared=True, stream=False)
        chat(estate, tenant, "token", own=True, shared=False, stream=True)
    estate.gateway.at_rest()
    rows = estate.gateway.rows()
    stories = estate.gateway.do(lambda: estate.gateway.house.state.stories.recent(1000))
    assert {row["team"] for row in rows} == {"team-cedar", "team-birch"}
    for told in (*rows, *stories):
        tenant = (told["team"] or "team-nobody").removeprefix("team-")
        if tenant in OTHER:
            assert OTHER[tenant] not in json.dumps(told, default=str)
    counted = collections.Counter(row["team"].removeprefix("team-") for row in rows)
    assert counted == estate.admitted
    assert {(row["team"], row["user"], row["session"]) for row in rows} == {
        (f"team-{tenant}", f"user-{tenant}", f"session-{tenant}") for tenant in OTHER
    }
