"""Which targets, in which order, with how much time; which not, and why.

`plan` is a pure function of what is known: no clock, no I/O, every draw a hash of the request's
id, so a plan can be made again and explained. Source: gateway.md, 3.1 and 3.2.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from gateway.core.budget import Purse
from gateway.core.plan import WELL, Facts, Plan, Skip, Standing, State, Try
from gateway.core.request import Request
from gateway.core.target import Cause, Chain, Leaf, Step, Target, Timeouts
from gateway.core.usage import UNKNOWN, Cost, Usage, in_force
from gateway.pipeline.balance import hash01, ranked
from gateway.pipeline.budgets import most_cost
from gateway.wire import json

MIN_ATTEMPT = 0.25  # seconds: no attempt starts with less
NEED_SHARE = 0.25  # of a later target's clock is kept back for it
DEFAULT_OUTPUT = 4096  # tokens, where neither caller, tier nor target bounds the output
ESTIMATE_SLACK = 0.6  # an estimated prompt may in truth be this much shorter
OUTPUT_MEMBERS = ("max_tokens", "max_completion_tokens")
QUICK_EFFORTS = frozenset({b'"none"', b'"minimal"', b'"low"'})


class Spent(json.Struct, frozen=True):
    """What a request has used up already.

    Args:
        tried: target ids that are not asked again in this plan.
        larger_than: after context_length: only a context above it, or an unknown one.
        calls: upstream calls made.
        chain: where `on` sent the request; None: its own chain.
    """

    tried: frozenset[str] = frozenset()
    larger_than: int | None = None
    calls: int = 0
    chain: Chain | None = None


NOTHING_SPENT = Spent()


def plan(facts: Facts, state: State, spent: Spent = NOTHING_SPENT) -> Plan:
    """The targets that may be asked now, in order, and those that may not.

    Args:
        facts: what the request is and may.
        state: breakers, throttles, headroom and the time.
        spent: what is used up, for the second and later tries.
    """
    chain = spent.chain or facts.chain
    usable: list[Try] = []
    skipped: list[Skip] = []
    for leaf, target in ordered(chain, facts.id):
        if target.id in spent.tried:
            continue
        judged = _judge(facts, state, spent, leaf, target)
        if isinstance(judged, Try) and not usable:
            judged = _full(state, target) or judged
        if isinstance(judged, Skip):
            skipped.append(judged)
        else:
            usable.append(judged)
    if not usable:
        usable = _least_too_small(facts, state, spent, skipped)
    if not facts.hints.fallback:
        usable = usable[:1] if spent.calls == 0 else []
    left = facts.deadline.at - state.now
    calls = facts.chain.retry.attempts - spent.calls
    return Plan(chain, _timed(usable, left, calls), tuple(skipped))


def ordered(chain: Chain, draw: str) -> Iterable[tuple[Leaf, Target]]:
    """Each (step, target) in the order of this request, each target once."""
    return _drawn(chain.steps, draw) if chain.fixed is None else chain.fixed


def _drawn(steps: Sequence[Step], draw: str) -> Iterator[tuple[Leaf, Target]]:
    seen: set[str] = set()
    for leaf in _leaves(steps, draw):
        for target in ranked(draw, [(t.weight, t.id, t) for t in leaf.targets]):
            if target.id not in seen:
                seen.add(target.id)
                yield leaf, target


def _leaves(steps: Sequence[Step], draw: str) -> Iterator[Leaf]:
    for step in steps:
        if isinstance(step, Leaf):
            yield step
        else:
            members = [(weight, _name(inner), inner) for weight, inner in step.members]
            for inner in ranked(draw, members):
                yield from _leaves(inner, draw)


def _name(steps: Sequence[Step]) -> str:
    """What a member of a group is drawn by: the names of its targets."""
    return "+".join(
        step.name if isinstance(step, Leaf) else "|".join(_name(inner) for _, inner in step.members)
        for step in steps
    )


def output_bound(request: Request, default: int | None, target: Target) -> int:
    """Upper bound of output tokens over all choices: the caller's, the tier's, the target's."""
    if request.kind == "embeddings":
        return 0
    stated = request.max_output or default or target.max_output or DEFAULT_OUTPUT
    if not target.params.cap and target.max_output is None:
        return stated * request.n
    caps = [cap for name in OUTPUT_MEMBERS
            if (cap := target.params.cap.get(name)) is not None]  # fmt: skip
    if target.max_output is not None:
        caps.append(target.max_output)
    return int(min([stated, *caps])) * request.n


