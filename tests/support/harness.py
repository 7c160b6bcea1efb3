"""A network of scripted backends with a factory over it, and a check at its end that nothing of a session is left."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import trio
from support.scripted_storage import ScriptedStorage
from trio.testing import wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    ClientHandlers,
    FactorySettings,
    Identity,
    OutgoingAuth,
    Session,
    SessionChange,
    SessionFactory,
    SessionState,
    open_session_factory,
)
from trio_vmcp._http.origin import Origin
from trio_vmcp._http.transport import Http11Transport, RawResponse
from trio_vmcp._protocol.headers import is_valid_session_id
from trio_vmcp.testing import CallContext, MemoryNetwork, ScriptedBackend, open_memory_network

# Settings for tests that are not about reconnecting: a lost backend stays away.
NO_RETRIES = FactorySettings(reconnect_delay=math.inf, reconnect_max_delay=math.inf)

ALICE = Identity(issuer="https://issuer.test", subject="alice", token="alice-token")
BOB = Identity(issuer="https://issuer.test", subject="bob")


def echo_backend(era: str = "legacy", answers: str = "json", **more: Any) -> ScriptedBackend:
    """A backend with one tool, "echo"."""
    backend = ScriptedBackend(era=era, answers=answers, **more)  # type: ignore[arg-type]  # parametrized: plain str
    backend.add_tool("echo")
    return backend


def slow_backend(seconds: float = 60, era: str = "legacy", answers: str = "json", **more: Any) -> ScriptedBackend:
    """A backend with "echo" and a tool "slow", which takes a while."""

    async def slow(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(seconds)
        return "rested"

    backend = echo_backend(era, answers, **more)
    backend.add_tool("slow", slow)
    return backend


def announcing_backend(era: str = "legacy") -> ScriptedBackend:
    """One resource, one prompt, and a tool "announce" that sends `list_changed` for each of `kinds` on the stream of
    its call.
    """

    async def announce(arguments: JSON, context: CallContext) -> str:
        for kind in arguments["kinds"]:
            await context.notify(f"notifications/{kind}/list_changed", {})
        return "announced"

    backend = echo_backend(era, "sse")
    backend.add_tool("announce", announce)
    backend.add_resource("file:///x")
    backend.add_prompt("p")
    return backend


def state_of(session: Session) -> SessionState:
    """The state. A function, since a type checker narrows a property that was looked at, and misses later changes."""
    return session.state


async def drained(changes: trio.MemoryReceiveChannel[SessionChange], seconds: float = 1) -> list[SessionChange]:
    """The changes of the next so many seconds."""
    found: list[SessionChange] = []
    with trio.move_on_after(seconds):
        while True:
            found.append(await changes.receive())
    return found


def library_tasks() -> list[str]:
    """The names of the library's tasks, without those of scripted backends."""

    def names(task: trio.lowlevel.Task) -> Iterator[str]:
        yield task.name
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                yield from names(child)

    root = trio.lowlevel.current_root_task()
    assert root is not None
    own = (name for name in names(root) if name.startswith("trio_vmcp."))
    return sorted(name for name in own if not name.startswith("trio_vmcp.testing."))


class Ledger(Http11Transport):
    """The library's transport over a network. It records the backend sessions that the library has received an id of:
    the library cannot end any others.
    """

    def __init__(self, network: MemoryNetwork) -> None:
        super().__init__(dial=network.dial)
        self.session_ids: defaultdict[str, set[str]] = defaultdict(set)  # by host

    async def send(
        self,
        origin: Origin,
        verb: str,
        head: bytes,
        body: bytes,
        on_write: Callable[[], None],
        *,
        may_repeat: bool = False,
    ) -> RawResponse:
        # no checkpoint from here until the library has the response
        response = await super().send(origin, verb, head, body, on_write, may_repeat=may_repeat)
        self.session_ids[origin.host].update(session_ids_in(response))
        return response

    @property
    def all_session_ids(self) -> set[str]:
        return set().union(*self.session_ids.values())


def session_ids_in(response: RawResponse) -> list[str]:
    """The session id in the response that the library may use, if there is one."""
    ids = [value.decode("latin-1") for name, value in response.headers if name == b"mcp-session-id"]
    return ids if 200 <= response.status < 300 and len(ids) == 1 and is_valid_session_id(ids[0]) else []


@attrs.define(eq=False)
class World:
    """Backends by id, and one factory over them.

    Attributes:
        configured: The backends as a user configures them, in order.
        leaves_rows, leaves_sessions: Set by a test that suspends; otherwise nothing may be left.
    """

    network: MemoryNetwork
    backends: Mapping[str, ScriptedBackend]
    configured: tuple[Backend, ...]
    transport: Ledger
    storage: ScriptedStorage
    factory: SessionFactory
    leaves_rows: bool = False
    leaves_sessions: bool = False

    def __getitem__(self, backend_id: str) -> ScriptedBackend:
        return self.backends[backend_id]

    def open_session(self, **options: Any) -> AbstractAsyncContextManager[Session]:
        return self.factory.open_session(self.configured, **options)

    async def make_session(self, **options: Any) -> Session:
        return await self.factory.make_session(self.configured, **options)

    async def restore_session(self, session_id: str, **options: Any) -> Session:
        return await self.factory.restore_session(session_id, self.configured, **options)


@asynccontextmanager
async def open_world(
    backends: Mapping[str, ScriptedBackend],
    *,
    settings: FactorySettings | None = None,
    storage: ScriptedStorage | None = None,
    auth: OutgoingAuth | None = None,
    handlers: ClientHandlers | None = None,
    configure: Callable[[Backend], Backend] = lambda backend: backend,
) -> AsyncIterator[World]:
    """A world that is checked when it ends: no task, request, connection, backend session or row is left.

    Backends that speak one era are pinned to it, and to their transport; `configure` may change the configuration.
    """
    storage = storage or ScriptedStorage()
    async with open_memory_network() as network:
        configured = tuple(
            configure(
                Backend(
                    id=backend_id,
                    url=network.attach(f"{backend_id}.test", backend),
                    era="auto" if backend.era == "both" else backend.era,
                    transport=backend.transport,
                )
            )
            for backend_id, backend in backends.items()
        )
        transport = Ledger(network)
        async with open_session_factory(
            transport=transport, storage=storage, settings=settings, auth=auth, handlers=handlers
        ) as factory:
            world = World(network, backends, configured, transport, storage, factory)
            yield world
        await assert_nothing_left(world)
        await transport.aclose()
        await wait_all_tasks_blocked()
        assert 0 == network.open_connections
        # A legacy backend goes on with a request that was not cancelled, and holds its connection until then.
        held = {name: backend.open_connections for name, backend in backends.items() if not backend.in_flight}
        assert dict.fromkeys(held, 0) == held


async def assert_nothing_left(world: World) -> None:
    """Fails if a task of the library, a request, a response, a backend session or a row is left. The factory may be
    open.
    """
    await wait_all_tasks_blocked()
    assert [] == library_tasks()
    assert 0 == world.transport.busy_connections
    assert {} == {name: backend.errors for name, backend in world.backends.items() if backend.errors}
    if not world.leaves_sessions:
        ids = world.transport.session_ids
        known = [ids[f"{name}.test"] & backend.sessions.keys() for name, backend in world.backends.items()]
        assert set() == set().union(*known)
    if not world.leaves_rows:
        assert [] == await world.storage.rows()
