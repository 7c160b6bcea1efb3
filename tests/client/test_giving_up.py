"""A call that is given up ends at once, and the backend is told. The same over every channel."""

from __future__ import annotations

import pytest
import trio
from support.channels import EVERY_ANSWER, EVERY_CHANNEL, EVERY_SHARED_CHANNEL, Channel
from support.clients import call, no_progress
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON, BackendRejected, BackendTimeout, BackendUnavailable, FactorySettings
from trio_vmcp.testing import CallContext, Delay, Error, Hang, ScriptedBackend


def assert_told(channel: Channel, backend: ScriptedBackend, reason: str) -> None:
    """MCP 2025-11-25, utilities/cancellation: a notification; 2026-07-28: over HTTP, the end of the stream."""
    assert {"hang": 1} == backend.cancelled
    notices = backend.received("notifications/cancelled")
    if channel.closes_streams:
        assert [] == notices
        return
    (notice,) = notices
    (hung,) = (exchange for exchange in backend.received("tools/call") if exchange.outcome == "cancelled")
    assert {"requestId": hung.request_id, "reason": reason} == notice.params
    assert notice.request_id is None


@EVERY_ANSWER
async def test_a_timeout_is_told(channel: Channel, autojump_clock: MockClock) -> None:
    """The error names method, limit and knob, and says that the call may have run. The next call works."""
    backend = channel.backend()
    async with channel.open_client(backend) as client:
        with pytest.raises(
            BackendTimeout, match=r"did not answer 'tools/call' within 2 s \(request_timeout\)"
        ) as caught:
            await call(client, "hang", timeout=2)
        assert caught.value.may_have_executed
        assert 2 == trio.current_time()
        await call(client)
        await wait_all_tasks_blocked()
        assert_told(channel, backend, "timed out")


@EVERY_ANSWER
async def test_a_cancelled_call_is_told_without_waiting(channel: Channel, autojump_clock: MockClock) -> None:
    """The caller leaves at once, though the notification takes a second. The next call works."""
    backend = channel.backend()
    backend.fail("notifications/cancelled", Delay(0.9))
    async with channel.open_client(backend) as client:
        with trio.move_on_after(3) as scope:
            await call(client, "hang", on_progress=no_progress)
        assert scope.cancelled_caught
        assert 3 == trio.current_time()
        await trio.sleep(1)
        assert_told(channel, backend, "the caller gave up")
        await call(client)


@EVERY_CHANNEL
@pytest.mark.parametrize(
    "error", [ZeroDivisionError("mine"), BackendUnavailable("other", "is away"), trio.TooSlowError("mine")], ids=repr
)
async def test_an_error_of_a_progress_callback_comes_out_as_itself(
    channel: Channel, error: Exception, autojump_clock: MockClock
) -> None:
    """In no group, also where it is the error of another backend; the call is given up. The next call works."""

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        raise error

    backend = channel.backend()
    async with channel.open_client(backend) as client:
        with pytest.raises(type(error)) as caught:
            await call(client, "hang", on_progress=on_progress)
        assert error is caught.value
        await wait_all_tasks_blocked()
        assert_told(channel, backend, "the caller gave up")
        await call(client)


@EVERY_CHANNEL
async def test_a_slow_progress_callback_is_part_of_the_deadline(channel: Channel, autojump_clock: MockClock) -> None:
    """The whole call has `timeout` seconds."""

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        await trio.sleep(60)

    async with channel.open_client(channel.backend()) as client:
        with pytest.raises(BackendTimeout):
            await call(client, "steps", on_progress=on_progress, timeout=5)
        assert 5 == trio.current_time()
        await call(client)


@EVERY_ANSWER
async def test_a_call_that_was_never_sent_is_not_told(channel: Channel, autojump_clock: MockClock) -> None:
    """Nor is a call that was answered or refused: there is nothing to cancel any more."""
    backend = channel.backend()
    backend.fail("tools/call", Error(-32603, "broken"), times=1)
    async with channel.open_client(backend) as client:
        with pytest.raises(BackendTimeout) as caught:
            await call(client, timeout=0)
        assert not caught.value.may_have_executed
        assert [] == backend.received("tools/call")
        with pytest.raises(BackendRejected):
            await call(client)
        await call(client)
        await wait_all_tasks_blocked()
    assert 2 == len(backend.received("tools/call"))
    assert [] == backend.received("notifications/cancelled")


@EVERY_ANSWER
async def test_the_greeting_is_never_cancelled_by_a_notification(channel: Channel, autojump_clock: MockClock) -> None:
    """MCP 2025-11-25, utilities/cancellation: "The `initialize` request MUST NOT be cancelled by clients"."""
    greeting = "server/discover" if channel.is_modern else "initialize"
    backend = channel.backend()
    backend.fail(greeting, Hang())
    async with channel.open_bench(backend) as bench:
        with trio.move_on_after(3) as scope:
            await bench.connect()
        assert scope.cancelled_caught
        await trio.sleep(5)
    said = [exchange.method for exchange in backend.exchanges if exchange.method]
    assert [greeting] == [method for method in said if method != "ping"]  # to find out whether the process is silent


@EVERY_ANSWER
async def test_a_close_right_behind_it_does_not_keep_the_backend_from_hearing(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """The close waits for notifications that are on their way."""
    backend = channel.backend()
    async with channel.open_client(backend) as client:
        with pytest.raises(BackendTimeout):
            await call(client, "hang", timeout=2)
        await client.aclose(terminate=True)
    if channel.closes_streams:
        assert {"hang": 1} == backend.cancelled
    else:
        assert 1 == len(backend.received("notifications/cancelled"))


@EVERY_ANSWER
async def test_a_notification_that_is_not_taken_holds_up_no_close(channel: Channel, autojump_clock: MockClock) -> None:
    """A close waits for it one second at most."""
    backend = channel.backend()
    backend.fail("notifications/cancelled", Hang())
    async with channel.open_client(backend) as client:
        with trio.move_on_after(1):
            await call(client, "hang")
        await call(client)
        started = trio.current_time()
        await client.aclose(terminate=True)
        assert trio.current_time() - started <= 1


def error(**with_id: object) -> JSON:
    return {"jsonrpc": "2.0", **with_id, "error": {"code": -32603, "message": "too late"}}


@EVERY_SHARED_CHANNEL
@pytest.mark.parametrize(
    "late",
    [error(id=None), error(id="server-error"), error(), {"jsonrpc": "2.0", "x": "x" * 40_000, "id": None}],
    ids=["null", "another id", "none", "over the limit"],
)
async def test_a_late_answer_that_tells_no_id_ends_no_other_call(
    channel: Channel, late: JSON, autojump_clock: MockClock
) -> None:
    """It may be about the call that was given up, although another is the only one that waits now."""

    async def slow(arguments: JSON, context: CallContext) -> str:
        await context.send(late)
        await trio.sleep(2)
        return "mine"

    backend = channel.backend()
    backend.add_tool("slow", slow)
    async with channel.open_client(backend, settings=FactorySettings(max_message_bytes=20_000)) as client:
        with pytest.raises(BackendTimeout):
            await call(client, "hang", timeout=1)
        result = await call(client, "slow")
    assert [{"type": "text", "text": "mine"}] == result["content"]
