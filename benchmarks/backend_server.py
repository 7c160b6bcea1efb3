"""A backend so cheap that it does not matter: MCP in hand-written bytes, on as many ports as there are backends.

Every port is a backend of the legacy era, since connection pools are per origin. The path says how it answers, so that
one server serves every workload: `/json/0` answers JSON at once, `/sse/20` answers an event stream after 20 ms.
`GET /seen` on any port tells what the server was asked since it last told, and how many sessions are left: contenders
that asked the same did the same work.

    python backend_server.py COUNT        # prints the COUNT ports as JSON and serves until its stdin closes
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from functools import partial

import trio

JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%scontent-length: %d\r\n\r\n%s"
# Chunked, as real servers send a stream: whoever closes before the last chunk loses the connection.
SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n%stransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
)
ACCEPTED = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"
NO_STREAM = b"HTTP/1.1 405 Method Not Allowed\r\nallow: POST, DELETE\r\ncontent-length: 0\r\n\r\n"
SESSION_GONE = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
DELETED = b"HTTP/1.1 204 No Content\r\n\r\n"
# What legacy servers in the field answer to a modern probe: no session id, so a bad request.
_NO_SESSION_BODY = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"Bad Request: no Mcp-Session-Id"}}'
NO_SESSION = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(_NO_SESSION_BODY),
    _NO_SESSION_BODY,
)


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _tool(index: int) -> dict[str, object]:
    return {
        "name": f"tool_{index}",
        "title": f"Tool number {index}",
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
TOOLS = {"tools": [_tool(index) for index in range(10)]}
PROMPTS = {
    "prompts": [
        {"name": f"prompt_{index}", "description": "Asks nicely.", "arguments": [{"name": "who", "required": True}]}
        for index in range(3)
    ]
}
CALLED = {"content": [{"type": "text", "text": "one line of text, as most tools answer"}], "isError": False}
RESULTS = {
    "initialize": _compact(INITIALIZED),
    "tools/list": _compact(TOOLS),
    "prompts/list": _compact(PROMPTS),
    "tools/call": _compact(CALLED),
}


def results_of(port: int) -> dict[str, bytes]:
    """Results by method. URIs are a backend's own: one that two backends offered would be advertised once."""
    at = f"cheap://{port}"
    resources = [{"uri": f"{at}/{index}", "name": f"resource {index}", "mimeType": "text/plain"} for index in range(3)]
    return RESULTS | {
        "resources/list": _compact({"resources": resources}),
        "resources/templates/list": _compact({"resourceTemplates": [{"uriTemplate": f"{at}/{{id}}", "name": "item"}]}),
    }


class Seen:
    """What all backends together were asked, and the sessions they hold."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.sessions: set[bytes] = set()
        self.ids = itertools.count(1)

    def tell(self) -> bytes:
        body = _compact({"asked": self.asked, "sessions": len(self.sessions)})
        self.asked = Counter()
        return JSON_HEAD % (b"", len(body), body)


def _header(head: bytes, name: bytes) -> bytes:
    start = head.find(b"\r\n" + name + b":")
    if start < 0:
        return b""
    start += len(name) + 3
    return head[start : head.find(b"\r\n", start)].strip()


def answer(seen: Seen, results: dict[str, bytes], verb: bytes, form: bytes, head: bytes, body: bytes) -> bytes:
    session_id = _header(head.lower(), b"mcp-session-id")
    if verb == b"GET":
        seen.asked["GET"] += 1
        return NO_STREAM
    if verb == b"DELETE":
        seen.asked["DELETE"] += 1
        seen.sessions.discard(session_id)
        return DELETED
    message = json.loads(body)
    method = message["method"]
    seen.asked[method] += 1
    assigned = b""
    if method == "initialize":
        session_id = b"session-%d" % next(seen.ids)
        seen.sessions.add(session_id)
        assigned = b"mcp-session-id: %s\r\n" % session_id
    elif not session_id:
        return NO_SESSION
    elif session_id not in seen.sessions:
        return SESSION_GONE
    if "id" not in message:
        return ACCEPTED
    reply = b'{"jsonrpc":"2.0","id":%s,"result":%s}' % (_compact(message["id"]), results[method])
    if form == b"sse":
        event = b"event: message\ndata: %s\n\n" % reply
        return SSE_HEAD % (assigned, len(event), event)
    return JSON_HEAD % (assigned, len(reply), reply)


async def serve_connection(seen: Seen, results: dict[str, bytes], stream: trio.SocketStream) -> None:
    received = b""
    async with stream:
        try:
            while True:
                while (end := received.find(b"\r\n\r\n")) < 0:
                    if not (chunk := await stream.receive_some()):
                        return
                    received += chunk
                head, received = received[: end + 2], received[end + 4 :]
                length = int(_header(head.lower(), b"content-length") or 0)
                while len(received) < length:
                    if not (chunk := await stream.receive_some()):
                        return
                    received += chunk
                body, received = received[:length], received[length:]
                verb, path, _ = head.split(b" ", 2)
                if path == b"/seen":
                    await stream.send_all(seen.tell())
                    continue
                _, form, latency = path.split(b"/")  # ms
                if latency != b"0":
                    await trio.sleep(int(latency) / 1000)
                await stream.send_all(answer(seen, results, verb, form, head, body))
        except trio.BrokenResourceError:
            return  # the client left without reading; that is its right


async def serve(count: int) -> None:
    seen = Seen()
    listeners = [listener for _ in range(count) for listener in await trio.open_tcp_listeners(0, host="127.0.0.1")]
    ports = [listener.socket.getsockname()[1] for listener in listeners]
    async with trio.open_nursery() as nursery:
        for port, listener in zip(ports, listeners, strict=True):
            nursery.start_soon(trio.serve_listeners, partial(serve_connection, seen, results_of(port)), [listener])
        print(json.dumps(ports), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(serve, int(sys.argv[1]))
