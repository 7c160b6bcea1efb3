"""Which HTTP headers users may set, and what HTTP can carry.

Sources: RFC 9110 §5.5 (field values), §5.6.2 (token), §7.6.1 (hop by hop).
"""

from __future__ import annotations

import re

__all__ = ["header_name_problem", "header_value_problem", "is_reserved_header"]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

# Set by this library: a user's value would break the protocol or the connection.
_PROTOCOL = frozenset(
    [
        "accept",
        "accept-encoding",
        "content-length",
        "content-type",
        "host",
        "last-event-id",
        "mcp-method",
        "mcp-name",
        "mcp-protocol-version",
        "mcp-session-id",
    ]
)
_HOP_BY_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
_MIRRORED = "mcp-param-"  # the prefix of headers that are made from a tool's arguments
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f]")


def is_reserved_header(name: str) -> bool:
    """Whether a header belongs to the protocol or the connection, so that users may not set it."""
    name = name.lower()
    return name in _PROTOCOL or name in _HOP_BY_HOP or name.startswith(_MIRRORED)


def header_name_problem(name: object) -> str | None:
    """Why users may not set this header; None: they may. The text completes the sentence "header 'x' …"."""
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        return "has a name that is not an RFC 9110 token"
    if name.lower() in _HOP_BY_HOP:
        return "belongs to the connection, not to a request"
    return "is the protocol's own" if is_reserved_header(name) else None


def header_value_problem(value: object) -> str | None:
    """Why HTTP cannot carry this value (RFC 9110 §5.5); None: HTTP can.

    The text completes the sentence "header 'x' …" and does not show the value, which may be a credential.
    """
    if not isinstance(value, str):
        return f"has a value that is {type(value).__name__}, not str"
    if _CONTROL.search(value):
        return "has a value with a control character, such as CR, LF or NUL"
    if value != value.strip():  # HTTP strips blanks and tabs at the edges, and some receivers more
        return "has a value with a blank at its edge"
    return None if all(char <= "\xff" for char in value) else "has a value with a character beyond Latin-1"
