"""A connector and client without a network, as an application would write them, with a script for each moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import trio

from trio_vmcp import JSON, Backend, BackendConnector, BackendRecord, EventSink, Identity, OnProgress

ECHO: JSON = {"name": "echo", "inputSchema": {"type": "object"}}
Script = Callable[[], Awaitable[object]]


async def _at_once() -> None:
    await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class PlainClient:
    """A `BackendClient` without a network: it lists its `tools`, and answers calls with their params."""

    record: BackendRecord
    server_capabilities: JSON
    on_request: Script = _at_once
    on_close: Script = _at_once
    closed: list[bool] = attrs.field(factory=list)  # one `terminate` for every close
    tools: Sequence[JSON] = (ECHO,)
    methods: list[str] = attrs.field(factory=list)  # of its requests

    async def request(
        self, method: str, params: JSON, *, identity: Identity | None, timeout: float, on_progress: OnProgress | None
    ) -> JSON:
        self.methods.append(method)
        if method == "tools/list":
            await trio.lowlevel.checkpoint()
            return {"tools": list(self.tools)}
        await self.on_request()
        return {"content": [], "structuredContent": params}

    async def aclose(self, *, terminate: bool) -> None:
        self.closed.append(terminate)
        await self.on_close()


@attrs.define(eq=False)
class PlainConnector:
    """A connector of a user's own.

    Attributes:
        on_connect: What it does before it has a client, by backend id.
        services: What it starts in the nursery that it is given, by backend id.
        started: When it was asked for each backend, in order.
        tools: What each backend lists.
        capabilities: What each backend declares.
    """

    on_connect: dict[str, Script] = attrs.field(factory=dict)
    on_request: dict[str, Script] = attrs.field(factory=dict)
    on_close: dict[str, Script] = attrs.field(factory=dict)
    services: dict[str, Script] = attrs.field(factory=dict)
    clients: dict[str, PlainClient] = attrs.field(factory=dict)
    started: dict[str, float] = attrs.field(factory=dict)
    tools: Sequence[JSON] = (ECHO,)
    capabilities: JSON = attrs.field(factory=lambda: {"tools": {}})
    connecting: int = 0
    most_connecting: int = 0

    async def __call__(
        self,
        backend: Backend,
        *,
        identity: Identity | None,
        resume: BackendRecord | None,
        nursery: trio.Nursery,
        events: Callable[[str, JSON], None],
    ) -> PlainClient:
        self.started[backend.id] = trio.current_time()
        self.connecting += 1
        self.most_connecting = max(self.most_connecting, self.connecting)
        try:
            await self.on_connect.get(backend.id, _at_once)()
        finally:
            self.connecting -= 1
        capabilities = dict(self.capabilities)
        client = PlainClient(
            BackendRecord(backend.id, None, "modern", "2026-07-28", capabilities, "digest"),
            capabilities,
            self.on_request.get(backend.id, _at_once),
            self.on_close.get(backend.id, _at_once),
            tools=self.tools,
        )
        self.clients[backend.id] = client
        if backend.id in self.services:
            nursery.start_soon(self.services[backend.id])
        return client


@attrs.define(eq=False)
class PropertyClient:
    """A client of the handshake era, with an attribute that runs a script whenever it is read."""

    inner: PlainClient
    name: str
    on_read: Callable[[], object]

    @property
    def record(self) -> BackendRecord:
        self._read("record")
        return attrs.evolve(self.inner.record, session_id="s", era="legacy")

    @property
    def server_capabilities(self) -> JSON:
        self._read("server_capabilities")
        return self.inner.server_capabilities

    def _read(self, name: str) -> None:
        if name == self.name:
            self.on_read()

    async def request(self, method: str, params: JSON, **more: Any) -> JSON:
        return await self.inner.request(method, params, **more)

    async def aclose(self, *, terminate: bool) -> None:
        await self.inner.aclose(terminate=terminate)


@attrs.define(eq=False)
class PropertyConnector:
    """
    Attributes:
        name: That attribute.
        sinks: The event sink of each client, in order.
    """

    name: str
    on_read: Callable[[], object]
    inner: PlainConnector = attrs.field(factory=PlainConnector)
    sinks: list[EventSink] = attrs.field(factory=list)

    async def __call__(self, backend: Backend, **wanted: Any) -> PropertyClient:
        self.sinks.append(wanted["events"])
        return PropertyClient(await self.inner(backend, **wanted), self.name, self.on_read)


def _is_connector(connector: PlainConnector) -> BackendConnector:  # for the type checker
    return connector


def plain_backends(count: int) -> list[Backend]:
    return [Backend(id=f"b{number}", url=f"http://b{number}.test/mcp") for number in range(count)]
