"""JSON-RPC 2.0 as MCP uses it: our messages as bytes, a backend's bytes as a message. Sans-IO.

Parsing is strict where JSON-RPC says MUST: an answer that breaks these rules cannot be matched to a request safely.
Three deviations are accepted: a byte order mark (RFC 8259 §8.1 lets parsers ignore it), an error without `id` (MCP's
schema makes it optional), and null for a member that may be absent (typed languages write absent members so). Of
duplicate keys the last one counts, as in `json` (RFC 8259 §4 leaves it open). Lone surrogates inside strings stay as
they are: else one bad description would cost a whole list.

Neither the text of `BadMessage` nor its context holds any received data, which may be secret, or 16 MiB.
"""

from __future__ import annotations

import gc
import json
import math
import re
from collections.abc import Callable, Generator
from functools import lru_cache
from types import NoneType
from typing import Any, TypeAlias, TypeGuard, TypeVar

import attrs

from trio_vmcp._protocol.json_cost import MOST_NUMBER_DIGITS, MOST_VALUES, TooCostly, check_cost, is_cheap
from trio_vmcp._protocol.json_depth import is_deeper
from trio_vmcp._protocol.json_slices import decode_in_steps, split_in_steps
from trio_vmcp._protocol.numbers import encode_spelled, holds_spelled, keep_spelling
from trio_vmcp.models import JSON

__all__ = [
    "BOM",
    "MOST_AT_ONCE",
    "BadMessage",
    "ErrorReply",
    "Message",
    "Notification",
    "Request",
    "RequestId",
    "Result",
    "encode_error",
    "encode_notification",
    "encode_request",
    "encode_result",
    "meant_id",
    "parse_cheap",
    "parse_in_steps",
    "parse_message",
    "parse_text",
    "same_id",
    "split_batch_in_steps",
    "to_text",
]

BOM = "\ufeff".encode()  # "parsers MAY ignore the presence of a byte order mark" (RFC 8259 §8.1)
RequestId: TypeAlias = int | str
_Argument = TypeVar("_Argument")
_T = TypeVar("_T")


class BadMessage(ValueError):
    """A backend's bytes are not one JSON-RPC message. The text completes the sentence "a message that …".

    Attributes:
        reply_id: The id of the request that the message seems to answer; None: unknown.
        is_too_large: The message is over a limit for what it costs to parse.
        is_json: The bytes are JSON, and no message of JSON-RPC.
    """

    reply_id: int | None = None
    is_too_large: bool = False
    is_json: bool = False


@attrs.frozen
class Result:
    id: RequestId
    result: JSON = attrs.field(repr=False)


@attrs.frozen
class ErrorReply:
    """A JSON-RPC error. `id` is None if the backend could not read the id of the request (JSON-RPC 2.0 §5)."""

    id: RequestId | None
    code: int
    message: str
    data: Any = attrs.field(repr=False)  # None when absent


@attrs.frozen
class Request:
    id: RequestId
    method: str
    params: JSON = attrs.field(repr=False)  # {} when absent


@attrs.frozen
class Notification:
    """
    Attributes:
        params: {} when absent.
        has_null_id: It has an id, and that is null, which MCP forbids (basic, "Requests"): a sloppy notification, or a
            request that cannot be answered.
    """

    method: str
    params: JSON = attrs.field(repr=False)
    has_null_id: bool = attrs.field(default=False, eq=False, repr=False)


Message: TypeAlias = Result | ErrorReply | Request | Notification


# ensure_ascii=False: MCP demands UTF-8 (basic/transports), which is half the size of escapes. A lone surrogate then
# raises here; escaped, most JSON parsers would refuse the request that holds it (RFC 8259 §8.2).
_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def encode_request(request_id: int, method: str, params: JSON | None) -> bytes:
    """Raises: ValueError, naming the method and the place."""
    # Four of six requests of an opening; the encoder takes ten times as long.
    if params is not None and not params and method.isascii():
        return b'{"jsonrpc":"2.0","id":%d,"method":%s,"params":{}}' % (request_id, _encoded_method(method))
    message: JSON = {"jsonrpc": "2.0", "id": request_id, "method": method}
    if params is not None:
        message["params"] = params
    return _encode(message, f"params of {method!r}")


