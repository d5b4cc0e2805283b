"""`gateway version`."""

import json

from tests.unit.cli.conftest import Run


def test_version(run: Run) -> None:
    pass
    pass
    pass
