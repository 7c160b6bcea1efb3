"""The bodies of the front: one JSON-RPC message of a client as a record, results and errors as bytes."""

from __future__ import annotations

import json

import trio

from trio_vmcp._protocol.json_cost import MOST_VALUES, TooCostly, check_cost, is_cheap
from trio_vmcp._protocol.jsonrpc import (
    BadMessage,
    ErrorReply,
    Message,
    RequestId,
    encode_error,
    parse_cheap,
    parse_in_steps,
    split_batch_in_steps,
    to_text,
)
from trio_vmcp._protocol.numbers import encode_spelled, holds_spelled
from trio_vmcp._steps import take_steps
from trio_vmcp.models import JSON
from trio_vmcp.serve._errors import INVALID_REQUEST, PARSE_ERROR, Refusal

__all__ = ["encode_answer", "encode_refusal", "read_message", "split_batch"]

MAX_DEPTH = 128

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
# A backend may write half a surrogate pair as an escape, which is no text and has no UTF-8. It is passed on escaped.
_encode_escaped = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


async def read_message(data: bytes) -> Message:
    """One message of a client. A large one is read in steps, with a checkpoint between them.

    Raises:
        Refusal: It is no JSON, or no JSON-RPC message. HTTP 400.
    """
    try:
        text = to_text(data)
        if is_cheap(text, MOST_VALUES):
            return parse_cheap(text, max_depth=MAX_DEPTH)
        steps = parse_in_steps(text, max_depth=MAX_DEPTH, max_values=MOST_VALUES)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                message: Message = end.value
                return message
            await trio.lowlevel.checkpoint()
    except BadMessage as bad:
        code = INVALID_REQUEST if bad.is_json else PARSE_ERROR
        raise Refusal(code, f"the body {bad}", status=400) from None


async def split_batch(data: bytes) -> list[bytes] | None:
    """The messages of a batch, each as its own text; None: the body is no batch.

    Raises:
        Refusal: It is a batch, and cannot be split or is over a limit.
    """
    if data.lstrip(b" \t\r\n\xef\xbb\xbf")[:1] != b"[":
        return None
    try:
        text = to_text(data)
        for _ in check_cost(text, MOST_VALUES):
            await trio.lowlevel.checkpoint()
        texts = await take_steps(split_batch_in_steps(text))
    except (BadMessage, TooCostly) as bad:
        raise Refusal(PARSE_ERROR, f"the body {bad}", status=400) from None
    if not texts:
        raise Refusal(INVALID_REQUEST, "the batch is empty, or no JSON", status=400)
    return [text.encode("utf-8", "surrogatepass") for text in texts]


def encode_answer(request_id: RequestId, result: JSON) -> bytes:
    """A result as the backend gave it: the order of its keys and the spelling of its numbers stay."""
    message = {"jsonrpc": "2.0", "id": request_id, "result": result}
    if holds_spelled(message):
        text = encode_spelled(message)
    else:
        text = _encode(message)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _encode_escaped(message).encode()


def encode_refusal(request_id: RequestId | None, refusal: Refusal | ErrorReply) -> bytes:
    """An error, with the code of its cause also where the words cannot be sent: they may hold half a surrogate pair."""
    try:
        return encode_error(request_id, refusal.code, refusal.message, refusal.data)
    except ValueError:
        return encode_error(request_id, refusal.code, "the words of this error are no text")
