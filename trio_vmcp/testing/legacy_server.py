"""The legacy era of a scripted backend: handshake, session ids, and the streams that a GET opens or resumes."""

from __future__ import annotations

from trio_vmcp.models import JSON
from trio_vmcp.testing.context import CallContext, ScriptedAnswer
from trio_vmcp.testing.exchange import Exchange
from trio_vmcp.testing.http import Reply
from trio_vmcp.testing.legacy import check_legacy, check_session
from trio_vmcp.testing.listening import EventLog
from trio_vmcp.testing.rpc import INVALID_PARAMS, PARSE_ERROR, SESSION_ERROR, RpcError, result_message
from trio_vmcp.testing.script import Script

__all__ = ["LegacyServer"]


LOG_LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")


class LegacyServer(Script):
    """MCP 2025-03-26 to 2025-11-25, basic/lifecycle and basic/transports (streamable HTTP)."""

    __slots__ = ()

    async def _answer_legacy(self, exchange: Exchange, answer: ScriptedAnswer) -> None:
        if exchange.verb and self.transport == "streamable-http":
            check_legacy(exchange, self.sessions if self.session_ids else None)
        elif not isinstance(exchange.message, dict):
            raise RpcError(PARSE_ERROR, "the line is not a JSON object")
        if exchange.method == "initialize":
            result = self._open_session(exchange, answer)
        elif exchange.request_id is None or not exchange.method:
            self._take_notification(exchange)
            await answer.reply.respond(202)
            return
        elif exchange.method == "ping":
            result = {}
        elif exchange.method in ("resources/subscribe", "resources/unsubscribe") and self.listens:
            uris = self.subscriptions.setdefault(exchange.session_id, set())
            change = uris.add if exchange.method == "resources/subscribe" else uris.discard
            change(str(exchange.params.get("uri")))
            result = {}
        elif exchange.method == "logging/setLevel" and self._declares("logging"):
            if exchange.params.get("level") not in LOG_LEVELS:
                raise RpcError(INVALID_PARAMS, f"no log level: {exchange.params.get('level')!r}")
            self.log_levels[exchange.session_id] = exchange.params["level"]
            result = {}
        else:
            result = await self.call(CallContext(exchange, False, answer, self._ask_within))
        await answer.finish(result_message(exchange.request_id, result))

    def _open_session(self, exchange: Exchange, answer: ScriptedAnswer) -> JSON:
        if exchange.verb and self.transport == "streamable-http" and self.session_ids:
            session_id = f"{self.name}-session-{next(self._session_numbers)}"
            self.sessions[session_id] = exchange.params
            answer.headers = (("mcp-session-id", session_id),)
        return {"protocolVersion": self.protocol_version, **self._introduction()}

    async def _delete_session(self, exchange: Exchange, reply: Reply) -> None:
        check_session(exchange, self.sessions)
        assert exchange.session_id is not None
        del self.sessions[exchange.session_id]
        self.deleted_sessions.append(exchange.session_id)
        await reply.respond(200)

    async def _serve_get(self, exchange: Exchange, answer: ScriptedAnswer) -> None:
        """The GET of the legacy era: the rest of an answer that is resumed, or the stream for notifications."""
        if self.session_ids:
            check_session(exchange, self.sessions)
        last_event_id = exchange.headers.get("last-event-id")
        if last_event_id is None and self.listens:
            answer.as_sse = True
            await answer.open()
            with self._held_streams.hold_stream(self.stream_seconds):
                if answer.log is None:
                    await self._send_notifications(answer, exchange.session_id)
                else:
                    self._listeners.logs.append(answer.log)
                    # the client has the first event already, with its id and `retry`
                    await self._replay_log(answer.log, 1, answer.reply)
            await answer.reply.end()
            return
        log_name, _, count = str(last_event_id).partition("/")
        log = self._logs.get(log_name)
        if log is None or not count.isdecimal():
            raise RpcError(SESSION_ERROR, f"nothing to resume after {last_event_id!r}", status=400)
        answer.log = None
        await answer.open()
        if log in self._listeners.logs:
            with self._held_streams.hold_stream(self.stream_seconds):
                await self._replay_log(log, int(count), answer.reply)
        else:
            await self._replay_log(log, int(count), answer.reply)
        await answer.reply.end()

    async def _send_notifications(self, answer: ScriptedAnswer, session_id: str | None) -> None:
        def wants(method: str, params: JSON) -> bool:
            is_update = method == "notifications/resources/updated"
            return not is_update or params.get("uri") in self.subscriptions.get(session_id, ())

        async with self._listeners.listen(wants) as notifications:
            async for notification in notifications:
                await answer.notify(notification)

    @staticmethod
    async def _replay_log(log: EventLog, sent: int, reply: Reply) -> None:
        while events := await log.after(sent):
            sent += len(events)
            await reply.send(b"".join(events))
