"""How OpenAI is asked."""

from gateway.core.request import Request
from gateway.core.target import Secret, Target
from gateway.providers import openai


def test_the_key_goes_where_it_is_looked_for() -> None:
    target = Target("t", "t", "p", "openai", "up", "https://up/v1", secret=Secret("sk-1"))
    sent = openai.adapter(target).request(Request("chat", "m", {}), "req_1")
    assert sent.headers["authorization"] == "Bearer sk-1"
    assert "sk-1" not in sent.url
    assert b"sk-1" not in sent.body
