"""`gateway version`."""

import json

from tests.unit.cli.conftest import Run


def test_version(run: Run) -> None:
    assert run("version").stdout.startswith("gateway ")
    assert run("--version").stdout == run("version").stdout
    assert set(json.loads(run("version", "--json").stdout)) == {"version", "python", "platform"}
