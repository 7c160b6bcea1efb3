"""Everything that one backend offers: what it advertises, every page, within the limits, and nothing malformed."""

from __future__ import annotations

import itertools
import json
import logging
import math
from typing import Any

import attrs
import pytest
import trio
from support.clients import echo_backend, open_client
from support.harness import open_world
from trio.testing import MockClock

from trio_vmcp import (
    JSON,
    Backend,
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendState,
    BackendTimeout,
    BackendUnauthorized,
    BackendUnavailable,
    FactorySettings,
    FailureReason,
    MessageTooLarge,
)
from trio_vmcp._session.lister import list_backend
from trio_vmcp._session.listing import Listing
from trio_vmcp._session.shared_lists import SharedLists
from trio_vmcp.testing import Delay, Error, Fault, Hang, Reset, Rewrite, ScriptedBackend, Status

KIB = 1024

LISTS = ("tools/list", "resources/list", "resources/templates/list", "prompts/list")
URL = "http://b.test/mcp"


def alone() -> dict[str, Any]:
    """What else `list_backend` takes, of a session that shares nothing."""
    return {"settings": FactorySettings(), "shared": SharedLists()}


async def listing_of(
    backend: ScriptedBackend, *, settings: FactorySettings | None = None, overlap: bool = False, **configured: Any
) -> Listing:
    async with open_client(backend, settings=settings) as client:
        return await list_backend(
            Backend(id="b", url=URL, **configured),
            client,
            identity=None,
            settings=settings or FactorySettings(),
            shared=SharedLists(),
            overlap=overlap,
        )


def full_backend(era: str = "legacy", count: int = 5, **more: Any) -> ScriptedBackend:
    """As many of everything."""
    backend = ScriptedBackend(era=era, **more)  # type: ignore[arg-type]
    for number in range(count):
        backend.add_tool(f"tool{number}")
        backend.add_resource(f"mem://{number}")
        backend.add_resource_template(f"mem://{number}/{{x}}")
        backend.add_prompt(f"prompt{number}")
    return backend


def pages(*given: JSON) -> Rewrite:
    """These results, one after another, whatever is asked."""
    left = iter(given)
    return Rewrite(lambda message: {"jsonrpc": "2.0", "id": message["id"], "result": next(left)})


def tools(*names: str, **more: Any) -> JSON:
    return {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in names], **more}


def asked(backend: ScriptedBackend) -> list[tuple[str, Any]]:
    return [(e.method, e.params.get("cursor")) for e in backend.exchanges if e.method in LISTS]


# Pages


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("page_size", [1, 2, 5, None])
async def test_every_page_of_every_list_is_read(era: str, page_size: int | None) -> None:
    """In the backend's order, keyed by name, URI or template, with all fields as received."""
    backend = full_backend(era, page_size=page_size)
    backend.tools[0]["vendor"] = {"deep": [None]}
    listing = await listing_of(backend)
    assert [f"tool{n}" for n in range(5)] == list(listing.tools)
    assert [f"mem://{n}" for n in range(5)] == list(listing.resources)
    assert [f"mem://{n}/{{x}}" for n in range(5)] == list(listing.resource_templates)
    assert [f"prompt{n}" for n in range(5)] == list(listing.prompts)
    assert backend.tools == list(listing.tools.values())
    offer = listing.offer("b")
    assert ("b", tuple(listing.tools), tuple(listing.prompts)) == (offer.backend_id, offer.tools, offer.prompts)
    assert (tuple(listing.resources), tuple(listing.resource_templates)) == (offer.resources, offer.templates)
    assert 4 * {1: 5, 2: 3, 5: 1, None: 1}[page_size] == len(asked(backend))


@pytest.mark.parametrize("cursor", ["", "x", " ", "0", 0, 7, False, ["a"], {"a": 1}])
async def test_cursors_are_opaque_and_only_null_ends_the_list(cursor: Any) -> None:
    """The empty string is one, too; whatever it is goes back as it came."""
    backend = echo_backend()
    backend.fail("tools/list", pages(tools("a", nextCursor=cursor), tools("b", nextCursor=None)))
    listing = await listing_of(backend)
    assert ["a", "b"] == list(listing.tools)
    assert [("tools/list", None), ("tools/list", cursor)] == asked(backend)
    assert "cursor" not in backend.received("tools/list")[0].params


