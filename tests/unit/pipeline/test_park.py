"""Parked instead of refused: what may be, what its turn is like, and what its caller finds."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest

from gateway.core.events import RequestEnded
from gateway.core.parked import Whose
from gateway.core.principal import Principal, SubLimits
from gateway.core.request import NO_HINTS, Hints
from gateway.core.story import story
from gateway.core.target import Account
from gateway.errors import NotFound
from gateway.pipeline.detached import Detached
from gateway.pipeline.park import Envelope, Park, Told
from gateway.pipeline.recall import owner_of_keys
from gateway.pipeline.unpark import Roads, Unpark
from gateway.state.embedded.parking import LEASE, EmbeddedParking
from gateway.wire import json
from tests.support.fakes import (
    FakeReply,
    World,
    answers,
    make_chain,
    make_leaf,
    make_request,
    make_target,
    refuses,
    slots,
    turns,
)
from tests.support.limits import Inline

SLOT = Account("key:k:concurrency", "key", "k", "concurrency", 1)
RPM = Account("key:k:rpm", "key", "k", "rpm", 1)
TPM = Account("key:k:tpm", "key", "k", "tpm", 120)
USER = Account("user:k:alice:concurrency", "user", "alice", "concurrency", 1)
ALLOW = Hints(park=True)
HOUR = 3600.0
LONG = 2.0  # seconds an answer takes


def caller(*accounts: Account, **changed: Any) -> Principal:
    return Principal("k", tier="free", accounts=accounts, rights=frozenset({"park"}), **changed)


class Place(World):
    """A world whose refused requests may be parked, and the chore that answers them."""

    def __init__(self, *args: Any, **changed: Any) -> None:
        super().__init__(*args, **changed)
        self.store = Inline()
        self.parking = EmbeddedParking(self.store, self.clock, self.heard.append)
        self.under_way = Detached(self.clock)
        self.named = 0
        self.unpark = Unpark(self.parking, self.under_way, self.clock, self.roads, self.name)

    def roads(self) -> Roads:
        road = self.road(make_request(model=self.chain.name, max_output=100))
        return Roads({"chat": road}, self.authenticate.again)

    def name(self) -> str:
        self.named += 1
        return f"run{self.named}"

    @property
    def park(self) -> Park:
        return Park(self.parking, self.clock, self.snapshot)

    async def look(self, id: str, hints: Hints = ALLOW) -> Told:
        return await self.park.look(self.principal, hints, id)

    async def passes(self, seconds: float) -> None:
        """Time goes on in small steps, as it does."""
        end = self.clock.monotonic() + seconds
        while (left := end - self.clock.monotonic()) > 0:
            self.clock.advance(min(0.25, left))
            await self.parking.renew()
            await self.parking.look()
            await turns(20)

    def runs_of(self, id: str) -> list[int]:
        """What came of each of its turns on the road."""
        ended = [event.exchange for event in self.heard if isinstance(event, RequestEnded)]
        return [one.status for one in ended if one.parked == id and one.status != 202]

    @property
    def statuses(self) -> list[int]:
        return [e.exchange.status for e in self.heard if isinstance(e, RequestEnded)]


@asynccontextmanager
async def at_work(place: Place):
    """The chore of this worker."""
    chore = asyncio.get_running_loop().create_task(place.unpark.run())
    async with place.under_way:
        yield
        place.unpark.stop()
        await chore


@dataclass
class Parked:
    id: str
    headers: dict[str, str]


async def parked(place: Place, hints: Hints = ALLOW, **request: Any) -> Parked:
    told = await place.begin(hints=hints, **{"max_output": 100} | request).end()
    assert told.error is None
    assert told.exchange.status == 202
    body = json.loads(told.reply.ticket)
    assert body["status"] == "parked"
    assert story(told.exchange, 0.0, "")["parked"] == body["id"]
    return Parked(body["id"], dict(told.reply.headers))


async def busy(place: Place) -> None:
    """The one slot, the one request or the tokens of this minute are taken."""
    place.begin(hints=Hints(user="alice"), max_output=100)
    await turns()


def full(*accounts: Account, delay: float = LONG, **changed: Any) -> Place:
    patient = make_leaf("gpt", answer=2 * delay)
    return Place(
        make_chain(patient, deadline=2 * delay),
        {"gpt": answers(delay=delay)},
        principal=caller(*accounts, **changed),
    )


@pytest.mark.parametrize("account", [SLOT, RPM, TPM, USER], ids=lambda a: f"{a.scope} {a.kind}")
@pytest.mark.parametrize("unasked", [False, True])
async def test_what_finds_an_account_of_its_caller_full_is_answered_when_there_is_room(
    account: Account, unasked: bool
) -> None:
    per_user = SubLimits(per_user=(("concurrency", 1, None),))
    place = full(account, parks=unasked, sub_limits=per_user if account is USER else None)
    async with at_work(place):
        await busy(place)
        hints = Hints(park=not unasked, user="alice")
        told = await parked(place, hints)
        assert told.headers["location"] == f"/v1/parked/{told.id}"
        assert int(told.headers["retry-after"]) >= 1
        assert await place.look(told.id, hints) == (
            202,
            json.dumps({"id": told.id, "status": "parked"}),
            {"retry-after": told.headers["retry-after"]},
        )
        await place.passes(1)
        assert (await place.look(told.id, hints)).status == 202
        await place.passes(70)
        status, body, headers = await place.look(told.id, hints)
        assert (status, json.loads(body)["id"]) == (200, "c1")
        assert headers["x-gateway-target"] == "gpt"
    assert place.upstreams.asked == ["gpt", "gpt"]
    assert place.runs_of(told.id) == [200]
    assert place.statuses.count(429) == 0
    assert len(place.ledger.closed) == 2
    assert place.held([SLOT]) == 0


async def test_what_finds_every_target_full_is_answered_when_one_has_room() -> None:
    target = make_target("gpt", accounts=(slots(1),))
    place = Place(make_chain(target), {"gpt": answers(delay=LONG)})
    async with at_work(place):
        await busy(place)
        told = await parked(place)
        await place.passes(2 * LONG + 3)
        assert (await place.look(told.id)).status == 200


async def test_what_every_upstream_is_too_busy_for_is_asked_again_later() -> None:
    place = Place(
        make_chain("gpt"),
        {"gpt": [*[refuses("rate_limited", 429, retry_after=30.0)] * 2, answers()]},
        principal=caller(),
    )
    async with at_work(place):
        told = await parked(place)
        await place.passes(29)
        assert len(place.upstreams.asked) == 1
        await place.passes(10)
        assert json.loads((await place.look(told.id)).body)["status"] == "parked"
        await place.passes(31)
        assert (await place.look(told.id)).status == 200
    assert len(place.upstreams.asked) == 3
    assert len(place.ledger.closed) == 3


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"hints": Hints()}, "Come back in"),
        ({"hints": ALLOW, "stream": True}, "only requests without stream"),
    ],
)
async def test_nobody_who_did_not_ask_and_no_stream_is_parked(
    asked: dict[str, Any], says: str
) -> None:
    place = full(SLOT)
    await busy(place)
    refusal = (await place.begin(**asked).end()).refusal
    assert (refusal.status, refusal.code) == (429, "concurrency_exceeded")
    assert says in refusal.message


async def test_what_is_no_matter_of_room_is_not_parked() -> None:
    place = Place(make_chain("gpt"), {"gpt": refuses("bad_request", 400)}, principal=caller())
    refusal = (await place.ask(hints=ALLOW)).refusal
    assert refusal.status == 400


async def test_without_the_right_the_header_is_refused() -> None:
    place = full()
    place.keys.principal = replace(place.principal, rights=frozenset())
    refusal = (await place.ask(hints=ALLOW)).refusal
    assert (refusal.status, refusal.code, refusal.param) == (
        403,
        "override_not_allowed",
        "x-gateway-park",
    )


async def test_when_no_more_may_be_parked_it_is_a_429_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.state.embedded.parking.MOST", 1)
    place = full(SLOT)
    await busy(place)
    await parked(place)
    refusal = (await place.ask(hints=ALLOW, max_output=100)).refusal
    assert refusal.status == 429
    assert "It was not parked: of one tier 10,000 requests" in refusal.message


async def test_nothing_stays_parked_of_a_caller_who_left_before_he_knew() -> None:
    class Gone(FakeReply):
        def accepted(self, headers: Any, body: bytes) -> None:
            raise asyncio.CancelledError

    place = full(SLOT)
    await busy(place)
    told = await place.ask(hints=ALLOW, max_output=100, reply=Gone())
    assert isinstance(told.error, asyncio.CancelledError)
    assert place.store.db.execute("SELECT count(*) FROM parked").fetchone() == (0,)


async def test_a_store_that_is_out_of_order_leaves_the_429(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = full(SLOT)
    await busy(place)
    place.store.db.execute("DROP TABLE parked")
    refusal = (await place.ask(hints=ALLOW, max_output=100)).refusal
    assert refusal.status == 429
    assert "the store of parked requests cannot be used" in refusal.message


@pytest.mark.parametrize(("hints", "seconds"), [(ALLOW, HOUR), (Hints(park=True, deadline=9.0), 9)])
async def test_what_finds_no_room_until_its_deadline_is_told_so_and_never_sent(
    hints: Hints, seconds: float
) -> None:
    place = full(SLOT, delay=2 * HOUR)
    await busy(place)
    told = await parked(place, hints)
    place.clock.advance(seconds - 1)
    async with at_work(place):
        await place.passes(0.5)
        assert (await place.look(told.id)).status == 202
        await place.passes(1)
        status, body, _ = await place.look(told.id)
        assert (status, json.loads(body)["error"]["code"]) == (504, "deadline_exceeded")
    assert len(place.upstreams.asked) == 1


async def test_a_revoked_keys_request_is_dropped_with_a_401() -> None:
    place = full(SLOT)
    await busy(place)
    told = await parked(place)
    place.keys.principal = None
    async with at_work(place):
        await place.passes(LONG + 2)
        status, body, _ = await place.look(told.id)
    assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")
    assert len(place.upstreams.asked) == 1


async def test_an_answer_that_failed_is_told_as_it_would_have_been() -> None:
    place = full(SLOT)
    await busy(place)
    told = await parked(place)
    place.upstreams.scripts["gpt"] = [refuses("bad_request", 422)]
    async with at_work(place):
        await place.passes(LONG + 2)
        status, body, headers = await place.look(told.id)
    assert status == 422
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert headers["x-should-retry"] == "false"
    assert "retry-after" not in headers


async def test_what_workers_die_of_is_given_up() -> None:
    place = full(SLOT)
    await busy(place)
    told = await parked(place)
    await place.passes(LONG + 1)
    for _ in range(3):
        await place.parking.take()
        place.parking._leases.clear()
        place.clock.advance(LEASE)
    async with at_work(place):
        await place.passes(1)
        status, body, _ = await place.look(told.id)
    assert (status, json.loads(body)["error"]["code"]) == (500, "internal")
    assert len(place.upstreams.asked) == 1


async def test_who_drops_a_running_one_ends_its_call_and_pays_for_what_was_done() -> None:
    place = full(SLOT)
    async with at_work(place):
        await busy(place)
        told = await parked(place)
        await place.passes(LONG + 1)
        assert json.loads((await place.look(told.id)).body)["status"] == "running"
        dropped = await place.park.drop(place.principal, ALLOW, told.id)
        assert (dropped.status, json.loads(dropped.body)["status"]) == (200, "cancelled")
        await turns()
        assert place.upstreams.open == 0
        with pytest.raises(NotFound):
            await place.look(told.id)
    assert place.runs_of(told.id) == [499]
    assert len(place.ledger.closed) == 2
    assert place.held([SLOT]) == 0


async def test_a_drain_takes_nothing_more_and_what_runs_at_its_end_goes_back() -> None:
    place = full(SLOT, delay=20.0)
    await busy(place)
    first = await parked(place)
    second = await parked(place)
    await place.passes(20.5)
    async with at_work(place):
        await place.passes(1)
        place.unpark.stop()
        place.clock.advance(1)
        lot = place.parking.of(owner_of_keys(place.principal, ALLOW))
        assert [(await lot.look(one.id)).state for one in (first, second)] == ["running", "parked"]
    assert (await lot.look(first.id)).state == "parked"
    assert place.upstreams.open == 0


async def test_an_idempotency_key_is_answered_once_however_often_it_is_parked() -> None:
    place = full(SLOT)
    keyed = Hints(park=True, idempotency_key="k1")
    async with at_work(place):
        await busy(place)
        ids = [(await parked(place, keyed)).id for _ in range(2)]
        await place.passes(3 * LONG + 3)
        told = [await place.look(id) for id in ids]
    assert [one.status for one in told] == [200, 200]
    assert told[0].body == told[1].body
    assert len(place.upstreams.asked) == 2


async def test_one_that_meets_a_mistake_of_ours_does_not_stop_the_others() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    place = full(SLOT)
    await busy(place)
    broken, sound = await parked(place, replace(ALLOW, deadline=30.0)), await parked(place)
    place.store.db.execute("UPDATE parked SET envelope = x'7b' WHERE id = ?", (broken.id,))
    async with at_work(place):
        await place.passes(2 * LONG + 3)
        assert (await place.look(broken.id)).status == 500
        assert (await place.look(sound.id)).status == 200
    assert [context["message"] for context in told] == ["a parked request met a mistake of ours"]


def test_every_wish_of_a_request_is_kept_while_it_is_parked() -> None:
    hints = Hints(
        deadline=30.0,
        first_token=0.5,
        max_cost=5,
        priority="low",
        session="s",
        user="anna",
        tags=(("team", "a"), ("job", "b")),
        skip=frozenset({"gpt", "claude"}),
        target="openai/gpt",
        fallback=False,
        trace=True,
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        client_retry=True,
        idempotency_key="k1",
        detach=True,
        cache=300.0,
        park=True,
    )
    assert all(getattr(hints, f.name) != getattr(NO_HINTS, f.name) for f in fields(Hints))
    whose = Whose("https://issuer/#alice", "alice", "search", None, "client")
    envelope = Envelope(whose, "chat", hints)
    assert json.decode(json.encode(envelope), Envelope) == envelope
