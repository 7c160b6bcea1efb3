"""JSON that is parsed, split and encoded in slices: what `json` makes of the whole, in steps that are short."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_vmcp._protocol import jsonrpc
from trio_vmcp._protocol.json_cost import SLICE as DEPTH_SLICE
from trio_vmcp._protocol.json_depth import BRACKETS_AT_ONCE, is_deeper
from trio_vmcp._protocol.json_slices import SLICE, decode_in_steps, encode_in_steps, split_in_steps
from trio_vmcp._protocol.jsonrpc import BadMessage, Result, parse_in_steps

STRINGS = st.text(st.sampled_from('a\\"[]{},:0 \n\u20ac\ud83d\ude00\U0001f600'), max_size=9)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | STRINGS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=4),
    max_leaves=30,
)
WINDOWS = st.integers(1, 12)  # characters: nearly every array and object is longer
DECODER = json.JSONDecoder()
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def end_of(steps: Generator[None, None, Any]) -> tuple[Any, int]:
    """What the steps bring, and how many there were."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            return ended.value, count
        count += 1


def outcome(decode: Any) -> object:
    """A value with where its text ends, or "no JSON"."""
    try:
        return decode()
    except json.JSONDecodeError:
        return "no JSON"


@given(VALUES, st.sampled_from([None, 1]), st.booleans(), WINDOWS)
def test_a_sliced_parse_is_a_whole_one(value: Any, indent: int | None, is_ascii: bool, window: int) -> None:
    """Of every value, with and without blanks, and wherever the slices end."""
    text = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
    assert (json.loads(text), len(text)) == end_of(decode_in_steps(DECODER, text, most=window))[0]


@pytest.mark.parametrize("text", [r"\ud83d\ud83d\ude00", r"\\ud83d\ude00", r"\\\ud83d\ude00\ude00", r"\"\u0041\"\n"])
@pytest.mark.parametrize("window", range(1, 14))
def test_escapes_at_the_end_of_a_piece(text: str, window: int) -> None:
    """None is cut, and two escapes of surrogates that stand in two pieces are one character."""
    value = f'{{"{text}":"{text}"}}'
    assert json.loads(value) == end_of(decode_in_steps(DECODER, value, most=window))[0][0]


@given(VALUES, st.sampled_from([None, 1]), WINDOWS, st.integers(0, 1000), st.sampled_from(["", *'[]{},:"x0 ']))
@example([1], None, 4, 2, ",")  # [1,
@example({"a": 1}, None, 4, 4, "")
@example([[1]], None, 1, 4, "]]")
def test_what_is_no_json_is_an_error(value: Any, indent: int | None, window: int, at: int, put: str) -> None:
    """A text with one character changed is read as `json` reads it: it has the same value, or is no JSON."""
    text = json.dumps(value, indent=indent)
    text = text[: at % len(text)] + put + text[at % len(text) + 1 :]

    def whole() -> tuple[Any, int]:
        found, end = DECODER.raw_decode(text, len(text) - len(text.lstrip()))
        return found, len(text) - len(text[end:].lstrip(" \t\n\r"))

    assert outcome(whole) == outcome(lambda: end_of(decode_in_steps(DECODER, text, most=window))[0])


@pytest.mark.parametrize("text", ['{"a":1,"b":2,"a":3}', '{"a":[0,0,0,0],"a":{"a":1,"a":2}}'])
def test_the_last_of_duplicate_keys_counts(text: str) -> None:
    """RFC 8259 §4 leaves that open."""
    assert json.loads(text) == end_of(decode_in_steps(DECODER, text, most=4))[0][0]


def test_equal_keys_are_kept_once() -> None:
    """A long array of small objects does not take several times the memory of a whole parse."""
    text = json.dumps([{"key": {"x": [0] * 9}}] * 2)
    (one, other), _ = end_of(decode_in_steps(DECODER, text, most=4))[0]
    assert next(iter(one)) is next(iter(other))


@given(st.lists(VALUES, min_size=1, max_size=4), st.sampled_from([None, 1]))
def test_an_array_is_split_into_its_elements(values: list[Any], indent: int | None) -> None:
    """Each as its own text."""
    text = json.dumps(values, indent=indent)
    parts, _ = end_of(split_in_steps(DECODER, f" {text} "))
    assert json.loads(text) == [json.loads(part) for part in parts]


@pytest.mark.parametrize("text", ["", " ", "1", "[", "[]", "[1", "[1,", "[1,]", "[1 2]", "[1]2", "{}", '["]'])
def test_what_is_no_array_is_not_split(text: str) -> None:
    """Nor is an empty one: the parser says what is wrong with it."""
    assert ([], 0) == end_of(split_in_steps(DECODER, text))


@given(VALUES, st.integers(1, 500))
def test_pieces_of_a_value_are_its_text(value: Any, most: int) -> None:
    """However large they are."""
    assert ENCODER.encode(value) == "".join(encode_in_steps(ENCODER, value, most=most))


