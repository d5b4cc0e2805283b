"""How the simulator is asked."""

from gateway.core.request import Request
from gateway.core.target import Secret, Target
from gateway.providers import sim


def test_the_key_goes_where_it_is_looked_for() -> None:
    target = Target("t", "t", "p", "sim", "up", "https://up/v1", secret=Secret("sk-1"))
    sent = sim.adapter(target).request(Request("chat", "m", {}), "req_1")
    assert sent.headers["authorization"] == "Bearer sk-1"
    assert "sk-1" not in sent.url
    assert b"sk-1" not in sent.body
