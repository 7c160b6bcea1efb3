"""Errors of any HTTP transport become `BackendError`, without texts that may quote a header or a backend's bytes."""

from __future__ import annotations

import httpx

from trio_vmcp._http.failure import failure_text
from trio_vmcp._http.response import BadHead
from trio_vmcp.errors import BackendError, BackendProtocolError, BackendUnavailable

__all__ = ["cause_of", "translated"]

_EARLY_ENDS = ("Server disconnected", "peer closed", "peer unexpectedly closed")  # in our words, httpcore's and h11's


def translated(exc: Exception, backend_id: str, *, written: bool) -> BackendError:
    """The `BackendError` for an error of a transport.

    Args:
        written: Some of the request may have been sent.
    """
    match exc:
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.ProxyError() | httpx.UnsupportedProtocol():
            return BackendUnavailable(backend_id, f"could not be reached: {failure_text(exc)}")
        case httpx.LocalProtocolError() | httpx.InvalidURL() | BadHead():
            return BackendUnavailable(
                backend_id, "has a url or a header that HTTP cannot carry", may_have_executed=written
            )
        case httpx.RemoteProtocolError() | httpx.DecodingError() if not str(exc).startswith(_EARLY_ENDS):
            return BackendProtocolError(
                backend_id, f"does not speak HTTP/1.1: {failure_text(exc)}", may_have_executed=written
            )
        case httpx.RemoteProtocolError() | httpx.DecodingError():
            detail = "closed the connection before its answer was whole"
        case _:  # a user's transport may raise anything
            detail = f"lost its connection: {failure_text(exc)}"
    return BackendUnavailable(backend_id, detail, may_have_executed=written)


def cause_of(exc: Exception) -> Exception | None:
    """The `__cause__` of a translated error; None for errors that quote a header, which may be a credential."""
    return None if isinstance(exc, httpx.LocalProtocolError | BadHead) else exc
