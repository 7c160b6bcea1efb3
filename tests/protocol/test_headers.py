"""Header values: any text arrives, no header can be forged, and only what MCP allows is mirrored."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_vmcp._protocol.headers import (
    MAX_SESSION_ID_LENGTH,
    MOST_HEADER_NAME,
    MOST_MIRRORED,
    VALUES_AT_ONCE,
    BadParamHeader,
    ParamHeaders,
    decode_header_value,
    encode_header_value,
    is_valid_session_id,
    param_headers,
    param_headers_in_steps,
    parse_media_type,
    parse_retry_after,
)
from trio_vmcp.models import JSON

PRINTABLE = set(map(chr, range(0x20, 0x7F)))
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(text=texts | st.text(st.sampled_from("=?base64 \t\r\néA")))
@example(text="=?base64?=")
@example(text="=?base64??=")
@example(text="=?base64?Zm9v?=")
@example(text=" edge")
@example(text="edge ")
@example(text="a\r\nX-Forged: 1")
def test_any_text_survives_a_header(text: str) -> None:
    """What is encoded is printable ASCII without blanks at its edges, and decodes to what it was."""
    value = encode_header_value(text)
    assert set(value) <= PRINTABLE
    assert value.strip() == value
    assert text == decode_header_value(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("us-west1", "us-west1"),
        ("two words", "two words"),
        ("", ""),
        ("Hello, 世界", "=?base64?SGVsbG8sIOS4lueVjA==?="),
        (" padded ", "=?base64?IHBhZGRlZCA=?="),
        ("line1\nline2", "=?base64?bGluZTEKbGluZTI=?="),
        ("a\tb", "=?base64?YQli?="),
        ("=?base64?literal?=", "=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="),
        (42, "42"),
        (-7, "-7"),
        (True, "true"),
        (False, "false"),
    ],
)
def test_values_are_encoded_as_in_the_specification(value: str | int | bool, expected: str) -> None:
    """The examples of MCP 2026-07-28, "Custom Headers from Tool Parameters", are encoded as printed there."""
    assert expected == encode_header_value(value)


@pytest.mark.parametrize("bad", ["=?base64?%%%?=", "=?base64?A?=", "=?base64?/w==?=", "=?base64?é?="])
def test_bad_base64_is_an_error(bad: str) -> None:
    """A value that is marked as Base64 but is none, or not of UTF-8, is a ValueError."""
    with pytest.raises(ValueError, match=r"."):
        decode_header_value(bad)


@pytest.mark.parametrize("plain", ["=?BASE64?Zm9v?=", "=?base64?Zm9v", "Zm9v?=", "=?base64?="])
def test_only_the_exact_marks_mean_base64(plain: str) -> None:
    """The marks are lower case and do not overlap; any other value is read as it is."""
    assert plain == decode_header_value(plain)


def test_a_lone_surrogate_has_no_header() -> None:
    """Text without a UTF-8 encoding is a ValueError."""
    with pytest.raises(ValueError, match="surrogates"):
        encode_header_value("\ud800")


SCHEMA: JSON = {
    "type": "object",
    "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "confirm": {"type": "boolean", "x-mcp-header": "Confirm"},
        "options": {"type": "object", "properties": {"limit": {"type": "integer", "x-mcp-header": "Limit"}}},
        "query": {"type": "string"},
    },
}


def test_annotated_arguments_are_mirrored() -> None:
    """Each annotated argument has its header, wherever `properties` lead to it."""
    headers = param_headers(SCHEMA)
    assert (
        ParamHeaders((("Confirm", ("confirm",)), ("Limit", ("options", "limit")), ("Region", ("region",)))) == headers
    )
    arguments = {"region": "é", "confirm": False, "options": {"limit": 3}, "query": "q"}
    expected = [("Mcp-Param-Confirm", "false"), ("Mcp-Param-Limit", "3"), ("Mcp-Param-Region", "=?base64?w6k=?=")]
    assert expected == headers.encode(arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, []),
        ({"region": None, "confirm": None, "options": {"limit": None}}, []),
        ({"region": ""}, [("Mcp-Param-Region", "")]),
        ({"options": None}, []),
        ({"options": [3]}, []),
        ({"options": {"limit": 5.0}}, [("Mcp-Param-Limit", "5")]),
        ({"options": {"limit": 5.5}}, []),
        ({"options": {"limit": "5"}}, [("Mcp-Param-Limit", "5")]),
        ({"region": ["a"], "confirm": {"a": 1}}, []),
    ],
    ids=["absent", "null", "empty", "null parent", "array parent", "whole float", "fraction", "other type", "no form"],
)
def test_what_has_no_form_has_no_header(arguments: JSON, expected: list[tuple[str, str]]) -> None:
    """Null and absent arguments have no header, an empty string has one; a wrong type is left to the server to
    refuse.
    """
    assert expected == param_headers(SCHEMA).encode(arguments)


odd_arguments = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.lists(texts)


@given(
    arguments=st.dictionaries(
        st.sampled_from(["region", "confirm", "options"]),
        odd_arguments | st.dictionaries(st.just("limit"), odd_arguments),
    )
)
def test_no_argument_forges_a_header(arguments: JSON) -> None:
    """Whatever a caller passes, header names are tokens and values are printable ASCII."""
    for name, value in param_headers(SCHEMA).encode(arguments):
        assert name in {"Mcp-Param-Region", "Mcp-Param-Confirm", "Mcp-Param-Limit"}
        assert set(value) <= PRINTABLE


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Sun, 06 Nov 1994 08:50:07 GMT", 30.0),
        ("Sun, 06 Nov 1994 08:49:07 GMT", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("soon", None),
        ("", None),
        (None, None),
        ("9" * 500, 999_999_999_999.0),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str | None, seconds: float | None) -> None:
    """RFC 9110 §10.2.3; what is absent, past or unreadable asks for nothing."""
    assert seconds == parse_retry_after(value, datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC))


ANNOTATED: JSON = {"type": "string", "x-mcp-header": "A"}


def one(**schema: Any) -> JSON:
    """The input schema of a tool with one property `p`, of this schema."""
    return {"type": "object", "properties": {"p": schema}}


@pytest.mark.parametrize(
    "name",
    ["", " ", "two words", "a:b", "a\r\nb", "é", "a/b", "a(b)", '"a"', "a\n", None, 1, True, ["a"], {}],
    ids=repr,
)
def test_a_name_that_is_no_token_is_refused(name: Any) -> None:
    """RFC 9110 allows only tokens as field names; the error names the property."""
    with pytest.raises(BadParamHeader, match="has an x-mcp-header at 'p' that is not an RFC 9110 token"):
        param_headers(one(**{"type": "string", "x-mcp-header": name}))


def test_every_token_is_taken() -> None:
    """All characters of RFC 9110's tchar are allowed."""
    name = "!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters
    assert ParamHeaders(((name, ("p",)),)) == param_headers(one(**{"type": "string", "x-mcp-header": name}))


