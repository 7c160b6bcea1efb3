"""`tell_roots_changed`: of one connection, whose client may lack it, hang or raise; and of a session, with the other
message to all backends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import pytest
import trio
from support.harness import ALICE, BOB, echo_backend, open_world
from trio.testing import MockClock

from trio_vmcp import (
    JSON,
    BackendRecord,
    ClientHandlers,
    FactorySettings,
    Identity,
    ServerRequest,
    SessionClosed,
    SessionState,
    UnauthorizedCaller,
)
from trio_vmcp._limits import TimeLimit
from trio_vmcp._session.connection import Connection
from trio_vmcp._session.log_levels import LevelTeller, LogLevel
from trio_vmcp.testing import Delay

LIMIT = TimeLimit(2.0, "request_timeout")


class OldClient:
    """Has no such message, as those of the stateless era."""

    server_capabilities: JSON = {}  # noqa: RUF012  # a Protocol's member; never written

    @property
    def record(self) -> BackendRecord:
        raise AssertionError

    async def request(self, method: str, params: JSON, **more: object) -> JSON:
        raise AssertionError

    async def aclose(self, *, terminate: bool) -> None:
        raise AssertionError


@attrs.define(eq=False)
class NewClient(OldClient):
    takes: float = 0.0  # s
    error: Exception | None = None
    told: list[Identity | None] = attrs.field(factory=list)

    async def tell_roots_changed(self, identity: Identity | None) -> None:
        self.told.append(identity)
        await trio.sleep(self.takes)
        if self.error is not None:
            raise self.error


class NoSubscriptions:
    def subscribe(self, uri: str) -> None: ...

    def unsubscribe(self, uri: str) -> None: ...


class NeverOver:
    is_over = False


def connection_of(client: OldClient) -> Connection:
    teller = LevelTeller(LogLevel(), client, "b", NeverOver(), LIMIT)
    return Connection(client, (), NoSubscriptions(), reports_writes=False, log_level=teller)


@pytest.mark.parametrize(
    ("client", "failure", "took"),
    [
        (OldClient(), None, 0.0),
        (NewClient(), None, 0.0),
        (NewClient(takes=1.0), None, 1.0),
        (NewClient(takes=3.0), f"timeout of {LIMIT}", 2.0),
        (NewClient(error=LookupError("secret")), "LookupError", 0.0),
    ],
    ids=["lacks it", "tells", "is slow", "hangs", "raises"],
)
async def test_a_failure_to_tell_is_logged_and_raises_nothing(
    client: OldClient, failure: str | None, took: float, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Within the limit, with the identity of the caller, and without the text of the error."""
    await connection_of(client).tell_roots_changed(ALICE, LIMIT)
    assert took == trio.current_time()
    said = [] if failure is None else [f"a backend was not told that the roots have changed: {failure}"]
    assert said == [record.getMessage() for record in caplog.records]
    if isinstance(client, NewClient):
        assert [ALICE] == client.told


Act = Callable[..., Awaitable[None]]
ASKED: dict[str, tuple[str, Act]] = {
    "set_log_level": ("logging/setLevel", lambda session, **more: session.set_log_level("error", **more)),
    "tell_roots_changed": (
        "notifications/roots/list_changed",
        lambda session, **more: session.tell_roots_changed(**more),
    ),
}
FOR_ALL_BACKENDS = pytest.mark.parametrize("asked", ASKED)


async def roots(request: ServerRequest) -> JSON:
    return {"roots": []}


@FOR_ALL_BACKENDS
async def test_a_stranger_tells_backends_nothing(asked: str, autojump_clock: MockClock) -> None:
    """Another principal is refused, and no backend hears of that."""
    method, act = ASKED[asked]
    backend = echo_backend(capabilities={"logging": {}, "tools": {}})
    handlers = ClientHandlers(roots=roots, capabilities={"roots": {"listChanged": True}})
    async with (
        open_world({"a": backend}, handlers=handlers) as world,
        world.open_session(identity=ALICE) as session,
    ):
        with pytest.raises(UnauthorizedCaller):
            await act(session, caller=BOB)
        await trio.sleep(1)
        assert [] == backend.received(method)
        await act(session, caller=ALICE)
        await trio.sleep(1)
        assert 1 == len(backend.received(method))


@FOR_ALL_BACKENDS
async def test_a_message_to_all_backends_is_a_use_that_a_close_waits_for(asked: str, autojump_clock: MockClock) -> None:
    """It is in flight while it runs, puts off the end of an idle session, and is refused behind the close."""
    method, act = ASKED[asked]
    backend = echo_backend(capabilities={"logging": {}, "tools": {}})
    settings = FactorySettings(idle_timeout=10.0)
    handlers = ClientHandlers(roots=roots, capabilities={"roots": {"listChanged": True}})
    async with open_world({"a": backend}, settings=settings, handlers=handlers) as world:
        session = await world.make_session()
        await trio.sleep(8)
        backend.fail(method, Delay(1.0), times=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act, session)
            await trio.sleep(0.5)
            assert 1 == session.in_flight
        await trio.sleep(8)
        assert SessionState.OPEN is session.state
        await session.aclose()
        with pytest.raises(SessionClosed):
            await act(session)
