"""One stream for all calls: each call gets its own answer, and none waits for another."""

from __future__ import annotations

import json

import pytest
import trio
from support.clients import call
from support.duplex import LIMIT, Pair, open_pair
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    ClientHandlers,
    MessageTooLarge,
    ServerRequest,
)
from trio_vmcp._client.channels.channel import Ask, ignore_other
from trio_vmcp._client.channels.inbox import Inbox
from trio_vmcp._client.channels.lines import MOST_NOTICES
from trio_vmcp._protocol.jsonrpc import Result
from trio_vmcp._protocol.outcomes import Answer, Loss
from trio_vmcp._request_note import RequestNote, current_note


def progress_of(token: object, progress: object) -> JSON:
    params = {"progressToken": token, "progress": progress}
    return {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}


# Answers that no call waits for


async def test_late_second_and_unknown_answers_are_dropped(autojump_clock: MockClock) -> None:
    """The first answer counts, matched by type and value of its id; later ones do not reach the next call."""
    async with open_pair() as pair:

        async def serve() -> None:
            late = await pair.server.receive()
            assert "notifications/cancelled" == (await pair.server.receive())["method"]
            await pair.server.answer(late, n="late")
            request = await pair.server.receive()
            right = request["id"]
            for wrong in (str(right + 1), right + 0.5, True, right + 1, 10**30):
                await pair.server.send({"jsonrpc": "2.0", "id": wrong, "result": {"n": "wrong"}})
            await pair.server.answer(request, n="first")
            await pair.server.answer(request, n="second")
            await pair.server.answer(await pair.server.receive(), n="other")

        pair.nursery.start_soon(serve)
        with trio.move_on_after(1):
            await call(pair.client)
        assert {} == pair.channel.inbox._pending
        assert {"n": "first"} == await call(pair.client)
        assert {"n": "other"} == await call(pair.client)


async def test_the_first_answer_wins_wherever_the_others_come_from(autojump_clock: MockClock) -> None:
    """An answer may come on the stream, from the POST that carried the request, or as the end of the connection: the
    first counts.
    """
    inbox = Inbox(backend_id="b", max_message_bytes=LIMIT, max_json_depth=128, max_json_values=100_000)
    with inbox.pending(Ask(1, "ping", {}, None, ignore_other, RequestNote())) as pending:
        await inbox.take_message(b'{"jsonrpc": "2.0", "id": 1, "result": {"n": "first"}}')
        pending.settle(BackendUnavailable("b", "broke"))
        inbox.close(Loss("ended"))
        settled = await pending.wait(ignore_other)
    assert Answer(Result(1, {"n": "first"})) == settled


async def test_an_error_without_an_id_fails_the_only_call(autojump_clock: MockClock) -> None:
    """An error without an id fails the call if it is the only one; with two calls waiting it is ignored."""
    bad: JSON = {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "parse error"}}
    async with open_pair() as pair:

        async def serve() -> None:
            await pair.server.receive()
            await pair.server.send(bad)
            requests = [await pair.server.receive() for _ in range(2)]
            await pair.server.send(bad)
            for request in requests:
                await pair.server.answer(request)

        pair.nursery.start_soon(serve)
        with pytest.raises(BackendRejected, match="parse error"):
            await call(pair.client)
        async with trio.open_nursery() as callers:
            callers.start_soon(call, pair.client)
            callers.start_soon(call, pair.client)


