"""The records that users write and read: backends, capabilities, results, failures. Frozen, and no I/O.

Capabilities and results are views on the JSON as received. `raw` has the whole object, unknown fields included; the
properties are the fields that MCP names. No field is dropped, added or validated again. Sessions of one factory that
list the same share the object, so it must not be changed: copy it first.
"""

from __future__ import annotations

import enum
import json
import os
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal, NoReturn, TypeAlias, cast, get_args
from urllib.parse import urlsplit

import attrs

from trio_vmcp._header_rules import header_name_problem, header_value_problem
from trio_vmcp._read_only import Copyable, read_only
from trio_vmcp._tool_patterns import pattern_problem

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
    "ToolOverride",
    "ToolResult",
]

JSON: TypeAlias = dict[str, Any]  # a JSON object as `json.loads` gives it

Transport: TypeAlias = Literal["streamable-http", "sse", "stdio"]
Era: TypeAlias = Literal["auto", "legacy", "modern"]

STATE_LOST = "trio-vmcp/backend-state-lost"  # a key of `_meta` (MCP: prefix/name)

BUILT_IN_TRANSPORTS: tuple[str, ...] = get_args(Transport)
_ERAS = ("auto", "legacy", "modern")
_NOT_IN_URL = re.compile("[\x00-\x1f\x7f]|^ | $")
_BACKEND_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)


def _read_only(mapping: Mapping[str, Any] | None) -> Mapping[str, Any]:
    try:
        return read_only(mapping or {})
    except (TypeError, ValueError):
        return cast("Mapping[str, Any]", mapping)


