"""One JSON-RPC request in a scripted backend: the context that a handler gets, and the answer that it gives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import trio

from trio_vmcp.models import JSON
from trio_vmcp.testing.exchange import Exchange
from trio_vmcp.testing.http import Reply
from trio_vmcp.testing.listening import EventLog, message_event
from trio_vmcp.testing.rpc import encode, notification_message

__all__ = ["CallContext", "InputRequired", "Requests", "ScriptedAnswer"]

SSE_HEADERS = (("content-type", "text/event-stream"), ("cache-control", "no-cache, no-transform"))
JSON_HEADERS = (("content-type", "application/json"),)


@attrs.define(eq=False)
class ScriptedAnswer:
    """The response to one request, as one JSON object or as a stream of events.

    Attributes:
        as_sse: A stream, in which other messages may precede the response.
        log: Keeps the events, gives them ids, and begins the stream with one that has an id and no data.
        retry_ms: What that first event tells a client to wait before it resumes.
        headers: Of the head, besides the content type.
        change: Made of the response before it is sent.
    """

    reply: Reply
    as_sse: bool
    log: EventLog | None = None
    retry_ms: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    change: Callable[[JSON], object] | None = None
    _detached: bool = attrs.field(default=False, init=False)

    async def notify(self, message: JSON | bytes) -> None:
        """Send a message ahead of the response. After the response, or in a JSON answer, the message is dropped."""
        if self.as_sse and (self._detached or not self.reply.ended):
            await self._event(message)

    async def finish(self, response: JSON, status: int = 200) -> None:
        message = self.change(response) if self.change is not None else response
        if self.reply.status is not None or (self.as_sse and status == 200):
            await self._event(message)
            await self._end()
        else:
            await self.reply.respond(status, encode(message), (*JSON_HEADERS, *self.headers))

    async def end_without_response(self) -> None:
        """End without a response: the client has taken the request back."""
        if self.reply.ended:  # of a POST of HTTP+SSE, say, which says only that it came
            await trio.lowlevel.checkpoint()
            return
        if not self.as_sse or self.reply.broken_off:
            await self.reply.hang_up()  # half an answer cannot be undone, and a JSON answer cannot be empty
            return
        await self.open()
        await self._end()

    async def detach(self) -> None:
        """End the HTTP response before the answer; the rest is for a client that resumes the stream."""
        await self.open()
        await self.reply.end()
        self._detached = True

    async def _end(self) -> None:
        if self.log is not None:
            self.log.end()
        if not self._detached:
            await self.reply.end()

    async def open(self) -> None:
        """Send the head of a stream, if it has not gone out."""
        if self.reply.status is None:
            await self.reply.start(200, (*SSE_HEADERS, *self.headers))
            if self.log is not None:
                retry = b"" if self.retry_ms is None else b"retry: %d\n" % self.retry_ms
                await self.reply.send(self.log.append(retry + b"data: \n\n"))

    async def _event(self, message: object) -> None:
        await self.open()
        event = message_event(message)
        if self.log is not None:
            event = self.log.append(event)
        if not self._detached:
            await self.reply.send(event)


Requests: TypeAlias = Mapping[str, tuple[str, JSON]]
"""Requests to the client: method and params, by a key that the handler chooses."""


@attrs.define(eq=False)
class InputRequired(Exception):
    """Ends the run of a modern handler, which runs again when the client has answered. A handler must not catch it."""

    requests: Requests


@attrs.define(eq=False)
class CallContext:
    """A handler's view of its request, and its means to notify and ask the client before it answers.

    Attributes:
        exchange: The HTTP request, headers and all.
        is_modern: The request is of the modern era.
        answered: The client's answers in earlier rounds of a modern request, in order.
    """

    exchange: Exchange
    is_modern: bool
    _answer: ScriptedAnswer = attrs.field(alias="answer", repr=False)
    _ask: Callable[[CallContext, Requests], Awaitable[dict[str, Any]]] = attrs.field(alias="ask", repr=False)
    answered: Sequence[dict[str, Any]] = ()
    _asked: int = attrs.field(default=0, init=False)

    @property
    def method(self) -> str:
        return self.exchange.method

    @property
    def params(self) -> JSON:
        return self.exchange.params

    @property
    def meta(self) -> JSON:
        return self.exchange.meta

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Send progress, if the client sent a `progressToken` (MCP, basic/utilities/progress)."""
        token = self.meta.get("progressToken")
        if token is None:
            return
        params = {"progressToken": token, "progress": progress, "total": total, "message": message}
        await self.notify("notifications/progress", {key: value for key, value in params.items() if value is not None})

    async def notify(self, method: str, params: JSON) -> None:
        """Send a notification on this request's stream; dropped if the backend answers in JSON."""
        await self._answer.notify(notification_message(method, params))

    async def elicit(self, message: str, requested_schema: JSON | None = None, **more: Any) -> JSON:
        """Ask the user to fill in a form; `more` is the rest of the params. As for all questions: see `request_all`."""
        params = {"message": message, "requestedSchema": requested_schema or {"type": "object", "properties": {}}}
        result: JSON = await self._one("elicitation/create", params | more)
        return result

    async def sample(self, text: str, **more: Any) -> JSON:
        """Ask for a message of the client's model."""
        messages = [{"role": "user", "content": {"type": "text", "text": text}}]
        result: JSON = await self._one("sampling/createMessage", {"messages": messages, "maxTokens": 100} | more)
        return result

    async def roots(self) -> list[JSON]:
        """Ask for the client's roots."""
        listed: list[JSON] = (await self._one("roots/list", {}))["roots"]
        return listed

    async def request(self, method: str, params: JSON) -> Any:
        """Ask the client one thing."""
        return await self._one(method, params)

    async def request_all(self, requests: Requests) -> dict[str, Any]:
        """Send several requests to the client at once; returns the results by the same keys.

        A legacy backend sends requests and waits for the client's responses. A modern backend answers the call with
        `input_required`: the handler runs again in every round, and the answers of earlier rounds are returned as soon
        as it asks for them. So a handler must ask the same in the same order.

        Raises:
            RpcError: A legacy client answered with an error, or a modern client has not declared the capability.
            RuntimeError: The answer is JSON, in which a legacy backend cannot send requests.
            InputRequired: A handler must not catch it.
        """
        if self.is_modern:
            self._asked += 1
            if self._asked <= len(self.answered):
                return self.answered[self._asked - 1]
        elif not self._answer.as_sse:
            raise RuntimeError("cannot ask the client: a legacy backend needs answers='sse'")
        return await self._ask(self, requests)

    async def _one(self, method: str, params: JSON) -> Any:
        return (await self.request_all({method: (method, params)}))[method]

    async def detach(self) -> None:
        """End the HTTP response and run on. The client gets the rest when it resumes: needs `resumable=True`."""
        await self._answer.detach()

    async def send(self, message: JSON | bytes) -> None:
        """Send any message on this request's stream, well-formed or not; bytes go out as they are."""
        await self._answer.notify(message)
