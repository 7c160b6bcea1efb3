"""Under another event loop than Trio's the first error says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from trio_vmcp import LocalStorage, open_session_factory
from trio_vmcp.storage.redis import open_redis_storage
from trio_vmcp.testing import ScriptedBackend, open_loopback, open_memory_network


async def _open_factory() -> None:
    async with open_session_factory():
        raise AssertionError("it opened")


async def _open_network() -> None:
    async with open_memory_network():
        raise AssertionError("it opened")


async def _open_loopback() -> None:
    async with open_loopback(ScriptedBackend()):
        raise AssertionError("it opened")


async def _open_redis() -> None:
    async with open_redis_storage("redis://127.0.0.1:1"):
        raise AssertionError("it opened")


async def _load() -> None:
    await LocalStorage().load("x")


async def _close() -> None:
    await LocalStorage().aclose()


@pytest.mark.parametrize("main", [_open_factory, _open_network, _open_loopback, _open_redis, _load, _close])
def test_asyncio_is_told_from_trio(main: Callable[[], Awaitable[None]]) -> None:
    """One sentence names Trio and the two ways to run it, and nothing was started."""

    async def run() -> None:
        await main()

    told = r"runs on Trio, .* trio\.run\(main\), or with anyio\.run\(main, backend='trio'\)$"
    with pytest.raises(RuntimeError, match=told):
        asyncio.run(run())
