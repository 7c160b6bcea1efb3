"""JSON-RPC: a message is read whole or refused, and no error quotes it."""

from __future__ import annotations

import gc
import json
import math
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_vmcp._protocol import jsonrpc
from trio_vmcp._protocol.jsonrpc import (
    BadMessage,
    ErrorReply,
    Notification,
    Request,
    Result,
    encode_error,
    encode_notification,
    encode_request,
    encode_result,
    parse_message,
    same_id,
)
from trio_vmcp.models import JSON

DEPTH = 128

texts = st.text(st.characters(exclude_categories=["Cs"]))  # Cs: surrogates, which UTF-8 cannot encode
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=6,
)
json_objects = st.dictionaries(texts, json_values, max_size=4)
odd_values = st.sampled_from(
    [None, True, False, 0, 1, 1.0, -1, "", "1", "2.0", [], {}, [1], {"code": 1, "message": ""}]
)
odd_messages = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | odd_values,
        "id": odd_values,
        "method": odd_values,
        "params": odd_values,
        "result": odd_values,
        "error": odd_values | st.fixed_dictionaries({"code": odd_values, "message": odd_values, "data": odd_values}),
    },
)


def parse(text: str | bytes, max_depth: int = DEPTH) -> Result | ErrorReply | Request | Notification:
    return parse_message(text.encode() if isinstance(text, str) else text, max_depth=max_depth)


@given(request_id=st.integers(), method=texts, params=json_objects)
def test_what_is_sent_can_be_read(request_id: int, method: str, params: JSON) -> None:
    """Requests, notifications and results arrive as they were written."""
    assert Request(request_id, method, params) == parse(encode_request(request_id, method, params))
    assert Notification(method, params) == parse(encode_notification(method, params))
    assert Result(request_id, params) == parse(encode_result(request_id, params))
    assert ErrorReply("x", request_id, method, None) == parse(encode_error("x", request_id, method))


@given(data=st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_message_or_bad(data: bytes) -> None:
    """Any bytes are read or refused with BadMessage, and the error keeps none of them alive."""
    with pytest.raises(BadMessage) as caught:
        parse(data)
    assert caught.value.__context__ is None


@given(message=odd_messages)
def test_what_is_accepted_keeps_its_promises(message: JSON) -> None:
    """A message that is accepted has exactly the fields and types of its class, with the values sent."""
    try:
        parsed = parse(json.dumps(message))
    except BadMessage:
        return
    assert "2.0" == message["jsonrpc"]
    message = {name: value for name, value in message.items() if value is not None}
    assert ("method" in message) != ("result" in message or "error" in message)
    match parsed:
        case Result(id, result):
            assert type(id) in (int, str)
            assert (message["id"], message["result"]) == (id, result)
        case ErrorReply(id, code, text, data):
            assert (message.get("id"), type(message.get("id"))) == (id, type(id))
            assert type(code) is int
            assert {"data": None, **message["error"]} == {"code": code, "message": text, "data": data}
        case Request(id, method, params):
            assert type(id) in (int, str)
            assert (message["id"], message["method"], message.get("params", {})) == (id, method, params)
        case Notification(method, params):
            assert (message["method"], message.get("params", {})) == (method, params)
            assert "id" not in message


def test_the_wire_is_compact_utf_8() -> None:
    """One line without blanks; text is UTF-8, not escapes; absent params are absent."""
    assert '{"jsonrpc":"2.0","id":1,"method":"m","params":{"é":[1,2]}}'.encode() == encode_request(
        1, "m", {"é": [1, 2]}
    )
    assert b'{"jsonrpc":"2.0","id":1,"method":"m"}' == encode_request(1, "m", None)
    for method in ("m", 'a "b"\\', "é"):
        written = json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": {}}, ensure_ascii=False)
        assert json.loads(written) == json.loads(encode_request(7, method, {}))
    assert b'{"jsonrpc":"2.0","method":"m"}' == encode_notification("m", None)
    assert '{"jsonrpc":"2.0","method":"é"}'.encode() == encode_notification("é", None)
    assert b'{"jsonrpc":"2.0","id":"a","error":{"code":-1,"message":"no"}}' == encode_error("a", -1, "no")


def nested(depth: int) -> JSON:
    value: JSON = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def circular() -> JSON:
    value: JSON = {}
    value["a"] = value
    return value


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"a": {1}}, r"\.a is set$"),
        ({"a": [0.5, {"b c": b"x"}]}, r"\.a\[1\]\.b c is bytes$"),
        ({("a",): 1}, "has a key that is tuple, not str$"),
        ({"a": {"\ud800": 1}}, r"\.a has a key with a lone surrogate$"),
        ({"a": {1.5: 0, math.inf: 1}}, r"\.a has a key that is inf$"),
        ({"a": math.nan}, r"\.a is nan$"),
        ({"a": (-math.inf,)}, r"\.a\[0\] is -inf$"),
        ({"a": "\ud800"}, r"\.a holds a lone surrogate$"),
        ({"a" * 1000: {"b": {1}}}, r"a… is set$"),
        (circular(), "something in it holds itself$"),
        (nested(100_000), "nested too deeply"),
    ],
    ids=["type", "deep type", "key", "bad key", "endless key", "nan", "inf", "surrogate", "long", "circular", "deep"],
)
def test_params_that_are_not_json_are_the_callers_mistake(params: JSON, why: str) -> None:
    """The error is a ValueError that names the method, the place and the reason, and not a BackendError."""
    with pytest.raises(ValueError, match=rf"^params of 'tools/call' cannot be sent as JSON: .*{why}"):
        encode_request(1, "tools/call", params)
    with pytest.raises(ValueError, match=r"^params of 'notifications/x' cannot"):
        encode_notification("notifications/x", params)
    with pytest.raises(ValueError, match=r"^the result cannot"):
        encode_result(1, params)


