"""`gateway serve`: how many processes, and with which configuration a later one begins."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.app.house import House, Wishes
from gateway.app.source import Source
from gateway.cli.exits import USAGE
from gateway.cli.serve import Latest, processes
from gateway.clock import SystemClock
from gateway.core.target import Secret
from tests.unit.cli.conftest import Run

KEYS = 'keys: [{name: a, hash: "sha256:' + "ab" * 32 + '"}]\n'
SIM = "providers: {s: {kind: sim}}\nchains: {smart: [s/m]}\n"


@pytest.mark.parametrize("said", ["0", "257", "many", "-1", "1.5"])
def test_a_number_of_workers_that_is_none_is_refused(run: Run, config: Path, said: str) -> None:
    done = run("serve", "-c", str(config), "--workers", said)
    assert done.exit_code == USAGE
    assert "a whole number from 1 to 256 is expected, or auto" in done.stderr


def test_auto_is_one_for_each_core_we_may_use() -> None:
    assert processes("auto") == len(os.sched_getaffinity(0))
    assert processes(7) == 7


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gateway.yaml"


def latest(file: Path, text: str, host: str = "127.0.0.1") -> Latest:
    """As a supervisor has it that was started with this file and listens there."""
    file.write_text(text)

    def make() -> House:
        return House(Source({}, file), SystemClock(), Wishes(Secret("x")))

    house = make()
    server = replace(house.snapshot.server, host=host, port=9999)
    house.snapshot = replace(house.snapshot, server=server)
    return Latest(house, make)


def test_a_later_worker_begins_with_the_last_file_that_was_right(file: Path) -> None:
    begun = latest(file, SIM)
    file.write_text(SIM.replace("smart", "swift"))
    begun.renew()
    assert set(begun.house.snapshot.chains) == {"swift"}
    assert begun.house.snapshot.server.port == 9999  # server waits for a restart
    file.write_text(SIM.replace("s/m", "nobody/m"))
    begun.renew()
    assert set(begun.house.snapshot.chains) == {"swift"}


def test_a_later_worker_opens_no_door_that_a_reload_would_keep_shut(file: Path) -> None:
    begun = latest(file, KEYS + SIM, "203.0.113.1")
    file.write_text(SIM)
    begun.renew()
    assert not begun.house.snapshot.keyless
