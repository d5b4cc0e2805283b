"""How much of its memory and of its file descriptors this process uses, as its system tells it."""

import resource
from collections.abc import Iterator
from pathlib import Path

from gateway.pipeline.guard import MEMORY_LOW, Vitals

PAGE = resource.getpagesize()
NONE = 1 << 60  # bytes: what version 1 says where there is no limit is above it


class Machine:
    """`vitals` takes some microseconds; what a system does not tell counts as unused.

    Memory is that of the tightest control group (v2 or v1) above this process, less the cache that
    can be dropped: who outgrows it is killed. Without such a limit it is this process's own
    against its share of the machine's: what others use up is not mended by turning callers away.

    Args:
        workers: processes of the gateway that share the machine.
        root: where /proc and /sys are.
    """

    def __init__(self, workers: int = 1, root: Path = Path("/")) -> None:
        self._workers = workers
        self._proc = root / "proc"
        self._whole = self._installed()
        limits = [(_number(group.limit), group) for group in self._groups(root / "sys/fs/cgroup")]
        limited = [row for row in limits if 0 < row[0] < (self._whole or NONE)]
        self._group = min(limited, key=lambda row: row[0])[1] if limited else None

    def vitals(self) -> Vitals:
        return Vitals(self._memory(), self._files())

    def _memory(self) -> float:
        group = self._group
        if group is not None:
            limit, used = _number(group.limit), _number(group.used)
            if limit and used > MEMORY_LOW * limit:  # else nobody asks how much of it is cache
                used -= _member(group.folder / "memory.stat", group.cache)
            return used / limit if limit else 0.0
        if not self._whole:
            return 0.0
        pages = _text(self._proc / "self/statm").split()
        return int(pages[1]) * PAGE * self._workers / self._whole if len(pages) > 1 else 0.0

    def _files(self) -> float:
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if most in {0, resource.RLIM_INFINITY}:
            return 0.0
        folder = self._proc / "self/fd"
        try:  # Linux 6.2 and newer tell the number as the size
            return (folder.stat().st_size or sum(1 for _ in folder.iterdir())) / most
        except OSError:
            return 0.0

    def _installed(self) -> int:
        return _member(self._proc / "meminfo", "MemTotal:") * 1024

    def _groups(self, mount: Path) -> Iterator["_Group"]:
        """Those above this process; in a container the outermost is often all that is shown."""
        for line in _text(self._proc / "self/cgroup").splitlines():
            _, _, rest = line.partition(":")
            kinds, _, path = rest.partition(":")
            if kinds and "memory" not in kinds.split(","):
                continue
            top = mount / "memory" if kinds else mount
            inside = top / path.lstrip("/")
            for folder in (inside, *inside.parents):
                yield _Group(folder, kinds == "")
                if folder == top:
                    break


class _Group:
    """The files of one control group."""

    def __init__(self, folder: Path, second: bool) -> None:  # noqa: FBT001 - of the two versions
        self.folder = folder
        self.limit = folder / ("memory.max" if second else "memory.limit_in_bytes")
        self.used = folder / ("memory.current" if second else "memory.usage_in_bytes")
        self.cache = "inactive_file" if second else "total_inactive_file"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int:
    """0 where there is none: no file, or the word max."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else 0


def _member(path: Path, name: str) -> int:
    """The number behind a name at the beginning of a line; 0 where there is none."""
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return 0
