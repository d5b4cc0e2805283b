"""The door: what loads for a listing, what an unknown name hears, and how commands end."""

import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gateway import errors
from gateway.cli import main
from gateway.cli.exits import CONFLICT, INTERRUPTED, NOT_AUTHORISED, UNAVAILABLE, USAGE, Stop
from tests.unit.cli.conftest import Run

HEAVY = ("rich", "aiohttp", "redis", "pydantic", "yaml", "genai_prices", "prometheus_client")


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        cwd=Path(main.__file__).parents[2],
    )


@pytest.mark.parametrize(
    "args", [["--help"], ["completion", "bash"], ["version"], ["healthcheck", "--help"]]
)
def test_what_must_be_quick_loads_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\nfrom gateway.cli.main import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "assert not heavy, heavy"
    )
    done = python(code, *args)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_is_quick() -> None:
    took = []
    for _ in range(3):
        began = time.perf_counter()
        python("from gateway.cli.main import main; main()", "--help")
        took.append(time.perf_counter() - began)
    assert min(took) < 0.45  # 0.1 s on an idle machine; three times the budget on a busy one


def test_every_command_of_the_table_is_listed_and_has_a_file(run: Run) -> None:
    told = run("--help").stdout
    for text in main.COMMANDS.values():
        assert text in told
        assert len(text) <= 64
        assert "\n" not in text
    folder = Path(main.__file__).parent
    missing = [n for n in main.COMMANDS if not (folder / f"{n}.py").exists()]
    assert set(missing) <= {"serve", "demo", "check", "config"}, missing


@pytest.mark.parametrize(
    "name", [n for n in main.COMMANDS if (Path(main.__file__).parent / f"{n}.py").exists()]
)
def test_every_command_has_help(run: Run, name: str) -> None:
    done = run(name, "--help")
    assert done.exit_code == 0
    assert "--no-color" in done.stdout


def test_no_arguments_show_the_listing_as_a_mistake(run: Run) -> None:
    done = run()
    assert done.exit_code == USAGE
    assert "explain" in done.stdout + done.stderr


def test_an_unknown_command_names_the_nearest(run: Run) -> None:
    done = run("explian")
    assert done.exit_code == USAGE
    assert "Did you mean 'explain'" in done.stderr
    assert run("frobnicate-it-all").exit_code == USAGE


def test_an_unknown_option_is_a_usage_error(run: Run) -> None:
    assert run("version", "--colour").exit_code == USAGE
    assert run("--colour").exit_code == USAGE


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (Stop("it is there", "--force", CONFLICT), CONFLICT),
        (click.Abort(), INTERRUPTED),
        (KeyboardInterrupt(), INTERRUPTED),
        (errors.Unauthenticated("who?"), NOT_AUTHORISED),
        (errors.Overloaded("full"), UNAVAILABLE),
        (errors.GatewayError("broken"), 1),
        (BrokenPipeError(), 0),
    ],
)
def test_how_a_command_ends(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int
) -> None:
    @click.command()
    def command() -> None:
        raise raised

    monkeypatch.setattr(main, "load", lambda _: command)
    assert CliRunner().invoke(main.cli, ["version"]).exit_code == code


def test_an_error_says_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def command() -> None:
        error = errors.UpstreamFailed("No target could answer.")
        error.request_id = "req_7"
        error.attempts = [{"target": "gpt", "cause": "timeout", "ms": 12}]
        raise error

    monkeypatch.setattr(main, "load", lambda _: command)
    told = CliRunner().invoke(main.cli, ["version"]).stderr
    assert "gpt: timeout after 12 ms" in told
    assert "gateway why req_7" in told


def test_completion_of_command_names_loads_no_command() -> None:
    code = "from gateway.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={"_GATEWAY_COMPLETE": "bash_complete", "COMP_WORDS": "gateway he", "COMP_CWORD": "1"},
        cwd=Path(main.__file__).parents[2],
    )
    assert done.stdout.split() == ["plain,healthcheck"]
