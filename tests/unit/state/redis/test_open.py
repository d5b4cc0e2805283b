"""Where a machine keeps what it knows of a Redis."""

from pathlib import Path

from gateway.core.target import Secret
from gateway.state.redis.open import copy_dir


def test_an_address_with_other_credentials_is_the_same_redis_and_another_is_not() -> None:
    folder = Path("state")
    one = copy_dir(folder, Secret("redis://h:6379"))
    assert one == copy_dir(folder, Secret("rediss://user:password@h/0"))
    assert one != copy_dir(folder, Secret("redis://h/1"))
    assert one != copy_dir(folder, Secret("redis://h:6380"))
    assert one.parent == folder
    assert "password" not in str(copy_dir(folder, Secret("redis://:password@h")))
