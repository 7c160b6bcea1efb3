"""The whole deployment on loopback: backends, Redis, two instances, HAProxy, and a load during which one is killed."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from support.harness import echo_backend
from support.redis_server import APPEND_ONLY, free_port, serve_redis

from deploy.haproxy import serve_haproxy
from deploy.load import Load, Report, measure
from deploy.processes import Instance, open_client, running
from trio_vmcp.testing import open_loopback


async def deploy(
    home: Path, *, sessions: int, backends: int, rate: float, seconds: tuple[float, float, float]
) -> Report:
    """Open sessions and call them; kill an instance and start it again.

    Args:
        home: An empty directory, for Redis.
        rate: Calls a second, through the balancer.
        seconds: With both instances; after the kill; after the restart.
    """
    async with AsyncExitStack() as everything:
        redis = everything.enter_context(serve_redis(home, *APPEND_ONLY))
        urls = [
            (f"b{number}", await everything.enter_async_context(open_loopback(echo_backend())))
            for number in range(backends)
        ]
        instances = [Instance(name, redis.url, urls) for name in "ab"]
        ports = free_port(), free_port()
        client = await everything.enter_async_context(open_client())
        nursery = await everything.enter_async_context(running(*instances, ports=ports))
        load = Load(client, everything.enter_context(serve_haproxy(*ports)))
        await load.open_sessions(sessions)
        return await measure(load, instances[0], nursery, rate=rate, seconds=seconds)
