"""`gateway init`: gateway.yaml for the providers whose keys are in the environment."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from gateway.cli import say
from gateway.cli.env import lines
from gateway.cli.exits import CONFLICT, FAILED, USAGE, Stop
from gateway.cli.live import check_live, told
from gateway.cli.local import configuration
from gateway.cli.options import DEFAULT_URL
from gateway.config.lint import lint
from gateway.config.load import Loaded
from gateway.core.keys import MadeKey, make_key

SCHEMA = "./gateway.schema.json"
CALLER = "me"
TIER = "personal"


@dataclass(frozen=True, slots=True)
class Vendor:
    """A provider that may be found: all of them speak OpenAI's dialect at their base URL.

    `model`: a small, cheap one to begin with.
    """

    name: str
    variable: str
    model: str
    base_url: str | None = None  # None: OpenAI's own


VENDORS = (
    Vendor("openai", "OPENAI_API_KEY", "gpt-5-mini"),
    Vendor("anthropic", "ANTHROPIC_API_KEY", "claude-haiku-4-5", "https://api.anthropic.com/v1"),
    Vendor(
        "gemini",
        "GEMINI_API_KEY",
        "gemini-2.5-flash",
        "https://generativelanguage.googleapis.com/v1beta/openai",
    ),
    Vendor("groq", "GROQ_API_KEY", "llama-3.3-70b-versatile", "https://api.groq.com/openai/v1"),
    Vendor("mistral", "MISTRAL_API_KEY", "mistral-small-latest", "https://api.mistral.ai/v1"),
    Vendor("deepseek", "DEEPSEEK_API_KEY", "deepseek-chat", "https://api.deepseek.com/v1"),
    Vendor("openrouter", "OPENROUTER_API_KEY", "openai/gpt-5-mini", "https://openrouter.ai/api/v1"),
)
OLLAMA = Vendor("ollama", "OLLAMA_HOST", "llama3.2")
SIMULATED = ("alpha", "bravo", "charlie")


@click.command(help="Write gateway.yaml for the providers found in the environment.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
              default=Path("gateway.yaml"), show_default=True, help="Where to write.")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--live/--no-live", default=True,
              help="End with one 1-token request per target.")  # fmt: skip
@click.pass_context
def command(ctx: click.Context, *, output: Path, force: bool, yes: bool, live: bool) -> None:
    if output.exists() and not force:
        mend = f"gateway init --force    (or --output ANOTHER.yaml; or gateway check {output})"
        raise Stop(f"{output} exists already, and is left alone.", mend, CONFLICT)
    found = find(os.environ)
    for vendor in found:
        say.note(f"found {vendor.variable}: {vendor.name}/{vendor.model}")
    if not found:
        variables = ", ".join(vendor.variable for vendor in (*VENDORS, OLLAMA))
        say.note(f"No provider found ({variables}).")
        say.note(f"Simulated ones will do: {', '.join(SIMULATED)}; nothing leaves this machine.")
    if not yes and say.interactive():
        click.confirm(f"Write {output}?", default=True, abort=True, err=True)
    key = make_key()
    _write(output, document(found, os.environ, key))
    say.note(f"wrote {output}    one chain: default")
    passed = _check(output, live=live and bool(found))
    _tell(key)
    if not passed:
        ctx.exit(FAILED)


def find(env: Mapping[str, str]) -> list[Vendor]:
    """The providers whose variable is set, in the order they will be asked."""
    return [vendor for vendor in (*VENDORS, OLLAMA) if env.get(vendor.variable, "").strip()]


def document(found: Sequence[Vendor], env: Mapping[str, str], key: MadeKey) -> str:
    """The file: names of variables instead of secrets, the hash of the caller's key."""
    parts = [f"# yaml-language-server: $schema={SCHEMA}", "version: 1", "", "providers:"]
    if found:
        for vendor in found:
            parts += _provider(vendor, env)
        steps = [f"{vendor.name}/{vendor.model}" for vendor in found]
    else:
        parts += [f"  {name}: {{kind: sim}}" for name in SIMULATED]
        steps = [f"{name}/sim" for name in SIMULATED]
    parts += ["", "chains:", "  default:  # asked in this order"]
    parts += ["    try:", *(f"      - {step}" for step in steps)]
    parts += ["", "tiers:  # what a key may use; more in config/gateway.yaml"]
    parts.append(f"  {TIER}: {{limits: {{rpm: 600, concurrency: 50}}, may: [skip, target, trace]}}")
    parts += ["", "keys:  # another one: gateway keys create NAME"]
    parts.append(f'  - {{name: {CALLER}, tier: {TIER}, hash: "sha256:{key.digest.hex()}"}}')
    if OLLAMA in found:
        parts += ["", "prices:", f"  {OLLAMA.name}/{OLLAMA.model}: free"]
    return "\n".join(parts) + "\n"


def _provider(vendor: Vendor, env: Mapping[str, str]) -> list[str]:
    if vendor is OLLAMA:
        url = ollama_url(env[OLLAMA.variable])
        return [
            f"  {vendor.name}:",
            "    kind: openai",
            f'    base_url: "{url}"',
            "    allow_http: true",
            "    allow_private: true",
        ]
    told = [f"  {vendor.name}:", "    kind: openai"]
    if vendor.base_url is not None:
        told.append(f'    base_url: "{vendor.base_url}"')
    return [*told, f'    key: "${{{vendor.variable}}}"']


def ollama_url(host: str) -> str:
    """What ollama itself reads: `host`, `host:port`, or a URL; 0.0.0.0 is where it listens."""
    scheme, mark, rest = host.strip().rpartition("://")
    place = rest.strip("/").split("/")[0]
    name, colon, port = place.rpartition(":")
    if not colon or not port.isdigit():
        name, port = place, "11434"
    if name in {"0.0.0.0", "", "[::]"}:  # noqa: S104 - its word for "every address"
        name = "127.0.0.1"
    if not all(c.isalnum() or c in ".-_[]:" for c in name):
        raise Stop("OLLAMA_HOST is no address.", "export OLLAMA_HOST=127.0.0.1:11434", USAGE)
    return f"{scheme if mark else 'http'}://{name}:{port}/v1"


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise Stop(f"{path} cannot be written: {error.strerror}.", "--output FILE", USAGE) from None


def _check(path: Path, *, live: bool) -> bool:
    """What `gateway check --live` would say, on stderr; whether it found no error."""
    loaded = configuration(path)
    findings = lint(loaded)
    for finding in findings:
        say.note(str(finding))
    passed = all(finding.severity != "error" for finding in findings)
    if live:
        passed = _live(loaded) and passed
    say.note(f"checked {path}: {'ok' if passed else 'see above'}")
    return passed


def _live(loaded: Loaded) -> bool:
    rows = asyncio.run(check_live(loaded))
    for row in rows:
        say.note(told(row))
    return all(row["ok"] for row in rows)


def _tell(key: MadeKey) -> None:
    """The key, once, as a line for a shell; then what points a client here."""
    say.note("\nYour key, shown this once (the file holds its hash only):")
    say.data(f"export GATEWAY_API_KEY={key.secret.reveal()}")
    for line in lines("openai", DEFAULT_URL):
        say.data(line)
    say.note("\nNext:  gateway serve")
    say.note("       gateway config schema > gateway.schema.json    (your editor completes keys)")
