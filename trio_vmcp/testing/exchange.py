"""The record of one HTTP request that a scripted backend received, for tests to look at."""

from __future__ import annotations

import json
from typing import Any, Literal, TypeAlias

import attrs
import httpx
import trio

from trio_vmcp.models import JSON

__all__ = ["Exchange", "Outcome"]

Outcome: TypeAlias = Literal["running", "answered", "cancelled", "disconnected", "cut", "aborted"]
"""
answered      the whole response was written
cancelled     the client took the request back, in the manner of its era
disconnected  the client went before the response; in the legacy era that cancels nothing: the request ran to its end
cut           a fault ended the response
aborted       the backend crashed, or its network was closed
"""


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


@attrs.define(eq=False)
class Exchange:
    """One HTTP request and its outcome.

    Attributes:
        message: The JSON in the body; None: the body is no JSON.
        received_at, ended_at: On Trio's clock.
        status: The HTTP status of the answer; None before there is one.
        connection: The number of the connection that it came by.
        response_bytes: Size of the raw response, its head included, before any fault of the wire.
    """

    verb: str
    target: str
    headers: httpx.Headers
    body: bytes = attrs.field(repr=False)
    received_at: float
    outcome: Outcome = "running"
    ended_at: float | None = None
    status: int | None = None
    response_bytes: int = 0
    connection: int = 0
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    message: Any = attrs.field(init=False)

    @message.default
    def _message_of_the_body(self) -> Any:
        return _parse(self.body)

    @property
    def method(self) -> str:
        """The JSON-RPC method, or "" for a response or another verb."""
        return str(self.message.get("method", "")) if isinstance(self.message, dict) else ""

    @property
    def request_id(self) -> str | int | None:
        """The JSON-RPC id; None for a notification."""
        value = self.message.get("id") if isinstance(self.message, dict) else None
        return value if isinstance(value, (str, int)) else None

    @property
    def params(self) -> JSON:
        params = self.message.get("params") if isinstance(self.message, dict) else None
        return params if isinstance(params, dict) else {}

    @property
    def meta(self) -> JSON:
        meta = self.params.get("_meta")
        return meta if isinstance(meta, dict) else {}

    @property
    def session_id(self) -> str | None:
        value: str | None = self.headers.get("mcp-session-id")
        return value
