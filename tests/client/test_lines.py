"""Lines from bytes in any pieces, with no more memory than the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_vmcp._client.channels.lines import LineDecoder, LineFlood
from trio_vmcp._protocol.reading import MOST_SKIPPED, Oversized

LIMIT = 600


def cut(data: bytes, points: list[int]) -> list[bytes]:
    ends = sorted(point % (len(data) + 1) for point in points)
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b" "))), st.lists(st.integers(0, 10_000)))
def test_lines_do_not_depend_on_how_the_stream_was_cut(lines: list[bytes], points: list[int]) -> None:
    """All lines that are not empty, in order; bytes without a line end are no line before the stream ends."""
    decoder = LineDecoder(LIMIT)
    found = [line for piece in cut(b"\n".join([*lines, b"begun"]), points) for line in decoder.feed(piece)]
    assert [line for line in lines if line] == found
    assert [b"begun"] == decoder.finish()


@pytest.mark.parametrize("data", [b"", b"line\n", b"x" * (LIMIT + 1) + b"\n", b"line\n\n"])
def test_a_stream_that_ends_with_a_line_end_has_no_more_lines(data: bytes) -> None:
    """Nor has one without a byte."""
    decoder = LineDecoder(LIMIT)
    decoder.feed(data)
    assert [] == decoder.finish()


def test_a_last_line_over_the_limit_keeps_its_ends_alone() -> None:
    """As one with a line end."""
    decoder = LineDecoder(LIMIT)
    decoder.feed(b"line\n" + b"x" * (LIMIT + 1))
    (last,) = decoder.finish()
    assert isinstance(last, Oversized)
    assert LIMIT + 1 == last.size


@given(st.integers(LIMIT + 1, LIMIT * MOST_SKIPPED), st.lists(st.integers(0, 10_000)))
def test_a_line_over_the_limit_keeps_its_ends_alone(size: int, points: list[int]) -> None:
    """Of a line over the limit only the two ends are kept, however it arrives; the lines around it are whole."""
    long = b"head" + b"x" * (size - 8) + b"tail"
    decoder = LineDecoder(LIMIT)
    found = [line for piece in cut(b"before\n" + long + b"\nafter\n", points) for line in decoder.feed(piece)]
    before, between, after = found
    assert (b"before", b"after") == (before, after)
    assert isinstance(between, Oversized)
    assert size == between.size
    assert long[:256] == between.head
    assert long[-256:] == between.tail


@pytest.mark.parametrize(("size", "fits"), [(LIMIT - 1, True), (LIMIT, True), (LIMIT + 1, False)])
@pytest.mark.parametrize("step", [1, 7, LIMIT * 2])
def test_the_limit_is_exact(size: int, fits: bool, step: int) -> None:
    """The limit is the length of a line without its end, in one piece or many."""
    decoder = LineDecoder(LIMIT)
    data = b"x" * size + b"\n"
    (line,) = (line for start in range(0, len(data), step) for line in decoder.feed(data[start : start + step]))
    assert fits is not isinstance(line, Oversized)


def test_a_line_without_end_is_given_up() -> None:
    """A line without end raises after four times the limit, and little of it is in memory."""
    decoder = LineDecoder(LIMIT)
    decoder.feed(b"x" * LIMIT * MOST_SKIPPED)
    assert decoder._oversized is not None
    assert len(decoder._line) + len(decoder._oversized.head) + len(decoder._oversized.tail) <= 512
    with pytest.raises(LineFlood, match=r"a line of over 4 x 600 bytes \(max_message_bytes\)"):
        decoder.feed(b"x")
