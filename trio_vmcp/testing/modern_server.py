"""The modern era of a scripted backend: requests without a session, rounds of input, `subscriptions/listen`."""

from __future__ import annotations

from trio_vmcp.models import JSON
from trio_vmcp.testing.context import CallContext, InputRequired, ScriptedAnswer
from trio_vmcp.testing.exchange import Exchange
from trio_vmcp.testing.listening import wanted_by
from trio_vmcp.testing.modern import check_modern, check_parameters, check_stamp
from trio_vmcp.testing.rpc import LEGACY_VERSIONS, MODERN_VERSION, notification_message, result_message
from trio_vmcp.testing.script import Script

__all__ = ["ModernServer"]

LISTS = ("tools/list", "resources/list", "resources/templates/list", "prompts/list")
CACHEABLE = ("server/discover", *LISTS, "resources/read")


class ModernServer(Script):
    """MCP 2026-07-28, basic and server."""

    __slots__ = ()

    async def _answer_modern(self, exchange: Exchange, answer: ScriptedAnswer) -> None:
        served = (MODERN_VERSION,) if self.era == "modern" else (MODERN_VERSION, *reversed(LEGACY_VERSIONS))
        if exchange.verb:
            check_modern(exchange, served)
        else:
            check_stamp(exchange, served)
        if exchange.request_id is None:
            if not exchange.verb:  # over HTTP the end of the stream cancels, without a notification
                self._take_notification(exchange)
            await answer.reply.respond(202)
            return
        if exchange.method == "tools/call" and exchange.verb:
            tool = next((tool for tool in self.tools if tool["name"] == exchange.params.get("name")), {})
            check_parameters(exchange, tool.get("inputSchema") or {})
        if exchange.method == "subscriptions/listen" and self.listens:
            await self._serve_subscription(exchange, answer)
            return
        if exchange.method == "server/discover":
            result = {"supportedVersions": [MODERN_VERSION], **self._introduction()}
        else:
            answered = self._rounds.resume(exchange)
            try:
                result = await self.call(CallContext(exchange, True, answer, self._ask_within, answered))
            except InputRequired as question:
                result = self._rounds.suspend(exchange, question.requests, answered)
        extras: JSON = {"resultType": "complete"}
        if exchange.method in CACHEABLE:
            extras |= {"ttlMs": self.ttl_ms, "cacheScope": self.cache_scope}
        await answer.finish(result_message(exchange.request_id, extras | result))

    async def _serve_subscription(self, exchange: Exchange, answer: ScriptedAnswer) -> None:
        """Serve a subscription until either side ends the stream."""
        subscription = self.honours(exchange.params.get("notifications") or {})
        tag = {"io.modelcontextprotocol/subscriptionId": exchange.request_id}
        acknowledged = {"notifications": subscription, "_meta": tag}
        answer.as_sse = True
        async with self._listeners.listen(wanted_by(subscription)) as notifications:
            await answer.notify(notification_message("notifications/subscriptions/acknowledged", acknowledged))
            with self._held_streams.hold_stream(self.stream_seconds):
                async for message in notifications:
                    if isinstance(message, dict) and "params" in message:
                        message = message | {"params": {**message["params"], "_meta": tag}}
                    await answer.notify(message)
        if self.graceful:
            await answer.finish(result_message(exchange.request_id, {"resultType": "complete", "_meta": tag}))
        elif exchange.verb:
            await answer.reply.end()
        else:  # a shared stream of lines stays open, so the end is a notification (MCP 2026-07-28)
            taken_back = {"requestId": exchange.request_id}
            await answer.notify(notification_message("notifications/cancelled", taken_back))
            await answer.reply.respond(200)
