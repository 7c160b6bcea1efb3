"""Server-sent events: any bytes, cut anywhere, within the limits."""

from __future__ import annotations

import re
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, pairwise

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_vmcp._protocol.reading import MOST_SKIPPED, Oversized
from trio_vmcp._protocol.sse import MAX_FIELD_BYTES, MOST_DATA_LINES, SseDecoder, SseEvent, SseLimit

KIB = 1024
PLENTY = 64 * KIB


@attrs.frozen
class Outcome:
    """All results of a decoder for one stream."""

    events: Sequence[SseEvent]
    last_event_id: str | None
    retry: float | None
    broken: bool


def decode(chunks: Iterable[bytes], max_event_bytes: int = PLENTY) -> Outcome:
    decoder = SseDecoder(max_event_bytes)
    events: list[SseEvent] = []
    broken = False
    try:
        for chunk in chain(chunks, [b""]):  # when a limit is hit after an event, the next `feed` raises
            events += decoder.feed(chunk)
    except SseLimit:
        broken = True
    return Outcome(events, decoder.last_event_id, decoder.retry, broken)


def events_of(stream: bytes) -> Sequence[SseEvent]:
    return decode([stream]).events


def can_be_header(value: bytes) -> bool:
    """No control character but a tab, and no blank at an end (RFC 9110 §5.5)."""
    return value == value.strip(b" \t") and all(byte == 0x09 or (byte >= 0x20 and byte != 0x7F) for byte in value)


def reference(stream: bytes, max_event_bytes: int) -> Outcome:
    """A second implementation, written for clarity: split the whole stream into lines, then into events."""
    *lines, begun = re.split(rb"\r\n|\r|\n", stream)
    events: list[SseEvent] = []
    last_event_id, retry = None, None
    name, data, event_id = "", list[bytes](), None
    size = 0
    skipped: bytes | None = None  # the event, once it is over the limit
    for number, line in enumerate([*lines, begun]):
        is_whole = number < len(lines)
        is_blank = is_whole and not line
        if skipped is None and size + len(line) > max_event_bytes:
            skipped = b"\n".join(data)
        if skipped is not None:
            skipped += line
            if len(skipped) > MOST_SKIPPED * max_event_bytes:
                return Outcome(events, last_event_id, retry, broken=True)
        elif not is_whole:
            break
        else:
            size += len(line) + 1
            if number == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
        if is_blank or (skipped is None and not line):
            if event_id is not None:
                last_event_id = event_id or None
            if skipped is not None:
                oversized = Oversized()
                oversized.add(skipped)
                oversized.head = first_value(oversized.head.removeprefix(b"\xef\xbb\xbf"))
                oversized.size -= len(skipped[:256]) - len(oversized.head)
                events.append(SseEvent(name or "message", b"", event_id or None, oversized))
            elif data:
                events.append(SseEvent(name or "message", b"\n".join(data), event_id or None))
            name, data, event_id = "", [], None
            size, skipped = 0, None
            continue
        if skipped is not None:
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value[:MAX_FIELD_BYTES].decode(errors="replace")
        elif field == b"id" and len(value) <= MAX_FIELD_BYTES and can_be_header(value):
            event_id = value.decode(errors="replace")
        elif field == b"retry" and 0 < len(value) <= MAX_FIELD_BYTES and all(byte in b"0123456789" for byte in value):
            retry = int(value) / 1000
    return Outcome(events, last_event_id, retry, broken=False)


def first_value(line: bytes) -> bytes:
    return line[5:].removeprefix(b" ") if line.startswith(b"data:") else line


