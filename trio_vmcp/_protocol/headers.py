"""HTTP headers: which arguments MCP 2026-07-28 mirrors into them, and which of a backend's are read. Sans-IO.

Sources: MCP 2026-07-28, basic/transports/streamable-http ("Custom Headers from Tool Parameters"), RFC 9110 §5.5 (field
values), §5.6.2 (token).
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias, TypeGuard

import attrs

from trio_vmcp.models import JSON

__all__ = [
    "MAX_SESSION_ID_LENGTH",
    "MOST_HEADER_NAME",
    "MOST_MIRRORED",
    "VALUES_AT_ONCE",
    "BadParamHeader",
    "ParamHeaders",
    "decode_header_value",
    "encode_header_value",
    "is_valid_session_id",
    "limited",
    "param_headers",
    "param_headers_in_steps",
    "parse_media_type",
    "parse_retry_after",
]

# MCP sets no limit, but the id is stored in the metadata and sent with every request. The same limit as for our own.
MOST_RETRY_AFTER = 3600.0  # s, that a backend can ask for
MAX_SESSION_ID_LENGTH = 256

_PREFIX, _SUFFIX = "=?base64?", "?="  # MCP compares them with case
_PLAIN = re.compile(r"(?:[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)?")  # RFC 9110 §5.5 strips blanks at the edges
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_ANNOTATION = "x-mcp-header"
VALUES_AT_ONCE = 2048  # of schemas, that are looked at in one step
# Of one tool. Servers take about a hundred headers in a request (Apache's LimitRequestFields is 100), and a tool with
# more of them could be called nowhere.
MOST_MIRRORED = 256
MOST_HEADER_NAME = 256  # characters
_MIRRORED_TYPES = ("string", "integer", "boolean")  # not "number": its text differs between languages

# The keywords of JSON Schema 2020-12 and draft 7 that hold schemas. Other keywords (const, enum, default, examples,
# unknown ones) hold data: an `x-mcp-header` in there is no annotation.
_SCHEMA_MAPS = frozenset(
    ["properties", "$defs", "definitions", "patternProperties", "dependentSchemas", "dependencies"]
)
_SCHEMAS = frozenset(
    [
        "items",
        "prefixItems",
        "additionalItems",
        "unevaluatedItems",
        "contains",
        "additionalProperties",
        "unevaluatedProperties",
        "propertyNames",
        "contentSchema",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
    ]
)


def encode_header_value(value: str | int | bool) -> str:
    """Write a value for `Mcp-Name` and `Mcp-Param-*`: unchanged if a header can carry it, else as Base64 of its UTF-8.

    Raises:
        ValueError: A lone surrogate, which has no UTF-8.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    looks_encoded = value.startswith(_PREFIX) and value.endswith(_SUFFIX)
    if _PLAIN.fullmatch(value) and not looks_encoded:
        return value
    return _PREFIX + base64.b64encode(value.encode()).decode("ascii") + _SUFFIX


def decode_header_value(text: str) -> str:
    """Read a value that `encode_header_value` wrote.

    Raises:
        ValueError: The value is marked as Base64, but is no Base64, or not of UTF-8.
    """
    if not (text.startswith(_PREFIX) and text.endswith(_SUFFIX) and len(text) >= len(_PREFIX + _SUFFIX)):
        return text
    return base64.b64decode(text[len(_PREFIX) : -len(_SUFFIX)], validate=True).decode()


class BadParamHeader(ValueError):
    """A tool's `x-mcp-header` breaks a rule, so the tool MUST NOT be offered.

    The text completes the sentence "its input schema …".
    """


@attrs.frozen
class ParamHeaders:
    """Which arguments of a tool go into which headers, by their path in the arguments."""

    paths: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def encode(self, arguments: JSON) -> list[tuple[str, str]]:
        """The headers for one call. An absent or null argument has no header; an empty string has an empty header.

        An argument of another type than its schema says is written by its own type; a float only if it is whole (5.0 is
        an integer in JSON Schema, and servers compare integers as numbers). Objects, arrays and other floats get no
        header. The server reports such arguments, since it validates them anyway.

        Raises:
            ValueError: An argument has a lone surrogate.
        """
        headers: list[tuple[str, str]] = []
        for name, path in self.paths:
            value: Any = arguments
            for key in path:
                value = value.get(key) if _is_object(value) else None
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, str | int):
                headers.append((f"Mcp-Param-{name}", encode_header_value(value)))
        return headers


