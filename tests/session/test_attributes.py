"""The attributes of a session: strings of the application's own in the metadata. Those that `set_attributes` sets are
in the row, or the old ones stay; and of several instances the last one wins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support.harness import ALICE, BOB, NO_RETRIES, echo_backend, open_world, state_of
from support.instances import SETTINGS, TTL, Instances, away, cut, instances, stuck
from support.opened import MADE, open_by
from support.scripted_storage import ScriptedStorage
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    FactorySettings,
    LocalStorage,
    Session,
    SessionClosed,
    SessionMetadata,
    SessionNotFound,
    SessionState,
    StorageError,
    UnauthorizedCaller,
    metadata_from_json,
    metadata_to_json,
    open_session_factory,
)
from trio_vmcp.metadata import MAX_ATTRIBUTES_BYTES

EVERY_MAKE = pytest.mark.parametrize("way", MADE)
FULL = {"ü" * 10: "€" * ((MAX_ATTRIBUTES_BYTES - 20) // 3) + "xx"}  # 2 and 3 bytes each
BAD: dict[str, Any] = {
    "a list": [("a", "b")],
    "a str": "a=b",
    "a value that is no str": {"a": 1},
    "None as a value": {"a": None},
    "a key that is no str": {1: "a"},
    "bytes": {"a": b"b"},
    "nested": {"a": {"b": "c"}},
    "too large": {**FULL, "x": ""},
    "many": {str(number): "x" * 10 for number in range(2000)},
}


def test_the_largest_attributes_are_full() -> None:
    """The limit counts bytes of UTF-8, of keys and values."""
    assert MAX_ATTRIBUTES_BYTES == sum(len(text.encode()) for item in FULL.items() for text in item)


@EVERY_MAKE
@pytest.mark.parametrize("given", [{}, {"user": "alice", "": ""}, FULL], ids=["none", "some", "full"])
async def test_attributes_are_in_the_metadata(way: str, given: dict[str, str], autojump_clock: MockClock) -> None:
    """From the beginning, in the row as well; read-only, and a copy."""
    async with open_world({"a": echo_backend()}) as world:
        passed = dict(given)
        async with open_by(way, world.factory, world.configured, attributes=passed) as session:
            passed["later"] = "x"
            assert given == session.metadata.attributes
            assert session.metadata == await world.storage.load(session.id)
            with pytest.raises(TypeError):
                session.metadata.attributes["x"] = "y"  # type: ignore[index]  # that is the test
            assert session.metadata == metadata_from_json(metadata_to_json(session.metadata))


async def test_attributes_outlive_their_instance(autojump_clock: MockClock) -> None:
    """They are there again after a restore elsewhere, and stay when that instance writes the row."""
    async with instances(2) as world:
        session = await world.factories[0].make_session([], session_id="one", attributes={"tenant": "t"})
        await session.suspend()
        restored = await world.restore(1)
        assert {"tenant": "t"} == restored.metadata.attributes
        await restored.suspend()
        row = await world.row()
        assert row is not None
        assert {"tenant": "t"} == row.attributes


@EVERY_MAKE
@pytest.mark.parametrize("given", BAD)
async def test_other_attributes_are_refused(way: str, given: str, autojump_clock: MockClock) -> None:
    """A ValueError before storage or backend is asked anything. It does not show what they hold."""
    backend = echo_backend()
    async with open_world({"a": backend}, settings=NO_RETRIES) as world:
        world.storage.before["load"] = away
        with pytest.raises(ValueError, match="attributes") as caught:
            async with open_by(way, world.factory, world.configured, session_id="s", attributes=BAD[given]):
                raise AssertionError
        assert "€" not in str(caught.value)
        assert [] == backend.exchanges
        world.storage.before.clear()
        with pytest.raises(SessionNotFound):
            await world.storage.load("s")
        await (await world.make_session(session_id="s", identity=ALICE)).aclose()


# set_attributes

OLD, NEW, OTHER = {"name": "old", "gone": ""}, {"name": "new"}, {"name": "other"}


async def make(world: Instances, instance: int = 0, **keywords: Any) -> Session:
    return await world.factories[instance].make_session(world.configured, session_id="one", attributes=OLD, **keywords)


async def stored(world: Instances) -> dict[str, str]:
    row = await world.row()
    assert row is not None
    return dict(row.attributes)


@pytest.mark.parametrize("given", [{}, NEW, FULL], ids=["none", "some", "full"])
async def test_they_replace_all_of_the_old_ones(given: dict[str, str], autojump_clock: MockClock) -> None:
    """The row has them when it returns; the session's metadata as well, read-only and a copy."""
    async with instances(1) as world:
        session = await make(world)
        passed = dict(given)
        await session.set_attributes(passed)
        assert given == await stored(world)
        passed["later"] = "x"
        assert given == session.metadata.attributes
        assert session.metadata == await world.row()
        with pytest.raises(TypeError):
            session.metadata.attributes["x"] = "y"  # type: ignore[index]  # that is the test


