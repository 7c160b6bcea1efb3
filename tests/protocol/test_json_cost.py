"""The count of what a JSON text costs to parse."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.untraced import untraced

from trio_vmcp._protocol import json_cost
from trio_vmcp._protocol.json_cost import MOST_DIGITS, MOST_NUMBER_DIGITS, JsonCost, TooCostly, check_cost, memory_size
from trio_vmcp._protocol.jsonrpc import BadMessage, Result, parse_in_steps, parse_message

STRINGS = st.text(st.sampled_from('a\\"[]{},:0 \n\u20ac\ud800'), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | STRINGS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=4),
    max_leaves=30,
)
SHORT = 4  # characters of a slice


def count(text: str, max_values: float = 10**9) -> JsonCost:
    cost = JsonCost(max_values)
    for _ in cost.count(text):
        pass
    return cost


def values_of(value: Any) -> int:
    if isinstance(value, dict | list):
        return len(value) + sum(values_of(child) for child in (value.values() if isinstance(value, dict) else value))
    return 0


def digits_of(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(digits_of, value.values()))
    if isinstance(value, list):
        return sum(map(digits_of, value))
    return sum(map(str.isdigit, json.dumps(value))) if type(value) in (int, float) else 0


@given(VALUES, st.sampled_from([None, 0, 3]), st.booleans(), st.integers(1, 9))
@example([[], {}, [[]], {"": {}}], None, True, 1)
def test_the_count_is_exact_however_the_text_is_cut(value: Any, indent: int | None, ascii: bool, size: int) -> None:
    """Members and elements count, and digits of numbers; nothing inside strings does."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_cost, "SLICE", size)
        cost = count(text)
    assert (values_of(value), digits_of(value)) == (cost.values, cost.digits)


@given(VALUES, st.integers(1, 9))
def test_the_limit_is_the_last_count_that_passes(value: Any, size: int) -> None:
    """An array that turns out to be empty in the next slice never counts as over the limit."""
    text, values = json.dumps(value, indent=1), values_of(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_cost, "SLICE", size)
        count(text, values)
        if values:
            with pytest.raises(TooCostly, match=rf"over {values - 1} values \(max_json_values\)"):
                count(text, values - 1)


ESCAPES = st.text(st.sampled_from('\\"[,7'), max_size=12)


LIMITS = st.integers(0, 20)
SLICES = st.sampled_from([1, 5, 10**6])
FEW = st.sampled_from([0, 1, 10**6])


@given(VALUES | ESCAPES | st.lists(ESCAPES | st.integers()), LIMITS, LIMITS, SLICES, FEW)
@example('",,,"', 0, 9, 10**6, 10**6)
@example(33 * "\\" + '",,,' + 33 * "\\" + '"', 0, 9, 10**6, 10**6)
@example([77777, ""], 9, 4, 10**6, 0)
def test_the_shortcuts_judge_as_the_exact_count_does(
    value: Any, most_values: int, most_digits: int, size: int, few: int
) -> None:
    """A text is refused exactly if its values, or its digits, are over the limit."""
    text = json.dumps(value, ensure_ascii=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_cost, "SLICE", size)
        patch.setattr(json_cost, "_FEW_QUOTES", few)
        patch.setattr(json_cost, "MOST_DIGITS", most_digits)
        is_over = False
        try:
            for _ in check_cost(text, most_values):
                pass
        except TooCostly:
            is_over = True
    assert (values_of(value) > most_values or digits_of(value) > most_digits) is is_over