@pytest.mark.parametrize(
    "value",
    [
        ["x" * 60] * 20_000,
        {f"k{n}": n for n in range(30_000)},
        {"a": {"b": [{"c": "x" * 300}] * 12_000}},
        {"a": ["\U0001f600" * 1_000_000]},
        {"x" * 1_000_000: 1},
    ],
    ids=["strings", "members", "objects", "string", "key"],
)
def test_no_piece_is_long(value: Any) -> None:
    """A large value is many pieces of about the same size."""
    pieces = list(encode_in_steps(ENCODER, value))
    assert max(map(len, pieces)) <= SLICE
    assert ENCODER.encode(value) == "".join(pieces)
    assert len(pieces) < 4 * len(ENCODER.encode(value)) / SLICE + 100


LONG_STRING = "x" * (1024 * 1024) + "\U0001f600"
VERY_LONG_STRING = "x" * jsonrpc.MOST_OF_FEW_STRINGS + "\U0001f600"  # a shorter one is parsed at once
LONG = {  # results of 1 MiB and more
    "strings": [["x" * 60] * 20_000],
    "members": {f"{n:060}": True for n in range(20_000)},
    "objects": [{"a": "x" * 150, "b": [1]}] * 8_000,
    "in depth": [[[[[["x" * 60] * 20_000]]]]],
    "behind a long string": [LONG_STRING, *["x" * 60] * 20_000],
    "a string": VERY_LONG_STRING,
    "a string of quotes": '"' * len(LONG_STRING),
    "a key": {VERY_LONG_STRING: None},
}


@pytest.mark.parametrize("value", LONG.values(), ids=list(LONG))
def test_a_long_message_is_parsed_in_slices(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in one step, whatever makes it long."""
    text = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"x": value}}, ensure_ascii=False)
    message, steps = end_of(parse_in_steps(text, max_depth=128, max_values=100_000))
    assert Result(1, {"x": value}) == message
    monkeypatch.setattr(jsonrpc, "MOST_AT_ONCE", len(text))
    _, counting = end_of(parse_in_steps(text, max_depth=128, max_values=100_000))
    assert steps - counting >= len(text) // SLICE - 1


@pytest.mark.parametrize("wrong", ["]", "x", ",", '"'])
def test_a_long_message_that_is_no_json(wrong: str) -> None:
    """The place is told, as of a short one, and nothing of the message."""
    text = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"x": LONG["objects"]}})
    at = text.index("}, {", len(text) // 2) + 1
    text = text[:at] + wrong + text[at:]
    with pytest.raises(json.JSONDecodeError) as whole:
        json.loads(text)
    with pytest.raises(BadMessage) as caught:
        end_of(parse_in_steps(text, max_depth=128, max_values=100_000))
    assert f"is not JSON at character {whole.value.pos}" == str(caught.value)


def test_what_follows_a_long_message_is_no_json() -> None:
    """More than one value in one message."""
    text = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"x": LONG["objects"]}})
    with pytest.raises(BadMessage, match=f"is not JSON at character {len(text) + 1}"):
        end_of(parse_in_steps(text + " {}", max_depth=128, max_values=100_000))


def test_the_depth_of_a_message_is_looked_at_in_steps() -> None:
    """A step for some of its text each, and for some of the brackets that nest deeply."""
    long = json.dumps(["x" * 60] * 20_000)
    assert end_of(is_deeper(long, 128))[1] >= len(long) // DEPTH_SLICE
    deep = json.dumps([json.loads("[" * 20 + "]" * 20)] * 10_000)
    assert end_of(is_deeper(deep, 128))[1] >= len(deep) // DEPTH_SLICE + 24 * 10_000 // BRACKETS_AT_ONCE


NESTED = st.recursive(
    st.text(alphabet='a"\\[]{}\u00e9', max_size=4) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='"\\[]{}', max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


def depth_of(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth_of, inner), default=0)


@given(NESTED, st.integers(0, 12), st.integers(0, 12), st.booleans())
def test_the_depth_of_a_text_is_that_of_its_value(value: Any, more: int, most: int, ascii_only: bool) -> None:
    """Whatever its strings hold."""
    for _ in range(more):
        value = [value]
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert end_of(is_deeper(text, most))[0] is (depth_of(value) > most)


@pytest.mark.parametrize("text", ["\\", '"', "[", "\\["])
def test_the_depth_of_a_text_whose_strings_are_cut(text: str) -> None:
    """A slice may end within a string, and within an escape in it."""
    for before in range(DEPTH_SLICE - 12, SLICE - 4):
        value = ["x" * before, text * 6, [[]]]
        assert not end_of(is_deeper(json.dumps(value), 3))[0]
        assert end_of(is_deeper(json.dumps(value), 2))[0]


@pytest.mark.parametrize("depth", [5, 6, 7])
@pytest.mark.parametrize("inner", ["[]", "{}", '{"a":1}', "[1]"])
def test_the_limit_of_depth(depth: int, inner: str) -> None:
    """The message itself counts, and so does what is empty."""
    value = "[" * (depth - 3) + inner + "]" * (depth - 3)
    text = f'{{"jsonrpc":"2.0","id":1,"result":{{"x":{value},"y":"{"x" * 200_000}"}}}}'
    steps = parse_in_steps(text, max_depth=6, max_values=100_000)
    if depth <= 6:
        assert isinstance(end_of(steps)[0], Result)
    else:
        with pytest.raises(BadMessage, match=r"deeper than 6 \(max_json_depth\)"):
            end_of(steps)
