"""The schema says the same as the models; `check` and `config` print what they are asked."""

from pathlib import Path

from click.testing import CliRunner

from gateway.cli import check, config
from gateway.config.schema import schema
from gateway.wire import json

ROOT = Path(__file__).parents[3]


def test_the_schema_beside_the_examples_is_the_models_own() -> None:
    """Mend: gateway config schema > config/gateway.schema.json."""
    beside = json.loads((ROOT / "config/gateway.schema.json").read_bytes())
    assert beside == schema()


def test_every_key_of_the_schema_stands_in_the_full_example() -> None:
    text = (ROOT / "config/gateway.yaml").read_text()
    made = schema()
    keys = {key for part in (made, *made["$defs"].values()) for key in part.get("properties", ())}
    also_in = {
        key for part in made["$defs"]["ChainSection"]["anyOf"] for key in part.get("properties", ())
    }
    missing = sorted(key for key in keys | also_in if f"{key}:" not in text)
    assert not missing


def test_check_prints_counts_and_exits(tmp_path: Path) -> None:
    good, warned, bad = (tmp_path / name for name in ("good.yaml", "warned.yaml", "bad.yaml"))
    head = "providers: {s: {kind: sim}}\n"
    good.write_text(head + "chains: {c: [s/m, s/n]}\n")
    warned.write_text(head + "chains: {c: [s/m]}\n")
    bad.write_text(head + "chains: {c: [x]}\n")
    run = CliRunner().invoke
    told = run(check.command, [str(good)])
    assert told.exit_code == 0
    assert "ok · 1 chain, 2 targets · config " in told.stdout
    assert run(check.command, [str(warned)]).exit_code == 0
    assert run(check.command, ["--strict", str(warned)]).exit_code == 10
    told = run(check.command, [str(bad), str(warned)])
    assert told.exit_code == 10
    assert told.stdout.splitlines()[-1] == "1 error, 1 warning · the running config stays in force"
    told = run(check.command, ["--json", str(bad)])
    found = json.loads(told.stdout.encode())
    assert (found["errors"], found["findings"][0]["line"]) == (1, 2)
    told = run(check.command, ["--format", "github", str(bad)])
    assert told.stdout.startswith(f"::error file={bad},line=2,col=14,title=chains.c[0]::no such")


def test_check_finds_the_file_in_the_environment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GATEWAY_CONFIG", str(tmp_path / "none.yaml"))
    told = CliRunner().invoke(check.command, [])
    assert told.exit_code == 10
    assert "cannot be read" in told.stdout


def test_config_shows_the_demo_and_the_schema() -> None:
    run = CliRunner().invoke
    demo = run(config.command, ["show", "--demo"]).stdout
    assert demo == (ROOT / "gateway/cli/demo.yaml").read_text()
    assert json.loads(run(config.command, ["schema"]).stdout.encode()) == schema()
