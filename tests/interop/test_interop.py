"""A session over servers by other authors sees and gets what the official client does."""

from __future__ import annotations

import httpx
import pytest
import trio
from interop.conftest import UrlOf
from interop.fleet import SERVERS, Era, Server
from interop.plain_requests import only_text, ping
from interop.views import PATIENCE, official_view, our_view

from trio_vmcp import JSON, Backend, BackendTimeout, Session, ToolResult, open_session_factory

VIEWS = [pytest.param(server, era, id=f"{server.name}-{era}") for server in SERVERS for era in server.eras]
STOPPED = [pytest.param(server, era, id=f"{server.name}-{era}") for server in SERVERS for era in server.stops_in]
EVERY_SERVER = [pytest.param(server, id=server.name) for server in SERVERS]


@pytest.mark.parametrize(("server", "era"), VIEWS)
async def test_both_clients_see_the_same(server: Server, era: Era, url_of: UrlOf) -> None:
    """Lists, results, errors and progress arrive as the official client has them, unknown fields and order included."""
    url = url_of(server)
    expected = await official_view(url, era, server.calls)
    actual = await our_view(url, era, server.calls)
    assert expected["tools"], "a server without tools compares nothing"
    assert expected == actual


@pytest.mark.parametrize("server", EVERY_SERVER)
async def test_the_probe_finds_the_newest_era(server: Server, url_of: UrlOf) -> None:
    """`era="auto"` ends where the server is newest, and the session works there."""
    async with (
        open_session_factory() as factory,
        factory.open_session([Backend(id="it", url=url_of(server))]) as session,
    ):
        assert () == session.failures
        assert [server.eras[-1]] == [record.era for record in session.metadata.backends]
        assert "hello" in only_text(await session.call_tool("it_echo", {"message": "hello"}))


@pytest.mark.parametrize(("server", "era"), STOPPED)
async def test_giving_up_reaches_the_server(server: Server, era: Era, url_of: UrlOf) -> None:
    """A call that runs into its timeout stops the tool at the server, by the means of its era."""
    async with (
        open_session_factory() as factory,
        factory.open_session([Backend(id="it", url=url_of(server), era=era)]) as session,
    ):
        before = await waits(session)
        with pytest.raises(BackendTimeout, match="tools/call"):
            await session.call_tool("it_wait", timeout=0.5)
        after = {"begun": before["begun"] + 1, "cancelled": before["cancelled"] + 1}
        with trio.move_on_after(5):  # s; the notification is sent behind the caller's back
            while await waits(session) != after:  # noqa: ASYNC110  # what a process does can only be polled
                await trio.sleep(0.05)
        assert after == await waits(session)


@pytest.mark.parametrize("server", EVERY_SERVER)
async def test_terminating_ends_the_servers_session(server: Server, url_of: UrlOf) -> None:
    """After close the server no longer knows the session that it assigned."""
    url = url_of(server)
    async with (
        open_session_factory() as factory,
        factory.open_session([Backend(id="it", url=url, era="legacy")]) as session,
    ):
        assigned = session.backend_sessions["it"]
        assert httpx.codes.OK == await ping(url, assigned)
    assert await ping(url, assigned) in (
        httpx.codes.NOT_FOUND,
        httpx.codes.BAD_REQUEST,
    )  # the latter is server-everything


async def test_one_session_over_all_servers(url_of: UrlOf) -> None:
    """Every server at once, of both eras: each name leads to its own server, under concurrent calls."""
    backends = [Backend(id=server.name, url=url_of(server)) for server in SERVERS]
    answers: dict[str, ToolResult] = {}
    async with open_session_factory() as factory, factory.open_session(backends) as session:
        assert () == session.failures
        assert () == tuple(conflict for conflict in session.conflicts if conflict.kind != "resource")
        assert {"legacy", "modern"} == {record.era for record in session.metadata.backends}

        async def echo(backend: Backend) -> None:
            answers[backend.id] = await session.call_tool(f"{backend.id}_echo", {"message": f"for {backend.id}"})

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for backend in backends:
                    for _ in range(5):
                        nursery.start_soon(echo, backend)
    assert {backend.id: backend.id for backend in backends} == {
        key: answer.backend_id for key, answer in answers.items()
    }
    assert all(f"for {key}" in only_text(answer) for key, answer in answers.items())


async def waits(session: Session) -> JSON:
    counted: JSON = (await session.call_tool("it_waits_so_far")).structured_content
    return counted
