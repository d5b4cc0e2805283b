"""`gateway keys`: caller keys in the state directory; a running gateway follows in a second."""

import difflib
import os
import pwd
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from gateway.cli import options, say, screen
from gateway.cli.exits import CONFLICT, NOT_FOUND, UNAVAILABLE, USAGE, Stop
from gateway.cli.local import configuration
from gateway.cli.store import keys_of
from gateway.cli.when import DAY, as_moment, as_span, iso
from gateway.clock import SystemClock
from gateway.core.budget import COUNTED, MOST_USD, Budget, Per, amount
from gateway.core.key_told import all_told
from gateway.core.keys import KeyTaken, KeyTerms, LimitRow, MadeKey, NoSuchKey, StoredKey
from gateway.core.snapshot import Snapshot
from gateway.core.terms import declared, objection
from gateway.state.embedded.keys import KeyStore
from gateway.wire.admin import MOST_OVERLAP, KeyTold

PERS: tuple[Per, ...] = ("request", *COUNTED)
PERIODS: Mapping[str, Per] = {one: one for one in PERS}
ROLES = ("client", "agent", "metrics", "admin")
STYLES = {"active": screen.GOOD, "expired": screen.WARN, "revoked": screen.BAD}


@click.group(help="Create, list, show, rotate and revoke caller keys. Secrets are shown once.")
def command() -> None:
    pass


@command.command(help="Make a key. Its secret is printed once, on stdout.")
@click.argument("name")
@click.option("--tier", help="The tier whose limits it has.")
@click.option("--team", help="The team whose limits it shares.")
@click.option("--chains", help="What it may call: a list, as in smart,cheap. Default: all.")
@click.option("--rpm", type=click.IntRange(1), help="Requests a minute; only narrows.")
@click.option("--tpm", type=click.IntRange(1), help="Tokens a minute; only narrows.")
@click.option("--concurrency", type=click.IntRange(1), help="Requests at a time; only narrows.")
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="20/day",
    help="Dollars a request, hour, day, month or in total; only narrows. May be repeated.",
)
@click.option(
    "--expires", callback=as_moment, metavar="30d|DATE", help="When it ends (DATE: its end)."
)
@click.option("--role", type=click.Choice(ROLES), default="client", show_default=True)
@options.config
@options.as_json
def create(**said: Any) -> None:
    snapshot = configuration(said["config"]).snapshot
    name = said["name"]
    terms = KeyTerms(
        tier=said["tier"],
        team=said["team"],
        chains=_split(said["chains"]),
        limits=_limits(said),
        role=said["role"],
        expires=_end(said["expires"]),
        budgets=tuple(_budget(text) for text in said["budgets"]),
    )
    wrong = objection(name, terms, snapshot, SystemClock().now())
    if wrong is not None:
        raise Stop(wrong.message, wrong.remedy, USAGE)
    if declared(name, snapshot):
        raise Stop(f"The file declares a key {name!r} already.", "choose another name", CONFLICT)
    store = _store(snapshot)
    try:
        with _usable(snapshot):
            made = store.create(
                name,
                tier=terms.tier,
                team=terms.team,
                chains=terms.chains,
                limits=terms.limits,
                expires=terms.expires,
                role=terms.role,
                budgets=terms.budgets,
            )
    except KeyTaken:
        raise _taken(name, store) from None
    _show_secret(name, made, as_json=said["as_json"])
    if snapshot.keyless:
        say.note("From now on the gateway wants a key: nobody is let in without one.")


@command.command("list", help="List all keys: those made here and those the file declares.")
@options.config
@options.as_json
def list_(*, config: Path, as_json: bool) -> None:
    found = _all(configuration(config).snapshot)
    if as_json:
        say.as_json({"keys": found})
    elif not found:
        say.note("No key yet: gateway keys create NAME")
    else:
        screen.show(screen.table(HEADERS, [_row(key) for key in found]))


HEADERS = ("name", "key", "state", "role", "tier", "team", "chains", "limits", "expires", "from")


@command.command(help="Show one key; its secret is kept nowhere.")
@click.argument("name")
@options.config
@options.as_json
def show(*, name: str, config: Path, as_json: bool) -> None:
    snapshot = configuration(config).snapshot
    told = next((key for key in _all(snapshot) if key["name"] == name), None)
    if told is None:
        raise _missing(name, [key["name"] for key in _all(snapshot)])
    if as_json:
        say.as_json({"key": told})
        return
    rows = [*zip(HEADERS, _row(told), strict=True)]
    rows += [(word, value) for word, value in _moments(told).items() if value]
    screen.show(screen.table(("", ""), rows))


@command.command(help="End a key at once, and for good; asks first.")
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@options.config
def revoke(*, name: str, yes: bool, config: Path) -> None:
    snapshot = configuration(config).snapshot
    store = _store(snapshot)
    key = _ours(name, snapshot, store)
    if key.revoked is not None:
        say.note(f"{name} was revoked already, {iso(key.revoked)}")
        return
    if not yes:
        if not say.interactive():
            raise Stop("Nobody is there to be asked.", f"gateway keys revoke {name} --yes", USAGE)
        click.confirm(f"Revoke {name}? Whoever uses it is refused at once", abort=True, err=True)
    with _usable(snapshot):
        store.revoke(name)
    say.note(f"revoked {name}")


