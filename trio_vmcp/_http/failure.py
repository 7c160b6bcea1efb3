"""Why a request failed, without texts that may quote a header or a peer's bytes."""

from __future__ import annotations

import os
import ssl

from trio_vmcp._http.proxy import ProxyProblem
from trio_vmcp._http.response import BadResponse

__all__ = ["failure_text"]


def failure_text(exc: BaseException) -> str:
    """The operating system's text for the error if there is one, else the type of the error."""
    if isinstance(exc.__cause__, ProxyProblem):
        why = exc.__cause__.__cause__
        return str(exc.__cause__) if why is None else f"{exc.__cause__}: {failure_text(why)}"
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
