"""What a backend says without having been asked: progress, changes, log messages. The same over every channel."""

from __future__ import annotations

import pytest
import trio
from support.channels import EVERY_CHANNEL, Channel
from support.clients import call
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON, ClientHandlers, ServerRequest
from trio_vmcp.testing import CallContext

TOOLS_CHANGED = "notifications/tools/list_changed"


class Progress:
    """A callback that notes what it is told."""

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds
        self.told: list[tuple[float, float | None, str | None]] = []
        self.task = trio.lowlevel.current_task()

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        assert self.task is trio.lowlevel.current_task()
        self.told.append((progress, total, message))
        await trio.sleep(self.seconds)


def without_meta(events: list[tuple[str, JSON]]) -> list[tuple[str, JSON]]:
    """Events without the tags of a subscription."""
    return [(method, {key: value for key, value in params.items() if key != "_meta"}) for method, params in events]


# Progress


@EVERY_CHANNEL
@pytest.mark.parametrize("seconds", [0, 1], ids=["quick", "slow"])
async def test_progress_comes_in_order_and_before_the_answer(
    channel: Channel, seconds: float, autojump_clock: MockClock
) -> None:
    """In the caller's own task. A slow callback loses nothing, and the call ends behind it."""
    progress = Progress(seconds)
    async with channel.open_client(channel.backend()) as client:
        await call(client, "steps", on_progress=progress)
        assert [(1, 3, "step 1"), (2, 3, "step 2"), (3, 3, "step 3")] == progress.told
        assert 3 * seconds == trio.current_time()


@EVERY_CHANNEL
async def test_progress_of_another_token_is_dropped(channel: Channel, autojump_clock: MockClock) -> None:
    """So is a token of another type, and a number that is none: no callback hears it, and it is no event."""

    async def confuse(arguments: JSON, context: CallContext) -> str:
        token = context.meta["progressToken"]
        for wrong in (token + 1, str(token), float(token), True, None, [token]):
            await context.notify("notifications/progress", {"progressToken": wrong, "progress": 1})
        for number in ("1", True, None):
            await context.notify("notifications/progress", {"progressToken": token, "progress": number})
        await context.notify("notifications/progress", {"progress": 1})
        await context.notify("notifications/progress", {"progressToken": token})
        odd = {"progressToken": token, "progress": 4.5, "total": "x", "message": 7}
        await context.notify("notifications/progress", odd)
        return "done"

    backend = channel.backend()
    backend.add_tool("confuse", confuse)
    progress = Progress()
    async with channel.open_bench(backend) as bench:
        client = await bench.connect()
        assert "done" == (await call(client, "confuse", on_progress=progress))["content"][0]["text"]
        assert [(4.5, None, None)] == progress.told
        assert [] == bench.events


@EVERY_CHANNEL
async def test_without_a_callback_no_token_is_sent(channel: Channel, autojump_clock: MockClock) -> None:
    """Progress that comes all the same reaches nothing."""

    async def insist(arguments: JSON, context: CallContext) -> str:
        assert "progressToken" not in context.meta
        token = context.exchange.request_id
        await context.notify("notifications/progress", {"progressToken": token, "progress": 1})
        return "done"

    backend = channel.backend()
    backend.add_tool("insist", insist)
    async with channel.open_bench(backend) as bench:
        assert "done" == (await call(await bench.connect(), "insist"))["content"][0]["text"]
        assert [] == bench.events
    assert [] == backend.handler_errors


