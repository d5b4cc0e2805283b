"""The store of the configuration at hand, for commands: a Redis that is away is told with words."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway.app.state import SharedKeyStore, StoreAway, books
from gateway.cli.exits import UNAVAILABLE, Stop
from gateway.clock import SystemClock
from gateway.core.snapshot import ServerSettings
from gateway.state.embedded.keys import KeyStore


@contextmanager
def within_reach() -> Iterator[None]:
    """Raises Stop where Redis does not answer."""
    try:
        yield
    except StoreAway as error:
        raise Stop(
            f"Redis (state.redis) does not answer: {error}.", "gateway doctor", UNAVAILABLE
        ) from None


@contextmanager
def ledger_of(settings: ServerSettings, since: float) -> Iterator[Path]:
    """A folder with the ledger from `since` (epoch seconds) on. Raises Stop."""
    with within_reach(), books(settings, since) as folder:
        yield folder


def keys_of(settings: ServerSettings, who: str, config: str) -> KeyStore:
    """The caller keys a running gateway knows; its methods raise Stop where Redis is away."""
    if settings.redis is None:
        return KeyStore(Path(settings.state_dir), SystemClock(), who, config)
    return _Reachable(settings, settings.redis, who, config)


class _Reachable(SharedKeyStore):
    def shared(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        with within_reach():
            return super().shared(work)
