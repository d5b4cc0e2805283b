"""Who is recognised, and who is nobody."""

import hmac
from pathlib import Path

import pytest

from gateway.core.budget import Budget, allowances
from gateway.core.events import Event, StateTrouble
from gateway.core.keys import KeyTaken, NoSuchKey, make_key, read_key
from gateway.core.parked import Whose
from gateway.core.principal import LOCAL, Credential, Principal
from gateway.core.snapshot import DeclaredKey, Grant, Snapshot
from gateway.core.target import Account, Chain
from gateway.state.embedded import keys as keys_module
from gateway.state.embedded.keys import EmbeddedKeys, KeyStore
from gateway.state.embedded.sqlite import Store
from tests.support.clock import ManualClock

SMART, CHEAP = Chain("smart", ()), Chain("cheap", ())


def snapshot(*declared: DeclaredKey, keyless: bool = False) -> Snapshot:
    return Snapshot(
        config="c0ffee",
        chains={"smart": SMART, "gpt-4o": SMART, "cheap": CHEAP},
        direct={},
        targets={},
        keys=declared,
        tiers={
            "free": Grant(
                Principal("", default_max_tokens=1024, priority="low"),
                (("rpm", 20, 5), ("concurrency", 2, None)),
                (Budget("day", 5),),
            )
        },
        teams={
            "search": Grant(
                Principal(
                    "",
                    team="search",
                    chains=("smart",),
                    rights=frozenset({"skip"}),
                    accounts=(Account("team:search:rpm", "team", "search", "rpm", 600),),
                    budgets=allowances("team", "search", [Budget("month", 9)]),
                )
            )
        },
        keyless=keyless,
    )


class Hall:
    """The keys of a gateway, the file beside it, and a clock."""

    def __init__(self, folder: Path, of: Snapshot) -> None:
        self.clock = ManualClock()
        self.heard: list[Event] = []
        self.store = Store(folder)
        self.file = KeyStore(folder, self.clock)
        self.keys = EmbeddedKeys(self.store, of, self.clock, self.heard.append)

    async def asks(self, token: str | None) -> Principal | None:
        return await self.keys.find(None if token is None else read_key(token))


@pytest.fixture
async def hall(tmp_path: Path):
    found = Hall(tmp_path, snapshot())
    await found.keys.poll()
    yield found
    await found.store.close()


async def test_a_declared_key_is_found_by_its_digest_whatever_it_looks_like(tmp_path: Path) -> None:
    foreign = "sk-some-old-key-of-another-system-0123456789"
    made = make_key()
    owner = Principal("search-prod")
    other = Principal("demo")
    of = snapshot(
        DeclaredKey("search-prod", read_key(foreign).digest, owner),
        DeclaredKey("demo", made.digest, other),
    )
    hall = Hall(tmp_path, of)
    assert await hall.asks(foreign) is owner
    assert await hall.asks(made.secret.reveal()) is other
    assert await hall.asks(foreign + "0") is None
    assert await hall.asks(None) is None
    await hall.store.close()


async def test_a_declared_key_ends_when_it_expires(tmp_path: Path) -> None:
    made = make_key()
    hall = Hall(tmp_path, snapshot())
    expires = hall.clock.now() + 10
    hall.keys.use(snapshot(DeclaredKey("demo", made.digest, Principal("demo"), expires)))
    assert await hall.asks(made.secret.reveal())
    hall.clock.advance(10)
    assert await hall.asks(made.secret.reveal()) is None
    await hall.store.close()


async def test_who_parked_a_request_is_found_again_by_name_while_the_key_is_good(
    tmp_path: Path,
) -> None:
    def whose(name: str) -> Whose:
        return Whose(name, None, None, None, "client")

    hall = Hall(tmp_path, snapshot())
    expires = hall.clock.now() + 10
    owner = Principal("demo")
    hall.file.create("job", team="search")
    await hall.keys.poll()
    hall.keys.use(snapshot(DeclaredKey("demo", make_key().digest, owner, expires)))
    assert await hall.keys.again(whose("demo")) is owner
    job = await hall.keys.again(whose("job"))
    assert job is not None
    assert job.team == "search"
    assert await hall.keys.again(whose("local")) is None
    hall.clock.advance(10)
    hall.file.revoke("job")
    await hall.keys.poll()
    assert await hall.keys.again(whose("demo")) is None
    assert await hall.keys.again(whose("job")) is None
    await hall.store.close()
    hall = Hall(tmp_path / "open", snapshot(keyless=True))
    assert await hall.keys.again(whose("local")) is LOCAL
    await hall.store.close()


