"""A handler for `ClientHandlers` that a test can look into."""

from __future__ import annotations

from typing import Any

import attrs
import trio

from trio_vmcp import ClientHandlers, ServerRequest

__all__ = ["Handler", "everything"]


@attrs.define(eq=False)
class Handler:
    """Records its requests, waits for some seconds, and then returns the answer, or raises it.

    Attributes:
        running, most_running: Requests that it works on, now and at most.
        cancelled, cancelled_at: How many of them were cancelled, and when the latest was.
    """

    answer: Any
    seconds: float = 0.0
    requests: list[ServerRequest] = attrs.field(factory=list, init=False)
    running: int = attrs.field(default=0, init=False)
    most_running: int = attrs.field(default=0, init=False)
    cancelled: int = attrs.field(default=0, init=False)
    cancelled_at: float = attrs.field(default=0.0, init=False)

    async def __call__(self, request: ServerRequest) -> Any:
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await trio.sleep(self.seconds)
        except trio.Cancelled:
            self.cancelled += 1
            self.cancelled_at = trio.current_time()
            raise
        finally:
            self.running -= 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def everything(handler: Handler) -> ClientHandlers:
    """It answers all that backends ask."""
    return ClientHandlers(sampling=handler, elicitation=handler, roots=handler)