@lru_cache(maxsize=64)
def _encoded_method(method: str) -> bytes:
    return _encoder.encode(method).encode()


def encode_notification(method: str, params: JSON | None) -> bytes:
    """Raises: ValueError, naming the method and the place."""
    if params is None and method.isascii():  # the end of each handshake
        return b'{"jsonrpc":"2.0","method":%s}' % _encoded_method(method)
    message: JSON = {"jsonrpc": "2.0", "method": method}
    if params is not None:
        message["params"] = params
    return _encode(message, f"params of {method!r}")


def encode_result(request_id: RequestId, result: JSON) -> bytes:
    """Answer a backend's request. Raises: ValueError."""
    return _encode({"jsonrpc": "2.0", "id": request_id, "result": result}, "the result")


def encode_error(request_id: RequestId | None, code: int, message: str, data: Any = None) -> bytes:
    """Refuse a request of the other side.

    Args:
        request_id: None: it could not be read (JSON-RPC 2.0 §5).
        data: None: absent.

    Raises:
        ValueError: Names the place.
    """
    error: JSON = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return _encode({"jsonrpc": "2.0", "id": request_id, "error": error}, "the error")


def check_sendable(value: object, what: str) -> None:
    """Raises: ValueError, naming `what` and the place in it: it cannot be sent."""
    _encode({what: value}, what)


def _encode(message: JSON, what: str) -> bytes:
    try:
        text = _encoder.encode(message)  # first: the search for spelled numbers in a value that holds itself has no end
        return (encode_spelled(message) if holds_spelled(message) else text).encode()
    except RecursionError:
        why = "it is nested too deeply"
    except (TypeError, ValueError):  # UnicodeEncodeError, too; their texts name no place
        why = _not_json(message)
    raise ValueError(f"{what} cannot be sent as JSON: {why}")


def _not_json(message: JSON) -> str:
    """The first value in a message that JSON has not: its place and its kind, never the value."""
    level: list[tuple[str, Any]] = [(key, message[key]) for key in message if key not in _ENVELOPE]
    seen: set[int] = set()  # what holds itself has no end
    for place, value in level:
        if isinstance(value, str):
            if _LONE_SURROGATE.search(value):
                return f"{place} holds a lone surrogate"
        elif isinstance(value, float):
            if not math.isfinite(value):
                return f"{place} is {value}"
        elif isinstance(value, dict | list | tuple):
            if id(value) in seen:
                continue
            seen.add(id(value))
            for key in value if isinstance(value, dict) else ():
                if not isinstance(key, str | int | float | None):
                    return f"{place} has a key that is {type(key).__name__}, not str"
                if isinstance(key, str) and _LONE_SURROGATE.search(key):
                    return f"{place} has a key with a lone surrogate"
                if isinstance(key, float) and not math.isfinite(key):
                    return f"{place} has a key that is {key}"
            members = value.items() if isinstance(value, dict) else enumerate(value)
            level += [(_place(place, key), item) for key, item in members]
        elif not isinstance(value, int | None):
            return f"{place} is {type(value).__name__}"
    return "something in it holds itself"


def _place(place: str, key: object) -> str:
    """Where a member is. Cut where it is long: the keys are the caller's."""
    below = f"{place}[{key}]" if isinstance(key, int) else f"{place}.{key}"
    return below if len(below) <= _MOST_PLACE else below[: _MOST_PLACE - 1] + "…"


_MOST_PLACE = 200  # characters
_ENVELOPE = frozenset({"jsonrpc", "id", "method"})


def parse_message(data: bytes | bytearray | memoryview, *, max_depth: int, max_values: float = MOST_VALUES) -> Message:
    """Read one JSON-RPC message.

    Args:
        max_depth: Objects and arrays inside each other, the message itself counted.
        max_values: Members of objects and elements of arrays, together.

    Raises:
        BadMessage: Says what is wrong, and where, without any of the data.
    """
    return parse_text(to_text(data), max_depth=max_depth, max_values=max_values)


