"""The official SDK is the judge: it reads our answers and raises the right class of error."""

import openai
import pytest

from gateway import errors
from tests.integration.server.rig import KEY, chunk, gateway


def client(g, **options):
    return openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{g.port}/v1", api_key=KEY, max_retries=0, timeout=5, **options
    )


MESSAGES = [{"role": "user", "content": "hi"}]


async def test_it_reads_whole_answers_streams_and_lists():
    async with gateway(keyed=True) as g, client(g) as sdk:
        answer = await sdk.chat.completions.create(model="default", messages=MESSAGES)
        assert answer.choices[0].message.content == "hello"
        stream = await sdk.chat.completions.create(model="default", messages=MESSAGES, stream=True)
        text = "".join([c.choices[0].delta.content or "" async for c in stream])
        assert text == "hello"
        assert [model.id async for model in sdk.models.list()] == ["default", "openai/gpt-4o"]
        assert (await sdk.models.retrieve("openai/gpt-4o")).id == "openai/gpt-4o"


async def test_it_speaks_to_us_as_if_to_azure():
    async with gateway(keyed=True) as g:
        azure = openai.AsyncAzureOpenAI(
            azure_endpoint=f"http://127.0.0.1:{g.port}",
            api_key=KEY,
            api_version="2024-10-21",
            max_retries=0,
        )
        async with azure:
            answer = await azure.chat.completions.create(model="smart", messages=MESSAGES)
            assert answer.choices[0].message.content == "hello"
        assert g.chat.requests[0].model == "smart"


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (errors.InvalidRequest("no", param="messages"), openai.BadRequestError),
        (errors.Unauthenticated("no"), openai.AuthenticationError),
        (errors.NotAllowed("no"), openai.PermissionDeniedError),
        (errors.NotFound("no", code="model_not_found"), openai.NotFoundError),
        (errors.RateLimited("no", retry_after=3), openai.RateLimitError),
        (errors.Overloaded("no"), openai.InternalServerError),
        (errors.UpstreamFailed("no"), openai.InternalServerError),
        (errors.UpstreamTimedOut("no"), openai.InternalServerError),
    ],
)
async def test_it_raises_the_right_class(raised, seen):
    async with gateway() as g, client(g) as sdk:

        async def refuse(call, reply):
            raise raised

        g.chat.script = refuse
        with pytest.raises(seen) as caught:
            await sdk.chat.completions.create(model="default", messages=MESSAGES)
        assert caught.value.code == raised.code
        assert caught.value.type == raised.type
        assert caught.value.param == raised.param
        assert caught.value.request_id == caught.value.response.headers["x-request-id"]


async def test_it_does_not_walk_an_exhausted_chain_again():
    async with gateway() as g, client(g) as sdk:

        async def refuse(call, reply):
            raise errors.UpstreamFailed("no")

        g.chat.script = refuse
        with pytest.raises(openai.InternalServerError):
            await sdk.with_options(max_retries=2).chat.completions.create(
                model="default", messages=MESSAGES
            )
        assert len(g.chat.calls) == 1


async def test_a_cut_stream_is_an_error_to_it():
    async with gateway() as g, client(g) as sdk:

        async def script(call, reply):
            request = g.chat.facade.parse(await call.body())
            await reply.start({}, g.chat.facade.voice(request))
            await reply.write([chunk("a")])
            raise errors.UpstreamFailed("it broke off", code="cut_stream")

        g.chat.script = script
        seen = []
        stream = await sdk.chat.completions.create(model="default", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="it broke off"):
            async for piece in stream:
                seen.append(piece)  # noqa: PERF401 - what came before the error
        assert len(seen) == 1
