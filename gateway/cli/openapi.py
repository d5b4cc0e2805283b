"""`gateway openapi`: the OpenAPI 3.1 document of the admin API."""

from importlib.metadata import version

import click

from gateway.cli import say
from gateway.server.openapi import document


@click.command(help="Print the OpenAPI document of the admin API.")
def command() -> None:
    say.as_json(document(version("llm-gateway")))
