"""What users write and read: backends, capabilities, results, failures. Frozen, and no I/O.

Capabilities and results are views on the JSON as received. `raw` has all of it, unknown fields included; the properties
only name the parts that MCP names. Nothing is dropped, invented or validated again on the way through.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import attrs

__all__ = [
    "JSON",
    "Backend",
    "BackendFailure",
    "BackendState",
    "BackendStatus",
    "CompletionResult",
    "FailureReason",
    "Latency",
    "NameConflict",
    "Prompt",
    "PromptResult",
    "Resource",
    "ResourceResult",
    "ResourceTemplate",
    "SessionChange",
    "SessionState",
    "Tool",
    "ToolResult",
]

JSON: TypeAlias = dict[str, Any]  # a JSON object as `json.loads` gives it

Transport: TypeAlias = Literal["streamable-http", "sse", "stdio"]
Era: TypeAlias = Literal["auto", "legacy", "modern"]

STATE_LOST = "trio-vmcp/backend-state-lost"  # a key of `_meta` (MCP: prefix/name)

_TRANSPORTS = ("streamable-http", "sse", "stdio")
_ERAS = ("auto", "legacy", "modern")
_BACKEND_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)


def _read_only(mapping: Mapping[str, str] | None) -> Mapping[str, str]:
    return MappingProxyType(dict(mapping or {}))


def _in_order(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(_not_one_str(values))


def _name_set(names: Iterable[str]) -> frozenset[str]:
    return frozenset(_not_one_str(names))


def _optional_name_set(names: Iterable[str] | None) -> frozenset[str] | None:
    return None if names is None else _name_set(names)


def _not_one_str(values: Iterable[str]) -> Iterable[str]:
    if isinstance(values, str):  # which would be taken for its letters: deny_tools="wipe" would deny nothing
        raise ValueError(f"{values!r} is one str where several are wanted (args, allow_tools, deny_tools)")
    return values


def _names_only(mapping: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{name!r}: …" for name in mapping) + "}"


def public_url(url: str) -> str:
    """The url without userinfo, query and fragment, which may hold secrets."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "<unreadable url>"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _public_url_repr(url: str) -> str:
    return repr(public_url(url))


@attrs.frozen
class Backend:
    """One MCP server, as the user configures it.

    Attributes:
        id: 1-64 of `A-Za-z0-9_.-`, starting with a letter or digit; prefixes advertised names by default.
        url: The full endpoint, for "streamable-http" and "sse".
        transport: How bytes get there.
        headers: Sent with every HTTP request. Values are secrets: the repr shows names only.
        command, args, env, cwd: The child process, for "stdio".
        request_timeout: s, the whole exchange of one call; None: the factory's.
        era: "auto" probes; the others pin the protocol era and save the probe.
        listen: Hold a stream open for changes, where the backend declares that it tells of any, and for what it asks
            outside of calls. Without it only what comes along with the answers to calls is heard.
        allow_tools: Exact backend names; None allows all. What it does not name is not advertised.
        deny_tools: Exact backend names; deny wins over allow.

    Raises:
        ValueError: Names the entry and the value.
    """

    id: str
    url: str = attrs.field(default="", repr=_public_url_repr)
    transport: Transport = "streamable-http"
    headers: Mapping[str, str] = attrs.field(default=None, converter=_read_only, repr=_names_only, hash=False)
    command: str | None = None
    args: tuple[str, ...] = attrs.field(default=(), converter=_in_order, repr=False)  # command lines hold tokens, too
    env: Mapping[str, str] = attrs.field(default=None, converter=_read_only, repr=_names_only, hash=False)
    cwd: str | None = None
    request_timeout: float | None = None
    era: Era = "auto"
    listen: bool = True
    allow_tools: frozenset[str] | None = attrs.field(default=None, converter=_optional_name_set)
    deny_tools: frozenset[str] = attrs.field(default=frozenset(), converter=_name_set)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.id, str) or not _BACKEND_ID.fullmatch(self.id):
            raise ValueError(f"backend id {self.id!r} is not 1-64 of A-Za-z0-9_.- starting with a letter or digit")
        if self.transport not in _TRANSPORTS:
            raise ValueError(f"backend {self.id!r}: unknown transport {self.transport!r}; one of {_TRANSPORTS}")
        if self.era not in _ERAS:
            raise ValueError(f"backend {self.id!r}: unknown era {self.era!r}; one of {_ERAS}")
        if self.transport == "stdio":
            if not self.command:
                raise ValueError(f"backend {self.id!r}: transport 'stdio' needs a command")
        else:
            self._check_url()
        if self.request_timeout is not None and not self.request_timeout >= 0:
            raise ValueError(f"backend {self.id!r}: request_timeout {self.request_timeout!r} is not 0 s or more")

    def _check_url(self) -> None:
        if not self.url:
            raise ValueError(f"backend {self.id!r}: transport {self.transport!r} needs a url")
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(
                f"backend {self.id!r}: url {public_url(self.url)!r} is not http:// or https:// with a host"
            )


