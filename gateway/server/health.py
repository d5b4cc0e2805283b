"""/healthz is cheap, /readyz honest; neither asks a provider, neither needs a key."""

from gateway.server.doors import Doors
from gateway.wire import json

_ALIVE = json.dumps({"status": "ok"})
_HELLO = json.dumps(
    {
        "name": "llm-gateway",
        "message": "This is an LLM gateway. Point an OpenAI client's base_url at /v1.",
        "endpoints": ["/v1/chat/completions", "/v1/embeddings", "/v1/models"],
        "health": ["/healthz", "/readyz"],
    }
)


def alive() -> bytes:
    return _ALIVE


def hello() -> bytes:
    return _HELLO


def readiness(doors: Doors, *, draining: bool) -> tuple[int, bytes]:
    """200 `ready` or `degraded`, 503 before the start and while draining; with the details."""
    if draining:
        return 503, json.dumps({"status": "draining"})
    ready, details = doors.ready()
    told = {"status": "ready" if ready else "starting", **details}
    return 200 if ready else 503, json.dumps(told)
