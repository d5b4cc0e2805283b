"""The audit log's lines and their chain: who did what to what, and what came of it.

Each line carries the hash of the line before. Whoever changes or removes one has to change all
that follow, and what was told of them elsewhere: the log prints each hash as it is written.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from gateway.wire import json

Verb = Literal[
    "key.create",
    "key.change",
    "key.rotate",
    "key.revoke",
    "reload",
    "drain",
    "breaker",
    "login",
    "configuration",
    "process",
    "alert",
    "lost",
    "trim",
]
"""`configuration`: one was read; `process`: it started, drains, stopped; `lost`: lines that could
not be kept; `alert`: somebody spends out of the ordinary; `trim`: the oldest were removed.
`login` stands for failed ones only.
"""

GENESIS = "0" * 64  # what the first line carries
FORBIDDEN = "forbidden"  # the result of what may not be done; of these a sample is kept
LONGEST = 200  # characters of who, object and result


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that was done, or refused. No content, no secret.

    Args:
        who: `gk_` and the public part of a key, a declared key's name, `operator`
            (GATEWAY_ADMIN_KEY), `cli:` and a user of the machine, `gateway`, `unknown`.
        object: what it was done to: the name of a key, of a target; an address.
        result: `ok`, or why not; what changed.
    """

    who: str
    verb: Verb
    object: str = ""
    result: str = "ok"


class AuditLine(NamedTuple):
    """A kept act. `at` is milliseconds since the epoch, `config` names the snapshot in force.

    `before` is the hash of the line before, `hash` that of this one: 64 hex digits each.
    """

    seq: int
    at: int
    who: str
    verb: str
    object: str
    result: str
    config: str
    before: str
    hash: str


class Seal(NamedTuple):
    """A place in the chain: a line's number and hash."""

    seq: int
    hash: str


class Seals(NamedTuple):
    """`anchor`: the last line that was removed for its age. `head`: the last that was written."""

    anchor: Seal
    head: Seal


def line_after(head: Seal, at: int, act: Act, config: str) -> AuditLine:
    """The next line of a chain."""
    said = (_plain(act.who), act.verb, _plain(act.object), _plain(act.result), config)
    kept = (head.seq + 1, at, *said)
    return AuditLine(*kept, head.hash, digest(head.hash, kept))


def digest(before: str, kept: tuple[int, int, str, str, str, str, str]) -> str:
    """SHA-256 over the hash before and what the line says, as a JSON array."""
    return hashlib.sha256(json.dumps([before, *kept])).hexdigest()


def faults(lines: Iterable[AuditLine], seals: Seals) -> Iterator[str]:
    """What is wrong with a chain, in order, each line named; nothing if it holds.

    Args:
        lines: all there are, by number.
        seals: what is known of its ends.
    """
    last, trimmed = seals.anchor, Seal(0, GENESIS)
    for line in lines:
        if line.seq > last.seq + 1:
            yield _missing(last.seq + 1, line.seq - 1)
        elif line.before != last.hash and last == seals.anchor:
            yield f"line {line.seq} does not follow what the anchor seals"
        elif line.before != last.hash:
            yield f"line {last.seq} is not the one that line {line.seq} was written after"
        if line.hash != digest(line.before, line[:7]):
            yield f"line {line.seq} was changed"
        if line.verb == "trim":
            trimmed = _trimmed(line)
        last = Seal(line.seq, line.hash)
    if last.seq < seals.head.seq:
        yield _missing(last.seq + 1, seals.head.seq)
    elif last != seals.head:
        yield f"line {last.seq} is not the last that was sealed ({seals.head.seq})"
    if seals.anchor != trimmed:
        yield (
            f"the anchor says the lines up to {seals.anchor.seq} were removed for their age;"
            f" the chain says up to {trimmed.seq}"
        )


def trim_of(first: int, removed: Seal) -> Act:
    """The act of removing the lines `first` to `removed`, which seals what they were."""
    return Act("gateway", "trim", f"{first}-{removed.seq}", removed.hash)


def _plain(text: str) -> str:
    """Short, and without characters that a terminal obeys."""
    return "".join(c if c.isprintable() else "?" for c in text[:LONGEST])


def _trimmed(line: AuditLine) -> Seal:
    last = line.object.rpartition("-")[2]
    return Seal(int(last) if last.isdecimal() else 0, line.result)


def _missing(first: int, last: int) -> str:
    return f"line {first} is missing" if first == last else f"lines {first} to {last} are missing"
