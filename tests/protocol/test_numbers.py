"""Numbers are written as they were read."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from trio_vmcp._protocol.json_cost import MOST_VALUES
from trio_vmcp._protocol.jsonrpc import MOST_AT_ONCE, Result, encode_result, parse_in_steps, parse_message
from trio_vmcp._protocol.numbers import SpelledFloat, encode_spelled, holds_spelled

LITERALS = ["1.50", "1e3", "1E-7", "-0", "-0.0", "0.10", "10E+2", "1e308", "2.0", "0", "-1", "12345678901234567890123"]


def parsed(literal: str, around: str = "") -> Any:
    """The number, read from a message with this text beside it."""
    text = f'{{"jsonrpc":"2.0","id":1,"result":{{"around":{json.dumps(around)},"number":{literal}}}}}'
    message = drained(text) if around else parse_message(text.encode(), max_depth=9)
    assert isinstance(message, Result)
    return message.result["number"]


def drained(text: str) -> Any:
    steps = parse_in_steps(text, max_depth=9, max_values=MOST_VALUES)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("around", ["", "2026-07-28 " * (MOST_AT_ONCE // 10)], ids=["short", "long"])
@pytest.mark.parametrize("literal", LITERALS)
def test_a_number_is_written_as_it_was_read(literal: str, around: str) -> None:
    """In a short text, and in one that is read in steps."""
    number = parsed(literal, around)
    assert json.loads(literal) == number
    written = encode_result(1, {"number": [number, {"a": number}]})
    assert f'{{"number":[{literal},{{"a":{literal}}}]}}'.encode() in written


@pytest.mark.parametrize("copied", [lambda it: pickle.loads(pickle.dumps(it)), copy.deepcopy, copy.copy])
def test_a_copy_keeps_the_spelling(copied: Any) -> None:
    """Also one that another process reads."""
    assert "1.50" == encode_spelled(copied(parsed("1.50")))


def test_numbers_that_python_writes_alike_stay_plain() -> None:
    """Only the others need a search and the slower encoder."""
    assert not holds_spelled([parsed("1.5"), parsed("7"), {"a": parsed("-0.0")}])
    assert type(parsed("1.5")) is float
    assert type(parsed("7")) is int
    assert type(parsed("1.50")) is SpelledFloat


def test_a_value_that_holds_itself_is_refused_after_such_a_number() -> None:
    """The search for numbers with a spelling, which begins with the first that was read, must not run for ever."""
    parsed("1.50")
    value: dict[str, Any] = {}
    value["a"] = [value]
    with pytest.raises(ValueError, match="holds itself"):
        encode_result(1, value)
