"""The command's output as frozen data, and the texts that all views share. Nothing here writes anything.

Text from backends is untrusted, and any text may repeat a secret of the configuration: everything that is shown or
written as JSON goes through one `Sanitizer`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, Final, Literal, Protocol, TypeAlias
from urllib.parse import parse_qsl, urlsplit

import attrs

from trio_vmcp.models import (
    JSON,
    Backend,
    BackendFailure,
    NameConflict,
    Prompt,
    Resource,
    ResourceTemplate,
    Tool,
    ToolResult,
)
from trio_vmcp.session import Session

__all__ = [
    "BackendReport",
    "BackendStatus",
    "CallStatus",
    "Sanitizer",
    "SessionReport",
    "Skipped",
    "View",
    "capability_lines",
    "conflict_text",
    "content_text",
    "duration",
    "final_status",
    "missing_text",
    "name_knobs",
    "progress_text",
    "report_session",
    "summary",
    "with_knobs",
]

State: TypeAlias = Literal["connecting", "connected", "failed"]
CallState: TypeAlias = Literal[
    "running", "done", "error", "failed"
]  # error: the tool reports one; failed: no answer of the tool


@attrs.frozen
class BackendStatus:
    """How far one backend has come in joining the session.

    Attributes:
        elapsed: s until the backend connected or failed; s so far, while it connects; 0 while it waits for a place.
        reason: The value of a `FailureReason`; empty while the session has reported none.
        detail: Completes the sentence "backend 'x' …"; it may hold the backend's own words.
    """

    id: str
    state: State
    elapsed: float
    reason: str = ""
    detail: str = ""


@attrs.frozen(kw_only=True)
class BackendReport:
    """One backend and its capabilities.

    Attributes:
        address: Scheme, host and port, or the name of the program. The rest of a url, its path included, may be secret,
            and so may the rest of a command line.
        protocol: Era and version, such as "modern 2026-07-28"; empty while the backend is missing.
    """

    status: BackendStatus
    address: str
    era: str = ""
    protocol_version: str = ""
    tools: tuple[Tool, ...] = ()
    resources: tuple[Resource, ...] = ()
    resource_templates: tuple[ResourceTemplate, ...] = ()
    prompts: tuple[Prompt, ...] = ()

    @property
    def protocol(self) -> str:
        return f"{self.era} {self.protocol_version}".strip()

    def document(self) -> JSON:
        status = self.status
        return {
            "id": status.id,
            "address": self.address,
            "state": status.state,
            "elapsed": round(status.elapsed, 6),
            "failure": {"reason": status.reason, "detail": status.detail} if status.state == "failed" else None,
            "era": self.era or None,
            "protocol_version": self.protocol_version or None,
            "tools": [{"name": tool.name, "definition": tool.raw} for tool in self.tools],
            "resources": [resource.raw for resource in self.resources],
            "resource_templates": [template.raw for template in self.resource_templates],
            "prompts": [{"name": prompt.name, "definition": prompt.raw} for prompt in self.prompts],
        }


@attrs.frozen
class Skipped:
    """An entry of the file that cannot be used, and the line that says why."""

    id: str
    why: str


@attrs.frozen
class SessionReport:
    """A session in which every backend has connected or failed; that took `opened_in` s."""

    backends: tuple[BackendReport, ...]
    conflicts: tuple[NameConflict, ...]
    opened_in: float
    skipped: tuple[Skipped, ...] = ()

    @property
    def complete(self) -> bool:
        return not self.skipped and all(backend.status.state == "connected" for backend in self.backends)

    def document(self) -> JSON:
        return {
            "ok": self.complete,
            "opened_in": round(self.opened_in, 6),
            "backends": [backend.document() for backend in self.backends],
            "conflicts": [attrs.asdict(conflict) for conflict in self.conflicts],
        } | ({"skipped": [each.why for each in self.skipped]} if self.skipped else {})


@attrs.frozen
class CallStatus:
    """One tool call, running or over.

    Attributes:
        label: Tells this call from the others.
        elapsed: s, until now or until the end of the call.
        note: The last progress message, or the error.
    """

    label: str
    state: CallState
    elapsed: float
    progress: float | None = None
    total: float | None = None
    note: str = ""

    @property
    def fraction(self) -> float | None:
        """Progress from 0 to 1; None if the backend reports none, or no total."""
        if self.progress is None or not self.total or self.total < 0:
            return None
        return min(max(self.progress / self.total, 0.0), 1.0)


class View(Protocol):
    """A way of showing a session and its calls.

    `show_backends` and `show_calls` are called about twelve times a second while they change; `settle_drawing` then
    leaves the last picture as it is.
    """

    def show_backends(self, statuses: Sequence[BackendStatus]) -> None: ...
    def show_calls(self, calls: Sequence[CallStatus]) -> None: ...
    def settle_drawing(self) -> None: ...
    def show_session(self, report: SessionReport) -> None: ...
    def show_result(self, result: ToolResult) -> None: ...
    def show_heading(self, text: str) -> None: ...
    def show_line(self, text: str) -> None: ...
    def show_problem(self, text: str) -> None: ...


# --- from a session


def final_status(status: BackendStatus, failures: Sequence[BackendFailure]) -> BackendStatus:
    """The status by the session's failures: a backend that was seen to connect may have failed to list its tools."""
    failure = next((failure for failure in failures if failure.backend_id == status.id), None)
    if failure is None:
        return attrs.evolve(status, state="connected", reason="", detail="")
    return BackendStatus(status.id, "failed", failure.elapsed, failure.reason.value, failure.detail)


