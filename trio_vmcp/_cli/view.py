"""The command's output as frozen data, and what a way of showing that has to do. Nothing here writes anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal, Protocol, TypeAlias
from urllib.parse import urlsplit

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
)
from trio_vmcp.models import BackendStatus as SessionBackend
from trio_vmcp.session import Session

__all__ = [
    "BackendCondition",
    "BackendReport",
    "BackendStatus",
    "CallState",
    "CallStatus",
    "SessionReport",
    "Skipped",
    "View",
    "final_status",
    "report_session",
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
        }


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


@attrs.frozen
class BackendCondition:
    """One backend of a session that stays open.

    Attributes:
        lasted: s since its state last changed.
        tools: Advertised tools, also while the backend is away.
        failure: Why it is away; None: it is not, or is still connecting.
    """

    status: SessionBackend
    lasted: float
    tools: int
    failure: BackendFailure | None


class View(Protocol):
    """A way of showing a session and its calls.

    `show_backends` and `show_calls` are called about twelve times a second while they change, `show_conditions` once a
    second; `settle_drawing` then leaves the last picture as it is.
    """

    @property
    def width(self) -> int:
        """Columns that a line of text may have."""
        ...

    def show_backends(self, statuses: Sequence[BackendStatus]) -> None: ...
    def show_calls(self, calls: Sequence[CallStatus]) -> None: ...
    def show_conditions(self, conditions: Sequence[BackendCondition]) -> None: ...
    def settle_drawing(self) -> None: ...
    def show_session(self, report: SessionReport) -> None: ...
    def show_text(self, text: str) -> None: ...
    def show_heading(self, text: str) -> None: ...
    def show_line(self, text: str) -> None: ...
    def show_problem(self, text: str) -> None: ...
    def show_log(self, text: str) -> None: ...


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
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
