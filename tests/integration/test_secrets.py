"""Canaries in every secret field, and in what callers and models say: none sings anywhere.

One gateway does everything a gateway does, well and badly, over a file with secrets of every sort;
whatever leaves it afterwards (logs, errors, headers, metrics, admin API, command line, disk) is
searched. Provider and caller keys may be nowhere; prompts and completions only in answers.
"""

import base64
import contextlib
import dataclasses
import io
import json
import secrets
from typing import Any

import pytest
from click.testing import CliRunner

from chaos import faults
from chaos.faults import Fault
from chaos.upstream import UpstreamThread
from gateway.cli.main import cli
from gateway.clock import SystemClock
from gateway.config.load import load_text
from gateway.config.mistakes import ConfigError
from gateway.errors import GatewayError
from gateway.state.embedded.keys import KeyStore
from gateway.telemetry.logs import RequestLog
from tests.integration.rig import Gateway, Line, digest, get, post, until
from tests.support.house import ADMIN_KEY


@dataclasses.dataclass(frozen=True)
class Canary:
    """Something that must not be seen; every part of its song is looked for."""

    name: str
    before: str = ""
    core: str = dataclasses.field(default_factory=lambda: secrets.token_hex(12))

    @property
    def song(self) -> str:
        return f"{self.before}{self.core}"

    def parts(self) -> list[bytes]:
        whole = self.song.encode()
        spelled = [whole, base64.b64encode(whole), whole.hex().encode()]
        return [*spelled, self.core[:12].encode(), self.core[12:].encode()]

    def heard_in(self, surfaces: dict[str, bytes]) -> list[str]:
        return [place for place, said in surfaces.items() if any(p in said for p in self.parts())]


SECRETS = {
    canary.name: canary
    for canary in (
        Canary("key from the environment", "sk-proj-"),
        Canary("key from a file"),
        Canary("spare key, literal", "plain."),
        Canary("default of a variable", "AIzaSy"),
        Canary("key with signs", "a+b/c="),
        Canary("second key of a provider"),
        Canary("caller key, declared", "caller-"),
        Canary("caller key, expired", "caller-"),
        Canary("caller key, wrong", "gk_abcdefgh_"),
        Canary("second caller key", "other-"),
    )
}
STORED = ("caller key, stored", "caller key, rotated", "caller key, revoked")
SAID = {
    canary.name: canary
    for canary in (
        Canary("prompt"),
        Canary("system prompt"),
        Canary("completion"),
        Canary("tool argument"),
        Canary("image"),
        Canary("embedded text"),
        Canary("metadata"),
    )
}
ENV, FILED, SPARE, DEFAULT, SIGNS, SECOND = (c.song for c in list(SECRETS.values())[:6])
OWNERS = {"env": ENV, "filed": FILED, "spare": SPARE, "default": DEFAULT, "signs": SIGNS}


def config(sim, secret_file):
    def line(name, keys):
        url = sim.base_url(name)
        return (
            f'  {name}: {{kind: openai, base_url: "{url}", allow_http: true, allow_private: true,'
            f" {keys}}}\n"
        )

    providers = (
        line("env", 'key: "${CANARY_ENV}"')
        + line("filed", f'key: "${{file:{secret_file}}}"')
        + line(
            "spare",
            f'keys: [{{name: main, secret: "{SPARE}", weight: 1_000_000}},'
            f' {{name: more, secret: "{SECOND}"}}]',
        )
        + line("default", f'key: "${{NOT_SET:-{DEFAULT}}}"')
        + line("signs", 'key: "${CANARY_SIGNS}"')
        + line("well", 'key: "${CANARY_ENV}"')
    )
    chains = "".join(f"  {name}: [{name}/m]\n" for name in OWNERS)
    chains += "".join(f"  {name}-then-well: [{name}/m, well/m]\n" for name in OWNERS)
    prices = "".join(f"  {name}/m: [{{input: 1.00, output: 4.00}}]\n" for name in [*OWNERS, "well"])
    declared, expired = SECRETS["caller key, declared"].song, SECRETS["caller key, expired"].song
    return (
        "defaults: {answer: 300ms, first_token: 300ms, idle: 300ms, retry: {same_target: 0},"
        " breaker: {failures: 1000, min_requests: 100000}}\n"
        f"providers:\n{providers}chains:\n{chains}  all: [env/m, well/m]\nprices:\n{prices}"
        "tiers: {wide: {may: [skip, target, trace]}, tight: {limits: {rpm: 1}}}\n"
        "teams: {us: {tier: wide}}\n"
        "keys:\n"
        f'  - {{name: declared, team: us, hash: "sha256:{digest(declared)}"}}\n'
        f'  - {{name: expired, expires: 2020-01-01, hash: "sha256:{digest(expired)}"}}\n'
    )


