"""The count of what a JSON text costs to parse."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_vmcp._protocol import json_cost
from trio_vmcp._protocol.json_cost import MOST_DIGITS, MOST_NUMBER_DIGITS, JsonCost, TooCostly
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
    text = '{"jsonrpc":"2.0","id":1,"result":{"a":"%s"}}' % ("x" * 200_000)
    monkeypatch.setattr(json_cost, "SLICE", 50_000)
    assert 5 + 1 == sum(1 for _ in parse_in_steps(text, max_depth=9, max_values=1000))