def parse_text(text: str, *, max_depth: int, max_values: float = MOST_VALUES) -> Message:
    """`parse_message` without `to_text`, so that a caller can free the bytes of a large message in between."""
    if is_cheap(text, max_values):  # most messages: a generator would take longer than its one step
        return parse_cheap(text, max_depth=max_depth)
    return _all_at_once(parse_in_steps(text, max_depth=max_depth, max_values=max_values))


def parse_cheap(text: str, *, max_depth: int) -> Message:
    """`parse_text` for a text that is cheap."""
    message = _loads(text)
    is_too_deep = _has_brackets(text, max_depth) and _all_at_once(is_deeper(text, max_depth))
    return _checked(message, is_too_deep=is_too_deep, max_depth=max_depth)


def parse_in_steps(text: str, *, max_depth: int, max_values: float) -> Generator[None, None, Message]:
    """`parse_text` for a text that is not cheap, with a step wherever other tasks may run: between the slices of the
    count and of the parse.
    """
    try:
        values = yield from check_cost(text, max_values)
    except TooCostly as exc:
        raise _too_large(str(exc)) from None
    # Before the parse, and no step after it: what was parsed is still in the processor's caches when it is looked at.
    is_too_deep = _has_brackets(text, max_depth) and (yield from is_deeper(text, max_depth))
    if len(text) >= _LONG_TEXT:
        yield
    if _is_few_strings(text, values):
        message = _loads(text)
    else:
        message = yield from _loads_in_steps(text, is_dense=values * DENSE > len(text))
    return _checked(message, is_too_deep=is_too_deep, max_depth=max_depth)


def _all_at_once(steps: Generator[None, None, _T]) -> _T:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: _T = end.value
            return value


def meant_id(received: object) -> int | None:
    """The request id that a peer meant: some JSON writers turn 7 into "7" or 7.0. None: no number."""
    if type(received) is int:
        return received
    if type(received) is float and received.is_integer():
        return int(received)
    if type(received) is str and received.isascii() and received.isdigit() and len(received) <= _MOST_ID_DIGITS:
        return int(received)
    return None


_MOST_ID_DIGITS = 18


def _reply_id(message: Any) -> int | None:
    if (
        not _is_object(message)
        or message.get("method") is not None
        or message.keys().isdisjoint(("jsonrpc", "result", "error"))
    ):
        return None
    return meant_id(message.get("id"))


def _checked(message: Any, *, is_too_deep: bool, max_depth: int) -> Message:
    try:
        if not _is_object(message):
            raise BadMessage(f"is {_kind(message)}, not a JSON-RPC object")  # MCP 2025-06-18 removed batches
        if is_too_deep:
            raise BadMessage(f"is nested deeper than {max_depth} (max_json_depth)")
        if message.get("jsonrpc") != "2.0":
            raise BadMessage("is not marked as JSON-RPC 2.0")
        return _reply(message) if message.get("method") is None else _call(message)
    except BadMessage as bad:
        bad.reply_id, bad.is_json = _reply_id(message), True
        raise


def same_id(received: RequestId | None, ours: int) -> bool:
    """Whether an answer is for our request. `True == 1 == 1.0` in Python, but they are three ids in JSON-RPC."""
    return type(received) is int and received == ours


def to_text(data: bytes | bytearray | memoryview) -> str:
    """Raises: BadMessage."""
    begin = len(BOM) if data[: len(BOM)] == BOM else 0  # skipped here: without its first character, a text is a copy
    try:
        return str(memoryview(data)[begin:] if begin else data, "utf-8")  # json.loads would take UTF-16 and UTF-32, too
    except UnicodeDecodeError as exc:
        problem = f"is not UTF-8 at byte {begin + exc.start}"
    # Raised outside of the except: as a context, UnicodeDecodeError would keep the whole input alive.
    raise BadMessage(problem)


def _loads(text: str, *, is_dense: bool = False) -> Any:
    try:
        decoder = _decoder_for(text)
        return _without_collector(decoder.decode, text) if is_dense else decoder.decode(text)
    except _UNPARSABLE as exc:
        bad = _what_is_bad(exc)
    raise bad  # outside of the except: JSONDecodeError holds the document


