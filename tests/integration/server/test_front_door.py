"""What a caller sees of the public port: routes, shapes, credentials, bodies."""

import asyncio
import gzip

import pytest

from gateway.core.request import Hints
from gateway.errors import RateLimited
from gateway.pipeline.guard import CALM, Vitals
from gateway.server.connection import Bounds
from tests.integration.server.rig import (
    KEY,
    WHOLE,
    ask,
    chat,
    dial,
    gateway,
    get,
    post,
)


async def test_a_whole_answer_is_the_json_as_it_is():
    async with gateway() as g, dial(g.port) as line:
        answer = await line.ask(post(chat()))
        assert (answer.status, answer.body) == (200, WHOLE)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["content-length"] == str(len(WHOLE))
        assert answer.headers["x-gateway-chain"] == "default"
        assert answer.headers["x-request-id"] == g.chat.calls[0].id
        assert "date" in answer.headers
        assert "server" not in answer.headers
        assert "connection" not in answer.headers
        assert (await line.ask(post(chat()))).status == 200  # the connection is kept


async def test_a_request_id_is_ours_and_new():
    async with gateway() as g:
        ids = {(await ask(g.port, post(chat()))).headers["x-request-id"] for _ in range(3)}
        assert len(ids) == 3
        assert all(id.startswith("req_") and len(id) == 32 for id in ids)


async def test_a_stream_is_events_a_note_and_done():
    async with gateway() as g:
        answer = await ask(g.port, post(chat(stream=True)))
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["transfer-encoding"] == "chunked"
        events = answer.body.split(b"\n\n")
        assert events[0].startswith(b'data: {"id":"c1"')
        assert events[-3:] == [b': gateway {"target":"m"}', b"data: [DONE]", b""]