ENDS = [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n"]
LINES = [
    b"data", b"data:", b"data: ", b"data:  x", b"data: {}", b"data:a:b", b"datas: x", b" data: x", b"Data: x",
    b"event: e", b"event", b"event: \xff", b"id: 1", b"id:", b"id", b"id: \x00", b"id: a b", "id: é".encode(),
    b"retry: 250", b"retry: 007", b"retry: 2s", b"retry: -1", b"retry", "retry: ٣".encode(), b":", b": comment",
    b"\xef\xbb\xbf", "\u2028".encode(), "\u0085".encode(), b"\x0b", b"\x0c", b"\x1c", b"\x00",
]  # fmt: skip
streams = st.lists(st.sampled_from(LINES) | st.sampled_from(ENDS) | st.binary(max_size=5), max_size=40).map(b"".join)


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


@given(stream=streams, places=st.lists(st.integers(0, 10_000), max_size=12))
@example(stream=b"data: x\r\n\r\n", places=[8, 10])
@example(stream=b"\xef\xbb\xbfdata: x\n\n", places=[1, 2])
@example(stream=b"\n\xef\xbb\xbfdata: not at the start\n\n", places=[1])
def test_how_a_stream_is_cut_makes_no_difference(stream: bytes, places: list[int]) -> None:
    """Fed whole, cut anywhere or byte by byte, a stream gives the events of the plain implementation."""
    expected = reference(stream, PLENTY)
    assert expected == decode([stream])
    assert expected == decode(cut(stream, places))
    assert expected == decode(cut(stream, range(len(stream))))


@given(
    stream=streams,
    places=st.lists(st.integers(0, 10_000), max_size=12),
    max_event_bytes=st.integers(1, 40),
)
@example(stream=b"data: x\n\ndata: " + b"y" * 40, places=[], max_event_bytes=9)
@example(stream=b"data: x\n\ndata: " + b"y" * 20 + b"\n\ndata: z\n\n", places=[], max_event_bytes=9)
@example(stream=b"data: x\ndata: " + b"y" * 20 + b"\nid: 7\n\ndata: z\n\n", places=[16], max_event_bytes=9)
@example(stream=b"data: xyz\n\n", places=[], max_event_bytes=9)
@example(stream=b"data\ndata: \n\n", places=[], max_event_bytes=9)
@example(stream=b"id: 1\ndata: x\n\n", places=[8], max_event_bytes=9)
def test_nor_does_it_for_the_limits(stream: bytes, places: list[int], max_event_bytes: int) -> None:
    """A stream over a limit gives the same events, oversized ones and whole ones, however it is cut."""
    expected = reference(stream, max_event_bytes)
    assert expected == decode([stream], max_event_bytes)
    assert expected == decode(cut(stream, places), max_event_bytes)
    assert expected == decode(cut(stream, range(len(stream))), max_event_bytes)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [SseEvent("message", b"YHOO\n+2\n10", None)]),
        (b": test stream\n\ndata: first event\nid: 1\n\n", [SseEvent("message", b"first event", "1")]),
        (b"data\n\ndata\ndata\n\ndata:", [SseEvent("message", b"", None), SseEvent("message", b"\n", None)]),
        (b"data:test\n\ndata: test\n\n", [SseEvent("message", b"test", None)] * 2),
    ],
    ids=["joined lines", "comment and id", "data without value", "one leading space"],
)
def test_the_examples_of_the_specification(stream: bytes, expected: list[SseEvent]) -> None:
    """The examples at the end of WHATWG HTML §9.2.6 come out as it says."""
    assert expected == events_of(stream)


def test_json_with_unicode_line_separators_stays_whole() -> None:
    """U+2028, U+2029, U+0085, VT and FF are data, not line ends."""
    text = '{"text": "\u2028\u2029\u0085\x0b\x0c"}'.encode()
    assert [SseEvent("message", text, None)] == events_of(b"data: " + text + b"\n\n")


def test_a_carriage_return_ends_a_line_at_once() -> None:
    """An event that ends in CR is not held back until the next byte tells whether a LF follows."""
    decoder = SseDecoder(PLENTY)
    assert [SseEvent("message", b"x", None)] == decoder.feed(b"data: x\r\r")
    assert [] == decoder.feed(b"\ndata: y\r")
    assert [] == decoder.feed(b"")
    assert [SseEvent("message", b"y\nz", None)] == decoder.feed(b"\ndata: z\n\n")


def test_a_truncated_event_is_none() -> None:
    """An event without its blank line is not dispatched (§9.2.6), and its id is not where a resumption starts."""
    decoder = SseDecoder(PLENTY)
    decoder.feed(b"id: 1\ndata: x\n\n")
    assert [] == decoder.feed(b"id: 2\ndata: {}\n")
    assert "1" == decoder.last_event_id