def echoes(key: str) -> list[Fault]:
    """Error bodies that repeat the key they were sent, in all the shapes errors have."""
    say = f"Your key {key} may not do this (Authorization: Bearer {key})"
    json_type = (faults.JSON_TYPE,)

    def body(status, value):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        return Fault("status", status, json_type, data)

    escaped = "".join(f"\\u{ord(c):04x}" for c in key)
    shapes: list[Fault] = [
        faults.bad_request(say),
        faults.bad_request(say, code=key),
        faults.status(400, type=key, message=say),
        faults.status(422, message=key),
        faults.status(400, "context_length_exceeded", say),
        faults.status(400, "content_filter", say),
        faults.status(401, "invalid_api_key", say),
        faults.status(403, key, say),
        faults.status(404, key, say),
        faults.status(429, "insufficient_quota", say),
        faults.status(429, key, say, headers={"retry-after": "1", "x-echo": key}),
        faults.status(500, key, say),
        faults.status(503, message=say, headers={"set-cookie": key, "location": key}),
        faults.redirect(f"https://evil.example/?key={key.replace('+', '%2B')}"),
        faults.error_in_200(code=key, message=say),
        faults.error_in_200(code="context_length_exceeded", message=say),
        faults.error_event(0, code=key, message=say),
        faults.error_event(0, code="invalid_request_error", message=say),
        faults.error_event(5, code=key, message=say),
        body(400, {"error": say}),
        body(400, {"detail": say}),
        body(400, {"detail": [{"msg": say, "loc": ["header", key]}]}),
        body(400, {"message": say, "code": key}),
        body(400, {"error": {"message": say, "param": key, "code": "odd", key: {key: [key]}}}),
        body(400, [{"error": {"message": say}}]),
        body(400, b'{"error": {"message": "%b", "code": "x"}}' % escaped.encode()),
        body(400, {"error": {"message": f"{key} " * 100}}),
        body(400, {"error": {"message": "x" * 2030 + key, "code": "y"}}),
        body(400, {"error": {"message": "é" * 511 + "x" + key + "z" * 4000}}),
        body(400, (f"<html>{say}</html>").encode()),
        body(400, {"error": {"code": "unsupported_parameter", "param": key, "message": say}}),
        body(400, {"error": {"code": "unsupported_value",
                             "message": f"Unsupported value: '{key}' does not work"}}),
    ]  # fmt: skip
    return shapes


class Collected:
    """Whatever left the gateway, by where it was seen."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}  # may hold what the caller and the model said
        self.surfaces: dict[str, bytes] = {}
        self.ids: list[str] = []
        self.statuses: list[int] = []

    def keep(self, what: str, line: Line, method: str = "POST") -> Any:
        with contextlib.suppress(ConnectionError):
            answer = line.answer(method)
            head = "".join(f"{k}: {v}\n" for k, v in answer.headers.items()).encode()
            place = f"{len(self.answers)} {what} {answer.status}"
            self.answers[f"answer {place}"] = answer.body
            self.surfaces[f"headers {place}"] = head
            self.ids.append(answer.headers["x-request-id"])
            self.statuses.append(answer.status)
            return answer
        return None


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A whole day of a gateway's life, in a few seconds."""
    folder = tmp_path_factory.mktemp("secrets")
    found = Collected()
    json_log, text_log = io.StringIO(), io.StringIO()
    clock = SystemClock()
    (folder / "secret").write_text(FILED + "\n")
    with UpstreamThread() as sim:
        text = config(sim, folder / "secret")
        env = {"CANARY_ENV": ENV, "CANARY_SIGNS": SIGNS}
        as_json = RequestLog(clock, "json", json_log)
        as_text = RequestLog(clock, "text", text_log)
        with (
            as_text,
            as_json,  # hears the libraries, as it was the last to come
            Gateway(text, folder / "state", env, (as_json, as_text), file=True) as gateway,
        ):
            live(gateway, sim, found)
            found.surfaces |= looked_at(gateway, found)
            found.surfaces |= commands(gateway, env)
            found.surfaces["repr"] = "".join(
                repr(what)
                for what in (gateway.house.source, gateway.house.wishes, gateway.house.loaded,
                             gateway.house.loaded.document, gateway.house.snapshot,
                             gateway.house.adapters)
            ).encode()  # fmt: skip
            found.surfaces |= files(folder / "state", "running")
            for mistake in gateway.mistakes:
                found.surfaces[f"reported {len(found.surfaces)}"] = repr(mistake).encode()
            gateway.mistakes.clear()
        found.surfaces |= files(folder / "state", "ended")
        assert {call.headers["authorization"].removeprefix("Bearer ") for call in sim.calls()} >= {
            *OWNERS.values()
        }
    found.surfaces["log in json"] = json_log.getvalue().encode()
    found.surfaces["log in text"] = text_log.getvalue().encode()
    return found


