"""`gateway doctor`: a report to paste, with no secret in it."""

import json
from pathlib import Path

import pytest

from gateway.cli.doctor import file_system
from gateway.cli.exits import FAILED
from tests.unit.cli.conftest import FakeGateway, Run

MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
tmpfs /home/me/with\\040space tmpfs rw 0 0
tmpfs / overlay rw 0 0
broken
"""


def findings(run: Run, *args: str) -> tuple[int, dict[str, dict[str, str]]]:
    done = run("doctor", "--json", *args)
    told = json.loads(done.stdout)
    assert told["ok"] is (done.exit_code == 0)
    return done.exit_code, {finding["what"]: finding for finding in told["findings"]}


def test_without_a_configuration_all_is_well(run: Run) -> None:
    done = run("doctor")
    assert done.exit_code == 0, done.stdout
    for word in ("python", "open files", "clock", "file system", "gateway init"):
        assert word in done.stdout


def test_a_configuration_that_was_asked_for_must_be_there(run: Run) -> None:
    code, found = findings(run, "-c", "other.yaml")
    assert (code, found["configuration"]["verdict"]) == (FAILED, "error")


def test_a_broken_configuration_points_to_check(run: Run, config: Path) -> None:
    config.write_text("chains: {}\n")
    code, found = findings(run)
    assert code == FAILED
    assert "gateway check" in found["configuration"]["detail"]


def test_state_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    code, found = findings(run)
    assert (code, found["state"]["verdict"]) == (FAILED, "error")


def test_providers_are_looked_for_and_nothing_is_sent(
    run: Run, config: Path, gateway: FakeGateway
) -> None:
    config.write_text(
        "providers:\n"
        f'  here: {{kind: openai, base_url: "{gateway.url}/v1", allow_http: true,'
        " allow_private: true}\n"
        '  gone: {kind: openai, base_url: "http://127.0.0.1:1/v1", allow_http: true,'
        " allow_private: true}\n"
        "chains: {c: [here/x, gone/x]}\nprices: {here/x: free, gone/x: free}\n"
    )
    code, found = findings(run)
    assert (code, found["provider here"]["verdict"]) == (FAILED, "ok")
    assert found["provider gone"]["verdict"] == "error"
    assert gateway.asked == []
    assert findings(run, "--no-network")[0] == 0


def test_variables_are_named_and_never_shown(run: Run) -> None:
    done = run("doctor", env={"GATEWAY_API_KEY": "gk_mine"})
    assert "GATEWAY_API_KEY" in done.stdout
    assert "gk_mine" not in done.stdout


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib", "overlay"),
        ("/home/you", "nfs4"),
        ("/homer", "overlay"),
        ("/home/me/with space/state", "tmpfs"),
    ],
)
def test_the_nearest_mount_counts(path: str, kind: str) -> None:
    assert file_system(Path(path), MOUNTS) == kind
    assert file_system(Path(path), "") == ""
