"""Requests of a scripted backend that a legacy client has yet to answer."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import attrs
import trio

from trio_vmcp.models import JSON
from trio_vmcp.testing.context import Requests
from trio_vmcp.testing.exchange import Exchange
from trio_vmcp.testing.rpc import RpcError

__all__ = ["Questions"]


@attrs.define(eq=False)
class _Question:
    """One request to the client of a session; None: to a client without a session id."""

    session_id: str | None
    answered: trio.Event = attrs.field(factory=trio.Event)
    response: JSON = attrs.field(factory=dict)

    async def wait_answer(self) -> Any:
        """
        Raises:
            RpcError: The client answered with an error.
        """
        await self.answered.wait()
        if "error" in self.response:
            error = self.response["error"]
            raise RpcError(error["code"], error["message"], error.get("data"))
        return self.response["result"]


@attrs.define(eq=False)
class Questions:
    """Sends requests to clients, and gives each response to the request with the same id."""

    _open: dict[int, _Question] = attrs.field(factory=dict, init=False)
    _ids: Iterator[int] = attrs.field(factory=itertools.count, init=False)  # from 0, as the official SDKs

    async def ask(
        self, session_id: str | None, send: Callable[[JSON], Awaitable[None] | None], requests: Requests
    ) -> dict[str, Any]:
        """Send the requests side by side, and wait for the result of each.

        Raises:
            RpcError: The client answered one of them with an error.
        """
        questions: dict[str, _Question] = {}
        ids: list[int] = []
        try:
            for key, (method, params) in requests.items():
                question_id = next(self._ids)
                ids.append(question_id)
                questions[key] = self._open[question_id] = _Question(session_id)
                sent = send({"jsonrpc": "2.0", "id": question_id, "method": method, "params": params})
                if sent is not None:
                    await sent
            return {key: await question.wait_answer() for key, question in questions.items()}
        finally:
            for question_id in ids:
                del self._open[question_id]

    def take_response(self, exchange: Exchange) -> None:
        """A client's response. It is ignored unless its session was asked this question."""
        question = self._open.get(exchange.message.get("id"))
        if question is not None and question.session_id == exchange.session_id:
            question.response = exchange.message
            question.answered.set()