def asked(found, gateway, what, body, path="/v1/chat/completions", **headers):
    headers = {"x_api_key": SECRETS["caller key, declared"].song} | headers
    with Line(gateway.port) as line:
        line.send(post(body, path, **headers))
        return found.keep(what, line)


def talk(model, **more):
    """A request that holds a canary wherever something is said."""
    content = [
        {"type": "text", "text": SAID["prompt"].song},
        {"type": "image_url", "image_url": {"url": f"https://x.example/{SAID['image'].song}"}},
    ]
    return {
        "model": model,
        "messages": [
            {"role": "system", "content": SAID["system prompt"].song},
            {"role": "user", "content": content},
        ],
        "metadata": {"m": SAID["metadata"].song},
        **more,
    }


COMPLETED = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "a",
            "schema": {
                "type": "object",
                "properties": {"said": {"const": SAID["completion"].song}},
            },
        },
    }
}
CALLED = {
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "f",
                "parameters": {
                    "type": "object",
                    "properties": {"a": {"const": SAID["tool argument"].song}},
                },
            },
        }
    ]
}
EVERY_FAULT = [
    make() for name, make in faults.KINDS.items()
    if name not in {"status", "drip", "oversized", "slow", "no_done", "silence", "head_silence"}
]  # fmt: skip


def live(gateway, sim, found):
    """Answers, failures, refusals, hang-ups, a mistake of ours, bad files, keys that come, go."""
    for name in OWNERS:
        for stream in (False, True):
            asked(found, gateway, "well", talk(name, stream=stream, **COMPLETED))
            asked(found, gateway, "tools", talk(name, stream=stream, **CALLED))
    asked(found, gateway, "traced", talk("all"), x_gateway_trace="1")
    asked(found, gateway, "traced", talk("all", stream=True), x_gateway_trace="1")
    embed = {"model": "all", "input": SAID["embedded text"].song}
    asked(found, gateway, "embedded", embed, "/v1/embeddings")
    for name, key in OWNERS.items():
        for fault in echoes(key):
            for stream in (False, True):
                rest(gateway)
                sim.set(name, fault, times=1)
                asked(
                    found,
                    gateway,
                    "echo",
                    talk(f"{name}-then-well" if stream else name, stream=stream),
                )
    rest(gateway)
    for fault in EVERY_FAULT:
        rest(gateway)
        sim.script("env", [fault])
        asked(found, gateway, fault.kind, talk("all", stream=fault.kind != "html"))
    rest(gateway)
    refusals(gateway, found)
    stored_keys(gateway, found)
    sim.set("env", faults.no_token())
    for stream in (False, True):
        with Line(gateway.port) as line:  # a caller who leaves
            key = SECRETS["caller key, declared"].song
            line.send(post(talk("env", stream=stream), authorization=f"Bearer {key}"))
            until(lambda: sim.in_flight("env"))
            line.rst()
            until(lambda: not sim.in_flight("env"))
    sim.set("env", None)
    bad_reloads(gateway, found)
    our_own_mistake(gateway, found)


def rest(gateway):
    """What one echo taught must not keep the next from being tried."""

    def forget():
        for seat in gateway.house.state.health._seats.values():
            seat.key.until = seat.aside.until = seat.rest.until = 0.0
            seat.calm = False

    gateway.do(forget)


