"""About how much memory a JSON value takes. Pure."""

from __future__ import annotations

from typing import Any

__all__ = ["weigh"]

NODE_BYTES = 64  # what an object of Python's costs, about; a small message may take thirty times its bytes


def weigh(value: Any, most: int) -> int:
    """About so many bytes. Over `most` it stops counting."""
    total, waiting = 0, [value]
    while waiting and total <= most:
        node = waiting.pop()
        total += NODE_BYTES
        if isinstance(node, str):
            total += len(node)
        elif isinstance(node, dict | list):
            total += NODE_BYTES * len(node)
            if total > most:  # before as many are looked at
                break
            if isinstance(node, dict):
                total += sum(map(len, node))
                waiting.extend(node.values())
            else:
                waiting.extend(node)
    return total
