"""End the backend sessions that a row names, without opening the session: nothing is listed, and no names are made."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import attrs
import trio

from trio_vmcp._nursery import describe_crash, start_task
from trio_vmcp.connector import BackendConnector
from trio_vmcp.errors import BackendError
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord, endpoint_digest
from trio_vmcp.models import JSON, Backend

__all__ = ["say_goodbyes"]

logger = logging.getLogger("trio_vmcp.session")


@attrs.define(eq=False)
class _Unheard:
    """The `EventSink` of a connection that is about to close."""

    def __call__(self, method: str, params: JSON, /) -> None: ...

    def session_lost(self, error: BackendError) -> None: ...


async def say_goodbyes(
    records: Iterable[BackendRecord],
    backends: Iterable[Backend],
    connector: BackendConnector,
    identity: Identity | None,
    timeout: float,
) -> None:
    """End them all, side by side, within `timeout` s. A failure is logged: it then ends when its backend lets it end.

    Args:
        backends: A session's id is sent to the endpoint that gave it, and to no other.
        identity: The requests carry this identity's credentials.
    """
    by_id = {backend.id: backend for backend in backends}
    with trio.move_on_after(timeout):  # noqa: ASYNC100  # the end of the nursery
        async with trio.open_nursery() as goodbyes:
            for record in records:
                backend = by_id.get(record.backend_id)
                if record.session_id is None or backend is None or endpoint_digest(backend) != record.endpoint_digest:
                    continue
                start_task(goodbyes, _say_goodbye, record, backend, connector, identity)


async def _say_goodbye(
    record: BackendRecord, backend: Backend, connector: BackendConnector, identity: Identity | None
) -> None:
    try:
        async with trio.open_nursery() as tasks:
            client = await connector(backend, identity=identity, resume=record, nursery=tasks, events=_Unheard())
            await client.aclose(terminate=True)
            tasks.cancel_scope.cancel(reason="the backend's session has ended")
    except* Exception as crash:  # noqa: BLE001  # of a connector of the user's, too
        logger.info("backend %r was not told that its session has ended: %s", backend.id, describe_crash(crash))
