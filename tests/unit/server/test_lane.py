"""The fast lane takes what aiohttp's parser would read in the same way, and nothing else."""

import asyncio
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser
from aiohttp.http_writer import HttpVersion11
from hypothesis import given
from hypothesis import strategies as st

from gateway.server import lane
from gateway.server.hints import Head, read_head

KEY = b"a-foreign-key-of-32-characters-or-more"
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer %b\r\n"
    b'x-gateway-session: s1\r\nContent-Length: 7\r\n\r\n{"a":1}' % KEY
)  # fmt: skip


def told(head: Head) -> tuple[Any, ...]:
    return head.credential, head.hints, head.encoding, head.expect


def test_a_whole_request_is_cut_out_and_its_head_known_the_next_time() -> None:
    cut = lane.cut(REQUEST)
    assert cut is not None
    message, body = cut
    assert (message.method, message.path, body.read_nowait()) == (
        "POST", "/v1/chat/completions", b'{"a":1}',
    )  # fmt: skip
    assert message.head.hints.session == "s1"
    longer = REQUEST.replace(b"Length: 7", b"Length: 8").replace(b":1}", b":11}")
    again = lane.cut(longer)
    assert again is not None
    assert again[0] is message
    assert again[1].read_nowait() == b'{"a":11}'


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "REMEMBERED", 8)
    for number in range(100):
        assert lane.cut(REQUEST.replace(b"s1", b"s%d" % number))
        assert len(lane._known) <= max(8, 1)


ODD = [
    (b"POST ", b"GET "),
    (b"HTTP/1.1", b"HTTP/1.0"),
    (b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
    (b"Host: g", b"Host: g\r\nTransfer-Encoding: chunked"),
    (b"Host: g", b"Host: g\r\nExpect: 100-continue"),
    (b"Host: g", b"Host: g\r\nConnection: close"),
    (b"Host: g", b"Host: g\r\nUpgrade: h2c"),
    (b"Host: g", b"Host: g\r\nContent-Encoding: gzip"),
    (b"Host: g", b"Host: g\r\ncontent-length: 7"),
    (b"Host: g", b"Host: g\r\nhost: g"),
    (b"Host: g", b"Host: g\r\n folded"),
    (b"Host: g", b"Host : g"),
    (b"Host: g", b"Hast: g"),
    (b"Host: g", b"Host: g\0"),
    (b"Host: g", b"Host: g\r"),
    (b"Host: g", b"Host: " + b"g" * 9000),
    (b"Host: g", b"Host: g" + b"".join(b"\r\nx-%d: 1" % n for n in range(64))),
    (b"Length: 7", b"Length: 07x"),
    (b"Length: 7", b"Length: +7"),
    (b"Length: 7", b"Length: 6"),
    (b"Length: 7", b"Length: 8"),
    (b"x-gateway-session: s1", b"x-gateway-nobody: 1"),
    (b"x-gateway-session: s1", b"x-api-key: another-key-of-at-least-32-characters"),
]


@pytest.mark.parametrize(("usual", "odd"), ODD)
def test_what_is_odd_is_for_the_parser(usual: bytes, odd: bytes) -> None:
    request = REQUEST.replace(usual, odd, 1)
    assert request != REQUEST
    assert lane.cut(request) is None


NAMES = st.sampled_from(
    [b"Host", b"Via", b"Accept", b"User-Agent", b"x-gateway-tags", b"X-Api-Key", b"Authorization",
     b"TE", b"Content-Type", b"Cookie", b"content-length", b"Connection", b"x_y", b"bad name", b""]
)  # fmt: skip
VALUES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"a=b", b" 7 ", KEY, b"Bearer " + KEY, b"keep-alive", b"\xc3\xa9", b"", b"x\ty"]
    ),
)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=4)
PATHS = st.one_of(
    st.sampled_from([b"/v1/chat/completions", b"/v1/x?y=1#z", b"*", b"http://h/p", b"//a/b"]),
    st.binary(max_size=12).map(lambda tail: b"/" + tail),
)


@given(path=PATHS, headers=HEADERS, body=st.binary(max_size=9), skew=st.sampled_from([0, 0, 0, 1]))
async def test_what_it_takes_the_parser_reads_alike(
    path: bytes, headers: list[tuple[bytes, bytes]], body: bytes, skew: int
) -> None:
    lines = b"".join(b"%b: %b\r\n" % header for header in [(b"Host", b"g"), *headers])
    length = b"Content-Length: %d\r\n" % (len(body) + skew)
    data = b"POST %b HTTP/1.1\r\n%b%b\r\n%b" % (path, lines, length, body)
    cut = lane.cut(data)
    if cut is None:
        return
    loop = asyncio.get_running_loop()
    parser = HttpRequestParser(BaseProtocol(loop), loop, 2**16, auto_decompress=False)
    try:
        ((message, payload),), upgraded, tail = parser.feed_data(data)
    except HttpProcessingError as error:
        raise AssertionError(f"the parser refuses {data!r}") from error
    assert (message.method, message.path) == (cut[0].method, cut[0].path)
    assert message.version == HttpVersion11
    assert not message.should_close
    assert not upgraded
    assert not tail
    assert payload.is_eof()
    assert (await payload.read()) == cut[1].read_nowait() == body
    assert told(read_head(message.raw_headers)) == told(cut[0].head)
