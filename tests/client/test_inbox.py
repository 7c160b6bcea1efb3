"""The inbox of a connection by itself: batches, what is too large, and what each costs the backend."""

from __future__ import annotations

import json
import logging
import weakref
from contextlib import ExitStack

import attrs
import pytest
import trio
from support.paces import messages_charged, spent
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp._client.channels.channel import Ask, ignore_other
from trio_vmcp._client.channels.inbox import PROGRESS_COST, Inbox
from trio_vmcp._client.channels.pace import MESSAGES_AHEAD, MESSAGES_PER_SECOND
from trio_vmcp._protocol.jsonrpc import Notification, Request
from trio_vmcp._protocol.outcomes import Loss
from trio_vmcp._protocol.reading import Oversized
from trio_vmcp._request_note import RequestNote
from trio_vmcp.errors import MessageTooLarge
from trio_vmcp.models import JSON

NEWS = {"jsonrpc": "2.0", "method": "notifications/x"}


def new_inbox(heard: list[Request | Notification], *, takes_batches: bool = True, most: int = 1000) -> Inbox:
    inbox = Inbox(
        backend_id="b", max_message_bytes=most, max_json_depth=100, max_json_values=1e5, on_other=heard.append
    )
    if takes_batches:
        inbox.takes_batches = True
    return inbox


def ask(number: int) -> Ask:
    return Ask(number, "tools/call", {}, None, ignore_other, RequestNote())


def oversized(message: JSON) -> Oversized:
    """The message with a member of a megabyte behind the others."""
    found = Oversized()
    found.add(json.dumps({**message, "zz": "x" * 1_000_000}).encode())
    return found


