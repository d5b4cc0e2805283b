"""`gateway keys`: caller keys in the state directory; a running gateway follows in a second."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from gateway.cli import options, say, screen
from gateway.cli.exits import CONFLICT, NOT_FOUND, UNAVAILABLE, USAGE, Stop
from gateway.cli.local import configuration
from gateway.cli.when import DAY, as_moment, as_span, iso
from gateway.clock import SystemClock
from gateway.core.keys import MadeKey
from gateway.core.snapshot import DeclaredKey, Snapshot
from gateway.state.embedded.keys import KeyStore, KeyTaken, LimitRow, NoSuchKey, StoredKey

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
ROLES = ("client", "agent", "metrics", "admin")
STYLES = {"active": screen.GOOD, "expired": screen.WARN, "revoked": screen.BAD}


class Limits(NamedTuple):
    """Of the key's own; None: no limit of its own."""

    rpm: int | None
    tpm: int | None
    concurrency: int | None

    def rows(self) -> list[LimitRow]:
        rows: list[LimitRow] = []
        if self.rpm is not None:
            rows.append(("rpm", self.rpm, None))
        if self.tpm is not None:
            rows.append(("tpm", self.tpm, None))
        if self.concurrency is not None:
            rows.append(("concurrency", self.concurrency, None))
        return rows


@click.group(help="Create, list, rotate and revoke caller keys. Secrets are shown once.")
def command() -> None:
    pass


@command.command(help="Make a key. Its secret is printed once, on stdout.")
@click.argument("name")
@click.option("--tier", help="The tier whose limits it has.")
@click.option("--team", help="The team whose limits it shares.")
@click.option("--chains", help="What it may call: a list, as in smart,cheap. Default: all.")
@click.option("--rpm", type=click.IntRange(1), help="Requests a minute.")
@click.option("--tpm", type=click.IntRange(1), help="Tokens a minute.")
@click.option("--concurrency", type=click.IntRange(1), help="Requests at a time.")
@click.option(
    "--expires", callback=as_moment, metavar="30d|DATE", help="When it ends (DATE: its end)."
)
@click.option("--role", type=click.Choice(ROLES), default="client", show_default=True)
@options.config
@options.as_json
def create(**said: Any) -> None:
    snapshot = configuration(said["config"]).snapshot
    chains = _split(said["chains"])
    _known("tier", [said["tier"]], snapshot.tiers)
    _known("team", [said["team"]], snapshot.teams)
    _known("chain", chains or (), snapshot.chains)
    name = said["name"]
    if not NAME.fullmatch(name):
        what = f"{name!r} is no name for a key."
        raise Stop(what, "use a-z, 0-9, dot, dash or underscore, at most 64", USAGE)
    if any(key.name == name for key in snapshot.keys):
        raise Stop(f"The file declares a key {name!r} already.", "choose another name", CONFLICT)
    limits = Limits(said["rpm"], said["tpm"], said["concurrency"])
    try:
        made = _store(snapshot).create(
            name,
            tier=said["tier"],
            team=said["team"],
            chains=chains,
            limits=limits.rows(),
            expires=_end(said["expires"]),
            role=said["role"],
        )
    except KeyTaken:
        mend = f"gateway keys rotate {name}    (or choose another name)"
        raise Stop(f"There is a key {name!r} already.", mend, CONFLICT) from None
    except OSError as error:
        raise _unwritable(snapshot, error) from None
    _show(name, made, as_json=said["as_json"])
    if snapshot.keyless:
        say.note("From now on the gateway wants a key: nobody is let in without one.")


@command.command("list", help="List all keys: those made here and those the file declares.")
@options.config
@options.as_json
def list_(*, config: Path, as_json: bool) -> None:
    snapshot = configuration(config).snapshot
    now = SystemClock().now()
    stored = _store(snapshot).list()
    found = [
        *(_declared(key, now) for key in snapshot.keys),
        *(_stored(key, now) for key in stored),
    ]
    if as_json:
        say.as_json({"keys": found})
    elif not found:
        say.note("No key yet: gateway keys create NAME")
    else:
        screen.show(screen.table(HEADERS, [_row(key) for key in found]))


HEADERS = ("name", "key", "state", "role", "tier", "team", "chains", "limits", "expires", "from")


@command.command(help="End a key at once; asks first.")
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@options.config
def revoke(*, name: str, yes: bool, config: Path) -> None:
    snapshot = configuration(config).snapshot
    store = _store(snapshot)
    _must_be_ours(name, snapshot, store)
    if not yes:
        if not say.interactive():
            raise Stop("Nobody is there to be asked.", f"gateway keys revoke {name} --yes", USAGE)
        click.confirm(f"Revoke {name}? Whoever uses it is refused at once", abort=True, err=True)
    try:
        store.revoke(name)
    except NoSuchKey:
        raise _missing(name, store) from None
    except OSError as error:
        raise _unwritable(snapshot, error) from None
    say.note(f"revoked {name}")


