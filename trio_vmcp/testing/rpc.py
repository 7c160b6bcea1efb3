"""JSON-RPC as a scripted backend writes it."""

from __future__ import annotations

import json
from typing import Any

import attrs

from trio_vmcp.models import JSON

__all__ = ["LEGACY_VERSIONS", "MODERN_VERSION", "RpcError", "encode", "error_message", "result_message"]

LEGACY_VERSIONS = ("2025-03-26", "2025-06-18", "2025-11-25")
MODERN_VERSION = "2026-07-28"

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
RESOURCE_NOT_FOUND = -32002  # legacy; modern servers say INVALID_PARAMS
SESSION_ERROR = -32000  # what the official SDKs answer about a session id
HEADER_MISMATCH = -32020
MISSING_CAPABILITY = -32021
UNSUPPORTED_VERSION = -32022


@attrs.define(eq=False)
class RpcError(Exception):
    """Raised by a handler: the request is answered with this JSON-RPC error.

    Attributes:
        status: The HTTP status that carries it.
        headers: Besides the content type.
    """

    code: int
    message: str
    data: Any = None
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def encode(message: object) -> bytes:
    """As JSON; bytes are a message already, well-formed or not."""
    if isinstance(message, bytes):
        return message
    return json.dumps(message, separators=(",", ":")).encode()


def notification_message(method: str, params: JSON) -> JSON:
    return {"jsonrpc": "2.0", "method": method, "params": params}


def result_message(request_id: str | int | None, result: JSON) -> JSON:
    return {"jsonrpc": "2.0", "id": request_id, "result": result}


def error_message(request_id: str | int | None, error: RpcError) -> JSON:
    body: JSON = {"code": error.code, "message": error.message}
    if error.data is not None:
        body["data"] = error.data
    return {"jsonrpc": "2.0", "id": request_id, "error": body}
