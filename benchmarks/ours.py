"""The library, through its public names only."""

from __future__ import annotations

import trio
from worker import Measures, serve, stopwatch

from trio_vmcp import Backend, FactorySettings, Session, SessionFactory, open_session_factory
from trio_vmcp.models import Era


def backends_at(urls: list[str], era: Era = "legacy") -> list[Backend]:
    # The loop holds no stream for list changes, and the backends offer none.
    return [Backend(id=f"b{index}", url=url, era=era, listen=False) for index, url in enumerate(urls)]


async def open_complete(factory: SessionFactory, backends: list[Backend]) -> Session:
    session = await factory.make_session(backends)
    assert not session.failures, session.failures
    return session


async def open_and_list(urls: list[str], spare: str, limit: int, era: Era) -> Measures:
    settings = FactorySettings(max_backend_init_concurrency=limit)
    measures: Measures = {}
    # A factory of its own: it remembers the era of a backend, so a second opening would not probe.
    async with open_session_factory(settings=settings) as factory:
        # What is there once per factory (TLS) is not what opening a session costs.
        await (await open_complete(factory, backends_at([spare], era))).aclose()
        with stopwatch(measures):
            session = await open_complete(factory, backends_at(urls, era))
        listed = (session.tools, session.resources, session.resource_templates, session.prompts)
        measures["listed"] = sum(map(len, listed))
        await session.aclose()
    return measures


async def call(urls: list[str], limit: int, callers: int, calls: int) -> Measures:
    async def caller(first: int, count: int) -> None:
        for index in range(first, first + count):
            result = await session.call_tool(names[index % len(names)], {"query": "anything", "limit": 3})
            assert not result.is_error

    async def all_callers(count: int) -> None:
        async with trio.open_nursery() as nursery:
            for first in range(callers):
                nursery.start_soon(caller, first, count)

    measures: Measures = {}
    async with open_session_factory(settings=FactorySettings(max_backend_init_concurrency=limit)) as factory:
        session = await open_complete(factory, backends_at(urls))
        names = [f"b{index}_tool_0" for index in range(len(urls))]
        await all_callers(len(urls))  # connections as warm as they get
        with stopwatch(measures, per=callers * calls):
            await all_callers(calls)
        await session.aclose()
    return measures


if __name__ == "__main__":
    serve(trio.run, {"open": open_and_list, "call": call})