def _loads_in_steps(text: str, *, is_dense: bool) -> Generator[None, None, Any]:
    if len(text) <= MOST_AT_ONCE:
        return _loads(text, is_dense=is_dense)
    steps = decode_in_steps(_decoder_for(text), text)
    bad: BadMessage | None = None
    while bad is None:
        try:
            _without_collector(next, steps) if is_dense else next(steps)
        except StopIteration as ended:
            value, end = ended.value
            if end == len(text):
                return value
            bad = BadMessage(f"is not JSON at character {end}")
        except _UNPARSABLE as exc:
            bad = _what_is_bad(exc)
        else:
            yield
    raise bad


def split_batch_in_steps(text: str) -> Generator[None, None, list[str]]:
    """The messages of a JSON-RPC batch, each as its own text; empty: `text` is no array of JSON."""
    steps = split_in_steps(_decoder, text)
    while True:
        try:
            _without_collector(next, steps)
        except StopIteration as ended:
            parts: list[str] = ended.value
            return parts
        yield


_UNPARSABLE = (ValueError, RecursionError, MemoryError)


def _what_is_bad(exc: BaseException) -> BadMessage:
    if isinstance(exc, BadMessage):  # from a hook of the decoder
        return exc
    if isinstance(exc, json.JSONDecodeError):
        return BadMessage(f"is not JSON at character {exc.pos}")
    if isinstance(exc, RecursionError):
        return BadMessage("is nested deeper than the JSON parser goes")
    if isinstance(exc, MemoryError):  # a message of small objects takes thirty times its size in memory
        return BadMessage("takes more memory to parse than there is")
    # int() refuses more digits than sys.get_int_max_str_digits(): the conversion is quadratic
    return _too_large("holds an integer of too many digits")


def _without_collector(function: Callable[[_Argument], _T], argument: _Argument) -> _T:
    """Without the cyclic garbage collector: all that a parse makes is in use, so the collector would look through it in
    vain. That is nine tenths of the time for 100 000 empty arrays. Not for a list of 1000 tools, which is kept: its
    objects would wait for the second generation all together, and no longer be in the processor's caches then (2.3 ms a
    list with the collector on, 3.4 ms with it off).
    """
    if not gc.isenabled():
        return function(argument)
    try:
        gc.disable()
        return function(argument)
    finally:
        gc.enable()


def _too_large(problem: str) -> BadMessage:
    bad = BadMessage(problem)
    bad.is_too_large = True
    return bad


def _finite(literal: str) -> float:
    """Refuse 1e999, which `float` reads as infinity. `parse_constant` sees the literals NaN and Infinity only."""
    if len(literal) > MOST_NUMBER_DIGITS:
        raise _too_large(f"holds a number of over {MOST_NUMBER_DIGITS} digits")
    number = float(literal)
    if math.isinf(number):
        raise BadMessage("holds a number that no float can hold")
    return keep_spelling(literal, number)


def _refuse_constant(_literal: str) -> float:
    raise BadMessage("holds NaN or Infinity, which JSON has not")


def _whole(literal: str) -> float:
    return keep_spelling(literal) if literal == "-0" else int(literal)


_decoder = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant)
_careful_decoder = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant, parse_int=_whole)
_MINUS_ZERO = re.compile(r"-0(?![\d.eE])")


def _decoder_for(text: str) -> json.JSONDecoder:
    """Python has no negative integer 0, so -0 becomes a number with a spelling. A function for integers slows the parse
    down, so only a text that may hold -0 is parsed with one; dates hold "-0" before a digit.
    """
    return _careful_decoder if _may_hold_minus_zero(text) else _decoder


def _may_hold_minus_zero(text: str) -> bool:
    """From one dash to the next: `find` of one character uses memchr, and that of two takes ten times as long."""
    at, left = text.find("-"), _FEW_DASHES + len(text) // _DASHES_APART
    while at >= 0 and left and text[at + 1 : at + 2] != "0":
        at, left = text.find("-", at + 1), left - 1
    return at >= 0 and _MINUS_ZERO.search(text, at) is not None


_FEW_DASHES = 16
_DASHES_APART = 256  # characters on average; where dashes are closer, the search for both characters is as fast


