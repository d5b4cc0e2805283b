"""The command line: commands are found by name, so that `--help` loads none of them."""

import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from gateway.cli.exits import INTERRUPTED, OK, USAGE, Stop, stopped_by
from gateway.errors import GatewayError

COMMANDS = {
    "demo": "Watch a chain fall back; no key, nothing leaves this machine.",
    "init": "Write gateway.yaml for the providers found in the environment.",
    "serve": "Run the gateway.",
    "check": "Find every mistake in a configuration, and what will hurt.",
    "config": "Show the configuration, secrets masked, or its JSON Schema.",
    "explain": "Show who would be tried and who skipped, and why; no call.",
    "chat": "Talk to a chain; attempts and cost under each answer.",
    "env": "Print the lines that point a client at the gateway.",
    "status": "Show chains, breakers, requests in flight, configuration.",
    "why": "Tell one request's story: attempts, causes, times, cost.",
    "limits": "Show what is used and what is left of each limit and budget.",
    "keys": "Create, list, show, rotate and revoke caller keys.",
    "audit": "Show who did what, and whether that log is whole.",
    "spend": "Report what was spent; hold a provider's export against it.",
    "doctor": "Look at this machine: a report to paste, no secrets in it.",
    "healthcheck": "Ask a running gateway whether it is alive.",
    "openapi": "Print the OpenAPI document of the admin API.",
    "completion": "Print the completion script of a shell.",
    "version": "Print the version.",
}
"""Name -> one line for the listing; the command itself is `gateway/cli/<name>.py`."""


def load(name: str) -> click.Command:
    """The command of that name; its module is imported now and not before."""
    command = importlib.import_module(f"gateway.cli.{name}").command
    if not isinstance(command, click.Command):
        raise TypeError(f"gateway.cli.{name}.command is no click command")
    _add_no_color(command)
    return command


class Commands(click.Group):
    """The listing comes from the table; every failure becomes a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, COMMANDS, n=2, cutoff=0.5)
            hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
            ctx.fail(f"There is no command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return [
            CompletionItem(name, help=text)
            for name, text in COMMANDS.items()
            if name.startswith(incomplete)
        ] + click.Command.shell_complete(self, ctx, incomplete)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: FBT001, FBT002 - click's signature
        windows_expand_args: bool = True,  # noqa: FBT001, FBT002
        **extra: Any,
    ) -> Any:
        """Run, and end the process with one of the exit codes of `exits`."""

        def run() -> Any:
            return super(Commands, self).main(
                args,
                "gateway",
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )

        if not standalone_mode:
            return run()
        try:
            result = run()
            code = result if isinstance(result, int) else OK
            sys.stdout.flush()
        except click.exceptions.NoArgsIsHelpError as shown:
            shown.show()
            code = USAGE
        except click.Abort:
            click.echo("Interrupted.", err=True)
            code = INTERRUPTED
        except Stop as error:
            error.show()
            code = error.code
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except GatewayError as error:
            stopped = stopped_by(error)
            stopped.show()
            code = stopped.code
        except BrokenPipeError:  # `gateway spend | head`: whoever read has seen enough
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = OK
        sys.exit(code)


def _no_color(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's
    if value:
        ctx.color = False


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if value and not ctx.resilient_parsing:
        ctx.invoke(load("version"))
        ctx.exit()


def _add_no_color(command: click.Command) -> None:
    """`--no-color` is understood before and after a command's name."""
    if all(parameter.name != "no_color" for parameter in command.params):
        command.params.append(
            click.Option(
                ["--no-color"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_no_color,
                help="No colour, as with NO_COLOR.",
            )
        )
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _add_no_color(below)


@click.group(
    cls=Commands,
    context_settings={
        "auto_envvar_prefix": "GATEWAY",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
    epilog="Exit codes: 0 ok · 1 internal · 2 usage · 3 not authorised · 4 not found · "
    "5 conflict · 6 unavailable · 10 check failed · 130 interrupted.",
)
@click.option(
    "--no-color",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_no_color,
    help="No colour, as with NO_COLOR.",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Print the version.",
)
def cli() -> None:
    """Run one process between agents and LLM providers: chains, limits, exact cost."""


def main() -> None:
    """The entry point of the `gateway` script; never returns."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 still gets a line
    cli.main()