def test_a_surrogate_in_an_error_text_is_refused() -> None:
    """An error text without a UTF-8 encoding is refused."""
    with pytest.raises(ValueError, match=r"^the error cannot"):
        encode_error(1, -1, "\udfff")


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_buffer_is_read(wrap: type[bytes] | type[bytearray] | type[memoryview]) -> None:
    """bytes, bytearray and memoryview are read alike."""
    assert Result(1, {}) == parse_message(wrap(b'{"jsonrpc":"2.0","id":1,"result":{}}'), max_depth=DEPTH)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('\ufeff{"jsonrpc":"2.0","id":1,"result":{}}', Result(1, {})),
        ('{"jsonrpc":"2.0","id":1,"id":2,"result":{}}', Result(2, {})),
        ('{"jsonrpc":"2.0","id":"1","result":{"a":"\\ud800"}}', Result("1", {"a": "\ud800"})),
        ('{"jsonrpc":"2.0","error":{"code":1,"message":"m"}}', ErrorReply(None, 1, "m", None)),
        ('{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"m","data":[]}}', ErrorReply(None, 1, "m", [])),
        ('{"jsonrpc":"2.0","id":"","method":"ping"}', Request("", "ping", {})),
        ('{"jsonrpc":"2.0","id":1,"result":{"a":1e300}}', Result(1, {"a": 1e300})),
        ('{"jsonrpc":"2.0","id":1,"result":{},"error":null,"method":null,"params":null}', Result(1, {})),
        (
            '{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"m","data":null},"result":null,"method":null}',
            ErrorReply(1, 1, "m", None),
        ),
        (
            '{"jsonrpc":"2.0","id":1,"method":"m","params":null,"result":null,"error":null}',
            Request(1, "m", {}),
        ),
        ('{"jsonrpc":"2.0","id":null,"method":"m","params":{},"result":null,"error":null}', Notification("m", {})),
    ],
    ids=[
        "byte order mark",
        "duplicate key",
        "lone surrogate",
        "no error id",
        "null error id",
        "empty id",
        "big float",
        "nulls in a result",
        "nulls in an error",
        "nulls in a request",
        "nulls in a notification",
    ],
)
def test_what_is_tolerated(text: str, expected: object) -> None:
    """Deviations that leave the meaning of a message clear do not cost the message."""
    assert expected == parse(text)


