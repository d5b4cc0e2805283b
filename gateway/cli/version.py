"""`gateway version`: what is installed here."""

import platform
import tomllib
from importlib import metadata
from pathlib import Path

import click

from gateway.cli import say


def installed() -> str:
    """The version of the distribution, or of the source tree we run from."""
    try:
        return metadata.version("llm-gateway")
    except metadata.PackageNotFoundError:
        source = Path(__file__).parents[2] / "pyproject.toml"
        if not source.is_file():
            return "unknown"
        return str(tomllib.loads(source.read_text())["project"]["version"])


@click.command(help="Print the version.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(*, as_json: bool = False) -> None:
    if as_json:
        python = platform.python_version()
        say.as_json({"version": installed(), "python": python, "platform": platform.platform()})
    else:
        say.data(f"gateway {installed()}")
