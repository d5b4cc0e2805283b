"""Scalars are read exactly, or not at all."""

from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import nodes
from gateway.config.models import spelled_duration
from gateway.config.nodes import Scalar, Wrong, read


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("2s", 2), ("1m30s", 90), ("1h", 3600), ("30d", 2_592_000), ("0s", 0)],
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert nodes.duration(Scalar(text)) == seconds


@pytest.mark.parametrize(
    "text", ["60", "1.5", "s", "1s1m", "-1s", "1 s", "1S", "10:30", "1_0s", "٣s"]
)
def test_what_is_not_quite_a_duration_is_refused(text: str) -> None:
    with pytest.raises(Wrong):
        nodes.duration(Scalar(text))


@given(st.integers(0, 366 * 86_400_000))
def test_every_duration_is_spelled_as_it_is_read(milliseconds: int) -> None:
    assert nodes.duration(Scalar(spelled_duration(milliseconds / 1000))) == milliseconds / 1000


@given(st.decimals(0, 9_000_000, places=9))
def test_money_is_exact_to_the_nano_dollar(dollars: Decimal) -> None:
    assert nodes.money(Scalar(f"{dollars:f}")) == int(dollars * 1_000_000_000)


@pytest.mark.parametrize(
    "text", ["-1", "1e3", "$1", "0.1234567891", "9000001", ".5", "01.5", "NaN"]
)
def test_what_is_not_money_is_refused(text: str) -> None:
    with pytest.raises(Wrong):
        nodes.money(Scalar(text))


def test_sizes_shares_and_days() -> None:
    assert nodes.size(Scalar("64KiB")) == 65_536
    assert nodes.size(Scalar("20MiB")) == 20 * 1024**2
    assert nodes.share(Scalar("20%")) == 0.2
    assert nodes.share(Scalar("0.5%")) == 0.005
    assert nodes.day(Scalar("2026-12-31")) == date(2026, 12, 31)
    assert nodes.whole(0, 5000)(Scalar("4_000")) == 4000


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("true", True),
        ("no", "no"),
        ("10:30", "10:30"),
        ("1e3", "1e3"),
        ("0x10", "0x10"),
        ("010", "010"),
        ("1_000", 1000),
        ("0.7", 0.7),
        ("~", None),
        ("", None),
        ('"7"', "7"),
        ("'true'", "true"),
        ("2026-01-01", "2026-01-01"),
    ],
)
def test_a_free_value_is_what_it_looks_like(written: str, value: object) -> None:
    tree, mistakes = read(f"a: {written}\n", "f")
    assert not mistakes
    assert isinstance(tree.values, dict)
    assert nodes.anything(tree.values["a"]) == value
    assert type(nodes.anything(tree.values["a"])) is type(value)


def test_text_stays_as_written() -> None:
    assert nodes.text(Scalar("1.10")) == "1.10"


def test_a_json_number_is_never_a_nearby_one() -> None:
    with pytest.raises(Wrong):
        nodes.anything(Scalar("0.12345678901234567890123"))


def test_a_scalar_does_not_print() -> None:
    assert "canary" not in repr(Scalar("canary"))


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    read(text, "f")