@EVERY_CHANNEL
async def test_progress_behind_the_answer_is_late(channel: Channel, autojump_clock: MockClock) -> None:
    """MCP 2025-11-25, utilities/progress: "Progress notifications MUST stop after completion"."""

    async def hasty(arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        await context.send({"jsonrpc": "2.0", "id": context.exchange.request_id, "result": {"n": "first"}})
        await context.progress(2)
        return "second"

    backend = channel.backend()
    backend.add_tool("hasty", hasty)
    progress = Progress()
    async with channel.open_bench(backend) as bench:
        client = await bench.connect()
        assert {"n": "first"} == await call(client, "hasty", on_progress=progress)
        await call(client)
        assert [(1, None, None)] == progress.told
        assert [] == bench.events


# Events


@EVERY_CHANNEL
async def test_notifications_during_a_call_are_events(channel: Channel, autojump_clock: MockClock) -> None:
    """In order, with their params; those that no MCP version knows are left to the session, too."""

    async def tell(arguments: JSON, context: CallContext) -> str:
        await context.send({"jsonrpc": "2.0", "method": TOOLS_CHANGED})
        await context.notify("no/such", {"a": 1})
        await context.notify("notifications/message", {"level": "info", "data": "x"})
        return "done"

    backend = channel.backend()
    backend.add_tool("tell", tell)
    async with channel.open_bench(backend) as bench:
        await call(await bench.connect(), "tell")
        expected: list[tuple[str, JSON]] = [
            (TOOLS_CHANGED, {}),
            ("no/such", {"a": 1}),
            ("notifications/message", {"level": "info", "data": "x"}),
        ]
        assert expected == bench.events


@EVERY_CHANNEL
async def test_changes_are_heard_outside_of_calls(channel: Channel, autojump_clock: MockClock) -> None:
    """On the stream that is held for them, or on the one that carries everything."""
    backend = channel.backend(listens=True)
    async with channel.open_bench(backend) as bench:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        assert [] == bench.events
        backend.notify(TOOLS_CHANGED)
        await wait_all_tasks_blocked()
        assert [(TOOLS_CHANGED, {})] == without_meta(bench.events)
        await call(client)
        await trio.sleep(200)
        backend.notify(TOOLS_CHANGED)
        await wait_all_tasks_blocked()
        assert [(TOOLS_CHANGED, {})] * 2 == without_meta(bench.events)


@EVERY_CHANNEL
async def test_a_closed_client_hears_nothing(channel: Channel, autojump_clock: MockClock) -> None:
    """Its streams end with it."""
    backend = channel.backend(listens=True)
    async with channel.open_bench(backend) as bench:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        await client.aclose(terminate=True)
        backend.notify(TOOLS_CHANGED)
        await trio.sleep(3600)
        assert [] == bench.events
        assert 0 == backend.listening


# Log messages


class LogHandler:
    """A handler for log messages that takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.told: list[JSON] = []
        self.running = self.cancelled = 0

    async def __call__(self, request: ServerRequest) -> None:
        self.told.append(request.params)
        self.running += 1
        assert 1 == self.running
        try:
            await trio.sleep(self.seconds)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


def log_message(number: int) -> JSON:
    return {"level": "info", "data": number}


async def log_three(arguments: JSON, context: CallContext) -> str:
    for number in range(3):
        await context.notify("notifications/message", log_message(number))
    return "done"


@EVERY_CHANNEL
async def test_log_messages_go_to_their_handler_one_after_another(channel: Channel, autojump_clock: MockClock) -> None:
    """The call does not wait for the handler, and the messages are events as well."""
    backend = channel.backend()
    backend.add_tool("log", log_three)
    handler = LogHandler(1)
    async with channel.open_bench(backend, handlers=ClientHandlers(log=handler)) as bench:
        await call(await bench.connect(), "log")
        assert 0 == trio.current_time()
        await trio.sleep(5)
        assert [log_message(number) for number in range(3)] == handler.told
        assert [("notifications/message", log_message(number)) for number in range(3)] == bench.events


@EVERY_CHANNEL
async def test_a_close_ends_the_log_handler(channel: Channel, autojump_clock: MockClock) -> None:
    """At once: the messages that wait are told no more."""
    backend = channel.backend()
    backend.add_tool("log", log_three)
    handler = LogHandler(100)
    async with channel.open_client(backend, handlers=ClientHandlers(log=handler)) as client:
        await call(client, "log")
        await wait_all_tasks_blocked()
        await client.aclose(terminate=True)
        await wait_all_tasks_blocked()
        assert (1, 1, 0) == (len(handler.told), handler.cancelled, trio.current_time())


@EVERY_CHANNEL
async def test_completed_elicitations_go_to_their_handler(channel: Channel, autojump_clock: MockClock) -> None:
    """Which hears of nothing else (2025-11-25, elicitation, "Completion Notifications")."""
    told: list[JSON] = []

    async def complete(request: ServerRequest) -> None:
        told.append(request.params)

    async def log(arguments: JSON, context: CallContext) -> str:
        await context.notify("notifications/message", log_message(0))
        await context.notify("notifications/elicitation/complete", {"elicitationId": "e-1", "x": 1.5})
        return "done"

    backend = channel.backend()
    backend.add_tool("log", log)
    async with channel.open_bench(backend, handlers=ClientHandlers(elicitation_complete=complete)) as bench:
        await call(await bench.connect(), "log")
        await trio.sleep(1)
        assert [{"elicitationId": "e-1", "x": 1.5}] == told
