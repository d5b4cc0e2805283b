"""One line a request, and one for each thing an operator has to know; never from the loop.

A request is appended to a bounded list; a thread renders and writes it, so that a stdout nobody
reads cannot stop the service. What does not fit is counted and told. Third parties speak through
the standard library's logging, by way of a bounded queue, and their exceptions without their text:
it may hold what nobody should read.
"""

import errno
import logging
import logging.handlers
import queue
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Self, TextIO

from gateway.clock import Clock
from gateway.core.events import (
    AttemptEnded,
    Audited,
    BreakerMoved,
    Event,
    GuardMoved,
    KeyAside,
    Lifecycle,
    Reloaded,
    RequestEnded,
    SpendAlert,
    StateTrouble,
    StoreMoved,
)
from gateway.core.story import story
from gateway.wire import json

Form = Literal["json", "text", "auto", "none"]

KEPT = 4096  # lines waiting to be written; each holds its request until then
FLUSH = 0.15  # seconds between two writes
FOREIGN = 1_000  # records of third parties waiting
FRAMES = 6  # of a traceback
PIECE = 4096  # bytes a pipe takes at once, whoever else writes (PIPE_BUF)

Line = dict[str, Any]


class RequestLog:
    """A `Listener` that writes lines; `with` starts and ends its thread.

    Args:
        clock: for the moments of events that carry none.
        form: `auto` is text on a terminal, else JSON.
        out: where lines go.
        config: names the snapshot in force.
        kept: lines that may wait; more are dropped and counted.
        shared: other processes write to `out` too; lines of up to PIECE bytes stay whole.
    """

    def __init__(
        self,
        clock: Clock,
        form: Form = "auto",
        out: TextIO | None = None,
        config: Callable[[], str] = str,
        kept: int = KEPT,
        *,
        shared: bool = False,
    ) -> None:
        self._clock = clock
        self._out = out if out is not None else sys.stdout
        on_terminal = form == "auto" and self._out.isatty()
        self._render = as_text if form == "text" or on_terminal else as_json
        self._silent = form == "none"
        self._config = config
        self._kept = kept
        self._shared = shared
        self._waiting: deque[tuple[Event | Line, float, str]] = deque()
        self._wake = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None
        self._foreign = Foreign(self)
        self.dropped = 0  # so far; only the loop writes it
        self._second = -1
        self._spelled = ""
        self._told = 0  # of them; only the thread writes it

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()
        self._foreign.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._foreign.stop()
        self._ended = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=2.0)  # a blocked stdout must not hold the end up

    def heard(self, event: Event) -> None:
        if self._silent:
            return
        if isinstance(event, RequestEnded):
            self._keep(event, event.now)
        elif not isinstance(event, AttemptEnded) and not self._spares(event):
            self._keep(event, event.now if isinstance(event, Reloaded) else self._clock.now())

    def _spares(self, event: Event) -> bool:
        """Hashes of the audit log bear witness where lines are shipped; people have a command."""
        return isinstance(event, Audited) and self._render is as_text

    def say(self, line: Line) -> None:
        """A line of our own words: `event` of the closed list, no secret in it."""
        if not self._silent:
            self._keep(line, self._clock.now())

    def flush(self) -> None:
        """Write what waits; called by the thread, and by tests."""
        lines: list[str] = []
        while self._waiting and len(lines) < self._kept:
            what, now, config = self._waiting.popleft()
            told = what if isinstance(what, dict) else line_of(what, now, config)
            # what comes first in the line
            line: Line = {"ts": "", "level": "", "event": "", **told}
            line["ts"] = self._moment(now)
            lines.append(self._render(line))
        if (dropped := self.dropped - self._told) > 0:
            self._told += dropped
            lost = {"level": "warning", "event": "log", "dropped": dropped}
            lines.append(self._render({"ts": self._moment(self._clock.now()), **lost}))
        if not lines:
            return
        try:
            for text in _pieces(lines) if self._shared else ("".join(lines),):
                self._out.write(text)
                self._out.flush()
        except ValueError:
            self._silent = True  # closed
        except OSError as error:  # a full disk may have room again; a reader who left stays away
            self._silent = isinstance(error, BrokenPipeError) or error.errno == errno.EBADF

    def _keep(self, what: Event | Line, now: float) -> None:
        waiting = len(self._waiting)
        if waiting >= self._kept:
            self.dropped += 1
            return
        if waiting == self._kept // 2:
            self._wake.set()
        self._waiting.append((what, now, self._config()))

    def _moment(self, now: float) -> str:
        """ISO 8601 in UTC, to the millisecond; a second is spelled once for all its lines."""
        thousandths = round(now * 1000)
        second = thousandths // 1000
        if second != self._second:
            self._second = second
            self._spelled = datetime.fromtimestamp(second, UTC).isoformat()[:19]
        return f"{self._spelled}.{thousandths % 1000:03d}Z"

    def _run(self) -> None:
        while not self._ended:
            self._wake.wait(FLUSH)
            self._wake.clear()
            self.flush()
        self.flush()