LONG = "x" * 65_536
RESULT = '{"jsonrpc":"2.0","id":1,"result":{"canary":%s}}'
BAD: dict[str, tuple[str | bytes, str]] = {
    "not UTF-8": (b'{"canary\xff"', "is not UTF-8 at byte 8"),
    "UTF-16": ('{"canary":1}'.encode("utf-16"), "is not UTF-8 at byte 0"),
    "empty": ("", "is not JSON at character 0"),
    "html": ("<html>canary", "is not JSON at character 0"),
    "truncated": ('{"canary":', "is not JSON at character 10"),
    "two": ('{"canary":1}{}', "is not JSON at character 12"),
    "control": ('{"canary":"\n"}', "is not JSON at character 11"),
    "NaN": (RESULT % "NaN", "holds NaN or Infinity"),
    "-Infinity": (RESULT % "-Infinity", "holds NaN or Infinity"),
    "1e999": (RESULT % "-1e999", "holds a number that no float can hold"),
    "5000 digits": (RESULT % ("7" * 5000), "holds an integer of too many digits"),
    "bottomless": ("[" * 100_000, "is nested deeper than the JSON parser goes"),
    "batch": ('[{"jsonrpc":"2.0","id":1,"result":{"canary":1}}]', "is an array, not"),
    "string": ('"canary"', "is a string, not"),
    "number": ("1234", "is a number, not"),
    "boolean": ("true", "is a boolean, not"),
    "null": ("null", "is null, not"),
    "no version": ('{"id":1,"result":{"canary":1}}', "not marked as JSON-RPC 2.0"),
    "version 1": ('{"jsonrpc":"1.0","id":1,"result":{"canary":1}}', "not marked as JSON-RPC 2.0"),
    "version number": ('{"jsonrpc":2.0,"id":1,"result":{"canary":1}}', "not marked as JSON-RPC 2.0"),
    "nothing": ('{"jsonrpc":"2.0","id":1,"canary":1}', "has neither of result and error, and no method"),
    "both": ('{"jsonrpc":"2.0","id":1,"result":{},"error":{},"canary":1}', "has both of result and error"),
    "call and reply": ('{"jsonrpc":"2.0","id":1,"method":"canary","result":{}}', "is a request and a response"),
    "call and error": ('{"jsonrpc":"2.0","id":1,"method":"canary","error":{}}', "is a request and a response"),
    "result array": ('{"jsonrpc":"2.0","id":1,"result":["canary"]}', "an array for a result, not an object"),
    "result null": ('{"jsonrpc":"2.0","id":1,"result":null}', "null for a result, not an object"),
    "both null": ('{"jsonrpc":"2.0","id":1,"result":null,"error":null}', "null for a result, not an object"),
    "error null": (
        '{"jsonrpc":"2.0","id":1,"error":null,"canary":1}',
        "has neither of result and error",
    ),
    "result without id": ('{"jsonrpc":"2.0","result":{"canary":1}}', "a result without an id"),
    "null id": ('{"jsonrpc":"2.0","id":null,"result":{"canary":1}}', "a result without an id"),
    "true id": ('{"jsonrpc":"2.0","id":true,"result":{"canary":1}}', "a boolean for an id"),
    "float id": ('{"jsonrpc":"2.0","id":1.0,"result":{"canary":1}}', "a number for an id"),
    "error string": ('{"jsonrpc":"2.0","id":1,"error":"canary"}', "a string for an error, not an object"),
    "error without code": (
        '{"jsonrpc":"2.0","id":1,"error":{"message":"canary"}}',
        "null for a code and a string for a message",
    ),
    "error code true": (
        '{"jsonrpc":"2.0","id":1,"error":{"code":true,"message":"canary"}}',
        "a boolean for a code and a string for a message",
    ),
    "error message": (
        '{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":["canary"]}}',
        "a number for a code and an array for a message",
    ),
    "method number": ('{"jsonrpc":"2.0","method":1}', "a number for a method"),
    "method surrogate": ('{"jsonrpc":"2.0","method":"canary\\ud800"}', "a string for a method, not encodable"),
    "method long": (f'{{"jsonrpc":"2.0","method":"canary{LONG}"}}', "a method of over 65536 characters"),
    "request id long": (f'{{"jsonrpc":"2.0","id":"canary{LONG}","method":"m"}}', "an id of over 65536 characters"),
    "id long": (f'{{"jsonrpc":"2.0","id":"canary{LONG}","result":{{}}}}', "an id of over 65536 characters"),
    "params array": ('{"jsonrpc":"2.0","method":"m","params":["canary"]}', "an array for params, not an object"),
    "request id true": ('{"jsonrpc":"2.0","id":true,"method":"canary"}', "a boolean for an id"),
    "request id surrogate": ('{"jsonrpc":"2.0","id":"canary\\udfff","method":"m"}', "a string for an id, not"),
}


