"""A subscription and the reads of a URI go to one owner, also when the owner stops offering the URI or leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from support.channels import EVERY_CHANNEL, EVERY_LEGACY_CHANNEL, Channel
from support.harness import World, drained, open_world
from support.memory_processes import MemoryProcess, ProcessTable, Program, memory_processes
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import Backend, BackendError, Session
from trio_vmcp.testing import Delay, Error, ScriptedBackend, Status

URI = "memo://one"
UPDATED = "notifications/resources/updated"
LISTS_CHANGED = "notifications/resources/list_changed"
LEGACY = Channel("streamable-http", "legacy")


def memos(channel: Channel, *, template: str | None = None) -> ScriptedBackend:
    """It offers the URI, listed or by a template, and takes subscriptions."""
    backend = channel.backend(listens=True)
    if template is None:
        backend.add_resource(URI, "text")
    else:
        backend.add_resource("memo://other", "text")
        backend.add_resource_template(template, "text")
    return backend


@asynccontextmanager
async def open_over(channel: Channel, backends: Mapping[str, ScriptedBackend]) -> AsyncIterator[World]:
    """A world of these backends. Over stdio each is a program, which cannot be started while its backend has crashed;
    at the end no process is left.
    """
    if channel.transport != "stdio":
        async with open_world(backends) as world:
            yield world
        return
    table = ProcessTable()

    def configure(configured: Backend) -> Backend:
        backend = backends[configured.id]

        async def main(process: MemoryProcess, pipes: trio.abc.Stream) -> int:
            await backend.serve_lines(pipes)
            return 0

        table.programs[configured.id] = Program(main, "polite", lambda: not backend._crashed, lambda env: "")
        return attrs.evolve(configured, url="", transport="stdio", command=configured.id)

    with memory_processes(table):
        async with table.running_in_virtual_time(on_end=lambda process: None):
            async with open_world(backends, configure=configure) as world:
                yield world
            await wait_all_tasks_blocked()
            assert () == table.alive


def stop_offering(backend: ScriptedBackend) -> None:
    backend.resources.clear()
    backend.resource_templates.clear()
    backend.add_resource("memo://left", "text")
    backend.notify(LISTS_CHANGED)


async def read_from(session: Session) -> str:
    return (await session.read_resource(URI)).backend_id


async def told_by(session: Session, world: World) -> list[str]:
    """The backends whose update of the resource the session reports, after all of them have sent one."""
    async with session.changes() as changes:
        for backend in world.backends.values():
            backend.notify(UPDATED, {"uri": URI})
        return [change.backend_id for change in await drained(changes, 1) if change.kind == "resource_updated"]


@EVERY_CHANNEL
@pytest.mark.parametrize("before", [None, "memo://{name}"], ids=["listed", "by a template"])
@pytest.mark.parametrize("after", [None, "memo://{name}"], ids=["listed", "by a template"])
async def test_a_subscription_moves_when_its_owner_stops_offering_the_resource(
    before: str | None, after: str | None, channel: Channel, autojump_clock: MockClock
) -> None:
    """Reads and updates come from the next owner, whichever of the two says how it offers the URI; the move reports one
    update, since one may have been missed; unsubscribing reaches the new owner.
    """
    backends = {"a": memos(channel, template=before), "b": memos(channel, template=after)}
    async with open_over(channel, backends) as world, world.open_session() as session:
        await session.subscribe_resource(URI)
        await trio.sleep(1)
        owner = await read_from(session)
        other = {"a": "b", "b": "a"}[owner]
        assert [owner] == await told_by(session, world)
        async with session.changes() as changes:
            stop_offering(backends[owner])
            heard = [change.backend_id for change in await drained(changes, 3) if change.kind == "resource_updated"]
        assert [other] == heard
        assert other == await read_from(session)
        assert [other] == await told_by(session, world)
        await session.unsubscribe_resource(URI)
        assert [] == await told_by(session, world)
        await trio.sleep(1)
        assert [] == [uri for backend in backends.values() for uris in backend.subscriptions.values() for uri in uris]


@EVERY_CHANNEL
async def test_a_subscription_moves_when_its_owner_is_removed(channel: Channel, autojump_clock: MockClock) -> None:
    """Without another owner it ends; with one it goes there, also over two moves."""
    backends = {name: memos(channel) for name in "abc"}
    async with open_over(channel, backends) as world, world.open_session() as session:
        await session.subscribe_resource(URI)
        for leaving, next_owner in (("a", "b"), ("b", "c")):
            await session.remove_backend(leaving)
            await trio.sleep(3)
            assert next_owner == await read_from(session)
            assert [next_owner] == await told_by(session, world)
        await session.remove_backend("c")
        await trio.sleep(3)
        assert [] == await told_by(session, world)


@EVERY_CHANNEL
async def test_a_subscription_stays_while_its_owner_offers_the_resource(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """Also if a backend that goes before it lists the URI by now; if it is no longer listed, but a template matches;
    and while it is away, when its entries stay listed.
    """
    backends = {"a": memos(channel), "b": memos(channel)}
    backends["a"].resources.clear()
    backends["a"].add_resource("memo://other", "text")
    async with open_over(channel, backends) as world, world.open_session() as session:
        await session.subscribe_resource(URI)
        backends["a"].add_resource(URI, "text")
        backends["a"].notify(LISTS_CHANGED)
        await trio.sleep(3)
        assert "a" == session.routing_table.resources[URI].backend_id
        assert "b" == await read_from(session)
        backends["b"].resources.clear()
        backends["b"].add_resource_template("memo://{name}", "text")
        backends["b"].notify(LISTS_CHANGED)
        await trio.sleep(3)
        assert "b" == await read_from(session)
        assert ["b"] == await told_by(session, world)
        backends["b"].crash()
        await trio.sleep(3)
        with pytest.raises(BackendError):
            await read_from(session)
        backends["b"].restart()
        await trio.sleep(70)
        assert ["b"] == await told_by(session, world)


@EVERY_LEGACY_CHANNEL
async def test_a_subscription_moves_to_an_owner_that_comes_later(channel: Channel, autojump_clock: MockClock) -> None:
    """As long as no backend offers the URI, the subscription stays where it was."""
    backends = {"a": memos(channel), "b": memos(channel)}
    stop_offering(backends["b"])
    async with open_over(channel, backends) as world, world.open_session() as session:
        await session.subscribe_resource(URI)
        stop_offering(backends["a"])
        await trio.sleep(3)
        assert ["a"] == await told_by(session, world)
        backends["b"].add_resource(URI, "text")
        backends["b"].notify(LISTS_CHANGED)
        await trio.sleep(3)
        assert ["b"] == await told_by(session, world)


async def test_a_move_that_fails_is_tried_again(autojump_clock: MockClock) -> None:
    """The new owner is asked until it has the subscription, and the old one only once."""
    backends = {"a": memos(LEGACY), "b": memos(LEGACY)}
    backends["b"].fail("resources/subscribe", Status(503), times=3)
    backends["a"].fail("resources/unsubscribe", Error(-32603, "no"))
    async with open_world(backends) as world, world.open_session() as session:
        await session.subscribe_resource(URI)
        stop_offering(backends["a"])
        await trio.sleep(100)
        assert ["b"] == await told_by(session, world)
        assert 1 == len(backends["a"].received("resources/unsubscribe"))


@EVERY_LEGACY_CHANNEL
@pytest.mark.parametrize("is_refused", [False, True])
async def test_a_subscription_moves_while_it_is_asked_for(
    channel: Channel, is_refused: bool, autojump_clock: MockClock
) -> None:
    """The answer of the old owner decides whether there is a subscription, and if there is, the new owner has it."""
    backends = {"a": memos(channel), "b": memos(channel)}
    async with open_over(channel, backends) as world, world.open_session() as session:
        if is_refused:
            backends["a"].fail("resources/subscribe", Error(-32603, "no"))
        refused: list[BackendError] = []

        async def subscribe() -> None:
            try:
                await session.subscribe_resource(URI)
            except BackendError as error:
                refused.append(error)

        backends["a"].latency = 9
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscribe)
            await trio.sleep(1)
            backends["a"].latency = 0
            stop_offering(backends["a"])
            await trio.sleep(3)
            assert "b" == await read_from(session)
        assert is_refused == bool(refused)
        assert ([] if is_refused else ["b"]) == await told_by(session, world)


@EVERY_LEGACY_CHANNEL
async def test_an_unsubscription_that_meets_a_move_leaves_none(channel: Channel, autojump_clock: MockClock) -> None:
    """Its answer comes after the move: there is no subscription at either backend."""
    backends = {"a": memos(channel), "b": memos(channel)}
    async with open_over(channel, backends) as world, world.open_session() as session:
        await session.subscribe_resource(URI)
        backends["a"].fail("resources/unsubscribe", Delay(5))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.unsubscribe_resource, URI)
            await trio.sleep(1)
            stop_offering(backends["a"])
        assert [] == await told_by(session, world)


@EVERY_LEGACY_CHANNEL
async def test_only_the_backend_of_a_subscription_is_unsubscribed_from(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """Another one that offers the same URI has nothing to do with it."""
    backends = {"a": memos(channel), "b": memos(channel)}
    async with open_over(channel, backends) as world, world.open_session() as session:
        await session.subscribe_resource(URI)
        await session.unsubscribe_resource(URI)
        await trio.sleep(1)
    assert [1, 0] == [len(backend.received("resources/unsubscribe")) for backend in backends.values()]


@EVERY_LEGACY_CHANNEL
async def test_an_unsubscription_meets_a_move_to_a_backend_that_is_away(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """It ends well, and the new owner has no subscription when it comes back."""
    backends = {"a": memos(channel), "b": memos(channel)}
    async with open_over(channel, backends) as world, world.open_session() as session:
        await session.subscribe_resource(URI)
        backends["a"].fail("resources/unsubscribe", Delay(9))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.unsubscribe_resource, URI)
            await trio.sleep(1)
            stop_offering(backends["a"])
            await trio.sleep(2)
            backends["b"].crash()
            await trio.sleep(1)
            with pytest.raises(BackendError):
                await read_from(session)
        backends["b"].restart()
        await trio.sleep(70)
        assert "b" == await read_from(session)
        assert [] == await told_by(session, world)


@EVERY_LEGACY_CHANNEL
async def test_a_read_goes_to_the_new_owner_before_the_subscription_has_moved(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """Moving many subscriptions takes a while."""
    uris = [f"memo://{number}" for number in range(10, 30)]
    backends = {"a": memos(channel, template="memo://{name}"), "b": memos(channel, template="memo://{name}")}
    async with open_over(channel, backends) as world, world.open_session() as session:
        for uri in uris:
            await session.subscribe_resource(uri)
        async with session.changes() as changes:
            stop_offering(backends["a"])
            while (await changes.receive()).kind != "resources":
                pass
            assert "b" == (await session.read_resource(uris[-1])).backend_id


def offer_again(backend: ScriptedBackend) -> None:
    backend.add_resource(URI, "text")
    backend.notify(LISTS_CHANGED)


@EVERY_LEGACY_CHANNEL
async def test_a_subscription_that_comes_back_is_not_lost(channel: Channel, autojump_clock: MockClock) -> None:
    """The owner takes the `unsubscribe` of the move after the `subscribe` of the return: it is subscribed to again."""
    backends = {"a": memos(channel), "b": memos(channel)}
    async with open_over(channel, backends) as world, world.open_session() as session:
        await session.subscribe_resource(URI)
        await trio.sleep(2)
        backends["a"].fail("resources/unsubscribe", Delay(8), times=1)
        stop_offering(backends["a"])
        await trio.sleep(3)
        assert "b" == await read_from(session)
        offer_again(backends["a"])
        await trio.sleep(1)
        stop_offering(backends["b"])
        await trio.sleep(20)
        assert "a" == await read_from(session)
        assert ["a"] == await told_by(session, world)


@EVERY_LEGACY_CHANNEL
async def test_unsubscribing_during_a_move_leaves_no_subscription(channel: Channel, autojump_clock: MockClock) -> None:
    """The new owner, which has been sent `subscribe`, is sent `unsubscribe`."""
    backends = {"a": memos(channel), "b": memos(channel)}
    backends["a"].fail("resources/unsubscribe", Delay(4))
    async with open_over(channel, backends) as world, world.open_session() as session, trio.open_nursery() as nursery:
        await session.subscribe_resource(URI)
        nursery.start_soon(session.unsubscribe_resource, URI)
        await trio.sleep(0.1)
        stop_offering(backends["a"])
        await trio.sleep(10)
        assert 1 == len(backends["b"].received("resources/subscribe"))
        assert 1 == len(backends["b"].received("resources/unsubscribe"))
        assert [] == await told_by(session, world)
