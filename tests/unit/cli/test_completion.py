"""`gateway completion`: a script for each shell."""

import pytest

from gateway.cli.exits import USAGE
from tests.unit.cli.conftest import Run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(run: Run, shell: str) -> None:
    done = run("completion", shell)
    assert done.exit_code == 0
    assert "_GATEWAY_COMPLETE" in done.stdout


def test_completion_of_an_unknown_shell(run: Run) -> None:
    assert run("completion", "tcsh").exit_code == USAGE
