"""Accounts of the caller and of the first target: all or none; else wait in line, or 429."""

from dataclasses import replace

import pytest

from gateway.core.attempt import Refusal
from gateway.core.plan import Standing
from gateway.core.principal import Principal, SubLimits
from gateway.core.request import Hints
from gateway.core.target import Account
from tests.support.fakes import TOLD, World, answers, make_chain, make_target, slots, turns

RPM = Account("key:k:rpm", "key", "k", "rpm", 3)
TPM = Account("key:k:tpm", "key", "k", "tpm", 120)
SLOT = Account("key:k:concurrency", "key", "k", "concurrency", 1)
USER = Account("user:k:alice:concurrency", "user", "alice", "concurrency", 1)
NOBODY = Account("user:k::concurrency", "user", "", "concurrency", 1)
SESSION = Account("session:k:s-1:concurrency", "session", "s-1", "concurrency", 1)
TEAM = Account("team:t:concurrency", "team", "t", "concurrency", 1)


def remaining(world, *accounts):
    return [room.remaining for room in world.limiter.headroom(accounts)]


@pytest.mark.parametrize(
    ("account", "code", "scope", "words"),
    [
        (RPM, "rpm_exceeded", "key", "requests per minute of this API key"),
        (TPM, "tpm_exceeded", "key", "tokens per minute of this API key"),
        (SLOT, "concurrency_exceeded", "key", "requests at once of this API key"),
        (TEAM, "concurrency_exceeded", "team", "the team 't'"),
        (USER, "concurrency_exceeded", "user", "the user 'alice'"),
        (NOBODY, "concurrency_exceeded", "user", "requests that name no user"),
        (SESSION, "concurrency_exceeded", "session", "the session 's-1'"),
    ],
)
async def test_a_full_account_is_a_429_that_names_it_and_when(account, code, scope, words):
    principal = Principal("k", accounts=(account,))
    world = World(make_chain("gpt"), {"gpt": answers(delay=9.0)}, principal=principal)
    going = [world.begin(max_output=100) for _ in range(account.limit if account is RPM else 1)]
    await turns()
    told = await world.begin(max_output=100).end()
    refusal = told.refusal
    assert (refusal.status, refusal.code, refusal.scope) == (429, code, scope)
    assert words in refusal.message
    assert refusal.retry_after > 0
    assert refusal.headers()["x-should-retry"] == ("false" if account is RPM else "true")
    for one in going:
        await one.end()


async def test_a_refusal_consumes_nothing():
    principal = Principal("k", accounts=(RPM, SLOT))
    world = World(make_chain("gpt"), {"gpt": answers(delay=1.0)}, principal=principal)
    first = world.begin()
    await turns()
    assert (await world.begin().end()).refusal.code == "concurrency_exceeded"
    assert remaining(world, RPM) == [2]
    await first.end()


async def test_the_first_targets_accounts_are_held_with_the_callers():
    gpt = slots(2)
    world = World(make_chain(make_target("gpt", accounts=(gpt,))), {"gpt": answers(delay=1.0)})
    first = world.begin()
    await turns()
    assert remaining(world, gpt) == [1]
    await first.end()
    assert remaining(world, gpt) == [2]


async def test_a_request_waits_for_its_callers_slot():
    principal = Principal("k", accounts=(SLOT,), wait=5.0)
    world = World(make_chain("gpt"), {"gpt": answers(delay=2.0)}, principal=principal)
    first, second = world.begin(), world.begin()
    await turns()
    assert world.queue.waiting == 1
    assert (await first.end()).error is None
    told = await second.end()
    assert told.error is None
    assert told.exchange.waited == 2.0
    assert told.reply.headers["x-gateway-time"].startswith("queue=2000")
    assert world.clock.monotonic() == 1004.0


async def test_a_request_waits_for_a_target_when_all_are_full():
    chain = make_chain(*(make_target(n, accounts=(slots(1, name=n),)) for n in ("a", "b")))
    scripts = {"a": answers(delay=2.0), "b": answers(delay=1.0)}
    world = World(chain, scripts, principal=Principal("k", wait=5.0))
    going = [world.begin() for _ in range(3)]
    await turns()
    assert world.queue.waiting == 1
    told = [await one.end() for one in going]
    assert [one.error for one in told] == [None, None, None]
    assert told[2].exchange.waited == 1.0
    assert world.upstreams.asked == ["a", "b", "b"]


async def test_targets_that_rest_do_not_count_as_room():
    gpt = slots(1)
    world = World(make_chain(make_target("gpt", accounts=(gpt,)), "claude"),
                  {"gpt": answers(delay=2.0)}, principal=Principal("k", wait=5.0))  # fmt: skip
    world.health.standings["claude"] = Standing(open_until=2000.0)
    first, second = world.begin(), world.begin()
    await turns()
    assert world.queue.waiting == 1
    assert (await second.end()).error is None
    await first.end()


async def test_without_wait_a_request_for_full_targets_is_refused_at_once():
    gpt = slots(1)
    world = World(make_chain(make_target("gpt", accounts=(gpt,))), {"gpt": answers(delay=2.0)})
    first = world.begin()
    await turns()
    refusal = (await world.begin().end()).refusal
    assert (refusal.status, refusal.code) == (429, "concurrency_exceeded")
    assert refusal.scope == "target"
    assert "gpt" in refusal.message
    await first.end()


