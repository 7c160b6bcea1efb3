"""The requests and replies of an ASGI server. Knows nothing of MCP.

Source: ASGI 3.0, HTTP & WebSocket message format. `send` may wait for a slow client; a server need not report by it
that the client is gone, which only `receive` does.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import chain
from typing import Any, TypeAlias

import attrs
import trio

__all__ = ["BodyTooLarge", "ClientGone", "HttpReply", "HttpRequest", "Receive", "Send"]

Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]
HeaderList: TypeAlias = Iterable[tuple[bytes, bytes]]

_AUTHORITY = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
_NONE: frozenset[str] = frozenset()


_MOST_BEHIND_BODY = 16  # messages; ASGI has none but the disconnect


class BodyTooLarge(Exception):
    """The body of a request is over the limit. The rest was not read."""


class ClientGone(Exception):
    """The client has closed its connection."""


@attrs.define(eq=False)
class HttpRequest:
    """One HTTP request.

    Attributes:
        verb: In upper case.
        headers: By name in lower case; the values of repeated ones joined by ", " (RFC 9110 §5.3).
        repeated: The names that were sent more than once.
        scope: Of all that is done for the request. Cancelled if the body takes too long, and when nothing more can be
            done for it: one scope for both, since each takes as long as the parse of a short body.
        is_late: It is cancelled since its body takes too long.
    """

    verb: str
    path: str
    headers: dict[str, str] = attrs.field(repr=False)
    repeated: frozenset[str]
    _receive: Receive = attrs.field(alias="receive", repr=False)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    is_late: bool = attrs.field(default=False, init=False)

    @classmethod
    def of(cls, scope: Mapping[str, Any], receive: Receive) -> HttpRequest:
        pairs = _decoded([*scope["headers"]])
        headers, repeated = dict(pairs), _NONE
        if len(headers) < len(pairs):
            headers, repeated = _joined(pairs)
        path = scope["path"]
        if not path.startswith("/"):  # "a server MUST accept the absolute-form in requests" (RFC 9112 §3.2.2)
            path = _AUTHORITY.sub("", path, count=1)
        root = (scope.get("root_path") or "").rstrip("/")
        # A mounted application gets the whole path or the rest of it, as its server sees fit.
        if root and f"{path}/".startswith(f"{root}/"):  # under "/m", "/mcp" is the rest of a path
            path = path[len(root) :]
        return cls(scope["method"], path, headers, repeated, receive)

    async def read_body(self, most: int) -> bytes:
        """The body, counted while it arrives: `Content-Length` may be absent, or wrong.

        Raises:
            BodyTooLarge: It is over `most` bytes.
            ClientGone: The client left in the middle.
        """
        length = self.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and len(length) < 20 and int(length) > most:
            raise BodyTooLarge
        pieces: list[bytes] = []
        is_whole = False
        while not is_whole:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            most -= len(piece)
            if most < 0:
                raise BodyTooLarge
            pieces.append(piece)
            is_whole = not message.get("more_body", False)
        return b"".join(pieces)

    async def wait_gone(self) -> None:
        """Until the client has closed its connection. Call this once the body is read."""
        for _ in range(_MOST_BEHIND_BODY):
            if (await self._receive())["type"] == "http.disconnect":
                return
        await trio.sleep_forever()  # a server that repeats itself tells nothing


def _decoded(pairs: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """As text. All at once, which takes half of the time, unless a server lets a line break pass."""
    texts = b"\n".join(chain.from_iterable(pairs)).decode("latin-1").split("\n")
    decoded = list(zip(texts[::2], texts[1::2], strict=False))
    if len(texts) == 2 * len(pairs):
        return decoded
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in pairs]


def _joined(pairs: list[tuple[str, str]]) -> tuple[dict[str, str], frozenset[str]]:
    headers: dict[str, str] = {}
    repeated: set[str] = set()
    for name, value in pairs:
        if name in headers:
            repeated.add(name)
            value = f"{headers[name]}, {value}"  # the rest of the loop wants the joined one
        headers[name] = value
    return headers, frozenset(repeated)


@attrs.define(eq=False)
class HttpReply:
    """The reply to one request: either whole (`respond`) or a stream (`start`, `write`, `end`).

    Attributes:
        more_headers: Of whatever reply there will be.
        has_started: Its status is sent.
    """

    _send: Send = attrs.field(alias="send", repr=False)
    # "The server MUST NOT send content in the response" to HEAD, and gives the length that GET has: RFC 9110 §9.3.2.
    _is_to_head: bool = attrs.field(default=False, alias="is_to_head", kw_only=True)
    more_headers: HeaderList = attrs.field(default=(), init=False, repr=False)
    has_started: bool = attrs.field(default=False, init=False)

    async def respond(self, status: int, body: bytes = b"", headers: HeaderList = ()) -> None:
        # "MUST NOT send a Content-Length header field in any response with a status code of … 204": RFC 9110 §8.6.
        length = [] if status == 204 else [(b"content-length", b"%d" % len(body))]
        await self._pass_on(
            {"type": "http.response.start", "status": status, "headers": [*length, *headers, *self.more_headers]},
            {"type": "http.response.body", "body": b"" if self._is_to_head else body},
        )

    async def start(self, status: int, headers: HeaderList) -> None:
        await self._pass_on(
            {"type": "http.response.start", "status": status, "headers": [*headers, *self.more_headers]}
        )

    async def write(self, data: bytes) -> None:
        await self._pass_on({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._pass_on({"type": "http.response.body", "body": b""})

    async def _pass_on(self, *messages: dict[str, Any]) -> None:
        """
        Raises:
            ClientGone: The server says so: "if send() is called on a closed connection the server should raise … a
                subclass of OSError" (ASGI 3.0, HTTP). hypercorn does not.
        """
        self.has_started = True
        try:
            for message in messages:
                await self._send(message)
        except OSError:
            raise ClientGone from None
