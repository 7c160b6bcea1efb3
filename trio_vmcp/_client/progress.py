"""What a backend reports of the progress of a request (MCP 2025-11-25, basic/utilities/progress). Pure."""

from __future__ import annotations

from trio_vmcp.models import JSON

__all__ = ["progress_of"]


def progress_of(params: JSON, token: int) -> tuple[float, float | None, str | None] | None:
    """`progress`, `total` and `message` of a notification; None: it is for another request, or malformed."""
    received, text = params.get("progressToken"), params.get("message")
    progress, total = _number(params.get("progress")), _number(params.get("total"))
    if type(received) is not int or received != token or progress is None:
        return None
    return progress, total, text if isinstance(text, str) else None


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
