"""One at a time, and no dead process in the way."""

from pathlib import Path

from gateway.state.embedded.lease import Lease


def test_the_first_has_it_until_it_ends(tmp_path: Path) -> None:
    first, second = (Lease(tmp_path / "cleaner.lock") for _ in range(2))
    assert first.taken()
    assert not second.taken()
    assert first.taken()
    first.close()
    assert second.taken()
    assert not first.taken()
