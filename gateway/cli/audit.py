"""`gateway audit`: who did what, from the state directory; `--verify` walks the chain."""

from pathlib import Path

import click

from gateway.app.state import shared_dir
from gateway.cli import options, say, screen
from gateway.cli.exits import FAILED, UNAVAILABLE, Stop
from gateway.cli.local import configuration
from gateway.core.audit import Seals
from gateway.core.key_told import moment
from gateway.state.embedded.audit import AuditFile

MOST_FAULTS = 20  # told; one is enough to look
HEADERS = ("line", "when", "who", "verb", "object", "result", "config")


@click.command(help="Show who did what. --verify finds a changed or missing line (exit code 10).")
@click.option("--last", type=click.IntRange(1, 100_000), default=50, show_default=True)
@click.option("--verify", is_flag=True, help="Walk the chain of hashes, every line.")
@click.option("--holds", default="", metavar="HASH", help="With --verify: a hash of the log.")
@options.config
@options.as_json
def command(*, last: int, verify: bool, holds: str, config: Path, as_json: bool) -> None:
    folder = shared_dir(configuration(config).snapshot.server)
    file = AuditFile(folder)
    try:
        if verify or holds:
            _verified(*file.verify(MOST_FAULTS, holds.strip().lower()), as_json=as_json)
        else:
            _show(file, last, as_json=as_json)
    except OSError as error:
        what = f"The state directory {folder} cannot be used: {error.strerror}."
        raise Stop(what, "gateway doctor", UNAVAILABLE) from None


def _show(file: AuditFile, last: int, *, as_json: bool) -> None:
    lines = file.newest(last)
    if as_json:
        told = [{**line._asdict(), "at": moment(line.at / 1000)} for line in lines]
        say.as_json({"lines": told})
    elif not lines:
        say.note("Nothing yet: the log begins with the first start, or the first key.")
    else:
        rows = [
            (str(line.seq), moment(line.at / 1000), *map(str, line[2:7]))
            for line in reversed(lines)
        ]
        screen.show(screen.table(HEADERS, rows, right=("line",)))


def _verified(seals: Seals, faults: list[str], *, as_json: bool) -> None:
    anchor, head = seals
    if as_json:
        say.as_json(
            {
                "holds": not faults,
                "faults": faults,
                "first": anchor.seq + 1,
                "last": head.seq,
                "hash": head.hash,
            }
        )
    elif not faults:
        say.data(f"The chain holds: lines {anchor.seq + 1} to {head.seq}.")
        say.data(f"The last has the hash {head.hash}")
    if faults:
        said = "\n  ".join(faults)
        raise Stop(
            f"The audit log is not as it was written:\n  {said}",
            "compare with the lines of event audit in the gateway's own log, or a backup",
            FAILED,
        )