@command.command(help="Give a key a new secret; the old one works on for --overlap.")
@click.argument("name")
@click.option("--overlap", callback=as_span, default="24h", show_default=True, metavar="24h")
@options.config
@options.as_json
def rotate(*, name: str, overlap: float, config: Path, as_json: bool) -> None:
    if overlap > MOST_OVERLAP:
        most = f"{MOST_OVERLAP / DAY:.0f}"
        what = f"An overlap of {overlap / DAY:.0f} days is longer than {most} days."
        raise Stop(what, f"gateway keys rotate {name} --overlap {most}d    (or less)", USAGE)
    snapshot = configuration(config).snapshot
    store = _store(snapshot)
    key = _ours(name, snapshot, store)
    now = SystemClock().now()
    try:
        with _usable(snapshot):
            made = store.rotate(name, overlap)
    except NoSuchKey:
        what = f"The key {name!r} was revoked, and stays so."
        raise Stop(what, "gateway keys create ANOTHER_NAME", CONFLICT) from None
    _show_secret(name, made, as_json=as_json)
    say.note(f"The secret before it works until {iso(now + overlap)}.")
    if key.overlaps(now):
        say.note("The one before that, of an overlap that was not over, has ended.")


def _store(snapshot: Snapshot) -> KeyStore:
    return keys_of(snapshot.server, _user(), snapshot.config)


def _user() -> str:
    """Whom the audit log names: a user of this machine, whatever the environment says."""
    try:
        return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:
        return f"cli:{os.getuid()}"


@contextmanager
def _usable(snapshot: Snapshot) -> Iterator[None]:
    """What a store that cannot be used comes to."""
    try:
        yield
    except OSError as error:
        folder = snapshot.server.state_dir
        what = f"The state directory {folder} cannot be used: {error.strerror}."
        raise Stop(what, "gateway doctor", UNAVAILABLE) from None


def _all(snapshot: Snapshot) -> list[KeyTold]:
    with _usable(snapshot):
        stored = _store(snapshot).list()
    return all_told(stored, snapshot, SystemClock().now())


def _show_secret(name: str, made: MadeKey, *, as_json: bool) -> None:
    if as_json:
        say.as_json({"name": name, "id": made.id, "secret": made.secret.reveal()})
    else:
        say.note(f"The secret of {name}, shown this once:")
        say.data(made.secret.reveal())


def _split(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _limits(said: Mapping[str, Any]) -> tuple[LimitRow, ...]:
    rows: list[LimitRow] = []
    if said["rpm"] is not None:
        rows.append(("rpm", said["rpm"], None))
    if said["tpm"] is not None:
        rows.append(("tpm", said["tpm"], None))
    if said["concurrency"] is not None:
        rows.append(("concurrency", said["concurrency"], None))
    return tuple(rows)


def _budget(text: str) -> Budget:
    """`20/day`: dollars and a period."""
    usd, _, period = text.partition("/")
    nano_usd, per = amount(usd), PERIODS.get(period)
    if nano_usd is None or per is None:
        what = (
            f"{text[:80]!r} is no budget: dollars, at most {MOST_USD:,}, per {'|'.join(PERIODS)}."
        )
        raise Stop(what, "--budget 20/day", USAGE)
    return Budget(per, nano_usd)


def _end(expires: tuple[float | None, float | None] | None) -> float | None:
    """Epoch seconds: a span from now, or the end of a day."""
    if expires is None:
        return None
    seconds, first = expires
    return SystemClock().now() + (seconds or 0.0) if first is None else first + DAY


def _ours(name: str, snapshot: Snapshot, store: KeyStore) -> StoredKey:
    """The key of the store, revoked or not."""
    if declared(name, snapshot):
        mend = f"change keys: in {snapshot.source or 'the file'}, then reload"
        raise Stop(f"The key {name!r} is declared in the file.", mend, CONFLICT)
    with _usable(snapshot):
        stored = {key.name: key for key in store.list()}
    if name not in stored:
        raise _missing(name, list(stored))
    return stored[name]


def _missing(name: str, names: Sequence[str]) -> Stop:
    near = difflib.get_close_matches(name, names, n=1)
    rest = f" Did you mean {near[0]}?" if near else ""
    return Stop(f"There is no key {name!r}.{rest}", "gateway keys list", NOT_FOUND)


def _taken(name: str, store: KeyStore) -> Stop:
    if any(key.name == name and key.revoked is not None for key in store.list()):
        what = f"There was a key {name!r}; it was revoked, and the ledger knows it by this name."
        return Stop(what, "choose another name", CONFLICT)
    mend = f"gateway keys rotate {name}    (or choose another name)"
    return Stop(f"There is a key {name!r} already.", mend, CONFLICT)


def _row(key: KeyTold) -> Sequence[Any]:
    limits = " ".join(
        [
            *(f"{kind}={limit}" for kind, limit in key["limits"].items()),
            *(f"${one['usd']}/{one['per']}" for one in key["budgets"]),
        ]
    )
    return (
        key["name"],
        f"gk_{key['id']}_…" if key["id"] else "",
        screen.words((key["state"], STYLES[key["state"]])),
        key["role"],
        key["tier"] or "",
        key["team"] or "",
        "all" if key["chains"] is None else ",".join(key["chains"]),
        limits,
        key["expires"] or "",
        key["source"],
    )


def _moments(key: KeyTold) -> dict[str, str | None]:
    return {
        "created": key["created"],
        "revoked": key["revoked"],
        "old secret until": key["previous_until"],
    }