@pytest.mark.parametrize(("text", "problem"), BAD.values(), ids=BAD.keys())
def test_what_is_refused(text: str | bytes, problem: str) -> None:
    """The error says what is wrong, quotes nothing received, and does not keep the message alive as its context."""
    with pytest.raises(BadMessage, match=problem) as caught:
        parse(text)
    assert "canary" not in str(caught.value)
    context = caught.value.__context__
    assert not isinstance(context, UnicodeDecodeError | json.JSONDecodeError)


@pytest.mark.parametrize("opening", ['{"a":', "["], ids=["objects", "arrays"])
def test_depth_counts_nesting_only(opening: str) -> None:
    """`max_depth` levels pass and one more does not; brackets side by side or inside strings are no levels."""
    closing = "}" if opening.startswith("{") else "]"
    inside = opening * 6 + "{}" + closing * 6
    assert isinstance(parse(RESULT % inside, max_depth=9), Result)
    with pytest.raises(BadMessage, match="deeper than 8 \\(max_json_depth\\)"):
        parse(RESULT % inside, max_depth=8)
    assert isinstance(parse(RESULT % '"[[[[[[[[{{{{{{{{"', max_depth=2), Result)
    assert isinstance(parse(RESULT % "[[],[],[],{},{},{}]", max_depth=4), Result)


@pytest.mark.parametrize("received", [True, 1.0, "1", None, 2, -1], ids=repr)
def test_an_id_is_the_same_in_type_and_value(received: Any) -> None:
    """Only the integer 1 is the id 1, neither True nor 1.0 nor "1"."""
    assert same_id(1, 1)
    assert not same_id(received, 1)


def test_zero_is_not_false() -> None:
    """False == 0 in Python, but false is no id in JSON-RPC (§4)."""
    assert same_id(0, 0)
    assert not same_id(False, 0)


def test_reprs_hold_no_payload() -> None:
    """Params, results and error data may be secret, so they are in no repr."""
    payload = {"token": "canary"}
    messages = [
        Result(1, payload),
        ErrorReply(1, 1, "m", payload),
        Request(1, "m", payload),
        Notification("m", payload),
    ]
    assert "canary" not in repr(messages)


