"""Heads and responses as bytes: what is read, however it arrives, what is refused, and when a connection is used up."""

from __future__ import annotations

import traceback
from collections.abc import Iterable

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_vmcp._http.response import (
    MAX_HEAD_BYTES,
    MOST_INFORMATIONAL,
    BadHead,
    BadResponse,
    Headers,
    ResponseParser,
    encode_head,
    encode_headers,
)

LINE = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: 2\r\n\r\n{}"
CHUNKED = LINE + b"Transfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


@attrs.define
class Parsed:
    """A response, as far as it has arrived."""

    status: int
    headers: Headers
    body: bytes
    is_ended: bool = True
    is_clean: bool = True


def parse(*pieces: bytes, eof: bool = False) -> Parsed:
    parser = ResponseParser()
    body = feed(parser, pieces)
    if eof:
        parser.feed_eof()
    return Parsed(parser.status, parser.headers, body, parser.is_ended, parser.is_clean)


def feed(parser: ResponseParser, pieces: Iterable[bytes]) -> bytes:
    body = b""
    for piece in pieces:
        parser.feed(piece)
        body += parser.take_body()
    return body


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


# What is read


def test_a_response_with_a_length() -> None:
    """Names are in lower case, values without the blanks around them, in the order received."""
    response = LINE + b"X-One:  a b \t \r\nX-Two:\r\nX-One: \xff\r\n" + LENGTH
    headers = [(b"x-one", b"a b"), (b"x-two", b""), (b"x-one", b"\xff"), (b"content-length", b"2")]
    assert Parsed(200, headers, b"{}") == parse(response) == parse(*bytewise(response))


