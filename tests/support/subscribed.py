"""What is asked for in `subscriptions/listen`, and what came of it."""

from __future__ import annotations

import trio
from support.clients import Bench
from trio.testing import wait_all_tasks_blocked

from trio_vmcp import JSON
from trio_vmcp.testing import Exchange, ScriptedBackend

__all__ = ["LISTEN", "TOOLS_CHANGED", "UPDATED", "asked_for", "heard", "listens", "silence"]

LISTEN = "subscriptions/listen"
TOOLS_CHANGED, UPDATED = "notifications/tools/list_changed", "notifications/resources/updated"


def listens(backend: ScriptedBackend) -> list[Exchange]:
    return backend.received(LISTEN)


def asked_for(exchange: Exchange) -> JSON:
    wanted: JSON = exchange.params["notifications"]
    return wanted


def heard(bench: Bench) -> list[tuple[str, JSON]]:
    """Events without the tags of the subscription."""
    return [
        (method, {name: value for name, value in params.items() if name != "_meta"}) for method, params in bench.events
    ]


async def silence(seconds: float) -> None:
    await trio.sleep(seconds)
    await wait_all_tasks_blocked()
