"""Which of its tools a backend offers, and how they are described: what the user's `Backend` says of them."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from trio_vmcp._tool_patterns import tool_patterns
from trio_vmcp.models import JSON, Backend, ToolOverride

__all__ = ["is_filtered_out", "offered_tools"]

AT_ONCE = 512  # tools in one step


async def offered_tools(backend: Backend, listed: dict[str, JSON]) -> dict[str, JSON]:
    """The definitions by the tools' own names, without those that the user filters out, and with the user's words.

    A hint that the user overrides decides as the user says.
    """
    if backend.allow_tools is None and not backend.deny_tools and not backend.overrides:
        return listed
    allowed = None if backend.allow_tools is None else tool_patterns(backend.allow_tools)
    denied = tool_patterns(backend.deny_tools)
    offered: dict[str, JSON] = {}
    for at, (name, tool) in enumerate(listed.items(), start=1):
        if at % AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        if name in backend.overrides:
            tool = _described(tool, backend.overrides[name])
        if (allowed is None or allowed.match(name, tool)) and not denied.match(name, tool):
            offered[name] = tool
    return offered


def is_filtered_out(backend: Backend, name: str) -> bool:
    """Whether this configuration filters a tool out whatever the backend says of the tool.

    Args:
        name: The backend's own.
    """
    tool = _described({}, backend.overrides[name]) if name in backend.overrides else {}
    if tool_patterns(backend.deny_tools).match(name, tool):
        return True
    if backend.allow_tools is None:
        return False
    allowed = tool_patterns(backend.allow_tools)
    return not allowed.has_hints and not allowed.match(name, tool)


def _described(tool: JSON, override: ToolOverride) -> JSON:
    """The backend's own `name` stays: `renamed_tools` of the backend goes to the routing."""
    described = dict(tool)
    if override.title is not None:
        described["title"] = override.title
    if override.description is not None:
        described["description"] = override.description
    if override.annotations:
        own = tool.get("annotations")
        known: Mapping[str, object] = own if isinstance(own, dict) else {}
        described["annotations"] = {**known, **override.annotations}
    return described
