"""Backends that cost almost no CPU: MCP in hand-written bytes, one port for each backend.

Every port is a backend of the legacy era, since connection pools are per origin. The path selects the kind of answer,
so that one server serves every workload: `/json/0` answers with JSON at once, `/sse/20` with an event stream after
20 ms, `/held/0` with JSON and with a held stream for each GET, `/storm/0` with one that announces changes of the tools
all the time. A third part changes one result: `/json/0/1000` lists
1000 tools, the same on all ports; `/json/0/own1000` as many with the port in them; `/json/0/8MiB` answers every call
with a text of that size.

`GET /seen` on any port reports the requests since the last report, the sessions that are left, and the most connections
that one port had open at a time: contenders with the same requests did the same work.

    python backend_server.py COUNT        # prints the COUNT ports as JSON and serves until its stdin closes
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import sys
from collections import Counter
from functools import partial

import attrs
from worker import raise_descriptor_limit

JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%scontent-length: %d\r\n\r\n"
# Chunked (RFC 9112 §7.1), as real servers send a stream: a client that does not read the last chunk cannot reuse the
# connection.
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n%stransfer-encoding: chunked\r\n\r\n%x\r\n"
SSE_END = b"\r\n0\r\n\r\n"
EVENT = b"event: message\ndata: "
EVENT_END = b"\n\n"
STORM_PAUSE = 0.1  # s
HELD_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ACCEPTED = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"
NO_STREAM = b"HTTP/1.1 405 Method Not Allowed\r\nallow: POST, DELETE\r\ncontent-length: 0\r\n\r\n"
SESSION_GONE = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
DELETED = b"HTTP/1.1 204 No Content\r\n\r\n"
# The answer of legacy servers in the field to a modern probe, which has no session id.
_NO_SESSION_BODY = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"Bad Request: no Mcp-Session-Id"}}'
NO_SESSION = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(_NO_SESSION_BODY),
    _NO_SESSION_BODY,
)


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


_CHANGED = EVENT + _compact({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}) + EVENT_END
CHANGED = b"%x\r\n%s\r\n" % (len(_CHANGED), _CHANGED)


def _tool(index: int, title: str = "Tool number") -> dict[str, object]:
    return {
        "name": f"tool_{index}",
        "title": f"{title} {index}",
        "description": "Looks the query up and answers with the best matches, at most `limit` of them, newest first.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "query": {"type": "string", "description": "What to look for, in plain words."},
                "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 10},
            },
            "required": ["query"],
        },
        "annotations": {"readOnlyHint": True},
    }


INITIALIZED = {
    "protocolVersion": "2025-11-25",
    "capabilities": {
        "tools": {"listChanged": True},
        "resources": {"listChanged": True},
        "prompts": {"listChanged": True},
    },
    "serverInfo": {"name": "cheap", "version": "1"},
}
PROMPTS = {
    "prompts": [
        {"name": f"prompt_{index}", "description": "Asks nicely.", "arguments": [{"name": "who", "required": True}]}
        for index in range(3)
    ]
}
TEXT = "one line of text, as most tools answer"
MIB = 1024 * 1024
LARGE = 64 * 1024  # bytes; a larger result is sent as a piece of its own and not copied into every answer


def _called(text: str) -> dict[str, object]:
    return {"content": [{"type": "text", "text": text}], "isError": False}


RESULTS = {
    "initialize": _compact(INITIALIZED),
    "tools/list": _compact({"tools": [_tool(index) for index in range(10)]}),
    "prompts/list": _compact(PROMPTS),
    "tools/call": _compact(_called(TEXT)),
}
OTHERWISE = {
    b"": {},
    b"1000": {"tools/list": _compact({"tools": [_tool(index) for index in range(1000)]})},
    **{
        b"%dMiB" % size: {"tools/call": _compact(_called((TEXT * (size * MIB // len(TEXT) + 1))[: size * MIB]))}
        for size in (1, 8)
    },
}


@attrs.frozen
class Path:
    """The answers under one path of one port.

    Attributes:
        form: "json", "sse", "held" or "storm".
        latency: s before every answer.
        results: JSON by method.
    """

    form: bytes
    latency: float
    results: dict[str, bytes]


def read_path(port: int, path: bytes) -> Path:
    """Resources have the port in their URIs: a URI that two backends list is advertised once only."""
    _, form, latency, *otherwise = path.split(b"/")
    at = f"cheap://{port}"
    resources = [{"uri": f"{at}/{index}", "name": f"resource {index}", "mimeType": "text/plain"} for index in range(3)]
    lists = {
        "resources/list": _compact({"resources": resources}),
        "resources/templates/list": _compact({"resourceTemplates": [{"uriTemplate": f"{at}/{{id}}", "name": "item"}]}),
    }
    if otherwise == [b"own1000"]:
        own = [_tool(index, f"Tool of port {port}, number") for index in range(1000)]
        return Path(form, int(latency) / 1000, RESULTS | lists | {"tools/list": _compact({"tools": own})})
    return Path(form, int(latency) / 1000, RESULTS | lists | OTHERWISE[otherwise[0] if otherwise else b""])


@attrs.define
class Seen:
    """The requests to all backends together, and the sessions that they hold."""

    asked: Counter[str] = attrs.field(factory=Counter)
    sessions: set[bytes] = attrs.field(factory=set)
    connections: int = 0  # the most that one port had open at a time
    ids: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1))

    def report_and_reset(self) -> bytes:
        """The report as a response. Counting starts anew, so that each contender is judged by its own requests."""
        told = {"asked": self.asked, "sessions": len(self.sessions), "connections": self.connections}
        self.asked, self.sessions, self.connections = Counter(), set(), 0
        body = _compact(told)
        return JSON_HEAD % (b"", len(body)) + body


def is_open(transport: asyncio.BaseTransport) -> bool:
    """Whether the client's end is open, too. A client that closes one connection and opens the next has one, though
    the server may see the new one first.
    """
    if not hasattr(socket, "TCP_INFO"):
        return True  # TCP_INFO is known on Linux only
    info: bytes = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return info[0] == TCP_ESTABLISHED


BACKLOG = 4096  # connections that are not accepted yet
TCP_ESTABLISHED = 1  # the first byte of the kernel's struct tcp_info


def _header(head: bytes, name: bytes) -> bytes:
    """The value of a header; `head` and `name` are in lower case."""
    start = head.find(b"\r\n" + name + b":")
    if start < 0:
        return b""
    start += len(name) + 3
    return head[start : head.find(b"\r\n", start)].strip()


def answer(seen: Seen, path: Path, verb: bytes, head: bytes, body: bytes) -> tuple[bytes, ...]:
    """The response, in the pieces in which it is sent."""
    session_id = _header(head, b"mcp-session-id")
    if verb == b"GET":
        seen.asked["GET"] += 1
        return (HELD_STREAM if path.form in (b"held", b"storm") else NO_STREAM,)
    if verb == b"DELETE":
        seen.asked["DELETE"] += 1
        seen.sessions.discard(session_id)
        return (DELETED,)
    message = json.loads(body)
    method = message["method"]
    seen.asked[method] += 1
    assigned = b""
    if method == "initialize":
        session_id = b"session-%d" % next(seen.ids)
        seen.sessions.add(session_id)
        assigned = b"mcp-session-id: %s\r\n" % session_id
    elif not session_id:
        return (NO_SESSION,)
    elif session_id not in seen.sessions:
        return (SESSION_GONE,)
    if "id" not in message:
        return (ACCEPTED,)
    result = path.results[method]
    before = b'{"jsonrpc":"2.0","id":%s,"result":' % _compact(message["id"])
    size = len(before) + len(result) + 1
    if path.form == b"sse":
        before = SSE_HEAD % (assigned, len(EVENT) + size + len(EVENT_END)) + EVENT + before
        pieces = (before, result, b"}" + EVENT_END + SSE_END)
    else:
        pieces = (JSON_HEAD % (assigned, size) + before, result, b"}")
    return pieces if len(result) > LARGE else (b"".join(pieces),)


@attrs.define(eq=False)
class Port:
    """One backend."""

    seen: Seen
    number: int = 0
    open: set[asyncio.BaseTransport] = attrs.field(factory=set)
    paths: dict[bytes, Path] = attrs.field(factory=dict)

    def note_open(self, transport: asyncio.BaseTransport) -> None:
        self.open.add(transport)
        if len(self.open) > self.seen.connections:
            self.seen.connections = max(self.seen.connections, sum(map(is_open, self.open)))

    def path(self, target: bytes) -> Path:
        found = self.paths.get(target)
        if found is None:
            found = self.paths[target] = read_path(self.number, target)
        return found


class Connection(asyncio.Protocol):
    """One connection to a backend: one request after another. Callbacks, and no task: a backend that takes as long for
    a request as the client does would be measured with the client.
    """

    def __init__(self, port: Port) -> None:
        self.port = port
        self.received = b""
        self.is_answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.port.note_open(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.port.open.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.is_answering:
            self._serve()

    def _serve(self) -> None:
        """Answer the requests that are here whole, up to one whose answer waits for its latency."""
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            verb, target, _ = self.received.split(b" ", 2)
            head = self.received[: end + 2].lower()
            end += 4 + int(_header(head, b"content-length") or 0)
            if len(self.received) < end:
                return
            body, self.received = self.received[len(head) + 2 : end], self.received[end:]
            if target == b"/seen":
                self.transport.write(self.port.seen.report_and_reset())
                continue
            path = self.port.path(target)
            if path.latency:
                self.is_answering = True
                asyncio.get_running_loop().call_later(path.latency, self._answer_late, path, verb, head, body)
                return
            self._answer(path, verb, head, body)

    def _answer_late(self, path: Path, verb: bytes, head: bytes, body: bytes) -> None:
        self.is_answering = False
        self._answer(path, verb, head, body)
        self._serve()

    def _answer(self, path: Path, verb: bytes, head: bytes, body: bytes) -> None:
        for piece in answer(self.port.seen, path, verb, head, body):
            self.transport.write(piece)
        if verb == b"GET" and path.form == b"storm":
            asyncio.get_running_loop().call_later(STORM_PAUSE, self._tell_changed)

    def _tell_changed(self) -> None:
        """Until the client closes the connection."""
        if not self.transport.is_closing():
            self.transport.write(CHANGED)
            asyncio.get_running_loop().call_later(STORM_PAUSE, self._tell_changed)


async def serve(count: int) -> None:
    loop, seen = asyncio.get_running_loop(), Seen()
    ports = [Port(seen) for _ in range(count)]
    for port in ports:
        server = await loop.create_server(partial(Connection, port), "127.0.0.1", 0, backlog=BACKLOG)
        port.number = server.sockets[0].getsockname()[1]
    print(json.dumps([port.number for port in ports]), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    raise_descriptor_limit()
    asyncio.run(serve(int(sys.argv[1])))
