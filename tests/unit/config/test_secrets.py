"""References are replaced once; what they hold is never said."""

import pytest

from gateway.config.nodes import Scalar, Wrong
from gateway.config.secrets import expand

ENV = {"A": "one", "B": "${A}", "EMPTY": ""}


@pytest.mark.parametrize(
    ("written", "found", "referred"),
    [
        ("plain", "plain", False),
        ("${A}", "one", True),
        ("x-${A}-${A}", "x-one-one", True),
        ("${B}", "${A}", True),
        ("${NOPE:-two}", "two", True),
        ("${EMPTY:-two}", "two", True),
        ("${NOPE:-}", "", True),
        ("$A", "$A", False),
    ],
)
def test_a_reference_is_read_once(written: str, found: str, *, referred: bool) -> None:
    assert expand(Scalar(written), "a secret", ENV) == (found, referred)


@pytest.mark.parametrize("written", ["${NOPE}", "${EMPTY}", "${A", "${}", "${1}", "${A:-${B}}"])
def test_what_is_not_there_or_misspelt_is_refused(written: str) -> None:
    with pytest.raises(Wrong):
        expand(Scalar(written), "a secret", ENV)


def test_a_file_of_several_lines_or_of_bytes_is_no_secret(tmp_path) -> None:
    for content in (b"canary\nmore", b"\xff", b" \n", b"x" * 70_000):
        path = tmp_path / "secret"
        path.write_bytes(content)
        with pytest.raises(Wrong) as caught:
            expand(Scalar(f"${{file:{path}}}"), "a secret", {})
        assert "canary" not in str(caught.value)
