"""What a spreadsheet opens is read and not run."""

import pytest

from gateway.cli.exits import Stop
from gateway.cli.sheet import form, text


def test_only_what_callers_said_is_guarded() -> None:
    rows = [{"user": "=cmd()", "cost": "-1"}, {"user": 'a "b", c', "cost": "2"}]
    assert text(("user", "cost"), rows, ("user",)).splitlines() == [
        "user,cost",
        "'=cmd(),-1",
        '"a ""b"", c",2',
    ]


def test_one_form_at_a_time() -> None:
    with pytest.raises(Stop):
        form(as_csv=True, as_json=True)
