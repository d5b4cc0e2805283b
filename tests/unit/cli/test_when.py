"""Spans and days as people type them."""

import pytest

from gateway.cli.when import day, iso, span


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("24h", 86_400), ("7d", 604_800), (" 2w ", 1_209_600)],
)
def test_spans(text: str, seconds: float) -> None:
    assert span(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-7d", "7 d", "1.5h", "999999w", "\u0667d", "7dd"])
def test_what_is_no_span(text: str) -> None:
    assert span(text) is None


def test_days() -> None:
    assert day("1970-01-02") == 86_400
    assert iso(86_400) == "1970-01-02 00:00 UTC"
    for text in ("", "tomorrow", "2026-02-30", "2026-1", "01.02.2026"):
        assert day(text) is None