def test_a_response_in_chunks() -> None:
    """Chunk extensions and trailers are skipped (RFC 9112 §7.1)."""
    response = CHUNKED + b"2;a=b\r\n{}\r\nA\r\n0123456789\r\n0\r\nX-Trailer: 1\r\n\r\n"
    expected = Parsed(200, [(b"transfer-encoding", b"chunked")], b"{}0123456789")
    assert expected == parse(response) == parse(*bytewise(response))


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("header", [b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_response_that_has_no_body_whatever_it_says(status: int, header: bytes) -> None:
    parsed = parse(b"HTTP/1.1 %d x\r\n%s\r\n" % (status, header))
    assert (status, b"", True, True) == (parsed.status, parsed.body, parsed.is_ended, parsed.is_clean)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_body_may_end_with_the_connection(version: bytes) -> None:
    """Without a length and chunks the body ends with the connection (RFC 9112 §6.3), which is not reusable then."""
    response = b"HTTP/%s 200 OK\r\n\r\n{}" % version
    assert Parsed(200, [], b"{}", is_ended=False, is_clean=False) == parse(response)
    assert Parsed(200, [], b"{}", is_ended=True, is_clean=False) == parse(response, eof=True)


@pytest.mark.parametrize("response", [b"", b"\r\n", b"HTTP/1.", LINE, LINE + LENGTH[:-1], CHUNKED + b"2\r\n{}\r\n"])
def test_an_end_in_the_middle_ends_nothing(response: bytes) -> None:
    parser = ResponseParser()
    if response:
        parser.feed(response)
    assert not parser.feed_eof()
    assert not parser.is_ended
    assert not parser.is_clean


def test_a_response_to_head_has_no_body() -> None:
    """A response to HEAD has no body, whatever length it names (RFC 9112 §6.3); bytes behind it are no body either."""
    parser = ResponseParser()
    parser.feed(LINE + LENGTH)
    parser.end_without_body()
    assert (True, False, b"") == (parser.is_ended, parser.is_clean, parser.take_body())


def test_informational_responses_are_passed_over() -> None:
    """Responses 1xx are skipped with their headers (RFC 9110 §15.2)."""
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    response = (b"HTTP/1.1 100 Continue\r\n\r\n" + hints * (MOST_INFORMATIONAL - 1)) + LINE + LENGTH
    assert Parsed(200, [(b"content-length", b"2")], b"{}") == parse(response) == parse(*bytewise(response))


def test_what_an_informational_response_says_of_itself_is_not_of_the_next() -> None:
    """The length of a 1xx response does not apply to the final response, which ends with the connection."""
    early = b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\n"
    assert Parsed(200, [], b"{}", is_clean=False) == parse(early + LINE + b"\r\n{}", eof=True)


def test_one_response_after_another() -> None:
    """Each response answers the request before it, and nothing of one response is in the next."""
    parser = ResponseParser()
    for number in range(3):
        parser.begin()
        body = b"%d" % number
        assert body == feed(parser, [LINE + b"X: %d\r\nContent-Length: 1\r\n\r\n" % number, body])
        assert (200, [(b"x", body), (b"content-length", b"1")]) == (parser.status, parser.headers)
        assert parser.is_clean


# What is used up


@pytest.mark.parametrize(
    "response",
    [
        LINE + b"Connection: close\r\n" + LENGTH,
        LINE + b"Connection: TE, Close\r\n" + LENGTH,
        LINE + b"Connection: keep-alive\r\nConnection: close\r\n" + LENGTH,
        b"HTTP/1.0 200 OK\r\n" + LENGTH,
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ],
)
def test_a_server_that_will_close(response: bytes) -> None:
    """With `Connection: close`, or in HTTP/1.0, the response is whole and the connection is not reusable (RFC 9112
    §9.3); in HTTP/1.0 with a transfer coding also if the server says that it is (§6.1).
    """
    for parsed in (parse(response), parse(*bytewise(response))):
        assert (b"{}", True, False) == (parsed.body, parsed.is_ended, parsed.is_clean)


@pytest.mark.parametrize(
    "response",
    [
        LINE + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + LENGTH,  # an offer of an upgrade, as Apache sends it
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + LENGTH,
        LINE + LENGTH + b"\r\n",  # one empty line too many, as old servers send it
    ],
)
def test_a_server_that_goes_on_listening(response: bytes) -> None:
    assert parse(response).is_clean


@pytest.mark.parametrize(
    "whole", [LINE + LENGTH, CHUNKED + b"2\r\n{}\r\n0\r\n\r\n", LINE + b"Content-Length: 0\r\n\r\n"]
)
@pytest.mark.parametrize(
    "surplus", [b"H", b"x", b"\0", LINE, LINE + LENGTH, CHUNKED + b"5\r\nhello\r\n", b"}" * 100_000]
)
def test_what_comes_behind_a_response(whole: bytes, surplus: bytes) -> None:
    """Bytes behind a response, even a whole second response, belong to no response, and the connection is not
    reusable.
    """
    for pieces in ([whole + surplus], [whole, surplus], bytewise(whole + surplus[:100])):
        parsed = parse(*pieces)
        assert (b"" if b": 0" in whole else b"{}", True, False) == (parsed.body, parsed.is_ended, parsed.is_clean)
        assert 200 == parsed.status
        assert 1 == len(parsed.headers)


# What is refused

NO_RESPONSES = {
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "a request": b"GET / HTTP/1.1\r\n\r\n",
    "version 2.0": b"HTTP/2.0 200 OK\r\n" + LENGTH,
    "version 0.9": b"HTTP/0.9 200 OK\r\n" + LENGTH,
    "version 1.2": b"HTTP/1.2 200 OK\r\n" + LENGTH,
    "a version in small letters": b"http/1.1 200 OK\r\n" + LENGTH,
    "two digits": b"HTTP/1.1 20 OK\r\n" + LENGTH,
    "four digits": b"HTTP/1.1 2000 OK\r\n" + LENGTH,
    "status 000": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "status 099": b"HTTP/1.1 099 OK\r\n" + LENGTH,
    "two spaces": b"HTTP/1.1  200 OK\r\n" + LENGTH,
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
    "one bare line feed": LINE + b"A: b\n" + LENGTH,
    "a bare line feed at the end": LINE + b"Content-Length: 2\r\n\n{}",
    "a carriage return in a value": LINE + b"A: b\rC: d\r\n" + LENGTH,
    "a folded header": LINE + b"A: b\r\n c\r\n" + LENGTH,
    "a header that begins with a space": LINE + b" A: b\r\n" + LENGTH,
    "NUL": LINE + b"A: b\0\r\n" + LENGTH,
    "a control character": LINE + b"A: b\x01\r\n" + LENGTH,
    "a space before the colon": LINE + b"A : b\r\n" + LENGTH,
    "no colon": LINE + b"A\r\n" + LENGTH,
    "no name": LINE + b": a\r\n" + LENGTH,
    "the same length twice": LINE + b"Content-Length: 2\r\n" + LENGTH,
    "two lengths": LINE + b"Content-Length: 3\r\n" + LENGTH,
    "a list of lengths": LINE + b"Content-Length: 2, 2\r\n\r\n{}",
    "a length with a plus": LINE + b"Content-Length: +2\r\n\r\n{}",
    "a negative length": LINE + b"Content-Length: -2\r\n\r\n{}",
    "a hexadecimal length": LINE + b"Content-Length: 0x2\r\n\r\n{}",
    "an empty length": LINE + b"Content-Length: \r\n\r\n{}",
    "a length over 64 bits": LINE + b"Content-Length: 18446744073709551616\r\n\r\n{}",
    "a length and chunks": LINE + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunks and a length": LINE + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "gzip": LINE + b"Transfer-Encoding: gzip\r\n\r\n",
    "gzip in chunks": LINE + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunks in gzip": LINE + b"Transfer-Encoding: chunked, gzip\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunks in chunks": LINE + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunks and a tab": LINE + b"Transfer-Encoding: chunked\t\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "nearly chunks": LINE + b"Transfer-Encoding: xchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "identity": LINE + b"Transfer-Encoding: identity\r\n\r\n{}",
    "an empty coding": LINE + b"Transfer-Encoding:\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunks with bare line feeds": CHUNKED + b"2\n{}\n0\n\n",
    "a space behind a chunk's size": CHUNKED + b"2 \r\n{}\r\n0\r\n\r\n",
    "a chunk's size with a prefix": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk's size over 64 bits": CHUNKED + b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "a negative chunk": CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
    "a chunk without a size": CHUNKED + b"\r\n{}\r\n0\r\n\r\n",
    "a chunk that is longer": CHUNKED + b"2\r\n{}}\r\n0\r\n\r\n",
    "a line feed in a chunk's extension": CHUNKED + b"2;a\nb\r\n{}\r\n0\r\n\r\n",
    "a length in a trailer": CHUNKED + b"2\r\n{}\r\n0\r\nContent-Length: 7\r\n\r\n",
    "a switch of protocols": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + LINE,
    "a switch to nothing": b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + LINE + LENGTH,
    "an informational response with a body": b"HTTP/1.1 110 x\r\nContent-Length: 3\r\n\r\nabc" + LINE + LENGTH,
    "another in chunks": b"HTTP/1.1 110 x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + LINE + LENGTH,
    "too many informational responses": b"HTTP/1.1 103 x\r\n\r\n" * (MOST_INFORMATIONAL + 1) + LINE + LENGTH,
}


@pytest.mark.parametrize("name", NO_RESPONSES)
def test_what_is_no_response_is_refused(name: str) -> None:
    """Bytes that are no response are refused, at once or byte by byte, and the connection is not reusable."""
    for pieces in ([NO_RESPONSES[name]], bytewise(NO_RESPONSES[name])):
        parser = ResponseParser()
        with pytest.raises(BadResponse):
            feed(parser, pieces)
        assert not parser.is_clean


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 ", b"O"),
        (LINE + b"x", b"y"),
        (LINE + b"x: ", b"y"),
        (LINE, b"x: y\r\n"),
        (CHUNKED, b"0"),
        (CHUNKED + b"1;", b"x"),
        (CHUNKED + b"1\r\nx\r\n0\r\n", b"x: y\r\n"),
        (b"", b"\r\n"),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_heads_are_limited(head: bytes, piece: bytes, size: int) -> None:
    """The limit holds for a status line, a name, a value, all headers, the head or extension of a chunk, trailers and
    empty lines.
    """
    parser = ResponseParser()
    feed(parser, [head])
    pieces = MAX_HEAD_BYTES // len(piece * size) + 1
    with pytest.raises(BadResponse):
        feed(parser, [piece * size] * pieces)


def test_the_limit_of_a_head_is_exact() -> None:
    for begun in range(2):  # also for a connection's second response
        for surplus in range(2):
            parser = ResponseParser()
            for _ in range(begun):
                feed(parser, [LINE + LENGTH])
                parser.begin()
            head = LINE + b"x: " + b"y" * (MAX_HEAD_BYTES - len(LINE) - 3 + surplus)
            if surplus:
                with pytest.raises(BadResponse, match="over 65536 bytes of headers"):
                    feed(parser, bytewise(head))
            else:
                feed(parser, bytewise(head))


def test_a_long_body_counts_as_no_head() -> None:
    """The head's limit does not count the bytes of a body, however it is chunked."""
    parser = ResponseParser()
    body = feed(parser, [CHUNKED, *[b"1\r\nx\r\n"] * MAX_HEAD_BYTES, LAST_CHUNK])
    assert MAX_HEAD_BYTES == len(body)
    assert parser.is_clean


def test_a_head_of_nearly_the_limit_is_read() -> None:
    head = LINE + b"x: y\r\n" * ((MAX_HEAD_BYTES - 100) // 6) + LENGTH
    assert 10_000 < len(parse(head).headers)


SECRET = b"s3cret"


@pytest.mark.parametrize("response", [LINE + b"Mcp-Session-Id: s3cret\x01\r\n", LINE + b"s3cret\r\n", b"s3cret"])
def test_nothing_of_a_response_is_in_what_refuses_it(response: bytes) -> None:
    """Received bytes are neither in the text of the error nor in its traceback: a header may be a session id."""
    with pytest.raises(BadResponse) as caught:
        parse(response)
    assert SECRET.decode() not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


def test_an_interrupt_in_a_callback_is_no_bad_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """llhttp wraps exceptions of its callbacks; a KeyboardInterrupt comes out as itself."""

    def interrupt(self: ResponseParser, piece: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ResponseParser, "on_body", interrupt)
    with pytest.raises(KeyboardInterrupt):
        parse(LINE + LENGTH)


# However it arrives

tokens = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789!#$%&'*+.^_`|~-", min_size=1, max_size=12).map(str.encode)
visible = st.sampled_from([*range(0x21, 0x7F), *range(0x80, 0x100)])
values = st.builds(
    lambda first, middle, last: bytes([first, *middle, last]),
    visible,
    st.lists(visible | st.sampled_from([0x20, 0x09]), max_size=20),
    visible,
) | st.just(b"")
FRAMING = {b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"proxy-connection", b"keep-alive"}
free_headers = st.lists(st.tuples(tokens, values).filter(lambda pair: pair[0].lower() not in FRAMING), max_size=6)
spaces = st.sampled_from([b"", b" ", b"\t", b"  "])
# blanks behind a framing header: llhttp refuses a tab there, or ignores the header
only_spaces = st.sampled_from([b"", b" ", b"  "])


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, Parsed]:
    """A valid response with 1xx responses before it, and the result of reading it."""
    status = draw(st.integers(200, 599).filter(lambda drawn: drawn not in (204, 304)))
    body = draw(st.binary(max_size=200))
    headers = draw(free_headers)
    chunks = draw(st.none() | st.lists(st.integers(1, 50), max_size=6))
    if chunks is None:
        framing = (draw(st.sampled_from([b"Content-Length", b"content-length"])), b"%d" % len(body))
        wire = body
    else:
        framing = (draw(st.sampled_from([b"Transfer-Encoding", b"transfer-encoding"])), b"chunked")
        wire, at = b"", 0
        for size in [*chunks, len(body)]:
            piece, at = body[at : at + size], at + size
            extension = draw(st.sampled_from([b"", b";a", b';a="b c"']))
            wire += b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) if piece else b""
        wire += b"0\r\n" + draw(st.sampled_from([b"", b"X-Trailer: 1\r\n"])) + b"\r\n"
    at = draw(st.integers(0, len(headers)))
    headers = [*headers[:at], framing, *headers[at:]]
    lines = [
        b"%s:%s%s%s\r\n" % (name, draw(spaces), value, draw(only_spaces if name.lower() in FRAMING else spaces))
        for name, value in headers
    ]
    reason = draw(st.sampled_from([b" OK", b" ", b"", b" Not \xff Found"]))
    before = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * draw(st.integers(0, 2))
    head = before + b"HTTP/1.1 %d%s\r\n" % (status, reason) + b"".join(lines) + b"\r\n"
    return head + wire, Parsed(status, [(name.lower(), value) for name, value in headers], body)


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    cuts = sorted({place % len(data) for place in places} - {0})
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(responses(), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_response_cut_anywhere_reads_the_same(response: tuple[bytes, Parsed], places: list[int]) -> None:
    wire, expected = response
    assert expected == parse(wire) == parse(*cut(wire, places)) == parse(*bytewise(wire))


@given(st.lists(responses(), min_size=2, max_size=3), st.lists(st.integers(0, 10_000), max_size=6))
def test_responses_of_one_connection_stay_apart(drawn: list[tuple[bytes, Parsed]], places: list[int]) -> None:
    parser = ResponseParser()
    for wire, expected in drawn:
        parser.begin()
        body = feed(parser, cut(wire, places))
        assert expected == Parsed(parser.status, parser.headers, body, parser.is_ended, parser.is_clean)


@given(st.binary(max_size=300), st.lists(st.integers(0, 10_000), max_size=6))
def test_any_bytes_are_read_or_refused(data: bytes, places: list[int]) -> None:
    """Any bytes are read or refused with BadResponse, and bytes that are refused whole are refused in pieces."""
    for start in (b"", LINE, CHUNKED):
        outcomes: list[Parsed | None] = []
        for pieces in ([start + data], [start, data], [start, *cut(data, places)] if data else [start]):
            try:
                outcomes.append(parse(*pieces))
            except BadResponse:
                outcomes.append(None)
        assert outcomes[0] == outcomes[1] == outcomes[2]


# Heads of requests


def test_a_head_is_a_line_and_headers() -> None:
    """The encoded head has no empty line at its end: more headers may follow."""
    headers = [(b"Host", b"b"), (b"X", b""), (b"Y", b"\xff a")]
    assert b"POST /mcp?a=b HTTP/1.1\r\nHost: b\r\nX: \r\nY: \xff a\r\n" == encode_head("POST", b"/mcp?a=b", headers)


@pytest.mark.parametrize("verb", ["", "G T", "GET\r\n", "GET\0", "G(T"])
def test_a_verb_that_is_none(verb: str) -> None:
    with pytest.raises(BadHead):
        encode_head(verb, b"/", [])


@pytest.mark.parametrize("target", [b"", b"/a b", b"/\r\nX: y", b"/\n", b"/\0", b"/\xff"])
def test_a_target_that_is_none(target: bytes) -> None:
    with pytest.raises(BadHead):
        encode_head("GET", target, [])


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"a\r", b"\xff", b"a\n"])
def test_a_name_that_is_none(name: bytes) -> None:
    with pytest.raises(BadHead):
        encode_head("GET", b"/", [(name, b"s3cret")])


@pytest.mark.parametrize(
    "value", [b"s3cret\r", b"s3cret\n", b"s3cret\r\nX: y", b"s3cret\0", b" s3cret", b"s3cret\t", b"\x7fs3cret"]
)
def test_a_value_that_is_none(value: bytes) -> None:
    """A header that HTTP cannot carry is refused, and the error does not quote it: it may be a credential."""
    with pytest.raises(BadHead) as caught:
        encode_head("GET", b"/", [(b"a", value)])
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("value", [b"a\r", b"a\n", b"a\r\nX: y", b"a\rb", b"a\0", b"\r\n"])
def test_headers_of_our_own_are_one_line_each(value: bytes) -> None:
    with pytest.raises(BadHead):
        encode_headers([(b"Mcp-Session-Id", value)])
