"""The reader of event streams: any cut gives the same frames, and nothing is held without limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.client.stream import Frame, Frames, StreamBroken

STORY = (
    b'\xef\xbb\xbf: hello\r\n\r\ndata: {"a":1}\n\nevent: ping\ndata: x\rdata:y\r\r'
    b': gateway {"path":"alpha:ok"}\n\nid: 7\nretry: 3\n\ndata: [DONE]\n\n'
)
FRAMES = [
    Frame(comment="hello"),
    Frame(b'{"a":1}'),
    Frame(b"x\ny", "ping"),
    Frame(comment='gateway {"path":"alpha:ok"}'),
    Frame(b"[DONE]"),
]


def test_comments_are_frames_of_their_own() -> None:
    assert Frames().feed(STORY) == FRAMES


@given(cuts=st.lists(st.integers(0, len(STORY)), max_size=12))
def test_any_cut_gives_the_same_frames(cuts: list[int]) -> None:
    frames, found, at = Frames(), [], 0
    for cut in [*sorted(cuts), len(STORY)]:
        found += frames.feed(STORY[at:cut])
        at = cut
    assert found == FRAMES


@pytest.mark.parametrize("endless", [b"data: " + b"x" * 100, b"data: xxxxxxxx\n" * 10])
def test_a_frame_without_end_is_refused(endless: bytes) -> None:
    with pytest.raises(StreamBroken):
        Frames(limit=50).feed(endless)


def test_comments_may_go_on_for_ever() -> None:
    frames = Frames(limit=50)
    for _ in range(100):
        assert frames.feed(b": keep-alive\n\n") == [Frame(comment="keep-alive")]
