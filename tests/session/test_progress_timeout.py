"""`progress_timeout`: progress keeps a call alive, silence ends it, and the whole time of a call stays as it is."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
from support.channels import EVERY_ANSWER, EVERY_CHANNEL, EVERY_LEGACY_CHANNEL, Channel
from support.plain_connector import PlainClient
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendRecord,
    BackendTimeout,
    ClientHandlers,
    FactorySettings,
    Identity,
    OnProgress,
    ServerRequest,
    open_session_factory,
)
from trio_vmcp.testing import CallContext, ScriptedBackend

FIVE = FactorySettings(progress_timeout=5)


async def work(arguments: JSON, context: CallContext) -> str:
    """Report `times` times, every `pause` s; then be silent for `rest` s."""
    for step in range(arguments.get("times", 0)):
        await trio.sleep(arguments.get("pause", 3))
        await context.progress(step)
    await trio.sleep(arguments.get("rest", 0))
    return "done"


def working(channel: Channel) -> ScriptedBackend:
    backend = channel.backend()
    backend.add_tool("work", work)
    return backend


@EVERY_CHANNEL
@pytest.mark.parametrize("heard", [True, False])
async def test_progress_keeps_a_call_alive(channel: Channel, heard: bool, autojump_clock: MockClock) -> None:
    """Four times longer than it may be silent, whether or not the caller wants to hear of progress."""
    seen: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    async with channel.open_session(working(channel), settings=FIVE) as session:
        asked = session.call_tool("b_work", {"times": 6, "rest": 4}, on_progress=on_progress if heard else None)
        assert "done" == (await asked).content[0]["text"]
        assert 22 == trio.current_time()
    assert (list(range(6)) if heard else []) == seen


@EVERY_ANSWER
@pytest.mark.parametrize(
    ("settings", "own", "limit", "knob"),
    [
        (FIVE, None, 5, "progress_timeout"),
        (FIVE, 2, 2, "Backend.progress_timeout"),
        (FactorySettings(), 2, 2, "Backend.progress_timeout"),
    ],
)
async def test_silence_ends_a_call(
    channel: Channel,
    settings: FactorySettings,
    own: float | None,
    limit: float,
    knob: str,
    autojump_clock: MockClock,
) -> None:
    """From the first moment on. The error names the knob; the backend is told; the next call works."""
    backend = working(channel)
    async with channel.open_session(backend, settings=settings, configured={"progress_timeout": own}) as session:
        with pytest.raises(BackendTimeout) as caught:
            await session.call_tool("b_work", {"rest": 60})
        assert limit == trio.current_time()
        assert f"reported no progress of 'tools/call' for {limit} s ({knob})" == caught.value.detail
        assert ("b", True) == (caught.value.backend_id, caught.value.may_have_executed)
        await wait_all_tasks_blocked()
        assert {"work": 1} == backend.cancelled
        assert "done" == (await session.call_tool("b_work")).content[0]["text"]
        assert session.backends["b"].errors == 1


@EVERY_CHANNEL
async def test_silence_after_progress_ends_a_call(channel: Channel, autojump_clock: MockClock) -> None:
    """Counted from the last report."""
    async with channel.open_session(working(channel), settings=FIVE) as session:
        with pytest.raises(BackendTimeout, match=r"for 5 s \(progress_timeout\)"):
            await session.call_tool("b_work", {"times": 2, "rest": 60})
        assert 6 + 5 == trio.current_time()


@EVERY_CHANNEL
@pytest.mark.parametrize(("given", "knob"), [(None, "request_timeout"), (10, "timeout=")])
async def test_progress_never_extends_the_whole_time(
    channel: Channel, given: float | None, knob: str, autojump_clock: MockClock
) -> None:
    """A backend that reports for ever is given up as one that reports nothing."""
    settings = FactorySettings(progress_timeout=5, request_timeout=20)
    async with channel.open_session(working(channel), settings=settings) as session:
        with pytest.raises(BackendTimeout, match=rf"did not answer 'tools/call' within {given or 20}.* s \({knob}\)"):
            await session.call_tool("b_work", {"times": 99}, timeout=given)
        assert (given or 20) == trio.current_time()


@EVERY_CHANNEL
async def test_calls_are_alive_each_by_their_own_progress(channel: Channel, autojump_clock: MockClock) -> None:
    """What is reported of one call says nothing of another, on the same connection too."""
    ended: dict[str, float] = {}

    async def call(name: str, arguments: JSON) -> None:
        try:
            await session.call_tool("b_work", arguments)
        except BackendTimeout:
            ended[name] = trio.current_time()

    async with channel.open_session(working(channel), settings=FIVE) as session, trio.open_nursery() as nursery:
        nursery.start_soon(call, "alive", {"times": 6})
        nursery.start_soon(call, "silent", {"rest": 30})
        nursery.start_soon(call, "falls silent", {"times": 1, "rest": 30})
    assert {"silent": 5, "falls silent": 8} == ended


@pytest.mark.parametrize(
    "params",
    [{}, {"progressToken": "x"}, {"progressToken": -1, "progress": 1}, {"progressToken": None, "progress": 1}],
)
@EVERY_CHANNEL
async def test_what_is_no_progress_of_the_call_does_not_count(
    channel: Channel, params: JSON, autojump_clock: MockClock
) -> None:
    """Progress without a number or of another request, and log messages."""

    async def chat(arguments: JSON, context: CallContext) -> str:
        for _ in range(20):
            await trio.sleep(1)
            await context.notify("notifications/progress", params)
            await context.notify("notifications/message", {"level": "info", "data": "busy"})
        return "done"

    backend = channel.backend()
    backend.add_tool("chat", chat)
    async with channel.open_session(backend, settings=FIVE) as session:
        with pytest.raises(BackendTimeout, match="reported no progress"):
            await session.call_tool("b_chat")
        assert 5 == trio.current_time()


@EVERY_CHANNEL
async def test_time_in_the_callers_callback_is_no_silence(channel: Channel, autojump_clock: MockClock) -> None:
    """Nothing is read from the backend meanwhile; the silence after it counts from its end."""
    took = 20.0

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        await trio.sleep(took)

    async with channel.open_session(working(channel), settings=FIVE) as session:
        await session.call_tool("b_work", {"times": 1}, on_progress=on_progress)
        begun = trio.current_time()
        with pytest.raises(BackendTimeout, match="reported no progress"):
            await session.call_tool("b_work", {"times": 1, "rest": 90}, on_progress=on_progress)
        assert 3 + 20 + 5 == trio.current_time() - begun


@EVERY_CHANNEL
async def test_time_in_which_the_backend_waits_for_an_answer_is_no_silence(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """A person may think about a question for longer; the backend's silence counts from the answer on."""

    async def answer(request: ServerRequest) -> JSON:
        await trio.sleep(20)
        return {"action": "accept", "content": {}}

    async def confirm(arguments: JSON, context: CallContext) -> str:
        asked = await context.elicit("Are you sure?")
        await trio.sleep(arguments["rest"])
        return str(asked["action"])

    backend = channel.backend()
    backend.add_tool("wipe", confirm)
    handlers = ClientHandlers(elicitation=answer)
    async with channel.open_session(backend, settings=FIVE, handlers=handlers) as session:
        begun = trio.current_time()
        assert "accept" == (await session.call_tool("b_wipe", {"rest": 4})).content[0]["text"]
        assert 24 == trio.current_time() - begun
        with pytest.raises(BackendTimeout, match="reported no progress"):
            await session.call_tool("b_wipe", {"rest": 60})
        assert 24 + 25 == trio.current_time() - begun