@pytest.mark.parametrize("cursor", ["x" * 300_000, ["x"] * 5000], ids=["string", "array"])
async def test_a_cursor_that_is_too_long_is_not_sent_back(cursor: Any) -> None:
    """One of 16 MiB would be encoded in one step, and no server wants it."""
    backend = echo_backend()
    backend.fail("tools/list", pages(tools("a", nextCursor=cursor)))
    with pytest.raises(MessageTooLarge, match="answered 'tools/list' with a cursor of over 262144 bytes"):
        await listing_of(backend)
    assert [("tools/list", None)] == asked(backend)


async def test_a_repeated_cursor_or_empty_page_is_no_end() -> None:
    """Opaque means: not compared. What comes twice is kept as it came first."""
    backend = echo_backend()
    answers = [tools("a", nextCursor="same"), tools(nextCursor="same"), tools("a", "b", nextCursor="same"), tools("c")]
    answers[2]["tools"][0]["description"] = "later"
    backend.fail("tools/list", pages(*answers))
    listing = await listing_of(backend)
    assert ["a", "b", "c"] == list(listing.tools)
    assert "description" not in listing.tools["a"]


@pytest.mark.parametrize("fresh", [True, False])
async def test_a_list_without_an_end_is_cut_off(fresh: bool) -> None:
    """After `max_pages`, whether its cursors are new or always the same."""
    backend = echo_backend()
    answers = [tools(f"t{n}", nextCursor=str(n) if fresh else "x") for n in range(20)]
    backend.fail("tools/list", pages(*answers))
    with pytest.raises(MessageTooLarge, match=r"backend 'b' has not ended 'tools/list' after 7 pages \(max_pages\)"):
        await listing_of(backend, settings=FactorySettings(max_pages=7))
    assert 7 == len(asked(backend))


async def test_exactly_max_pages_are_fine() -> None:
    """The limit is the last one that is allowed."""
    backend = full_backend(count=7, page_size=1)
    assert 7 == len((await listing_of(backend, settings=FactorySettings(max_pages=7))).prompts)


async def test_the_number_of_items_is_limited_over_all_lists() -> None:
    """Malformed ones and duplicates count: they cost as much."""
    settings = FactorySettings(max_items_per_backend=20)
    assert 5 == len((await listing_of(full_backend(count=5), settings=settings)).prompts)
    (error,) = (await listing_of(full_backend(count=6), settings=settings)).failures.values()
    assert "lists over 20 items (max_items_per_backend)" == error.detail
    backend = echo_backend()
    backend.fail("tools/list", pages({"tools": [None] * 21}))
    with pytest.raises(MessageTooLarge):
        await listing_of(backend, settings=settings)


async def test_the_names_of_one_backend_are_limited() -> None:
    """They all go into the session's row: one backend with huge names must not cost the others their session."""
    backend = ScriptedBackend()
    for number in range(9):
        backend.add_tool(f"{number}" + "n" * 60_000)
    with pytest.raises(MessageTooLarge, match="over 524288 bytes of names"):
        await listing_of(backend)


# All lists at once


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_lists_that_overlap_are_the_same_lists(autojump_clock: MockClock, era: str) -> None:
    """In a quarter of the time."""
    backend = full_backend(era, page_size=2, latency=1)
    one_by_one, started = await listing_of(backend), trio.current_time()
    assert one_by_one == await listing_of(backend, overlap=True)
    assert trio.current_time() - started < 7


async def test_a_slow_list_leaves_the_next_half_of_the_time_that_is_left(autojump_clock: MockClock) -> None:
    """Of 40 s the first optional list may take 20 and takes 15: the next may take 12.5, and not the 5 that the first
    has left over.
    """
    for seconds, is_listed in ((12.0, True), (13.0, False)):
        backend = full_backend()
        backend.fail("resources/list", Delay(15.0), times=1)
        backend.fail("resources/templates/list", Delay(seconds), times=1)
        listing = await listing_of(backend, init_timeout=40.0)
        assert 5 == len(listing.resources) == len(listing.prompts)
        assert is_listed is (listing.resource_templates != {})