class Foreign:
    """Third parties' logging, routed to our lines through a bounded queue."""

    def __init__(self, log: RequestLog) -> None:
        self._queue: queue.Queue[logging.LogRecord] = queue.Queue(FOREIGN)
        self._handler = _Bounded(self._queue)
        self._listener = logging.handlers.QueueListener(self._queue, _Lines(log))
        self._before: list[logging.Handler] = []

    def start(self) -> None:
        root = logging.getLogger()
        self._before = root.handlers[:]
        root.handlers[:] = [self._handler]
        self._listener.start()

    def stop(self) -> None:
        root = logging.getLogger()
        if self._handler in root.handlers:
            root.handlers[:] = self._before
        self._listener.stop()


class _Bounded(logging.handlers.QueueHandler):
    """Drops what does not fit, and formats nothing on the loop."""

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            return

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


class _Lines(logging.Handler):
    def __init__(self, log: RequestLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.say(foreign_line(record))


def foreign_line(record: logging.LogRecord) -> Line:
    """Who, how bad, and where; the template of the message, never its arguments."""
    line: Line = {
        "level": record.levelname.lower(),
        "event": "log",
        "logger": record.name,
        "message": str(record.msg)[:200] if not record.exc_info else "",
    }
    if record.args or "%" not in line["message"]:
        line["message"] = line["message"].partition("\n")[0]
    if record.exc_info and record.exc_info[0] is not None:
        line["message"] = record.exc_info[0].__name__
        line["at"] = [
            f"{frame.filename.rpartition('/site-packages/')[2]}:{frame.lineno}"
            for frame in traceback.extract_tb(record.exc_info[2])[-FRAMES:]
        ]
    return line


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    """Whole lines, as many at a time as one write takes in one piece."""
    held: list[str] = []
    size = 0
    for line in lines:
        length = len(line.encode())
        if held and size + length > PIECE:
            yield "".join(held)
            held, size = [], 0
        held.append(line)
        size += length
    yield "".join(held)


_LIFE = {"started": "start", "draining": "drain", "stopped": "stop"}


def line_of(event: Event, now: float, config: str) -> Mapping[str, Any]:
    """What an event says in the log; a request's story is shared."""
    if isinstance(event, RequestEnded):
        return story(event.exchange, now, config)
    return _other_line(event)


def _other_line(event: Event) -> Line:
    told: Line
    match event:
        case BreakerMoved():
            told = {"event": "breaker", "target": event.target, "was": event.was, "to": event.to}
            told |= {"level": "info" if event.to == "closed" else "warning"}
            told["detail"] = event.detail
        case KeyAside():
            told = {"event": "key", "level": "error", "target": event.target}
            told |= {"provider": event.provider, "key": event.key, "cause": event.cause}
            told["seconds"] = round(event.seconds)
        case Reloaded():
            told = {"event": "config", "level": "error" if event.problem else "info"}
            told |= {"config": event.config, "problem": event.problem, "note": event.note}
        case Lifecycle():
            told = {"event": _LIFE[event.what], "level": "info", "detail": event.detail}
        case StateTrouble():
            told = {"event": "state", "level": "error", "backend": event.backend}
            told |= {"op": event.op, "problem": event.problem}
        case StoreMoved():
            told = {"event": "store", "level": "error" if event.lost else "info"}
            told |= {"backend": event.backend, "lost": event.lost, "detail": event.detail}
        case GuardMoved():
            well = event.sheds == "nobody" and not event.crowded
            told = {"event": "guard", "level": "info" if well else "warning"}
            told |= {"sheds": event.sheds, "crowded": event.crowded, "detail": event.why}
        case SpendAlert():
            told = {"event": "spend", "level": "warning", **event.told()}
        case Audited(line):
            told = {"event": "audit", "level": "info", "seq": line.seq, "who": line.who}
            told |= {"verb": line.verb, "object": line.object, "result": line.result}
            told |= {"hash": line.hash}
        case _:
            told = {"event": "log", "level": "info"}
    return told


def as_json(line: Line) -> str:
    return json.dumps(line).decode() + "\n"


_COLOURS = {"info": "32", "warning": "33", "error": "31", "critical": "31"}


def as_text(line: Line) -> str:
    """One coloured line for a terminal."""
    clock = str(line.get("ts", ""))[11:19]
    colour = _COLOURS.get(str(line.get("level")), "0")
    if line.get("event") == "request":
        return f"{clock} \x1b[{colour}m{_request_text(line)}\x1b[0m\n"
    rest = " ".join(
        f"{name}={value}"
        for name, value in line.items()
        if name not in {"ts", "level", "event"} and value not in (None, "")
    )
    return f"{clock} \x1b[{colour}m{line.get('event', '')}\x1b[0m {_plain(rest)}\n"


def _request_text(line: Mapping[str, Any]) -> str:
    parts = [
        str(line.get("status")),
        str(line.get("api")),
        str(line.get("chain")),
        str(line.get("path") or line.get("error") or ""),
        f"{line.get('ms', 0)} ms",
        f"${line.get('cost_usd', '0')}",
        str(line.get("request_id")),
    ]
    return _plain(" ".join(part for part in parts if part))


def _plain(text: str) -> str:
    """Without control characters: a terminal obeys them."""
    return "".join(c if c.isprintable() else "?" for c in text)