# Limits


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","id":%d,"result":{"x":"%s"}}',
        '{ "id" : %d , "error" : {"x": "%s"}, "jsonrpc": "2.0"}',
        '{"result":{"x":"%s"},"jsonrpc":"2.0","id":%d}',
        '{"jsonrpc":"2.0","result":{"x":"%s"},"id":%d}',
    ],
)
async def test_an_answer_over_the_limit_fails_its_own_call_alone(text: str, autojump_clock: MockClock) -> None:
    """The start or end of the oversized line shows the id of its call, in the orders in which serializers write
    members.
    """
    async with open_pair() as pair:

        async def serve() -> None:
            requests = [await pair.server.receive() for _ in range(2)]
            by_name = {request["params"]["name"]: request for request in requests}
            filler = "y" * LIMIT
            values = (by_name["large"]["id"], filler)
            line = text % (values if text.index("%d") < text.index("%s") else values[::-1])
            await pair.server.send(line.encode())
            await pair.server.answer(by_name["small"])

        pair.nursery.start_soon(serve)
        async with trio.open_nursery() as callers:
            callers.start_soon(call, pair.client, "small")
            with pytest.raises(MessageTooLarge, match=r"sent a message of \d+ bytes \(max_message_bytes\)"):
                await call(pair.client, "large")
        pair.nursery.start_soon(answer_one, pair)
        await call(pair.client)


async def answer_one(pair: Pair) -> None:
    await pair.server.answer(await pair.server.receive())


@pytest.mark.parametrize(
    ("limit", "kind"), [(8 * 2**20, MessageTooLarge), (32 * 2**20, BackendProtocolError)], ids=["too large", "not JSON"]
)
async def test_a_bad_answer_does_not_hold_up_the_answers_behind_it(
    limit: int, kind: type[BackendError], autojump_clock: MockClock
) -> None:
    """The call sets the pace of its answer, also of one that is over the limit or no JSON: the backend is read on."""
    async with open_pair(limit=limit) as pair:

        async def serve() -> None:
            first, second = [await pair.server.receive() for _ in range(2)]
            text = b'{"jsonrpc":"2.0","id":%d,"result":{"x":"%s' % (first["id"], b"x" * (24 * 2**20))
            await pair.server.send(text)
            await pair.server.answer(second, n="second")

        async def fail() -> None:
            with pytest.raises(kind):
                await call(pair.client)

        pair.nursery.start_soon(serve)
        async with trio.open_nursery() as callers:
            callers.start_soon(fail)
            await wait_all_tasks_blocked()
            assert {"n": "second"} == await call(pair.client)
        assert 0 == trio.current_time()


async def test_a_message_over_the_limit_without_an_id_fails_all(autojump_clock: MockClock) -> None:
    """Every call fails: the one that the message answers would otherwise wait for its deadline. The stream goes on."""
    errors: list[MessageTooLarge] = []

    async def caller(pair: Pair) -> None:
        with pytest.raises(MessageTooLarge) as caught:
            await call(pair.client)
        errors.append(caught.value)

    async with open_pair() as pair:
        async with trio.open_nursery() as callers:
            callers.start_soon(caller, pair)
            callers.start_soon(caller, pair)
            await wait_all_tasks_blocked()
            await pair.server.send(b"[" + b"y" * LIMIT)
        assert 2 == len({id(error) for error in errors})
        assert all(error.may_have_executed for error in errors)
        await pair.server.receive()
        await pair.server.receive()
        pair.nursery.start_soon(answer_one, pair)
        await call(pair.client)


async def test_a_call_over_the_limit_is_no_answer(autojump_clock: MockClock) -> None:
    """A request or notification of the backend may have the same id as a call, and does not fail the call."""
    async with open_pair() as pair:

        async def serve() -> None:
            request = await pair.server.receive()
            filler = "y" * LIMIT
            for begin in (f'"id":{request["id"]},"method":"ping"', '"method":"notifications/message"'):
                await pair.server.send(f'{{"jsonrpc":"2.0",{begin},"params":{{"x":"{filler}"}}}}'.encode())
            await pair.server.answer(request)

        pair.nursery.start_soon(serve)
        await call(pair.client)


async def test_a_flood_of_progress_keeps_the_newest(autojump_clock: MockClock) -> None:
    """A slow callback gets the newest progress; waiting notifications take no more memory than one message may."""
    heard: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)
        await trio.sleep(1)

    async with open_pair() as pair:

        async def serve() -> None:
            request = await pair.server.receive()
            for number in range(500):
                await pair.server.send(progress_of(request["id"], number))
            await pair.server.answer(request)

        pair.nursery.start_soon(serve)
        await call(pair.client, on_progress=on_progress)
    assert sorted(heard) == heard
    assert 499 == heard[-1]
    assert len(heard) < 20


