"""What an operator hears of several workers: sums, the worst, and who said nothing."""

from typing import Any

from gateway.server import merged

CONFIG = "0123456789ab"


def target(**more: Any) -> dict[str, Any]:
    return {"target": "gpt", "key": "main", "provider": "openai", "model": "gpt-5",
            "breaker": "closed", **more}  # fmt: skip


def status(pid: int, **more: Any) -> dict[str, Any]:
    told = {"version": "1", "pid": pid, "config": CONFIG, "ready": True, "status": "ready",
            "in_flight": 2, "queue": 1, "keyless": False, "ledger_drift_nano_usd": 0}  # fmt: skip
    return {**told, "chains": [{"name": "smart", "also": [], "targets": [target()]}], **more}


def test_a_fleet_of_one_mind_is_told_as_one() -> None:
    told = merged.status([(2, status(22)), (1, status(11)), (3, status(33))])
    assert (told["in_flight"], told["queue"], told["status"], told["ready"]) == (
        6,
        3,
        "ready",
        True,
    )
    assert [row["pid"] for row in told["workers"]] == [11, 22, 33]
    assert told["chains"] == status(0)["chains"]
    assert not {"pid", "silent", "degraded"} & set(told)


def test_whoever_says_nothing_or_runs_another_file_is_named() -> None:
    told = merged.status([(1, status(11)), (2, status(22, config="fedcba987654")), (3, None)])
    assert told["status"] == "degraded"
    assert told["degraded"] == [
        "worker 3 does not answer",
        "workers run different configurations",
    ]
    assert told["workers"][2] == {"worker": 3, "status": "silent"}
    assert told["workers"][1]["config"] == "fedcba987654"
    assert told["silent"] == [3]


def test_one_worker_that_is_not_ready_shows() -> None:
    starting = status(22, ready=False, status="starting")
    told = merged.status([(1, status(11, status="degraded", degraded=["x"])), (2, starting)])
    assert (told["ready"], told["status"], told["degraded"]) == (False, "starting", ["x"])


def test_a_target_is_shown_at_its_worst_and_how_many_see_it_so() -> None:
    def chains(*targets: dict[str, Any]) -> dict[str, Any]:
        return {"chains": [{"name": "smart", "also": [], "targets": list(targets)}]}

    told = merged.chains(
        [
            (1, chains(target(lacks=["tools"]))),
            (2, chains(target(breaker="open", probe_in_s=3.0, throttled_s=1.0))),
            (3, chains(target(breaker="half-open", throttled_s=2.0, lacks=["vision"]))),
            (4, {"chains": []}),
        ]
    )
    (chain,) = told["chains"]
    worst = {"breaker": "open", "probe_in_s": 3.0, "throttled_s": 2.0, "workers": 1}
    assert chain["targets"] == [target(**worst, lacks=["tools", "vision"])]


def test_of_a_limit_and_a_budget_the_least_is_told() -> None:
    def limits(remaining: int, reset: float, used_usd: str | None) -> dict[str, Any]:
        row = {"account": "a", "limit": 10, "used": 10 - remaining, "remaining": remaining}
        budget = {"account": "b", "used_usd": used_usd}
        return {"limits": [{**row, "reset_s": reset}], "budgets": [budget], "more": False}

    there = [(1, limits(9, 1.0, None)), (2, limits(4, 3.0, "10.5")), (4, limits(5, 2.0, "9"))]
    told = merged.limits([*there, (3, None)])
    assert told == {**limits(4, 3.0, "10.5"), "silent": [3]}


def test_the_last_requests_are_the_last_of_all() -> None:
    def stories(*moments: float) -> dict[str, Any]:
        return {"requests": [{"ts": ts} for ts in moments]}

    told = merged.requests(3)([(1, stories(5.0, 2.0)), (2, stories(4.0, 3.0, 1.0))])
    assert told == stories(5.0, 4.0, 3.0)


def test_a_reload_is_told_with_the_first_problem_of_anybody() -> None:
    own = {"config": CONFIG, "problem": "", "note": ""}
    told = merged.reload([(2, own), (1, {**own, "problem": "line 3"}), (3, None)])
    assert told["problem"] == "worker 1: line 3"
    assert [row["problem"] for row in told["workers"]] == ["line 3", "", "it does not answer"]
    assert merged.reload([(2, {**own, "problem": "line 4"}), (1, own)])["problem"] == "line 4"


def test_who_did_not_hear_of_a_held_breaker_is_named() -> None:
    own = {"targets": [target(held="open")]}
    assert merged.breaker([(1, own), (2, own)]) == own
    assert merged.breaker([(1, own), (2, None)]) == {**own, "silent": [2]}
