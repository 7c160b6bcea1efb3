"""Read the messages of a stream, so that an unreadable message is skipped and later messages are not lost.

If the id of an unreadable answer can be found, its request fails at once and does not wait for its deadline. So does an
unreadable request whose id can be found: it is answered under that id.
Serializers write the id of a message at its very beginning or its very end. So the id can be found even if the rest is
not UTF-8, not JSON, or over the size limit and discarded.
"""

from __future__ import annotations

import re

import attrs

from trio_vmcp._protocol.jsonrpc import BadMessage, RequestId, to_text

__all__ = [
    "END_BYTES",
    "MOST_SKIPPED",
    "Oversized",
    "Unreadable",
    "decode",
    "ends_of",
    "find_reply_id",
    "reply_id_at_ends",
    "request_id_at_ends",
    "unreadable",
]

END_BYTES = 256  # of each end of a message, enough for its id
MOST_SKIPPED = 4  # times the size limit, that a message may go on and be skipped; beyond that the stream has no end


@attrs.define
class Oversized:
    """A message over the size limit, of which only the ends are kept.

    Attributes:
        head, tail: The first and the last END_BYTES bytes.
        size: Bytes in all.
    """

    head: bytes = attrs.field(default=b"", init=False, repr=False)
    tail: bytes = attrs.field(default=b"", init=False, repr=False)
    size: int = attrs.field(default=0, init=False)

    def add(self, piece: bytes | bytearray) -> None:
        """The next bytes of the message."""
        self.size += len(piece)
        self.head += piece[: END_BYTES - len(self.head)]
        self.tail = bytes((self.tail + piece[-END_BYTES:])[-END_BYTES:])

    @property
    def reply_id(self) -> int | None:
        """The id of the request that the message answers; None: it is not known, or this answers none."""
        return reply_id_at_ends(self.head, self.tail)

    @property
    def request_id(self) -> RequestId | None:
        """The id of the message, if it is a request; None: it is not known, or this is none."""
        return request_id_at_ends(self.head, self.tail)

    @property
    def is_call(self) -> bool:
        """The message is a request or a notification: no request waits for it."""
        return _CALL.match(self.head) is not None


@attrs.frozen
class Unreadable:
    """A message that cannot be read.

    Attributes:
        problem: Completes the sentence "a message that …".
        reply_id: The id of the request that the message seems to answer; None: unknown.
        too_large: The message was not parsed, since it is over a limit for what that costs; None: another problem.
    """

    problem: str
    reply_id: int | None
    too_large: Oversized | None = None


def ends_of(data: bytes | bytearray) -> Oversized:
    """The ends of a message that is there whole."""
    ends = Oversized()
    ends.head, ends.tail, ends.size = bytes(data[:END_BYTES]), bytes(data[-END_BYTES:]), len(data)
    return ends


def decode(data: bytes | bytearray) -> str | Unreadable:
    """The text of one message. Separate from `read`, so that the bytes of a large message can be freed in between."""
    try:
        return to_text(data)
    except BadMessage as bad:
        problem = str(bad)
    return Unreadable(problem, reply_id_at_ends(data[:END_BYTES], data[-END_BYTES:]))


def unreadable(text: str, bad: BadMessage) -> Unreadable:
    """What is known of a message whose text cannot be parsed."""
    ends = Oversized()
    for end in (text[:END_BYTES], text[-END_BYTES:]):
        ends.add(end.encode(errors="surrogatepass"))
    reply_id = bad.reply_id if bad.reply_id is not None else ends.reply_id
    return Unreadable(str(bad), reply_id, ends if bad.is_too_large else None)


def reply_id_at_ends(head: bytes | bytearray, tail: bytes | bytearray) -> int | None:
    """The id of an answer, found at its ends; None: the ends do not prove that it is an answer with an id."""
    found = _ID_FIRST.match(head) or (_ANSWER.match(head) and _ID_LAST.search(tail))
    return int(found[1]) if found else None


def request_id_at_ends(head: bytes | bytearray, tail: bytes | bytearray) -> RequestId | None:
    """The id of a request, found at its ends; None: the ends do not prove that it is a request with an id."""
    found = _CALL_ID_FIRST.match(head)
    if found is None and _CALL.match(head):
        found = _CALL_ID_LAST.search(tail)
    if found is None:
        return None
    written = found["id"].decode("ascii")
    return written[1:-1] if written.startswith('"') else int(written)


def find_reply_id(text: str, request_id: int) -> tuple[int, int] | None:
    """Where the id of an answer to this request begins and ends; None: `text` is no such answer, or its id does not
    stand at one of its ends.
    """
    head = text[:END_BYTES].encode("ascii", "replace")  # a byte for each character
    found, start = _ID_FIRST.match(head), 0
    if not found and _ANSWER.match(head):
        tail = text[-END_BYTES:].encode("ascii", "replace")
        found, start = _ID_LAST.search(tail), len(text) - len(tail)
    if not found or found[1] != b"%d" % request_id:
        return None
    begin, end = found.span(1)
    return None if text[start + begin - 1] == '"' else (start + begin, start + end)


_BEGIN = rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?'
_ID = rb'"id"\s*:\s*"?(\d{1,18})"?\s*'
_CALL = re.compile(_BEGIN + rb'(?:"id"\s*:\s*[^,]{1,64},\s*)?"(?:method|params)"\s*:')
# JSON of a call's id: an integer, or a text without escapes. Behind the params, the id is that of the message only if a
# closed object or the version stands before it: in a message that is cut off, it could be an argument.
_CALL_ID = rb'"id"\s*:\s*(?P<id>-?(?:0|[1-9]\d{0,17})|"[ !#-\[\]-~]{0,128}")\s*'
_CALL_ID_FIRST = re.compile(_BEGIN + _CALL_ID + rb',\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"(?:method|params)"\s*:')
_CALL_ID_LAST = re.compile(
    rb'(?:\}|,\s*"jsonrpc"\s*:\s*"2\.0")\s*,\s*' + _CALL_ID + rb'(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*\Z'
)
_ANSWER = re.compile(_BEGIN + rb'"(?:result|error)"\s*:')
_ID_FIRST = re.compile(_BEGIN + _ID + rb',\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"(?:result|error)"\s*:')
_ID_LAST = re.compile(rb',\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?' + _ID + rb'(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*\Z')
