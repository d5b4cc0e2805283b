"""Every status a gateway answers with becomes the exception it was raised as, over there."""

import pytest
from aioresponses import aioresponses

from gateway import errors
from gateway.client.http import GatewayClient, should_retry
from gateway.clock import SystemClock

URL = "http://gateway.test/v1"
KINDS = {
    400: errors.InvalidRequest,
    401: errors.Unauthenticated,
    403: errors.NotAllowed,
    404: errors.NotFound,
    413: errors.TooLarge,
    415: errors.UnsupportedEncoding,
    429: errors.RateLimited,
    502: errors.UpstreamFailed,
    503: errors.Overloaded,
    504: errors.UpstreamTimedOut,
}


@pytest.mark.parametrize(("status", "kind"), KINDS.items())
async def test_a_status_becomes_its_exception_and_nothing_is_tried_twice(status, kind):
    body = {"error": {"message": "why", "type": kind.type, "param": None, "code": "some_code"}}
    with aioresponses() as upstream:
        upstream.post(
            f"{URL}/chat/completions",
            status=status,
            payload=body,
            headers={"x-should-retry": "false", "x-request-id": "req_1"},
        )
        async with GatewayClient(URL, "key", SystemClock()) as client:
            with pytest.raises(kind) as caught:
                await client.chat({"model": "m", "messages": []})
        assert sum(len(calls) for calls in upstream.requests.values()) == 1
    assert caught.value.code == "some_code"
    assert caught.value.request_id == "req_1"
    assert not should_retry(caught.value)
