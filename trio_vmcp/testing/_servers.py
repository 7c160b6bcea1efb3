"""The nursery that servers run in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from trio_vmcp._nursery import require_trio

__all__ = ["open_servers"]


@asynccontextmanager
async def open_servers() -> AsyncIterator[trio.Nursery]:
    """Leaving the block cancels the servers, and an error of the block comes out as itself, not in a group."""
    require_trio()
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except trio.Cancelled:
            raise
        except BaseException as exc:  # noqa: BLE001  # raised below, where no nursery wraps it
            failure = exc
        finally:
            nursery.cancel_scope.cancel(reason="the block that the servers ran for is left")
    if failure is not None:
        raise failure
