"""The recorded cases of ../shared/vectors that speak OpenAI chat, read once."""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

SHARED = Path(__file__).resolve().parents[3] / "shared" / "vectors"

SPEAKERS = (
    "openai", "azure", "groq", "together", "mistral", "deepseek", "vllm", "local-llamacpp",
    "local-llamacpppython", "local-transformers", "openai-compatible", "openrouter", "perplexity",
    "xai", "moonshot", "huggingface", "cerebras", "zai", "ollama", "alibaba", "gemini-compat",
)  # fmt: skip


class Case(NamedTuple):
    name: str
    status: int
    stream: bool
    headers: dict[str, str]
    body: bytes
    expect: dict[str, Any] | None

    def __repr__(self) -> str:
        return self.name


@functools.cache
def cases() -> tuple[Case, ...]:
    found = []
    for speaker in SPEAKERS:
        for folder in sorted((SHARED / speaker).glob("*/")):
            meta = json.loads((folder / "meta.json").read_text())
            if meta.get("protocol") != "openai-chat":
                continue
            body = next(p for p in folder.iterdir() if p.name.startswith("response."))
            expect = folder / "expect.json"
            found.append(
                Case(
                    f"{speaker}/{folder.name}",
                    meta["status"],
                    body.suffix == ".sse",
                    meta.get("headers") or {},
                    body.read_bytes(),
                    json.loads(expect.read_text()) if expect.exists() else None,
                )
            )
    return tuple(found)


def wholes() -> list[Case]:
    return [case for case in cases() if case.status == 200 and not case.stream]


def streams() -> list[Case]:
    return [case for case in cases() if case.status == 200 and case.stream]


def refusals() -> list[Case]:
    return [case for case in cases() if case.status != 200]