async def test_nobody_waits_for_a_minute_that_is_the_callers_own_to_spread():
    principal = Principal("k", accounts=(RPM,), wait=100.0)
    world = World(make_chain("gpt"), principal=principal)
    for _ in range(3):
        assert (await world.ask()).error is None
    assert (await world.ask()).refusal.code == "rpm_exceeded"
    assert world.queue.waiting == 0


async def test_a_limit_that_is_met_in_line_ends_the_waiting():
    one = Account("key:k:rpm", "key", "k", "rpm", 2)
    principal = Principal("k", accounts=(one, SLOT), wait=20.0)
    world = World(make_chain("gpt"), {"gpt": answers(delay=1.0)}, principal=principal)
    going = [world.begin() for _ in range(3)]
    codes = [getattr((await one.end()).error, "code", "ok") for one in going]
    assert codes == ["ok", "ok", "rpm_exceeded"]


async def test_a_target_that_is_full_by_the_minute_is_waited_for_by_the_clock():
    rpm = Account("target:gpt:rpm", "target", "gpt", "rpm", 60, burst=1)
    world = World(make_chain(make_target("gpt", accounts=(rpm,))),
                  principal=Principal("k", wait=5.0))  # fmt: skip
    going = [world.begin() for _ in range(4)]
    told = [await one.end() for one in going]
    assert [one.error for one in told] == [None] * 4
    assert [round(one.exchange.waited) for one in told] == [0, 1, 2, 3]


async def test_who_waits_is_passed_by_nobody():
    chain = make_chain(make_target("gpt", accounts=(slots(1),)))
    world = World(chain, {"gpt": answers(delay=1.0)}, principal=Principal("k", wait=5.0))
    order = []
    going = [world.begin() for _ in range(3)]
    for one in going:
        one.task.add_done_callback(lambda _, name=one.id: order.append(name))
    await turns()
    world.clock.advance(1.0)  # the slot comes back; before anybody runs one more arrives
    late = world.begin()
    late.task.add_done_callback(lambda _: order.append("late"))
    for one in (*going, late):
        assert (await one.end()).error is None
    assert order == ["req1", "req2", "req3", "late"]


async def test_users_of_a_key_do_not_take_each_others_place_and_give_back_what_they_held():
    limits = SubLimits(per_user=(("rpm", 2, None), ("tpm", 500, None), ("concurrency", 1, None)))
    world = World(
        make_chain("gpt"), {"gpt": answers(delay=1.0)}, principal=Principal("k", sub_limits=limits)
    )
    alice = world.begin(hints=Hints(user="alice"), max_output=100)
    await turns()
    again = await world.begin(hints=Hints(user="alice"), max_output=100).end()
    assert (again.refusal.code, again.refusal.scope) == ("concurrency_exceeded", "user")
    bob = world.begin(hints=Hints(user="bob"), max_output=100)
    for going in (alice, bob):
        assert (await going.end()).error is None
    held = alice.world.ended(alice.id).facts.accounts
    rpm, tpm, slot = world.limiter.headroom(held)
    assert (rpm.remaining, slot.remaining) == (1, 1)
    assert tpm.remaining == 500 - TOLD.total, "the truth, not the bound"
    answer = (await world.ask(hints=Hints(user="alice"), max_output=100)).reply
    assert answer.headers["x-ratelimit-scope"] == "user"
    assert answer.headers["x-ratelimit-limit-requests"] == "2"


async def test_accounts_of_users_who_went_away_are_forgotten():
    limits = SubLimits(per_user=(("rpm", 2, None),), per_session=(("concurrency", 1, None),))
    principal = Principal("k", accounts=(Account("key:k:tpm", "key", "k", "tpm", 10**9),),
                          sub_limits=limits)  # fmt: skip
    world = World(make_chain("gpt"), principal=principal)
    for n in range(400):
        await world.ask(hints=Hints(user=f"u{n}", session=f"s{n}"))
        world.clock.advance(1.0)
    assert len(world.limiter) < 2 * 2 * 125 + 10


class Refusing:
    """A limiter that first refuses these accounts, one a call."""

    def __init__(self, limiter, *accounts):
        self._limiter = limiter
        self._accounts = list(accounts)

    def __getattr__(self, name):
        return getattr(self._limiter, name)

    def try_reserve(self, id, demands, told):
        return None

    async def reserve(self, id, demands, told):
        if self._accounts:
            return Refusal(self._accounts.pop(0), 0.01)
        return await self._limiter.reserve(id, demands, told)


async def test_what_was_refused_before_the_wait_is_not_taken_for_held_after_it():
    place = Account("target:gpt:concurrency", "target", "gpt", "concurrency", 5)
    chain = make_chain(make_target("gpt", accounts=(place,)))
    principal = Principal("k", accounts=(SLOT,), wait=5.0)
    world = World(chain, {"gpt": answers(delay=1.0)}, principal=principal)
    world.admit = replace(world.admit, limiter=Refusing(world.limiter, SLOT, place))
    going = world.begin()
    for _ in range(5):
        await turns()
        world.clock.advance(0.02)
        world.queue.pump()
    await turns()
    assert world.upstreams.asked == ["gpt"]
    assert world.held([place]) == 1
    assert (await going.end()).error is None