def test_a_priming_event_gives_its_id_and_retry() -> None:
    """MCP's priming event has an id and no data; with an empty `data` line it is an event with empty data."""
    decoder = SseDecoder(PLENTY)
    assert [SseEvent("message", b"", "a-1")] == decoder.feed(b"id: a-1\nretry: 500\ndata:\n\n")
    assert ("a-1", 0.5) == (decoder.last_event_id, decoder.retry)
    assert [] == decoder.feed(b"id: a-2\n\n")
    assert "a-2" == decoder.last_event_id


def test_an_empty_id_takes_the_last_one_back() -> None:
    """After an empty `id:` field there is no id to resume from."""
    decoder = SseDecoder(PLENTY)
    assert [SseEvent("message", b"x", None)] == decoder.feed(b"id: 1\n\nid\ndata: x\n\n")
    assert decoder.last_event_id is None


@pytest.mark.parametrize(
    "bad_id",
    [b"a\x00b", b" a", b"a\t", b"\x7f", b"x" * (MAX_FIELD_BYTES + 1)],
    ids=["NUL", "blank first", "tab last", "DEL", "too long"],
)
def test_an_id_that_no_header_can_carry_is_ignored(bad_id: bytes) -> None:
    """Such an id never reaches Last-Event-ID; the event itself arrives."""
    decoder = SseDecoder(PLENTY)
    decoder.feed(b"id: 1\n\n")
    assert [SseEvent("message", b"x", None)] == decoder.feed(b"id: " + bad_id + b"\ndata: x\n\n")
    assert "1" == decoder.last_event_id


@pytest.mark.parametrize(
    ("odd_id", "expected"),
    [(b"a b\tc", "a b\tc"), ("é✓".encode(), "é✓"), (b"\xff", "\ufffd"), (b"{}:,", "{}:,")],
    ids=["blanks inside", "not ASCII", "not UTF-8", "signs"],
)
def test_an_odd_id_is_kept(odd_id: bytes, expected: str) -> None:
    """Any id that a header can carry, as UTF-8 (WHATWG HTML §9.2.6): a stream must be resumed after it."""
    assert expected == decode([b"id: " + odd_id + b"\n\n"]).last_event_id


def test_the_longest_id_is_kept() -> None:
    """An id of MAX_FIELD_BYTES is kept."""
    longest = "x" * MAX_FIELD_BYTES
    assert longest == decode([f"id: {longest}\n\n".encode()]).last_event_id


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"0", 0.0), (b"1500", 1.5), (b"9" * 1000, float("inf")), (b"9" * (MAX_FIELD_BYTES + 1), None), (b"1.5", None)],
    ids=["zero", "ms", "endless", "too long", "not digits"],
)
def test_retry_is_digits_in_milliseconds(value: bytes, expected: float | None) -> None:
    """`retry` comes out in seconds and unclamped; what is not digits is ignored."""
    assert expected == decode([b"retry: " + value + b"\n"]).retry


def test_an_endless_event_name_is_cut() -> None:
    """No known event name is longer than MAX_FIELD_BYTES, so the rest of one is not stored."""
    (event,) = events_of(b"event: " + b"e" * (2 * MAX_FIELD_BYTES) + b"\ndata:\n\n")
    assert MAX_FIELD_BYTES == len(event.event)


@pytest.mark.parametrize(
    ("chunk", "limit"),
    [
        (b"x", "event of more than 4 x 1024 bytes"),
        (b"data: x\n", "event of more than 4 x 1024 bytes"),
        (b"data\n", "event of more than 4 x 1024 bytes"),
        (b": ping\n", "event of more than 4 x 1024 bytes"),
        (b"unknown: x\n", "event of more than 4 x 1024 bytes"),
    ],
    ids=["line", "data", "empty data", "comments", "unknown fields"],
)
def test_what_never_ends_meets_a_limit(chunk: bytes, limit: str) -> None:
    """Lines, events and comments without end exceed a limit, which the error names; every later `feed` raises, too."""
    decoder = SseDecoder(KIB)
    with pytest.raises(SseLimit, match=limit):
        list(map(decoder.feed, [chunk] * (5 * KIB)))
    with pytest.raises(SseLimit, match=limit):
        decoder.feed(b"\n\n")


