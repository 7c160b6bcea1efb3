"""A connector that records each attempt, its outcome, and the end of the connection that it made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import attrs
import trio

from simulation.trace import Attempt, Attempted, ConnectionClosed, Event
from trio_vmcp import Backend, BackendClient, BackendConnector, BackendRecord, Identity
from trio_vmcp.connector import EventSink

__all__ = ["NumberedBackend", "RecordingConnector"]


@attrs.frozen
class NumberedBackend(Backend):
    """A backend that carries the number of its attempt to the transport and to `auth`."""

    attempt: int = attrs.field(default=0, eq=False, repr=False)


@attrs.define(eq=False)
class RecordingConnector:
    """A factory's connector with that record.

    Attributes:
        numbers: Numbers for attempts, shared by all instances.
        passed_to: The operation to which this copy of the backend was passed.
    """

    inner: BackendConnector
    instance: int
    note: Callable[[Event], None]
    numbers: Iterator[int]
    passed_to: Callable[[Backend], int]

    async def __call__(
        self,
        backend: Backend,
        *,
        identity: Identity | None,
        resume: BackendRecord | None,
        nursery: trio.Nursery,
        events: EventSink,
    ) -> BackendClient:
        number = next(self.numbers)
        self.note(
            Attempt(
                at=trio.current_time(),
                number=number,
                op=self.passed_to(backend),
                instance=self.instance,
                backend_id=backend.id,
                resumed=resume is not None,
            )
        )
        outcome: Literal["ok", "error", "cancelled"] = "cancelled"
        error = ""
        try:
            tried = NumberedBackend(**attrs.asdict(backend, recurse=False), attempt=number)
            client = await self.inner(tried, identity=identity, resume=resume, nursery=nursery, events=events)
            outcome = "ok"
        except Exception as exc:  # of a connector of whatever kind: noted, and raised again
            outcome, error = "error", type(exc).__name__
            raise
        finally:
            self.note(Attempted(at=trio.current_time(), number=number, outcome=outcome, error=error))
        return cast(BackendClient, _RecordingClient(client, number, self.note))


@attrs.define(eq=False)
class _RecordingClient:
    """A client that records its close; everything else is the inner client's."""

    inner: BackendClient
    number: int
    note: Callable[[Event], None]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def aclose(self, *, terminate: bool) -> None:
        try:
            await self.inner.aclose(terminate=terminate)
        finally:
            self.note(ConnectionClosed(at=trio.current_time(), number=self.number))
