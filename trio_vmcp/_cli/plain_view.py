"""The command in plain ASCII lines: for pipes, logs and terminals without `rich`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import TextIO

import attrs

from trio_vmcp._cli.output import write_log, write_text
from trio_vmcp._cli.sanitizer import Sanitizer
from trio_vmcp._cli.texts import (
    capability_lines,
    condition_text,
    conflict_text,
    duration,
    fit,
    missing_text,
    progress_text,
    summary,
)
from trio_vmcp._cli.view import BackendCondition, BackendReport, BackendStatus, CallStatus, SessionReport

__all__ = ["PlainView"]

COLUMNS = 104  # where no terminal has another width
NAME_COLUMNS = 28  # longer names push their description to the right
KIND_COLUMNS = 8
PROGRESS_STEPS = 4  # lines per call of which the backend reports progress


@attrs.define(eq=False)
class PlainView:
    """Results go to `out`; progress goes to `log`, one line per change."""

    out: TextIO
    log: TextIO
    safe: Sanitizer = attrs.field(factory=Sanitizer)
    width: int = attrs.Factory(lambda self: _columns_of(self.out), takes_self=True)
    _shown: dict[str, object] = attrs.field(factory=dict, init=False)  # name → the state that its last line showed

    def show_backends(self, statuses: Sequence[BackendStatus]) -> None:
        for status in statuses:
            if self._is_news(status.id, status.state):
                self._print(self.log, f"{status.id}: {_status_text(status)}")

    def show_calls(self, calls: Sequence[CallStatus]) -> None:
        for number, call in enumerate(calls):
            step = call.note if call.fraction is None else int(call.fraction * PROGRESS_STEPS)
            if self._is_news(f"{number} {call.label}", (call.state, step)):
                self._print(self.log, f"{call.label}: {_call_text(call)}")

    def show_conditions(self, conditions: Sequence[BackendCondition]) -> None:
        """A line for each change of state or failure."""
        for condition in conditions:
            status, failure = condition.status, condition.failure
            if self._is_news(status.backend_id, (status.state, failure and failure.detail)):
                self._print(self.out, f"{status.backend_id}: {condition_text(condition)}")

    def settle_drawing(self) -> None:
        self._shown.clear()

    def show_session(self, report: SessionReport) -> None:
        columns = min(NAME_COLUMNS, self.width // 3)
        self._print(self.out, summary(report))
        for backend in report.backends:
            self._print(self.out, _backend_text(backend), indent=2)
            for kind, name, description in capability_lines(backend):
                line = f"    {kind:<{KIND_COLUMNS}}  {self.safe.line(name):<{columns}}  "
                line += fit(self.safe.line(description), self.width - len(line))
                write_text(self.out, line.rstrip() + "\n")
        for entry in report.skipped:
            self._print(self.out, f"{entry.id}: skipped, {entry.why}", indent=2)
        for conflict in report.conflicts:
            self._print(self.out, f"conflict: {conflict_text(conflict)}", indent=2)

    def show_text(self, text: str) -> None:
        shown = self.safe.block(text)
        write_text(self.out, shown if shown.endswith("\n") else shown + "\n")

    def show_heading(self, text: str) -> None:
        write_text(self.out, f"\n{text}\n")

    def show_line(self, text: str) -> None:
        self._print(self.out, text, indent=2)

    def show_problem(self, text: str) -> None:
        self._print(self.log, f"trio-vmcp: {text}")

    def show_log(self, text: str) -> None:
        self._print(self.log, text)

    def _is_news(self, key: str, value: object) -> bool:
        news = self._shown.get(key) != value
        self._shown[key] = value
        return news

    def _print(self, stream: TextIO, text: str, *, indent: int = 0) -> None:
        write = write_log if stream is self.log else write_text
        line = " " * indent + self.safe.line(text)
        if stream is self.out and stream.isatty():
            further = " " * (indent + 2)
            line = textwrap.fill(line, self.width, subsequent_indent=further, break_long_words=False)
        write(stream, line + "\n")


def _columns_of(stream: TextIO) -> int:
    return shutil.get_terminal_size().columns if stream.isatty() else COLUMNS


def _status_text(status: BackendStatus) -> str:
    match status.state:
        case "connecting":
            return "connecting"
        case "connected":
            return f"connected in {duration(status.elapsed)}"
        case "failed":
            return missing_text(status)


def _backend_text(backend: BackendReport) -> str:
    status = backend.status
    if status.state == "connected":
        return f"{status.id}: {backend.protocol}, {backend.address}, {duration(status.elapsed)}"
    return f"{status.id}: {missing_text(status)}"


def _call_text(call: CallStatus) -> str:
    match call.state:
        case "running":
            return progress_text(call) or "running"
        case "done":
            return f"done in {duration(call.elapsed)}"
        case "error":
            return f"reported an error after {duration(call.elapsed)}"
        case "failed":
            return f"failed after {duration(call.elapsed)}"
