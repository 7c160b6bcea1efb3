"""The rules that a legacy backend checks before it answers: headers, sessions, versions."""

from __future__ import annotations

from collections.abc import Container

from trio_vmcp.testing.exchange import Exchange
from trio_vmcp.testing.rpc import INVALID_REQUEST, LEGACY_VERSIONS, PARSE_ERROR, SESSION_ERROR, RpcError

__all__ = ["check_legacy", "check_session"]


def check_legacy(exchange: Exchange, sessions: Container[str] | None) -> None:
    """Check a POST, before its method is looked at.

    Args:
        sessions: The live sessions; None: this backend gives out no ids.

    Raises:
        RpcError: With the HTTP status to answer.
    """
    if exchange.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RpcError(INVALID_REQUEST, "Content-Type must be application/json", status=415)
    accept = exchange.headers.get("accept", "")
    if not ("application/json" in accept and "text/event-stream" in accept) and "*/*" not in accept:
        raise RpcError(INVALID_REQUEST, "Accept must name application/json and text/event-stream", status=406)
    if exchange.message is None:
        raise RpcError(PARSE_ERROR, "the body is not JSON", status=400)
    if not isinstance(exchange.message, dict) or exchange.message.get("jsonrpc") != "2.0":
        raise RpcError(INVALID_REQUEST, "the body is not one JSON-RPC object", status=400)
    if exchange.method == "initialize":
        return
    if sessions is not None:
        check_session(exchange, sessions)
    version = exchange.headers.get("mcp-protocol-version", LEGACY_VERSIONS[0])
    if version not in LEGACY_VERSIONS:
        raise RpcError(SESSION_ERROR, f"unsupported protocol version: {version!r}", status=400)


def check_session(exchange: Exchange, sessions: Container[str]) -> None:
    """
    Raises:
        RpcError: 400 for no session id, 404 for one that is not live.
    """
    if exchange.session_id is None:
        raise RpcError(SESSION_ERROR, "Bad Request: Mcp-Session-Id header is required", status=400)
    if exchange.session_id not in sessions:
        raise RpcError(SESSION_ERROR, "Session not found", status=404)
