"""`gateway chat`: talk to a chain, and see under each answer who gave it and what it cost."""

import asyncio
import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from gateway.cli import options, say, screen
from gateway.cli.env import api_url
from gateway.cli.exits import CONFLICT, NOT_FOUND, USAGE, Stop, stopped_by
from gateway.cli.why import path_words, tokens
from gateway.client.http import GatewayClient, content_of
from gateway.clock import SystemClock
from gateway.errors import GatewayError
from gateway.wire import json

HELP = """\
/model [NAME]  talk to another chain; without a name: which there are
/save FILE     write the conversation as JSON
/clear         forget the conversation
/quit          leave (so does Ctrl-D); Ctrl-C stops an answer"""
COMMANDS = ("/model", "/save", "/clear", "/quit", "/help")
MAX_PIPED = 4 * 1024 * 1024  # bytes
LISTED = 20


@dataclass(slots=True)
class Reply:
    """One answer and what the gateway told of it."""

    content: str = ""
    finish_reason: str | None = None
    model: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "content": self.content,
            "finish_reason": self.finish_reason,
            "model": self.model,
            "usage": dict(self.usage),
            **self.told,
        }


@dataclass(slots=True)
class Talk:
    """A conversation: where it goes, and what was said."""

    url: str
    key: str
    model: str
    messages: list[dict[str, str]] = field(default_factory=list)

    def ask(self, text: str, hear: Callable[[str], None]) -> Reply:
        """Say `text`; `hear` gets the answer's pieces. A turn that fails leaves no trace.

        Raises:
            gateway.errors.GatewayError: refused, failed, cut.
        """
        turn = {"role": "user", "content": text}
        reply = asyncio.run(self._ask([*self.messages, turn], hear))
        self.messages += [turn, {"role": "assistant", "content": reply.content}]
        return reply

    def models(self) -> list[str]:
        """The names this key may use."""
        return asyncio.run(self._models())

    async def _models(self) -> list[str]:
        async with GatewayClient(self.url, self.key, SystemClock()) as client:
            return [str(model.get("id", "")) for model in await client.models()]

    async def _ask(self, messages: list[dict[str, str]], hear: Callable[[str], None]) -> Reply:
        body = {
            "model": self.model,
            "messages": messages,
            "stream_options": {"include_usage": True},
        }
        reply = Reply()
        async with (
            GatewayClient(self.url, self.key, SystemClock()) as client,
            client.stream(body) as stream,
        ):
            async for chunk in stream.chunks():
                if piece := content_of(chunk):
                    reply.content += piece
                    hear(piece)
                _learn(reply, chunk)
            reply.told = _story(stream.headers, stream.note)
            reply.told["ms"] = round(stream.seconds * 1000)
            if stream.first_content is not None:
                reply.told["first_content_ms"] = round(stream.first_content * 1000)
        return reply