@pytest.mark.parametrize("kind", ["number", "object", "array", "null", ["string"], ["string", "null"], None], ids=repr)
def test_a_type_that_has_no_form_is_refused(kind: Any) -> None:
    """Only string, integer and boolean have one agreed text."""
    with pytest.raises(BadParamHeader, match="at 'p', whose type is none of string, integer, boolean"):
        param_headers(one(**{"type": kind, "x-mcp-header": "A"}))


def test_an_untyped_property_is_refused() -> None:
    """A property without a type is refused, since its text would not be defined."""
    with pytest.raises(BadParamHeader, match="whose type is none of"):
        param_headers(one(**{"x-mcp-header": "A"}))


def test_names_that_differ_in_case_only_are_refused() -> None:
    """Header names have no case, so one of the two would overwrite the other."""
    other = {"type": "string", "x-mcp-header": "a"}
    with pytest.raises(BadParamHeader, match=r"two properties whose x-mcp-header is '[aA]'"):
        param_headers({"properties": {"p": ANNOTATED, "q": {"properties": {"r": other}}}})


LISTS = ["allOf", "anyOf", "oneOf", "prefixItems", "items"]
SINGLES = [
    "items", "additionalItems", "unevaluatedItems", "contains", "additionalProperties", "unevaluatedProperties",
    "propertyNames", "contentSchema", "not", "if", "then", "else",
]  # fmt: skip
MAPS = ["$defs", "definitions", "patternProperties", "dependentSchemas", "dependencies"]
UNREACHABLE = (
    [(keyword, [True, ANNOTATED]) for keyword in LISTS]
    + [(keyword, ANNOTATED) for keyword in SINGLES]
    + [(keyword, {"a": True, "b": ANNOTATED}) for keyword in MAPS]
)


@pytest.mark.parametrize(("keyword", "inner"), UNREACHABLE, ids=[keyword for keyword, _ in UNREACHABLE])
def test_what_properties_do_not_reach_is_refused(keyword: str, inner: Any) -> None:
    """An annotation under any keyword other than `properties` is refused, also with `properties` below it: it names no
    single argument.
    """
    for schema in (
        {keyword: inner},
        {"properties": {"p": {keyword: inner}}},
        {keyword: {"properties": {"q": ANNOTATED}}} if keyword not in MAPS else {keyword: {"a": {"not": ANNOTATED}}},
    ):
        with pytest.raises(BadParamHeader, match="where `properties` alone do not lead"):
            param_headers(schema)