async def test_http_1_0_gets_no_chunks():
    async with gateway() as g:
        request = post(chat(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0")
        async with dial(g.port) as line:
            answer = await line.ask(request)
            assert "transfer-encoding" not in answer.headers
            assert answer.headers["connection"] == "close"
            assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_http_1_0_is_kept_only_when_it_asks():
    async with gateway() as g, dial(g.port) as line:
        line.send(get("/healthz", "1.0", Connection="keep-alive"))
        answer = await line.answer()
        assert answer.headers["connection"] == "keep-alive"
        line.send(get("/healthz", "1.0"))
        assert (await line.answer()).headers["connection"] == "close"
        assert await line.eof() == b""


async def test_connection_close_is_honoured():
    async with gateway() as g, dial(g.port) as line:
        answer = await line.ask(post(chat(), Connection="close"))
        assert answer.headers["connection"] == "close"
        assert await line.eof() == b""


async def test_head_has_no_body():
    async with gateway() as g, dial(g.port) as line:
        line.send(get("/").replace(b"GET", b"HEAD"))
        answer = await line.answer(head_only=True)
        assert (answer.status, answer.body) == (200, b"")
        assert int(answer.headers["content-length"]) > 0
        assert (await line.ask(get("/healthz"))).status == 200


@pytest.mark.parametrize("prefix", ["/v1", "", "/openai/v1"])
async def test_each_prefix_reaches_the_same_road(prefix):
    async with gateway() as g:
        assert (await ask(g.port, post(chat(), f"{prefix}/chat/completions"))).status == 200
        body = b'{"model":"e","input":"hello"}'
        assert (await ask(g.port, post(body, f"{prefix}/embeddings"))).status == 200
        assert (await ask(g.port, get(f"{prefix}/models"))).status == 200
        assert [call.api for call in g.chat.calls + g.embeddings.calls] == ["chat", "embeddings"]


async def test_azure_names_the_model_in_the_path():
    async with gateway() as g:
        path = "/openai/deployments/gpt%204o/chat/completions?api-version=2024-10-21"
        for body in (chat(), b'{"messages":[{"role":"user","content":"hi"}]}'):
            assert (await ask(g.port, post(body, path, api_key=KEY))).status == 200
        assert [request.model for request in g.chat.requests] == ["gpt 4o", "gpt 4o"]
        deeper = "/openai/deployments/a/b/chat/completions"
        assert (await ask(g.port, post(chat(), deeper))).status == 404


async def test_models_are_those_the_key_may_use():
    async with gateway(keyed=True) as g:
        answer = await ask(g.port, get("/v1/models", Authorization=f"Bearer {KEY}"))
        assert b'"id":"default"' in answer.body
        for id in ("openai/gpt-4o", "openai%2Fgpt-4o"):
            answer = await ask(g.port, get(f"/v1/models/{id}", x_api_key=KEY))
            assert answer.status == 200
            assert b'"id":"openai/gpt-4o"' in answer.body
        answer = await ask(g.port, get("/v1/models/openai%252Fgpt-4o", x_api_key=KEY))
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert g.ended == [("_other", 200)] * 3 + [("_other", 404)]


async def test_unknown_paths_are_401_for_strangers_and_404_for_callers():
    async with gateway(keyed=True) as g:
        for path in ("/v1/chat/completion", "/admin/status", "/metrics", "/v1/../x", "/.env"):
            assert (await ask(g.port, get(path))).status == 401
        answer = await ask(g.port, get("/v1/modelz", Authorization=f"Bearer {KEY}"))
        assert (answer.status, answer.error["type"]) == (404, "not_found_error")
        assert "/v1/models" in answer.error["message"]
        assert answer.headers["x-should-retry"] == "false"
        assert {api for api, _ in g.ended} == {"_other"}


async def test_a_wrong_method_names_the_right_one():
    async with gateway() as g:
        answer = await ask(g.port, get("/v1/chat/completions"))
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        assert answer.error["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/",
        "/V1/chat/completions",
        "/v1//chat/completions",
        "/v1/chat%2Fcompletions",
        "//v1/chat/completions",
    ],
)
async def test_paths_are_exact(path):
    async with gateway() as g:
        assert (await ask(g.port, post(chat(), path))).status == 404
        assert not g.chat.calls


async def test_an_absolute_target_is_routed_by_its_path_alone():
    async with gateway() as g:
        target = "http://evil.example/v1/chat/completions?x=1"
        assert (await ask(g.port, post(chat(), target))).status == 200


async def test_probes_need_no_key_on_either_port():
    async with gateway(keyed=True) as g:
        for port in (g.port, g.admin_port):
            assert (await ask(port, get("/healthz"))).status == 200
            assert (await ask(port, get("/readyz"))).status == 200
        g.ready = (False, {"waiting": ["openai"]})
        answer = await ask(g.port, get("/readyz"))
        assert answer.status == 503
        assert b"openai" in answer.body
        assert not g.events


# --- credentials


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer  {KEY} "},
        {"x_api_key": KEY},
        {"api_key": KEY},
        {"Authorization": f"Bearer {KEY}", "x_api_key": KEY, "api_key": KEY},
    ],
)
async def test_a_key_is_taken_from_any_of_three_headers(headers):
    async with gateway(keyed=True) as g:
        assert (await ask(g.port, post(chat(), **headers))).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Basic dXNlcjpwYXNz"}, 401),
        ({"Authorization": f"Bearer {KEY}x"}, 401),
        ({"Authorization": f"Bearer {KEY}", "x_api_key": "another"}, 400),
        ({"Authorization": f"Bearer {KEY}\x7f"}, 400),
        ({"x_api_key": "caf\u00e9"}, 400),
        ({"x_api_key": KEY, "X_Api_Key": KEY}, 400),
    ],
)
async def test_odd_credentials_are_refused(headers, status):
    async with gateway(keyed=True) as g:
        answer = await ask(g.port, post(chat(), **headers))
        assert answer.status == status
        assert KEY not in answer.body.decode()


async def test_two_authorizations_are_refused():
    async with gateway(keyed=True) as g:
        twice = post(chat(), Authorization=f"Bearer {KEY}", AUTHORIZATION=f"Bearer {KEY}")
        answer = await ask(g.port, twice)
        assert (answer.status, answer.error["param"]) == (400, "authorization")


async def test_a_stranger_is_refused_before_the_body_is_read():
    async with gateway(keyed=True) as g, dial(g.port) as line:
        line.send(post(b"x" * 5_000_000)[:1000])  # the rest never comes
        answer = await line.answer()
        assert answer.status == 401
        assert answer.headers["connection"] == "close"
        assert await line.eof() == b""


# --- hints


async def test_hints_reach_the_road_parsed():
    async with gateway() as g:
        await ask(
            g.port,
            post(
                chat(),
                x_gateway_deadline="1m30s",
                X_Gateway_First_Token="250ms",
                x_gateway_max_cost_usd="0.05",
                x_gateway_priority="low",
                x_gateway_session="s 1",
                x_gateway_user="u",
                x_gateway_tags="team=a, job=b",
                x_gateway_skip="gpt,claude",
                x_gateway_target="openai/gpt",
                x_gateway_fallback="off",
                x_gateway_trace="1",
                x_stainless_retry_count="2",
                traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            ),
        )
        assert g.chat.calls[0].hints == Hints(
            deadline=90.0,
            first_token=0.25,
            max_cost=50_000_000,
            priority="low",
            session="s 1",
            user="u",
            tags=(("team", "a"), ("job", "b")),
            skip=frozenset({"gpt", "claude"}),
            target="openai/gpt",
            fallback=False,
            trace=True,
            client_retry=True,
            traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x_gateway_deadline", "30"),
        ("x_gateway_park", "yes"),
        ("x_gateway_trace", "yes"),
    ],
)
async def test_junk_and_unknown_hints_are_refused_by_name(header, value):
    async with gateway() as g:
        answer = await ask(g.port, post(chat(), **{header: value}))
        assert answer.status == 400
        assert answer.error["param"] == header.replace("_", "-")
        assert not g.chat.calls
        assert g.ended == [("chat", 400)]


