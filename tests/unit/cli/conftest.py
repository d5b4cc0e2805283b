"""A terminal-less runner, and a gateway that answers what a test tells it to."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from gateway.cli.main import cli

Run = Callable[..., Result]

SMALL = """\
providers:
  alpha: {kind: sim}
  bravo: {kind: sim}
  openai: {kind: openai, keys: [{name: a, secret: "${K}"}, {name: b, secret: "${K}"}]}
targets:
  gpt: {model: openai/gpt-5-mini}
  tiny: {model: alpha/sim-1, context: 100, can: []}
  bravo: {model: bravo/sim-1}
chains:
  smart: {try: [gpt, tiny, bravo], deadline: 1m}
  cheap: [bravo]
tiers:
  free: {limits: {rpm: 20}}
teams:
  search: {tier: free}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("explain", "smart", input=...)` in an empty directory and a clean environment."""
    monkeypatch.chdir(tmp_path)
    clean = dict.fromkeys(
        (
            *("GATEWAY_CONFIG", "GATEWAY_URL", "GATEWAY_API_KEY", "GATEWAY_ADMIN_KEY"),
            *("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GROQ_API_KEY"),
            *("MISTRAL_API_KEY", "DEEPSEEK_API_KEY", "OPENROUTER_API_KEY", "OLLAMA_HOST"),
        )
    )

    def invoke(*args: str, input: str = "", env: dict[str, str] | None = None) -> Result:
        result = CliRunner().invoke(
            cli, list(args), input=input, env={**clean, "K": "sk-secret", **(env or {})}
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert "\x1b" not in result.stdout + result.stderr, "colour off a terminal"
        assert "sk-secret" not in result.stdout + result.stderr
        return result

    return invoke


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(SMALL)
    return path


Handler = Callable[[web.Request], web.StreamResponse]


class FakeGateway:
    """A server in a thread of its own; `answers` maps a path to what is answered there."""

    def __init__(self) -> None:
        self.answers: dict[str, Handler] = {}
        self.asked: list[tuple[str, str, bytes, dict[str, str]]] = []
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def says(self, path: str, value: object, **more: object) -> None:
        self.answers[path] = lambda _: web.json_response(value, **more)  # type: ignore[arg-type]

    def streams(self, path: str, text: str, **headers: str) -> None:
        told = {"content-type": "text/event-stream"}
        told |= {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[path] = lambda _: web.Response(body=text.encode(), headers=told)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append((request.method, request.path_qs, await request.read(), headers))
        answer = self.answers.get(request.path)
        if answer is None:
            error = {"message": "There is nothing.", "type": "not_found_error", "code": "not_found"}
            return web.json_response({"error": error}, status=404)
        return answer(request)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as fake:
        yield fake