async def test_the_messages_of_a_batch_come_in_order(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Each by itself: the batch is no message of its own, and there is nothing to warn about."""
    heard: list[Request | Notification] = []
    await new_inbox(heard).take_message(json.dumps([NEWS, {**NEWS, "method": "notifications/y"}]).encode())
    assert ["notifications/x", "notifications/y"] == [message.method for message in heard]
    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_batch_is_no_message_at_first(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """It is one where the negotiated version says so."""
    heard: list[Request | Notification] = []
    await new_inbox(heard, takes_batches=False).take_message(json.dumps([NEWS, NEWS]).encode())
    assert [] == heard
    assert "an array" in caplog.text


@pytest.mark.parametrize("takes_batches", [False, True])
async def test_bytes_that_are_no_text_are_skipped(
    takes_batches: bool, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where batches are looked for."""
    heard: list[Request | Notification] = []
    inbox = new_inbox(heard, takes_batches=takes_batches)
    await inbox.take_message(b'[{"jsonrpc":"2.0","method":"\xff"}]')
    await inbox.take_message(json.dumps(NEWS).encode())
    assert ["notifications/x"] == [message.method for message in heard]
    assert "UTF-8" in caplog.text


async def test_a_batch_is_taken_at_the_pace_of_its_backend(autojump_clock: MockClock) -> None:
    """Its messages cost as if each had come alone, and those behind the allowance wait."""
    heard: list[Request | Notification] = []
    begun_at = trio.current_time()
    count = int(MESSAGES_AHEAD + MESSAGES_PER_SECOND)
    await new_inbox(heard).take_message(json.dumps([NEWS] * count).encode())
    assert count == len(heard)
    assert 0.9 < trio.current_time() - begun_at < 1.1


async def charged(inbox: Inbox, message: Oversized) -> float:
    """What this costs, in messages."""
    inbox.pace = await spent()
    inbox.take_oversized(message)
    return await messages_charged(inbox.pace)


async def test_an_answer_that_is_too_large_costs_nothing_where_it_is_waited_for(autojump_clock: MockClock) -> None:
    """It fails its request. Another message that is too large costs what a small one does."""
    for message, cost in ({"jsonrpc": "2.0", "id": 1, "result": {}}, 0), ({"id": 7, "result": {}}, 1), (NEWS, 1):
        inbox = new_inbox([])
        with inbox.pending(ask(1)) as pending:
            assert cost == pytest.approx(await charged(inbox, oversized(message)))
            assert pending.is_settled is (cost == 0)


@pytest.mark.parametrize("held", [0, 1])
@pytest.mark.parametrize("calls", [0, 1, 2])
async def test_a_message_that_is_too_large_and_unknown_fails_all_calls(
    calls: int, held: int, autojump_clock: MockClock
) -> None:
    """Which of them it is for is not known. A held stream is meant only where there is no call. Without either it is
    charged.
    """
    unknown = Oversized()
    unknown.add(b"x" * 2000)
    inbox = new_inbox([])
    with ExitStack() as stack:
        streams = [stack.enter_context(inbox.pending(ask(10 + number), is_held=True)) for number in range(held)]
        pending = [stack.enter_context(inbox.pending(ask(number))) for number in range(calls)]
        assert (0 if calls or held else 1) == pytest.approx(await charged(inbox, unknown))
        assert [not calls] * held == [each.is_settled for each in streams]
        for each in pending:
            assert isinstance(await each.wait(ignore_other), MessageTooLarge)


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize(
    ("answer", "is_for_the_only_one"),
    [
        pytest.param({"id": "server-error", "error": {"code": -1, "message": "no"}}, True, id="error"),
        pytest.param({"error": {"code": -1, "message": "no"}}, True, id="error without an id"),
        pytest.param({"id": "server-result", "result": {}}, False, id="result"),
        pytest.param({"id": 7, "error": {"code": -1, "message": "no"}}, False, id="error to another"),
    ],
)
async def test_only_an_error_may_leave_open_what_it_answers(
    answer: JSON, is_for_the_only_one: bool, calls: int, autojump_clock: MockClock
) -> None:
    """It is for the one call that waits; of two, for neither."""
    inbox = new_inbox([])
    with ExitStack() as stack:
        pending = [stack.enter_context(inbox.pending(ask(number))) for number in range(calls)]
        await inbox.take_message(json.dumps({"jsonrpc": "2.0", **answer}).encode())
        assert [is_for_the_only_one and calls == 1] * calls == [each.is_settled for each in pending]


UNTOLD = {"error": {"code": -1, "message": "no"}}


@pytest.mark.parametrize(
    ("answers", "waiting", "warned"),
    [
        pytest.param([{"id": 1, "result": {}}], 0, False, id="result"),
        pytest.param([{"id": 1, "result": {}}] * 2, 0, True, id="two results"),
        pytest.param([{"id": 2, "result": {}}], 0, True, id="another's result"),
        pytest.param([{"id": 2, **UNTOLD}], 0, True, id="another's error"),
        pytest.param([{"id": "x", "result": {}}], 0, True, id="a result of nothing"),
        pytest.param([UNTOLD], 0, False, id="error without an id"),
        pytest.param([UNTOLD] * 2, 0, True, id="two errors without an id"),
        pytest.param([UNTOLD, {"id": 1, "result": {}}], 0, True, id="the error was the answer"),
        pytest.param([UNTOLD], 1, True, id="error that may be another's"),
    ],
)
async def test_one_late_answer_to_a_request_that_was_given_up_is_expected(
    answers: list[JSON], waiting: int, warned: bool, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """ "The sender of the cancellation SHOULD ignore any response" (2025-11-25): without a warning. Any more is odd."""
    caplog.set_level(logging.DEBUG, "trio_vmcp.client")
    inbox = new_inbox([])
    with inbox.pending(ask(1)):
        pass
    with ExitStack() as stack:
        pending = [stack.enter_context(inbox.pending(ask(10 + number))) for number in range(waiting)]
        for answer in answers:
            await inbox.take_message(json.dumps({"jsonrpc": "2.0", **answer}).encode())
        assert not any(each.is_settled for each in pending)
    assert warned is any(record.levelno >= logging.WARNING for record in caplog.records)
    assert len(answers) == len(caplog.records)


async def test_the_oldest_requests_that_were_given_up_are_forgotten(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A hundred late answers are expected."""
    inbox = new_inbox([])
    for number in range(101):
        with inbox.pending(ask(number)):
            pass
    for number in range(1, 101):
        await inbox.take_message(json.dumps({"jsonrpc": "2.0", "id": number, "result": {}}).encode())
    assert "" == caplog.text
    await inbox.take_message(b'{"jsonrpc":"2.0","id":0,"result":{}}')
    assert "dropped an answer" in caplog.text


async def test_nothing_is_kept_of_a_request_that_has_ended(autojump_clock: MockClock) -> None:
    """Progress of it that comes later is dropped."""
    inbox = new_inbox([])
    with inbox.pending(attrs.evolve(ask(1), progress_token=1)) as pending:
        kept = weakref.ref(pending)
    await inbox.take_message(progress(1))
    del pending
    assert kept() is None


async def test_a_second_answer_is_odd(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Also while the task that waits has not taken the first."""
    inbox = new_inbox([])
    with inbox.pending(ask(1)) as pending:
        for _ in range(2):
            assert "" == caplog.text
            await inbox.take_message(b'{"jsonrpc":"2.0","id":1,"result":{}}')
        assert pending.is_settled
    assert "dropped an answer" in caplog.text


async def test_what_is_noted_of_calls_that_wait(autojump_clock: MockClock) -> None:
    """Streams are no calls, and nothing waits once the connection has ended."""
    inbox = new_inbox([])
    call, stream = ask(1), ask(2)
    with inbox.pending(call), inbox.pending(stream, is_held=True):
        assert {call.note} == inbox.notes
        assert inbox.is_waited_for
        inbox.close(Loss("has ended"))
        assert frozenset() == inbox.notes
        assert not inbox.is_waited_for


def progress(number: int) -> bytes:
    """Of 200 bytes."""
    params = {"progressToken": 1, "progress": number, "message": ""}
    text = json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
    return text.replace('""', f'"{"x" * (200 - len(text))}"').encode()


@pytest.mark.parametrize(("most", "kept"), [(1, 1), (2 * (200 + PROGRESS_COST), 2), (2 * (200 + PROGRESS_COST) - 1, 1)])
async def test_the_newest_progress_is_kept_for_a_slow_caller(most: int, kept: int, autojump_clock: MockClock) -> None:
    """Within the limit of a message, by its bytes and what it takes beside them; one is kept in any case. What was
    handed over makes room.
    """
    heard: list[object] = []

    async def hear(message: Request | Notification) -> None:
        heard.append(message.params["progress"])

    inbox = new_inbox([], most=most)
    with inbox.pending(attrs.evolve(ask(1), progress_token=1)) as pending:
        async with trio.open_nursery() as nursery:
            for begin in (0, 5):
                for number in range(begin, begin + 5):
                    await inbox.take_message(progress(number))
                if not begin:
                    nursery.start_soon(pending.wait, hear)
                await wait_all_tasks_blocked()
            pending.settle(MessageTooLarge("b", "the test"))
    assert [*range(5 - kept, 5), *range(10 - kept, 10)] == heard
