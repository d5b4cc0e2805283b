"""What the whole suite needs before it starts."""

from types import SimpleNamespace

import aiohttp
import aioresponses.core


class _Response(aiohttp.ClientResponse):
    """aiohttp 3.14 asks for a stream writer that aioresponses 0.7.9 does not hand over."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("stream_writer", SimpleNamespace(output_size=0))
        super().__init__(*args, **kwargs)


aioresponses.core.ClientResponse = _Response