def _has_brackets(text: str, limit: int) -> bool:
    """Whether more than `limit` brackets open. Most messages have fewer, and need no `is_deeper`."""
    if len(text) < _LONG_TEXT:
        return text.count("{") + text.count("[") > limit
    for bracket in "{[":  # `find` uses memchr; `count` of a long text takes twenty times as long
        position = text.find(bracket)
        while position >= 0:
            limit -= 1
            if limit < 0:
                return True
            position = text.find(bracket, position + 1)
    return False


def _is_few_strings(text: str, values: int) -> bool:
    """Whether a text is a few long strings, which the parser goes through at 1 GB/s: in slices it takes three times as
    long, most of it for copies.
    """
    if values > FEW_VALUES or len(text) > MOST_OF_FEW_STRINGS:
        return False
    return "\\" not in text or text.count("\\") <= FEW_ESCAPES


# Together they take 10 ms.
FEW_VALUES, FEW_ESCAPES, MOST_OF_FEW_STRINGS = 1000, 50_000, 10 * 1024 * 1024
_LONG_TEXT = 64 * 1024
DENSE = 5  # characters for each value, at most: lists of tools have ten and more
# Characters that are parsed in one step: 25 ms, if they are many members with a key each and an object of its own.
MOST_AT_ONCE = 512 * 1024


def _call(message: JSON) -> Request | Notification:
    method, params = message["method"], message.get("params")
    if message.get("result") is not None or message.get("error") is not None:
        raise BadMessage("is a request and a response in one")
    _refuse_long("a method", method)
    if not _is_encodable(method):
        raise BadMessage(f"has {_kind(method)} for a method, not encodable text")
    if params is None:
        params = {}
    if not _is_object(params):
        raise BadMessage(f"has {_kind(params)} for params, not an object")
    request_id = message.get("id")
    if request_id is None:
        return Notification(method, params, "id" in message)
    _refuse_long("an id", request_id)
    # The id is sent back, so it must be encodable.
    if type(request_id) is not int and not _is_encodable(request_id):
        raise BadMessage(f"has {_kind(request_id)} for an id, not an integer or encodable text")
    return Request(request_id, method, params)


MOST_ID_LENGTH = 64 * 1024  # characters, of a method too: it is hashed, quoted or sent back in one step


def _refuse_long(what: str, value: object) -> None:
    if isinstance(value, str) and len(value) > MOST_ID_LENGTH:
        raise BadMessage(f"has {what} of over {MOST_ID_LENGTH} characters")


def _reply(message: JSON) -> Result | ErrorReply:
    reply_id = message.get("id")
    if type(reply_id) not in (int, str, NoneType):
        raise BadMessage(f"has {_kind(reply_id)} for an id, not an integer or a string")
    _refuse_long("an id", reply_id)
    result, error = message.get("result"), message.get("error")
    if result is not None and error is not None:
        raise BadMessage("has both of result and error, and no method")
    if error is not None:
        return _error(reply_id, error)
    if "result" not in message:
        raise BadMessage("has neither of result and error, and no method")
    return _result(reply_id, result)


def _result(reply_id: RequestId | None, result: Any) -> Result:
    if reply_id is None:
        raise BadMessage("is a result without an id")
    if not _is_object(result):
        raise BadMessage(f"has {_kind(result)} for a result, not an object")
    return Result(reply_id, result)


def _error(reply_id: RequestId | None, error: Any) -> ErrorReply:
    if not _is_object(error):
        raise BadMessage(f"has {_kind(error)} for an error, not an object")
    code, text = error.get("code"), error.get("message")
    if type(code) is not int or type(text) is not str:
        raise BadMessage(f"has an error with {_kind(code)} for a code and {_kind(text)} for a message")
    return ErrorReply(reply_id, code, text, error.get("data"))


def _is_object(value: object) -> TypeGuard[JSON]:
    return type(value) is dict


def _is_encodable(value: object) -> TypeGuard[str]:
    return type(value) is str and not _LONE_SURROGATE.search(value)


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # json joins the pairs, so those that are left are alone

_KINDS: dict[type, str] = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", NoneType: "null"}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "a number")