def _optional_read_only(mapping: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return read_only(mapping) if isinstance(mapping, Mapping) else mapping


# A converter knows neither the entry nor the key: what it cannot take stays as it is, for `Backend._check` to name.


def _in_order(values: Iterable[str]) -> tuple[str, ...]:
    try:
        return cast("tuple[str, ...]", values) if isinstance(values, str) else tuple(values)
    except TypeError:
        return cast("tuple[str, ...]", values)


def _name_set(names: Iterable[str]) -> frozenset[str]:
    try:
        return cast("frozenset[str]", names) if isinstance(names, str) else frozenset(names)
    except TypeError:  # not iterable, or an entry without a hash
        return cast("frozenset[str]", _in_order(names))


def _optional_name_set(names: Iterable[str] | None) -> frozenset[str] | None:
    return None if names is None else _name_set(names)


def _names_only(mapping: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{name!r}: …" for name in mapping) + "}"


def _text_problem(value: object) -> str | None:
    """Why no process can be given this text; None: a process can. The text completes the sentence "args[0] …"."""
    if not isinstance(value, str):
        return f"is {type(value).__name__}, not str"
    if "\0" in value:
        return "holds NUL, which no process can be given"
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        pass
    else:
        return None
    return "holds a character that no process can be given"


def _several_problem(values: object) -> str | None:
    """Why these are not several texts; None: they are. The text completes the sentence "args …"."""
    if isinstance(values, str):  # an iterable of its letters: deny_tools="wipe" would deny nothing
        return "is one str where several are wanted"
    return None if isinstance(values, tuple | frozenset) else f"is {type(values).__name__}, not several str"


def _json_text_problem(text: object) -> str | None:
    """Why this is no text that JSON can hold; None: it is. The text completes the sentence "title …"."""
    if not isinstance(text, str):
        return f"is {type(text).__name__}, not str"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half a surrogate pair, which is not text"
    return None


def public_url(url: str) -> str:
    """The url without userinfo, query and fragment, which may hold secrets."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "<unreadable url>"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _public_url_repr(url: str) -> str:
    return repr(public_url(url))


@attrs.frozen(kw_only=True)
class ToolOverride(Copyable):
    """What the user says of one tool of a backend; None: as the backend says. `Backend` checks the fields.

    Attributes:
        name: In place of the backend's own, before `FactorySettings.conflict_resolution` makes the advertised name of
            it. Calls carry the own name all the same.
        annotations: Single keys of MCP's `ToolAnnotations`; the others stay.
    """

    name: str | None = None
    title: str | None = None
    description: str | None = None
    annotations: Mapping[str, Any] | None = attrs.field(default=None, converter=_optional_read_only, hash=False)

    @property
    def problem(self) -> tuple[str, str] | None:
        """The field that cannot be, and why; None: all can."""
        for key, text in (("name", self.name), ("title", self.title), ("description", self.description)):
            if text is not None and (problem := _json_text_problem(text)) is not None:
                return key, problem
        if self.name == "":
            return "name", "is empty"
        if self.annotations is None:
            return None
        if not isinstance(self.annotations, Mapping):
            return "annotations", f"is {type(self.annotations).__name__}, not a mapping"
        for key, value in self.annotations.items():
            if _json_text_problem(key) is not None:
                return "annotations", f"has the key {key!r}, which is no text"
            try:
                json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
            except (TypeError, ValueError, RecursionError):
                return f"annotations[{key!r}]", "is no JSON"
        return None


@attrs.frozen
class Backend(Copyable):
    """One MCP server, as the user configures it.

    Attributes:
        id: 1-64 of `A-Za-z0-9_.-`, starting with a letter or digit; prefixes advertised names by default.
        url: The full endpoint, for "streamable-http" and "sse": http, https, or a unix socket with the path of the
            endpoint behind it, `unix:///path/to/socket#/mcp`, which only the built-in transport can reach.
        transport: "streamable-http", "sse" (HTTP+SSE of MCP 2024-11-05) or "stdio" (a child process). The probe of a
            "streamable-http" url also finds a server that speaks HTTP+SSE; "sse" saves the probe. When the event stream
            of HTTP+SSE or the process ends, the backend session is lost, and is opened or started again. Any other
            name is looked up in `connectors` of the factory when a session opens or adds the backend.
        headers: Sent with every HTTP request. Those that belong to the protocol (`Mcp-Session-Id`) or to the connection
            (RFC 9110 §7.6.1, `Connection`) are refused. Values are secrets: the repr shows names only.
        command, args, env, cwd: The child process of "stdio". On POSIX it leads a process group. When the session ends,
            its stdin is closed; after three quarters of `teardown_timeout` the group gets SIGTERM, and at its end
            SIGKILL. It inherits only variables that find programs and a home (`PATH`, `HOME`, `USER`, `LANG`, `LC_*`,
            `TERM`, …); others must stand in `env` or `inherit_env`. Lines of its stderr go to the logger
            `trio_vmcp.client.stdio` at DEBUG, and the last of them into the failure when the process exits; values of
            `env` and of what `inherit_env` adds appear there as their names.
        inherit_env: More variables that it inherits, as they are when it is started: exact names, or globs
            (`fnmatch.fnmatchcase`; upper and lower case differ). `env` wins. A name that is not set is left out.
        request_timeout: s, the whole exchange of one call; None: the factory's.
        init_timeout: s, one attempt to connect: probe, handshake and lists; None: the factory's `backend_init_timeout`,
            which says what happens over it.
        progress_timeout: s without progress, after which a call is given up; None: the factory's.
        era: "auto" probes; "legacy" (MCP 2025-03-26 to 2025-11-25) and "modern" (2026-07-28) save the probe.
        listen: Hold a stream for changes, if the backend declares that it reports any: a GET (legacy) or
            `subscriptions/listen` (modern), over HTTP on a connection of its own. False: lists are read again only when
            the backend is connected again, and questions are heard only during calls. A stream that ends is opened
            again, from the last event where the server supports that; else everything it may have missed counts as
            changed. The server's `retry` is kept between 0.1 and 60 s. After ten ends in a row without an event
            the stream is given up; the backend's calls still work. An endpoint that cannot be reached (502 to 504
            of its gateway included) is asked again every `reconnect_max_delay` without end.
        stop_after: s without a call, subscription, question or recovery, after which the connection or the program is
            ended, with its goodbye; None: never. Its entries stay listed, changes of its lists are not heard meanwhile.
            The next call connects it once more, at once (a program: once the one before has ended) and within the
            call's own timeout; if that fails, the call gets the reason and the next one tries again. What the backend
            kept in its session is gone then (`ToolResult.backend_state_lost`).
        allow_tools: Which tools to advertise: own names of the backend, globs (`fnmatch.fnmatchcase`), or "@readOnly",
            "@destructive", "@idempotent" and "@openWorld": the tools of which that hint is true (absent is false).
            None: all.
        deny_tools: Which tools not to advertise, in the same form; wins over `allow_tools`.
        overrides: By the backend's own name of a tool: what is said of it instead (`ToolOverride`). `allow_tools`,
            `deny_tools` and `Manual` go by the own name, and by the hints as they are overridden. Where an overridden
            name is the own name of another tool, that one keeps it, and `session.conflicts` says so.

    Raises:
        ValueError: What no attempt to connect could cure. Names the entry and the key, and shows no value that may be a
            secret.
    """

    id: str
    url: str = attrs.field(default="", repr=_public_url_repr)
    transport: str = "streamable-http"
    headers: Mapping[str, str] = attrs.field(default=None, converter=_read_only, repr=_names_only, hash=False)
    command: str | None = None
    args: tuple[str, ...] = attrs.field(default=(), converter=_in_order, repr=False)  # command lines hold tokens, too
    env: Mapping[str, str] = attrs.field(default=None, converter=_read_only, repr=_names_only, hash=False)
    inherit_env: tuple[str, ...] = attrs.field(default=(), converter=_in_order)
    cwd: str | None = None
    request_timeout: float | None = None
    init_timeout: float | None = None
    progress_timeout: float | None = None
    era: Era = "auto"
    listen: bool = True
    stop_after: float | None = None
    allow_tools: frozenset[str] | None = attrs.field(default=None, converter=_optional_name_set)
    deny_tools: frozenset[str] = attrs.field(default=frozenset(), converter=_name_set)
    overrides: Mapping[str, ToolOverride] = attrs.field(
        default=None, converter=_read_only, repr=_names_only, hash=False
    )

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.id, str) or not _BACKEND_ID.fullmatch(self.id):
            raise ValueError(f"backend id {self.id!r} is not 1-64 of A-Za-z0-9_.- starting with a letter or digit")
        if not isinstance(self.transport, str) or not self.transport:
            self._refuse(f"transport {self.transport!r} is no name of a transport")
        if self.era not in _ERAS:
            self._refuse(f"unknown era {self.era!r}; one of {_ERAS}")
        if self.transport == "stdio":
            if not self.command:
                self._refuse("transport 'stdio' needs a command")
        elif self.transport in BUILT_IN_TRANSPORTS:
            self._check_url()
        elif not isinstance(self.url, str):  # what it says is the connector's business
            self._refuse(f"url is {type(self.url).__name__}, not str")
        self._check_headers()
        self._check_process()
        for key, names in (("allow_tools", self.allow_tools), ("deny_tools", self.deny_tools)):
            self._check_patterns(key, names)
        self._check_overrides()
        for key in ("request_timeout", "init_timeout", "progress_timeout", "stop_after"):
            self._check_seconds(key, getattr(self, key))
        if not isinstance(self.listen, bool):
            self._refuse(f"listen is {type(self.listen).__name__}, not bool")

    def _refuse(self, problem: str) -> NoReturn:
        raise ValueError(f"backend {self.id!r}: {problem}")

    def _check_url(self) -> None:
        if not self.url:
            self._refuse(f"transport {self.transport!r} needs a url")
        if not isinstance(self.url, str):
            self._refuse(f"url is {type(self.url).__name__}, not str")
        netloc = ""
        try:
            parts = urlsplit(self.url)
            if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
                netloc = parts.netloc
            elif parts.scheme == "unix" and not (parts.netloc or parts.query) and re.match("/.", parts.path):
                netloc = "localhost"
        except ValueError:
            pass
        if not netloc:
            form = "unix:///path/to/socket#/mcp" if self.url[:5] == "unix:" else "http:// or https:// with a host"
            self._refuse(f"url {public_url(self.url)!r} is not {form}")
        if _NOT_IN_URL.search(self.url) or " " in netloc:  # `urlsplit` leaves line breaks out
            self._refuse("url holds a control character, or a blank where a url has none")

    def _check_headers(self) -> None:
        if not isinstance(self.headers, Mapping):
            self._refuse(f"headers is {type(self.headers).__name__}, not a mapping")
        seen: set[str] = set()
        for name, value in self.headers.items():
            problem = header_name_problem(name) or header_value_problem(value)
            if problem is None and name.lower() in seen:
                problem = "is there twice, upper and lower case being the same"
            if problem is not None:
                self._refuse(f"header {name!r} {problem}")
            seen.add(name.lower())

    def _check_process(self) -> None:
        for key, value in (("command", self.command), ("cwd", self.cwd)):
            if value is not None and (problem := _text_problem(value)) is not None:
                self._refuse(f"{key} {problem}")
        if (problem := _several_problem(self.args)) is not None:
            self._refuse(f"args {problem}")
        for number, arg in enumerate(self.args):
            if (problem := _text_problem(arg)) is not None:
                self._refuse(f"args[{number}] {problem}")
        if (problem := _several_problem(self.inherit_env)) is not None:
            self._refuse(f"inherit_env {problem}")
        for name in self.inherit_env:
            if _text_problem(name) is not None or not name or "=" in name:
                self._refuse(f"inherit_env: {name!r} is no name of an environment variable, and no glob for some")
        if not isinstance(self.env, Mapping):
            self._refuse(f"env is {type(self.env).__name__}, not a mapping")
        for name, value in self.env.items():
            if _text_problem(name) is not None or not name or "=" in name:
                self._refuse(f"env: {name!r} is no name of an environment variable")
            if (problem := _text_problem(value)) is not None:
                self._refuse(f"env {name!r} {problem}")

    def _check_seconds(self, key: str, seconds: object) -> None:
        if seconds is None:
            return
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            self._refuse(f"{key} is {type(seconds).__name__}, not a number of s")
        if not seconds >= 0:
            self._refuse(f"{key} {seconds!r} is not 0 s or more")

    def _check_patterns(self, key: str, names: object) -> None:
        if names is None and key == "allow_tools":
            return
        if (problem := _several_problem(names)) is not None:
            self._refuse(f"{key}: {names!r} {problem}" if isinstance(names, str) else f"{key} {problem}")
        for name in cast("Iterable[object]", names):
            if not isinstance(name, str):
                self._refuse(f"{key} holds {name!r}, which is {type(name).__name__}, not str")
            if (problem := pattern_problem(name)) is not None:
                self._refuse(f"{key}: {name!r} {problem}")

    def _check_overrides(self) -> None:
        if not isinstance(self.overrides, Mapping):
            self._refuse(f"overrides is {type(self.overrides).__name__}, not a mapping")
        named: dict[str, str] = {}  # the name that comes of an override → the own name
        for own, override in self.overrides.items():
            if not own or _json_text_problem(own) is not None:
                self._refuse(f"overrides has the key {own!r}, which is no name of a tool")
            if not isinstance(override, ToolOverride):
                self._refuse(f"overrides[{own!r}] is {type(override).__name__}, not ToolOverride")
            if (found := override.problem) is not None:
                self._refuse(f"overrides[{own!r}].{found[0]} {found[1]}")
            name = override.name or own
            if (other := named.setdefault(name, own)) != own:
                self._refuse(f"overrides[{other!r}] and overrides[{own!r}] both give the name {name!r}")

    @property
    def renamed_tools(self) -> Mapping[str, str]:
        """The names that `overrides` gives, by the backend's own names."""
        return {own: to.name for own, to in self.overrides.items() if to.name is not None and to.name != own}


