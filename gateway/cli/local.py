"""The configuration file that local commands work on, or the words for why there is none."""

import os
from pathlib import Path

from gateway.cli.exits import NOT_FOUND, USAGE, Stop
from gateway.config.load import Loaded, load
from gateway.config.mistakes import ConfigError
from gateway.core.snapshot import Snapshot


def configuration(path: Path) -> Loaded:
    """Load `path`.

    Raises:
        Stop: it is not there, or has mistakes (all of them are told).
    """
    if not path.is_file():
        raise Stop(
            f"There is no configuration at {path}.", "gateway init    (or -c FILE)", NOT_FOUND
        )
    try:
        return load(path, os.environ)
    except ConfigError as error:
        raise Stop(str(error).rstrip(), f"gateway check {path}", USAGE) from None


def at_hand(path: Path) -> Snapshot | None:
    """The configuration if there is one without mistakes: for defaults that can also be given."""
    try:
        return configuration(path).snapshot
    except Stop:
        return None