async def test_a_backend_that_does_not_read_is_sent_no_more_notices(autojump_clock: MockClock) -> None:
    """If the backend does not read, pings and cancels are dropped; requests wait within the deadlines of their
    calls.
    """
    async with open_pair() as pair:
        await pair.clog()
        for number in range(10 * MOST_NOTICES):
            await pair.server.send({"jsonrpc": "2.0", "id": number, "method": "ping"})
        await trio.sleep(60)  # they are read at a pace
        assert MOST_NOTICES == len(pair.channel._queue)


# The backend's own requests


async def test_handlers_answer_beside_the_stream(autojump_clock: MockClock) -> None:
    """Slow handlers delay neither the stream nor each other, and are not part of any call."""
    asked: list[tuple[ServerRequest, bool]] = []

    async def roots(request: ServerRequest) -> JSON:
        note = current_note.get()
        asked.append((request, note is not None and note.outer is None))
        await trio.sleep(5)
        return {"roots": []}

    async def sampling(request: ServerRequest) -> JSON:
        raise ZeroDivisionError("secret")

    async with open_pair(handlers=ClientHandlers(roots=roots, sampling=sampling)) as pair:

        async def serve() -> None:
            request = await pair.server.receive()
            for number, method in enumerate(
                ["roots/list", "elicitation/create", "sampling/createMessage", "roots/list"]
            ):
                await pair.server.send({"jsonrpc": "2.0", "id": number, "method": method})
            await pair.server.answer(request)

        pair.nursery.start_soon(serve)
        await call(pair.client)
        assert 0 == trio.current_time()
        answers = {answer["id"]: answer for answer in [await pair.server.receive() for _ in range(4)]}
        assert 5 == trio.current_time()
        assert {"roots": []} == answers[0]["result"] == answers[3]["result"]
        assert -32601 == answers[1]["error"]["code"]
        assert {"code": -32603, "message": "the client failed to answer"} == answers[2]["error"]
        assert [(ServerRequest("s", "b", None, {}), True)] * 2 == asked


# The end of the stream


async def test_the_end_of_the_stream_fails_every_call(autojump_clock: MockClock) -> None:
    """Every call fails at once with an error of its own that says whether the call may have run; the next call is
    refused at once.
    """
    errors: list[BackendUnavailable] = []

    async def caller(pair: Pair) -> None:
        with pytest.raises(BackendUnavailable) as caught:
            await call(pair.client)
        errors.append(caught.value)

    async with open_pair() as pair:
        async with trio.open_nursery() as callers:
            callers.start_soon(caller, pair)
            callers.start_soon(caller, pair)
            await pair.server.receive()
            await pair.server.receive()
            await pair.server.stream.aclose()
        assert ["closed its stream before it answered 'tools/call'; for a reason"] * 2 == [e.detail for e in errors]
        assert errors[0] is not errors[1]
        assert [True, True] == [error.may_have_executed for error in errors]
        with pytest.raises(BackendUnavailable, match="is not connected: it closed its stream; for a reason") as caught:
            await call(pair.client)
        assert not caught.value.may_have_executed


