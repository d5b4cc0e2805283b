"""What stands in for the embedded rooms where several machines share their state."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from gateway.core.ports import Answers, Books, Ledger, Register
from gateway.state.accounts import AccountStore
from gateway.state.journal import Final, Journal


class Seen(NamedTuple):
    """How one breaker stands here.

    Args:
        opened: a moment that is another one each time it opens.
        left: seconds until its next probe, below 0 when that is over.
        trips: in a row.
        probing: a probe is under way.
    """

    target_id: str
    open: bool
    opened: float
    left: float
    trips: int
    probing: bool


class Breakers(Protocol):
    """Those of a worker; what an operator holds is not among them."""

    def seen(self) -> Sequence[Seen]: ...

    def hear_open(self, target_id: str, left: float, trips: int) -> None:
        """Another worker's is open for so many seconds."""
        ...

    def hear_closed(self, target_id: str) -> None:
        """Another worker's probe was answered."""
        ...


class OwnLedger(Ledger, Protocol):
    """A ledger as its owner knows it; see `EmbeddedLedger`, `RedisLedger`."""

    drift: int

    async def ship(self) -> bool: ...

    async def sync(self) -> None: ...

    async def recover(self) -> int: ...

    async def clean(self) -> None: ...

    async def leave(self) -> None: ...


class OwnAnswers(Answers, Protocol):
    """Kept answers as their owner knows them."""

    async def renew(self) -> None: ...

    async def look(self) -> None: ...


class Wing(Protocol):
    """Rooms of another store, for one worker.

    Attributes:
        keys_dir: where this machine's copy of the shared keys is.
        accounts: where the workers of all machines meet.
        books: what was spent on all machines.
        chores: what has to be done every so many seconds.
    """

    keys_dir: Path
    accounts: AccountStore
    books: Books
    chores: Sequence[tuple[float, Callable[[], Awaitable[object]]]]

    def ledger(
        self, journal: Journal, booked: Callable[[Sequence[Final]], object]
    ) -> OwnLedger: ...

    def register(self, local: Register) -> Register:
        """Changes to keys are told to all machines; `local` keeps them on this one."""
        ...

    def answers(self, local: Answers) -> OwnAnswers:
        """`local` stands in while the shared store is lost."""
        ...

    async def leave(self) -> None:
        """What was handed over is done."""
        ...

    def join(self, worker: str, breakers: Breakers) -> None:
        """Share what happens to a worker's breakers, as one of the chores."""
        ...

    @property
    def troubles(self) -> Sequence[str]:
        """What does not work, for people; empty while all does."""
        ...
