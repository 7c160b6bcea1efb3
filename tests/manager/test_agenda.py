"""The agenda of a manager: what is due, and one task that waits for it; and the decisions what that is."""

from __future__ import annotations

import math
import random

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from trio_vmcp import Backend, SessionLimitReached
from trio_vmcp._manager.agenda import Agenda
from trio_vmcp._manager.configuration import difference
from trio_vmcp._manager.due import Due, Limits, Step, due_asleep, due_live
from trio_vmcp._manager.places import Places

TIMES = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.inf])
LIMITS = Limits(idle_timeout=100, max_lifetime=1000, hibernate_after=10, check_interval=5, touch_interval=30)


@attrs.define(eq=False)
class Item:
    name: int
    due_at: float = attrs.field(default=math.inf, init=False)


async def taken(agenda: Agenda[Item], until: float) -> list[tuple[int, float]]:
    """What is due by then: the items, and when each was taken."""
    found: list[tuple[int, float]] = []
    with trio.move_on_at(until):
        while True:
            item = await agenda.next()
            found.append((item.name, trio.current_time()))
    return found


async def test_ten_thousand_items_need_one_task_and_one_deadline(autojump_clock: MockClock) -> None:
    """Each is taken at its time, in order, however often it was put off before."""
    chance, agenda = random.Random(1), Agenda[Item]()
    items = [Item(number) for number in range(10_000)]
    for turn, count in ((0, 10_000), (1, 10_000), (2, 3_000)):
        for item in items[:count]:
            agenda.put(item, turn + chance.random())
    assert len(agenda._heap) <= 20_000  # what was put off is not kept for good
    found: list[tuple[int, float]] = []

    async def take_all() -> None:
        found.extend(await taken(agenda, 5.0))

    before = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_all)
        await wait_all_tasks_blocked()
        assert before + 1 == trio.lowlevel.current_statistics().tasks_living
        assert 10_000 == len(agenda)
    assert sorted(name for name, _ in found) == list(range(10_000))
    assert [at for _, at in found] == sorted(at for _, at in found)
    assert 1.0 <= found[0][1] <= found[-1][1] <= 3.0


@given(st.lists(st.tuples(st.integers(0, 4), TIMES), max_size=20))
def test_an_item_is_due_at_the_time_that_was_said_last(puts: list[tuple[int, float]]) -> None:
    """`math.inf`: not at all. Each is taken once."""

    async def main() -> None:
        agenda, items, wanted = Agenda[Item](), [Item(number) for number in range(5)], dict[int, float]()
        for number, at in puts:
            agenda.put(items[number], at)
            wanted[number] = at
        due = {(number, at) for number, at in wanted.items() if at < math.inf}
        assert len(due) == len(agenda)
        found = await taken(agenda, 10.0)
        assert (due, len(due)) == (set(found), len(found))
        assert 0 == len(agenda)

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_an_item_that_is_put_where_it_is_costs_nothing() -> None:
    """Every call of a session asks for the same time of its next check: such entries must not pile up."""
    agenda, item = Agenda[Item](), Item(1)
    for _ in range(3):
        agenda.put(item, 7.0)
    assert 1 == len(agenda._heap)


@pytest.mark.parametrize(("size", "kept"), [(63, 63), (100, 63), (128, 64), (400, 200)])
async def test_what_is_discarded_leaves_once_it_is_most_of_the_heap(
    size: int, kept: int, autojump_clock: MockClock
) -> None:
    """At least 64 entries and more than half of them: a new heap costs as much as all its items. Order stays."""
    chance, agenda = random.Random(3), Agenda[Item]()
    items = [Item(number) for number in range(size)]
    for item in items:
        agenda.put(item, 10 * chance.random())
    for item in items[:kept]:
        agenda.discard(item)
    assert size == len(agenda._heap)
    for item in items[kept : kept + 1]:
        agenda.discard(item)
        assert size - kept - 1 == len(agenda._heap)
    due = {item.name: item.due_at for item in items[kept + 1 :]}
    assert due == dict(await taken(agenda, 11.0))


async def test_taking_what_is_due_is_a_checkpoint() -> None:
    """A task that takes items one after another lets others run, and can be cancelled."""
    agenda = Agenda[Item]()
    agenda.put(Item(1), 0.0)
    with assert_checkpoints():
        await agenda.next()