@click.command(help="Talk to a chain; --message or a pipe: one answer and exit.")
@click.argument("chain", required=False)
@click.option("-m", "--message", help="Say this, print the answer, exit.")
@options.api
@options.config
@options.as_json
@click.option("-q", "--quiet", is_flag=True, help="The answer alone, no line below it.")
def command(
    *,
    chain: str | None,
    message: str | None,
    url: str,
    config: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    talk = Talk(api_url(url, config), os.environ.get("GATEWAY_API_KEY", ""), chain or "")
    if message is None and not sys.stdin.isatty():
        message = sys.stdin.read(MAX_PIPED).strip()
        if not message:
            raise Stop("Nothing came in on stdin.", "gateway chat --message 'hi'", USAGE)
    talk.model = talk.model or _first_of(talk.models())
    if message is None:
        _converse(talk, quiet=quiet)
    elif as_json:
        say.as_json(talk.ask(message, lambda _: None).as_json())
    else:
        _turn(talk, message, quiet=quiet)


def _first_of(models: list[str]) -> str:
    if not models:
        raise Stop("This key may use no chain.", "gateway keys list", NOT_FOUND)
    return "default" if "default" in models else models[0]


def _turn(talk: Talk, text: str, *, quiet: bool) -> None:
    reply = talk.ask(text, lambda piece: click.echo(printable(piece), nl=False))
    click.echo()
    if not quiet:
        screen.show(screen.words((below(reply), screen.FAINT)), stderr=True)


def _converse(talk: Talk, *, quiet: bool) -> None:
    with contextlib.suppress(ImportError):  # some Pythons are built without it
        importlib.import_module("readline")  # line editing and history for input()
    say.note(f"{talk.model} at {talk.url}    /help for what else there is")
    while True:
        try:
            text = input(f"{talk.model}> ").strip()
        except EOFError:
            say.note("")
            return
        if not text:
            continue
        if text.startswith("/"):
            if not _obey(talk, text):
                return
            continue
        try:
            _turn(talk, text, quiet=quiet)
        except GatewayError as error:
            click.echo()
            stopped_by(error).show()
        except KeyboardInterrupt:
            say.note("\n(stopped; this turn is forgotten)")


def _obey(talk: Talk, text: str) -> bool:
    """Do what a line with a slash says; whether to go on."""
    word, _, rest = text.partition(" ")
    rest = rest.strip()
    if word == "/quit":
        return False
    try:
        if word == "/model":
            _change_model(talk, rest)
        elif word == "/save":
            _save(talk, rest)
        elif word == "/clear":
            talk.messages.clear()
        else:
            near = difflib.get_close_matches(word, COMMANDS, n=1) if word != "/help" else []
            say.note(f"Did you mean {near[0]}?" if near else HELP)
    except GatewayError as error:
        stopped_by(error).show()
    except Stop as stop:
        stop.show()
    return True


def _change_model(talk: Talk, name: str) -> None:
    if name:
        talk.model = name
        return
    models = talk.models()
    more = ", …" if len(models) > LISTED else ""
    say.note("There are: " + ", ".join(models[:LISTED]) + more)


def _save(talk: Talk, name: str) -> None:
    path = Path(name or "chat.json").expanduser()
    text = json.pretty({"model": talk.model, "messages": talk.messages}) + "\n"
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise Stop(f"{path} exists already.", "/save ANOTHER-NAME", CONFLICT) from None
    except OSError as error:
        raise Stop(f"{path} cannot be written: {error.strerror}.", "/save FILE", USAGE) from None
    say.note(f"saved to {path}")


def _learn(reply: Reply, chunk: Mapping[str, Any]) -> None:
    reply.model = str(chunk.get("model") or reply.model)
    if isinstance(chunk.get("usage"), dict):
        reply.usage = chunk["usage"]
    for choice in chunk.get("choices") or []:
        if isinstance(choice, dict) and choice.get("finish_reason"):
            reply.finish_reason = str(choice["finish_reason"])


def _story(headers: Mapping[str, str], note: Mapping[str, Any]) -> dict[str, Any]:
    """What headers said at the start and the comment at the end, which knows better."""
    told: dict[str, Any] = {"request_id": headers.get("x-request-id", "")}
    for member, header in (
        ("chain", "x-gateway-chain"),
        ("target", "x-gateway-target"),
        ("attempts", "x-gateway-attempts"),
        ("path", "x-gateway-path"),
        ("cost_usd", "x-gateway-cost-usd"),
    ):
        value = note.get(member, headers.get(header))
        if value is not None:
            told[member] = value
    if "attempts" in told:
        with contextlib.suppress(ValueError, TypeError):
            told["attempts"] = int(told["attempts"])
    return told


def below(reply: Reply) -> str:
    """`bravo · alpha rate_limited → bravo ok · 131 ms · 9 in, 20 out · $0.00012 · req_1`."""
    told = reply.told
    parts = [path_words(str(told.get("path", ""))) or str(told.get("target") or reply.model)]
    attempts = told.get("attempts")
    if isinstance(attempts, int) and attempts > 1:
        parts.append(f"{attempts} attempts")
    if "first_content_ms" in told:
        parts.append(f"first word {screen.milliseconds(told['first_content_ms'])}")
    parts.append(screen.milliseconds(told.get("ms", 0)))
    if reply.usage:
        counts = {
            "input": reply.usage.get("prompt_tokens", 0),
            "output": reply.usage.get("completion_tokens", 0),
        }
        parts.append(tokens(counts))
    if "cost_usd" in told:
        parts.append(screen.dollars(str(told["cost_usd"])))
    if reply.finish_reason not in {None, "stop"}:
        parts.append(f"finished: {reply.finish_reason}")
    if told.get("request_id"):
        parts.append(str(told["request_id"]))
    return "  " + " · ".join(part for part in parts if part)


def printable(text: str) -> str:
    """Without control characters: a model's words must not steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f"))
