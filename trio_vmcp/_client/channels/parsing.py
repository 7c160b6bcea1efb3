"""Parse what a backend sent, so that a large message does not stop all other tasks.

The steps of a large message (`parse_in_steps`) have a checkpoint between them; a short one has none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from trio_vmcp._known_results import SLICE, KnownResults, Page, answer_digest, answer_digest_in_steps
from trio_vmcp._protocol.json_cost import TooCostly, check_cost, is_cheap
from trio_vmcp._protocol.jsonrpc import (
    BadMessage,
    Message,
    Result,
    parse_cheap,
    parse_in_steps,
    same_id,
    split_batch_in_steps,
)
from trio_vmcp._protocol.reading import Unreadable, unreadable
from trio_vmcp._steps import take_steps

__all__ = ["parse", "read", "read_answer", "split_batch"]

_T = TypeVar("_T")


async def parse(text: str, *, max_depth: int, max_values: float) -> Message:
    """One message.

    Args:
        max_depth, max_values: As for `parse_message`.

    Raises:
        BadMessage: See `parse_message`.
    """
    if is_cheap(text, max_values):
        return parse_cheap(text, max_depth=max_depth)
    steps = parse_in_steps(text, max_depth=max_depth, max_values=max_values)
    while True:
        await trio.lowlevel.checkpoint()
        try:
            next(steps)
        except StopIteration as end:
            message: Message = end.value
            return message


async def read_answer(
    text: str, request_id: int, known: KnownResults | None, read: Callable[[str], Awaitable[_T]]
) -> Result | _T:
    """The message in `text`, which may answer a request: a result that the caller knows, or that another task parses at
    this moment, is not parsed again.

    Args:
        read: How it is parsed.
    """
    if known is None:
        return await read(text)
    known.page = None
    found = (
        answer_digest(text, request_id)
        if len(text) <= SLICE
        else await take_steps(answer_digest_in_steps(text, request_id))
    )
    if found is None:
        return await read(text)
    digest, size = found
    page = await known.find(digest)
    if page is not None:
        return Result(request_id, page.result)
    try:
        message = await read(text)
        if isinstance(message, Result) and same_id(message.id, request_id):
            page = Page(message.result, digest, size)
    finally:
        known.end(digest, page)
    return message


async def split_batch(text: str, *, max_values: float) -> list[str]:
    """The messages of a JSON-RPC batch, each as its own text; a text that is no batch, or cannot be split, as it is."""
    if text[:1] == "{":  # most texts
        return [text]
    try:
        if not is_cheap(text, max_values):
            for _ in check_cost(text, max_values):
                await trio.lowlevel.checkpoint()
    except TooCostly:
        return [text]  # what is wrong with it is for the parser to say
    return await take_steps(split_batch_in_steps(text)) or [text]


async def read(text: str, *, max_depth: int, max_values: float) -> Message | Unreadable:
    """The same for a stream, where a message that cannot be parsed is skipped."""
    try:
        return await parse(text, max_depth=max_depth, max_values=max_values)
    except BadMessage as bad:
        return unreadable(text, bad)
