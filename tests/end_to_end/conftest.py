"""What these tests share: a process that forks gateways, and a simulator for them to call."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from chaos.upstream import UpstreamThread
from tests.end_to_end.place import Place
from tests.support.processes import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def simulator() -> Iterator[UpstreamThread]:
    with UpstreamThread() as simulator:
        yield simulator


@pytest.fixture
async def place(
    nursery: Nursery, simulator: UpstreamThread, tmp_path: Path
) -> AsyncIterator[Place]:
    place = Place(nursery, simulator, tmp_path)
    yield place
    await place.close()
