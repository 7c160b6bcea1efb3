"""A backend that is connected again while its session closes: the new connection is closed with its goodbye."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
from support.plain_connector import PlainClient, PlainConnector, plain_backends
from trio.testing import MockClock

from trio_vmcp import (
    Backend,
    BackendState,
    BackendUnavailable,
    FactorySettings,
    Session,
    SessionClosed,
    SessionState,
    open_session_factory,
)

SETTINGS = FactorySettings(drain_timeout=1.0, teardown_timeout=2.0, reconnect_delay=0.5)


@attrs.define(eq=False)
class StubbornConnector(PlainConnector):
    """Its later connections to the second backend notice no cancel: each is there when `ready` is set."""

    ready: trio.Event = attrs.field(factory=trio.Event)
    all_clients: list[PlainClient] = attrs.field(factory=list)  # of the second backend
    events: Any = None

    async def __call__(self, backend: Backend, **given: Any) -> PlainClient:
        if backend.id != "b1":
            return await super().__call__(backend, **given)
        if not self.all_clients:
            client = await super().__call__(backend, **given)
        else:
            with trio.CancelScope(shield=True):
                await self.ready.wait()
            client = PlainClient(self.all_clients[0].record, {"tools": {}})
        self.events = given["events"]
        self.all_clients.append(client)
        return client


async def sleep_one() -> None:
    await trio.sleep(1.0)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("moment", ["at the close", "while calls drain", "at the goodbyes"])
async def test_a_connection_that_gets_ready_while_its_session_closes(
    moment: str, is_first: bool, autojump_clock: MockClock
) -> None:
    """Whichever of the two comes first: its backend gets one goodbye. While calls may wait for it, it joins; once the
    session says its goodbyes, it does not.
    """
    connector = StubbornConnector(on_request={"b0": trio.sleep_forever}, on_close={"b0": sleep_one})
    async with (
        trio.open_nursery() as nursery,
        open_session_factory(connector=connector, settings=SETTINGS) as factory,
    ):
        session = await factory.make_session(plain_backends(2))
        first = connector.all_clients[0]
        if moment != "at the goodbyes":
            nursery.start_soon(call_in_vain, session)
        await trio.sleep(1)
        connector.events.session_lost(BackendUnavailable("b1", "is gone"))
        await trio.sleep(5)
        assert BackendState.RECOVERING is session.backends["b1"].state
        after = {"at the close": 0.0, "while calls drain": 0.5, "at the goodbyes": 0.5}

        async def get_ready() -> None:
            await trio.sleep(after[moment])
            connector.ready.set()

        if is_first and moment == "at the close":
            connector.ready.set()
        elif is_first:
            nursery.start_soon(get_ready)
        nursery.start_soon(session.aclose)
        if not is_first:
            await trio.lowlevel.checkpoint()
            nursery.start_soon(get_ready)
        await trio.sleep(5)
        (late,) = connector.all_clients[1:]
        assert ([True], [True]) == (first.closed, late.closed)
        assert SessionState.CLOSED is session.state
        may_join = moment in ("at the close", "while calls drain")
        assert ("READY" if may_join else "DEGRADED") == session.backends["b1"].state.name


async def call_in_vain(session: Session) -> None:
    with pytest.raises(SessionClosed, match="drain_timeout"):
        await session.call_tool("b0_echo")