class FailureReason(enum.Enum):
    """Why a backend is missing from a session."""

    PENDING = "pending"  # still connecting; the backend joins when it is ready
    UNREACHABLE = "unreachable"  # no connection, or the program cannot be started or exits
    TIMEOUT = "timeout"
    UNAUTHORIZED = "unauthorized"
    PROTOCOL = "protocol"  # answers that are not MCP
    REJECTED = "rejected"
    LIMIT = "limit"  # over max_pages, max_items_per_backend or max_message_bytes


@attrs.frozen
class BackendFailure:
    """Which backend is missing, and why.

    Attributes:
        detail: Completes the sentence "backend 'x' …".
        elapsed: s since this backend began to connect; 0 while it waits for a place.
    """

    backend_id: str
    reason: FailureReason
    detail: str
    elapsed: float


class BackendState(enum.Enum):
    """The state of one backend of a session."""

    CONNECTING = "connecting"  # for the first time
    READY = "ready"
    DEGRADED = "degraded"  # away or failing; attempts go on in the background
    RECOVERING = "recovering"  # being connected anew
    STOPPED = "stopped"  # not used for `Backend.stop_after`: the next call connects it again
    REMOVED = "removed"


@attrs.frozen
class Latency:
    """Percentiles of the latest calls that were answered, s from admission to answer."""

    p50: float
    p90: float
    p99: float


