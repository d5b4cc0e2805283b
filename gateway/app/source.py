"""Where the configuration comes from, and whether it has changed since."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.config.load import Loaded, load, load_text


@dataclass(frozen=True, slots=True)
class Source:
    """A file, or (without a path) a text that never changes. What holds secrets does not print."""

    env: Mapping[str, str] = field(repr=False)
    path: Path | None = None
    text: str = field(default="", repr=False)
    name: str = "built in"

    def read(self) -> Loaded:
        """Parse and check.

        Raises:
            gateway.config.mistakes.ConfigError: every mistake, with its place.
        """
        if self.path is None:
            return load_text(self.text, self.name, self.env)
        return load(self.path, self.env)

    def stamp(self) -> str:
        """Changes when the file does; "" while it cannot be read.

        By content: a ConfigMap is swapped by symlinks, whose times may lie.
        """
        if self.path is None:
            return ""
        try:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()
        except OSError:
            return ""
