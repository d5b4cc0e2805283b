"""Keys as records, there and back."""

from pathlib import Path

from gateway.state.embedded.key_copy import KeyCopy
from gateway.state.embedded.keys import KeyStore
from gateway.state.embedded.sqlite import Store
from gateway.wire import json
from tests.support.clock import ManualClock


async def test_a_copy_of_a_copy_is_the_same_keys(tmp_path: Path) -> None:
    here, there = Store(tmp_path / "a"), Store(tmp_path / "b")
    file = KeyStore(tmp_path / "a", ManualClock())
    file.create("job", tier="free", chains=["smart"], limits=[("rpm", 5, None)], expires=1e9)
    file.create("old")
    file.revoke("old")
    file.rotate("job")
    records = json.loads(json.dumps(await KeyCopy(here).read()))
    await KeyCopy(there).write({name: {**one, "future": 1} for name, one in records.items()})
    assert KeyStore(tmp_path / "b", ManualClock()).list() == file.list()
    assert await KeyCopy(there).read() == records
    await here.close()
    await there.close()