def report_session(
    session: Session, backends: Sequence[Backend], statuses: Sequence[BackendStatus], opened_in: float
) -> SessionReport:
    records = {record.backend_id: record for record in session.metadata.backends}
    reports = []
    for backend, seen in zip(backends, statuses, strict=True):
        status = final_status(seen, session.failures)
        record = records.get(backend.id) if status.state == "connected" else None
        reports.append(
            BackendReport(
                status=status,
                address=_address(backend),
                era=record.era if record else "",
                protocol_version=record.protocol_version if record else "",
                tools=tuple(tool for tool in session.tools if tool.backend_id == backend.id),
                resources=tuple(resource for resource in session.resources if resource.backend_id == backend.id),
                resource_templates=tuple(t for t in session.resource_templates if t.backend_id == backend.id),
                prompts=tuple(prompt for prompt in session.prompts if prompt.backend_id == backend.id),
            )
        )
    return SessionReport(tuple(reports), session.conflicts, opened_in)


def _address(backend: Backend) -> str:
    if backend.command is not None and backend.transport == "stdio":
        return PurePath(backend.command).name
    parts = urlsplit(backend.url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


# --- as text


def duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


def summary(report: SessionReport) -> str:
    count = len(report.backends) + len(report.skipped)
    connected = sum(backend.status.state == "connected" for backend in report.backends)
    skipped = f", {len(report.skipped)} skipped" if report.skipped else ""
    return f"{connected} of {count} backends connected in {duration(report.opened_in)}{skipped}"


# What an error names as the setting to turn, and what that is for users of the command.
_KNOBS: Final = {
    "backend_init_timeout": "--timeout",
    "request_timeout": "--timeout",
    "timeout=": "--timeout",
    "Backend.init_timeout": "the entry's time to start",
    "Backend.request_timeout": "the entry's timeout",
}
_KNOB: Final = re.compile(rf"(?<=\()({'|'.join(map(re.escape, _KNOBS))})(?=\))|(?<=its share of )[A-Za-z_.]+_timeout$")


def name_knobs(text: str) -> str:
    """An error's text with the command's words for the settings that it names."""
    return _KNOB.sub(lambda found: _KNOBS.get(found[0], found[0]), text)


def with_knobs(report: SessionReport) -> SessionReport:
    """The report with the command's words for the settings that failures name."""
    backends = tuple(
        attrs.evolve(backend, status=attrs.evolve(backend.status, detail=name_knobs(backend.status.detail)))
        for backend in report.backends
    )
    return attrs.evolve(report, backends=backends)


def missing_text(status: BackendStatus) -> str:
    """Why a backend is missing; the text still needs a sanitizer."""
    why = f"{status.reason.upper()}: it {status.detail}" if status.reason else status.detail
    return f"missing after {duration(status.elapsed)}" + (f", {why}" if why else "")


def conflict_text(conflict: NameConflict) -> str:
    owner = f"{conflict.owner} has it" if conflict.owner else "not advertised"
    return f"{conflict.kind} {conflict.name} is offered by {', '.join(conflict.backend_ids)}: {owner}"


def capability_lines(backend: BackendReport) -> list[tuple[str, str, str]]:
    """(kind, name, description) of each: tools, resources, templates, prompts."""
    return [
        *(("tool", tool.name, _description(tool)) for tool in backend.tools),
        *(("resource", resource.uri, _description(resource)) for resource in backend.resources),
        *(("template", template.uri_template, _description(template)) for template in backend.resource_templates),
        *(("prompt", prompt.name, _description(prompt)) for prompt in backend.prompts),
    ]


def _description(item: Tool | Resource | ResourceTemplate | Prompt) -> str:
    text = item.description or item.title  # a backend may send another type than text
    first, *_ = (text if isinstance(text, str) else "").strip().splitlines() or [""]
    return first


def progress_text(call: CallStatus) -> str:
    """The progress of a running call, such as "3/8 pages"."""
    if call.progress is None:
        return call.note
    amount = f"{call.progress:g}" + ("" if call.total is None else f"/{call.total:g}")
    return f"{amount} {call.note}".strip()


def content_text(result: ToolResult) -> str:
    """A result as text: text items as they are, other items by kind and size."""
    parts = [_item_text(item) for item in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, indent=2, ensure_ascii=False)]
    return "\n".join(parts)