class FailureReason(enum.Enum):
    """Why a backend is missing from a session."""

    PENDING = "pending"  # still connecting; it joins when it is ready
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    UNAUTHORIZED = "unauthorized"
    PROTOCOL = "protocol"  # it answers, but not with MCP
    REJECTED = "rejected"
    LIMIT = "limit"  # over max_pages, max_items_per_backend or max_message_bytes


@attrs.frozen
class BackendFailure:
    """Who is missing and why.

    Attributes:
        detail: Completes the sentence "backend 'x' …".
        elapsed: s since this backend began to connect; 0 while it still waits for its turn.
    """

    backend_id: str
    reason: FailureReason
    detail: str
    elapsed: float


class BackendState(enum.Enum):
    """How one backend of a session is."""

    CONNECTING = "connecting"  # for the first time
    READY = "ready"
    DEGRADED = "degraded"  # away or failing; it is tried again in the background
    RECOVERING = "recovering"  # being connected anew
    REMOVED = "removed"


@attrs.frozen
class Latency:
    """Percentiles of the latest calls that were answered, s from admission to answer."""

    p50: float
    p90: float
    p99: float


@attrs.frozen
class BackendStatus:
    """How one backend of a session is, without a probe: from the calls that it had.

    Attributes:
        since: When it came into this state, UTC.
        era, protocol_version: Of the connection, or of the last one; None before the first.
        last_failure: The latest, also when it is ready again; None: none so far.
        in_flight: Calls that it is at.
        calls: Calls that ended, however they ended; `errors` of them with a `BackendError`.
        latency: None before the first answer.
    """

    backend_id: str
    state: BackendState
    since: datetime
    era: Literal["legacy", "modern"] | None
    protocol_version: str | None
    last_failure: BackendFailure | None
    in_flight: int
    calls: int
    errors: int
    latency: Latency | None


@attrs.frozen
class NameConflict:
    """A name that several backends compose to, or that is taken.

    Attributes:
        kind: "tool", "prompt" or "resource".
        name: The advertised name or URI.
        backend_ids: Everybody who offers it, in configured order.
        owner: Who has it; None when nobody is advertised under it.
    """

    kind: Literal["tool", "prompt", "resource"]
    name: str
    backend_ids: tuple[str, ...]
    owner: str | None


class SessionState(enum.Enum):
    """OPEN admits calls, DRAINING lets the admitted ones end, CLOSED has let everything go."""

    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


@attrs.frozen
class SessionChange:
    """Something about a live session changed.

    Attributes:
        kind: "tools", "resources" or "prompts" (the list is new), "backend" (it joined or left) or
            "resource_updated" (`uri` has new content).
    """

    kind: Literal["tools", "resources", "prompts", "backend", "resource_updated"]
    backend_id: str
    uri: str | None = None


class _View:
    """The received JSON object, and what every MCP object may have."""

    __slots__ = ()
    raw: JSON

    @property
    def meta(self) -> JSON:
        """`_meta`, or {}."""
        return self.raw.get("_meta") or {}


