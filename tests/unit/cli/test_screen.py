"""Bars, tables and numbers; colour only where somebody looks and wants it."""

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import screen


@pytest.mark.parametrize(
    ("start", "length", "drawn"),
    [(0, 100, "████"), (0, 50, "██░░"), (50, 50, "░░██"), (99, 0.1, "░░░█"), (0, 0, "█░░░")],
)
def test_bars_are_to_scale_and_never_vanish(start: float, length: float, drawn: str) -> None:
    assert screen.bar(start, length, 100, "█", width=4) == drawn
    assert screen.bar(0, 0, 0, "█", width=4) == "█░░░"


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0 ms"), (112.4, "112 ms"), (1834, "1.83 s"), (60_000, "1 m"), (125_000, "2 m 5 s")],
)
def test_times(ms: float, text: str) -> None:
    assert screen.milliseconds(ms) == text


def test_dollars() -> None:
    assert (screen.dollars("0.00012"), screen.dollars("unknown")) == ("$0.00012", "unknown")


def test_off_a_terminal_nothing_is_cut_or_coloured(capsys: pytest.CaptureFixture[str]) -> None:
    wide = "x" * 500
    screen.show(screen.table(("a", "b"), [(screen.words((wide, screen.BAD)), "1")], right=("b",)))
    with screen.progress(2) as bar:
        bar.step("one")
    told = capsys.readouterr()
    assert told.out.splitlines() == [f"{'a':<500}  b", f"{wide}  1"]
    assert told.err == ""


@pytest.mark.skipif(not Path("/usr/bin/script").exists(), reason="needs script(1)")
@pytest.mark.parametrize(
    ("args", "env", "coloured"),
    [("", {}, True), ("--no-color", {}, False), ("", {"NO_COLOR": "1"}, False)],
)
def test_on_a_terminal(args: str, env: dict[str, str], *, coloured: bool) -> None:
    root = Path(screen.__file__).parents[2]
    done = subprocess.run(
        ["/usr/bin/script", "-qec", f"{sys.executable} -m gateway doctor --no-network {args}",
         "/dev/null"],
        capture_output=True, text=True, check=False, timeout=30, cwd=root,
        env={"TERM": "xterm-256color", "PATH": "/usr/bin:/bin", **env},
    )  # fmt: skip
    assert "python" in done.stdout
    assert ("\x1b[32m" in done.stdout) is coloured


@pytest.mark.skipif(not Path("/usr/bin/script").exists(), reason="needs script(1)")
def test_a_narrow_terminal_cuts_no_cell() -> None:
    code = (
        "from gateway.cli import screen\n"
        "screen.show(screen.table(('id', 'b'), [('r' * 90, 'x y')]))"
    )
    done = subprocess.run(
        ["/usr/bin/script", "-qec", f'{sys.executable} -c "{code}"', "/dev/null"],
        capture_output=True, text=True, check=False, timeout=30,
        cwd=Path(screen.__file__).parents[2],
        env={"TERM": "xterm", "PATH": "/usr/bin:/bin", "COLUMNS": "40"},
    )  # fmt: skip
    assert "r" * 90 + "  x y" in done.stdout
