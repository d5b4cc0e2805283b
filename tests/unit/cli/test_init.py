"""`gateway init`: what it finds, what it writes, and that the file works."""

import re
from pathlib import Path

import pytest

from gateway.cli.exits import CONFLICT, USAGE
from gateway.cli.init import OLLAMA, VENDORS, ollama_url
from gateway.config.lint import lint
from gateway.config.load import load
from gateway.core.keys import read_key
from tests.unit.cli.conftest import Run

EVERY = {vendor.variable: f"secret-of-{vendor.name}" for vendor in VENDORS} | {
    OLLAMA.variable: "localhost"
}


def test_with_nothing_found_the_simulator_serves(run: Run, tmp_path: Path) -> None:
    done = run("init", "--yes")
    assert done.exit_code == 0
    loaded = load(tmp_path / "gateway.yaml", {})
    assert {target.kind for target in loaded.snapshot.targets.values()} == {"sim"}
    assert lint(loaded) == []


def test_the_key_is_printed_once_and_only_its_hash_is_written(run: Run, tmp_path: Path) -> None:
    done = run("init", "--yes")
    (secret,) = re.findall(r"gk_\w{8}_[\w-]{43}_\w{6}", done.stdout + done.stderr)
    text = (tmp_path / "gateway.yaml").read_text()
    assert secret not in text
    assert read_key(secret).digest.hex() in text
    assert done.stdout.splitlines() == [
        f"export GATEWAY_API_KEY={secret}",
        "export OPENAI_BASE_URL=http://127.0.0.1:8080/v1",
        'export OPENAI_API_KEY="${GATEWAY_API_KEY:-local}"',
    ]


def test_every_provider_found_stands_in_the_chain_by_the_name_of_its_variable(
    run: Run, tmp_path: Path
) -> None:
    done = run("init", "--yes", "--no-live", env=EVERY)
    assert done.exit_code == 0, done.stderr
    text = (tmp_path / "gateway.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=")
    assert "secret-of" not in text + done.stdout + done.stderr
    snapshot = load(tmp_path / "gateway.yaml", EVERY).snapshot
    leaves = snapshot.chains["default"].leaves()
    assert [leaf.name for leaf in leaves] == [f"{v.name}/{v.model}" for v in (*VENDORS, OLLAMA)]
    for leaf in leaves:
        (target,) = leaf.targets
        assert target.kind == "openai"
        assert target.prices, f"{target.name} has no price"
    assert snapshot.targets["groq/llama-3.3-70b-versatile"].secret.reveal() == "secret-of-groq"
    assert snapshot.targets["ollama/llama3.2"].base_url == "http://localhost:11434/v1"


def test_a_file_is_overwritten_only_with_force(run: Run, config: Path) -> None:
    before = config.read_text()
    done = run("init", "--yes")
    assert (done.exit_code, done.stdout) == (CONFLICT, "")
    assert "--force" in done.stderr
    assert config.read_text() == before
    assert run("init", "--yes", "--force").exit_code == 0
    assert config.read_text() != before
    assert run("init", "--yes", "--output", "other.yaml").exit_code == 0


def test_whoever_says_no_gets_no_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.cli.say.interactive", lambda: True)
    assert run("init", input="n\n").exit_code == 130
    assert not (tmp_path / "gateway.yaml").exists()
    assert run("init", input="\n").exit_code == 0


def test_a_place_that_cannot_be_written(run: Run) -> None:
    done = run("init", "--yes", "--output", "no/such/folder/g.yaml")
    assert (done.exit_code, done.stdout) == (USAGE, "")
    assert "--output" in done.stderr


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("localhost", "http://localhost:11434/v1"),
        ("127.0.0.1:9999", "http://127.0.0.1:9999/v1"),
        ("0.0.0.0", "http://127.0.0.1:11434/v1"),
        ("0.0.0.0:8", "http://127.0.0.1:8/v1"),
        ("http://box:11434/", "http://box:11434/v1"),
        ("https://box", "https://box:11434/v1"),
        ("[::1]:8", "http://[::1]:8/v1"),
    ],
)
def test_ollamas_own_spellings(host: str, url: str) -> None:
    assert ollama_url(host) == url


def test_a_host_that_would_break_the_file_is_refused(run: Run, tmp_path: Path) -> None:
    done = run("init", "--yes", env={"OLLAMA_HOST": 'a"\nkeys: []'})
    assert done.exit_code == USAGE
    assert not (tmp_path / "gateway.yaml").exists()
