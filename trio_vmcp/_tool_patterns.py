"""Which tools of a backend are meant: by their own names, by globs, and by the hints in their annotations. Pure."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

__all__ = ["ToolPatterns", "pattern_problem", "tool_patterns"]

# MCP 2025-11-25, schema, `ToolAnnotations`. A hint that is absent counts as false here, whatever its default there:
# what a server does not say of a tool is no statement about the tool.
_HINTS: Mapping[str, str] = {
    "@readOnly": "readOnlyHint",
    "@destructive": "destructiveHint",
    "@idempotent": "idempotentHint",
    "@openWorld": "openWorldHint",
}
_GLOB_CHARACTERS = frozenset("*?[")


def pattern_problem(pattern: str) -> str | None:
    """Why a pattern cannot be meant; None: it can. The text completes the sentence "allow_tools: '' …"."""
    if not pattern:
        return "is empty, and no tool has an empty name"
    if pattern.startswith("@") and pattern not in _HINTS:
        return f"is none of {', '.join(_HINTS)}; write '[@]' where a name begins with '@'"
    return None


@attrs.frozen
class ToolPatterns:
    """Names, globs and hints. A pattern with a bracket is a glob and a name: tools are called `a[0]`, too."""

    _names: frozenset[str]
    _globs: re.Pattern[str] | None
    _hints: tuple[str, ...]

    @property
    def has_hints(self) -> bool:
        """It depends on the annotations of a tool, too."""
        return bool(self._hints)

    def match(self, name: str, tool: Mapping[str, Any]) -> bool:
        """Whether a tool is meant.

        Args:
            name: The backend's own.
            tool: MCP's `Tool`, as far as its annotations go.
        """
        if name in self._names or (self._globs is not None and self._globs.match(name) is not None):
            return True
        annotations = tool.get("annotations")
        return isinstance(annotations, dict) and any(annotations.get(hint) is True for hint in self._hints)


def tool_patterns(patterns: Iterable[str]) -> ToolPatterns:
    """Read patterns that have no problem."""
    names = frozenset(patterns)
    # Sorted: `re` keeps what it has compiled, and a set has no order.
    globs = sorted(name for name in names if not _GLOB_CHARACTERS.isdisjoint(name))
    return ToolPatterns(
        names,
        re.compile("|".join(map(fnmatch.translate, globs))) if globs else None,
        tuple(hint for pattern, hint in _HINTS.items() if pattern in names),
    )
