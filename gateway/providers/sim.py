"""`kind: sim`: the simulator, which speaks OpenAI and takes any key or none."""

from gateway.core.ports import Provider
from gateway.core.target import Target
from gateway.providers.dialects.chat import Chat


def adapter(target: Target) -> Provider:
    secret = target.secret.reveal()
    return Chat(target, {"authorization": f"Bearer {secret}"} if secret else {})
