"""The way out of a connection that carries everybody's messages, and its end."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from trio_vmcp._client.channels.inbox import Waiter
from trio_vmcp.identity import Identity

__all__ = ["Wire"]


class Wire(Protocol):
    """The way out of a connection, and its end."""

    def sending(self, data: bytes, waiter: Waiter, identity: Identity | None) -> AbstractAsyncContextManager[None]:
        """Send a request while the block waits for its answer; leaving the block early takes back what can be.

        What keeps the request from being sent settles the waiter. As soon as some of it may be out, and not before,
        `waiter.note.written` is True.
        """
        ...

    async def say(self, data: bytes, identity: Identity | None) -> None:
        """Send what has no answer, so that whatever is sent afterwards comes behind it.

        Raises:
            BackendError: It could not be sent.
        """
        ...

    def say_soon(self, data: bytes, identity: Identity | None) -> None:
        """The same without waiting. It may get lost, and does so when too much is on its way already."""
        ...

    async def answer(self, data: bytes) -> None:
        """Send the answer to a request of the backend's own. Bounded by whoever calls, in number and time; who asks
        and does not read gets none.

        Raises:
            BackendError: It could not be sent.
        """
        ...

    async def aclose(self) -> None:
        """End the connection. Cancelled, it is over at once all the same."""
        ...