def _judge(
    facts: Facts, state: State, spent: Spent, leaf: Leaf, target: Target, trust: float = 1.0
) -> Try | Skip:
    """`trust` is how much of the prompt's estimate is believed when it is held to a window."""
    standing = state.standings.get(target.id, WELL)
    skip = (
        _excluded(facts, target)
        or _unable(facts, target, standing)
        or _too_long(facts, spent, target, trust)
    )
    if skip is not None:
        return skip
    timeouts = _timeouts(facts, leaf.timeouts, target)
    if standing.half_open:  # a probe gets half the time: it shall not make its caller wait
        timeouts = replace(timeouts, first_token=timeouts.first_token / 2)
    request = facts.request
    prompt, price = request.prompt, in_force(target.prices, state.epoch)
    output = output_bound(request, facts.principal.default_max_tokens, target)
    candidate = Try(
        target,
        timeouts,
        timeouts.first_token if request.stream else timeouts.answer,
        prompt,
        output,
        price,
        standing.half_open,
        UNKNOWN if price is None else price.cost(Usage(prompt, output)),
    )
    if facts.purse is not None:
        hold = most_cost(facts, target, price, output, candidate.bound)
        candidate = json.changed(candidate, hold=hold)
    dear = _too_dear(facts, candidate)
    if standing is WELL:
        return dear or candidate
    return dear or _resting(facts, state, target, standing) or candidate


def _excluded(facts: Facts, target: Target) -> Skip | None:
    if target.name in facts.hints.skip:
        return Skip(target, Cause.EXCLUDED, detail="by the header x-gateway-skip")
    return None


def _unable(facts: Facts, target: Target, standing: Standing) -> Skip | None:
    needs = facts.request.needs
    if needs and target.can is not None and (missing := needs - target.can):
        return Skip(target, Cause.UNABLE, detail="lacks " + ", ".join(sorted(missing)))
    if standing.lacks and (missing := standing.lacks & (needs | facts.request.members.keys())):
        return Skip(target, Cause.UNABLE, detail="refused " + ", ".join(sorted(missing)))
    return None


def _too_long(facts: Facts, spent: Spent, target: Target, trust: float) -> Skip | None:
    if target.context is None:
        return None
    if spent.larger_than is not None and target.context <= spent.larger_than:
        return Skip(target, Cause.CONTEXT_LENGTH, detail=f"{target.context:,} tokens")
    wanted = facts.request.prompt + (facts.request.max_output or 0)
    if wanted * trust > target.context:
        detail = f"about {wanted:,} of {target.context:,} tokens"
        return Skip(target, Cause.CONTEXT_LENGTH, detail=detail)
    return None


def _too_dear(facts: Facts, candidate: Try) -> Skip | None:
    target = candidate.target
    if candidate.price is None:
        if target.allow_unpriced:
            return _beyond(facts.purse, candidate) if facts.purse is not None else None
        return Skip(target, Cause.TOO_DEAR, detail="it has no price")
    if facts.purse is not None and (skip := _beyond(facts.purse, candidate)) is not None:
        return skip
    if facts.chain.max_cost is None and facts.hints.max_cost is None:
        return None
    limits = [m for m in (facts.chain.max_cost, facts.hints.max_cost) if m is not None]
    if limits and candidate.bound.nano_usd > min(limits):
        return Skip(target, Cause.TOO_DEAR, detail=f"up to ${candidate.bound.dollars()}")
    return None


