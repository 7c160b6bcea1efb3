"""A tool or prompt and its arguments, explained to a reader. Pure; the text still needs a sanitizer."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

import attrs

from trio_vmcp._cli.given import types_of
from trio_vmcp.models import Prompt, Tool

__all__ = ["definition_text"]

_SHOWN_VALUES = 12  # of an enumeration
_INDENT = "  "


@attrs.frozen
class _Argument:
    name: str
    kind: str
    required: bool
    about: str


def definition_text(item: Tool | Prompt, width: int) -> str:
    """Name, description and arguments, in lines of at most `width` characters where words allow."""
    arguments = list(_tool_arguments(item) if isinstance(item, Tool) else _prompt_arguments(item))
    kind = "tool" if isinstance(item, Tool) else "prompt"
    lines = [f"{item.name}: {kind} of {item.backend_id}", *_wrapped(item.description or item.title, width, _INDENT)]
    lines.append(f"arguments of {item.name}:" if arguments else f"{item.name} takes no arguments")
    for argument in arguments:
        needed = "required" if argument.required else "optional"
        head = f"{argument.name}: {argument.kind}, {needed}" if argument.kind else f"{argument.name}: {needed}"
        lines += _wrapped(head, width, _INDENT, _INDENT * 3)
        lines += _wrapped(argument.about, width, _INDENT * 3)
    return "\n".join(lines)


def _wrapped(text: object, width: int, indent: str, later: str | None = None) -> list[str]:
    """The text's lines, each wrapped; a backend may send another type than text."""
    return [
        part
        for line in (text.strip().splitlines() if isinstance(text, str) else ())
        for part in textwrap.wrap(
            line,
            max(width, 20),
            initial_indent=indent,
            subsequent_indent=indent if later is None else later,
            break_long_words=False,
            break_on_hyphens=False,
        )
        or [""]
    ]


def _tool_arguments(tool: Tool) -> Iterator[_Argument]:
    """By the schema's `properties` and `required` (JSON Schema 2020-12), the required ones first."""
    schema = tool.input_schema if isinstance(tool.input_schema, dict) else {}
    properties, required = schema.get("properties"), schema.get("required")
    needed = required if isinstance(required, list) else []
    found = [
        _Argument(name, _kind(each, schema), name in needed, _text(each, "description") or _text(each, "title"))
        for name, each in (properties if isinstance(properties, dict) else {}).items()
    ]
    yield from sorted(found, key=lambda argument: not argument.required)


def _prompt_arguments(prompt: Prompt) -> Iterator[_Argument]:
    for each in prompt.arguments:
        if isinstance(each, dict):
            is_required = each.get("required") is True
            yield _Argument(_text(each, "name"), "string", is_required, _text(each, "description"))


def _kind(schema: object, root: object) -> str:
    """Such as `integer, default 3` or `one of "C", "F"`."""
    if not isinstance(schema, dict):
        return ""
    values = schema.get("enum")
    if isinstance(values, list) and values:
        shown = ", ".join(_json(value) for value in values[:_SHOWN_VALUES])
        kind = f"one of {shown}" + (", ..." if len(values) > _SHOWN_VALUES else "")
    else:
        kinds = types_of(schema, root)
        kind = " or ".join(sorted(kinds - {"null"} or kinds))  # that null is taken, too, says "optional"
    default = f"default {_json(schema['default'])}" if "default" in schema else ""
    return ", ".join(part for part in (kind, default) if part)


def _text(value: object, key: str) -> str:
    text = value.get(key) if isinstance(value, dict) else None
    return text if isinstance(text, str) else ""


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
