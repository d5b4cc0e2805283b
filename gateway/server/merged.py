"""Several workers' answers to one question of an operator, as one. Pure."""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

Answer = Mapping[str, Any]
Told = Sequence[tuple[int, Answer | None]]
"""What each worker answered, by its number, or None. The first is who asked, and did answer."""
Fold = Callable[[Told], Answer]

SILENT = "silent"
WORST = ("ready", "degraded", "starting", "draining")
BREAKERS = ("closed", "half-open", "open")
RESTS = ("probe_in_s", "throttled_s", "aside_s")


def status(told: Told) -> Answer:
    """Sums and the worst; under `workers` what each of them is at."""
    there = _there(told)
    own = there[0]
    degraded = dict.fromkeys(why for one in there for why in one.get("degraded", ()))
    degraded |= dict.fromkeys(f"worker {n} does not answer" for n in _silent(told))
    if len({one["config"] for one in there}) > 1:
        degraded["workers run different configurations"] = None
    words = [one["status"] for one in there] + (["degraded"] if degraded else [])
    return {
        **{name: value for name, value in own.items() if name != "pid"},
        "ready": all(one["ready"] for one in there),
        "status": max(words, key=WORST.index),
        **({"degraded": list(degraded)} if degraded else {}),
        "in_flight": sum(one["in_flight"] for one in there),
        "queue": sum(one["queue"] for one in there),
        "ledger_drift_nano_usd": max(one["ledger_drift_nano_usd"] for one in there),
        "workers": [_row(n, one) for n, one in sorted(told, key=_number)],
        **chains(told),
    }


def _row(number: int, told: Answer | None) -> dict[str, Any]:
    if told is None:
        return {"worker": number, "status": SILENT}
    shown = ("pid", "config", "status", "in_flight", "queue")
    return {"worker": number, **{name: told[name] for name in shown}}


def chains(told: Told) -> Answer:
    """Each target at its worst; `workers` says how many see it so, where not all do."""
    rows: dict[tuple[str, ...], list[Answer]] = {}
    there = _there(told)
    for one in there:
        for chain in one["chains"]:
            for target in chain["targets"]:
                rows.setdefault((chain["name"], target["target"], target["key"]), []).append(target)
    return {
        "chains": [
            {
                **chain,
                "targets": [
                    _worst(rows[chain["name"], target["target"], target["key"]])
                    for target in chain["targets"]
                ],
            }
            for chain in there[0]["chains"]
        ],
        **_untold(told),
    }


def _worst(targets: Sequence[Answer]) -> dict[str, Any]:
    """One target as several workers see it; the first of them is our own."""
    worst = max((one["breaker"] for one in targets), key=BREAKERS.index)
    told = {**targets[0], "breaker": worst}
    for name in RESTS:
        longest = max((one.get(name, 0) for one in targets), default=0)
        if longest:
            told[name] = longest
    if lacks := sorted({feature for one in targets for feature in one.get("lacks", ())}):
        told["lacks"] = lacks
    so = sum(one["breaker"] == worst for one in targets)
    if so < len(targets):
        told["workers"] = so
    return told


def limits(told: Told) -> Answer:
    """Each account, and each budget, where least is left of it."""
    rows: dict[str, dict[str, Any]] = {}
    for one in _there(told):
        for row in one["limits"]:
            least = rows.setdefault(row["account"], dict(row))
            least["used"] = max(least["used"], row["used"])
            least["remaining"] = min(least["remaining"], row["remaining"])
            least["reset_s"] = max(least["reset_s"], row["reset_s"])
    budgets: dict[str, dict[str, Any]] = {}
    for one in _there(told):
        for row in one["budgets"]:
            before = budgets.setdefault(row["account"], row)
            if _used(row) > _used(before):
                budgets[row["account"]] = row
    more = any(one["more"] for one in _there(told))
    whole = {"limits": list(rows.values()), "budgets": list(budgets.values()), "more": more}
    return {**whole, **_untold(told)}


def _used(budget: Mapping[str, Any]) -> Decimal:
    """Dollars; who could not read the ledger knows less than anybody."""
    return Decimal(-1 if budget["used_usd"] is None else budget["used_usd"])


def requests(most: int) -> Fold:
    """The last `most` of all, newest first."""

    def fold(told: Told) -> Answer:
        stories = [story for one in _there(told) for story in one["requests"]]
        stories.sort(key=lambda story: story["ts"], reverse=True)
        return {"requests": stories[:most], **_untold(told)}

    return fold


def reload(told: Told) -> Answer:
    """Ours, with the first problem any of us has."""
    own = _there(told)[0]
    workers = [
        {"worker": n, "problem": "it does not answer"}
        if one is None
        else {"worker": n, "config": one["config"], "problem": one["problem"]}
        for n, one in sorted(told, key=_number)
    ]
    problems = [own["problem"], *(f"worker {row['worker']}: {row['problem']}" for row in workers
                                  if row["problem"])]  # fmt: skip
    return {**own, "problem": next(filter(None, problems), ""), "workers": workers}


def breaker(told: Told) -> Answer:
    """Ours; who did not hear of it has it still as before."""
    return {**_there(told)[0], **_untold(told)}


def _number(one: tuple[int, Answer | None]) -> int:
    return one[0]


def _there(told: Told) -> list[Answer]:
    return [answer for _, answer in told if answer is not None]


def _silent(told: Told) -> list[int]:
    return sorted(number for number, answer in told if answer is None)


def _untold(told: Told) -> dict[str, Any]:
    """The workers whose answer is missing."""
    missing = _silent(told)
    return {SILENT: missing} if missing else {}
