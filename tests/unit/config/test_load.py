"""A file becomes a snapshot or one ConfigError, whatever is in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.config.load import load, load_text
from gateway.config.mistakes import ConfigError

ROOT = Path(__file__).parents[3]
KEYS = ("OPENAI_API_KEY", "OPENAI_API_KEY_2", "EAST_KEY", "GROQ_API_KEY")
ENV = {key: f"canary-{key}" for key in KEYS}
FULL = (ROOT / "config/gateway.yaml").read_text()


@pytest.mark.parametrize(
    "name", ["config/gateway.yaml", "config/minimal.yaml", "gateway/cli/demo.yaml"]
)
def test_what_we_ship_loads(name: str) -> None:
    loaded = load(ROOT / name, ENV)
    assert loaded.snapshot.chains
    assert all(target.prices for target in loaded.snapshot.targets.values())
    assert "canary" not in repr(loaded)


def test_the_minimal_file_is_minimal() -> None:
    assert len((ROOT / "config/minimal.yaml").read_text().splitlines()) <= 8


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=300))
@example('"\\UFFFFFFFF"')
@example("%YAML 99999999999.1\n--- {}")
@example("? [a]\n: b")
@example("*a : b")
@example("a: !<tag:x> b")
@example("\ud800")
@example("providers: []\nchains: []\nkeys: {}\ntargets: 3\nprices: []")
def test_any_text_is_a_snapshot_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        load_text(text, "f", {})


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_snapshot_or_a_config_error(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "f.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        load(path, {})


@settings(max_examples=80, deadline=None)
@given(st.integers(0, len(FULL)), st.integers(0, 30), st.text("{}[]:,-&*!%\"' \nax0", max_size=6))
def test_a_damaged_file_is_a_snapshot_or_a_config_error(at: int, cut: int, put: str) -> None:
    said = ""
    try:
        load_text(FULL[:at] + put + FULL[at + cut :], "f", ENV)
    except ConfigError as error:
        said = str(error)
    assert "canary" not in said


def test_a_missing_file_and_one_that_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "no.yaml", {})
    path = tmp_path / "f.yaml"
    path.write_bytes(b"a: b\nc: \xff\n")
    with pytest.raises(ConfigError, match=r"f\.yaml:2:4  not UTF-8"):
        load(path, {})


def test_the_name_of_a_snapshot_is_of_its_text_and_not_of_its_secrets() -> None:
    first = load_text(FULL, "f", ENV).snapshot.config
    other = dict.fromkeys(ENV, "rotated")
    assert len(first) == 12
    assert load_text(FULL, "g", other).snapshot.config == first
    assert load_text(FULL + "# more\n", "f", ENV).snapshot.config != first


def test_the_catalogue_is_loaded_only_for_a_target_without_price() -> None:
    program = (
        "import sys; from pathlib import Path; from gateway.config.load import load;"
        "load(Path('gateway/cli/demo.yaml'), {}); print('genai_prices' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.strip() == "False"


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    text = "providers: {s: {kind: sim}}\r\nchains: {c: [s/m]}\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert list(load(path, {}).snapshot.chains) == ["c"]