def test_the_root_is_no_argument() -> None:
    """An annotation at the root of the schema is refused: all arguments together have no header."""
    with pytest.raises(BadParamHeader, match="where `properties` alone do not lead"):
        param_headers(ANNOTATED)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        one(const=ANNOTATED, default=ANNOTATED, enum=[ANNOTATED], examples=[ANNOTATED]),
        {"properties": {"x-mcp-header": {"type": "string"}}},
        {"properties": True, "$defs": 1, "allOf": None, "not": False, "dependencies": {"a": ["x-mcp-header"]}},
        {"required": ["x-mcp-header"], "properties": {"p": True, "q": None}},
    ],
    ids=["empty", "data", "property of that name", "malformed", "odd properties"],
)
def test_what_only_looks_like_an_annotation_is_none(schema: JSON) -> None:
    """In data, in names of properties and under malformed keywords, the word is no annotation, and the tool is kept."""
    assert ParamHeaders() == param_headers(schema)
    assert [] == param_headers(schema).encode({"x-mcp-header": "a", "p": "b"})


def test_depth_is_no_problem() -> None:
    """A schema may be nested deeper than Python recurses."""
    schema: JSON = ANNOTATED
    for _ in range(2_000):
        schema = {"properties": {"p": schema}}
    ((_, path),) = param_headers(schema).paths
    assert 2_000 == len(path)


def steps_of(schema: JSON, seen: Iterator[int] | None = None) -> int:
    return 1 + sum(1 for _ in param_headers_in_steps(schema, seen))


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {f"p{n}": {} for n in range(20_000)}},
        {"properties": {f"p{n}": True for n in range(20_000)}},
        {f"x{n}": 7 for n in range(20_000)},
        {"allOf": [{}] * 20_000},
        {"allOf": [7] * 20_000},
    ],
    ids=["schemas", "true", "unknown keywords", "list of schemas", "list of numbers"],
)
def test_a_large_schema_is_looked_through_in_steps(schema: JSON) -> None:
    """Whatever its values are."""
    assert 20_000 / VALUES_AT_ONCE <= steps_of(schema) <= 1 + 20_001 / VALUES_AT_ONCE


def test_short_schemas_in_a_row_share_their_steps() -> None:
    """Each of them alone is one step."""
    schema: JSON = {"properties": {f"p{n}": {} for n in range(99)}}
    seen = itertools.count(1)
    assert 1 == steps_of(schema)
    assert 200 + 20_000 // VALUES_AT_ONCE == sum(steps_of(schema, seen) for _ in range(200))


def mirrored(count: int, length: int) -> JSON:
    return {"properties": {f"p{n}": {"type": "string", "x-mcp-header": f"{n:0{length}}"} for n in range(count)}}


def test_more_headers_than_any_server_takes_are_refused() -> None:
    """So that what a call costs has a bound. The text names it."""
    assert MOST_MIRRORED == len(param_headers(mirrored(MOST_MIRRORED, 3)).paths)
    with pytest.raises(BadParamHeader, match="has more than 256 properties with x-mcp-header"):
        param_headers(mirrored(MOST_MIRRORED + 1, 3))


def test_the_name_of_a_header_has_a_bound() -> None:
    """A name of megabytes would be read in one step."""
    assert 1 == len(param_headers(mirrored(1, MOST_HEADER_NAME)).paths)
    with pytest.raises(BadParamHeader, match="x-mcp-header at 'p0' of over 256 characters"):
        param_headers(mirrored(1, MOST_HEADER_NAME + 1))


def test_long_names_are_not_quoted_whole() -> None:
    """The error shortens the names of properties, so that a backend cannot fill the log with one."""
    with pytest.raises(BadParamHeader) as caught:
        param_headers({"properties": {"p" * 10_000: {"x-mcp-header": "A"}}})
    assert 200 > len(str(caught.value))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("!~azAZ09", True),
        ("x" * MAX_SESSION_ID_LENGTH, True),
        ("x" * (MAX_SESSION_ID_LENGTH + 1), False),
        ("", False),
        ("one, two", False),
        ("a\n", False),
        ("a\x7f", False),
        ("é", False),
    ],
    ids=["visible", "longest", "too long", "empty", "two joined", "newline", "DEL", "not ASCII"],
)
def test_only_session_ids_that_can_be_sent_back_are_taken(value: str, expected: bool) -> None:
    """MCP allows visible ASCII; longer ids than our limit are refused, too."""
    assert expected == is_valid_session_id(value)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json", "application/json"),
        ("Application/JSON; charset=UTF-8", "application/json"),
        (" text/event-stream ;x", "text/event-stream"),
        ("", ""),
        (None, ""),
    ],
)
def test_media_types_are_compared_without_case_and_parameters(content_type: str | None, expected: str) -> None:
    """Case and parameters of a media type are ignored."""
    assert expected == parse_media_type(content_type)
