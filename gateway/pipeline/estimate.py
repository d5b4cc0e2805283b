"""Tokens before the call: what is held on the accounts until the truth is known."""

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Iterable

from gateway.core.attempt import Demand
from gateway.core.plan import Facts
from gateway.core.target import Account, Target
from gateway.pipeline.plan import output_bound

BYTES_A_TOKEN = 3.5
KEPT = 32  # recent outputs of a (key, target)
PAIRS = 4096  # (key, target) pairs remembered


def tokens_of(size: int) -> int:
    """An estimate of the tokens in `size` UTF-8 bytes of text."""
    return -int(-size // BYTES_A_TOKEN)


class _Recent:
    """Output tokens of the last answers, as they came and in order of size."""

    __slots__ = ("in_order", "latest")

    def __init__(self) -> None:
        self.latest: deque[int] = deque()
        self.in_order: list[int] = []


class Outputs:
    """The 90th percentile of recent output tokens of each (key, target): what a call will use.

    With it 91 % of a target's tpm is usable, with the stated bound 42 % (reliability.md, b.5).
    """

    def __init__(self) -> None:
        self._recent: OrderedDict[tuple[str, str], _Recent] = OrderedDict()

    def learn(self, key_id: str, target_id: str, tokens: int) -> None:
        """An answer finished with so many output tokens."""
        pair = (key_id, target_id)
        recent = self._recent.get(pair)
        if recent is None:
            recent = self._recent[pair] = _Recent()
            if len(self._recent) > PAIRS:
                self._recent.popitem(last=False)
        else:
            self._recent.move_to_end(pair)
        latest, in_order = recent.latest, recent.in_order
        if len(latest) == KEPT:
            del in_order[bisect_left(in_order, latest.popleft())]
        latest.append(tokens)
        insort(in_order, tokens)

    def expected(self, key_id: str, target_id: str, bound: int) -> int:
        """Output tokens to hold: the p90 where there is one, at most the bound."""
        recent = self._recent.get((key_id, target_id))
        if recent is None:
            return bound
        in_order = recent.in_order
        return min(bound, in_order[min(len(in_order) - 1, int(0.9 * len(in_order)))])


def caller_demands(facts: Facts, output: int) -> list[Demand]:
    """What the caller's own accounts must hold: prompt and the bound of the output."""
    held = facts.request.prompt + output
    return _of(facts.accounts, held)


def target_demands(facts: Facts, target: Target, outputs: Outputs) -> list[Demand]:
    """What a target's and its provider's accounts must hold for one attempt."""
    if not target.accounts:
        return []
    bound = output_bound(facts.request, facts.principal.default_max_tokens, target)
    held = facts.request.prompt + outputs.expected(facts.principal.key_id, target.id, bound)
    return _of(target.accounts, held)


def _of(accounts: Iterable[Account], tokens: int) -> list[Demand]:
    new = tuple.__new__  # NamedTuple's own costs a frame each
    return [new(Demand, (one, tokens if one.kind == "tpm" else 1)) for one in accounts]