@attrs.frozen
class BackendStatus:
    """The condition of one backend of a session, from the calls so far and without a probe.

    Attributes:
        since: The moment of the last change of `state`, UTC.
        era, protocol_version: Those of the connection, or of the last one; None before the first.
        last_failure: The latest failure, kept also when the backend is ready again; None: none so far.
        in_flight: Calls that run on this backend now.
        calls: Calls that have ended, with whatever outcome.
        errors: Those of `calls` that ended in a `BackendError`.
        latency: Percentiles of the latest answers; None before the first answer.
        failing_since: From this moment on calls have failed to reach the backend, or its stream for changes, which was
            open before, could not be opened again, UTC; `last_failure` says why. None: the latest call was answered,
            or the stream is open again, or the backend has refused it. The stream is asked for until then. The
            first failures leave a connected backend READY, since the next call may reach it: after five calls in a row
            the circuit opens, and the backend is DEGRADED and tried in the background.
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
    failing_since: datetime | None = None


@attrs.frozen
class NameConflict:
    """An advertised name that several backends claim, or that is already bound to another backend.

    Attributes:
        kind: "tool", "prompt" or "resource".
        name: The advertised name or URI.
        backend_ids: The backends that offer the name, in configured order.
        owner: The backend that the name belongs to; None: the name is not advertised.
    """

    kind: Literal["tool", "prompt", "resource"]
    name: str
    backend_ids: tuple[str, ...]
    owner: str | None


class SessionState(enum.Enum):
    """OPEN admits calls; DRAINING waits for admitted calls to end; CLOSED holds no connection and no task."""

    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


@attrs.frozen
class SessionChange:
    """One change in a live session.

    Attributes:
        kind: "tools", "resources" or "prompts" (the session has a new list), "backend" (the backend joined or left) or
            "resource_updated" (the resource at `uri` has new content).
        backend_id: The backend that the change is about.
        uri: The resource of "resource_updated"; else None.
    """

    kind: Literal["tools", "resources", "prompts", "backend", "resource_updated"]
    backend_id: str
    uri: str | None = None


class _View:
    """The received JSON object, and the field that every MCP object may have."""

    __slots__ = ()
    raw: JSON

    @property
    def meta(self) -> JSON:
        """`_meta`, or {}."""
        return self.raw.get("_meta") or {}


class _Definition(_View):
    """The fields that every listed capability may have."""

    __slots__ = ()

    @property
    def title(self) -> str | None:
        return self.raw.get("title")

    @property
    def description(self) -> str | None:
        return self.raw.get("description")


class _Located(_Definition):
    """The further fields of resources and templates. `name` is the backend's own and need not be unique."""

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


