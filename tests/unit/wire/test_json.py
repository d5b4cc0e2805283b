"""What must be true of raw members, or the gateway lies (architecture.md 6)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import json


def test_of_a_duplicate_only_the_last_survives_escapes_resolved() -> None:
    members = json.split(rb'{"model":"cheap","mod\u0065l":"dear"}')
    assert json.join(members) == b'{"model":"dear"}'


def test_members_keep_their_bytes() -> None:
    body = b'{"a":{ "x" : 1e5, "y":"\\u00e9" },"b":[1, 2]}'
    assert json.join(json.split(body)) == body


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2)
            ),
        ),
        max_size=4,
    ),
    st.text(max_size=5),
)
def test_splicing_equals_updating(value: dict[str, object], name: str) -> None:
    members = json.split(json.dumps(value))
    members[name] = json.raw("new")
    assert json.loads(json.join(members)) == {**value, name: "new"}


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b'"x"', b"{", b"{}x", b'{"a":}', b'{"\xff":1}', b'{"a":"\xff"}',
     b'{"a":' * 5000 + b"1" + b"}" * 5000],
    ids=lambda body: repr(body)[:20],
)  # fmt: skip
def test_what_is_no_object_is_one_error(body: bytes) -> None:
    with pytest.raises(json.JSONError) as caught:
        json.split(body)
    assert "xff" not in str(caught.value)


def test_messages_never_quote_what_was_found() -> None:
    with pytest.raises(json.JSONError) as caught:
        json.decode(b'{"key":"sk-secret"}', dict[str, int])
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("body", [b"NaN", b"1e999", b"\xef\xbb\xbf{}", b'"\\ud800"', b"[" * 2000])
def test_whole_values_are_checked(body: bytes) -> None:
    with pytest.raises(json.JSONError):
        json.loads(body)


def test_raw_values_can_be_read_whole() -> None:
    assert json.loads(json.split(b'{"a":[1,2]}')["a"]) == [1, 2]
