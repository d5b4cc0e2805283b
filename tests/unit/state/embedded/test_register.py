"""Keys changed by operators of a running gateway: at once, with a line in the audit log, or not."""

from pathlib import Path

import pytest

from gateway.core.budget import Budget
from gateway.core.events import Audited, Event
from gateway.core.keys import KeyTaken, KeyTerms, NoSuchKey, read_key
from gateway.core.snapshot import Snapshot
from gateway.errors import Overloaded
from gateway.state.embedded.audit import AuditFile, AuditLog
from gateway.state.embedded.keys import EmbeddedKeys
from gateway.state.embedded.register import EmbeddedRegister
from gateway.state.embedded.sqlite import Store
from tests.support.clock import ManualClock

BY = ("gk_operator", "c0ffee")
TERMS = KeyTerms(
    chains=("smart",), limits=(("rpm", 5, None),), role="agent", budgets=(Budget("day", 10**9),)
)


class Hall:
    def __init__(self, folder: Path) -> None:
        heard = self.heard = list[Event]()
        self.clock = ManualClock()
        self.store = Store(folder)
        snapshot = Snapshot("c0ffee", {}, {}, {}, keyless=False)
        self.keys = EmbeddedKeys(self.store, snapshot, self.clock, heard.append)
        self.log = AuditLog(self.store, "c0ffee", self.clock, heard.append)
        self.register = EmbeddedRegister(self.store, self.keys, self.log, self.clock)
        self.audit = AuditFile(folder)

    async def opens(self, token: str) -> bool:
        return await self.keys.find(read_key(token)) is not None

    @property
    def lines(self) -> list[tuple[str, str, str, str]]:
        return [line[2:6] for line in reversed(self.audit.newest(20))]


@pytest.fixture
async def hall(tmp_path: Path):
    found = Hall(tmp_path)
    yield found
    await found.store.close()


async def test_what_is_put_counts_at_once_and_the_same_again_changes_nothing(hall: Hall):
    made = await hall.register.put("job", TERMS, *BY)
    assert (made.what, made.key.terms) == ("created", TERMS)
    assert made.made is not None
    token = made.made.secret.reveal()
    assert await hall.opens(token)
    again = await hall.register.put("job", TERMS, *BY)
    assert (again.what, again.made, again.key) == ("unchanged", None, made.key)
    other = await hall.register.put("job", KeyTerms(tier="gone"), *BY)
    assert (other.what, other.made, other.key.tier) == ("changed", None, "gone")
    assert not await hall.opens(token), "its tier is not in the file"
    assert [key.name for key, _ in hall.register.stored()] == ["job"]
    id = made.key.id
    assert hall.heard == [Audited(line) for line in reversed(hall.audit.newest(9))]
    assert hall.lines == [
        (
            "gk_operator",
            "key.create",
            "job",
            f"ok, gk_{id}, chains=smart limits=rpm:5 budgets=day:$1 role=agent",
        ),
        (
            "gk_operator",
            "key.change",
            "job",
            "ok, tier=gone chains=none limits= budgets= role=client",
        ),
    ]


async def test_a_rotated_key_has_two_secrets_until_the_overlap_ends(hall: Hall):
    first = (await hall.register.put("job", TERMS, *BY)).made
    second = (await hall.register.rotate("job", 60.0, *BY)).made
    assert first is not None
    assert second is not None
    tokens = [first.secret.reveal(), second.secret.reveal()]
    assert [await hall.opens(token) for token in tokens] == [True, True]
    hall.clock.advance(60)
    assert [await hall.opens(token) for token in tokens] == [False, True]
    assert hall.lines[-1] == ("gk_operator", "key.rotate", "job", "ok, overlap 60 s")


async def test_what_is_revoked_is_over_at_once_and_for_good(hall: Hall):
    made = (await hall.register.put("job", TERMS, *BY)).made
    assert made is not None
    assert (await hall.register.revoke("job", *BY)).what == "revoked"
    assert not await hall.opens(made.secret.reveal())
    assert (await hall.register.revoke("job", *BY)).what == "unchanged"
    with pytest.raises(KeyTaken):
        await hall.register.put("job", TERMS, *BY)
    for wrong in (hall.register.rotate("job", 1.0, *BY), hall.register.revoke("nobody", *BY)):
        with pytest.raises(NoSuchKey):
            await wrong
    assert [line[1] for line in hall.lines] == ["key.create", "key.revoke"]
    found = await hall.register.find("job")
    assert found is not None
    assert found.state(0.0) == "revoked"


async def test_a_change_that_cannot_be_audited_is_not_made(hall: Hall):
    await hall.register.put("job", TERMS, *BY)
    await hall.store.run(lambda db: db.execute("ALTER TABLE audit RENAME TO away").close())
    for wrong in (
        hall.register.put("other", TERMS, *BY),
        hall.register.put("job", KeyTerms(), *BY),
        hall.register.rotate("job", 1.0, *BY),
        hall.register.revoke("job", *BY),
    ):
        with pytest.raises(Overloaded) as refused:
            await wrong
        assert refused.value.code == "store_unavailable"
    await hall.store.run(lambda db: db.execute("ALTER TABLE away RENAME TO audit").close())
    await hall.keys.load(afresh=True)
    ((key, principal),) = hall.register.stored()
    assert (key.terms, key.revoked, principal is not None) == (TERMS, None, True)
