"""`check --watch`: a session that stays open, and the condition of its backends, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NoReturn

import httpx
import trio

from trio_vmcp._cli.view import BackendCondition, View
from trio_vmcp.factory import open_session_factory
from trio_vmcp.models import Backend, FailureReason
from trio_vmcp.session import Session
from trio_vmcp.settings import FactorySettings

__all__ = ["watch_backends"]

REDRAW_SECONDS = 1.0


async def watch_backends(
    backends: Sequence[Backend],
    settings: FactorySettings,
    view: View,
    *,
    transport: httpx.AsyncBaseTransport | None = None,
) -> NoReturn:
    """Show the backends until this is cancelled. Backends that are away are connected again, as in every session.

    Args:
        transport: Replaces the built-in one, which uses the proxies of the environment.
    """
    async with (
        open_session_factory(settings=settings, transport=transport, proxy="env") as factory,
        factory.open_session(backends) as session,
    ):
        while True:
            view.show_conditions(_conditions(session))
            await trio.sleep(REDRAW_SECONDS)


def _conditions(session: Session) -> list[BackendCondition]:
    now = datetime.now(UTC)
    # PENDING says that a backend is still connecting, and so does its state.
    failures = [failure for failure in session.failures if failure.reason is not FailureReason.PENDING]
    away = {failure.backend_id: failure for failure in failures}
    return [
        BackendCondition(
            status=status,
            lasted=max((now - status.since).total_seconds(), 0.0),
            tools=sum(tool.backend_id == status.backend_id for tool in session.tools),
            failure=away.get(status.backend_id),
        )
        for status in session.backends.values()
    ]
