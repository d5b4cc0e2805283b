"""The supervisor: starts workers that share the ports, starts them anew, and ends them together.

It serves nobody: no loop, no thread, no store. Workers are forked, so that one is there again in
milliseconds and runs the very code its siblings run, whatever an upgrade put on the disk since.
"""

import fcntl
import os
import random
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.clock import Clock
from gateway.core.snapshot import ServerSettings
from gateway.server import listen
from gateway.server.crew import Crew, door, reached
from gateway.wire import json

PAUSE = (0.5, 1.5)  # seconds before a dead worker's place is taken again; doubled each time
MOST_PAUSE = 30.0
HEALTHY = 60.0  # seconds of life after which the pause is short again
GRACE = 15.0  # seconds a worker may take beyond its drain
BACKLOG = 128
LOOK = 1.0  # seconds without any event, at most
HUNG = 30.0  # seconds without a word (gateway.server.crew.ALIVE) after which a worker is killed
SLEPT = 5.0  # seconds later than we meant to look: the machine stood still, and workers with it
FOLDER = "workers-"
ENDING = (signal.SIGTERM, signal.SIGINT)
HEARD = (*ENDING, signal.SIGHUP, signal.SIGCHLD)
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Up:
    """All workers serve: where, and what each of them said of its start."""

    api_port: int
    admin_port: int
    workers: tuple[Mapping[str, Any], ...]


@dataclass(slots=True)
class _Place:
    """Where one worker after the other stands."""

    number: int
    door: socket.socket
    due: float = NEVER  # when a worker is to be started here
    pid: int = 0
    link: socket.socket | None = None
    began: float = 0.0
    up: bool = False  # this one serves
    heard: float = 0.0  # when it last said anything
    starts: int = 0
    trips: int = 0  # deaths in a row
    said: Mapping[str, Any] | None = None  # of its start
    rest: bytes = b""


@dataclass(frozen=True, slots=True)
class _Sockets:
    """What outlives every worker."""

    api: list[socket.socket]  # bound, and nobody accepts there: they hold the port
    api_port: int
    admin: list[socket.socket]
    admin_port: int


