"""What the whole suite needs before it starts."""

import os
from types import SimpleNamespace

import aiohttp
import aioresponses.core
from hypothesis import settings

# CI judges a change, not the luck of the draw; everywhere else each run looks somewhere new.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


class _Response(aiohttp.ClientResponse):
    """aiohttp 3.14 asks for a stream writer that aioresponses 0.7.9 does not hand over."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("stream_writer", SimpleNamespace(output_size=0))
        super().__init__(*args, **kwargs)


aioresponses.core.ClientResponse = _Response