@command.command(help="Give a key a new secret; the old one works on for --overlap.")
@click.argument("name")
@click.option("--overlap", callback=as_span, default="24h", show_default=True, metavar="24h")
@options.config
@options.as_json
def rotate(*, name: str, overlap: float, config: Path, as_json: bool) -> None:
    snapshot = configuration(config).snapshot
    store = _store(snapshot)
    _must_be_ours(name, snapshot, store)
    try:
        made = store.rotate(name, overlap)
    except NoSuchKey:
        raise _missing(name, store) from None
    except OSError as error:
        raise _unwritable(snapshot, error) from None
    _show(name, made, as_json=as_json)
    say.note(f"The secret before it works until {iso(SystemClock().now() + overlap)}.")


def _store(snapshot: Snapshot) -> KeyStore:
    return KeyStore(Path(snapshot.server.state_dir), SystemClock())


def _show(name: str, made: MadeKey, *, as_json: bool) -> None:
    if as_json:
        say.as_json({"name": name, "id": made.id, "secret": made.secret.reveal()})
    else:
        say.note(f"The secret of {name}, shown this once:")
        say.data(made.secret.reveal())


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _known(what: str, names: Iterable[str | None], there: Iterable[str]) -> None:
    known = list(there)
    for name in names:
        if name is not None and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            rest = f"; did you mean {near[0]}?" if near else "."
            listed = ", ".join(known) or "none"
            mend = f"add it to {what}s: in the file first"
            raise Stop(f"There is no {what} {name!r}; there are: {listed}{rest}", mend, USAGE)


def _end(expires: tuple[float | None, float | None] | None) -> float | None:
    """Epoch seconds: a span from now, or the end of a day."""
    if expires is None:
        return None
    seconds, first = expires
    if first is None:
        return SystemClock().now() + (seconds or 0.0)
    if first + DAY <= SystemClock().now():
        raise Stop("That day is over.", "--expires 30d", USAGE)
    return first + DAY


def _must_be_ours(name: str, snapshot: Snapshot, store: KeyStore) -> None:
    if any(key.name == name for key in snapshot.keys):
        mend = f"change keys: in {snapshot.source or 'the file'}, then reload"
        raise Stop(f"The key {name!r} is declared in the file.", mend, CONFLICT)
    if all(key.name != name or key.revoked is not None for key in store.list()):
        raise _missing(name, store)


def _missing(name: str, store: KeyStore) -> Stop:
    names = [key.name for key in store.list() if key.revoked is None]
    near = difflib.get_close_matches(name, names, n=1)
    rest = f" Did you mean {near[0]}?" if near else ""
    return Stop(f"There is no key {name!r}.{rest}", "gateway keys list", NOT_FOUND)


def _unwritable(snapshot: Snapshot, error: OSError) -> Stop:
    what = f"The state directory {snapshot.server.state_dir} cannot be written: {error.strerror}."
    return Stop(what, "gateway doctor", UNAVAILABLE)


def _stored(key: StoredKey, now: float) -> dict[str, Any]:
    rotating = key.previous_until is not None and key.previous_until > now
    return {
        "name": key.name,
        "id": key.id,
        "state": key.state(now),
        "role": key.role,
        "tier": key.tier,
        "team": key.team,
        "chains": None if key.chains is None else list(key.chains),
        "limits": {kind: limit for kind, limit, _ in key.limits},
        "expires": key.expires,
        "created": key.created,
        "previous_until": key.previous_until if rotating else None,
        "from": "store",
    }


def _declared(key: DeclaredKey, now: float) -> dict[str, Any]:
    principal = key.principal
    expired = key.expires is not None and key.expires <= now
    return {
        "name": key.name,
        "id": None,
        "state": "expired" if expired else "active",
        "role": principal.role,
        "tier": None,
        "team": principal.team,
        "chains": None if principal.chains is None else list(principal.chains),
        "limits": {a.kind: a.limit for a in principal.accounts if a.scope == "key"},
        "expires": key.expires,
        "created": None,
        "previous_until": None,
        "from": "file",
    }


def _row(key: dict[str, Any]) -> Sequence[Any]:
    limits = " ".join(f"{kind}={limit}" for kind, limit in key["limits"].items())
    return (
        key["name"],
        f"gk_{key['id']}_…" if key["id"] else "",
        screen.words((key["state"], STYLES[key["state"]])),
        key["role"],
        key["tier"] or "",
        key["team"] or "",
        "all" if key["chains"] is None else ",".join(key["chains"]),
        limits,
        iso(key["expires"]) if key["expires"] else "",
        key["from"],
    )
