"""The least a Python reverse proxy can be: aiohttp on both sides and nothing between, for scale."""

import sys

import aiohttp
import uvloop
from aiohttp import web


async def application() -> web.Application:
    url = f"http://127.0.0.1:{sys.argv[2]}"
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=None),
    )  # fmt: skip

    async def pass_on(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {"content-type": "application/json"}
        async with session.post(url + request.path, data=body, headers=headers) as reply:
            if reply.content_type != "text/event-stream":
                whole = await reply.read()
                return web.Response(body=whole, content_type=reply.content_type)
            answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await answer.prepare(request)
            async for piece in reply.content.iter_any():
                await answer.write(piece)
            await answer.write_eof()
            return answer

    app = web.Application(client_max_size=32 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", pass_on)
    app.on_cleanup.append(lambda _: session.close())
    return app


if __name__ == "__main__":
    web.run_app(
        application(), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None,
        loop=uvloop.new_event_loop(),
    )  # fmt: skip