def refusals(gateway, found):
    wrong, other = SECRETS["caller key, wrong"].song, SECRETS["second caller key"].song
    expired = SECRETS["caller key, expired"].song
    asked(found, gateway, "wrong key", talk("all"), x_api_key=wrong)
    asked(found, gateway, "expired key", talk("all"), x_api_key=expired)
    asked(found, gateway, "two keys", talk("all"), authorization=f"Bearer {other}")
    asked(found, gateway, "odd key", talk("all"), x_api_key=f"{wrong}\x01")
    asked(found, gateway, "key in the query", talk("all"), f"/v1/chat/completion?api_key={wrong}")
    asked(found, gateway, "key in a scheme", talk("all"), authorization=f"Basic {other}")
    asked(found, gateway, "key as an override", talk("all", api_key=other))
    asked(found, gateway, "junk header", talk("all"), x_gateway_deadline=other)
    asked(found, gateway, "unable", talk("all", n=0))
    asked(found, gateway, "no list", talk("all") | {"messages": SAID["prompt"].song})
    asked(found, gateway, "a format", talk("all", response_format=SAID["prompt"].song))
    asked(found, gateway, "half", json.dumps(talk("all")).encode()[:-9])
    asked(found, gateway, "late", talk("all"), x_gateway_deadline="1ms")
    with Line(gateway.port) as line:  # no HTTP at all
        line.send(f"{other} {SAID['prompt'].song}\r\n{wrong}\r\n\r\n".encode())
        found.keep("no HTTP", line)
    for key in (wrong, SECRETS["caller key, declared"].song):
        with Line(gateway.house.servers.admin_port) as line:
            line.send(get("/admin/status", authorization=f"Bearer {key}"))
            found.keep("admin refused", line, "GET")


def stored_keys(gateway, found):
    store = KeyStore(gateway.folder, SystemClock())
    made = {name: store.create(name.split()[-1], tier="tight") for name in STORED}
    rotated = store.rotate("rotated", overlap=60.0)
    poll(gateway)
    for name, key in made.items():
        SECRETS[name] = Canary(name, core=key.secret.reveal()[12:])
        for _ in range(2):  # the second is one too many
            asked(found, gateway, name, talk("all"), x_api_key=key.secret.reveal())
    SECRETS["new secret"] = Canary("new secret", core=rotated.secret.reveal()[12:])
    asked(found, gateway, "new secret", talk("all"), x_api_key=rotated.secret.reveal())
    store.revoke("revoked")
    poll(gateway)
    revoked = made["caller key, revoked"].secret.reveal()
    assert asked(found, gateway, "revoked", talk("all"), x_api_key=revoked).status == 401


def poll(gateway):
    gateway.wait(gateway.house.state.keys.poll())


def bad_reloads(gateway, found):
    good = gateway.path.read_text()
    for bad in (
        good.replace('key: "${CANARY_ENV}"', f'keey: "{ENV}"'),
        good.replace('"${CANARY_ENV}"', f'"{ENV} with a space"'),
        good + f"\n{SPARE}: [",
        good.replace("keys:\n", f"keys:\n  - {{name: {SPARE}, hash: {FILED}}}\n"),
    ):
        gateway.path.write_text(bad)
        with Line(gateway.house.servers.admin_port) as line:
            line.send(post(b"", "/admin/reload", authorization=f"Bearer {ADMIN_KEY}"))
            answer = found.keep("bad reload", line)
        assert answer.json()["problem"]
        for path in ("/readyz", "/healthz"):
            with Line(gateway.port) as line:
                line.send(get(path))
                found.surfaces[f"{path} {len(found.surfaces)}"] = found.keep(path, line, "GET").body
    gateway.path.write_text(good)
    gateway.wait(gateway.house.reload())


def our_own_mistake(gateway, found):
    """An exception whose text holds everything it should not."""
    doors = gateway.house.current.doors

    async def broken(call, reply):
        raise RuntimeError(f"{ENV} {SAID['prompt'].song}")

    gateway.do(
        lambda: setattr(gateway.house.current, "doors", dataclasses.replace(doors, chat=broken))
    )
    gateway.do(lambda: gateway._loop.set_exception_handler(None))
    answer = asked(found, gateway, "a mistake of ours", talk("all"))
    assert (answer.status, answer.error["code"]) == (500, "internal")
    gateway.do(lambda: setattr(gateway.house.current, "doors", doors))


def looked_at(gateway, found):
    seen = {}
    paths = ["/metrics", "/admin/status", "/admin/requests?limit=1000", "/admin/chains",
             "/admin/limits", "/admin/config", "/healthz", "/readyz"]  # fmt: skip
    for path in [*paths, *(f"/admin/requests/{id}" for id in found.ids)]:
        with Line(gateway.house.servers.admin_port) as line:
            line.send(get(path, authorization=f"Bearer {ADMIN_KEY}"))
            answer = line.answer("GET")
            assert answer.status in {200, 404, 503}, path
            seen[f"admin {path}"] = answer.body
    return seen


