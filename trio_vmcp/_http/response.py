"""HTTP/1.1 on the wire, without I/O: the head of a request as bytes, the bytes of a response as head and body.

llhttp reads (by httptools): Node's parser, in C, a twentieth of the CPU of one in Python, and stricter. It refuses bare
line feeds, folded headers, repeated lengths, and a length beside a transfer coding. What it leaves to its user is
checked here: the version, transfer codings other than chunked, and how much comes that is no body.
"""

from __future__ import annotations

import re
from typing import TypeAlias

import httptools

__all__ = ["BadHead", "BadResponse", "Headers", "ResponseParser", "encode_head", "encode_headers"]

Headers: TypeAlias = list[tuple[bytes, bytes]]

MAX_HEAD_BYTES = 64 * 1024  # since the last byte of a body: status line, headers, chunks' heads, trailers
MOST_INFORMATIONAL = 16  # 1xx responses before the real one: each is cheap to send

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")  # §5.5
_TARGET = re.compile(rb"[\x21-\x7e]+")


class BadHead(ValueError):
    """HTTP cannot carry it. The text does not quote it: a header may be a credential."""


class BadResponse(ValueError):
    """What came is not a response of HTTP/1.1. The text quotes none of it."""


def encode_head(verb: str, target: bytes, headers: Headers) -> bytes:
    """The request line and headers, without the empty line behind them.

    Raises:
        BadHead: A part of it would not be one.
    """
    if not (_TOKEN.fullmatch(verb.encode()) and _TARGET.fullmatch(target)):
        raise BadHead("HTTP/1.1 cannot carry this request line")
    for name, value in headers:
        if not (_TOKEN.fullmatch(name) and _VALUE.fullmatch(value)):
            raise BadHead("HTTP/1.1 cannot carry one of the headers")
    return b"%s %s HTTP/1.1\r\n%s" % (verb.encode(), target, encode_headers(headers))


def encode_headers(headers: Headers) -> bytes:
    """Lines of a head: headers of our own making, which need no look at every character.

    Raises:
        BadHead: A value would be more than a line.
    """
    lines = b"".join([b"%s: %s\r\n" % pair for pair in headers])
    if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers) or b"\0" in lines:
        raise BadHead("a header holds a line break")
    return lines


class ResponseParser:
    """The responses of one connection, one after another. Not attrs: llhttp calls back on it, thousands of times.

    Attributes:
        status: Of the response, once its head is here; until then 0. Never 1xx: those are passed over.
        headers: Names in lower case.
        is_ended: It is here to its last byte.
        is_clean: It is, nothing came behind it, and the peer goes on listening.
    """

    def __init__(self) -> None:
        self._llhttp = httptools.HttpResponseParser(self)
        self.begin()

    def begin(self) -> None:
        """A request goes out; what comes from here on answers it."""
        self.status = 0
        self.headers: Headers = []
        self.is_ended = self.is_clean = False
        self._body: list[bytes] = []
        self._no_body = 0  # bytes since the last one of a body
        self._informational = 0
        self._has_length = self._is_chunked = self._keeps_alive = False
        self._problem: str | None = None

    def feed(self, data: bytes | bytearray) -> None:
        """Take what was received. Raises: BadResponse."""
        bodies = len(self._body)
        try:
            self._llhttp.feed_data(data)
        except httptools.HttpParserCallbackError as exc:
            raise exc.__context__ or exc from None  # a Ctrl-C in one of our callbacks, say
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            if not self.is_ended:  # else it is about what came behind
                self._refuse(type(exc).__name__)
            self.is_clean = False
        if self._problem is not None:
            self.is_clean = False
            raise BadResponse(self._problem)  # out here: the parser's own error quotes what it was given
        self._no_body = 0 if len(self._body) > bodies else self._no_body + len(data)
        if self._no_body > MAX_HEAD_BYTES and not self.is_ended:
            raise BadResponse(f"over {MAX_HEAD_BYTES} bytes of headers")

    def feed_eof(self) -> bool:
        """The peer has closed. Whether that ends the response as it should."""
        if self.status and not self._has_length and not self._is_chunked:
            self.is_ended = True
        return self.is_ended

    def end_without_body(self) -> None:
        """The response is to a HEAD request, of which llhttp does not know."""
        self.is_ended, self.is_clean, self._body = True, False, []

    @property
    def has_body(self) -> bool:
        """There is some of the body that was not taken yet."""
        return bool(self._body)

    def take_body(self) -> bytes:
        """All that is here of the body and was not taken yet."""
        pieces, self._body = self._body, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # What llhttp calls. An exception raised in here would come out wrapped: problems are noted for `feed`.

    def on_message_begin(self) -> None:
        if self.is_ended:  # nobody asked for this one
            self.is_clean, self._keeps_alive = False, False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:  # of a trailer, or of what comes behind
            return
        name = name.lower()
        if name == b"content-length":
            self._has_length = True
        elif name == b"transfer-encoding":
            # Spaces only: of "chunked" and a tab llhttp thinks that it is no chunks.
            if self._is_chunked or value.rstrip(b" ").lower() != b"chunked":
                self._refuse("a transfer coding other than chunked")
            self._is_chunked = True
        self.headers.append((name, value.rstrip(b" \t")))  # RFC 9110 §5.5; what is before it llhttp takes off

    def on_headers_complete(self) -> None:
        if self.status:
            return
        status = self._llhttp.get_status_code()
        if 100 <= status < 200:
            self._informational += 1
            self.headers = []
            self._has_length = self._is_chunked = False
            if self._informational > MOST_INFORMATIONAL:
                self._refuse(f"over {MOST_INFORMATIONAL} informational responses")
            return
        if status < 100:
            self._refuse("a status that is none")
        if self._llhttp.get_http_version() not in ("1.1", "1.0"):
            self._refuse("another version of HTTP")
        self.status = status
        self._keeps_alive = self._llhttp.should_keep_alive()

    def on_body(self, piece: bytes) -> None:
        if not self.status:
            self._refuse("an informational response with a body")
        elif not self.is_ended:  # else it is of a response that nobody asked for
            self._body.append(piece)

    def on_message_complete(self) -> None:
        if self.status:  # else it was an informational one
            self.is_ended, self.is_clean = True, self._keeps_alive

    def _refuse(self, problem: str) -> None:
        self._problem = self._problem or problem
