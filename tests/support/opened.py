"""A session by each of the ways that make one, with the same keywords."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from trio_vmcp import Backend, Session, SessionFactory

__all__ = ["EVERY_WAY", "MADE", "open_by"]

MADE = ("make_session", "open_session")
EVERY_WAY = pytest.mark.parametrize("way", [*MADE, "restore_session"])


@asynccontextmanager
async def open_by(
    way: str, factory: SessionFactory, backends: Sequence[Backend], **keywords: Any
) -> AsyncIterator[Session]:
    """A session that is terminated at the end. A restored one had no backends before, so they all join as new."""
    if way == "open_session":
        async with factory.open_session(backends, **keywords) as session:
            yield session
        return
    if way == "restore_session":
        before = await factory.make_session([])
        await before.suspend()
        session = await factory.restore_session(before.id, backends, **keywords)
    else:
        session = await factory.make_session(backends, **keywords)
    async with session:
        yield session
