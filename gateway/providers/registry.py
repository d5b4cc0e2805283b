"""The list of vendors: one line each."""

from collections.abc import Callable, Mapping

from gateway.core.ports import Provider
from gateway.core.target import Target
from gateway.providers import openai, sim

KINDS: Mapping[str, Callable[[Target], Provider]] = {
    "openai": openai.adapter,
    "sim": sim.adapter,
}


def adapter(target: Target) -> Provider:
    """The dialect of a target; made once, when it is loaded. Its `kind` is one of KINDS."""
    return KINDS[target.kind](target)
