"""Errors of any HTTP transport become `BackendError`, without texts that may quote a header or a backend's bytes."""

from __future__ import annotations

import os
import ssl

import httpx

from trio_vmcp._http.proxy import ProxyProblem
from trio_vmcp._http.response import BadHead, BadResponse
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
            return BackendUnavailable(backend_id, f"could not be reached: {_kind(exc)}")
        case httpx.LocalProtocolError() | httpx.InvalidURL() | BadHead():
            return BackendUnavailable(
                backend_id, "has a url or a header that HTTP cannot carry", may_have_executed=written
            )
        case httpx.RemoteProtocolError() | httpx.DecodingError() if not str(exc).startswith(_EARLY_ENDS):
            return BackendProtocolError(backend_id, f"does not speak HTTP/1.1: {_kind(exc)}", may_have_executed=written)
        case httpx.RemoteProtocolError() | httpx.DecodingError():
            detail = "closed the connection before its answer was whole"
        case _:  # a user's transport may raise anything
            detail = f"lost its connection: {_kind(exc)}"
    return BackendUnavailable(backend_id, detail, may_have_executed=written)


def cause_of(exc: Exception) -> Exception | None:
    """The `__cause__` of a translated error; None for errors that quote a header, which may be a credential."""
    return None if isinstance(exc, httpx.LocalProtocolError | BadHead) else exc


def _kind(exc: BaseException) -> str:
    """The operating system's text for the error if there is one, else the type of the error."""
    if isinstance(exc.__cause__, ProxyProblem):
        why = exc.__cause__.__cause__
        return str(exc.__cause__) if why is None else f"{exc.__cause__}: {_kind(why)}"
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, BaseExceptionGroup):  # one attempt for each address: report the first
            cause = cause.exceptions[0]
        if isinstance(cause, BadResponse):
            return str(cause)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is refused: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):  # its errno is OpenSSL's, which `os.strerror` does not know
            return f"TLS failed: {(cause.reason or type(cause).__name__).replace('_', ' ').lower()}"
        if isinstance(cause, UnicodeError):
            return "its host is no name that DNS can have"
        if isinstance(cause, OSError) and cause.errno:
            # Not `cause.strerror`, to which Trio adds the address. Codes of the resolver (EAI_…) are unknown to `os`.
            return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)
        cause = cause.__cause__ or cause.__context__
    return type(exc).__name__
