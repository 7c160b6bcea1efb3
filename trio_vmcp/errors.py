"""Everything trio_vmcp raises on purpose.

VmcpError
├── SessionClosed             the session is draining or gone, or closed under this call
├── SessionNotFound           no such session, or not yours: the two look alike on purpose
├── SessionExists             the id is taken, or was terminated a short while ago
├── InvalidSessionId          not 1-256 visible ASCII characters
├── SessionLimitReached       more sessions than the cap; try again in `retry_after` s
├── NoBackends                fewer than min_backends connected
├── CapabilityNotFound        the routing table has no such name
│   ├── ToolNotFound
│   ├── ResourceNotFound
│   └── PromptNotFound
├── NotAuthorized             the session is not this caller's
│   ├── NilCaller             a bound session was called without a caller
│   └── UnauthorizedCaller    another identity, or any identity on an anonymous session
├── StorageError              the storage is away; may be retried. Or the row is unreadable: metadata.UnreadableMetadata
│   └── MetadataConflict      another writer changed the row first
└── BackendError              one backend failed; the others carry on
    ├── BackendUnavailable    the backend is away: not connected, or the connection broke
    ├── BackendTimeout        no answer in time
    ├── BackendProtocolError  the answer was not MCP
    ├── BackendRejected       the answer was a JSON-RPC error, or a refusal over HTTP
    ├── BackendUnauthorized   the backend wants other credentials (HTTP 401 or 403)
    └── MessageTooLarge       the answer is over a limit of ours

`may_have_executed` is True whenever a request was written and no answer proves that it did not run.
Session ids are bearer secrets: an error carries the id as a field, its text shows a short tag.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:  # errors sit below models; nothing structures an exception, so no name is needed at run time
    from trio_vmcp.models import BackendFailure

__all__ = [
    "BackendError",
    "BackendProtocolError",
    "BackendRejected",
    "BackendTimeout",
    "BackendUnauthorized",
    "BackendUnavailable",
    "CapabilityNotFound",
    "InvalidSessionId",
    "MessageTooLarge",
    "MetadataConflict",
    "NilCaller",
    "NoBackends",
    "NotAuthorized",
    "PromptNotFound",
    "ResourceNotFound",
    "SessionClosed",
    "SessionExists",
    "SessionLimitReached",
    "SessionNotFound",
    "StorageError",
    "ToolNotFound",
    "UnauthorizedCaller",
    "VmcpError",
]

_TAG_KEY = secrets.token_bytes(16)
_SHOWN_NAMES = 5


def session_tag(session_id: str) -> str:
    """A short name for a session, fit for logs: a keyed digest, from which the id cannot be found."""
    data = session_id.encode("utf-8", "surrogatepass")
    return "session #" + hashlib.blake2s(data, key=_TAG_KEY, digest_size=4).hexdigest()


class VmcpError(Exception):
    """The root of every error that this library raises on purpose. Can be pickled and copied."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # Not the one of BaseException, which passes `args` to a constructor that takes some of them by keyword only.
        kind = type(self)
        names = [field.name for field in attrs.fields(kind)] if attrs.has(kind) else []
        return _revive, (kind, self.args, {name: getattr(self, name) for name in names} | vars(self))


def _revive(kind: type[VmcpError], args: tuple[Any, ...], fields: dict[str, Any]) -> VmcpError:
    error = kind.__new__(kind, *args)
    error.args = args
    for name, value in fields.items():
        object.__setattr__(error, name, value)
    return error


@attrs.define(eq=False)
class SessionClosed(VmcpError):
    """The session admits no new call, or was closed under a running one.

    Attributes:
        detail: What happened, with the limit that ran out.
        may_have_executed: The call had been written to its backend, and may have had its effect.
    """

    detail: str
    may_have_executed: bool = attrs.field(default=False, kw_only=True)

    def __str__(self) -> str:
        return self.detail


@attrs.define(eq=False)
class SessionNotFound(VmcpError):
    """No session of this id, or one that is bound to another identity."""

    session_id: str = attrs.field(repr=False)

    def __str__(self) -> str:
        return f"{session_tag(self.session_id)} is unknown, expired or terminated"


@attrs.define(eq=False)
class SessionExists(VmcpError):
    """The id is in use, or was in use by a session terminated within the storage's TTL."""

    session_id: str = attrs.field(repr=False)

    def __str__(self) -> str:
        return f"{session_tag(self.session_id)} already exists, or was terminated within the storage's ttl"


@attrs.define(eq=False)
class InvalidSessionId(VmcpError):
    """A session id that is not 1-256 characters of 0x21-0x7E."""

    detail: str

    def __str__(self) -> str:
        return self.detail


@attrs.define(eq=False)
class SessionLimitReached(VmcpError):
    """A cap on sessions is reached; nothing was opened or stored, and no backend was contacted.

    Raised by code that limits how many sessions there are; a factory has no such limit.

    Attributes:
        retry_after: s, over 0, after which asking again is worth it.
    """

    retry_after: float

    def __str__(self) -> str:
        return f"no room for another session; try again in {self.retry_after:g} s"


