"""What an OpenAI-like `usage` means in whole tokens, each counted once (wire-mapping.md 3)."""

from typing import Any

from gateway.core.usage import Usage
from gateway.wire import json, openai

_DETAILS = ("prompt_tokens_details", "completion_tokens_details")
_NO_PROMPT = openai.PromptDetails()
_NO_COMPLETION = openai.CompletionDetails()


def read(told: openai.Usage) -> Usage | None:
    """Inclusive totals: cache inside the input, reasoning inside the output.

    xAI and Gemini leave reasoning out of completion_tokens and Mistral leaves audio out of
    prompt_tokens: only the total has them. All zero is "not said": nothing costs nothing.
    """
    prompt, completion = told.prompt_tokens, told.completion_tokens
    inputs = told.prompt_tokens_details or _NO_PROMPT
    outputs = told.completion_tokens_details or _NO_COMPLETION
    audio = inputs.audio_tokens or 0
    beyond = told.total_tokens - prompt - completion
    if beyond > 0:
        if audio and beyond >= audio:
            prompt += audio
            beyond -= audio
        completion += beyond
    cached = (
        inputs.cached_tokens
        or told.prompt_cache_hit_tokens
        or told.num_cached_tokens
        or told.cached_tokens
        or 0
    )
    cached = min(cached, prompt)
    if not prompt and not completion:
        return None
    return Usage(
        input=prompt,
        output=completion,
        cached=cached,
        cache_write_5m=min(inputs.cache_write_tokens or 0, prompt - cached),
        reasoning=min(outputs.reasoning_tokens or 0, completion),
        audio_input=min(audio, prompt),
        audio_output=min(outputs.audio_tokens or 0, completion),
    )


def vectors(told: openai.EmbeddingUsage) -> Usage | None:
    """Of embeddings; all zero is "not said"."""
    tokens = max(told.prompt_tokens, told.total_tokens)
    return Usage(input=tokens) if tokens else None


def mended(told: Any) -> dict[str, Any] | None:
    """A usage that OpenAI's types accept and whose total is the sum; None: it says nothing."""
    if not isinstance(told, dict):
        return None
    prompt, completion = _count(told.get("prompt_tokens")), _count(told.get("completion_tokens"))
    if prompt is None and completion is None:
        return None
    prompt, completion = prompt or 0, completion or 0
    total = _count(told.get("total_tokens"))
    usage = {
        **told,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": max(prompt + completion, total or 0),
    }
    for name in ("prompt_cache_hit_tokens", "num_cached_tokens", "cached_tokens"):
        if name in usage and _count(usage[name]) is None:
            del usage[name]
    for name in _DETAILS:
        details = usage.get(name)
        if isinstance(details, dict):
            usage[name] = {
                sort: n
                for sort, n in details.items()
                if not sort.endswith("_tokens") or _count(n) is not None
            }
        else:
            usage.pop(name, None)
    try:
        seen = read(json.decode(json.dumps(usage), openai.Usage))
    except json.JSONError:
        return None
    if seen is not None:
        usage["prompt_tokens"], usage["completion_tokens"] = seen.input, seen.output
        usage["total_tokens"] = seen.total
    return usage


def inclusive(told: openai.Usage) -> bool:
    """Whether a caller who adds it up gets the total."""
    return told.prompt_tokens + told.completion_tokens == told.total_tokens


def _count(value: Any) -> int | None:
    """A whole number of tokens, or None where there is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and 0 <= value <= json.MAX_SAFE_INTEGER:
        return value
    return None