class _Answer(_View):
    """An answer that may ask for input before there is a result (MCP 2026-07-28, multi round-trip requests)."""

    __slots__ = ()

    @property
    def input_required(self) -> dict[str, JSON] | None:
        """What the backend asks, by keys of its own: `{key: {"method": …, "params": …}}`, untrusted text of the
        backend. {}: it asks nothing, and goes on when the same call comes with `request_state`. None: the result is
        complete.

        Only calls with `answer_rounds=False` get questions. They are answered by another call with the same arguments,
        `request_state`, and in `input_responses` a result object under each of these keys.
        """
        if self.raw.get("resultType") != "input_required":
            return None
        asked = self.raw.get("inputRequests") or {}
        return {key: {"method": each["method"], "params": each.get("params") or {}} for key, each in asked.items()}

    @property
    def request_state(self) -> str | None:
        """Of a result that is not complete: to be given back unchanged; None: the backend wants nothing back. Opaque to
        clients, and as secret as the call.
        """
        return self.raw.get("requestState") if self.raw.get("resultType") == "input_required" else None


@attrs.frozen
class ToolResult(_Answer):
    """The answer of a tool.

    `is_error` is the tool's own statement that it failed: a result, not an exception (MCP 2025-11-25, server/tools,
    Error Handling).
    """

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
        """The backend session in which earlier calls ran is gone, and this call ran in a new one, which knows nothing
        of them: the backend had forgotten it (HTTP 404, or a refusal that says so), or it ended with its process or
        stream. The first result afterwards says this, and so does that of each call that was sent again, or had to
        wait, because of the loss. News that no result has told moves with the session when it is suspended and
        restored. The library sets it, in `meta` under `STATE_LOST`.
        """
        return self.meta.get(STATE_LOST) is True


@attrs.frozen
class ResourceResult(_Answer):
    """The content of a resource: `contents` has items with `text` or a base64 `blob`, as received."""

    raw: JSON = attrs.field(hash=False)
    backend_id: str

    @property
    def contents(self) -> tuple[JSON, ...]:
        return tuple(self.raw.get("contents") or ())


@attrs.frozen
class PromptResult(_Answer):
    """A prompt with its arguments filled in."""

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
    """Proposals for the value of an argument."""

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