# --- bodies


async def test_a_body_may_come_in_pieces_and_in_chunks():
    async with gateway() as g, dial(g.port) as line:
        whole = post(chat())
        for at in range(0, len(whole), 40):
            line.send(whole[at : at + 40])
            await asyncio.sleep(0.001)
        assert (await line.answer()).status == 200
        body = chat()
        chunked = b"%x\r\n%b\r\n1\r\n \r\n0\r\n\r\n" % (len(body), body)
        assert (await line.ask(post(chunked, Transfer_Encoding="chunked"))).status == 200


async def test_expect_100_continue_is_answered_when_the_body_is_wanted():
    async with gateway(keyed=True) as g, dial(g.port) as line:
        request = post(chat(), Expect="100-continue", x_api_key=KEY)
        head, _, body = request.partition(b"\r\n\r\n")
        line.send(head + b"\r\n\r\n")
        assert (await line.head())[0] == 100
        assert (await line.ask(body)).status == 200
        line.send((head + b"\r\n\r\n").replace(KEY.encode(), b"wrong"))
        assert (await line.answer()).status == 401  # not 100 first


async def test_a_body_that_is_too_long_is_refused_by_its_length_alone():
    async with gateway(max_body=1000) as g, dial(g.port) as line:
        line.send(post(b"x" * 1001)[:200])
        answer = await line.answer()
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
        assert answer.headers["connection"] == "close"
        assert await line.eof() == b""


async def test_a_body_without_a_length_is_counted_as_it_comes():
    async with gateway(max_body=100_000) as g, dial(g.port) as line:
        line.send(post(b"", Transfer_Encoding="chunked"))
        piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        line.send(piece * 4)
        answer = await line.answer()
        assert answer.status == 413
        assert await line.eof() == b""


async def test_a_caller_who_still_sends_can_read_why_it_was_refused():
    async with gateway(max_body=1000) as g, dial(g.port) as line:
        line.send(post(b"x" * 3_000_000))  # more than any socket buffer
        assert (await line.answer()).status == 413


async def test_a_body_of_exactly_the_limit_is_taken():
    body = chat()
    async with gateway(max_body=len(body)) as g:
        assert (await ask(g.port, post(body))).status == 200
        assert (await ask(g.port, post(body + b" "))).status == 413


async def test_a_compressed_body_is_415_and_not_unpacked():
    async with gateway() as g:
        answer = await ask(g.port, post(gzip.compress(chat()), Content_Encoding="gzip"))
        assert (answer.status, answer.error["code"]) == (415, "unsupported_encoding")
        assert (await ask(g.port, post(chat(), Content_Encoding="identity"))).status == 200


async def test_a_body_that_comes_too_slowly_is_408():
    bounds = Bounds(body=5.0, body_grace=0.2, body_rate=100_000)
    async with gateway(bounds=bounds) as g, dial(g.port) as line:
        line.send(post(b"x" * 10_000)[:500])
        answer = await line.answer()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert answer.headers["connection"] == "close"


async def test_a_body_that_is_not_done_in_time_is_408():
    bounds = Bounds(body=0.3, body_grace=5.0, body_rate=1)
    async with gateway(bounds=bounds) as g, dial(g.port) as line:
        line.send(post(b"x" * 10_000)[:5000])
        assert (await line.answer()).status == 408


async def test_a_body_with_broken_chunks_is_400():
    async with gateway() as g, dial(g.port) as line:
        line.send(post(b"5\r\nhello\r\n", Transfer_Encoding="chunked"))
        await asyncio.sleep(0.02)
        line.send(b"zz\r\n")
        answer = await line.answer()
        assert answer.status == 400
        assert await line.eof() == b""


# --- overload


