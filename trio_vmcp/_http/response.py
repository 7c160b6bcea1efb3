"""HTTP/1.1 on the wire, without I/O: the head of a request as bytes, the bytes of a response as head and body.

The parser is llhttp, Node's, through httptools: in C, a twentieth of the CPU of a parser in Python, and stricter. It
refuses bare line feeds (RFC 9112 §2.2), folded headers (§5.2), repeated lengths, and a length beside a transfer coding
(§6.3). Checked here, since llhttp leaves it to its user: the version, transfer codings other than chunked, and how
many bytes arrive that belong to no body.
"""

from __future__ import annotations

import re
from typing import TypeAlias

import httptools

__all__ = ["BadHead", "BadResponse", "Headers", "ResponseParser", "encode_head", "encode_headers"]

Headers: TypeAlias = list[tuple[bytes, bytes]]

MAX_HEAD_BYTES = 64 * 1024  # since the last byte of a body: status line, headers, heads of chunks, trailers
MOST_INFORMATIONAL = 16  # 1xx responses before the final one (RFC 9110 §15.2 sets no limit)

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")  # §5.5
_TARGET = re.compile(rb"[\x21-\x7e]+")


class BadHead(ValueError):
    """HTTP cannot carry this request's head. The text does not quote the head: a header may be a credential."""


class BadResponse(ValueError):
    """The bytes that came are no HTTP/1.1 response. The text quotes none of them."""


def encode_head(verb: str, target: bytes, headers: Headers) -> bytes:
    """The request line and headers, without the empty line behind them.

    Raises:
        BadHead: The request line or a header breaks the grammar.
    """
    if not (_TOKEN.fullmatch(verb.encode()) and _TARGET.fullmatch(target)):
        raise BadHead("HTTP/1.1 cannot carry this request line")
    for name, value in headers:
        if not (_TOKEN.fullmatch(name) and _VALUE.fullmatch(value)):
            raise BadHead("HTTP/1.1 cannot carry one of the headers")
    return b"%s %s HTTP/1.1\r\n%s" % (verb.encode(), target, encode_headers(headers))


def encode_headers(headers: Headers) -> bytes:
    """Header lines, for headers that this library makes: the check of every character that `encode_head` does is left
    out.

    Raises:
        BadHead: A value holds a line break or NUL, so that it would be more than one line.
    """
    lines = b"".join([b"%s: %s\r\n" % pair for pair in headers])
    if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers) or b"\0" in lines:
        raise BadHead("a header holds a line break")
    return lines


def _problem(exc: Exception) -> str:
    """llhttp's reason, one of its own fixed sentences, for the middle of a sentence of ours."""
    reason = str(exc)
    first = reason.split(" ")[0]
    if isinstance(exc, httptools.HttpParserUpgrade) or not reason:
        return "a change of protocol"
    return reason if first.isupper() else reason[0].lower() + reason[1:]


class ResponseParser:
    """The responses of one connection, one after another. Not an attrs class: llhttp calls its methods thousands of
    times for one response.

    Attributes:
        status: The status of the response once its head has arrived; until then 0. Never 1xx: those are skipped.
        headers: The headers, with names in lower case.
        is_ended: The response has arrived to its last byte.
        pieces: How many pieces the body that was taken last had arrived in: as many as chunks, or more.
        keep_alive: The value of the header `Keep-Alive`; None: there was none.
        is_clean: The response has ended, no byte came behind it, and the peer keeps the connection open.
    """

    def __init__(self) -> None:
        self._llhttp = httptools.HttpResponseParser(self)
        self.begin()

    def begin(self) -> None:
        """Start over for the next request: bytes that arrive from here on answer it."""
        self.status = 0
        self.headers: Headers = []
        self.keep_alive: bytes | None = None
        self.is_ended = self.is_clean = False
        self._body: list[bytes] = []
        self.pieces = 0
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
            if not self.is_ended:  # else the error is about bytes behind the response
                self._refuse(_problem(exc))
            self.is_clean = False
        if self._problem is not None:
            self.is_clean = False
            raise BadResponse(self._problem)  # outside of the except: the error of llhttp quotes its input
        self._no_body = 0 if len(self._body) > bodies else self._no_body + len(data)
        if self._no_body > MAX_HEAD_BYTES and not self.is_ended:
            raise BadResponse(f"over {MAX_HEAD_BYTES} bytes of headers")

    def feed_eof(self) -> bool:
        """The peer has closed the connection. Whether the response is whole: without a length and chunks, the close is
        its end (RFC 9112 §6.3).
        """
        if self.status and not self._has_length and not self._is_chunked:
            self.is_ended = True
        return self.is_ended

    def end_without_body(self) -> None:
        """The request was HEAD, so no body follows (RFC 9112 §6.3). llhttp does not know the request."""
        self.is_ended, self.is_clean, self._body = True, False, []

    @property
    def has_body(self) -> bool:
        """Some of the body has arrived and was not taken yet."""
        return bool(self._body)

    def take_body(self) -> bytes:
        """All of the body that has arrived and was not taken yet."""
        pieces, self._body = self._body, []
        self.pieces = len(pieces)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # What llhttp calls. An exception raised in here would come out wrapped: problems are noted for `feed`.

    def on_message_begin(self) -> None:
        if self.is_ended:  # a second response to one request
            self.is_clean, self._keeps_alive = False, False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:  # a trailer, or a header of a second response
            return
        name = name.lower()
        if name == b"content-length":
            self._has_length = True
        elif name == b"transfer-encoding":
            # Strip spaces only: llhttp does not read "chunked" with a tab behind it as chunked.
            if self._is_chunked or value.rstrip(b" ").lower() != b"chunked":
                self._refuse("a transfer coding other than chunked")
            self._is_chunked = True
        elif name == b"keep-alive":
            self.keep_alive = value
        self.headers.append((name, value.rstrip(b" \t")))  # RFC 9110 §5.5; llhttp strips blanks before the value only

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
        version = self._llhttp.get_http_version()
        if version not in ("1.1", "1.0"):
            self._refuse("another version of HTTP")
        self.status = status
        # HTTP/1.0 has no transfer codings, so the end of such a body is not to be relied on (RFC 9112 §6.1).
        self._keeps_alive = self._llhttp.should_keep_alive() and not (version == "1.0" and self._is_chunked)

    def on_body(self, piece: bytes) -> None:
        if not self.status:
            self._refuse("an informational response with a body")
        elif not self.is_ended:  # else the bytes belong to a second response to one request
            self._body.append(piece)

    def on_message_complete(self) -> None:
        if self.status:  # else an informational response (1xx) has ended
            self.is_ended, self.is_clean = True, self._keeps_alive

    def _refuse(self, problem: str) -> None:
        self._problem = self._problem or problem
