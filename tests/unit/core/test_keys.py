"""Caller keys: made, shaped, digested."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.keys import LENGTH, make_key, read_key


def test_a_key_that_was_made_is_read_back() -> None:
    made = make_key()
    token = made.secret.reveal()
    assert len(token) == LENGTH
    assert token.startswith(f"gk_{made.id}_")
    assert read_key(token) == (made_credential := read_key(token))
    assert made_credential.id == made.id
    assert made_credential.digest == made.digest == hashlib.sha256(token.encode()).digest()


def test_a_secret_does_not_print() -> None:
    made = make_key()
    assert made.secret.reveal() not in f"{made} {made.secret} {made!r}"


def test_a_mistyped_key_is_nobodys() -> None:
    token = make_key().secret.reveal()
    for place in range(3, len(token)):
        wrong = "A" if token[place] != "A" else "B"
        assert read_key(token[:place] + wrong + token[place + 1 :]).id is None


def test_a_rotated_key_keeps_its_public_part() -> None:
    first = make_key()
    second = make_key(first.id)
    assert second.id == first.id
    assert second.digest != first.digest


@given(st.text())
def test_any_text_is_a_credential_of_its_own_digest(token: str) -> None:
    assert read_key(token).id is None
    assert len(read_key(token).digest) == 32