COMMANDS = [
    ["check"], ["check", "--json"], ["check", "--format", "github"], ["check", "--strict"],
    ["config", "show"], ["config", "show", "--json"], ["doctor"], ["doctor", "--json"], ["status"],
    ["status", "--json"], ["why"], ["why", "--json"], ["keys", "list"], ["keys", "list", "--json"],
    ["spend"], ["spend", "--json"], ["spend", "--by", "key,target"], ["explain", "all"], ["env"],
    ["explain", "all", "--json"], ["why", "nothing"], ["keys", "revoke", "nobody", "--yes"],
]  # fmt: skip


def commands(gateway, env):
    seen = {}
    more = {
        "GATEWAY_CONFIG": str(gateway.path),
        "GATEWAY_ADMIN_URL": gateway.admin_url,
        "GATEWAY_URL": gateway.url,
        "GATEWAY_ADMIN_KEY": ADMIN_KEY,
        "GATEWAY_API_KEY": SECRETS["caller key, declared"].song,
    }
    for words in COMMANDS:
        arguments = words if words[0] != "check" else [*words, str(gateway.path)]
        result = CliRunner().invoke(cli, arguments, env={**env, **more})
        assert result.exception is None or isinstance(result.exception, SystemExit), words
        seen["gateway " + " ".join(words)] = (result.stdout + result.stderr).encode()
    return seen


def files(folder, when):
    return {
        f"{path.name} ({when})": path.read_bytes() for path in folder.iterdir() if path.is_file()
    }


# ------------------------------------------------------------------------------------------- claims


def test_everything_was_looked_at(collected):
    """Else the claims below are worth little."""
    surfaces = collected.surfaces
    assert len(surfaces) > 300
    assert {200, 400, 401, 404, 422, 429, 500, 502, 503, 504} <= {*collected.statuses}
    assert surfaces["log in json"].count(b'"event":"request"') > 300
    assert surfaces["log in text"].count(b"\n") > 300
    assert b"RuntimeError" in surfaces["log in json"]
    assert b"spare" in surfaces["gateway config show"]
    assert "…".encode() in surfaces["gateway config show"]
    assert any(place.startswith("gateway.sqlite3") for place in surfaces)
    assert any(place.startswith("journal-") for place in surfaces)
    assert b"env/m" in surfaces["admin /metrics"]
    answers = b"".join(collected.answers.values())
    for canary in ("completion", "tool argument"):
        assert SAID[canary].core.encode() in answers  # it was really said


@pytest.mark.parametrize("name", [*SECRETS, *STORED, "new secret"])
def test_a_key_is_nowhere(collected, name):
    assert SECRETS[name].heard_in(collected.surfaces | collected.answers) == []


def test_the_admin_key_is_nowhere(collected):
    canary = Canary("admin", core=ADMIN_KEY)
    surfaces = collected.surfaces | collected.answers
    assert [place for place, said in surfaces.items() if canary.core.encode() in said] == []


@pytest.mark.parametrize("name", SAID)
def test_what_is_said_is_in_answers_only(collected, name):
    """Not in logs, metrics, stories, ledger, journal, headers; and in no error."""
    refused = {
        place: said for place, said in collected.answers.items()
        if not place.endswith(" 200")
    }  # fmt: skip
    assert SAID[name].heard_in(collected.surfaces | refused) == []


@pytest.mark.parametrize(
    "url",
    ["https://user:{}@host.example/v1", "https://{}@host.example/v1", "https://host.example/v1?key={}",
     "https://host.example/v1#{}", "ftp://{}", "{}", "http://{}.example/v1", "https://[{}]/v1"],
)  # fmt: skip
def test_a_base_url_holds_no_secret_and_its_refusal_repeats_none(url):
    canary = Canary("url")
    text = (
        f'providers: {{p: {{kind: openai, base_url: "{url.format(canary.song)}", key: k}}}}\n'
        "chains: {c: [p/m]}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_text(text, "gateway.yaml", {})
    assert canary.core not in str(caught.value)
    assert "base_url" in str(caught.value)


def test_an_error_of_the_gateway_says_nothing_of_its_cause():
    canary = Canary("cause")
    with pytest.raises(GatewayError) as caught:
        try:
            raise ValueError(canary.song)
        except ValueError:
            raise GatewayError("Something went wrong.") from None
    assert canary.core not in json.dumps(caught.value.body())