def _beyond(purse: Purse, candidate: Try) -> Skip | None:
    """What no budget of this caller can hold, however much is left."""
    target, hold = candidate.target, candidate.hold
    if purse.hard and (not hold.known or (candidate.output and not _bounded(target))):
        said = "its cost has no bound, which a hard budget needs"
        return Skip(target, Cause.TOO_DEAR, detail=said)
    if purse.most is not None and hold.nano_usd > purse.most:
        said = f"up to ${hold.dollars()}, the budget per request is ${Cost(purse.most).dollars()}"
        return Skip(target, Cause.TOO_DEAR, detail=said)
    return None


def _bounded(target: Target) -> bool:
    """Whether one of the members that bound an answer may be sent."""
    return not target.params.drop.issuperset(OUTPUT_MEMBERS)


def _resting(facts: Facts, state: State, target: Target, standing: Standing) -> Skip | None:
    now = state.now
    for until, cause, detail in (
        (standing.aside_until, Cause.KEY_ASIDE, ""),
        (standing.open_until, Cause.BREAKER_OPEN, ""),
        (now + MIN_ATTEMPT if standing.probing else 0.0, Cause.BREAKER_OPEN, "being probed"),
        (_ramp_until(facts, now, target, standing), Cause.BREAKER_OPEN, "being taken back"),
        (standing.throttled_until, Cause.THROTTLED, ""),
    ):
        if until > now:
            return Skip(target, cause, until, detail)
    return None


def _full(state: State, target: Target) -> Skip | None:
    wait = state.waits.get(target.id, 0.0)
    return Skip(target, Cause.NO_HEADROOM, state.now + wait) if wait > 0 else None


def _ramp_until(facts: Facts, now: float, target: Target, standing: Standing) -> float:
    """A target that has just recovered gets a part of its traffic; the others look again soon."""
    taken = standing.share >= 1 or hash01(facts.id, target.id + "\0ramp") < standing.share
    return 0.0 if taken else now + 1.0


def _timeouts(facts: Facts, timeouts: Timeouts, target: Target) -> Timeouts:
    """The chain's clocks with the slack of silent reasoning and the caller's own header."""
    first_token, answer = timeouts.first_token, timeouts.answer
    slack = target.can is not None and "reasoning" in target.can and not _quick(facts, target)
    if slack:
        first_token *= timeouts.reasoning_slack
        answer *= timeouts.reasoning_slack
    elif facts.hints.first_token is None:
        return timeouts
    if facts.hints.first_token is not None:
        first_token = min(first_token, facts.hints.first_token)
    return replace(timeouts, first_token=first_token, answer=answer)


def _quick(facts: Facts, target: Target) -> bool:
    """Whether the effort that this target will be asked for needs no long silence."""
    name, params = "reasoning_effort", target.params
    if name in params.drop:
        return False
    efforts = (params.set.get(name), facts.request.members.get(name), params.default.get(name))
    effort = next((said for said in efforts if said is not None), None)
    return effort is not None and bytes(effort) in QUICK_EFFORTS


def _least_too_small(facts: Facts, state: State, spent: Spent, skipped: list[Skip]) -> list[Try]:
    """Where every window looks too small by our estimate alone, the largest is asked all the same.

    An estimate may be wrong by 1 / ESTIMATE_SLACK; a refusal without a call must not be.
    """
    small = [skip for skip in skipped if skip.cause is Cause.CONTEXT_LENGTH]
    if spent.larger_than is not None or not small or len(small) != len(skipped):
        return []
    largest = max(small, key=lambda skip: skip.target.context or 0)
    chain = spent.chain or facts.chain
    leaf = next(one for one, target in ordered(chain, facts.id) if target is largest.target)
    judged = _judge(facts, state, spent, leaf, largest.target, ESTIMATE_SLACK)
    if isinstance(judged, Skip):
        return []
    skipped.remove(largest)
    return [judged]


def _timed(usable: Sequence[Try], left: float, calls: int) -> tuple[Try, ...]:
    """Give each try its time, with a reserve for those after it that `calls` still allow.

    Where too little is left for itself, the reserves are given back from the last one on.
    """
    if left < MIN_ATTEMPT:
        return ()
    tries = usable[: max(0, calls)]
    timed: list[Try] = []
    for index, candidate in enumerate(tries):
        least = min(candidate.seconds, _need(candidate) / 2)
        seconds = min(candidate.seconds, left)
        reserve = 0.0
        for later in tries[index + 1 :]:
            reserve += _need(later)
            if left - reserve < least:
                break
            seconds = min(candidate.seconds, left - reserve)
        timed.append(
            candidate if seconds == candidate.seconds else json.changed(candidate, seconds=seconds)
        )
    return tuple(timed)


