"""What was spent, by whom and on what."""

from pathlib import Path

import pytest

from gateway.core.reconcile import SORTS, Figures
from gateway.core.usage import Usage
from gateway.state.embedded.ledger import clean, recover
from gateway.state.embedded.reports import (
    DIMENSIONS,
    Row,
    as_date,
    begins,
    booked,
    first_line,
    spend,
    total,
)
from gateway.state.embedded.sqlite import connect
from gateway.state.journal import Journal
from tests.unit.state.make import line, opening

TODAY = 1_800_000_000 // 86_400
NOW = TODAY * 86_400.0 + 3_600


def write(folder: Path, *attempts: tuple[str, dict[str, object], dict[str, object]]) -> None:
    journal = Journal(folder, "w1")
    for id, opened, settled in attempts:
        journal.open(opening(id, **opened))
        journal.close(line(id, **{"at": NOW, **settled}))
    journal.drop()
    db = connect(folder)
    recover(db, folder)
    db.close()


def test_without_a_store_nothing_was_spent(tmp_path: Path) -> None:
    assert spend(tmp_path, ["key"], 0) == []
    assert total(tmp_path, 0) == Row((), 0, 0, 0, 0, 0, 0, 0, 0)


def test_groups_are_exact_and_dearest_first(tmp_path: Path) -> None:
    used = Usage(input=10, output=4, cached=3, reasoning=2)
    write(
        tmp_path,
        ("a.1", {"target": "gpt"}, {"nano_usd": 0, "usage": Usage(), "outcome": "overloaded"}),
        ("a.2", {"target": "claude"}, {"nano_usd": 10**12 + 1, "usage": used}),
        ("b.1", {"target": "gpt"}, {"nano_usd": 5, "usage": used}),
        ("c.1", {"target": "gpt", "team": None}, {"nano_usd": None, "usage": used}),
    )
    assert spend(tmp_path, ["target"], 0) == [
        Row(("claude",), 1, 1, 10, 4, 3, 2, 10**12 + 1, 0),
        Row(("gpt",), 3, 3, 20, 8, 6, 4, 5, 1),
    ]
    assert spend(tmp_path, ["team", "target"], 0) == [
        Row(("search", "claude"), 1, 1, 10, 4, 3, 2, 10**12 + 1, 0),
        Row(("search", "gpt"), 2, 2, 10, 4, 3, 2, 5, 0),
        Row(("", "gpt"), 1, 1, 10, 4, 3, 2, 0, 1),
    ]
    assert total(tmp_path, 0) == Row((), 3, 4, 30, 12, 9, 6, 10**12 + 6, 1)


def test_every_dimension_can_be_asked_for(tmp_path: Path) -> None:
    write(tmp_path, ("a.1", {}, {}))
    for word in DIMENSIONS:
        assert all(row.nano_usd == 325_000 for row in spend(tmp_path, [word], 0))
    (row,) = spend(tmp_path, ["day", "key"], 0)
    assert row.group == ("2027-01-15", "search-prod")
    with pytest.raises(ValueError, match="price is none of key"):
        spend(tmp_path, ["price"], 0)


def test_a_request_stands_in_the_group_of_each_of_its_tags(tmp_path: Path) -> None:
    write(tmp_path, ("a.1", {"tags": "app=web,job=x"}, {}), ("b.1", {"tags": "app=web"}, {}))
    write_more = spend(tmp_path, ["tag"], 0)
    assert [(row.group, row.requests) for row in write_more] == [(("app=web",), 2), (("job=x",), 1)]


def test_since_cuts_by_the_second(tmp_path: Path) -> None:
    write(tmp_path, ("a.1", {}, {"at": NOW - 100}), ("b.1", {}, {"at": NOW}))
    assert total(tmp_path, NOW - 50).attempts == 1
    assert total(tmp_path, NOW - 100).attempts == 2
    assert total(tmp_path, NOW + 1).attempts == 0


def old(folder: Path, *by: str) -> dict[tuple[str, ...], tuple[int, int]]:
    """Group -> attempts and nano-dollars."""
    return {row.group: (row.attempts, row.nano_usd) for row in spend(folder, by, 0)}


def test_days_whose_lines_are_gone_count_by_their_sums(tmp_path: Path) -> None:
    groups = (
        *((), ("key",), ("team",), ("user",), ("day",), ("user", "key"), ("day", "key", "user")),
        ("team", "day"),
    )
    at = {"nano_usd": 1}
    write(
        tmp_path,
        *((f"{age}.1", {}, at | {"at": NOW - age * 86_400}) for age in (0, 30, 31, 50)),
        ("a.1", {"user": None, "key_id": "other"}, at | {"at": NOW - 50 * 86_400}),
        ("b.1", {"user": "x/y", "team": None}, at | {"at": NOW - 50 * 86_400}),
    )
    before = {by: old(tmp_path, *by) for by in groups}
    assert before["user", "key"] == {
        ("u1", "search-prod"): (4, 4),
        ("", "other"): (1, 1),
        ("x/y", "search-prod"): (1, 1),
    }
    db = connect(tmp_path)
    assert clean(db, TODAY) == 4
    db.close()
    assert {by: old(tmp_path, *by) for by in groups} == before
    assert total(tmp_path, NOW - 31 * 86_400).attempts == 3
    assert spend(tmp_path, ["chain"], 0)[0].attempts == 2  # only lines know their chain


def test_it_is_told_where_lines_begin_if_more_was_spent_before(tmp_path: Path) -> None:
    assert begins(tmp_path, ["chain"], 0) is None
    write(tmp_path, *((f"{age}.1", {}, {"at": NOW - age * 86_400}) for age in (0, 50)))
    assert begins(tmp_path, ["chain"], 0) is None, "all lines are there"
    db = connect(tmp_path)
    clean(db, TODAY)
    db.close()
    first = as_date(TODAY - 30)
    assert begins(tmp_path, ["chain"], 0) == (first, False)
    assert begins(tmp_path, ["user", "key"], 0) == (first, True)
    assert begins(tmp_path, ["team", "key"], 0) == (first, False)
    assert begins(tmp_path, ["chain"], NOW - 30 * 86_400) is None
    assert first_line(tmp_path) == first


def test_lines_are_sorted_by_why_they_were_paid(tmp_path: Path) -> None:
    used = {"usage": Usage(input=1, output=1), "nano_usd": 1}
    lines = {
        "answers": ({}, {}),
        "failures": ({}, {"outcome": "server_error"}),
        "cancelled": ({}, {"outcome": "cancelled"}),
        "hedges": ({"kind": "hedge"}, {"outcome": "cancelled"}),
        "drills": ({"kind": "drill"}, {}),
        "estimates": ({"kind": "drill"}, {"flags": "estimated,partial", "outcome": "stalled"}),
    }
    write(tmp_path, *((f"{n}.1", o, used | s) for n, (o, s) in enumerate(lines.values())))
    today = as_date(TODAY)
    found = booked(tmp_path, today, today)
    assert {one.sort for one in found} == set(lines) == set(SORTS)
    assert {one.figures for one in found} == {Figures(1, 1, 1, 0, 1, 1, 0)}
    assert booked(tmp_path, as_date(TODAY - 9), as_date(TODAY - 1)) == []
