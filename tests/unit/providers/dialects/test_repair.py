"""Single repairs; the whole of them is told in test_stream.py and test_chat.py."""

from typing import Any

import pytest

from gateway.providers.dialects import repair


@pytest.mark.parametrize(
    "value",
    [None, 5, "x", [], {}, {"error": None}, {"error": ""}, {"error": {}}, {"choices": []},
     {"message": "x", "usage": {}}, {"x_groq": {"id": "a"}}, [{"choices": []}]],
    ids=repr,
)  # fmt: skip
def test_this_is_no_error(value: Any) -> None:
    assert repair.error_in(value) is None


@pytest.mark.parametrize(
    "value",
    [{"error": "x"}, {"error": {"code": 1}}, [{"error": "x"}], {"object": "error"},
     {"type": "error"}, {"detail": "x"}, {"message": "x"}, {"x_groq": {"error": "x"}},
     {"choices": [{"error": {"code": 1}}]}],
    ids=repr,
)  # fmt: skip
def test_this_is_an_error(value: Any) -> None:
    assert repair.error_in(value) is not None


def test_ids_are_made_of_chance() -> None:
    assert repair.made_id("call_").startswith("call_")
    assert repair.made_id("call_") != repair.made_id("call_")


@pytest.mark.parametrize(("told", "moment"), [(5, 5), (5.9, 5), (None, 0), (True, 0), ("5", 0)])
def test_moments_are_whole_seconds(told: Any, moment: int) -> None:
    assert repair.moment(told) == moment