@dataclass(slots=True)
class Supervisor:
    """`run` it once, in the main thread of a process without a loop.

    Args:
        count: workers.
        settings: where to listen, how long to drain, where the state is.
        clock: the time.
        renewed: before each start and after each reload: what workers inherit may be made anew.
        up: told once, when all of them serve.
        tell: a line for the operator.
        hung: seconds without a word after which a worker that was up is killed.
    """

    count: int
    settings: ServerSettings
    clock: Clock
    renewed: Callable[[], None]
    up: Callable[[Up], None]
    tell: Callable[[str], None]
    hung: float = HUNG
    _signals: list[int] = field(default_factory=list)
    _places: list[_Place] = field(default_factory=list)
    _ending: float | None = None  # when the last of them is killed
    _failed: bool = False  # one of them did not end well
    _greeted: bool = False

    def run(self) -> Crew | int:
        """In the supervisor the exit code, at the end. In each worker its `Crew`, at once.

        Raises:
            OSError: a port is taken, or the state directory cannot be used.
        """
        me = os.getpid()
        state = Path(self.settings.state_dir)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(state)
        sockets = self._bound()
        folder = state / f"{FOLDER}{os.urandom(4).hex()}"  # in containers pids are the same
        folder.mkdir(mode=0o700)
        hold = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)  # and by workers, as long as they live
            near = reached(folder, hold)
            self._places = [_Place(n, _listening(door(near, n))) for n in range(1, self.count + 1)]
            self._places[0].due = self.clock.monotonic()
            return self._watch(sockets, near)
        finally:
            if os.getpid() == me:
                _remove(folder)

    def _bound(self) -> _Sockets:
        settings = self.settings
        admin, admin_port = listen.bind(settings.admin_host, settings.admin_port)
        api, api_port = listen.bind(settings.host, settings.port, shared=True)
        return _Sockets(api, api_port, admin, admin_port)

    def _watch(self, sockets: _Sockets, folder: Path) -> Crew | int:
        with _waking(self._signals) as wake, selectors.DefaultSelector() as selector:
            selector.register(wake, selectors.EVENT_READ)
            while True:
                for place in self._due():
                    crew = self._start(place, sockets, folder, selector)
                    if crew is not None:
                        return crew
                meant = self.clock.monotonic() + LOOK
                for key, _ in selector.select(self._pause()):
                    if key.data is None:
                        with suppress(BlockingIOError):
                            wake.recv(4096)
                    else:
                        self._hear(key.data, selector)
                self._obey_signals()
                self._end_hung(meant)
                code = self._bury(selector)
                if code is not None:
                    return code
                if not self._greeted and all(place.said is not None for place in self._places):
                    self._greeted = True
                    said = tuple(place.said or {} for place in self._places)
                    self.up(Up(sockets.api_port, sockets.admin_port, said))

    # --- starting

    def _due(self) -> list[_Place]:
        if self._ending is not None:
            return []
        now = self.clock.monotonic()
        return [place for place in self._places if not place.pid and place.due <= now]

    def _pause(self) -> float:
        """Seconds until something is due by itself."""
        dues = [place.due for place in self._places if not place.pid]
        soonest = min(dues, default=NEVER) if self._ending is None else self._ending
        return max(0.0, min(LOOK, soonest - self.clock.monotonic()))

    def _start(
        self, place: _Place, sockets: _Sockets, folder: Path, selector: selectors.BaseSelector
    ) -> Crew | None:
        """In the child its share, in the supervisor None."""
        self.renewed()
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
        pid = os.fork()
        if not pid:
            self._leave(sockets, selector, place)
            ours.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
            return Crew(
                number=place.number,
                count=self.count,
                restarts=place.starts,
                api_port=sockets.api_port,
                admin=tuple(sockets.admin),
                door=place.door,
                link=theirs,
                folder=folder,
            )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
        theirs.close()
        ours.settimeout(0)
        place.pid, place.link, place.rest = pid, ours, b""
        place.began = place.heard = self.clock.monotonic()
        place.starts += 1
        place.up = False
        selector.register(ours, selectors.EVENT_READ, place)
        return None

    def _leave(self, sockets: _Sockets, selector: selectors.BaseSelector, mine: _Place) -> None:
        """In a new worker: let go of what belongs to the supervisor and to siblings."""
        signal.set_wakeup_fd(-1)
        for number in HEARD:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        selector.close()
        for one in sockets.api:
            one.close()
        for place in self._places:
            if place.link is not None:
                place.link.close()
            if place is not mine:
                place.door.close()

    # --- hearing

    def _hear(self, place: _Place, selector: selectors.BaseSelector) -> None:
        """What a worker says over its link; its end is told by SIGCHLD."""
        if place.link is None:
            return
        try:
            data = place.link.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            _hang_up(place, selector)
            return
        place.heard = self.clock.monotonic()
        *lines, place.rest = (place.rest + data).split(b"\n")
        for line in lines:
            self._said(place, json.loads(line))

    def _said(self, place: _Place, said: Mapping[str, Any]) -> None:
        match said["word"]:
            case "up":
                place.said, place.up = said, True
                if place.number == 1:
                    self._start_the_others()
            case "alive":
                pass
            case "reloaded":
                self.renewed()
            case "drain":
                if self._ending is None:
                    self._drain()
            case _:
                raise ValueError(f"no word of a worker: {said['word']}")

    def _start_the_others(self) -> None:
        """The first is up: what ends a start would have ended it. The others follow at once."""
        for place in self._places:
            if not place.starts:
                place.due = self.clock.monotonic()

    def _obey_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number in ENDING and self._ending is None:
                self._drain()
            elif number in ENDING:
                self._order("hurry")
                self._ending = self.clock.monotonic() + GRACE
            elif number == signal.SIGHUP:
                self._order("reload")

    def _drain(self) -> None:
        self._order("drain")
        longest = self.settings.lame_duck + self.settings.drain + GRACE
        self._ending = self.clock.monotonic() + longest

    def _order(self, word: str) -> None:
        for place in self._places:
            if place.link is not None:
                with suppress(OSError):
                    place.link.send(f"{word}\n".encode())

    # --- burying

    def _end_hung(self, meant: float) -> None:
        """Who serves and says nothing is in its callers' way: no probe finds one of many.

        `meant`: when we meant to look at the latest.
        """
        now = self.clock.monotonic()
        for place in self._places:
            if now - meant > SLEPT:
                place.heard = now
            if place.pid and place.up and now - place.heard > self.hung:
                self.tell(
                    f"worker {place.number} (pid {place.pid}) hangs: no word for {self.hung:g} s;"
                    " killed."
                )
                os.kill(place.pid, signal.SIGKILL)
                place.heard = now

    def _bury(self, selector: selectors.BaseSelector) -> int | None:
        """Who has ended; the exit code when that is all."""
        for place in self._places:
            if not place.pid:
                continue
            pid, status = os.waitpid(place.pid, os.WNOHANG)
            if not pid:
                continue
            code = os.waitstatus_to_exitcode(status)
            self._hear(place, selector)
            _hang_up(place, selector)
            if place.number == 1 and place.said is None and self._ending is None:
                if code < 0:
                    self.tell(f"worker 1 (pid {pid}) was ended by {_how(code)} before it was up.")
                return max(1, code)  # it has said why
            self._lost(place, code)
        return None if self._ending is None else self._ended(self._ending)

    def _ended(self, by: float) -> int | None:
        """The exit code, once no worker lives; who does then is killed."""
        living = [place for place in self._places if place.pid]
        if not living:
            return 1 if self._failed else 0
        if self.clock.monotonic() >= by:
            for place in living:
                self.tell(f"worker {place.number} (pid {place.pid}) does not end: killed.")
                os.kill(place.pid, signal.SIGKILL)
            self._ending = self.clock.monotonic() + GRACE
        return None

    def _lost(self, place: _Place, code: int) -> None:
        now = self.clock.monotonic()
        pid, place.pid = place.pid, 0
        if self._ending is not None:
            self._failed = self._failed or code != 0
            return
        place.trips = 0 if now - place.began >= HEALTHY else place.trips + 1
        pause = pause_after(place.trips, random.uniform(*PAUSE))  # noqa: S311 - spreads restarts
        place.due = now + pause
        self.tell(
            f"worker {place.number} (pid {pid}) ended by {_how(code)};"
            f" another takes its place in {pause:.1f} s."
        )