async def test_tools_that_fail_end_the_other_lists(autojump_clock: MockClock) -> None:
    """With their own error, at once; a limit counts over all lists, and costs one of them."""
    backend = full_backend()
    backend.fail("tools/list", Error(-32603, "broken"))
    backend.fail(lambda exchange: exchange.method in LISTS, Delay(60))
    with pytest.raises(BackendRejected, match="broken"):
        await listing_of(backend, overlap=True)
    assert trio.current_time() < 5
    listing = await listing_of(full_backend(), overlap=True, settings=FactorySettings(max_items_per_backend=19))
    assert ["max_items_per_backend"] == [error.detail[-22:-1] for error in listing.failures.values()]


# What is asked for


@pytest.mark.parametrize(
    ("capabilities", "methods"),
    [
        ({}, []),
        ({"tools": {}}, ["tools/list"]),
        ({"tools": {"listChanged": True}}, ["tools/list"]),
        ({"resources": {}}, ["resources/list", "resources/templates/list"]),
        ({"prompts": {}}, ["prompts/list"]),
        ({"logging": {}, "completions": {}, "experimental": {}, "tasks": {}}, []),
        ({"prompts": {}, "tools": {}}, ["tools/list", "prompts/list"]),
    ],
)
async def test_only_what_is_advertised_is_asked_for(capabilities: JSON, methods: list[str]) -> None:
    """ "Use only negotiated capabilities"."""
    backend = full_backend(capabilities=capabilities)
    listing = await listing_of(backend)
    assert methods == [method for method, _ in asked(backend)]
    assert ("tools" in capabilities) == bool(listing.tools)


async def test_lists_that_are_advertised_but_not_there_are_empty(caplog: pytest.LogCaptureFixture) -> None:
    """A warning each; what the other lists hold is kept."""
    backend = full_backend()
    for method in LISTS[1:]:
        backend.fail(method, Error(-32601, "method not found"))
    listing = await listing_of(backend)
    assert (5, 0, 0, 0) == tuple(
        map(len, (listing.tools, listing.resources, listing.resource_templates, listing.prompts))
    )
    assert [f"backend 'b' advertises {method} but answers that it is not there" for method in LISTS[1:]] == [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]


async def test_resources_without_templates_are_resources() -> None:
    """Many servers know the one list and not the other."""
    backend = full_backend()
    backend.fail("resources/templates/list", Error(-32601, "method not found"))
    assert 5 == len((await listing_of(backend)).resources)


FAILURES: list[tuple[Fault, type[BackendError]]] = [
    (Error(-32603, "broken"), BackendRejected),
    (Error(-32002, "not now"), BackendRejected),
    (Status(404), BackendUnavailable),
    (Status(500), BackendRejected),
    (Status(401), BackendUnauthorized),
    (Reset(0), BackendUnavailable),
    (Hang(), BackendTimeout),
    (Rewrite(lambda message: message | {"result": None}), BackendProtocolError),
    (Rewrite(lambda message: message | {"result": {}}), BackendProtocolError),
    (
        Rewrite(
            lambda message: (
                message | {"result": {"resources": None, "resourceTemplates": None, "prompts": None, "tools": None}}
            )
        ),
        BackendProtocolError,
    ),
]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("method", LISTS)
@pytest.mark.parametrize(("fault", "error"), FAILURES, ids=[str(n) for n in range(len(FAILURES))])
async def test_an_optional_list_that_fails_costs_that_list(
    method: str, fault: Fault, error: type[BackendError], overlap: bool, autojump_clock: MockClock
) -> None:
    """Tools are what sessions are for: without them the backend is missing. Everything else is optional."""
    backend = full_backend()
    backend.fail(method, fault)
    with trio.fail_after(10):
        if method == "tools/list":
            if error is not BackendTimeout:
                with pytest.raises(error):
                    await listing_of(backend, overlap=overlap)
            return
        listing = await listing_of(backend, overlap=overlap)
        ((field, failure),) = listing.failures.items()
        assert error is type(failure)
        assert [0] == [len(getattr(listing, field))]
        assert 15 == sum(map(len, (listing.tools, listing.resources, listing.resource_templates, listing.prompts)))
        assert field not in listing.digests
        assert field not in listing.weights


