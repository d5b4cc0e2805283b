"""Names of requests: new each time, in the order of time."""

from gateway.server.desk import DRAWN, Names


def test_no_name_comes_twice_however_many_are_made():
    names = Names()
    made = [names.make(1.0) for _ in range(DRAWN)]
    assert len(set(made)) == len(made)
    assert {len(name) for name in made} == {32}


def test_names_sort_by_time():
    names = Names()
    made = [names.make(second / 1000) for second in range(1_800_000_000_000, 1_800_000_000_300)]
    assert made == sorted(made)
