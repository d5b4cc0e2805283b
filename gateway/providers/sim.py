"""`kind: sim`: the simulator, which speaks OpenAI and takes any key or none."""

from gateway.core.ports import Provider
from gateway.core.target import Target
from gateway.providers.dialects import chat


def adapter(target: Target) -> Provider:
    return chat.with_bearer(target)
