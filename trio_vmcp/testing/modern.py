"""The rules that a modern backend checks before it answers (MCP 2026-07-28, basic/transports/streamable-http), in the
specification's order: the first failure is reported.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Any

from trio_vmcp.models import JSON
from trio_vmcp.testing.exchange import Exchange
from trio_vmcp.testing.rpc import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    INVALID_REQUEST,
    MODERN_VERSION,
    PARSE_ERROR,
    UNSUPPORTED_VERSION,
    RpcError,
)

__all__ = ["VERSION_KEY", "check_modern", "check_parameters", "check_stamp"]

VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
NAMED_BY = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
SENTINEL = ("=?base64?", "?=")


def check_modern(exchange: Exchange, served: Sequence[str]) -> None:
    """Check a POST.

    Args:
        served: Every version of this backend, of both eras, for the answer to a client with another version.

    Raises:
        RpcError: With the HTTP status to answer.
    """
    accept = exchange.headers.get("accept", "")
    if not ("application/json" in accept and "text/event-stream" in accept) and "*/*" not in accept:
        raise RpcError(INVALID_REQUEST, "Accept must name application/json and text/event-stream", status=406)
    if exchange.message is None:
        raise RpcError(PARSE_ERROR, "the body is not JSON", status=400)
    if not isinstance(exchange.message, dict) or exchange.message.get("jsonrpc") != "2.0" or not exchange.method:
        raise RpcError(INVALID_REQUEST, "the body is not one JSON-RPC request", status=400)
    if exchange.method == "initialize":
        raise _unsupported(exchange.params.get("protocolVersion"), served)
    version = _header(exchange, "MCP-Protocol-Version")
    method = _header(exchange, "Mcp-Method")
    meta = _stamp(exchange)
    if version != meta[VERSION_KEY]:
        raise _mismatch("MCP-Protocol-Version", version, meta[VERSION_KEY])
    if method != exchange.method:
        raise _mismatch("Mcp-Method", method, exchange.method)
    if exchange.method in NAMED_BY:
        name = _decoded("Mcp-Name", _header(exchange, "Mcp-Name"))
        if name != exchange.params.get(NAMED_BY[exchange.method]):
            raise _mismatch("Mcp-Name", name, exchange.params.get(NAMED_BY[exchange.method]))
    if version != MODERN_VERSION:
        raise _unsupported(version, served)


def check_stamp(exchange: Exchange, served: Sequence[str]) -> None:
    """Check a message that comes without headers.

    Raises:
        RpcError: The answer.
    """
    if not isinstance(exchange.message, dict):
        raise RpcError(PARSE_ERROR, "the line is not a JSON object")
    if exchange.method == "initialize":
        raise _unsupported(exchange.params.get("protocolVersion"), served)
    if exchange.request_id is not None and _stamp(exchange)[VERSION_KEY] != MODERN_VERSION:
        raise _unsupported(exchange.meta[VERSION_KEY], served)


def _stamp(exchange: Exchange) -> JSON:
    meta = exchange.meta
    if VERSION_KEY not in meta or not isinstance(meta.get(CAPABILITIES_KEY), dict):
        raise RpcError(INVALID_PARAMS, f"_meta lacks {VERSION_KEY} or {CAPABILITIES_KEY}", status=400)
    return meta


def check_parameters(exchange: Exchange, schema: JSON) -> None:
    """Compare the `Mcp-Param-*` headers with the arguments that the tool's schema mirrors in them.

    Raises:
        RpcError: A header is missing, differs, or has no argument.
    """
    for name, path in _mirrored(schema, ()):
        value: Any = exchange.params.get("arguments") or {}
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        header = f"Mcp-Param-{name}"
        sent = exchange.headers.get(header)
        if value is None and sent is None:
            continue
        expected = str(value).lower() if isinstance(value, bool) else str(value)
        if sent is None or value is None or _decoded(header, sent) != expected:
            raise _mismatch(header, sent, value)


def _mirrored(schema: JSON, path: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for key, property_schema in (schema.get("properties") or {}).items():
        if "x-mcp-header" in property_schema:
            yield property_schema["x-mcp-header"], (*path, key)
        yield from _mirrored(property_schema, (*path, key))


def _header(exchange: Exchange, name: str) -> str:
    values = exchange.headers.get_list(name)
    if len(values) != 1:
        raise RpcError(HEADER_MISMATCH, f"{len(values)} {name} headers, not one", status=400)
    return values[0]


def _decoded(name: str, value: str) -> str:
    start, end = SENTINEL
    if not (value.startswith(start) and value.endswith(end)):
        return value
    try:
        return base64.b64decode(value[len(start) : -len(end)], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise RpcError(HEADER_MISMATCH, f"{name} is not Base64 of UTF-8", status=400) from None


def _mismatch(name: str, sent: object, expected: object) -> RpcError:
    return RpcError(HEADER_MISMATCH, f"{name} is {sent!r}, the body says {expected!r}", status=400)


def _unsupported(requested: object, served: Sequence[str]) -> RpcError:
    data = {"supported": list(served), "requested": requested}
    return RpcError(UNSUPPORTED_VERSION, f"unsupported protocol version: {requested!r}", data, status=400)
