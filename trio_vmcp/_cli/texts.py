"""What the command shows, as text: results, definitions, states, failures. Pure; the text still needs a sanitizer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final, TypeAlias

import attrs

from trio_vmcp._cli.view import BackendCondition, BackendReport, BackendStatus, CallStatus, SessionReport
from trio_vmcp.models import (
    CompletionResult,
    NameConflict,
    Prompt,
    PromptResult,
    Resource,
    ResourceResult,
    ResourceTemplate,
    Tool,
    ToolResult,
)

__all__ = [
    "Result",
    "capability_lines",
    "condition_text",
    "conflict_text",
    "duration",
    "fit",
    "missing_text",
    "name_columns",
    "name_knobs",
    "progress_text",
    "result_text",
    "summary",
    "with_knobs",
]

LEAST_ROOM = 12  # characters of a description that are worth to be shown

Result: TypeAlias = ToolResult | ResourceResult | PromptResult | CompletionResult


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


def condition_text(condition: BackendCondition) -> str:
    """State, protocol, tools, calls and latency of one backend, and why it is away."""
    status, failure = condition.status, condition.failure
    parts = [f"{status.state.value} for {_span(condition.lasted)}"]
    if status.era:  # else the backend has not connected yet
        parts.append(f"{status.era} {status.protocol_version or ''}".strip())
        parts += [_count(condition.tools, "tool"), _count(status.calls, "call")]
    parts += [f"{status.errors} failed"] if status.errors else []
    parts += [f"{status.in_flight} running"] if status.in_flight else []
    if status.latency is not None:
        parts.append(f"latency {duration(status.latency.p50)} (p90 {duration(status.latency.p90)})")
    return ", ".join(parts) + (f"; {failure.reason.value.upper()}: it {name_knobs(failure.detail)}" if failure else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _span(seconds: float) -> str:
    """A time that grows while it is shown."""
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.0f} h"


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


def name_columns(names: Iterable[str], width: int, most: int) -> int:
    """The width of a column of names, beside which there is room for a description."""
    return min(max(map(len, names), default=0), most, width // 3)


def fit(text: str, room: int, ellipsis: str = "...") -> str:
    """The text in `room` characters, with an ellipsis for what is cut; nothing, where few would be left."""
    if len(text) <= room:
        return text
    return text[: room - len(ellipsis)] + ellipsis if room >= LEAST_ROOM else ""


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


def result_text(result: Result) -> str:
    """A result as a reader wants it: text as it is, other content by kind and size."""
    match result:
        case ToolResult():
            if not result.content and result.structured_content is not None:
                return json.dumps(result.structured_content, indent=2, ensure_ascii=False)
            return "\n".join(_item_text(item) for item in result.content)
        case ResourceResult():
            return "\n".join(_contents_text(item) for item in result.contents)
        case PromptResult():
            return "\n".join(_message_text(message) for message in result.messages)
        case CompletionResult():
            return "\n".join(str(value) for value in result.values)


def _contents_text(item: object) -> str:
    match item:
        case {"text": str(text)}:
            return text
        case {"blob": str(data), **rest}:
            return f"[{rest.get('mimeType') or 'blob'}, {len(data) * 3 // 4} bytes]"
        case _:
            return "[content of no type]"


def _message_text(message: object) -> str:
    match message:
        case {"role": str(role), "content": content}:
            return f"{role}: {_item_text(content)}"
        case _:
            return "[message of no role]"


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
