"""OpenAI, and whoever is asked just like it: a bearer key and the base URL of the target."""

from gateway.core.ports import Provider
from gateway.core.target import Target
from gateway.providers.dialects import chat


def adapter(target: Target) -> Provider:
    return chat.with_bearer(target)