def test_a_message_that_does_not_fit_in_memory_is_a_bad_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MemoryError while decoding becomes BadMessage: the memory is free again when the error is raised."""

    def out_of_memory(_: str) -> int:
        raise MemoryError

    monkeypatch.setattr(jsonrpc, "_decoder", json.JSONDecoder(parse_int=out_of_memory))
    with pytest.raises(jsonrpc.BadMessage, match="more memory"):
        jsonrpc.parse_message(b'{"jsonrpc":"2.0","id":1,"result":{}}', max_depth=128)


MANY = ",".join(["[]"] * 50_000)


@pytest.mark.parametrize("is_enabled", [True, False])
@pytest.mark.parametrize(
    "end",
    [
        pytest.param("]}}", id="good"),
        pytest.param("", id="cut off"),
        pytest.param(",NaN]}}", id="a constant"),
        pytest.param(",1e999]}}", id="infinity"),
        pytest.param("," + "7" * 5000 + "]}}", id="digits"),
        pytest.param("," + "[" * 20_000, id="depth"),
    ],
)
def test_the_garbage_collector_is_off_inside_the_parse_of_a_dense_text_alone(end: str, is_enabled: bool) -> None:
    """Also where the parse fails. An application that has switched it off finds it off."""
    text = f'{{"jsonrpc":"2.0","id":1,"result":{{"a":[{MANY}{end}'
    collections: list[str] = []
    looks_on = True

    def note(phase: str, info: object) -> None:
        if looks_on:
            collections.append(phase)

    gc.collect()
    gc.callbacks.append(note)
    (gc.enable if is_enabled else gc.disable)()
    try:
        with suppress(BadMessage):
            jsonrpc._loads(text, is_dense=True)
        looks_on = False
        assert is_enabled is gc.isenabled()
    finally:
        gc.callbacks.remove(note)
        gc.enable()
    assert len(collections) <= 4  # around the parse; in it, one for each 700 arrays


TOOL = {
    "name": "tool",
    "description": "d" * 100,
    "inputSchema": {"type": "object", "properties": {"q": {"type": "string"}}},
}


@pytest.mark.parametrize(
    ("entries", "collects"),
    [
        pytest.param(["[]"] * 50_000, False, id="arrays"),
        pytest.param([json.dumps([[]] * 1000)] * 150, False, id="arrays in steps"),
        pytest.param([json.dumps(TOOL)] * 2000, True, id="tools"),
        pytest.param([json.dumps(TOOL)] * 4000, True, id="tools in steps"),
    ],
)
def test_only_a_text_of_many_values_for_its_length_is_parsed_without_the_collector(
    entries: list[str], collects: bool
) -> None:
    """What a list of tools makes is kept, and is cheapest to look at while it is new."""
    text = f'{{"jsonrpc":"2.0","id":1,"result":{{"a":[{",".join(entries)}]}}}}'
    enabled: list[bool] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name == "raw_decode":
            enabled.append(gc.isenabled())

    profiling = sys.getprofile()
    sys.setprofile(note)
    try:
        jsonrpc.parse_text(text, max_depth=128, max_values=1e6)
    finally:
        sys.setprofile(profiling)
    assert {collects} == set(enabled)


def steps_of(text: str) -> int:
    return sum(1 for _ in jsonrpc.parse_in_steps(text, max_depth=128, max_values=100_000))


@pytest.mark.parametrize(
    ("value", "is_at_once"),
    [
        pytest.param(json.dumps("x" * 3_000_000), True, id="a string"),
        pytest.param(json.dumps("a line\n" * 40_000), True, id="lines"),
        pytest.param(json.dumps("a line\n" * 60_000 + "x" * 300_000), False, id="many lines"),
        pytest.param(json.dumps(["x" * 3000] * 900), True, id="strings"),
        pytest.param(json.dumps(["x" * 3000] * 1100), False, id="many strings"),
        pytest.param(json.dumps("x" * 10_500_000), False, id="a very long string"),
    ],
)
def test_a_few_long_strings_are_parsed_at_once(value: str, is_at_once: bool) -> None:
    """Within bounds that keep the step short: there is one for the count and one before the parse."""
    text = f'{{"jsonrpc":"2.0","id":1,"result":{{"a":{value}}}}}'
    assert is_at_once is (steps_of(text) == steps_of(f'{{"jsonrpc":"2.0","id":1,"result":{{"a":"{"x" * 70_000}"}}}}'))
