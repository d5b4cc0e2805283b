"""What one process of a machine does for all that share a state directory."""

import fcntl
import os
from pathlib import Path


class Lease:
    """Belongs to the first who asks, as long as it lives; then to the next.

    Args:
        path: of a file that is made to be locked (flock). A kernel forgets no dead process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def taken(self) -> bool:
        """Whether it is ours, now. Raises OSError: the file cannot be made."""
        if self._fd is not None:
            return True
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def close(self) -> None:
        """Give it up."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