def _item_text(item: object) -> str:
    match item:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "image" | "audio" as kind, "data": str(data), **rest}:
            return f"[{kind} {rest.get('mimeType', '')}, {len(data) * 3 // 4} bytes]"
        case {"type": "resource", "resource": {"text": str(text)}}:
            return text
        case {"type": "resource", "resource": {"uri": uri}} | {"type": "resource_link", "uri": uri}:
            return f"[resource {uri}]"
        case {"type": kind}:
            return f"[{kind}]"
        case _:
            return "[content of no type]"


# --- safe text

# C0 and C1 (escape sequences), line separators, marks that reorder text ("Trojan Source", CVE-2021-42574), and lone
# surrogates, which no output can encode.
_UNSAFE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORTEST_SECRET: Final = 6  # replacing shorter ones would remove ordinary words from the output
_AS_RECEIVED: Final = frozenset({"result", "definition", "resources", "resource_templates"})
_OURS: Final = frozenset({"error", "failure", "address", "skipped"})
_SECRET_NAME: Final = re.compile(
    r"auth|token|secret|passw|pwd|pass$|key|credential|cookie|session|private|signature|^sig$|^code$|dsn|jwt|database_?url",
    re.IGNORECASE,
)


@attrs.frozen
class Sanitizer:
    """Makes text fit to be shown.

    Secrets of the configuration are replaced wherever they appear (a backend may repeat a token in its error), and
    control characters, which a terminal would obey, are shown as escapes.
    """

    secrets: tuple[str, ...] = attrs.field(default=(), repr=False)

    @classmethod
    def of(cls, backends: Sequence[Backend]) -> Sanitizer:
        found: set[str] = set()
        for backend in backends:
            for name, value in (*backend.headers.items(), *backend.env.items()):
                if _SECRET_NAME.search(name):
                    found |= {value, value.partition(" ")[2]}  # of "Bearer xyz" a backend may repeat "xyz" alone
            parts = urlsplit(backend.url)
            userinfo = parts.netloc.rpartition("@")[0]
            found |= {userinfo, userinfo.partition(":")[2]}
            found |= {value for name, value in parse_qsl(parts.query) if _SECRET_NAME.search(name)}
        found = {secret for secret in found if len(secret) >= _SHORTEST_SECRET}
        return cls(tuple(sorted(found, key=len, reverse=True)))  # longest first: a secret may contain a shorter one

    def line(self, text: str, limit: int = 500) -> str:
        """The text as one line of at most `limit` characters; a longer one ends in an ellipsis."""
        line = _escape(" ".join(self._blot(text).split()))
        return line if len(line) <= limit else line[: limit - 3] + "..."

    def block(self, text: str) -> str:
        """The text with its line breaks."""
        return _escape(self._blot(text).replace("\r\n", "\n"))

    def document(self, value: Any, *, is_ours: bool = False) -> Any:
        """The document of --json. Errors and addresses are without secrets; what a backend has sent as a result or a
        definition stays as it came, for programs read it. `json` escapes control characters itself.
        """
        match value:
            case str():
                return self._blot(value) if is_ours else value
            case dict():
                return {
                    key: item if key in _AS_RECEIVED else self.document(item, is_ours=is_ours or key in _OURS)
                    for key, item in value.items()
                }
            case list() | tuple():
                return [self.document(item, is_ours=is_ours) for item in value]
            case _:
                return value

    def _blot(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "[secret]")
        return text


def _escape(text: str) -> str:
    return _UNSAFE.sub(lambda match: repr(match[0])[1:-1], text)