def param_headers(input_schema: JSON) -> ParamHeaders:
    """Find the annotations of a tool's input schema.

    Raises:
        BadParamHeader: Names the property and the rule.
    """
    steps = param_headers_in_steps(input_schema)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: ParamHeaders = end.value
            return found


def param_headers_in_steps(
    input_schema: JSON, seen: Iterator[int] | None = None
) -> Generator[None, None, ParamHeaders]:
    """`param_headers`, with a step for some values each: one tool may have a hundred thousand.

    Args:
        seen: Counts the values; shared by tools that are looked through in a row, since many may have few each.
    """
    seen = itertools.count(1) if seen is None else seen
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    todo: list[Iterator[_Place | None]] = [iter([(input_schema, ())])]
    while todo:  # not recursion: a backend's schema may be nested deeper than Python recurses
        for place in todo[-1]:
            if next(seen) % VALUES_AT_ONCE == 0:
                yield
            if place is not None:
                if _ANNOTATION in place[0]:
                    _note_annotation(found, *place)
                todo.append(_inner_places(*place))
                break
        else:
            todo.pop()
    return ParamHeaders(tuple([found[name] for name in sorted(found)]))


# A schema inside the tool's, and the path of its value in the arguments; None: not reached by `properties` alone.
_Place: TypeAlias = tuple[JSON, tuple[str, ...] | None]


def _note_annotation(found: dict[str, tuple[str, tuple[str, ...]]], schema: JSON, path: tuple[str, ...] | None) -> None:
    name, path = _check_annotation(schema, path)
    if name.lower() in found:
        raise BadParamHeader(
            f"has two properties whose {_ANNOTATION} is {_shown(name)}, upper and lower case being the same"
        )
    if len(found) == MOST_MIRRORED:
        raise BadParamHeader(f"has more than {MOST_MIRRORED} properties with {_ANNOTATION}, the most that are sent")
    found[name.lower()] = (name, path)


def _check_annotation(schema: JSON, path: tuple[str, ...] | None) -> tuple[str, tuple[str, ...]]:
    if not path:
        raise BadParamHeader(f"has {_ANNOTATION} where `properties` alone do not lead")
    where, name, kind = _shown(".".join(path)), schema[_ANNOTATION], schema.get("type")
    if isinstance(name, str) and len(name) > MOST_HEADER_NAME:
        raise BadParamHeader(f"has an {_ANNOTATION} at {where} of over {MOST_HEADER_NAME} characters")
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        raise BadParamHeader(f"has an {_ANNOTATION} at {where} that is not an RFC 9110 token")
    if kind not in _MIRRORED_TYPES:
        raise BadParamHeader(f"has {_ANNOTATION} at {where}, whose type is none of {', '.join(_MIRRORED_TYPES)}")
    return name, path


def _inner_places(schema: JSON, path: tuple[str, ...] | None) -> Iterator[_Place | None]:
    """The schemas right within one, and None for each value in their place that is none."""
    for keyword, inner in schema.items():
        if keyword in _SCHEMA_MAPS and _is_object(inner):
            for name, child in inner.items():
                if not _is_object(child):  # `true` and `false` are schemas, too
                    yield None
                else:
                    yield child, (*path, name) if keyword == "properties" and path is not None else None
        elif keyword in _SCHEMAS:
            for child in inner if _is_array(inner) else [inner]:
                yield (child, None) if _is_object(child) else None
        else:
            yield None


def _is_array(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_object(value: object) -> TypeGuard[JSON]:
    return isinstance(value, dict)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")  # for a log line; a backend may send megabytes


def is_valid_session_id(value: str) -> bool:
    """Whether a backend's `Mcp-Session-Id` can be stored and sent back. MCP (2025-11-25, basic/transports, "Session
    Management") allows visible ASCII only; so two headers, joined by ", ", are refused.
    """
    return len(value) <= MAX_SESSION_ID_LENGTH and _VISIBLE_ASCII.fullmatch(value) is not None


def limited(retry_after: float | None) -> float:
    """s to wait for a `Retry-After`; 0: there was none."""
    return min(retry_after or 0.0, MOST_RETRY_AFTER)


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """The s of a `Retry-After` header, a number or a date (RFC 9110 §10.2.3); None: absent, past or unreadable."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:_MOST_DIGITS])
    try:
        at = parsedate_to_datetime(text)
        seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now.timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return seconds if seconds >= 0 else None


_MOST_DIGITS = 12


def parse_media_type(content_type: str | None) -> str:
    """`Text/HTML; charset=utf-8` → `text/html`; nothing → the empty string."""
    return (content_type or "").partition(";")[0].strip().lower()
