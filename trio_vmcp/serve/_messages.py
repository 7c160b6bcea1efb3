"""The messages of the front: one JSON-RPC message of a client as a record, those to clients as bytes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Generator
from typing import TypeVar

import trio

from trio_vmcp._protocol.json_cost import MOST_VALUES, TooCostly, check_cost, is_cheap
from trio_vmcp._protocol.jsonrpc import (
    BadMessage,
    ErrorReply,
    Message,
    Notification,
    RequestId,
    parse_cheap,
    parse_in_steps,
    split_batch_in_steps,
    to_text,
)
from trio_vmcp._protocol.numbers import encode_spelled, holds_spelled
from trio_vmcp.models import JSON
from trio_vmcp.serve._errors import INVALID_REQUEST, PARSE_ERROR, Refusal

__all__ = [
    "COSTLY",
    "begins_batch",
    "encode_answer",
    "encode_notice",
    "encode_question",
    "encode_refusal",
    "read_message",
    "split_batch",
]

MAX_DEPTH = 128
COSTLY = 16 * 1024  # characters or bytes, which take up to 1 ms to parse
TURN = 0.0001  # s of the processor, for each of which other tasks have a turn; with none of them that is some us
_T = TypeVar("_T")
_EMPTY_ARRAY = re.compile(r"[ \t\r\n]*\[[ \t\r\n]*\][ \t\r\n]*")


async def _take_paid_steps(steps: Generator[None, None, _T]) -> _T:
    """What the steps bring. Behind each of them other tasks have turns in proportion to what the step has cost: a call
    of another client takes some seven turns, and would meet a step of this text in most of them.

    Raises:
        ValueError: As the steps raise it.
    """
    ended: StopIteration | ValueError | None = None
    while ended is None:
        began = time.thread_time()
        try:
            next(steps)
        except (StopIteration, ValueError) as end:
            ended = end
        for _ in range(1 + int((time.thread_time() - began) / TURN)):
            await trio.lowlevel.checkpoint()
    try:
        if isinstance(ended, ValueError):
            raise ended
        value: _T = ended.value
        return value
    finally:
        del ended  # else: a reference cycle


async def read_message(data: bytes) -> Message:
    """One message of a client. A large one is read in steps, with a checkpoint between them.

    Raises:
        Refusal: It is no JSON, or no JSON-RPC message. HTTP 400.
    """
    message = await _parse(data)
    if isinstance(message, Notification) and message.has_null_id:
        raise Refusal(INVALID_REQUEST, "the id of a request must not be null", status=400)
    return message


async def _parse(data: bytes) -> Message:
    try:
        text = to_text(data)
        if len(text) < COSTLY and is_cheap(text, MOST_VALUES):
            return parse_cheap(text, max_depth=MAX_DEPTH)
        return await _take_paid_steps(parse_in_steps(text, max_depth=MAX_DEPTH, max_values=MOST_VALUES))
    except BadMessage as bad:
        code = INVALID_REQUEST if bad.is_json else PARSE_ERROR
        raise Refusal(code, f"the body {bad}", status=400) from None


def begins_batch(data: bytes) -> bool:
    """A body begins as a batch does."""
    return data.lstrip(b" \t\r\n\xef\xbb\xbf")[:1] == b"["


async def split_batch(data: bytes) -> list[bytes]:
    """The messages of a batch, each as its own text.

    Raises:
        Refusal: It cannot be split or is over a limit.
    """
    try:
        text = to_text(data)
        await _take_paid_steps(check_cost(text, MOST_VALUES))
        texts = await _take_paid_steps(split_batch_in_steps(text))
    except (BadMessage, TooCostly) as bad:
        raise Refusal(PARSE_ERROR, f"the body {bad}", status=400) from None
    if not texts:
        is_empty = _EMPTY_ARRAY.fullmatch(text) is not None
        raise Refusal(INVALID_REQUEST if is_empty else PARSE_ERROR, "the batch is empty, or no JSON", status=400)
    return [text.encode("utf-8", "surrogatepass") for text in texts]


def encode_answer(request_id: RequestId, result: JSON) -> bytes:
    """A result as the backend gave it: the order of its keys and the spelling of its numbers stay."""
    return _encode({"jsonrpc": "2.0", "id": request_id, "result": result})


def encode_refusal(request_id: RequestId | None, refusal: Refusal | ErrorReply) -> bytes:
    """An error; `data` None: absent."""
    error: JSON = {"code": refusal.code, "message": refusal.message}
    if refusal.data is not None:
        error["data"] = refusal.data
    return _encode({"jsonrpc": "2.0", "id": request_id, "error": error})


def encode_question(question_id: int, method: str, params: JSON) -> bytes:
    """A request to a client."""
    return _encode({"jsonrpc": "2.0", "id": question_id, "method": method, "params": params})


def encode_notice(method: str, params: JSON) -> bytes:
    """A notification to a client."""
    return _encode({"jsonrpc": "2.0", "method": method, "params": params})


def _encode(message: JSON) -> bytes:
    text = encode_spelled(message) if holds_spelled(message) else _plain(message)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _HALVES.sub(_escaped, text).encode()


def _escaped(half: re.Match[str]) -> str:
    return f"\\u{ord(half[0]):04x}"


_plain = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
# A backend may write half a surrogate pair as an escape, which is no text and has no UTF-8. It stays an escape.
_HALVES = re.compile("[\ud800-\udfff]")