async def test_with_no_memory_left_all_but_health_is_503_before_its_body_is_read():
    async with gateway(keyed=True) as g, dial(g.port) as line:
        g.guard.look(0.0, Vitals(memory=0.97))
        for message in (post(chat(), authorization=f"Bearer {KEY}"), get("/v1/models")):
            answer = await line.ask(message)
            assert (answer.status, answer.error["code"]) == (503, "overloaded")
            assert "memory is at 97% of the limit" in answer.error["message"]
            assert "all requests" in answer.error["message"]
            assert 2000 <= int(answer.headers["retry-after-ms"]) <= 2500
            assert answer.headers["x-should-retry"] == "true"
        for path in ("/healthz", "/readyz"):
            assert (await line.ask(get(path))).status == 200
        assert not g.chat.calls
        for _ in range(CALM):
            g.guard.look(0.0, Vitals())
        assert (await line.ask(post(chat(), authorization=f"Bearer {KEY}"))).status == 200


async def test_out_of_files_new_connections_hear_503_and_old_ones_are_served():
    async with gateway() as g, dial(g.port) as old:
        await old.ask(get("/healthz"))
        g.guard.look(0.0, Vitals(files=0.6))
        async with dial(g.port) as new:
            answer = await new.answer()
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert "too many connections or files" in answer.error["message"]
        assert (await old.ask(post(chat()))).status == 200
        async with dial(g.servers.admin_port) as operator:
            assert (await operator.ask(get("/healthz"))).status == 200


async def test_too_many_at_once_are_503_before_their_body_is_read():
    async with gateway(max_in_flight=1) as g, dial(g.port) as first, dial(g.port) as second:
        gate = asyncio.Event()

        async def wait(call, reply):
            await gate.wait()
            await g.chat.play(call, reply)

        g.chat.script = wait
        first.send(post(chat()))
        while not g.chat.calls:
            await asyncio.sleep(0.001)
        answer = await second.ask(post(chat()))
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert answer.headers["retry-after"] == "2"
        assert 1000 <= int(answer.headers["retry-after-ms"]) <= 1250
        assert answer.headers["x-should-retry"] == "true"
        assert (await ask(g.port, get("/healthz"))).status == 200
        gate.set()
        assert (await first.answer()).status == 200
        assert (await second.ask(post(chat()))).status == 200
        assert g.ended == [("chat", 503)]


# --- what a road raises


async def test_what_a_road_raises_is_spelled_with_all_it_says():
    async with gateway() as g, dial(g.port) as line:

        async def refuse(call, reply):
            error = RateLimited("slow down", retry_after=1.2, scope="key")
            error.told = {"x-gateway-chain": "default"}
            error.attempts = [{"target": "gpt", "cause": "rate_limited", "status": 429, "ms": 1}]
            raise error

        g.chat.script = refuse
        answer = await line.ask(post(chat()))
        assert answer.status == 429
        assert answer.headers["retry-after"] == "2"
        assert answer.headers["retry-after-ms"] == "1200"
        assert answer.headers["x-gateway-chain"] == "default"
        assert answer.error["request_id"] == answer.headers["x-request-id"]
        assert answer.error["attempts"][0]["target"] == "gpt"
        assert not g.events  # the road says its own


async def test_a_mistake_of_ours_is_500_and_says_nothing_of_itself(caplog):
    async with gateway() as g, dial(g.port) as line:

        async def fall(call, reply):
            raise KeyError("canary")

        g.chat.script = fall
        answer = await line.ask(post(chat()))
        assert (answer.status, answer.error["code"]) == (500, "internal")
        assert b"canary" not in answer.body
        assert "a mistake of ours" in caplog.text
        g.chat.script = None
        assert (await line.ask(post(chat()))).status == 200


async def test_a_header_cannot_be_split_by_its_value():
    async with gateway() as g:

        async def inject(call, reply):
            request = g.chat.facade.parse(await call.body())
            headers = {"x-bad": "a\r\nset-cookie: x", "x-gateway-path": "gpt:ok"}
            await reply.start(headers, g.chat.facade.voice(request))
            await reply.finish(b"")

        g.chat.script = inject
        answer = await ask(g.port, post(chat()))
        assert "set-cookie" not in answer.headers
        assert "x-bad" not in answer.headers
        assert answer.headers["x-gateway-path"] == "gpt:ok"


async def test_requests_on_one_line_are_answered_in_order():
    async with gateway() as g, dial(g.port) as line:
        line.send(b"".join(get(f"/v1/models/m{i}") for i in range(40)) + post(chat()))
        assert [(await line.answer()).status for _ in range(40)] == [404] * 40
        assert (await line.answer()).status == 200


async def test_a_reload_is_a_swap_of_one_reference():
    async with gateway() as g, dial(g.port) as line:
        assert b"default" in (await line.ask(get("/v1/models"))).body
        from dataclasses import replace

        g.current.doors = replace(g.doors, models=lambda principal: ["other"])
        assert b"other" in (await line.ask(get("/v1/models"))).body
