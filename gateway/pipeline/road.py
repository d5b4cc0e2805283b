"""The story: one request travels key -> limits -> chain -> attempt -> stream -> cost."""

from dataclasses import dataclass, field
from typing import Protocol

from gateway.clock import Clock
from gateway.core.attempt import Exchange
from gateway.core.plan import Facts
from gateway.core.ports import Call, Facade, Reply
from gateway.core.principal import Principal
from gateway.core.request import Request
from gateway.core.snapshot import Snapshot
from gateway.errors import GatewayError
from gateway.pipeline.admit import Admit
from gateway.pipeline.attempt import Attempts
from gateway.pipeline.budgets import Budgets
from gateway.pipeline.facts import gather
from gateway.pipeline.park import Park
from gateway.pipeline.plan import Planner
from gateway.pipeline.recall import Recall
from gateway.pipeline.settle import INTERNAL, Settle
from gateway.pipeline.tell import answer_headers, early_headers, note, tell
from gateway.wire import json


class Entrance(Protocol):
    """The first step: who calls."""

    async def __call__(self, call: Call) -> Principal: ...


@dataclass(frozen=True, slots=True)
class Road:
    """One a public endpoint and configuration; the steps are shared.

    `park` None: what is refused stays so. `parked`: the id of the one request it is for, whose
    turn has come.
    """

    facade: Facade
    snapshot: Snapshot
    clock: Clock
    authenticate: Entrance
    plan: Planner
    recall: Recall
    admit: Admit
    attempt: Attempts
    settle: Settle
    budgets: Budgets = field(default_factory=Budgets)
    park: Park | None = None
    parked: str | None = None

    async def __call__(self, call: Call, reply: Reply) -> None:
        """Answer `call` on `reply`.

        Raises:
            GatewayError: with everything the caller is to be told; the edge spells it.
        """
        exchange = Exchange(call.id, call.api, call.started)
        if self.parked is not None:
            exchange.parked = self.parked
        try:
            principal = exchange.principal = await self.authenticate(call)
            request = self.facade.parse(await call.body())
            exchange.streaming = request.stream
            facts = exchange.facts = self._facts(call, principal, request)
            exchange.chain_name = facts.chain.name
            self.settle.under_way.began(exchange.chain_name)
            voice = self.facade.voice(request)
            if request.stream:
                keepalive = facts.chain.keepalive
                reply.expect(voice, keepalive, lambda: early_headers(exchange, self.snapshot))
            exchange.plan = self.plan.first(facts)
            if facts.hints.idempotency_key is None and facts.chain.cache is None:
                taken = self.admit.at_once(exchange)
                exchange.reservation = await self.admit(exchange) if taken is None else taken
                exchange.planned = self.clock.monotonic()
                answering = self.attempt(exchange)
            else:  # a stored or shared answer, or a call of its own
                answering = self.recall(exchange)
            async with answering as answer:
                exchange.status = 200
                await reply.start(answer_headers(exchange, self.snapshot, self.clock), voice)
                async for events in answer:
                    await reply.write(events)
                await reply.finish(note(exchange, self.clock) if request.stream else b"")
                exchange.finished = True
        except GatewayError as error:
            if self.park is not None and await self.park(error, exchange, reply):
                return
            raise tell(error, exchange, self.snapshot, self.clock) from None
        except ConnectionError:  # the caller left, like a cancellation
            raise
        except Exception:  # a mistake of ours
            exchange.status = INTERNAL
            raise
        finally:
            if not exchange.detached:
                self.settle(exchange)
                self.admit.over(exchange)

    def _facts(self, call: Call, principal: Principal, request: Request) -> Facts:
        facts = gather(call, principal, request, self.snapshot)
        if not principal.budgeted:
            return facts
        return json.changed(facts, purse=self.budgets.purse(facts, self.clock.now()))
