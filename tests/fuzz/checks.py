"""What must hold for every input: a value or the documented error, and what the one promises about the other.

Each takes bytes and raises on a finding. Nothing here needs a fuzzer; `tests/test_fuzz_checks.py` runs the corpus.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from trio_vmcp import StorageError
from trio_vmcp._protocol.headers import (
    BadParamHeader,
    decode_header_value,
    encode_header_value,
    is_valid_session_id,
    param_headers,
    parse_media_type,
)
from trio_vmcp._protocol.jsonrpc import BadMessage, ErrorReply, Notification, Request, Result, parse_message
from trio_vmcp._protocol.sse import SseDecoder, SseEvent, SseLimit
from trio_vmcp._protocol.uri_template import compile_template
from trio_vmcp.metadata import metadata_from_json, metadata_to_json

MAX_DEPTH = 16
MAX_EVENT = 64  # bytes: small, so that a fuzzer finds the limit
LONGEST_PROBLEM = 100  # characters
LONGEST_NAME = 6 * 80  # of 80 characters, all of them escaped

_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _require_short(problem: ValueError, longest: int) -> None:
    """Its text fits into a log line, and nothing that hangs on it holds the input."""
    assert len(str(problem)) <= longest
    assert problem.__context__ is None


def message(data: bytes) -> None:
    """One kind of message, or a short `BadMessage` that holds on to nothing of the input."""
    try:
        parsed = parse_message(data, max_depth=MAX_DEPTH)
    except BadMessage as bad:
        _require_short(bad, LONGEST_PROBLEM)
        return
    raw = json.loads(data.removeprefix(b"\xef\xbb\xbf").decode())
    match parsed:
        case Request():
            assert (raw["id"], raw["method"], raw.get("params", {})) == (parsed.id, parsed.method, parsed.params)
            assert type(raw["id"]) is type(parsed.id)
        case Notification():
            assert "id" not in raw
            assert (raw["method"], raw.get("params", {})) == (parsed.method, parsed.params)
        case Result():
            assert "error" not in raw
            assert (raw["id"], raw["result"]) == (parsed.id, parsed.result)
        case ErrorReply():
            assert "result" not in raw
            assert (raw["error"]["code"], raw["error"]["message"]) == (parsed.code, parsed.message)


def _decoded(chunks: list[bytes]) -> tuple[list[SseEvent], str | None, SseDecoder]:
    decoder = SseDecoder(max_event_bytes=MAX_EVENT)
    events: list[SseEvent] = []
    problem = None
    for chunk in [*chunks, b""]:
        try:
            events += decoder.feed(chunk)
        except SseLimit as limit:
            problem = str(limit)
    return events, problem, decoder


def events(data: bytes) -> None:
    """The same events and the same limit, however the stream is cut; an id that a header can carry."""
    whole, problem, decoder = _decoded([data])
    bytewise, same_problem, other = _decoded([bytes([byte]) for byte in data])
    assert (whole, problem, decoder.last_event_id, decoder.retry) == (
        bytewise,
        same_problem,
        other.last_event_id,
        other.retry,
    )
    assert all(len(event.data) <= MAX_EVENT for event in whole)
    assert all(event.id is None or _HEADER_VALUE.fullmatch(event.id) for event in whole)
    assert decoder.retry is None or decoder.retry >= 0


def header(data: bytes) -> None:
    """Any text goes into a header value and comes out as it was; any header value is read or refused."""
    text = data.decode(errors="replace")
    encoded = encode_header_value(text)
    assert _HEADER_VALUE.fullmatch(encoded)
    assert encoded.strip() == encoded
    assert text == decode_header_value(encoded)
    assert is_valid_session_id(text) == bool(re.fullmatch(r"[\x21-\x7e]{1,256}", text))
    assert parse_media_type(text) == parse_media_type(text).strip().lower()
    try:
        decode_header_value(text)
    except ValueError:
        return


def headers_of_params(data: bytes) -> None:
    """A schema is refused with a short reason, or its annotations give headers that can be sent."""
    try:
        parsed = parse_message(b'{"jsonrpc":"2.0","method":"m","params":%s}' % data, max_depth=MAX_DEPTH)
    except BadMessage:
        return
    assert isinstance(parsed, Notification)
    schema, arguments = parsed.params.get("schema"), parsed.params.get("arguments")
    if not (isinstance(schema, dict) and isinstance(arguments, dict)):
        return
    try:
        found = param_headers(schema).encode(arguments)
    except BadParamHeader as bad:
        _require_short(bad, LONGEST_PROBLEM + 2 * LONGEST_NAME)
        return
    except UnicodeEncodeError:  # a lone surrogate among the arguments: the caller's mistake
        return
    names = [name.lower() for name, _ in found]
    assert len(set(names)) == len(names)
    assert all(_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value) for name, value in found)


def template(data: bytes) -> None:
    """Template and URI, a newline between them: an answer, or a ValueError about the template."""
    text, _, uri = data.decode(errors="replace").partition("\n")
    try:
        compiled = compile_template(text)
    except ValueError:
        return
    matches = compiled.matches(uri)
    if "{" not in text:
        assert (text == uri) == matches
    # Not where an expression may stand in the middle of a percent-encoded character: such a URI is read as one token.
    if "%" not in text:
        assert compiled.matches(re.sub(r"\{[^{}]*\}", "", text))  # every variable undefined


def metadata(data: bytes) -> None:
    """A row that writes itself the same way again, or a `StorageError`."""
    try:
        row = metadata_from_json(data)
    except StorageError:
        return
    assert row == metadata_from_json(metadata_to_json(row))


CHECKS: dict[str, Callable[[bytes], None]] = {
    "message": message,
    "events": events,
    "header": header,
    "param_headers": headers_of_params,
    "template": template,
    "metadata": metadata,
}
