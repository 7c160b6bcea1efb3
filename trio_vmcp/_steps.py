"""Work that a generator does in short steps, so that other tasks run in between."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

import trio

__all__ = ["take_steps"]

_T = TypeVar("_T")


async def take_steps(steps: Generator[None, None, _T]) -> _T:
    """What the steps bring, with a checkpoint after each but the last."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: _T = end.value
            return value
        await trio.lowlevel.checkpoint()
