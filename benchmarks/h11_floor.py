"""The hand-written h11 loop: the practical floor. A parser that checks what HTTP asks for, on Trio's sockets.

Connections are kept and reused last in, first out, under one limiter per backend. One write per request.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import h11
import hand_written
import trio
from hand_written import HEADERS, VERSION, serve_floor
from workloads import Terms

Headers = list[tuple[bytes, bytes]]


class Connection:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.CLIENT)

    async def exchange(self, method: str, target: str, headers: Headers, body: bytes) -> tuple[h11.Response, bytes]:
        http = self.http
        request = h11.Request(method=method, target=target, headers=headers)
        await self.stream.send_all(
            b"".join(
                (http.send(request) or b"", http.send(h11.Data(body)) or b"", http.send(h11.EndOfMessage()) or b"")
            )
        )
        response = None
        parts: list[bytes] = []
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await self.stream.receive_some())
            elif isinstance(event, h11.Data):
                parts.append(event.data)
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise AssertionError(f"the server sent {event!r}")
        http.start_next_cycle()
        assert response is not None
        return response, b"".join(parts)


class Backend(hand_written.Backend):
    def __init__(self, url: str, terms: Terms) -> None:
        super().__init__()
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self.host, self.port, self.target = parts.hostname, parts.port, parts.path
        self.headers = [
            (b"host", parts.netloc.encode()),
            *((name.encode(), value.encode()) for name, value in HEADERS.items()),
        ]
        self.slots = trio.CapacityLimiter(terms.connections)
        self.idle: list[Connection] = []

    async def post(self, message: bytes) -> bytes:
        response, body = await self.exchange("POST", message)
        assert response.status_code in (200, 202)
        for name, value in response.headers:
            if name == b"content-type" and value == b"text/event-stream":
                body = body[body.index(b"data: ") + 6 :]
            elif name == b"mcp-session-id":
                self.headers += [(name, value), (b"mcp-protocol-version", VERSION.encode())]
        return body

    async def exchange(self, method: str, message: bytes) -> tuple[h11.Response, bytes]:
        headers = [*self.headers, (b"content-length", b"%d" % len(message))]
        async with self.slots:
            connection = self.idle.pop() if self.idle else Connection(await trio.open_tcp_stream(self.host, self.port))
            answer = await connection.exchange(method, self.target, headers, message)
            self.idle.append(connection)
        return answer

    async def close(self) -> None:
        await self.exchange("DELETE", b"")
        for connection in self.idle:
            await connection.stream.aclose()


if __name__ == "__main__":
    serve_floor(Backend)