@EVERY_LEGACY_CHANNEL
async def test_progress_beside_a_question_does_not_count_the_time(channel: Channel, autojump_clock: MockClock) -> None:
    """The backend says something of other parts of its work, and goes on waiting."""

    async def answer(request: ServerRequest) -> JSON:
        await trio.sleep(20)
        return {"action": "accept", "content": {}}

    async def confirm(arguments: JSON, context: CallContext) -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.elicit, "Are you sure?")
            await trio.sleep(2)
            await context.progress(1)
        return "done"

    backend = channel.backend()
    backend.add_tool("wipe", confirm)
    handlers = ClientHandlers(elicitation=answer)
    async with channel.open_session(backend, settings=FIVE, handlers=handlers) as session:
        assert "done" == (await session.call_tool("b_wipe")).content[0]["text"]


@EVERY_CHANNEL
async def test_every_call_asks_for_progress(channel: Channel, autojump_clock: MockClock) -> None:
    """With a finite time; else only where the caller wants to hear of it."""
    for settings, expected in [(FIVE, True), (FactorySettings(), False)]:
        backend = working(channel)
        backend.add_resource("memo://text", "text")
        backend.add_prompt("greet", "hello")
        async with channel.open_session(backend, settings=settings) as session:
            await session.call_tool("b_work", meta={"mine": 1, "progressToken": "mine"})
            await session.read_resource("memo://text")
            await session.get_prompt("b_greet")
        assert all("progressToken" not in each.params.get("_meta", {}) for each in backend.received("tools/list"))
        for method in ("tools/call", "resources/read", "prompts/get"):
            (exchange,) = backend.received(method)
            assert expected is ("progressToken" in exchange.params.get("_meta", {}))


