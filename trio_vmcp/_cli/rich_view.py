"""The command on a terminal, drawn by `rich`. Nothing imports this module where `rich` may be missing."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from trio_vmcp._cli.sanitizer import Sanitizer
from trio_vmcp._cli.texts import (
    capability_lines,
    condition_text,
    conflict_text,
    duration,
    fit,
    missing_text,
    name_columns,
    progress_text,
    summary,
)
from trio_vmcp._cli.view import BackendCondition, BackendReport, BackendStatus, CallStatus, SessionReport
from trio_vmcp.models import BackendState

__all__ = ["RichView", "build_rich_view"]

GOOD, BAD, QUIET = "green", "red", "dim"  # the terminal's own colours, which suit its background
BAR_COLUMNS, LEAST_BAR_COLUMNS = 24, 8
CALL_COLUMNS = 56  # of a call's label, time and progress, which matter more than the length of its bar
GUIDE_COLUMNS = 8  # what a tree draws in front of its second level
NAME_COLUMNS = 40  # longer names push their description to the right


def build_rich_view(safe: Sanitizer) -> RichView:
    return RichView(Console(highlight=False), Console(highlight=False, stderr=True), safe)


@attrs.define(eq=False)
class RichView:
    """Progress is drawn in place; `settle_drawing` leaves the last picture on the terminal."""

    console: Console
    errors: Console
    safe: Sanitizer = attrs.field(factory=Sanitizer)
    _live: Live | None = attrs.field(default=None, init=False)
    _spinner: Spinner = attrs.field(init=False)  # one for all rows, so that they turn together

    def __attrs_post_init__(self) -> None:
        self._spinner = Spinner("line" if self.console.options.ascii_only else "dots")

    @property
    def width(self) -> int:
        return self.console.width

    def show_backends(self, statuses: Sequence[BackendStatus]) -> None:
        rows = Table.grid(padding=(0, 1))
        for justify in ("left", "left", "left", "right"):
            rows.add_column(justify=justify)
        for status in statuses:
            name, time = Text(status.id), Text(duration(status.elapsed) if status.elapsed else "", QUIET)
            match status.state:
                case "connecting":
                    rows.add_row(self._spinner, name, Text("connecting", QUIET), time)
                case "connected":
                    rows.add_row(self._mark(good=True), name, Text("connected", GOOD), time)
                case "failed":
                    rows.add_row(self._mark(good=False), name, Text("missing", BAD), time)
        self._draw(rows)

    def show_calls(self, calls: Sequence[CallStatus]) -> None:
        rows = Table.grid(padding=(0, 1))
        rows.add_column()
        rows.add_column()
        bar_columns = min(max(self.width - CALL_COLUMNS, LEAST_BAR_COLUMNS), BAR_COLUMNS)
        rows.add_column(width=bar_columns)
        rows.add_column(justify="right")
        rows.add_column(overflow="ellipsis", no_wrap=True)
        for call in calls:
            mark = self._spinner if call.state == "running" else self._mark(good=call.state == "done")
            note = {"running": progress_text(call), "done": "", "error": "reported an error", "failed": "failed"}
            rows.add_row(
                mark,
                Text(self.safe.line(call.label)),
                _bar(call, bar_columns),
                Text(duration(call.elapsed), QUIET),
                Text(self.safe.line(note[call.state]), BAD if call.state in ("error", "failed") else QUIET),
            )
        self._draw(rows)

    def show_conditions(self, conditions: Sequence[BackendCondition]) -> None:
        ready = sum(condition.status.state is BackendState.READY for condition in conditions)
        tree = Tree(Text(f"{ready} of {len(conditions)} backends; Ctrl-C ends the watch", "bold"), guide_style=QUIET)
        for condition in conditions:
            is_ready = condition.status.state is BackendState.READY
            is_new = condition.status.state is BackendState.CONNECTING and not condition.failure
            mark = Text("-", QUIET) if is_new else self._mark(good=is_ready)
            head = Text.assemble(mark, " ", (condition.status.backend_id, "bold"))
            style = BAD if condition.failure else QUIET
            tree.add(Group(head, Text(self.safe.line(condition_text(condition)), style)))
        self._draw(tree)

    def settle_drawing(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show_session(self, report: SessionReport) -> None:
        names = [self.safe.line(name) for backend in report.backends for _, name, _ in capability_lines(backend)]
        columns = name_columns(names, self.width, NAME_COLUMNS)
        tree = Tree(Text(summary(report), "bold"), guide_style=QUIET)
        for backend in report.backends:
            branch = tree.add(self._backend(backend))
            for kind, name, description in capability_lines(backend):
                branch.add(self._capability(kind, name, description, columns))
        for entry in report.skipped:
            head = Text.assemble(self._mark(good=False), " ", (entry.id, "bold"))
            tree.add(Group(head, Text(self.safe.line(f"skipped, {entry.why}"), BAD)))
        for conflict in report.conflicts:
            tree.add(Text(f"conflict: {self.safe.line(conflict_text(conflict))}", "yellow"))
        self.console.print()
        self.console.print(tree)

    def show_text(self, text: str) -> None:
        shown = Text(self.safe.block(text).removesuffix("\n"))
        self.console.print(shown, soft_wrap=True)  # no line breaks of ours: the text may be copied from the terminal

    def show_heading(self, text: str) -> None:
        self.console.print()
        self.console.print(Text(text, "bold"))

    def show_line(self, text: str) -> None:
        self.console.print(Padding(Text(self.safe.line(text)), (0, 0, 0, 2)))

    def show_problem(self, text: str) -> None:
        self._print_aside(Text(f"trio-vmcp: {self.safe.line(text)}", BAD))

    def show_log(self, text: str) -> None:
        self._print_aside(Text(self.safe.line(text), QUIET))

    def _print_aside(self, text: Text) -> None:
        """On stderr; above the picture while that is drawn, which a line from elsewhere would tear."""
        (self.errors if self._live is None else self.console).print(text)

    def _draw(self, renderable: RenderableType) -> None:
        if self._live is None:
            # auto_refresh is a thread, which would draw after settle_drawing(). This task draws instead.
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        self._live.update(renderable, refresh=True)

    def _mark(self, *, good: bool) -> Text:
        plain = self.console.options.ascii_only
        return Text(("+" if plain else "✓") if good else ("x" if plain else "✗"), GOOD if good else BAD)

    def _backend(self, backend: BackendReport) -> RenderableType:
        status = backend.status
        if status.state != "connected":
            head = Text.assemble(self._mark(good=False), " ", (status.id, "bold"))
            return Group(head, Text(self.safe.line(missing_text(status)), BAD))
        about = self.safe.line(f"{backend.protocol}, {backend.address}, {duration(status.elapsed)}")
        head = Text.assemble(self._mark(good=True), " ", (status.id, "bold"))
        if len(head) + len(about) + 2 > self.width - GUIDE_COLUMNS // 2:
            return Group(head, Text(about, QUIET))
        return Text.assemble(head, "  ", (about, QUIET))

    def _capability(self, kind: str, name: str, description: str, columns: int) -> Text:
        """A name is never cut, for it is what `call` is given."""
        kind, name = f"{kind:<8}  ", f"{self.safe.line(name):<{columns}}  "
        ellipsis = "..." if self.console.options.ascii_only else "…"
        about = fit(self.safe.line(description), self.width - GUIDE_COLUMNS - len(kind + name), ellipsis)
        return Text.assemble((kind, QUIET), name if about else name.rstrip(), (about, QUIET), overflow="fold")


def _bar(call: CallStatus, columns: int) -> RenderableType:
    fraction = 1.0 if call.state == "done" else call.fraction
    if fraction is None:
        return Text("")
    style = BAD if call.state in ("error", "failed") else GOOD
    return ProgressBar(total=1.0, completed=fraction, width=columns, complete_style="cyan", finished_style=style)
