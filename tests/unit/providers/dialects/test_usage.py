"""Tokens are counted once, whoever counted them how; genai-prices is the second opinion."""

import json
from typing import Any

import pytest
from genai_prices import extract_usage
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.usage import Usage
from gateway.providers.dialects import usage as usages
from gateway.wire import json as door
from gateway.wire import openai


def read(**told: Any) -> Usage | None:
    return usages.read(door.decode(json.dumps(told).encode(), openai.Usage))


def tokens(prompt: int, completion: int, total: int | None = None, **more: Any) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion if total is None else total,
        **more,
    }


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (tokens(10, 5), Usage(10, 5)),
        (tokens(10, 5, prompt_tokens_details={"cached_tokens": 4}), Usage(10, 5, cached=4)),
        (tokens(10, 5, prompt_cache_hit_tokens=4), Usage(10, 5, cached=4)),  # DeepSeek
        (tokens(10, 5, num_cached_tokens=4), Usage(10, 5, cached=4)),  # Mistral
        (tokens(10, 5, cached_tokens=4), Usage(10, 5, cached=4)),  # Together
        (tokens(7, 5, prompt_tokens_details={"cached_tokens": 161}), Usage(7, 5, cached=7)),
        (
            tokens(10, 5, prompt_tokens_details={"cache_write_tokens": 6}),
            Usage(10, 5, cache_write_5m=6),
        ),
        (
            tokens(10, 5, completion_tokens_details={"reasoning_tokens": 3}),
            Usage(10, 5, reasoning=3),
        ),
        (  # xAI
            tokens(12, 2, 334, completion_tokens_details={"reasoning_tokens": 320}),
            Usage(12, 322, reasoning=320),
        ),
        (tokens(12, 2, 20), Usage(12, 8)),  # Gemini's compatible door
        (  # Mistral's audio
            tokens(10, 5, 115, prompt_tokens_details={"audio_tokens": 100}),
            Usage(110, 5, audio_input=100),
        ),
        (
            tokens(110, 5, prompt_tokens_details={"audio_tokens": 100}),
            Usage(110, 5, audio_input=100),
        ),
        (
            tokens(1, 9, completion_tokens_details={"audio_tokens": 8}),
            Usage(1, 9, audio_output=8),
        ),
        (tokens(10, 5, 3), Usage(10, 5)),
        (tokens(0, 0), None),
        (tokens(10, 0), Usage(10, 0)),
    ],
    ids=repr,
)
def test_each_token_is_counted_once(told: dict[str, Any], expected: Usage | None) -> None:
    assert read(**told) == expected


COUNTS = st.integers(0, 10_000)


@given(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
def test_parts_are_never_more_than_the_whole(
    a: int, b: int, c: int, d: int, e: int, f: int
) -> None:
    usage = read(
        **tokens(
            a,
            b,
            c,
            prompt_tokens_details={"cached_tokens": d, "cache_write_tokens": e},
            completion_tokens_details={"reasoning_tokens": f},
        )
    )
    if usage is None:
        return
    assert usage.input >= a
    assert usage.output >= b
    assert usage.total >= c
    assert usage.cached + usage.cache_write_5m <= usage.input
    assert usage.reasoning <= usage.output


@given(COUNTS, COUNTS, COUNTS)
def test_genai_prices_counts_the_same(prompt: int, completion: int, cached: int) -> None:
    told = tokens(prompt + cached + 1, completion, prompt_tokens_details={"cached_tokens": cached})
    theirs = extract_usage(
        {"model": "gpt-4o", "usage": told}, provider_id="openai", api_flavor="chat"
    ).usage
    ours = read(**told)
    assert ours is not None
    assert ours.input == theirs.input_tokens
    assert ours.output == theirs.output_tokens
    assert ours.cached == (theirs.cache_read_tokens or 0)


@pytest.mark.parametrize("junk", [None, [], "12", {}, {"prompt_tokens": "x"}, {"total_tokens": 5}])
def test_what_says_nothing_is_nothing(junk: Any) -> None:
    assert usages.mended(junk) is None


@pytest.mark.parametrize(
    "odd",
    [
        {"prompt_tokens": 3},
        {"completion_tokens": 3.0, "prompt_tokens": None},
        {"prompt_tokens": 3, "completion_tokens": True},
        {"prompt_tokens": -1, "completion_tokens": 4},
        {"prompt_tokens": 1, "completion_tokens": 10**30},
        {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": None},
        {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": "x", "y": 1}},
        {"prompt_tokens": 1, "cached_tokens": -1, "completion_tokens_details": []},
    ],
    ids=repr,
)
def test_an_odd_usage_is_mended(odd: dict[str, Any]) -> None:
    mended = usages.mended(odd)
    assert mended is not None
    typed = door.decode(json.dumps(mended).encode(), openai.Usage)
    assert usages.inclusive(typed)


def test_vectors_have_input_only() -> None:
    assert usages.vectors(openai.EmbeddingUsage(3, 3)) == Usage(input=3)
    assert usages.vectors(openai.EmbeddingUsage(0, 0)) is None