async def test_an_optional_list_that_fails_later_is_as_last_seen() -> None:
    """What is known of it stays, until it is listed again."""
    backend = full_backend()
    async with open_client(backend) as client:
        known: Listing | None = None
        for fault in (None, Error(-32603, "broken"), None):
            if fault is not None:
                backend.fail("prompts/list", fault, times=1)
            listing = await list_backend(
                Backend(id="b", url=URL),
                client,
                identity=None,
                settings=FactorySettings(),
                shared=SharedLists(),
                known=known,
            )
            assert 5 == len(listing.prompts)
            assert (["prompts"] if fault else []) == list(listing.failures)
            assert known is None or known == listing
            assert not listing.differs(listing if known is None else known, "prompts")
            known = listing


@pytest.mark.parametrize("method", LISTS[1:])
async def test_a_list_that_failed_is_asked_for_again_alone(method: str, autojump_clock: MockClock) -> None:
    """The backend serves calls meanwhile, and says that it is degraded. Once the list is there, it is ready."""
    backend = full_backend()
    backend.fail(method, Error(-32603, "broken"), times=4)
    async with open_world({"b": backend}) as world, world.open_session() as session:
        status = session.backends["b"]
        assert BackendState.DEGRADED is status.state
        assert status.last_failure is not None
        assert "broken" in status.last_failure.detail
        assert () == session.failures
        assert 5 == len(session.tools)
        await session.call_tool("b_tool1")
        await trio.sleep(30)
        assert BackendState.READY is session.backends["b"].state
        counts = {each: len(backend.received(each)) for each in LISTS}
        assert dict.fromkeys(LISTS, 1) | {method: 5} == counts
        assert 1 == len(backend.received("initialize"))
        everything = (session.tools, session.resources, session.resource_templates, session.prompts)
        assert [5] * 4 == [len(each) for each in everything]


async def test_a_list_over_a_limit_is_asked_for_at_the_slowest_pace(autojump_clock: MockClock) -> None:
    """It would be over it again. The same for a backend that is missing since its tools are over one."""
    backend = full_backend()
    counter = itertools.count()

    def page(message: JSON) -> JSON:
        number = next(counter)
        result = {"prompts": [{"name": f"p{number}"}], "nextCursor": str(number)}
        return {"jsonrpc": "2.0", "id": message["id"], "result": result}

    backend.fail("prompts/list", Rewrite(page))
    async with open_world({"b": backend}, settings=FactorySettings(max_pages=7)) as world:
        async with world.open_session() as session:
            await trio.sleep(500)
            assert 5 == len(session.tools)
            assert 7 * 6 <= len(backend.received("prompts/list")) <= 7 * 12
    backend = full_backend()
    backend.fail("tools/list", Rewrite(lambda message: message | {"result": {"tools": [None] * 9}}))
    async with open_world({"b": backend}, settings=FactorySettings(max_items_per_backend=8)) as world:
        async with world.open_session():
            await trio.sleep(500)
            assert 6 <= len(backend.received("tools/list")) <= 12