def _need(candidate: Try) -> float:
    """Seconds in which it should answer, as far as its clock tells."""
    return max(MIN_ATTEMPT, NEED_SHARE * candidate.seconds)


def shortcut(facts: Facts, state: State, reserve: float) -> Plan | None:
    """The plan of a calm chain, told by its first target alone; None: make the whole one.

    Most requests meet a chain in the order of the file, with every target well and nothing asked
    that the first cannot do. Then the first try is what `plan` says it is (a test holds them
    together), and the others are judged at their turn anyway.

    `reserve` is what would be kept back for all the others at most, in seconds. Whether the first
    has room is not looked into: to reserve tells, and where there is none the whole plan is made.
    """
    chain = facts.chain
    if chain.fixed is None or not facts.hints.plain:
        return None
    leaf, target = chain.fixed[0]
    judged = _judge(facts, state, NOTHING_SPENT, leaf, target)
    if isinstance(judged, Skip) or facts.deadline.at - state.now - reserve < judged.seconds:
        return None
    return Plan(chain, (judged,), whole=False) if chain.retry.attempts > 0 else None


def most_reserved(chain: Chain) -> float:
    """Seconds that a plan may keep back for the targets after the first, at most."""
    clocks = [
        max(leaf.timeouts.first_token, leaf.timeouts.answer) * leaf.timeouts.reasoning_slack
        for leaf, _ in (chain.fixed or ())[1:]
    ]
    return sum(max(MIN_ATTEMPT, NEED_SHARE * clock) for clock in clocks)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a planner reads the state: three looks, none of which waits.

    `wait` gives seconds until the target's accounts have room for this request.
    """

    monotonic: Callable[[], float]
    now: Callable[[], float]
    standing: Callable[[str], Standing]
    wait: Callable[[Facts, Target], float]


@dataclass(frozen=True, slots=True)
class Planner:
    """`plan` with the state of this instant."""

    sources: Sources
    reserves: dict[str, float] = field(default_factory=dict)  # by chain name, as far as asked

    def first(self, facts: Facts) -> Plan:
        """The plan a request begins with: the whole one only if the first target may not do."""
        sources, chain = self.sources, facts.chain
        if chain.fixed is not None and sources.standing(chain.fixed[0][1].id) is WELL:
            reserve = self.reserves.get(chain.name)
            if reserve is None:
                reserve = self.reserves[chain.name] = most_reserved(chain)
            state = State(sources.monotonic(), sources.now())
            if (calm := shortcut(facts, state, reserve)) is not None:
                return calm
        return self(facts)

    def __call__(
        self, facts: Facts, spent: Spent = NOTHING_SPENT, forgive: str | None = None
    ) -> Plan:
        """The plan now; `forgive` names a target id whose breaker is overlooked."""
        sources = self.sources
        standings: dict[str, Standing] = {}
        chain = spent.chain or facts.chain
        for target in chain.targets:
            standing = sources.standing(target.id)
            if standing is not WELL and target.id != forgive:
                standings[target.id] = standing
        waits = _Looked(facts, chain, sources.wait)
        state = State(sources.monotonic(), sources.now(), standings, waits)
        return plan(facts, state, spent)


class _Looked:
    """`Waits` that are looked up when they are asked for: most plans need one."""

    __slots__ = ("_chain", "_facts", "_wait")

    def __init__(self, facts: Facts, chain: Chain, wait: Callable[[Facts, Target], float]) -> None:
        self._facts = facts
        self._chain = chain
        self._wait = wait

    def get(self, key: str, default: float, /) -> float:
        for target in self._chain.targets:
            if target.id == key:
                return self._wait(self._facts, target) if target.accounts else default
        return default
