"""HTTP+SSE of a scripted backend, the transport of MCP 2024-11-05: all answers come on the stream of a GET."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import trio

from trio_vmcp.models import JSON
from trio_vmcp.testing.context import ScriptedAnswer
from trio_vmcp.testing.exchange import Exchange
from trio_vmcp.testing.faults import Error, Fault
from trio_vmcp.testing.http import Reply
from trio_vmcp.testing.legacy_server import LegacyServer
from trio_vmcp.testing.rpc import RpcError, error_message
from trio_vmcp.testing.script import SessionStream

__all__ = ["HttpSseServer"]


class PostedAnswer(ScriptedAnswer):
    """An answer to a message that was POSTed, on the stream of its session."""

    def __init__(
        self,
        reply: Reply,
        stream: trio.MemorySendChannel[JSON | bytes],
        holds_post: bool,
        change: Callable[[JSON], object] | None,
    ) -> None:
        super().__init__(reply, True, change=change)
        self._to_stream = stream
        self._holds_post = holds_post

    async def accept(self) -> None:
        """Acknowledge the POST (202). The connection is closed, since the handler goes on in its task."""
        if not self._holds_post:
            await self.reply.respond(202, headers=(("connection", "close"),))

    async def notify(self, message: JSON | bytes) -> None:
        self._to_stream.send_nowait(message)
        await trio.lowlevel.checkpoint()

    async def finish(self, response: JSON, status: int = 200) -> None:
        message = response if self.change is None else self.change(response)
        assert isinstance(message, dict | bytes)
        await self.notify(message)
        await self.end_without_response()

    async def end_without_response(self) -> None:
        if self.reply.status is None:
            await self.reply.respond(202)


class HttpSseServer(LegacyServer):
    """A session is a stream: the id in its `endpoint` event routes what is POSTed, and ends with the stream."""

    __slots__ = ()

    async def _answer_http_sse(self, exchange: Exchange, answer: ScriptedAnswer, fault: Fault | None) -> None:
        """HTTP+SSE: open the stream of a session, or take a message for one."""
        path, _, session_id = exchange.target.partition("?session=")
        if exchange.verb == "GET":
            await self._open_stream(answer)
        elif exchange.verb != "POST" or path.rpartition("/")[2] != self.endpoint.rpartition("/")[2]:
            await answer.reply.respond(405, b"Method Not Allowed", headers=(("allow", "GET"),))
        elif session_id not in self._streams:  # the stream has ended, or there was none
            await answer.reply.respond(404, b"Could not find session")
        elif not isinstance(exchange.message, dict):
            await answer.reply.respond(400, b"Could not parse message")
        else:
            exchange.headers["mcp-session-id"] = session_id
            stream = self._streams[session_id]
            posted = PostedAnswer(answer.reply, stream.send, self.holds_posts, answer.change)
            if exchange.request_id is not None and exchange.method:
                await posted.accept()
            try:
                if isinstance(fault, Error):
                    raise RpcError(fault.code, fault.message, fault.data)
                await self._answer_legacy(exchange, posted)
            except RpcError as error:
                await posted.finish(error_message(exchange.request_id, error))

    async def _open_stream(self, answer: ScriptedAnswer) -> None:
        """Serve the stream of one session until either side ends it."""
        session_id = f"{self.name}-stream-{next(self._session_numbers)}"
        send, receive = trio.open_memory_channel[JSON | bytes](float("inf"))  # a test decides how much it sends
        answer.as_sse, answer.log = True, None
        stream = SessionStream(send)
        self._streams[session_id], self.sessions[session_id] = stream, {}
        try:
            with stream.lifetime:
                await answer.open()
                await answer.reply.send(f"event: endpoint\ndata: {self.endpoint}?session={session_id}\n\n".encode())
                with self._listeners.forward_to(send) if self.listens else nullcontext():
                    async for message in receive:
                        await answer.notify(message)
        finally:  # `restart` may have removed it already
            self._streams.pop(session_id, None)
            self.sessions.pop(session_id, None)
        if answer.reply.broken_off:
            await answer.reply.hang_up()
        else:
            await answer.reply.end()
