"""Parse what a backend sent, so that a large message does not stop all other tasks.

The steps of a large message (`parse_in_steps`) have a checkpoint between them; a short one has none.
"""

from __future__ import annotations

import trio

from trio_vmcp._protocol.json_cost import is_cheap
from trio_vmcp._protocol.jsonrpc import BadMessage, Message, parse_in_steps, parse_text
from trio_vmcp._protocol.reading import Unreadable, unreadable

__all__ = ["parse", "read"]


async def parse(text: str, *, max_depth: int, max_values: float) -> Message:
    """One message.

    Args:
        max_depth, max_values: As for `parse_message`.

    Raises:
        BadMessage: See `parse_message`.
    """
    if is_cheap(text, max_values):
        return parse_text(text, max_depth=max_depth, max_values=max_values)
    steps = parse_in_steps(text, max_depth=max_depth, max_values=max_values)
    while True:
        await trio.lowlevel.checkpoint()
        try:
            next(steps)
        except StopIteration as end:
            message: Message = end.value
            return message


async def read(text: str, *, max_depth: int, max_values: float) -> Message | Unreadable:
    """The same for a stream, where a message that cannot be parsed is skipped."""
    try:
        return await parse(text, max_depth=max_depth, max_values=max_values)
    except BadMessage as bad:
        return unreadable(text, bad)
