"""The errors of this library, as a client of the front gets them: JSON-RPC errors, and the HTTP status of each."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable
from typing import Any, TypeVar

import attrs

from trio_vmcp._nursery import describe_crash
from trio_vmcp._protocol.eras import MISSING_CAPABILITY
from trio_vmcp.errors import (
    BackendError,
    BackendRejected,
    CapabilityNotFound,
    InvalidSessionId,
    NoBackends,
    NotAuthorized,
    ResourceNotFound,
    SessionClosed,
    SessionLimitReached,
    SessionNotFound,
    StorageError,
    VmcpError,
)
from trio_vmcp.metadata import UnreadableMetadata

__all__ = [
    "INTERNAL_ERROR",
    "INVALID_PARAMS",
    "INVALID_REQUEST",
    "METHOD_NOT_FOUND",
    "PARSE_ERROR",
    "UNAVAILABLE",
    "Refusal",
    "crashed",
    "opened",
    "refusal_of",
]

_T = TypeVar("_T")
_logger = logging.getLogger("trio_vmcp.serve")

# JSON-RPC 2.0 §5.1
PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = -32700, -32600, -32601, -32602, -32603
RESOURCE_NOT_FOUND = -32002  # of the handshake era (2025-11-25, server/resources); the stateless era has -32602
UNAVAILABLE = -32000  # from the range that JSON-RPC 2.0 §5.1 leaves to implementations
STORAGE_DELAY = 1.0  # s, after which a request is worth sending again that the storage could not serve


@attrs.define(eq=False)
class Refusal(Exception):
    """What a request is answered with in place of a result.

    Attributes:
        code, message, data: Of the JSON-RPC error; `data` None: absent.
        status: Of HTTP.
        headers: Of HTTP, beside the usual ones.
    """

    code: int
    message: str
    data: Any = attrs.field(default=None, repr=False)
    status: int = attrs.field(default=200, kw_only=True)
    headers: tuple[tuple[bytes, bytes], ...] = attrs.field(default=(), kw_only=True)

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


def _retry_after(seconds: float) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"retry-after", b"%d" % max(1, math.ceil(seconds))),)


def refusal_of(error: Exception, *, is_modern: bool) -> Refusal:
    """The answer for an error that the manager or the session raised; for any other, `crashed`.

    Errors of a request are HTTP 200, since the request was understood; 4xx and 5xx are for requests that this server
    could not take, and for what the stateless era demands.
    """
    match error:
        case Refusal():
            return error
        case ResourceNotFound():
            code = INVALID_PARAMS if is_modern else RESOURCE_NOT_FOUND
            return Refusal(code, str(error), {"uri": error.name})
        case CapabilityNotFound():
            return Refusal(INVALID_PARAMS, str(error))
        case SessionNotFound() | InvalidSessionId() | UnreadableMetadata():  # a client then opens another one
            return Refusal(INVALID_REQUEST, "the session is unknown, expired or terminated", status=404)
        case SessionLimitReached():
            return Refusal(UNAVAILABLE, str(error), status=503, headers=_retry_after(error.retry_after))
        case StorageError():
            return Refusal(
                UNAVAILABLE,
                "the storage of sessions could not serve this request",
                status=503,
                headers=_retry_after(STORAGE_DELAY),
            )
        case NoBackends():
            return Refusal(UNAVAILABLE, str(error), status=503, headers=_retry_after(STORAGE_DELAY))
        case SessionClosed():
            return Refusal(UNAVAILABLE, str(error), {"mayHaveExecuted": error.may_have_executed})
        case NotAuthorized():
            return Refusal(INVALID_REQUEST, "the session is unknown, expired or terminated", status=404)
        case BackendRejected() if error.status is None:  # the backend's own words
            status = 400 if is_modern and error.code == MISSING_CAPABILITY else 200
            return Refusal(error.code, error.message, error.data, status=status)
        case BackendError():
            return Refusal(INTERNAL_ERROR, str(error), _data_of(error))
        case VmcpError():
            return Refusal(INTERNAL_ERROR, str(error))
        case ValueError() | TypeError():
            return Refusal(INVALID_PARAMS, str(error))
    return crashed(error)


async def opened(opening: Awaitable[_T]) -> _T:
    """A session of the manager. Opening one calls code of the user's.

    Raises:
        Refusal: That code crashed. Its ValueError is not about what the client sent.
        VmcpError: As the manager raises it.
    """
    try:
        return await opening
    except VmcpError:
        raise
    except Exception as error:  # noqa: BLE001  # a source of backends may raise anything
        raise crashed(error) from None


def crashed(error: Exception) -> Refusal:
    """The answer for an error that came out of code of the user's, such as a source of backends, or is a bug. Its text
    may hold secrets: neither the client nor the log gets it.
    """
    _logger.error("a request has crashed: %s", describe_crash(error))
    return Refusal(INTERNAL_ERROR, "an internal error", status=500)


def _data_of(error: BackendError) -> dict[str, Any]:
    data: dict[str, Any] = {
        "backend": error.backend_id,
        "kind": type(error).__name__,
        "mayHaveExecuted": error.may_have_executed,
    }
    if error.retry_after is not None:
        data["retryAfter"] = error.retry_after
    if isinstance(error, BackendRejected):
        data["httpStatus"] = error.status
    return data
