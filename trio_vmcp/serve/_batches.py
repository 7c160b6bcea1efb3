"""Several messages at once, which MCP 2025-03-26 has and no other version: one array of responses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from trio_vmcp._nursery import start_task
from trio_vmcp._protocol.eras import BATCH_VERSION
from trio_vmcp._protocol.jsonrpc import ErrorReply, Notification, Request, Result
from trio_vmcp._protocol.reading import ends_of
from trio_vmcp.serve._errors import INVALID_REQUEST, Refusal
from trio_vmcp.serve._messages import encode_refusal, read_message

__all__ = ["answer_batch"]

MOST_IN_BATCH = 100


async def answer_batch(
    batch: list[bytes],
    version: str,
    answer: Callable[[Request], Awaitable[bytes | None]],
    take: Callable[[Notification | Result | ErrorReply], Awaitable[None]],
) -> bytes | None:
    """Answer all requests of a batch side by side; None: it has none, or all were withdrawn.

    Args:
        version: That the client speaks.
        answer: The response to one request.
        take: Takes what has no response.

    Raises:
        Refusal: The client speaks another version, or the batch is too long.
    """
    if version != BATCH_VERSION:
        raise Refusal(INVALID_REQUEST, f"version {version} has no batches", status=400)
    if len(batch) > MOST_IN_BATCH:
        raise Refusal(INVALID_REQUEST, f"the batch has over {MOST_IN_BATCH} messages", status=400)
    responses: dict[int, bytes] = {}

    async def handle(at: int, data: bytes) -> None:
        try:
            message = await read_message(data)
        except Refusal as refusal:
            responses[at] = encode_refusal(ends_of(data).request_id, refusal)
            return
        if isinstance(message, Request):
            body = await answer(message)
            if body is not None:
                responses[at] = body
        else:
            await take(message)

    async with trio.open_nursery() as nursery:
        for at, data in enumerate(batch):
            start_task(nursery, handle, at, data)
    return b"[" + b",".join(responses[at] for at in sorted(responses)) + b"]" if responses else None
