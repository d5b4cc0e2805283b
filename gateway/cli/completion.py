"""`gateway completion`: the script that teaches a shell our commands."""

import sys

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

SHELLS: dict[str, type[ShellComplete]] = {
    "bash": BashComplete,
    "zsh": ZshComplete,
    "fish": FishComplete,
}
HINTS = {
    "bash": 'eval "$(gateway completion bash)"    in ~/.bashrc',
    "zsh": 'eval "$(gateway completion zsh)"    in ~/.zshrc',
    "fish": "gateway completion fish > ~/.config/fish/completions/gateway.fish",
}


@click.command(help="Print the completion script of a shell: bash, zsh or fish.")
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    found = SHELLS[shell](ctx.find_root().command, {}, "gateway", "_GATEWAY_COMPLETE")
    # Not `source()`: for bash that starts a bash to ask its version.
    click.echo(found.source_template % found.source_vars())
    if sys.stdout.isatty():
        click.echo(f"# put it to use:  {HINTS[shell]}", err=True)