def test_keep_alives_count_for_one_event_only() -> None:
    """The limit is per event: any number of events, and of comments with their blank lines, is within it."""
    decoder = SseDecoder(16)
    for _ in range(100):
        assert [SseEvent("message", b"x", None)] == decoder.feed(b": ping\n\ndata: x\n\n")


def big_line() -> list[bytes]:
    return [*cut(b"data: " + b"x" * (KIB * KIB - 100), range(0, KIB * KIB, 16 * KIB)), b"\n\n"]


def big_line_after_a_bom() -> list[bytes]:
    return [b"\xef\xbb\xbf", *big_line()]


def many_lines() -> list[bytes]:
    return [b"data:xy\n" * KIB] * 15 + [b"\n"]


def empty_lines() -> list[bytes]:
    return [b"data\n" * KIB] * 15 + [b"\n"]


def tiny_pieces() -> list[bytes]:
    return [b"data:", *[b"xy"] * (16 * KIB), b"\n\n"]


def huge_name() -> list[bytes]:
    return [b"event:" + b"x" * (KIB * KIB - 100), b"\ndata\n\n"]


def huge_id() -> list[bytes]:
    return [b"id:", *[b"x" * (16 * KIB)] * 63, b"\ndata\n\n"]


@pytest.mark.parametrize(
    "make", [big_line, big_line_after_a_bom, many_lines, empty_lines, tiny_pieces, huge_name, huge_id]
)
def test_memory_stays_at_twice_the_limit(make: Callable[[], list[bytes]]) -> None:
    """Decoding an event takes little more memory than twice its size, however the bytes are spread over fields."""
    chunks = make()
    size = sum(map(len, chunks))
    tracemalloc.start()
    try:
        outcome = decode(chunks, KIB * KIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (1, False) == (len(outcome.events), outcome.broken)
    assert 2.3 * size + 64 * KIB > peak  # growing buffers have spare room, and a chunk of short lines is split


def test_a_stream_over_its_limit_is_let_go() -> None:
    """An event over the limit is not kept: its data is freed, and what follows is counted alone."""
    decoder = SseDecoder(KIB * KIB)
    tracemalloc.start()
    try:
        list(map(decoder.feed, [b"data: " + b"x" * 100 * KIB + b"\ndata: " + b"x" * 100 * KIB] * 6))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 64 * KIB > held


@pytest.mark.parametrize("piece", [b"x" * 512, b"\ndata: " + b"x" * 505], ids=["one line", "many lines"])
def test_time_is_linear(piece: bytes) -> None:
    """The time for a large event in small pieces is linear: no byte is scanned or copied again for each piece."""
    chunks = [b"data: ", *[piece] * (8 * KIB), b"\n\n"]  # 4 MiB; scanning all of it for each piece would be 16 GiB
    start = time.process_time()
    (event,) = decode(chunks, 8 * KIB * KIB).events
    assert 0.5 > time.process_time() - start  # takes 0.02 s
    assert 4 * KIB * KIB >= len(event.data) > 3 * KIB * KIB


def test_reprs_hold_no_data() -> None:
    """The data of an event is in no repr, so it does not get into logs."""
    decoder = SseDecoder(PLENTY)
    (event,) = decoder.feed(b"data: canary\n\nevent: canary\ndata: canary\n: canary")
    assert "canary" not in repr(event) + repr(decoder)


def test_lines_of_an_event_count_beyond_a_number() -> None:
    """An event that does not end must be slowed down before it ends. JSON of a few MiB on many lines is not."""
    decoder = SseDecoder(max_event_bytes=2**24)
    (event,) = decoder.feed(b"data:1\n" * MOST_DATA_LINES + b"\n")
    assert MOST_DATA_LINES - 1 == event.data.count(b"\n")
    assert 0 == decoder.idle_lines
    decoder.feed(b"data:1\n" * (MOST_DATA_LINES + 11))
    assert 10 == decoder.idle_lines


def test_lines_of_an_event_over_the_limit_count() -> None:
    """Their data is not kept, so they cannot be counted when the event ends."""
    decoder = SseDecoder(max_event_bytes=100)
    decoder.feed(b"data: " + b"x" * 94 + b"\n")
    decoder.feed(b"data: y\n" * 10)
    assert 10 == decoder.idle_lines
