"""The public shapes of OpenAI's answers, exactly as strict as OpenAI's own SDK types.

What decodes here without an error may be passed on byte for byte: `openai.types.chat` reads it too.
Members that only some vendors send are left out (they travel), unless they carry something that
must not travel: those are `None` here, so that the shape refuses them and a repair follows.
"""

from typing import Annotated, Literal

from gateway.wire import json

Finish = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]
ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast"]
Name = Annotated[str, json.Meta(min_length=1)]
Tokens = Annotated[int, json.Meta(ge=0, le=json.MAX_SAFE_INTEGER)]


class _Shape(json.Struct, gc=False):
    """Cheap to make: nothing in it can be part of a cycle."""


class PromptDetails(_Shape):
    cached_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None
    audio_tokens: Tokens | None = None
    image_tokens: Tokens | None = None
    text_tokens: Tokens | None = None


class CompletionDetails(_Shape):
    reasoning_tokens: Tokens | None = None
    audio_tokens: Tokens | None = None
    accepted_prediction_tokens: Tokens | None = None
    rejected_prediction_tokens: Tokens | None = None
    text_tokens: Tokens | None = None


class Usage(_Shape):
    """OpenAI's, with the places where DeepSeek, Mistral, Moonshot and Together say `cached`."""

    prompt_tokens: Tokens
    completion_tokens: Tokens
    total_tokens: Tokens
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    prompt_cache_hit_tokens: Tokens | None = None
    num_cached_tokens: Tokens | None = None
    cached_tokens: Tokens | None = None


class TopLogprob(_Shape):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(_Shape):
    token: str
    logprob: float
    top_logprobs: list[TopLogprob]
    bytes: list[int] | None = None


class Logprobs(_Shape):
    content: list[TokenLogprob] | None = None
    refusal: list[TokenLogprob] | None = None


class FunctionDelta(_Shape):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(_Shape):
    index: Annotated[int, json.Meta(ge=0)]
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta | None = None


class AudioDelta(_Shape):
    id: str | None = None
    data: str | None = None
    expires_at: int | None = None
    transcript: str | None = None


class Delta(_Shape):
    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    function_call: FunctionDelta | None = None
    audio: AudioDelta | None = None


class ChunkChoice(_Shape):
    index: Annotated[int, json.Meta(ge=0)]
    delta: Delta
    finish_reason: Finish | None = None
    logprobs: Logprobs | None = None
    error: None = None
    usage: None = None
    message: None = None


class Chunk(_Shape):
    """One event of a stream."""

    id: Name
    object: Literal["chat.completion.chunk"]
    created: int
    model: Name
    choices: list[ChunkChoice]
    usage: Usage | None = None
    service_tier: ServiceTier | None = None
    system_fingerprint: str | None = None
    obfuscation: str | None = None
    error: None = None
    x_groq: None = None


class Function(_Shape):
    name: Name
    arguments: Name  # an empty text is no JSON: `{}` is


class ToolCall(_Shape):
    id: Name
    type: Literal["function"]
    function: Function


class FunctionCall(_Shape):
    name: str
    arguments: str


class URLCitation(_Shape):
    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(_Shape):
    type: Literal["url_citation"]
    url_citation: URLCitation


class Audio(_Shape):
    id: str
    data: str
    expires_at: int
    transcript: str


class Message(_Shape):
    role: Literal["assistant"]
    content: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    function_call: FunctionCall | None = None
    annotations: list[Annotation] | None = None
    audio: Audio | None = None


class Choice(_Shape):
    index: Annotated[int, json.Meta(ge=0)]
    message: Message
    finish_reason: Finish
    logprobs: Logprobs | None = None
    error: None = None


class Completion(_Shape):
    """A whole answer."""

    id: Name
    object: Literal["chat.completion"]
    created: int
    model: Name
    choices: Annotated[list[Choice], json.Meta(min_length=1)]
    usage: Usage | None = None
    service_tier: ServiceTier | None = None
    system_fingerprint: str | None = None
    metadata: dict[str, str] | None = None
    error: None = None


class Embedding(_Shape):
    """`embedding` is a list of numbers, or base64 text when the caller asked for that."""

    index: int
    object: Literal["embedding"]
    embedding: json.Raw


class EmbeddingUsage(_Shape):
    prompt_tokens: Tokens
    total_tokens: Tokens


class Embeddings(_Shape):
    object: Literal["list"]
    model: Name
    data: Annotated[list[Embedding], json.Meta(min_length=1)]
    usage: EmbeddingUsage
    error: None = None
