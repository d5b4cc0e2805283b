"""Every implementation of a port passes the same suite; a new wing is one more parameter."""

from collections.abc import Callable

import pytest

from gateway.clock import Clock
from gateway.core.ports import Limiter
from gateway.state.embedded.limiter import EmbeddedLimiter

LIMITERS: dict[str, Callable[[Clock], Limiter]] = {"embedded": EmbeddedLimiter}


@pytest.fixture(params=sorted(LIMITERS))
def make_limiter(request: pytest.FixtureRequest) -> Callable[[Clock], Limiter]:
    return LIMITERS[request.param]
