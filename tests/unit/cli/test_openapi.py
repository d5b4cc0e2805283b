"""`gateway openapi`."""

import json

from tests.unit.cli.conftest import Run


def test_the_document_is_printed(run: Run) -> None:
    done = run("openapi")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["openapi"] == "3.1.0"
    assert "/admin/keys/{name}" in told["paths"]