async def test_they_stay_with_later_writes_and_restores(autojump_clock: MockClock) -> None:
    """A backend that joins, a mark of use, a touch, and another instance change nothing of them."""
    async with instances(2) as world:
        session = await world.factories[0].make_session([], session_id="one", attributes=OLD)
        await session.set_attributes(NEW)
        await session.add_backend(world.configured[0])
        for _ in range(4):
            await trio.sleep(TTL / 3 + 1)
            await session.call_tool("a_echo")
        await session.suspend()
        restored = await world.restore(1)
        assert NEW == restored.metadata.attributes
        await restored.remove_backend("a")
        await restored.suspend()
        assert NEW == await stored(world)


@pytest.mark.parametrize("given", [*BAD, "nothing"])
async def test_other_attributes_are_not_set(given: str, autojump_clock: MockClock) -> None:
    """A ValueError without a write, and the old ones stay."""
    async with instances(1) as world:
        session = await make(world)
        before = world.ways[0].calls.copy()
        with pytest.raises(ValueError, match="attributes"):
            await session.set_attributes(BAD.get(given))  # type: ignore[arg-type]  # that is the test
        assert before == world.ways[0].calls
        assert OLD == session.metadata.attributes


# When the storage fails

FAILURES: dict[str, Callable[[], Awaitable[object]]] = {"away": away, "hangs": trio.sleep_forever, "stuck": stuck}


@pytest.mark.parametrize("operation", ["before", "after"])
@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize("ttl", [TTL, 6 * TTL])
async def test_the_old_ones_stay_when_the_storage_fails(
    operation: str, how: str, ttl: float, autojump_clock: MockClock
) -> None:
    """A StorageError in bounded time. Where the storage took the row and did not say so, the row is set back."""
    async with instances(1, ttl, idle_timeout=10_000) as world:
        session = await make(world)
        getattr(world.ways[0], operation)["replace"] = FAILURES[how]
        began = trio.current_time()
        with pytest.raises(StorageError):
            await session.set_attributes(NEW)
        assert trio.current_time() - began <= 2 * SETTINGS.storage_timeout
        assert OLD == session.metadata.attributes
        getattr(world.ways[0], operation).clear()
        await trio.sleep(ttl)
        assert OLD == session.metadata.attributes
        assert OLD == await stored(world)
        await session.set_attributes(NEW)
        assert NEW == await stored(world)


class LateStorage(ScriptedStorage):
    """What was sent arrives after `seconds`, whether its sender waits or not."""

    seconds = 0.0

    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(self.seconds)
            await super().replace(metadata, expected_version=expected_version)


async def test_a_row_that_arrives_late_is_still_known_as_ones_own(autojump_clock: MockClock) -> None:
    """Two writes are under way for long. The first to arrive is set back, and is not taken for another instance's."""
    storage = LateStorage(LocalStorage(6 * TTL))
    settings = attrs.evolve(SETTINGS, idle_timeout=10_000)
    async with open_session_factory(storage=storage, settings=settings) as factory:
        session = await factory.make_session([], attributes=OLD)
        storage.seconds = 30
        with pytest.raises(StorageError):
            await session.set_attributes(NEW)
        await trio.sleep(6)  # it is being set back
        storage.seconds = 0
        await trio.sleep(40)
        assert NEW == (await storage.load(session.id)).attributes
        await trio.sleep(2 * TTL)
        assert OLD == (await storage.load(session.id)).attributes == session.metadata.attributes
    assert [] == await storage.rows()  # so it is no other instance's


async def test_an_answer_that_was_lost_costs_the_new_ones_a_moment(autojump_clock: MockClock) -> None:
    """The storage has answered again: the row is set back at once, and not with the next touch."""
    async with instances(1) as world:
        session = await make(world)
        lost: list[str] = []

        async def lose_first() -> None:
            if not lost:
                lost.append("answer")
                await away()

        world.ways[0].after["replace"] = lose_first
        with pytest.raises(StorageError):
            await session.set_attributes(NEW)
        await wait_all_tasks_blocked()
        assert OLD == session.metadata.attributes == await stored(world)


async def test_all_callers_that_wait_are_told_of_a_failure(autojump_clock: MockClock) -> None:
    """In the time of one: of those that wait at the same time the latest is written."""
    failed: list[StorageError] = []

    async def set_them(number: int) -> None:
        with pytest.raises(StorageError) as caught:
            await session.set_attributes({"number": str(number)})
        failed.append(caught.value)

    async with instances(1) as world:
        session = await make(world)
        world.ways[0].before["replace"] = trio.sleep_forever
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(set_them, number)
        assert trio.current_time() - began <= 4 * SETTINGS.storage_timeout
        assert 10 == len({id(error) for error in failed})
        assert OLD == session.metadata.attributes


async def test_a_row_that_vanished_is_created_with_them(autojump_clock: MockClock) -> None:
    """As with every other change."""
    async with instances(1) as world:
        session = await make(world)
        world.shared._entries.clear()
        await session.set_attributes(NEW)
        assert NEW == await stored(world)


