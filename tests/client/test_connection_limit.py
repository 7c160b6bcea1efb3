"""The slots of a link: never more than there are, first come, first served, and none is lost to a cancel."""

from __future__ import annotations

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp._client.http.connection_limit import ConnectionLimit, ConnectionSlot, Slots


async def test_the_longest_waiting_request_has_the_next_slot() -> None:
    """A slot that is given back goes to the request that waits, before one that comes at the same moment."""
    slots, order = Slots(1), []
    assert slots.take_nowait()

    async def wait(name: str) -> None:
        await slots.take()
        order.append(name)

    async with trio.open_nursery() as nursery:
        for name in ("first", "second"):
            nursery.start_soon(wait, name)
            await wait_all_tasks_blocked()
        slots.give_back()
        assert not slots.take_nowait()
        await wait_all_tasks_blocked()
        assert ["first"] == order
        slots.give_back()
    assert ["first", "second"] == order
    assert 1 == slots.borrowed_tokens
    slots.give_back()
    assert (0, True) == (slots.borrowed_tokens, slots.take_nowait())
    slots.give_back()


async def test_a_request_that_gives_up_at_the_moment_of_its_turn_keeps_no_slot() -> None:
    """It has the slot or the cancel, never both: the next request gets the slot."""
    slots = Slots(1)
    for is_first_cancelled in (False, True):
        assert slots.take_nowait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slots.take)
            await wait_all_tasks_blocked()
            if is_first_cancelled:
                nursery.cancel_scope.cancel()
            slots.give_back()
            nursery.cancel_scope.cancel()
        assert int(not is_first_cancelled) == slots.borrowed_tokens
        if not is_first_cancelled:
            slots.give_back()


requests = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.booleans()), min_size=1, max_size=12
)


@settings(max_examples=15)
@given(st.integers(1, 3), requests)
def test_no_cancel_loses_a_slot(most: int, script: list[tuple[int, int, int, bool]]) -> None:
    """Requests that begin, take their time and are cancelled at any moment: at most as many as the limit at once, and
    all slots are free at the end, those for calls and those beside them.
    """
    limit = ConnectionLimit(most)
    running = {True: 0, False: 0}
    seen = {True: 0, False: 0}

    async def request(begin: int, length: int, patience: int, limited: bool) -> None:
        await trio.sleep(begin)
        with trio.move_on_after(patience):
            await limit.acquire_slot(limited=limited)
            running[limited] += 1
            seen[limited] = max(seen[limited], running[limited])
            try:
                await trio.sleep(length)
            finally:
                running[limited] -= 1
                limit.release_slot(ConnectionSlot(), limited=limited)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for each in script:
                nursery.start_soon(request, *each)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert seen[True] <= most
    assert seen[False] <= limit.aside.most
    assert (0, 0) == (limit.calls.borrowed_tokens, limit.aside.borrowed_tokens)