def _hang_up(place: _Place, selector: selectors.BaseSelector) -> None:
    if place.link is not None:
        selector.unregister(place.link)
        place.link.close()
        place.link = None


def pause_after(trips: int, drawn: float) -> float:
    """Seconds before a restart, after `trips` deaths of short lives in a row."""
    return float(min(MOST_PAUSE, drawn * 2 ** min(16, max(0, trips - 1))))


def _how(code: int) -> str:
    if code >= 0:
        return f"itself, exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


@contextmanager
def _waking(heard: list[int]) -> Iterator[socket.socket]:
    """Signals are added to `heard` and make the socket readable."""
    wake, poke = socket.socketpair()
    wake.settimeout(0)
    poke.settimeout(0)
    before = signal.set_wakeup_fd(poke.fileno(), warn_on_full_buffer=False)
    handlers = {n: signal.signal(n, lambda number, _: heard.append(number)) for n in HEARD}
    me = os.getpid()
    try:
        yield wake
    finally:
        if os.getpid() == me:
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        wake.close()
        poke.close()


def _listening(path: Path) -> socket.socket:
    """A unix socket of mode 0600."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # nobody else is in this process
    try:
        made.bind(str(path))
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"no socket can be made there: {error.strerror}", path) from None
    finally:
        os.umask(before)
    made.listen(BACKLOG)
    made.settimeout(0)
    return made


def _sweep(state: Path) -> None:
    """What supervisors left that were killed, once the last of their workers is gone."""
    for folder in state.glob(f"{FOLDER}*"):
        with suppress(OSError):
            hold = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)
            finally:
                os.close(hold)


def _remove(folder: Path) -> None:
    with suppress(OSError):
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        folder.rmdir()
