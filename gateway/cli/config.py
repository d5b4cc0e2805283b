"""`gateway config`: the effective configuration with secrets masked, and the schema of the file."""

from importlib import resources
from pathlib import Path

import click

from gateway.cli import options, say
from gateway.cli.local import configuration
from gateway.config.schema import schema
from gateway.config.show import as_yaml, show


@click.group()
def command() -> None:
    """Print the configuration or its JSON Schema."""


@command.command("show")
@options.config
@options.as_json
@click.option("--demo", is_flag=True, help="The file that `gateway demo` runs on.")
def show_command(config: Path, *, as_json: bool, demo: bool) -> None:
    """Print the file with every default filled in and secrets masked."""
    if demo:
        say.data(demo_text().rstrip())
        return
    loaded = configuration(config)
    if as_json:
        say.data(show(loaded))
    else:
        say.data(as_yaml(loaded).rstrip())


@command.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of the file, for editors."""
    say.as_json(schema())


def demo_text() -> str:
    """The built-in demo configuration, as it is shipped."""
    return resources.files("gateway.cli").joinpath("demo.yaml").read_text("utf-8")