MANY_STRINGS = ",".join(['"x"'] * 90_000)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        pytest.param('{"a":"%s"}' % ("x,7[" * 1_000_000), 1, id="one long string"),
        pytest.param(f'{{"a":[{MANY_STRINGS}]}}', 2, id="many strings"),
        pytest.param('{"a":"%s"}' % ('\\",[' * 1_000_000), 16, id="escaped quotes"),
    ],
)
def test_most_texts_are_never_counted_exactly(text: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact count takes ten times as long as the shortcuts."""
    exact: list[int] = []
    count_slice = JsonCost._count_slice
    monkeypatch.setattr(JsonCost, "_count_slice", lambda cost, piece: exact.append(count_slice(cost, piece) or 1))
    assert steps == sum(1 for _ in check_cost(text, 100_000))
    assert (steps > 2) is bool(exact)


@pytest.mark.parametrize("most_digits", [4300, 0])
def test_a_long_number_between_many_strings_is_found(most_digits: int) -> None:
    """By the count where the limit of `int` is switched off, and by the parser otherwise."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(most_digits)
    text = f'{{"jsonrpc":"2.0","id":1,"result":{{"a":[{MANY_STRINGS},{"7" * 5000}]}}}}'
    try:
        with pytest.raises(BadMessage, match="digits") as caught:
            parse_message(text.encode(), max_depth=9, max_values=100_000)
    finally:
        sys.set_int_max_str_digits(before)
    assert caught.value.is_too_large


ONE_NUMBER = "holds a number of over 4300 digits"
SPREAD = MOST_NUMBER_DIGITS // 2


@pytest.mark.parametrize(
    "number",
    ["%s", "-%s", "0.%s", "%s.5", "1e%s", f"{'1' * SPREAD}.%s", f"-{'1' * SPREAD}.{'2' * 9}e-%s"],
)
@pytest.mark.parametrize("size", [7, 1000, 10**6])
def test_the_digits_of_one_number_are_limited(number: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All digits of a number count together, wherever a slice ends."""
    monkeypatch.setattr(json_cost, "SLICE", size)
    own = sum(map(str.isdigit, number % ""))
    count('{"a":[1,' + number % ("7" * (MOST_NUMBER_DIGITS - own)) + ',"' + "7" * 9000 + '"]}')
    with pytest.raises(TooCostly, match=ONE_NUMBER):
        count('{"a":[1,' + number % ("7" * (MOST_NUMBER_DIGITS - own + 1)) + ",7]}")


def test_the_digits_of_all_numbers_are_limited() -> None:
    """Digits inside strings do not count."""
    numbers = ["7" * 1000] * (MOST_DIGITS // 1000)
    text = ",".join(numbers)
    assert MOST_DIGITS == count(f'["{text}",{text}]').digits
    with pytest.raises(TooCostly, match="holds numbers of over 100000 digits together"):
        count(f"[{text},7]")


@pytest.mark.parametrize("literal", ["7" * 5000, "0." + "7" * 5000, "7." + "7" * 4300])
@pytest.mark.parametrize("most_digits", [4300, 0])
def test_a_long_number_in_a_short_message_is_over_a_limit(
    literal: str, most_digits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the limit of `int` is switched off."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(most_digits)
    try:
        with pytest.raises(BadMessage, match="digits") as caught:
            parse_message(b'{"jsonrpc":"2.0","id":1,"result":{"a":%s}}' % literal.encode(), max_depth=9)
    finally:
        sys.set_int_max_str_digits(before)
    assert caught.value.is_too_large


@pytest.mark.parametrize(("values", "passes"), [(20, True), (19, False)])
def test_a_message_over_the_limit_is_not_parsed(values: int, passes: bool) -> None:
    """The three members of the message itself count."""
    data = b'{"jsonrpc":"2.0","id":1,"result":{"a":[%s]}}' % b",".join([b"[]"] * 16)
    if passes:
        assert isinstance(parse_message(data, max_depth=9, max_values=values), Result)
        return
    with pytest.raises(BadMessage, match=r"holds over 19 values \(max_json_values\)") as caught:
        parse_message(data, max_depth=9, max_values=values)
    assert caught.value.is_too_large


def test_a_large_message_is_parsed_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tasks can run between the slices of the count, after it, and between the parse and the checks."""
    text = f'{{"jsonrpc":"2.0","id":1,"result":{{"a":[{MANY_STRINGS}]}}}}'
    monkeypatch.setattr(json_cost, "SLICE", 80_000)
    assert 5 + 1 == sum(1 for _ in parse_in_steps(text, max_depth=9, max_values=100_000))


ALMOST = "9" * (MOST_NUMBER_DIGITS - 1)
STRINGS_BESIDE = "[" + '"s",' * 60_000 + '"s"]'


@pytest.mark.parametrize(
    "text",
    [
        f"[{','.join([ALMOST] * 20)},{STRINGS_BESIDE}]",
        f"[{ALMOST},{'-' * 1_000_000}",
        f"[{','.join(['-+e' * 1400] * 200)}]",
    ],
    ids=["numbers", "one run", "runs"],
)
def test_runs_of_number_characters_cost_what_they_are_long(text: str) -> None:
    """Each character of a run was looked at again from every place before it: seconds for 1 MB."""
    with untraced():
        begun = time.process_time()
        for _ in check_cost(text, 100_000):
            pass
        assert time.process_time() - begun < 0.25  # takes 0.01 s


@given(st.recursive(st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
@settings(max_examples=50)
def test_the_size_of_a_value_is_more_than_its_text(value: Any) -> None:
    """The size of any JSON value is at least the length of its text, and counting stops soon after `most`."""
    assert memory_size(value, 10**9) >= len(json.dumps(value, ensure_ascii=False)) / 3
    assert memory_size(value, 0) > 0
    assert 64 <= memory_size([value] * 1000, 100) <= 64 * 1002