async def test_a_key_made_or_revoked_by_another_process_counts_without_a_restart(
    hall: Hall,
) -> None:
    made = hall.file.create("job", team="search")
    token = made.secret.reveal()
    assert await hall.asks(token) is None
    await hall.keys.poll()
    principal = await hall.asks(token)
    assert principal is not None
    assert principal.key_id == "job"
    hall.file.revoke("job")
    await hall.keys.poll()
    assert await hall.asks(token) is None


async def test_another_secret_with_the_same_public_part_is_nobody(hall: Hall) -> None:
    made = hall.file.create("job")
    await hall.keys.poll()
    assert await hall.asks(make_key(made.id).secret.reveal()) is None
    assert await hall.keys.find(Credential(made.id, bytes(32))) is None
    assert await hall.keys.find(Credential("nobody00", bytes(32))) is None


async def test_a_rotated_key_and_the_one_before_both_count_for_the_overlap(hall: Hall) -> None:
    first = hall.file.create("job").secret.reveal()
    second = hall.file.rotate("job", overlap=60.0).secret.reveal()
    await hall.keys.poll()
    assert await hall.asks(first)
    assert await hall.asks(second)
    hall.clock.advance(60.0)
    assert await hall.asks(first) is None
    assert await hall.asks(second)
    hall.file.rotate("job", overlap=0.0)
    await hall.keys.poll()
    assert await hall.asks(second) is None


async def test_revoking_ends_both_secrets_of_a_rotation(hall: Hall) -> None:
    tokens = [hall.file.create("job").secret.reveal(), hall.file.rotate("job").secret.reveal()]
    hall.file.revoke("job")
    await hall.keys.poll()
    assert [await hall.asks(token) for token in tokens] == [None, None]


async def test_a_stored_key_ends_when_it_expires(hall: Hall) -> None:
    token = hall.file.create("job", expires=hall.clock.now() + 5).secret.reveal()
    await hall.keys.poll()
    assert await hall.asks(token)
    hall.clock.advance(5)
    assert await hall.asks(token) is None


async def test_a_key_gets_its_tiers_share_and_its_teams_and_only_narrows_them(hall: Hall) -> None:
    token = hall.file.create(
        "job",
        tier="free",
        team="search",
        chains=["gpt-4o", "cheap"],
        limits=[("rpm", 10, None), ("concurrency", 9, None), ("tpm", 500, None)],
        role="agent",
        budgets=[Budget("day", 3, hard=False), Budget("total", 7)],
    ).secret.reveal()
    await hall.keys.poll()
    principal = await hall.asks(token)
    assert principal == Principal(
        "job",
        team="search",
        role="agent",
        chains=("smart",),
        accounts=(
            Account("key:job:rpm", "key", "job", "rpm", 10, 5),
            Account("key:job:concurrency", "key", "job", "concurrency", 2),
            Account("key:job:tpm", "key", "job", "tpm", 500),
            Account("team:search:rpm", "team", "search", "rpm", 600),
        ),
        default_max_tokens=1024,
        priority="low",
        budgets=(
            *allowances("key", "job", [Budget("day", 3), Budget("total", 7)]),
            *allowances("team", "search", [Budget("month", 9)]),
        ),
    )


class Counting(dict):
    """Writes down every look into it."""

    def __init__(self, looks: list[str], of: dict) -> None:
        super().__init__(of)
        self.looks = looks

    def get(self, key, default=None):
        self.looks.append("look")
        return super().get(key, default)


