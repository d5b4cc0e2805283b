"""Options that several commands share, spelled once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_CONFIG = Path("gateway.yaml")
DEFAULT_URL = "http://127.0.0.1:8080/v1"
DEFAULT_ADMIN = "http://127.0.0.1:8081"


def config(command: F) -> F:
    """`-c FILE`, else `$GATEWAY_CONFIG`, else `./gateway.yaml`."""
    return click.option(
        "-c",
        "--config",
        "config",
        type=click.Path(path_type=Path),
        envvar="GATEWAY_CONFIG",
        default=DEFAULT_CONFIG,
        show_default=True,
        help="Configuration file; else $GATEWAY_CONFIG.",
    )(command)


def as_json(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="One JSON object.")(command)


def admin(command: F) -> F:
    """`--admin-url`, else `$GATEWAY_ADMIN_URL`, else `server.admin` of the configuration."""
    return click.option(
        "--admin-url",
        envvar="GATEWAY_ADMIN_URL",
        default="",
        help="The admin listener; else server.admin of the configuration at hand.",
    )(command)


def api(command: F) -> F:
    return click.option(
        "--url",
        envvar="GATEWAY_URL",
        default="",
        help=f"The public API, else $GATEWAY_URL, else {DEFAULT_URL}.",
    )(command)
