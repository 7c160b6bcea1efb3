"""What random histories found, each as the smallest case that shows it."""

from __future__ import annotations

import pytest
import trio
from harness import echo_backend, open_world
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import BackendTimeout, FactorySettings
from trio_vmcp.testing import Drip, Hang, Status


async def test_waiting_for_the_end_of_a_stream_is_over_with_the_deadline(autojump_clock: MockClock) -> None:
    """An answer that came in time counts, and what its backend still has to send may not take longer than the call."""
    async with open_world({"a": echo_backend(answers="sse")}) as world, world.open_session() as session:
        world["a"].fail("tools/call", Drip(bytes_per_step=64, step_seconds=0.4))
        for _ in range(2):
            began_at = trio.current_time()
            await session.call_tool("a_echo", timeout=1.65)  # the answer is whole after 1.6 s, the stream after 2.0 s
            assert 1.65 == pytest.approx(trio.current_time() - began_at)


async def test_a_scripted_backend_hangs_up_on_a_cancel_in_the_middle_of_its_answer(autojump_clock: MockClock) -> None:
    """Half an answer cannot be taken back: told to while it sent the end of one, a scripted backend broke."""
    async with open_world({"a": echo_backend(answers="sse")}) as world, world.open_session() as session:
        world["a"].fail("tools/call", Drip(bytes_per_step=64, step_seconds=0.4), times=1)
        world["a"].latency = 0.3
        with pytest.raises(BackendTimeout):  # the answer is whole after 1.9 s, the stream after 2.3 s
            await session.call_tool("a_echo", timeout=1.8)
        await session.call_tool("a_echo")
        assert ["cancelled", "answered"] == [exchange.outcome for exchange in world["a"].received("tools/call")]


async def test_an_opening_does_not_wait_for_the_goodbyes_of_an_attempt(autojump_clock: MockClock) -> None:
    """Who has missed its time is told so, and may be slow to hear it: its slot is free, and the opening over."""
    settings = FactorySettings(backend_init_timeout=1.0, max_backend_init_concurrency=1)
    backends = {"a": echo_backend(), "b": echo_backend()}
    for method in ("tools/list", "notifications/cancelled", "DELETE"):
        backends["a"].fail(method, Hang())
    async with open_world(backends, settings=settings) as world:
        world.leaves_sessions = True
        began_at = trio.current_time()
        async with world.open_session() as session:
            assert 1.0 == trio.current_time() - began_at
            assert ["a"] == [failure.backend_id for failure in session.failures]


async def test_a_stored_backend_session_that_is_replaced_gets_its_delete(autojump_clock: MockClock) -> None:
    """HTTP 503 does not say that it is gone, and the row knows only of the one that took its place."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world:
        session = await world.make_session(session_id="kept")
        await session.suspend()
        (stored,) = backend.sessions
        backend.fail("tools/list", Status(503), times=1)
        async with await world.restore_session("kept") as session:
            assert stored != session.backend_sessions["a"]
            await wait_all_tasks_blocked()
            assert [stored] == backend.deleted_sessions
