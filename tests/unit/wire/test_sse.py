"""The splitter of event streams: any cut, any line ending, never a long memory."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.sse import EventTooLong, Splitter


def split(data: bytes, *cuts: int, limit: int = 1024 * 1024) -> list[bytes]:
    splitter = Splitter(limit)
    found, at = [], 0
    for cut in (*sorted(cuts), len(data)):
        found += splitter.feed(data[at:cut])
        at = cut
    return found + splitter.close()


@pytest.mark.parametrize(
    ("stream", "payloads"),
    [
        (b"data: 1\n\ndata: 2\n\n", [b"1", b"2"]),
        (b"data:1\n\n", [b"1"]),
        (b"data:  1\n\n", [b" 1"]),
        (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [b"1", b"2"]),
        (b"data: 1\r\rdata: 2\r\r", [b"1", b"2"]),
        (b"data: 1\r\n\ndata: 2\n\r\n", [b"1", b"2"]),
        (b"\xef\xbb\xbfdata: 1\n\n", [b"1"]),
        (b"data: 1\ndata: 2\n\n", [b"1\n2"]),
        (b"data: {\ndata\ndata: }\n\n", [b"{\n\n}"]),
        (b": a comment\n\ndata: 1\n\n: another\n\n", [b"1"]),
        (b": a comment\ndata: 1\n\n", [b"1"]),
        (b"event: x\nid: 7\nretry: 5\ndata: 1\n\n", [b"1"]),
        (b"event: x\n\ndata: 1\n\n", [b"1"]),
        (b"\n\n\n\ndata: 1\n\n\n\n", [b"1"]),
        (b"data:\n\ndata: 1\n\n", [b"1"]),
        (b"database: 1\n\n", []),
        (b"data: 1", [b"1"]),
        (b"data: 1\n", [b"1"]),
        (b"data: 1\n\ndata: [DONE]", [b"1", b"[DONE]"]),
        (b"", []),
        ("data: é\n\n".encode(), ["é".encode()]),
    ],
)
def test_data_is_found_however_it_is_cut(stream: bytes, payloads: list[bytes]) -> None:
    assert split(stream) == payloads
    assert split(stream, *range(len(stream))) == payloads
    for at in range(len(stream)):
        assert split(stream, at) == payloads


LINES = st.sampled_from(
    [b"data: a", b"data:b", b"data", b": c", b"event: d", b"", b"", b"data: \xc3\xa9 {}", b"x"]
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@given(
    st.lists(st.tuples(LINES, ENDS), max_size=30),
    st.lists(st.integers(0, 300), max_size=12),
    st.booleans(),
)
def test_any_cut_gives_the_same(
    lines: list[tuple[bytes, bytes]], cuts: list[int], bom: bool
) -> None:
    stream = b"\xef\xbb\xbf" * bom + b"".join(line + end for line, end in lines)
    assert split(stream, *[cut for cut in cuts if cut < len(stream)]) == split(stream)


@pytest.mark.parametrize("width", [1000, 10_000, 100_000])
def test_a_long_event_is_refused_whether_it_ends_or_not(width: int) -> None:
    for stream in (b"data: " + b"x" * 50_000 + b"\n\n", b"data: " + b"x" * 50_000):
        with pytest.raises(EventTooLong):
            split(stream, *range(0, len(stream), width), limit=20_000)


def test_many_short_events_in_one_read_are_no_long_one() -> None:
    assert split(b"data: 1\n\n" * 5000, limit=100) == [b"1"] * 5000


def test_comments_may_go_on_for_ever() -> None:
    splitter = Splitter(1000)
    for _ in range(1000):
        assert splitter.feed(b": ping\n") == []
    assert splitter.feed(b"data: 1\n\n") == [b"1"]


def test_a_long_event_in_small_pieces_takes_linear_time() -> None:
    def seconds(pieces: int) -> float:
        splitter = Splitter(2**24)
        started = time.process_time()
        for _ in range(pieces):
            splitter.feed(b"x" * 16)
        return time.process_time() - started

    seconds(1000)
    assert seconds(40_000) < 40 * max(seconds(4000), 0.0005)