async def test_the_task_is_woken_by_a_single_item(autojump_clock: MockClock) -> None:
    """By the first one, and by one that is due before the one that the task waits for."""
    agenda = Agenda[Item]()
    found: list[tuple[int, float]] = []

    async def take_all() -> None:
        found.extend(await taken(agenda, 100.0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_all)
        await trio.sleep(1)
        agenda.put(Item(1), 50.0)
        await trio.sleep(1)
        agenda.put(Item(2), 7.0)
    assert [(2, 7.0), (1, 50.0)] == found


async def test_an_item_that_is_due_sooner_wakes_the_task(autojump_clock: MockClock) -> None:
    """Also one that was put off, or discarded, while the task waited."""
    agenda, first, second, third = Agenda[Item](), Item(1), Item(2), Item(3)
    agenda.put(first, 50.0)
    async with trio.open_nursery() as nursery:
        found: list[tuple[int, float]] = []

        async def take_all() -> None:
            found.extend(await taken(agenda, 100.0))

        nursery.start_soon(take_all)
        await trio.sleep(1)
        agenda.put(second, 7.0)
        agenda.put(third, 6.0)
        agenda.discard(third)
        await trio.sleep(1)
        agenda.put(first, 60.0)
    assert [(2, 7.0), (1, 60.0)] == found


# What is due


@pytest.mark.parametrize(
    ("born_at", "worked_at", "checked_at", "due"),
    [
        (0.0, 100.0, 98.0, Due(103.0, Step.CHECK)),
        (0.0, 100.0, 106.0, Due(110.0, Step.HIBERNATE)),
        (-900.0, 100.0, 98.0, Due(100.0, Step.END_OLD)),
    ],
)
def test_the_next_step_of_a_live_session(born_at: float, worked_at: float, checked_at: float, due: Due) -> None:
    """Whichever comes first."""
    assert due == due_live(LIMITS, born_at=born_at, worked_at=worked_at, checked_at=checked_at)


@pytest.mark.parametrize(
    ("born_at", "used_at", "touch_at", "due"),
    [
        (0.0, 100.0, 130.0, Due(130.0, Step.TOUCH)),
        (0.0, 100.0, 230.0, Due(200.0, Step.END_IDLE)),
        (-900.0, 100.0, 130.0, Due(100.0, Step.END_OLD)),
    ],
)
def test_the_next_step_of_a_session_that_hibernates(born_at: float, used_at: float, touch_at: float, due: Due) -> None:
    """Whichever comes first."""
    assert due == due_asleep(LIMITS, born_at=born_at, used_at=used_at, touch_at=touch_at)


def test_without_limits_nothing_is_ever_due() -> None:
    """No other instance, no lifetime, no hibernation: no timer."""
    none = Limits(math.inf, math.inf, math.inf, math.inf, math.inf)
    assert math.inf == due_live(none, born_at=0.0, worked_at=0.0, checked_at=0.0).at


# What differs, and which sessions have a place


def test_a_difference_is_what_goes_and_what_comes() -> None:
    """A backend whose fields differ is in both; the order is that of the lists."""
    a, b, c = (Backend(name, f"http://{name}.test") for name in "abc")
    moved = attrs.evolve(b, url="http://other.test")
    found = difference((a, b), (moved, c))
    assert (("a", "b"), (moved, c)) == (found.removed, found.added)
    assert ((), ()) == (difference((a, b), (b, a)).removed, difference((a, b), (b, a)).added)


@given(st.lists(st.tuples(st.sampled_from([("i", "alice"), ("i", "bob"), None]), st.booleans()), max_size=30))
def test_places_are_counted_for_each_principal(steps: list[tuple[tuple[str, str] | None, bool]]) -> None:
    """At most five, at most two for one principal, and as many that drain beside them; and all of them come back."""
    places, live, draining = Places(5, 2), list[tuple[str, str] | None](), list[tuple[str, str] | None]()
    for principal, drains in steps:
        if drains:
            if principal in live:
                live.remove(principal)
                draining.append(principal)
            continue
        own = live.count(principal) + max(0, draining.count(principal) - 2)
        is_full = len(live) + max(0, len(draining) - 5) >= 5 or (principal is not None and own >= 2)
        refused = places.refused
        try:
            places.take(principal, lambda: draining)
        except SessionLimitReached:
            assert (is_full, refused + 1) == (True, places.refused)
        else:
            assert (is_full, refused) == (False, places.refused)
            live.append(principal)
    taken_by = live + draining
    assert len(taken_by) == places.taken
    for principal in taken_by:
        places.give_back(principal)
    assert 0 == places.taken
    assert {} == places._by_principal