async def test_zero_sends_nothing(autojump_clock: MockClock) -> None:
    """As with any other limit of 0."""
    channel = Channel("streamable-http", "legacy")
    backend = working(channel)
    async with channel.open_session(backend, configured={"progress_timeout": 0}) as session:
        with pytest.raises(BackendTimeout) as caught:
            await session.call_tool("b_work")
        assert not caught.value.may_have_executed
    assert [] == backend.received("tools/call")


async def test_a_call_that_is_sent_again_may_be_silent_as_long_again(autojump_clock: MockClock) -> None:
    """The backend session was lost; the error names this limit, and not what was left of the whole time."""
    channel = Channel("streamable-http", "legacy")
    backend = working(channel)
    async with channel.open_session(backend, settings=FIVE) as session:
        backend.restart()
        with pytest.raises(BackendTimeout) as caught:
            await session.call_tool("b_work", {"rest": 60})
        assert "reported no progress of 'tools/call' for 5 s (progress_timeout)" == caught.value.detail
        backend.restart()
        assert (await session.call_tool("b_work", {"times": 3})).backend_state_lost


async def test_cancelling_wins_over_silence(autojump_clock: MockClock) -> None:
    """A caller that gives up in the same moment is cancelled, and nothing else."""
    channel = Channel("streamable-http", "modern")
    backend = working(channel)
    async with channel.open_session(backend, settings=FIVE) as session:
        with trio.move_on_after(5) as scope:
            await session.call_tool("b_work", {"rest": 60})
        assert scope.cancelled_caught


async def test_a_call_that_hangs_before_it_is_written(autojump_clock: MockClock) -> None:
    """The wait for a connection counts; what was not written has not run."""
    channel = Channel("streamable-http", "modern")
    backend = working(channel)
    settings = FactorySettings(progress_timeout=5, max_connections_per_backend=1)
    async with channel.open_session(backend, settings=settings) as session, trio.open_nursery() as nursery:
        nursery.start_soon(partial(session.call_tool, "b_work", {"times": 4}))
        await wait_all_tasks_blocked()
        with pytest.raises(BackendTimeout) as caught:
            await session.call_tool("b_work")
        assert (5, False) == (trio.current_time(), caught.value.may_have_executed)


async def test_a_client_of_ones_own_keeps_its_calls_alive(autojump_clock: MockClock) -> None:
    """Nothing but `on_progress` is needed of it."""

    class Reporting(PlainClient):
        async def request(
            self,
            method: str,
            params: JSON,
            *,
            identity: Identity | None,
            timeout: float,
            on_progress: OnProgress | None,
        ) -> JSON:
            if method == "tools/call":
                assert on_progress is not None
                for step in range(3):
                    await trio.sleep(4)
                    await on_progress(step, None, None)
                await trio.sleep(params["arguments"]["rest"])
            return await super().request(method, params, identity=identity, timeout=timeout, on_progress=on_progress)

    async def connect(backend: Backend, **options: Any) -> Reporting:
        await trio.lowlevel.checkpoint()
        return Reporting(BackendRecord("b", None, "modern", "2026-07-28", {"tools": {}}, "digest"), {"tools": {}})

    async with open_session_factory(connector=connect, settings=FIVE) as factory:
        async with factory.open_session([Backend("b", "http://b.test")]) as session:
            await session.call_tool("b_echo", {"rest": 4})
            with pytest.raises(BackendTimeout, match="reported no progress"):
                await session.call_tool("b_echo", {"rest": 40})
            assert 16 + 17 == trio.current_time()
