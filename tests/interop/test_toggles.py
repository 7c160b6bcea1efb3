"""Servers by other authors change their lists while a session is open."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
import trio
from interop.conftest import UrlOf
from interop.fleet import SERVERS
from interop.plain_requests import only_text
from interop.views import PATIENCE

from trio_vmcp import Backend, Session, SessionChange, ToolNotFound, open_session_factory

BY_NAME = {server.name: server for server in SERVERS}
# Servers on the official SDK: they notify on held streams (the standalone GET, or `subscriptions/listen`).
TOLD_BESIDE = [BY_NAME[name] for name in ("mcp2-sse", "mcp2-json", "mcp1-sse", "mcp1-json")]
FASTMCP, EVERYTHING = BY_NAME["fastmcp"], BY_NAME["everything"]
FIRST_PATIENCE = 2.0  # s to wait for a change that may have been sent before the stream was open


async def until(condition: Callable[[], bool], changes: trio.MemoryReceiveChannel[SessionChange]) -> None:
    """Wait for a condition. It is read after each reported change only, so a change without a report fails the test."""
    while not condition():
        await changes.receive()


def lists(session: Session, backend_id: str) -> bool:
    return f"{backend_id}_extra" in {tool.name for tool in session.tools}


async def test_a_tool_that_another_session_toggles_comes_and_goes(url_of: UrlOf) -> None:
    """The session sees the tool come and go without a call of its own, in both eras, and can call it meanwhile."""
    backends = [
        Backend(id=f"{server.name}-{era}", url=url_of(server), era=era) for server in TOLD_BESIDE for era in server.eras
    ]
    others = [Backend(id=server.name, url=url_of(server), listen=False) for server in TOLD_BESIDE]
    async with (
        open_session_factory() as factory,
        factory.open_session(backends) as session,
        factory.open_session(others) as other,
        session.changes() as changes,
    ):
        assert () == session.failures + other.failures
        for backend in backends:
            await session.call_tool(f"{backend.id}_watch")
        is_there = False

        async def toggle() -> None:
            nonlocal is_there
            is_there = not is_there
            for server in TOLD_BESIDE:
                answer = await other.call_tool(f"{server.name}_toggle")
                assert {"result": is_there} == answer.structured_content

        def all_seen() -> bool:
            return {backend.id: is_there for backend in backends} == {
                backend.id: lists(session, backend.id) for backend in backends
            }

        with trio.fail_after(PATIENCE):
            while not (is_there and all_seen()):  # streams are opened behind the session's opening
                await toggle()
                with trio.move_on_after(FIRST_PATIENCE):
                    await until(all_seen, changes)
            for _ in range(2):
                for backend in backends:
                    assert "gone tomorrow" == only_text(await session.call_tool(f"{backend.id}_extra"))
                await toggle()
                await until(all_seen, changes)
                for backend in backends:
                    with pytest.raises(ToolNotFound):
                        await session.call_tool(f"{backend.id}_extra")
                await toggle()
                await until(all_seen, changes)
            await toggle()  # as it was


async def test_a_tool_that_a_call_of_ours_toggles_comes_and_goes(url_of: UrlOf) -> None:
    """FastMCP sends `list_changed` on the stream of the call's answer, in both eras."""
    backends = [Backend(id=era, url=url_of(FASTMCP), era=era) for era in FASTMCP.eras]
    async with (
        open_session_factory() as factory,
        factory.open_session(backends) as session,
        session.changes() as changes,
    ):
        for era in FASTMCP.eras:
            with trio.fail_after(PATIENCE):
                await session.call_tool(f"{era}_toggle")
                await until(lambda: lists(session, era), changes)  # noqa: B023
                assert "gone tomorrow" == only_text(await session.call_tool(f"{era}_extra"))
                await session.call_tool(f"{era}_toggle")
                await until(lambda: not lists(session, era), changes)  # noqa: B023


async def test_a_resource_that_a_server_adds_is_seen(url_of: UrlOf) -> None:
    """server-everything adds a resource with the compressed file, and sends `list_changed` beside the answer."""
    async with (
        open_session_factory() as factory,
        factory.open_session([Backend(id="it", url=url_of(EVERYTHING))]) as session,
        session.changes() as changes,
    ):

        async def add(name: str) -> None:
            uri = f"demo://resource/session/{name}"
            await session.call_tool("it_gzip-file-as-resource", {"name": name, "data": "data:,hello"})
            await until(lambda: uri in {resource.uri for resource in session.resources}, changes)
            (content,) = (await session.read_resource(uri)).contents
            assert "application/gzip" == content["mimeType"]

        with trio.fail_after(PATIENCE):
            listens = False
            for number in count():
                with trio.move_on_after(FIRST_PATIENCE):
                    await add(f"early-{number}.gz")
                    listens = True
                if listens:
                    break
            await add("late.gz")


async def test_updates_of_a_resource_that_is_subscribed_to_are_told(url_of: UrlOf) -> None:
    """server-everything sends an update for every subscribed resource every few seconds."""
    uri = "demo://resource/dynamic/text/1"
    async with (
        open_session_factory() as factory,
        factory.open_session([Backend(id="it", url=url_of(EVERYTHING))]) as session,
        session.changes() as changes,
    ):
        await session.subscribe_resource(uri)
        with trio.fail_after(PATIENCE):
            await session.call_tool("it_toggle-subscriber-updates")
            while await changes.receive() != SessionChange("resource_updated", "it", uri):
                pass
        await session.unsubscribe_resource(uri)