@pytest.mark.parametrize("cursor", ["x", "", None], ids=["stuck", "empty", "new"])
async def test_pages_that_bring_nothing_new_end_a_list(cursor: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """After three in a row; what came is kept, with a warning."""
    backend = echo_backend()
    answers = [tools("a", nextCursor="1"), tools("b", nextCursor="2")]
    answers += [tools("a", "b", nextCursor=str(n) if cursor is None else cursor) for n in range(20)]
    backend.fail("tools/list", pages(*answers))
    assert ["a", "b"] == list((await listing_of(backend)).tools)
    assert 5 == len(asked(backend))
    assert "3 pages in a row brought nothing new" in caplog.text


async def test_tools_that_are_not_there_are_an_error() -> None:
    """A server that advertises tools and has no `tools/list` is broken."""
    backend = full_backend()
    backend.fail("tools/list", Error(-32601, "method not found"))
    with pytest.raises(BackendRejected):
        await listing_of(backend)


async def test_allowed_and_denied_tools() -> None:
    """Own names; deny wins; prompts and resources are not concerned."""
    backend = full_backend()
    listing = await listing_of(
        backend, allow_tools={"tool0", "tool1", "Tool2", "prompt0"}, deny_tools={"tool1", "prompt1"}
    )
    assert ["tool0"] == list(listing.tools)
    assert 5 == len(listing.prompts)
    assert ["tool0", "tool2", "tool3", "tool4"] == list((await listing_of(backend, deny_tools={"tool1"})).tools)
    assert [] == list((await listing_of(backend, allow_tools=())).tools)


# What is malformed


@pytest.mark.parametrize("page", [{}, {"tools": None}, {"tools": {}}, {"tools": "x"}, {"Tools": []}])
async def test_a_page_without_its_array_is_a_protocol_error(page: JSON) -> None:
    """There is nothing to keep."""
    backend = echo_backend()
    backend.fail("tools/list", pages(page))
    with pytest.raises(BackendProtocolError, match="answered 'tools/list' without an array 'tools'"):
        await listing_of(backend)


GOOD: JSON = {"name": "good", "inputSchema": {}}


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (None, "it is not an object"),
        (7, "it is not an object"),
        ("tool", "it is not an object"),
        ([GOOD], "it is not an object"),
        ({}, "its 'name' is not a non-empty string"),
        ({"name": ""}, "its 'name' is not a non-empty string"),
        ({"name": None}, "its 'name' is not a non-empty string"),
        ({"name": 7}, "its 'name' is not a non-empty string"),
        ({"name": ["x"]}, "its 'name' is not a non-empty string"),
        ({"name": "x" * 524_289}, "its 'name' is over 524288 characters"),
        ({"name": "x", "inputSchema": []}, "its 'inputSchema' is not an object"),
        ({"name": "x", "inputSchema": True}, "its 'inputSchema' is not an object"),
        ({"name": "x", "description": 7}, "its 'description' is not a string"),
        ({"name": "x", "title": ["x"]}, "its 'title' is not a string"),
        ({"name": "x\ud800"}, "half a surrogate pair"),
        ({"name": "x", "description": "\udc00"}, "half a surrogate pair"),
        ({"name": "x", "inputSchema": {"properties": {"\ud800": {}}}}, "half a surrogate pair"),
    ],
)
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_malformed_entry_costs_itself_and_not_its_list(
    entry: Any, why: str, era: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning says which and why, and quotes nothing of it."""
    backend = echo_backend(era)
    backend.fail("tools/list", pages({"tools": [{**GOOD, "name": "first"}, entry, GOOD]}))
    listing = await listing_of(backend)
    assert ["first", "good"] == list(listing.tools)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "backend 'b': tools/list: dropped entry 1: " in warning.getMessage()
    assert why in warning.getMessage()
    assert warning.getMessage().isprintable()


@attrs.define
class WrappedClient:
    """A client as an application may write one: it lists these tools, in these pages."""

    pages: list[list[JSON]]
    server_capabilities: JSON = attrs.field(factory=lambda: {"tools": {}})

    async def request(self, method: str, params: JSON, **more: Any) -> JSON:
        await trio.lowlevel.checkpoint()
        at = params.get("cursor", 0)
        return {"tools": self.pages[at], "nextCursor": at + 1 if self.pages[at + 1 :] else None}


async def listing_of_pages(*pages: list[JSON], known: Listing | None = None) -> Listing:
    client: Any = WrappedClient(list(pages))
    return await list_backend(Backend(id="b", url=URL), client, identity=None, **alone(), known=known)


async def listed_again(client: Any, known: Listing) -> Listing:
    return await list_backend(
        Backend(id="b", url=URL, deny_tools=["tool1"]),
        client,
        identity=None,
        settings=FactorySettings(),
        shared=SharedLists(),
        known=known,
    )


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("page_size", [None, 2])
async def test_a_list_that_has_not_changed_is_the_very_same(era: str, page_size: int | None) -> None:
    """All of it: nothing is made anew. A change costs the list that has changed."""
    backend = full_backend(era, page_size=page_size)
    async with open_client(backend) as client:
        known = await listed_again(client, Listing())
        assert ["tool0", "tool2", "tool3", "tool4"] == list(known.tools)
        assert {} == known.digests  # nothing was hashed but the bytes
        assert known is await listed_again(client, known)
        backend.tools[4]["description"] = "new"  # on the last page
        changed = await listed_again(client, known)
        assert "new" == changed.tools["tool4"]["description"]
        assert ["tools"] == [kind for kind in ("tools", "resources", "prompts") if changed.differs(known, kind)]
        assert changed.resources is known.resources
        assert changed.prompts is known.prompts
        assert changed is await listed_again(client, changed)


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_other_bytes_of_the_same_list_are_no_change(era: str) -> None:
    """Cut into other pages, or with another `_meta` each time: the entries decide. The new bytes are known from then
    on.
    """
    backend = full_backend(era)
    async with open_client(backend) as client:
        known = await listed_again(client, Listing())
        for size in (2, 1, None):
            backend.page_size = size
            again = await listed_again(client, known)
            assert again is not known
            assert again.tools is known.tools
            assert not any(again.differs(known, kind) for kind in ("tools", "resources", "prompts"))
            assert again is await listed_again(client, again)
            known = again
        for nonce in range(3):
            backend.fail("tools/list", pages({"tools": backend.tools, "_meta": {"nonce": nonce}}), times=1)
            again = await listed_again(client, known)
            assert again.tools is known.tools
            known = again


async def test_a_list_that_ends_earlier_or_later_has_changed() -> None:
    """Though the pages that are there are those of before."""
    backend = full_backend(page_size=2)
    tools = list(backend.tools)
    async with open_client(backend) as client:
        known = await listed_again(client, Listing())
        for count in (4, 5, 3, 1, 2, 5):
            backend.tools[:] = tools[:count]
            listing = await listed_again(client, known)
            assert [tool["name"] for tool in tools[:count] if tool["name"] != "tool1"] == list(listing.tools)
            assert listing.differs(known, "tools")
            known = listing


async def test_a_list_of_a_client_of_ones_own_is_known_by_its_entries() -> None:
    """Whatever it is cut into. Entries that cannot be listed count: they may be mended."""
    tools = [{**GOOD, "name": f"tool {at}"} for at in range(130)]
    known = await listing_of_pages(tools)
    assert known is await listing_of_pages(tools[:70], tools[70:], known=known)
    for changed in (tools[::-1], tools[:-1], [*tools, {"name": 7}], [{**tools[0], "x": True}, *tools[1:]]):
        assert (await listing_of_pages(changed, known=known)).differs(known, "tools")


@pytest.mark.parametrize("lone", [{"name": "x\ud800"}, {"name": "x", "description": "\udc00"}])
async def test_a_page_with_half_a_surrogate_pair_among_others(lone: JSON) -> None:
    """It costs that entry, each time that the list is read; the list has changed only if its entries have."""
    backend = full_backend(page_size=2)
    backend.tools[2] = lone
    async with open_client(backend) as client:
        known = await listed_again(client, Listing())
        assert ["tool0", "tool3", "tool4"] == list(known.tools)
        assert not (await listed_again(client, known)).differs(known, "tools")
        backend.tools[0]["description"] = "new"
        assert (await listed_again(client, known)).differs(known, "tools")


@pytest.mark.parametrize("count", [0, 1, 64, 65, 128, 200])
async def test_a_list_weighs_its_json(count: int) -> None:
    """To the byte, however long it is: of a client of ours the bytes that were received, without their id."""
    tools = [{**GOOD, "name": f"tool {at}", "description": "é"} for at in range(count)]
    weight = (await listing_of_pages(tools)).weights["tools"]
    text = json.dumps(tools, ensure_ascii=False, separators=(",", ":"))
    assert (count, len(text.encode())) == (weight.items, weight.size)
    backend = echo_backend()
    backend.fail("tools/list", pages({"tools": tools}))
    weight = (await listing_of(backend)).weights["tools"]
    text = json.dumps({"jsonrpc": "2.0", "id": 0, "result": {"tools": tools}}, separators=(",", ":"))
    assert (count, len(text.encode()) - 1) == (weight.items, weight.size)


async def test_a_malformed_entry_far_down_a_long_list(caplog: pytest.LogCaptureFixture) -> None:
    """It costs itself there, too."""
    tools = [{**GOOD, "name": f"tool {at}"} for at in range(200)]
    backend = echo_backend()
    backend.fail("tools/list", pages({"tools": [*tools[:150], {"name": "\ud800"}, *tools[150:]]}))
    assert [tool["name"] for tool in tools] == list((await listing_of(backend)).tools)
    assert "dropped entry 150: it holds half a surrogate pair" in caplog.text


@pytest.mark.parametrize(
    ("entry", "kept"),
    [
        ({"name": "x", "inputSchema": None, "title": None, "description": None}, True),
        ({"name": "x"}, True),
        ({"name": "😀", "description": "\ud83d\ude00"}, True),
        ({"name": " "}, True),
        ({"name": "x" * 10_000}, True),
    ],
)
async def test_what_is_only_unusual_stays(entry: JSON, kept: bool) -> None:
    """As received: null where text may be, no schema, pairs of surrogates, odd names."""
    backend = echo_backend()
    backend.fail("tools/list", pages({"tools": [entry]}))
    listing = await listing_of(backend)
    assert kept is (len(listing.tools) == 1)


@pytest.mark.parametrize(
    ("method", "field", "key"),
    [
        ("resources/list", "resources", "uri"),
        ("resources/templates/list", "resourceTemplates", "uriTemplate"),
        ("prompts/list", "prompts", "name"),
    ],
)
async def test_the_other_lists_have_keys_of_their_own(
    autojump_clock: MockClock, method: str, field: str, key: str
) -> None:
    """A resource is its URI, and needs no name of any kind."""
    backend = full_backend()
    backend.fail(method, pages({field: [{key: "k", "inputSchema": {}}, {"other": "x"}, {key: 7}]}))
    listing = await listing_of(backend)
    found = {
        "resources": listing.resources,
        "resourceTemplates": listing.resource_templates,
        "prompts": listing.prompts,
    }
    assert ["k"] == list(found[field])


async def test_all_lists_of_a_backend_share_one_limit_of_bytes(autojump_clock: MockClock) -> None:
    """Lists are kept for the life of the session, so all pages together must fit into `max_message_bytes`."""
    backend = ScriptedBackend(page_size=1)
    for number in range(8):
        backend.add_tool(f"t{number}", description="x" * 40 * KIB)
    settings = FactorySettings(max_message_bytes=256 * KIB)
    async with open_world({"a": backend}, settings=settings) as world, world.open_session() as session:
        (failure,) = session.failures
    assert FailureReason.LIMIT is failure.reason
    assert "lists more than 262144 bytes (max_message_bytes)" == failure.detail


async def test_tools_dropped_for_their_param_headers_share_one_warning(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """500 tools with a bad `x-mcp-header` annotation write one log record: it names the first and counts the others."""

    def spoil(response: JSON) -> JSON:
        response["result"]["tools"] += [{"name": f"bad{n}", "inputSchema": {"x-mcp-header": 1}} for n in range(500)]
        return response

    backend = ScriptedBackend(era="modern")
    backend.add_tool("echo")
    backend.fail("tools/list", Rewrite(spoil))
    async with open_world({"a": backend}) as world, world.open_session() as session:
        assert ["a_echo"] == [tool.name for tool in session.tools]
    (warning,) = caplog.records
    assert "dropped tool 'bad0'" in warning.getMessage()
    assert "499 more" in warning.getMessage()


async def test_malformed_entries_share_one_warning(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """500 malformed entries write one log record: it names the first and counts the others."""

    def spoil(response: JSON) -> JSON:
        response["result"]["tools"] += [None] * 500
        return response

    backend = ScriptedBackend()
    backend.add_tool("echo")
    backend.fail("tools/list", Rewrite(spoil))
    async with open_world({"a": backend}) as world, world.open_session() as session:
        assert ["a_echo"] == [tool.name for tool in session.tools]
    (warning,) = caplog.records
    assert "dropped entry 1: it is not an object, and 499 more" in warning.getMessage()


async def test_max_pages_may_be_infinite(autojump_clock: MockClock) -> None:
    """`max_pages=math.inf` means no limit."""
    backend = ScriptedBackend(page_size=1)
    for number in range(3):
        backend.add_tool(f"t{number}")
    settings = FactorySettings(max_pages=math.inf)  # type: ignore[arg-type]
    async with open_world({"a": backend}, settings=settings) as world, world.open_session() as session:
        assert () == session.failures
        assert ["a_t0", "a_t1", "a_t2"] == [tool.name for tool in session.tools]
