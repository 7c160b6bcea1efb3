"""Clients by other authors get through the front what a direct connection gives them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import attrs
import pytest
import trio
from interop.conftest import FrontOver, UrlOf
from interop.fleet import (
    EVERYTHING_CALLS,
    MORE_SERVERS,
    PYTHON_CALLS,
    SERVERS,
    Era,
    Server,
    prompt,
    resource,
    tool,
)
from interop.foreign_clients import CLIENTS, ForeignClient, without_ours
from interop.programs import PROGRAMS, Program
from interop.proxies import PROXIES, serve_proxy
from interop.raw_client import Asks, open_raw_client, open_raw_program
from interop.views import PATIENCE
from support.processes import marked_children
from support.served import SERVE, serving, write_servers
from support.verbatim import Written, as_written, member
from support.verbatim import without_ours as written_without_ours

from trio_vmcp import JSON

BY_NAME = {server.name: server for server in SERVERS}
# One server of both eras, and one of the older, for clients that would speak another era to it than to the front.
SEEN = [
    pytest.param(client, BY_NAME[name], id=f"{client.name}-{name}")
    for name in ("mcp2-sse", "everything")
    for client in CLIENTS
    if client.name != "inspector" or name == "mcp2-sse"  # a process for each request: slow
    if client.eras[-1] == BY_NAME[name].eras[-1] or client.eras[-1] == "legacy"
]
# Of other SDK generations, with the calls that they have tools for.
MORE_CALLS = {"fastmcp2": PYTHON_CALLS[:1], "supergateway-http": EVERYTHING_CALLS}
MORE = [attrs.evolve(server, calls=MORE_CALLS[server.name]) for server in MORE_SERVERS if server.name in MORE_CALLS]
VERBATIM = [pytest.param(server, era, id=f"{server.name}-{era}") for server in (*SERVERS, *MORE) for era in server.eras]
LISTS = {
    "tools/list": "tools",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
    "prompts/list": "prompts",
}
KINDS = ("tools", "resources", "resource_templates", "prompts")


# Of mcp2.py: each asks for a name before it answers, in a round.
QUESTIONS = (tool("greet", {}), resource("name://you"), prompt("introduction", {}))
DirectView: TypeAlias = Callable[[ForeignClient, Server], Awaitable[JSON]]


def asked_by(client: ForeignClient, server: Server) -> list[JSON]:
    calls = [
        call
        for method in client.asks
        for call in [each for each in server.calls if each["method"] == method][: client.most_of_each]
    ]
    return [*calls, *QUESTIONS] if client.answers_forms and server.name == "mcp2-sse" else calls


@pytest.fixture(scope="module")
def direct_view(url_of: UrlOf) -> DirectView:
    """What a client gets from a server without the front. Each is asked once."""
    views: dict[tuple[str, str], JSON] = {}

    async def look(client: ForeignClient, server: Server) -> JSON:
        key = client.name, server.name
        if key not in views:
            views[key] = await client.look_at(url_of(server), asked_by(client, server))
        return views[key]

    return look


def expect_same(client: ForeignClient, direct: JSON, through: JSON) -> None:
    for kind in KINDS:
        assert direct.get(kind, []) == through.get(kind, []), kind
    assert list(map(without_ours, direct["answers"])) == list(map(without_ours, through["answers"]))
    if client.tells_all_progress:
        assert [each.get("progress") for each in direct["answers"]] == [
            each.get("progress") for each in through["answers"]
        ]
    assert any("error" not in answer for answer in through["answers"])


@pytest.mark.parametrize(("client", "server"), SEEN)
async def test_a_client_gets_what_a_direct_connection_gives(
    client: ForeignClient, server: Server, direct_view: DirectView, front_over: FrontOver
) -> None:
    """Lists, results, errors, progress and questions; unknown fields that the client keeps included."""
    direct = await direct_view(client, server)
    assert direct["tools"], "a server without tools compares nothing"
    through = await client.look_at(front_over(server), asked_by(client, server))
    expect_same(client, direct, through)
    if client.answers_forms and server.name == "mcp2-sse":
        assert all("Ada" in json.dumps(answer) for answer in through["answers"][-len(QUESTIONS) :])


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize(
    "client", [pytest.param(client, id=client.name) for client in CLIENTS if client.name.startswith("mcp2")]
)
async def test_a_client_gets_the_same_by_way_of_a_proxy(
    client: ForeignClient, proxy: str, direct_view: DirectView, front_over: FrontOver, tmp_path: Path
) -> None:
    """With streams, and in both eras."""
    server = BY_NAME["mcp2-sse"]
    direct = await direct_view(client, server)
    with serve_proxy(proxy, front_over(server), tmp_path) as url:
        expect_same(client, direct, await client.look_at(url, asked_by(client, server)))


@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_proxy_passes_events_on_while_their_stream_is_open(
    proxy: str, front_over: FrontOver, tmp_path: Path
) -> None:
    """Its beginning, and what follows while the stream is open."""
    with serve_proxy(proxy, front_over(BY_NAME["mcp2-sse"]), tmp_path) as url, trio.fail_after(PATIENCE):
        async with open_raw_client(url, "modern") as client:
            params = {"notifications": {"toolsListChanged": True}}
            async with client.open_stream("subscriptions/listen", params) as stream:
                await stream.wait_for(b"notifications/subscriptions/acknowledged")
                for _ in range(2):  # there and away again, for the tests that follow
                    stream.received = b""
                    await client.ask("tools/call", {"name": "toggle", "arguments": {}})
                    await stream.wait_for(b"notifications/tools/list_changed")


@pytest.mark.parametrize(
    "client", [pytest.param(client, id=client.name) for client in CLIENTS if client.name != "inspector"]
)
async def test_a_client_starts_the_front_as_a_program(
    client: ForeignClient, url_of: UrlOf, direct_view: DirectView, tmp_path: Path
) -> None:
    """`serve --stdio` answers as the server does over HTTP, in the era of the client, and ends with it."""
    server = BY_NAME["mcp2-sse"]
    direct = await direct_view(client, server)
    file = write_servers(tmp_path, {"server": {"url": url_of(server)}})
    command = json.dumps([*SERVE, "--config", file, "--naming", "bare", "--stdio"])
    with marked_children() as children:
        expect_same(client, direct, await client.look_at(command, asked_by(client, server), TEST_MARK=children.mark))
        assert await children.all_gone()


async def every_entry(client: Asks, method: str) -> list[Written]:
    """The entries of all pages; none: the server has no such list."""
    entries: list[Written] = []
    params: JSON = {}
    while True:
        answer = await client.ask(method, params)
        if "error" in dict(answer[1]):
            return entries
        result = member(answer, "result")
        entries += member(result, LISTS[method])
        if "nextCursor" not in dict(result[1]):
            return entries
        params = {"cursor": member(result, "nextCursor")}


async def written_answer(client: Asks, call: JSON) -> Written:
    params = {key: value for key, value in call.items() if key != "method"}
    if call["method"] == "completion/complete":
        params = {"ref": {"type": "ref/prompt", "name": params["name"]}, "argument": params["argument"]}
    answer = await client.ask(call["method"], params)
    if "error" in dict(answer[1]):
        return sorted(member(answer, "error")[1])
    return written_without_ours(member(answer, "result"))


@pytest.mark.parametrize(("server", "era"), VERBATIM)
async def test_answers_are_written_as_the_server_writes_them(
    server: Server, era: Era, url_of: UrlOf, front_over: FrontOver
) -> None:
    """The order of keys, the spelling of numbers, unknown fields: over every server, in each of its eras."""
    compared = 0
    with trio.fail_after(PATIENCE):
        async with open_raw_client(url_of(server), era) as direct, open_raw_client(front_over(server), era) as front:
            for method in LISTS:
                entries = await every_entry(direct, method)
                assert entries == await every_entry(front, method), method
                compared += len(entries)
            for call in server.calls:
                assert await written_answer(direct, call) == await written_answer(front, call), call
    assert compared
    assert as_written('{"a":1.0}') != as_written('{"a":1.00}')


@pytest.mark.parametrize("program", [pytest.param(program, id=program.name) for program in PROGRAMS])
async def test_answers_are_written_as_the_program_writes_them(program: Program, tmp_path: Path) -> None:
    """The same for servers that are programs, of which the front starts one of its own."""
    places = [tmp_path / "direct", tmp_path / "front"]
    for place in places:
        place.mkdir()
        program.prepare(place)
    command, *args = program.command_line(places[1])
    entry = {"command": command, "args": args, "env": program.environment(places[1], "front")}
    with trio.fail_after(PATIENCE):
        async with (
            open_raw_program(program.command_line(places[0]), program.environment(places[0], "direct")) as direct,
            serving(tmp_path, {"program": entry}, "--naming", "bare") as url,
            open_raw_client(url, "legacy") as front,
        ):
            compared = 0
            for method in LISTS:
                entries = await every_entry(direct, method)
                assert entries == await every_entry(front, method), method
                compared += len(entries)
            assert compared
            name, arguments = program.deed(places[0], "deed")
            _, same = program.deed(places[1], "deed")
            told = await written_answer(direct, tool(name, arguments))
            text = json.dumps(await written_answer(front, tool(name, same)))
            assert json.dumps(told).replace(str(places[0]), str(places[1])) == text
