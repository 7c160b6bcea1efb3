"""An answer of equal bytes is known by its digest, and not parsed again."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import trio
from support.channels import EVERY_ANSWER, Channel
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON
from trio_vmcp._client.channels.parsing import read, read_answer
from trio_vmcp._known_results import (
    SLICE,
    KnownResults,
    Page,
    SharedPages,
    answer_digest,
    answer_digest_in_steps,
    can_recall,
)
from trio_vmcp._protocol.jsonrpc import Result
from trio_vmcp._protocol.reading import Unreadable

ANSWER: JSON = {"tools": [{"name": "é", "description": "x"}]}


async def list_tools(client: Any, known: KnownResults) -> JSON:
    result: JSON = await client.request("tools/list", {}, identity=None, timeout=9, on_progress=None, known=known)
    return result


def page_of(known: KnownResults) -> Page:
    assert known.page is not None
    return known.page


@EVERY_ANSWER
async def test_an_answer_of_equal_bytes_is_not_parsed_again(channel: Channel, autojump_clock: MockClock) -> None:
    """The caller gets the result that it has already, the very object, although the id of the answer is another one."""
    backend = channel.backend()
    async with channel.open_client(backend) as client:
        assert can_recall(client)
        first = KnownResults({})
        result = await list_tools(client, first)
        page = page_of(first)
        assert page.digest is not None
        assert page.result is result
        mine = {page.digest: page}
        again = KnownResults(mine)
        assert result is await list_tools(client, again)
        assert page is again.page
        backend.add_tool("new")
        other = KnownResults(mine)
        assert "new" in [tool["name"] for tool in (await list_tools(client, other))["tools"]]
        assert page_of(other).digest not in (None, page.digest)


@EVERY_ANSWER
@pytest.mark.parametrize("description", ["short", "long " * 50_000], ids=["parsed at once", "parsed in steps"])
async def test_who_receives_a_page_while_another_parses_it_waits_for_that(
    channel: Channel, description: str, autojump_clock: MockClock
) -> None:
    """Of several clients that receive the same bytes at the same time, one parses them; the others get its result. It
    is forgotten once no session holds it.
    """
    shared = SharedPages()
    results: list[JSON] = []
    pages: list[Page] = []

    async def ask(client: Any) -> None:
        known = KnownResults({}, shared)
        results.append(await list_tools(client, known))
        pages.append(page_of(known))

    async with AsyncExitStack() as stack:
        clients: list[Any] = []
        for _ in range(3):
            backend = channel.backend()
            backend.add_tool("large", description=description)
            clients.append(await stack.enter_async_context(channel.open_client(backend)))
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(ask, client)
    assert all(result is results[0] for result in results)
    assert all(page is pages[0] for page in pages)
    key = ("", pages[0].digest or b"")
    results.clear()
    pages.clear()
    gc.collect()
    assert await shared.find(key) is None


@EVERY_ANSWER
async def test_lists_that_are_asked_for_side_by_side_are_known_each(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """Where all answers share one stream, too, whichever request is the older one."""
    backend = channel.backend()
    backend.add_prompt("ask")
    async with channel.open_client(backend) as client:
        pages: dict[bytes, Page] = {}
        read: dict[str, list[JSON]] = {"tools/list": [], "prompts/list": []}

        async def ask(client: Any, method: str) -> None:
            known = KnownResults(pages)
            read[method].append(
                await client.request(method, {}, identity=None, timeout=9, on_progress=None, known=known)
            )
            pages[page_of(known).digest or b""] = page_of(known)

        for order in (("tools/list", "prompts/list"), ("tools/list", "prompts/list"), ("prompts/list", "tools/list")):
            async with trio.open_nursery() as nursery:
                for method in order:
                    nursery.start_soon(ask, client, method)
    for results in read.values():
        assert 3 == len(results)
        assert all(result is results[0] for result in results)


LONG = "x" * (2 * SLICE)
TEXT = json.dumps({"jsonrpc": "2.0", "id": 7, "result": {"tools": [LONG]}})
read_message: Callable[[str], Any] = partial(read, max_depth=9, max_values=9)


async def test_a_parse_that_is_cancelled_is_done_by_one_of_those_who_wait(autojump_clock: MockClock) -> None:
    """No task waits for a page that does not come."""
    shared = SharedPages()
    found: list[object] = []
    held: list[KnownResults] = []  # as a session holds the pages of its lists
    scope = trio.CancelScope()

    async def stuck(_text: str) -> None:
        await trio.sleep_forever()

    async def parse_in(scope: trio.CancelScope) -> None:
        with scope:
            await read_answer(TEXT, 7, KnownResults({}, shared), stuck)

    async def wait() -> None:
        held.append(KnownResults({}, shared))
        found.append(await read_answer(TEXT, 7, held[-1], read_message))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(parse_in, scope)
        await wait_all_tasks_blocked()
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not found
        scope.cancel()
    one, other = found
    assert isinstance(one, Result)
    assert isinstance(other, Result)
    assert one.result is other.result


async def test_who_waits_for_a_parse_can_be_cancelled(autojump_clock: MockClock) -> None:
    """The others still get what is parsed."""
    shared = SharedPages()
    page = Page({}, b"digest")
    found: list[Page | None] = []

    async def wait(scope: trio.CancelScope) -> None:
        with scope:
            found.append(await shared.find(("", b"digest")))

    assert await shared.find(("", b"digest")) is None
    scopes = [trio.CancelScope(), trio.CancelScope()]
    async with trio.open_nursery() as nursery:
        for scope in scopes:
            nursery.start_soon(wait, scope)
        await wait_all_tasks_blocked()
        scopes[0].cancel()
        await wait_all_tasks_blocked()
        shared.end(("", b"digest"), page)
    assert [page] == found


class Turns(trio.abc.Instrument):
    """Counts the steps of all tasks."""

    count = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def test_many_who_wait_for_a_page_that_cannot_be_parsed_wake_up_once(autojump_clock: MockClock) -> None:
    """Each then reads it by itself, and none is left behind."""
    shared, turns, failed = SharedPages(), Turns(), 0
    unreadable = '{"jsonrpc":"2.0","id":7,"result":[}'

    async def fail() -> None:
        nonlocal failed
        message = await read_answer(unreadable, 7, KnownResults({}, shared), fail_in_a_step)
        failed += message is None

    async def fail_in_a_step(_text: str) -> None:
        await trio.lowlevel.checkpoint()

    trio.lowlevel.add_instrument(turns)
    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(fail)
    trio.lowlevel.remove_instrument(turns)
    assert 200 == failed
    assert turns.count < 200 * 8  # each begins, waits for its turn and has a checkpoint
    assert not shared._being_parsed


@pytest.mark.parametrize(
    "text",
    [TEXT[:-1], '{"jsonrpc":"2.0","id":7,"error":{"code":1,"message":"no"}}'],
    ids=["no JSON", "an error"],
)
async def test_only_results_are_shared(text: str, autojump_clock: MockClock) -> None:
    """What cannot be parsed, and an error, each caller reads by itself."""
    shared = SharedPages()
    for _ in range(2):
        known = KnownResults({}, shared)
        message = await read_answer(text, 7, known, read_message)
        assert not isinstance(message, Result)
        assert isinstance(message, Unreadable) == (text == TEXT[:-1])
        assert known.page is None


async def test_an_answer_of_two_ids_is_not_shared(autojump_clock: MockClock) -> None:
    """Its last id counts, and that is of no request."""
    shared = SharedPages()
    text = '{"jsonrpc":"2.0","id":7,"result":{},"id":8}'
    known = KnownResults({}, shared)
    message = await read_answer(text, 7, known, read_message)
    assert isinstance(message, Result)
    assert (8, None) == (message.id, known.page)


async def test_the_page_is_that_of_the_latest_answer(autojump_clock: MockClock) -> None:
    """A request that is sent again may be answered by what has no digest."""
    known = KnownResults({})
    await read_answer('{"jsonrpc":"2.0","id":7,"result":{}}', 7, known, read_message)
    assert known.page is not None
    await read_answer('{"jsonrpc":"2.0","id":7,"result":{"x":"\\ud800"}}', 7, known, read_message)
    assert known.page is None


async def test_pages_are_shared_within_one_era(autojump_clock: MockClock) -> None:
    """What one era reads in a result, the other may not."""
    shared = SharedPages()
    results: list[JSON] = []
    for era in ("legacy", "modern", "legacy"):
        message = await read_answer(TEXT, 7, KnownResults({}, shared, era), read_message)
        assert isinstance(message, Result)
        results.append(message.result)
    assert results[1] is not results[0]


def recall(text: str, request_id: int = 7) -> Page:
    """What is known of an answer."""
    found: list[tuple[bytes, int] | None] = []

    def steps() -> Iterator[None]:
        found.append((yield from answer_digest_in_steps(text, request_id)))

    taken = len(list(steps()))
    assert found[0] == answer_digest(text, request_id), "in one step and in several"
    if found[0] is None:
        return Page({})
    assert taken == len(text) // SLICE
    return Page({}, *found[0])


def messages(result: str) -> list[str]:
    """The answer with the id 7, as the serializers of servers write it."""
    return [
        f'{{"jsonrpc":"2.0","id":7,"result":{result}}}',
        f'{{"id":7,"jsonrpc":"2.0","result":{result}}}',
        f'{{"id":7,"result":{result},"jsonrpc":"2.0"}}',
        f'{{"result":{result},"jsonrpc":"2.0","id":7}}',
        f'{{"jsonrpc":"2.0","result":{result},"id":7}}',
        f'{{\n "jsonrpc": "2.0",\n "id": 7,\n "result": {result}\n}}\n',
    ]


@pytest.mark.parametrize("text", messages(json.dumps(ANSWER, ensure_ascii=False)))
def test_the_id_does_not_count(text: str) -> None:
    """Wherever it stands. Everything else does, each byte of it."""
    known = recall(text)
    assert known.digest is not None
    assert len(text.encode()) - 1 == known.size
    assert known.digest == recall(text.replace("7", "12345"), 12345).digest
    for position in (at for at in range(len(text)) if text[at] != "7"):
        other = recall(text[:position] + "~" + text[position + 1 :])
        assert other.digest != known.digest


LARGE = json.dumps({"tools": ["x" * (2 * SLICE)]})


@pytest.mark.parametrize("text", messages(LARGE))
def test_a_large_answer_is_hashed_in_steps(text: str) -> None:
    """1 MiB takes about 1 ms; other tasks run in between. Each of its slices counts."""
    known = recall(text)
    assert len(text) - 1 == known.size
    others = {recall(text[:at] + "y" + text[at + 1 :]).digest for at in (SLICE // 2, SLICE + SLICE // 2, 2 * SLICE)}
    assert 3 == len(others - {known.digest, None})


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","id":8,"result":{}}',
        '{"jsonrpc":"2.0","id":"7","result":{}}',
        '{"jsonrpc":"2.0","id":07,"result":{}}',
        '{"jsonrpc":"2.0","id":7,"method":"x"}',
        '{"jsonrpc":"2.0","result":{"id":7},"x":1}',
        '{"method":"x","params":{},"id":7}',
        '[{"jsonrpc":"2.0","id":7,"result":{}}]',
        "",
        '{"jsonrpc":"2.0","id":7,"result":{"tools":[{"name":"\\ud800"}]}}',
        '{"jsonrpc":"2.0","id":7,"result":{"tools":[{"name":"\\uDFff"}]}}',
    ],
)
def test_what_may_not_be_told_apart_is_parsed(text: str) -> None:
    """Another id, an id in the middle, no answer; and escapes of surrogates: such an entry may be no text."""
    assert recall(text).digest is None


@pytest.mark.parametrize("escape", ["\\u00e9", "\\n", "\\\\ud"])
@pytest.mark.parametrize("length", [0, 2 * SLICE], ids=["short", "long"])
def test_other_escapes_do_no_harm(escape: str, length: int) -> None:
    """Many servers escape what is no ASCII."""
    text = f'{{"jsonrpc":"2.0","id":7,"result":{{"x":"{escape}{"x" * length}"}}}}'
    assert recall(text).digest is not None


@pytest.mark.parametrize("text", ["", '{"jsonrpc":"2.0","id":7,"result":{"x":"\\ud800"}}'])
async def test_what_has_no_digest_is_read(text: str, autojump_clock: MockClock) -> None:
    """As where nothing is known."""
    known = KnownResults({})
    assert await read_message(text) == await read_answer(text, 7, known, read_message)
    assert known.page is None


@pytest.mark.parametrize("rest", range(8))
@pytest.mark.parametrize(("escape", "is_known"), [("\\ud800", False), ("\\u00d8", True)])
def test_an_escape_that_stands_in_two_slices(escape: str, rest: int, is_known: bool) -> None:
    """An escape of a surrogate is found there, too."""
    begin = '{"jsonrpc":"2.0","id":7'
    text = f'{begin},"result":{{"x":"'.ljust(len(begin) + SLICE - rest, "x") + escape + '"}}'
    assert is_known == (recall(text).digest is not None)


class Outer:
    """A client that adds to what a client of ours answers, and passes everything else on."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Ours:
    recalls = True


def test_only_a_client_of_ours_is_given_what_is_known() -> None:
    """One that changes the results of ours would change them a second time."""
    assert can_recall(Ours())  # type: ignore[arg-type]  # the attribute alone is looked at
    assert not can_recall(Outer(Ours()))
