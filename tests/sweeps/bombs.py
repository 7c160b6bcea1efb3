"""Answers that are made to cost their reader memory or time, as faults of a scripted backend."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator

import attrs

from trio_vmcp.testing import WireFault
from trio_vmcp.testing.faults import Cut, Step

__all__ = ["BOMBS", "Bomb"]

KIB, MIB = 1 << 10, 1 << 20
GZIP, DEFLATE = 31, 15  # zlib's `wbits`

JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
ENDS = b"connection: close\r\n"


@attrs.frozen
class Bomb(WireFault):
    """These bytes instead of the answer, of which there may be no end."""

    chunks: Callable[[], Iterator[bytes]]

    def steps(self, sent: int, data: bytes) -> Iterator[Step]:
        yield from self.chunks()
        yield Cut.EOF


def whole(*parts: bytes) -> Bomb:
    return Bomb(lambda: iter(parts))


def endless(head: bytes, piece: bytes) -> Bomb:
    """`piece` for ever, some at a time, with checkpoints of the server's in between."""
    block = piece * (64 * KIB // len(piece) + 1)
    return Bomb(lambda: itertools.chain([head], itertools.repeat(block)))


def result(content: bytes) -> Bomb:
    """A JSON answer of its own, which is as long as it says. The connection ends behind it, as the head announces: a
    client that has read the whole answer may use it for its next call before the end arrives.
    """
    body = b'{"jsonrpc":"2.0","id":1,"result":{"content":[' + content + b"]}}"
    return whole(JSON_HEAD + ENDS + b"content-length: %d\r\n\r\n" % len(body), body)


def deflated(wbits: int) -> bytes:
    """1 GiB of nothing in 1 MiB: one block, repeated, since each begins anew."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, wbits)
    first, again = (squeeze.compress(bytes(MIB)) + squeeze.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + again * 1023


def encoded(head: bytes, encoding: bytes, body: bytes) -> Bomb:
    return whole(head + ENDS + b"content-encoding: %s\r\ncontent-length: %d\r\n\r\n" % (encoding, len(body)), body)


PROGRESS = b'data: {"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":9,"progress":1}}\n\n'

# By what is wrong with them. Where a size matters it is just within max_message_bytes, 16 MiB: what is over that never
# comes to a parser.
BOMBS: dict[str, dict[str, Bomb]] = {
    "encodings": {
        "gzip": encoded(JSON_HEAD, b"gzip", deflated(GZIP)),
        "gzip in events": encoded(SSE_HEAD, b"gzip", deflated(GZIP)),
        "gzip in an error": encoded(b"HTTP/1.1 500 No\r\n", b"gzip", deflated(GZIP)),
        "gzip twice": encoded(JSON_HEAD, b"gzip, gzip", deflated(GZIP)),
        "deflate": encoded(JSON_HEAD, b"deflate", deflated(DEFLATE)),
        "br": encoded(JSON_HEAD, b"br", bytes(KIB)),
        "zstd": encoded(JSON_HEAD, b"zstd", b"\x28\xb5\x2f\xfd" + bytes(KIB)),
    },
    "heads": {
        "endless headers": endless(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        "an endless header": endless(b"HTTP/1.1 200 OK\r\nx: ", b"y"),
        "12 000 headers": whole(JSON_HEAD, b"x: y\r\n" * 12_000, b"content-length: 2\r\n\r\n{}"),
        "endless early hints": endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    },
    "endless answers": {
        "an endless body": endless(JSON_HEAD + b"\r\n", b" "),
        "an endless error": endless(b"HTTP/1.1 500 No\r\n\r\n", b" "),
        "an endless chunk size": endless(JSON_HEAD + b"transfer-encoding: chunked\r\n\r\n", b"0"),
        "chunks of one byte": endless(JSON_HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        "an endless line": endless(SSE_HEAD + b"\r\ndata: ", b"x"),
        "an endless event": endless(SSE_HEAD + b"\r\n", b"data: x\n"),
        "endless empty lines of data": endless(SSE_HEAD + b"\r\n", b"data\n"),
        "endless comments": endless(SSE_HEAD + b"\r\n", b": alive\n\n"),
        "endless events": endless(SSE_HEAD + b"\r\n", b"event: x\ndata: y\n\n"),
        "endless progress": endless(SSE_HEAD + b"\r\n", PROGRESS),
    },
    "large answers": {
        "17 MiB": result(b'"' + b"x" * (17 * MIB) + b'"'),
        "deep arrays": result(b"[" * (7 * MIB) + b"]" * (7 * MIB)),
        "deep objects": result(b'{"a":' * (2 * MIB) + b"0" + b"}" * (2 * MIB)),
        "a deep event": whole(SSE_HEAD + b"\r\ndata: ", b"[" * (15 * MIB), b"\n\n"),
        "a huge integer": result(b"9" * (15 * MIB)),
        "a huge exponent": result(b"1e" + b"9" * (15 * MIB)),
        "empty arrays": result(b"[]," * (5 * MIB) + b"0"),
        "small objects": result(b'{"a":0},' * (2 * MIB - KIB) + b"0"),
        "many keys": result(b"{" + b",".join(b'"%x":[]' % number for number in range(MIB)) + b"}"),
        "floats": result(b"0.1," * (4 * MIB - KIB) + b"0"),
    },
}