async def test_an_answer_right_before_the_end_counts(autojump_clock: MockClock) -> None:
    """An answer that arrives right before the end is delivered."""
    async with open_pair() as pair:

        async def serve() -> None:
            await pair.server.answer(await pair.server.receive(), n=1)
            await pair.server.stream.aclose()

        pair.nursery.start_soon(serve)
        assert {"n": 1} == await call(pair.client)


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("batch", [False, True], ids=["", "batch"])
async def test_the_end_of_the_stream_ends_the_last_line(era: str, batch: bool, autojump_clock: MockClock) -> None:
    """An answer counts also if its program exits without having written a line end."""
    async with open_pair() as pair:
        if era == "modern":
            pair.adopt({"supportedVersions": ["2026-07-28"], "capabilities": {}})
        pair.channel.inbox.takes_batches = batch

        async def serve() -> None:
            request = await pair.server.receive()
            answer: object = {"jsonrpc": "2.0", "id": request["id"], "result": {"n": 1, "resultType": "complete"}}
            await pair.server.stream.send_all(json.dumps([answer] if batch else answer).encode())
            await pair.server.stream.aclose()

        pair.nursery.start_soon(serve)
        assert 1 == (await call(pair.client))["n"]


@pytest.mark.parametrize("batch", [False, True], ids=["", "batch"])
@pytest.mark.parametrize("cut", [1, 2, 9, 30])
async def test_half_a_message_at_the_end_is_none(cut: int, batch: bool, autojump_clock: MockClock) -> None:
    """What is cut off is part of the loss, be its id there: it is no bad answer, so the call may be sent again."""
    async with open_pair() as pair:
        pair.channel.inbox.takes_batches = batch

        async def serve() -> None:
            request = await pair.server.receive()
            answer: object = {"jsonrpc": "2.0", "id": request["id"], "result": {"n": {"text": "\u00e9"}}}
            line = json.dumps([answer] if batch else answer, ensure_ascii=False).encode()
            await pair.server.stream.send_all(line[:-cut])
            await pair.server.stream.aclose()

        pair.nursery.start_soon(serve)
        with pytest.raises(BackendUnavailable, match="closed its stream before it answered"):
            await call(pair.client)


async def test_the_last_line_over_the_limit(autojump_clock: MockClock) -> None:
    """It is too large, whether it was cut off or not: another attempt would bring no other."""
    async with open_pair() as pair:

        async def serve() -> None:
            request = await pair.server.receive()
            line = b'{"jsonrpc":"2.0","id":%d,"result":{"text":"' % request["id"]
            await pair.server.stream.send_all(line + b"x" * LIMIT)
            await pair.server.stream.aclose()

        pair.nursery.start_soon(serve)
        with pytest.raises(MessageTooLarge, match="max_message_bytes"):
            await call(pair.client)


async def test_closing_ends_the_calls_that_wait(autojump_clock: MockClock) -> None:
    """Closing the client ends the calls that wait; nothing else closes it under a running call."""
    async with open_pair() as pair:
        async with trio.open_nursery() as callers:

            async def caller() -> None:
                with pytest.raises(BackendUnavailable, match="was closed before it answered 'tools/call'"):
                    await call(pair.client)

            callers.start_soon(caller)
            await wait_all_tasks_blocked()
            await pair.close()
            await pair.close()


async def test_a_request_that_never_left_did_not_run(autojump_clock: MockClock) -> None:
    """A request that waits behind another one, which the backend does not read, is removed from the queue when its call
    is cancelled.
    """
    async with open_pair() as pair:
        await pair.clog()
        with pytest.raises(BackendTimeout) as caught:
            await call(pair.client, timeout=1)
        assert not caught.value.may_have_executed
        assert 0 == len(pair.channel._queue)  # and no cancel is queued


async def test_a_cancelled_caller_leaves_whole_lines(autojump_clock: MockClock) -> None:
    """Wherever a call is cancelled, the backend reads whole lines of JSON: a task of the client's writes them, not the
    caller's.
    """
    async with open_pair() as pair:
        for step in range(8):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call, pair.client, "x" * 100_000)
                    for _ in range(step):
                        await trio.lowlevel.cancel_shielded_checkpoint()
                    scope.cancel()
        pair.nursery.start_soon(drop_all, pair)
        with trio.fail_after(1):
            await call(pair.client, "last")


async def drop_all(pair: Pair) -> None:
    """Answer only the last request."""
    while (request := await pair.server.receive()).get("params", {}).get("name") != "last":
        continue
    await pair.server.answer(request)
