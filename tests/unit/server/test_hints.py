"""One pass over the headers of a request."""

import pytest

from gateway.core.keys import read_key
from gateway.core.request import NO_HINTS, Hints
from gateway.errors import InvalidRequest
from gateway.server.hints import duration, read_head


def hints(**headers):
    return read_head([(k.replace("_", "-").encode(), v) for k, v in headers.items()]).hints


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"30s", 30.0),
        (b"250ms", 0.25),
        (b"1m30s", 90.0),
        (b"1h", 3600.0),
        (b"24h", 86400.0),
        (b"1h2m3s4ms", 3723.004),
        (b"2m", 120.0),
        (b"", None),
        (b"0s", None),
        (b"30", None),
        (b"1.5s", None),
        (b"-1s", None),
        (b"25h", None),
        (b"s", None),
        (b"1s1m", None),
        (b" 1s", None),
        (b"1\xb2s", None),
        (b"9" * 400 + b"s", None),
    ],
)
def test_durations(value, seconds):
    assert duration(value) == seconds


@pytest.mark.parametrize(
    ("value", "nano"),
    [
        (b"0.05", 50_000_000),
        (b"1", 10**9),
        (b"0.000000001", 1),
        (b"12.5", 12_500_000_000),
        (b"0", 0),
    ],
)
def test_money_is_exact(value, nano):
    assert hints(x_gateway_max_cost_usd=value).max_cost == nano


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-gateway-max-cost-usd", b"1e3"),
        ("x-gateway-max-cost-usd", b"0.0000000001"),
        ("x-gateway-max-cost-usd", b".5"),
        ("x-gateway-max-cost-usd", b"-1"),
        ("x-gateway-priority", b"urgent"),
        ("x-gateway-session", b""),
        ("x-gateway-session", b"\xff"),
        ("x-gateway-user", b"u" * 257),
        ("x-gateway-user", b"a\tb"),
        ("x-gateway-tags", b"a"),
        ("x-gateway-tags", b"a=" + b"b" * 65),
        ("x-gateway-tags", b",".join([b"a=b"] * 9)),
        ("x-gateway-tags", b"a=b,,c=d"),
        ("x-gateway-skip", b""),
        ("x-gateway-skip", b"a b"),
        ("x-gateway-target", b"a b"),
        ("x-gateway-fallback", b"on"),
        ("x-gateway-trace", b"true"),
        ("x-gateway-deadline", b"soon"),
        ("x-gateway-first-token", b"5"),
    ],
)
def test_junk_is_refused_by_name(header, value):
    with pytest.raises(InvalidRequest) as caught:
        read_head([(header.encode(), value)])
    assert caught.value.param == header
    assert header in caught.value.message


@pytest.mark.parametrize("header", ["X-Gateway-Parking", "x-gateway-cached", "x-gateway-"])
def test_a_header_of_ours_that_nobody_reads_is_refused(header):
    with pytest.raises(InvalidRequest) as caught:
        read_head([(header.encode(), b"x")])
    assert caught.value.param == header.lower()


def test_a_wish_said_twice_is_refused():
    with pytest.raises(InvalidRequest, match="twice"):
        read_head([(b"x-gateway-trace", b"1"), (b"X-Gateway-Trace", b"1")])


def test_what_is_not_ours_is_let_be():
    assert hints(x_request_id=b"1", accept=b"\xff", user_agent=b"x") is NO_HINTS
    assert hints(traceparent=b"junk", x_stainless_retry_count=b"junk") is NO_HINTS
    assert hints(x_stainless_retry_count=b"0") is NO_HINTS
    assert hints(x_stainless_retry_count=b"2") == Hints(client_retry=True)


def test_the_key_is_taken_from_three_headers_and_only_its_digest_goes_on():
    expected = read_key("k" * 40)
    for header, value in (
        (b"Authorization", b"Bearer " + b"k" * 40),
        (b"X-Api-Key", b"k" * 40),
        (b"api-key", b"k" * 40),
    ):
        assert read_head([(header, value)]).credential == expected
    assert read_head([(b"authorization", b"Bearer ")]).credential is None
    assert read_head([]).credential is None


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer a"), (b"x-api-key", b"b")],
        [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer a")],
        [(b"authorization", b"Bearer \xc3\xa9")],
        [(b"x-api-key", b"a\x7fb")],
        [(b"api-key", b"a\tb")],
        [(b"api-key", b"k" * 9000)],
    ],
)
def test_ambiguous_or_odd_keys_are_refused_and_not_quoted(headers):
    with pytest.raises(InvalidRequest) as caught:
        read_head(headers)
    assert "k" * 100 not in caught.value.message


def test_a_header_seen_before_is_read_as_it_was_the_first_time():
    for number in range(3000):  # more than are kept
        key = f"key-{number % 1500}-of-32-characters-or-more"
        head = read_head([(b"authorization", b"bearer  " + key.encode())])
        assert head.credential == read_key(key)
    for _ in range(2):
        assert read_head([(b"x-api-key", b" ")]).credential is None
        with pytest.raises(InvalidRequest, match="Two API keys"):
            read_head([(b"x-api-key", b"a"), (b"api-key", b"b")])


def test_the_body_is_announced():
    head = read_head(
        [(b"Content-Length", b"12"), (b"Expect", b"100-Continue"), (b"Content-Encoding", b"GZIP")]
    )
    assert (head.length, head.expect, head.encoding) == (12, True, True)
    assert read_head([(b"content-encoding", b"Identity")]).encoding is False


def test_what_is_kept_is_asked_for_by_name():
    assert hints(idempotency_key=b"run-1:0:3 ~") == Hints(idempotency_key="run-1:0:3 ~")
    assert hints(x_gateway_detach=b"1").detach
    assert hints(x_gateway_cache=b"off").cache == "off"
    assert hints(x_gateway_cache=b"refresh").cache == "refresh"
    assert hints(x_gateway_cache=b"1m30s").cache == 90.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("idempotency_key", b""),
        ("idempotency_key", b"x" * 256),
        ("idempotency_key", "\u00e9".encode()),
        ("idempotency_key", b"a\x07"),
        ("x_gateway_detach", b"yes"),
        ("x_gateway_cache", b"on"),
        ("x_gateway_cache", b"0s"),
    ],
)
def test_what_is_kept_is_asked_for_properly_or_not_at_all(name, value):
    with pytest.raises(InvalidRequest) as caught:
        hints(**{name: value})
    assert caught.value.param == name.replace("_", "-")