async def test_whoever_is_nobody_costs_the_same_work(hall: Hall, monkeypatch) -> None:
    """No clock: what is counted is every look-up and every comparison of digests."""
    now = hall.clock.now()
    ended = make_key()
    hall.keys.use(snapshot(DeclaredKey("ended", ended.digest, Principal("ended"), now)))
    tokens = {
        "good": hall.file.create("good"),
        "expired": hall.file.create("expired", expires=now),
        "expired, of the file": ended,
        "revoked": hall.file.create("revoked"),
        "rotated away": hall.file.create("rotated"),
        "of a tier that is gone": hall.file.create("gone", tier="gold"),
        "never made": make_key(),
    }
    shown = {why: made.secret.reveal() for why, made in tokens.items()}
    hall.file.revoke("revoked")
    hall.file.rotate("rotated", overlap=0.0)
    await hall.keys.poll()
    known = tokens["good"]
    shown["another secret of a known key"] = make_key(known.id).secret.reveal()
    shown["mistyped"] = shown["good"][:-1] + ("0" if shown["good"][-1] != "0" else "1")
    shown["foreign"] = "sk-of-another-system-0123456789-0123456789"
    shown["a token, where none is taken"] = "eyJhbGciOiJub25lIn0.e30."

    work: list[str] = []
    compare = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        work.append(f"compare {len(one)} with {len(other)} bytes")
        return compare(one, other)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", counted)
    hall.keys._declared = Counting(work, hall.keys._declared)
    hall.keys._made = Counting(work, hall.keys._made)
    spent = {}
    for why, token in shown.items():
        work.clear()
        found = await hall.asks(token)
        assert (found is not None) == (why == "good"), why
        spent[why] = tuple(work)
    assert set(spent.values()) == {("look", "look", *["compare 32 with 32 bytes"] * 2)}, spent


async def test_a_principal_is_made_once_for_each_snapshot(hall: Hall) -> None:
    token = hall.file.create("job").secret.reveal()
    await hall.keys.poll()
    before = await hall.asks(token)
    assert await hall.asks(token) is before
    hall.keys.use(snapshot())
    after = await hall.asks(token)
    assert after == before
    assert after is not before


async def test_a_key_whose_tier_is_not_in_the_file_is_nobody_until_it_is(hall: Hall) -> None:
    token = hall.file.create("job", tier="gold").secret.reveal()
    await hall.keys.poll()
    assert await hall.asks(token) is None
    of = snapshot()
    hall.keys.use(
        Snapshot(of.config, of.chains, {}, {}, tiers={"gold": Grant(Principal(""))}, keyless=False)
    )
    assert await hall.asks(token)


async def test_without_any_key_everybody_is_local(tmp_path: Path) -> None:
    hall = Hall(tmp_path, snapshot(keyless=True))
    await hall.keys.poll()
    assert hall.keys.keyless
    assert await hall.asks(None) is LOCAL
    assert await hall.asks("any key works") is LOCAL
    await hall.store.close()


async def test_the_first_stored_key_shuts_the_door_and_revoking_it_does_not_open_it(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path, snapshot(keyless=True))
    token = hall.file.create("job").secret.reveal()
    await hall.keys.poll()
    assert not hall.keys.keyless
    assert await hall.asks(None) is None
    assert await hall.asks(token)
    hall.file.revoke("job")
    await hall.keys.poll()
    assert not hall.keys.keyless
    assert await hall.asks(None) is None
    await hall.store.close()


async def test_a_store_that_cannot_be_read_keeps_what_is_known_and_says_so(hall: Hall) -> None:
    token = hall.file.create("job").secret.reveal()
    await hall.keys.poll()
    hall.file.create("other")
    await hall.store.run(lambda db: db.execute("ALTER TABLE key RENAME TO away").close())
    await hall.keys.poll()
    assert hall.heard == [StateTrouble("embedded", "keys", "OperationalError")]
    assert await hall.asks(token)


def test_names_are_given_once_and_only_digests_are_kept(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path, ManualClock())
    assert keys.list() == []
    made = keys.create("job", expires=5.0)
    with pytest.raises(KeyTaken):
        keys.create("job")
    (stored,) = keys.list()
    assert (stored.name, stored.id, stored.digest) == ("job", made.id, made.digest)
    assert stored.state(4.9) == "active"
    assert stored.state(5.0) == "expired"
    keys.revoke("job")
    assert keys.list()[0].state(0.0) == "revoked"
    assert keys.revoke("job") is False
    for wrong in (lambda: keys.rotate("job"), lambda: keys.revoke("nobody")):
        with pytest.raises(NoSuchKey):
            wrong()
    random = made.secret.reveal()[12:55].encode()
    assert not any(random in file.read_bytes() for file in tmp_path.iterdir())
