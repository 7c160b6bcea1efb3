"""An error over a time limit names the limit and the knob that it comes from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from support.channels import EVERY_CHANNEL, Channel
from trio.testing import MockClock

from trio_vmcp import BackendTimeout, FactorySettings, Session, ToolResult
from trio_vmcp.testing import Delay, Hang, ScriptedBackend

KNOBS = pytest.mark.parametrize(
    ("settings", "configured", "given", "knob"),
    [
        (3, None, None, "request_timeout"),
        (9, 3, None, "Backend.request_timeout"),
        (9, 9, 3, "timeout="),
        (9, None, 3, "timeout="),
        (3, 3, 3, "timeout="),
        (9, 0, None, "Backend.request_timeout"),
        (9, 9, 0, "timeout="),
    ],
)

Call = Callable[[Session, float | None], Awaitable[object]]


async def call_tool(session: Session, timeout: float | None) -> ToolResult:
    return await session.call_tool("b_hang", timeout=timeout)


async def read_resource(session: Session, timeout: float | None) -> object:
    return await session.read_resource("memo://text", timeout=timeout)


async def get_prompt(session: Session, timeout: float | None) -> object:
    return await session.get_prompt("b_greet", timeout=timeout)


async def subscribe(session: Session, timeout: float | None) -> None:
    await session.subscribe_resource("memo://text", timeout=timeout)


def backend_with_everything(channel: Channel) -> ScriptedBackend:
    backend = channel.backend(listens=True)
    backend.add_resource("memo://text", "text")
    backend.add_prompt("greet", "hello")
    return backend


@KNOBS
@EVERY_CHANNEL
async def test_a_call_over_its_time_names_the_knob(
    channel: Channel,
    settings: float,
    configured: float | None,
    given: float | None,
    knob: str,
    autojump_clock: MockClock,
) -> None:
    """That of the call, else of the backend, else of the factory; the others are not mentioned."""
    limit = next(each for each in (given, configured, settings) if each is not None)
    async with channel.open_session(
        channel.backend(),
        settings=FactorySettings(request_timeout=settings),
        configured={"request_timeout": configured},
    ) as session:
        for _ in range(2):  # the knob of one call is not that of the next
            with pytest.raises(BackendTimeout) as caught:
                await call_tool(session, given)
            assert f"did not answer 'tools/call' within {limit} s ({knob})" == caught.value.detail
            with pytest.raises(BackendTimeout, match=r"within 1 s \(timeout=\)"):
                await call_tool(session, 1)


@pytest.mark.parametrize(
    ("method", "ask"),
    [
        ("resources/read", read_resource),
        ("prompts/get", get_prompt),
        ("resources/subscribe", subscribe),
    ],
)
async def test_every_kind_of_call_names_the_knob(method: str, ask: Call, autojump_clock: MockClock) -> None:
    """Not tool calls alone."""
    channel = Channel("stdio", "legacy")
    backend = backend_with_everything(channel)
    backend.fail(method, Hang())
    async with channel.open_session(backend, configured={"request_timeout": 2}) as session:
        with pytest.raises(BackendTimeout, match=rf"'{method}' within 3 s \(timeout=\)"):
            await ask(session, 3)
        with pytest.raises(BackendTimeout, match=rf"'{method}' within 2 s \(Backend.request_timeout\)"):
            await ask(session, None)


@pytest.mark.parametrize(("configured", "knob"), [(None, "timeout="), (6, "Backend.request_timeout")])
async def test_a_call_that_is_sent_again_names_its_whole_time(
    configured: float | None, knob: str, autojump_clock: MockClock
) -> None:
    """A lost session is replaced within the call: the limit is that of the call, not what was left of it."""
    channel = Channel("streamable-http", "legacy")
    backend = channel.backend()
    async with channel.open_session(backend, configured={"request_timeout": configured}) as session:
        backend.restart()
        backend.fail("initialize", Delay(2), times=1)
        with pytest.raises(BackendTimeout) as caught:
            await call_tool(session, None if configured else 6)
        assert 6 == trio.current_time()
        assert f"did not answer 'tools/call' within 6 s ({knob}), connecting anew included" == caught.value.detail


@pytest.mark.parametrize(("own", "knob"), [(None, "backend_init_timeout"), (2, "Backend.init_timeout")])
async def test_a_subscription_that_is_repeated_names_its_own_knob(
    own: float | None, knob: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    """No call asks for that: the time is that of connecting."""
    channel = Channel("streamable-http", "legacy")
    backend = backend_with_everything(channel)
    limits = FactorySettings(backend_init_timeout=2 if own is None else 9, request_timeout=1, reconnect_delay=0.1)
    async with channel.open_session(backend, settings=limits, configured={"init_timeout": own}) as session:
        await session.subscribe_resource("memo://text")
        backend.fail("resources/subscribe", Hang())
        backend.restart()
        await session.call_tool("b_echo")
        await trio.sleep(4)
    assert f"did not answer 'resources/subscribe' within 2 s ({knob}), when it was to be subscribed to" in caplog.text
