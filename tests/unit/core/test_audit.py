"""The chain of the audit log: whoever touches a line is found out, and which line it was."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.audit import (
    GENESIS,
    LONGEST,
    Act,
    AuditLine,
    Seal,
    Seals,
    faults,
    line_after,
    trim_of,
)

START = Seal(0, GENESIS)


def chain(*acts: Act) -> list[AuditLine]:
    lines: list[AuditLine] = []
    head = START
    for at, act in enumerate(acts):
        lines.append(line_after(head, at, act, "c0ffee"))
        head = end(lines)
    return lines


def end(lines: list[AuditLine]) -> Seal:
    return Seal(lines[-1].seq, lines[-1].hash)


def found(lines: list[AuditLine], anchor: Seal = START, head: Seal | None = None) -> list[str]:
    return list(faults(lines, Seals(anchor, head or end(lines))))


SIX = chain(*(Act("operator", "reload", f"config {n}") for n in range(6)))


def test_a_chain_that_nobody_touched_holds():
    assert found(SIX) == []
    assert list(faults([], Seals(START, START))) == []


@given(st.integers(0, 5), st.sampled_from(["at", "who", "verb", "object", "result", "config"]))
def test_a_changed_line_is_named(index, field):
    lines = list(SIX)
    other = 99 if field == "at" else "other"
    lines[index] = lines[index]._replace(**{field: other})
    assert found(lines, head=end(SIX)) == [f"line {index + 1} was changed"]


@given(st.integers(0, 4))
def test_a_line_that_was_changed_with_its_hash_is_named_by_the_next(index):
    lines = list(SIX)
    before = end(lines[:index]) if index else START
    lines[index] = line_after(before, 0, Act("operator", "reload", "another"), "c0ffee")
    told = f"line {index + 1} is not the one that line {index + 2} was written after"
    assert found(lines, head=end(SIX)) == [told]


@given(st.integers(0, 5), st.integers(1, 6))
def test_missing_lines_are_named(first, many):
    lines = SIX[:first] + SIX[first + many :]
    last = min(6, first + many)
    told = (
        f"lines {first + 1} to {last} are missing"
        if last > first + 1
        else (f"line {last} is missing")
    )
    assert found(lines, head=end(SIX)) == [told]


def test_a_last_line_that_was_replaced_does_not_fit_the_seal():
    lines = [*SIX[:5], line_after(end(SIX[:5]), 0, Act("eve", "reload"), "c0ffee")]
    assert found(lines, head=end(SIX)) == ["line 6 is not the last that was sealed (6)"]


def test_lines_that_left_for_their_age_are_sealed_in_the_chain():
    lines = chain(*(Act("a", "drain") for _ in range(4)), trim_of(1, Seal(2, SIX[1].hash)))
    lines = chain(*(Act("a", "drain") for _ in range(4)))
    trim = line_after(end(lines), 9, trim_of(1, end(lines[:2])), "c0ffee")
    left = [*lines[2:], trim]
    assert found(left, anchor=end(lines[:2])) == []
    assert "removed for their age" in found(left[1:], anchor=end(lines[:3]))[0]
    assert "line 1 to 2" not in "".join(found(left, anchor=START))
    assert found(left, anchor=START)[0] == "lines 1 to 2 are missing"


def test_what_is_kept_is_short_and_obeyed_by_no_terminal():
    line = line_after(START, 0, Act("w", "login", "a\x1b[31m\n" + "x" * 999, "r" * 999), "c")
    assert line.object.startswith("a?[31m?x")
    assert len(line.object) == len(line.result) == LONGEST