async def test_a_session_that_was_terminated_elsewhere_takes_none(autojump_clock: MockClock) -> None:
    """SessionClosed, and the session closes: no row comes back."""
    async with instances(2) as world:
        session = await make(world)
        await (await world.restore(1)).aclose()
        with pytest.raises(SessionClosed, match="elsewhere"):
            await session.set_attributes(NEW)
        await trio.sleep(SETTINGS.teardown_timeout)
        assert SessionState.CLOSED is state_of(session)
        assert await world.row() is None


# Several instances


@pytest.mark.parametrize("last", [0, 1])
async def test_the_last_one_wins_as_a_whole(last: int, autojump_clock: MockClock) -> None:
    """Nothing of the others' is mixed in, and an instance that has not seen them overwrites them all the same."""
    async with instances(2) as world:
        copies = [await make(world), await world.restore(1)]
        for at in (1 - last, last):
            await copies[at].set_attributes({f"of {at}": "x"})
        for copy in copies:  # each writes the row for another reason
            await copy.call_tool("a_echo")
        await trio.sleep(TTL)
        assert {f"of {last}": "x"} == await stored(world)


async def test_setting_what_one_has_wins_over_another_instance(autojump_clock: MockClock) -> None:
    """The first instance sets what its metadata say already: the row says something else by then."""
    async with instances(2) as world:
        copies = [await make(world), await world.restore(1)]
        await copies[1].set_attributes(OTHER)
        await copies[0].set_attributes(OLD)
        assert OLD == await stored(world)


async def test_other_changes_leave_what_another_instance_has_set(autojump_clock: MockClock) -> None:
    """A backend that is added where the attributes are old: they are in the row, and here as well from then on."""
    async with instances(2) as world:
        copies = [await make(world), await world.restore(1)]
        await copies[1].set_attributes(OTHER)
        assert OLD == copies[0].metadata.attributes
        await copies[0].remove_backend("a")
        await wait_all_tasks_blocked()
        assert OTHER == await stored(world) == copies[0].metadata.attributes


async def test_a_failed_one_does_not_undo_what_another_instance_sets(autojump_clock: MockClock) -> None:
    """It is not known whether it was written; meanwhile the other instance has set its own."""
    async with instances(2) as world:
        copies = [await make(world), await world.restore(1)]
        world.ways[0].after["replace"] = away
        cut(world.ways[0])
        with pytest.raises(StorageError):
            await copies[0].set_attributes(NEW)
        await copies[1].set_attributes(OTHER)
        world.ways[0].before.clear()
        world.ways[0].after.clear()
        await trio.sleep(TTL)
        assert OTHER == await stored(world) == copies[0].metadata.attributes


# Who may, and when


async def test_through_a_view(autojump_clock: MockClock) -> None:
    """A view is its owner's; a stranger has none."""
    async with open_world({}) as world, world.open_session(identity=ALICE) as session:
        await session.as_caller(ALICE).set_attributes(NEW)
        assert NEW == session.metadata.attributes
        with pytest.raises(UnauthorizedCaller):
            await session.as_caller(BOB).set_attributes(OTHER)


@pytest.mark.parametrize("end", ["aclose", "suspend"])
async def test_a_session_that_closes_takes_none(end: str, autojump_clock: MockClock) -> None:
    """SessionClosed from the request to close on. One that is under way then has an outcome, too, and the row has what
    was acknowledged.
    """
    outcomes: list[type[BaseException] | None] = []

    async def set_them(session: Session) -> None:
        try:
            await session.set_attributes(NEW)
        except (SessionClosed, StorageError) as error:
            outcomes.append(type(error))
        else:
            outcomes.append(None)

    async with instances(1, storage_timeout=60) as world:
        session = await make(world)
        world.ways[0].before["replace"] = partial(trio.sleep, 30)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(set_them, session)
            await wait_all_tasks_blocked()
            await getattr(session, end)()
        assert [SessionClosed] == outcomes
        with pytest.raises(SessionClosed):
            await session.set_attributes(NEW)
        if end == "suspend":
            assert OLD == await stored(world)


async def test_a_cancelled_caller_waits_no_longer(autojump_clock: MockClock) -> None:
    """What was not on its way yet is not written."""
    async with instances(1) as world:
        session = await make(world)
        world.ways[0].before["replace"] = partial(trio.sleep, 3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.set_attributes, NEW)
            await wait_all_tasks_blocked()
            with trio.move_on_after(1) as scope:
                await session.set_attributes(OTHER)
            assert scope.cancelled_caught
        assert NEW == await stored(world)
        await trio.sleep(TTL)
        assert NEW == await stored(world)


async def test_setting_attributes_is_no_use_of_backends(autojump_clock: MockClock) -> None:
    """A session is idle when it makes no calls."""
    async with open_world({}, settings=FactorySettings(idle_timeout=10)) as world:
        session = await world.make_session()
        for _ in range(3):
            await trio.sleep(4)
            if state_of(session) is SessionState.OPEN:
                await session.set_attributes(NEW)
        assert SessionState.CLOSED is state_of(session)