class _Definition(_View):
    """What every listed capability may have."""

    __slots__ = ()

    @property
    def title(self) -> str | None:
        return self.raw.get("title")

    @property
    def description(self) -> str | None:
        return self.raw.get("description")


class _Located(_Definition):
    """What resources and their templates have besides: a name of the backend's own, which need not be unique."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return self.raw.get("name") or ""

    @property
    def mime_type(self) -> str | None:
        return self.raw.get("mimeType")

    @property
    def annotations(self) -> JSON:
        return self.raw.get("annotations") or {}


@attrs.frozen
class Tool(_Definition):
    """A tool under its advertised name; `raw` is the backend's definition, its own `name` included."""

    name: str
    backend_id: str
    backend_name: str
    raw: JSON = attrs.field(repr=False, hash=False)

    @property
    def input_schema(self) -> JSON:
        return self.raw.get("inputSchema") or {}

    @property
    def output_schema(self) -> JSON | None:
        return self.raw.get("outputSchema")

    @property
    def annotations(self) -> JSON:
        return self.raw.get("annotations") or {}


@attrs.frozen
class Resource(_Located):
    """A resource, keyed by its URI; `name` is the backend's own and need not be unique."""

    uri: str
    backend_id: str
    raw: JSON = attrs.field(repr=False, hash=False)

    @property
    def size(self) -> int | None:
        """Bytes, as the backend declares them."""
        return self.raw.get("size")


@attrs.frozen
class ResourceTemplate(_Located):
    """A family of resources, keyed by its RFC 6570 template."""

    uri_template: str
    backend_id: str
    raw: JSON = attrs.field(repr=False, hash=False)


@attrs.frozen
class Prompt(_Definition):
    """A prompt under its advertised name; `raw` is the backend's definition."""

    name: str
    backend_id: str
    backend_name: str
    raw: JSON = attrs.field(repr=False, hash=False)

    @property
    def arguments(self) -> tuple[JSON, ...]:
        return tuple(self.raw.get("arguments") or ())


@attrs.frozen
class ToolResult(_View):
    """What a tool answered. `is_error` is the tool's own word: a result, not an exception."""

    raw: JSON = attrs.field(hash=False)
    backend_id: str

    @property
    def content(self) -> tuple[JSON, ...]:
        return tuple(self.raw.get("content") or ())

    @property
    def structured_content(self) -> Any:
        return self.raw.get("structuredContent")

    @property
    def is_error(self) -> bool:
        return self.raw.get("isError") is True

    @property
    def backend_state_lost(self) -> bool:
        """The backend had lost our session with it: this call ran in a new one, which knows nothing of the calls
        before. Ours, in `meta` under `STATE_LOST`.
        """
        return self.meta.get(STATE_LOST) is True


@attrs.frozen
class ResourceResult(_View):
    """What a resource held: `contents` has text or base64 `blob` items, as received."""

    raw: JSON = attrs.field(hash=False)
    backend_id: str

    @property
    def contents(self) -> tuple[JSON, ...]:
        return tuple(self.raw.get("contents") or ())


@attrs.frozen
class PromptResult(_View):
    """A prompt, filled in."""

    raw: JSON = attrs.field(hash=False)
    backend_id: str

    @property
    def messages(self) -> tuple[JSON, ...]:
        return tuple(self.raw.get("messages") or ())

    @property
    def description(self) -> str | None:
        return self.raw.get("description")


@attrs.frozen
class CompletionResult(_View):
    """What could come next in an argument."""

    raw: JSON = attrs.field(hash=False)
    backend_id: str

    @property
    def _completion(self) -> JSON:
        return self.raw.get("completion") or {}

    @property
    def values(self) -> tuple[str, ...]:
        return tuple(self._completion.get("values") or ())

    @property
    def total(self) -> int | None:
        return self._completion.get("total")

    @property
    def has_more(self) -> bool:
        return self._completion.get("hasMore") is True