@attrs.define(eq=False)
class NoBackends(VmcpError):
    """Fewer backends than `min_backends` connected; carries every failure."""

    failures: Sequence[BackendFailure]
    connected: int = 0
    wanted: int = 1

    def __str__(self) -> str:
        why = "; ".join(f"{f.backend_id!r}: {f.reason.name}, {f.detail}" for f in self.failures)
        return f"{self.connected} backends connected, {self.wanted} wanted (min_backends): {why or 'none configured'}"


@attrs.define(eq=False)
class CapabilityNotFound(VmcpError):
    """The routing table has no such name; no backend was contacted.

    Attributes:
        name: The name or URI that was asked for.
        closest: Advertised names that look like it, best first.
    """

    name: str
    closest: Sequence[str] = ()

    kind = "capability"

    def __str__(self) -> str:
        hint = f"; closest: {', '.join(map(repr, self.closest[:_SHOWN_NAMES]))}" if self.closest else ""
        return f"no {self.kind} {self.name!r} in this session{hint}"


class ToolNotFound(CapabilityNotFound):
    """No tool of this advertised name."""

    kind = "tool"


class ResourceNotFound(CapabilityNotFound):
    """No resource of this URI, and no template that matches it."""

    kind = "resource"


class PromptNotFound(CapabilityNotFound):
    """No prompt of this advertised name."""

    kind = "prompt"


class NotAuthorized(VmcpError):
    """The session is not this caller's."""


class NilCaller(NotAuthorized):
    """A session bound to an identity was called without `caller=`."""

    def __str__(self) -> str:
        return "this session is bound to an identity; pass caller= or use as_caller()"


class UnauthorizedCaller(NotAuthorized):
    """A caller other than the one this session is bound to, or any caller on an anonymous session."""

    def __str__(self) -> str:
        return "this caller is not the one that the session is bound to"


class StorageError(VmcpError):
    """The storage did not do what it was asked to. Retrying later is safe."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class MetadataConflict(StorageError):
    """The row is not at the expected version: another writer changed it first."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"the metadata of {session_tag(session_id)} was changed by another writer")
        self.session_id = session_id


@attrs.define(eq=False)
class BackendError(VmcpError):
    """One backend failed.

    Attributes:
        backend_id: `Backend.id` of that backend.
        detail: Completes the sentence "backend 'x' …".
        may_have_executed: The request was written and no answer proves that it did not run.
        retry_after: s, after which the backend asks to be tried again (`Retry-After`, RFC 9110 §10.2.3); None: it did
            not ask.
        in_credentials: The credentials failed (their issuer was not reached, say), so the backend was not asked.
    """

    backend_id: str
    detail: str
    may_have_executed: bool = attrs.field(default=False, kw_only=True)
    retry_after: float | None = attrs.field(default=None, kw_only=True)
    in_credentials: bool = attrs.field(default=False, init=False, repr=False)

    def __str__(self) -> str:
        return f"backend {self.backend_id!r} {self.detail}"


class BackendUnavailable(BackendError):
    """The backend is not connected, or its connection broke before the answer was whole.

    After five connection failures in a row calls fail with this at once (the circuit is open). After a delay, from
    `reconnect_delay` to `reconnect_max_delay`, one call at a time is let through as a trial; a success closes the
    circuit.
    """


class BackendTimeout(BackendError):
    """No answer within the deadline. If `may_have_executed`, the call may still have its effect."""


class BackendProtocolError(BackendError):
    """The backend answered, but not with MCP."""


@attrs.define(eq=False)
class BackendRejected(BackendError):
    """The backend refused the request.

    Attributes:
        code: The JSON-RPC error code; for a refusal over HTTP alone, the HTTP status.
        message: The backend's own words: untrusted text.
        data: The `data` of the JSON-RPC error, as received.
        status: The HTTP status of a refusal over HTTP alone; None: a JSON-RPC error, whose code may be any integer.
    """

    code: int
    message: str = attrs.field(repr=False)  # it may repeat secrets of the request, as `data` may
    data: Any = attrs.field(default=None, repr=False)
    status: int | None = attrs.field(default=None, kw_only=True)


@attrs.define(eq=False)
class BackendUnauthorized(BackendError):
    """The backend wants other credentials (HTTP 401 or 403).

    After a 401, `auth` was asked once more and the request sent once more, if that gave other credentials.

    Attributes:
        status: The HTTP status; None: the credentials failed before there was an answer.
        challenge: `WWW-Authenticate` as received (RFC 9110 §11.6.1), several joined by ", "; None: absent.
    """

    status: int | None = attrs.field(default=None, kw_only=True)
    challenge: str | None = attrs.field(default=None, kw_only=True, repr=False)


class MessageTooLarge(BackendError):
    """What the backend sent is over `max_message_bytes`, `max_pages` or `max_items_per_backend`."""
