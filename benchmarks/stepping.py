"""The workload of `bench_steps.py`: the longest step of any task, for the most that backends may send.

A step is the time in which a task runs without a checkpoint, so that every other task waits. In CPU time of the thread,
since a busy machine is no fault of a step, and without the pauses of Python's cyclic garbage collector: these go with
all objects of the program, and come in whichever step makes the next object. In virtual time, over a transport and a
connector that have their answers made beforehand.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import trio
from trio.testing import MockClock
from worker import Measures

from trio_vmcp import (
    Backend,
    BackendRecord,
    Bare,
    FactorySettings,
    LocalStorage,
    open_session_factory,
)

MOST_BYTES, MOST_VALUES, MOST_ITEMS = 16 * 1024 * 1024, 100_000, 9_990  # with room for what stands around them
CHUNK = 64 * 1024
LISTS: dict[str, tuple[str, Callable[[str, int], dict[str, Any]]]] = {  # the array, and how an entry is made
    "tools/list": ("tools", lambda mark, at: {"name": f"{mark}{at}", "inputSchema": {"type": "object"}}),
    "prompts/list": ("prompts", lambda mark, at: {"name": f"{mark}{at}"}),
    "resources/list": ("resources", lambda mark, at: {"uri": f"x://{mark}/{at}", "name": "x"}),
    "resources/templates/list": (
        "resourceTemplates",
        lambda mark, at: {"uriTemplate": f"x://{mark}/{at}/{{y}}", "name": "x"},
    ),
}
EVERYTHING: dict[str, Any] = {kind: {"listChanged": True} for kind in ("tools", "prompts", "resources")}


class Steps(trio.abc.Instrument):
    """The longest step so far, in s of CPU."""

    def __init__(self) -> None:
        self.longest = self._begun = self._collected = self._collecting = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._collected = 0.0
        self._begun = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._begun:  # else it is the step that has added this instrument
            self.longest = max(self.longest, time.thread_time() - self._begun - self._collected)

    def on_collector(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = time.thread_time()
        else:
            self._collected += time.thread_time() - self._collecting


@asynccontextmanager
async def measuring(measures: Measures, name: str) -> AsyncIterator[None]:
    steps = Steps()
    gc.callbacks.append(steps.on_collector)
    trio.lowlevel.add_instrument(steps)
    try:
        await trio.lowlevel.checkpoint()  # the step that adds an instrument does not count
        yield
        await trio.lowlevel.checkpoint()
    finally:
        trio.lowlevel.remove_instrument(steps)
        gc.callbacks.remove(steps.on_collector)
    measures[name] = max(measures.get(name, 0.0), steps.longest)


# --- what one message may hold, over HTTP


class Body(httpx.AsyncByteStream):
    def __init__(self, *parts: bytes) -> None:
        self.parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:  # noqa: ASYNC900  # httpx's interface
        for part in self.parts:
            for start in range(0, len(part), CHUNK):
                await trio.lowlevel.checkpoint()
                yield part[start : start + CHUNK]


class Transport(httpx.AsyncBaseTransport):
    """A backend whose results were made beforehand, by method. With `is_batch`, those of calls come in a batch."""

    def __init__(self, version: str, results: dict[str, bytes], capabilities: object) -> None:
        introduction = {"capabilities": capabilities, "serverInfo": {"name": "x", "version": "1"}}
        self.is_batch = version == "2025-03-26"
        self.results = {
            "initialize": json.dumps({**introduction, "protocolVersion": version}).encode(),
            "server/discover": json.dumps({**introduction, "supportedVersions": [version]}).encode(),
            "tools/list": b'{"tools":[{"name":"x","inputSchema":{"type":"object"}}]}',
            **results,
        }

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        message = json.loads(await request.aread()) if request.method == "POST" else {}
        if "id" not in message:
            return httpx.Response(202 if request.method == "POST" else 405)
        head = b'{"jsonrpc":"2.0","id":%d,"result":' % message["id"]
        around = (b"[", b"]") if self.is_batch and message["method"] == "tools/call" else (b"", b"")
        body = Body(around[0] + head, self.results[message["method"]], b"}" + around[1])
        return httpx.Response(200, headers={"content-type": "application/json"}, stream=body)


def joined(count: int, make: Callable[[int], str], brackets: str = "[]") -> str:
    return brackets[0] + ",".join(map(make, range(count))) + brackets[1]


def strings(size: int) -> str:
    each = size // (MOST_VALUES - 1000)
    return joined(MOST_VALUES - 1000, lambda _: '"' + "x" * (each - 4) + '"')


def escapes(size: int) -> str:
    each = size // (MOST_VALUES - 1000)
    return joined(MOST_VALUES - 1000, lambda _: '"' + r"\n" * (each // 2 - 2) + '"')


def wide(size: int) -> str:
    """One string. Python keeps it in four bytes for each character, since the last needs so many."""
    return '"' + "x" * (size - 4) + "\N{GRINNING FACE}" + '"'


def result(value: str, more: str = "") -> bytes:
    return f'{{"content":[],{more}"structuredContent":{{"x":{value}}}}}'.encode()


def one_tool(schema: str, more: str = "") -> bytes:
    return f'{{{more}"tools":[{{"name":"x","inputSchema":{{"type":"object",{schema}}}}}]}}'.encode()


KEYS = joined(MOST_VALUES - 1000, lambda at: f'"key{at:05}":{{}}', "{}")
FRESH = '"ttlMs":600000,"cacheScope":"public",'
MESSAGES: dict[str, tuple[str, dict[str, bytes], object]] = {  # by case: the version, results, capabilities
    "strings": ("2025-11-25", {"tools/call": result(strings(MOST_BYTES - 10_000))}, {"tools": {}}),
    "escapes": ("2025-11-25", {"tools/call": result(escapes(MOST_BYTES - 10_000))}, {"tools": {}}),
    "wide": ("2025-11-25", {"tools/call": result(wide(MOST_BYTES - 10_000))}, {"tools": {}}),
    "wide list": ("2026-07-28", {"tools/list": one_tool(f'"x":{wide(MOST_BYTES - 10_000)}', FRESH)}, {"tools": {}}),
    "keys": ("2025-11-25", {"tools/call": result(KEYS)}, {"tools": {}}),
    "batch": ("2025-03-26", {"tools/call": result(strings(MOST_BYTES - 10_000))}, {"tools": {}}),
    "messages": ("2025-03-26", {"tools/call": b"{}},7" + b",7" * 60_000 + b',{"x":{}'}, {"tools": {}}),
    "capabilities": ("2025-11-25", {}, {f"x{at}": {} for at in range(MOST_VALUES - 2000)}),
    "schema": ("2026-07-28", {"tools/list": one_tool(f'"properties":{KEYS}')}, {"tools": {}}),
    "headers": (
        "2026-07-28",
        {
            "tools/list": one_tool(
                '"properties":'
                + joined(MOST_VALUES // 4, lambda at: f'"k{at}":{{"type":"string","x-mcp-header":"H{at}"}}', "{}")
            )
        },
        {"tools": {}},
    ),
    "cached": ("2026-07-28", {"tools/list": one_tool(f'"x":{strings(7 * 1024 * 1024)}', FRESH)}, {"tools": {}}),
    "too large to cache": (
        "2026-07-28",
        {"tools/list": one_tool(f'"x":{strings(MOST_BYTES - 10_000)}', FRESH)},
        {"tools": {}},
    ),
}


async def receive(name: str) -> Measures:
    """Two sessions, one after the other: the second finds what the first has left in the cache."""
    measures: Measures = {}
    version, results, capabilities = MESSAGES[name]
    era = "modern" if version > "2026" else "legacy"
    transport = Transport(version, results, capabilities)
    backend = Backend("b", "http://b.test/mcp", era=era, listen=False)
    async with measuring(measures, name), open_session_factory(transport=transport) as factory:
        for _ in range(2):
            async with factory.open_session([backend]) as session:
                assert bool(session.failures) == (name == "capabilities")
                if "tools/call" in results:
                    await session.call_tool("b_x")
    return measures


# --- what the lists of several backends may hold, at the connector seam


class Connector:
    """Backends that all list the same: many entries of one list, and none of the others."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.clients: dict[str, Client] = {}
        self.list_anew("a")

    def list_anew(self, mark: str) -> None:
        make = LISTS[self.method][1]
        self.listed = [make(mark, at) for at in range(MOST_ITEMS)]

    async def __call__(self, backend: Backend, *, events: Callable[[str, dict[str, Any]], None], **_: Any) -> Client:
        await trio.lowlevel.checkpoint()
        client = self.clients[backend.id] = Client(backend, events, self)
        return client


class Client:
    def __init__(self, backend: Backend, events: Callable[[str, dict[str, Any]], None], connector: Connector) -> None:
        self.server_capabilities = EVERYTHING
        self.record = BackendRecord(backend.id, "id", "legacy", "2025-11-25", {}, "digest")
        self.events, self.connector = events, connector

    async def request(self, method: str, params: dict[str, Any], **options: Any) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return {LISTS[method][0]: self.connector.listed if method == self.connector.method else []}

    async def aclose(self, *, terminate: bool) -> None:
        await trio.lowlevel.checkpoint()


async def relist(method: str) -> Measures:
    """Four backends that claim each other's names: opened, changed, read, one of them removed, suspended, restored."""
    measures: Measures = {}
    connector, storage = Connector(method), LocalStorage()
    settings = FactorySettings(conflict_resolution=Bare(), idle_timeout=math.inf)
    backends = [Backend(f"b{at}", f"http://b{at}.test/") for at in range(4)]
    async with open_session_factory(connector=connector, settings=settings, storage=storage) as factory:
        async with measuring(measures, "opened"):
            session = await factory.make_session(backends)
            await trio.sleep(120)
        connector.list_anew("b")
        async with measuring(measures, "changed"):
            for client in connector.clients.values():
                for kind in EVERYTHING:
                    client.events(f"notifications/{kind}/list_changed", {})
            await trio.sleep(120)
        async with measuring(measures, "read"):
            read = (session.tools, session.prompts, session.resources, session.resource_templates, session.conflicts)
            assert MOST_ITEMS in map(len, read)
            assert session.routing_table is not None
        async with measuring(measures, "removed"):
            await session.remove_backend("b0")
            await trio.sleep(120)
        async with measuring(measures, "restored"):
            await session.suspend()
            session = await factory.restore_session(session.id, backends[1:])
            await trio.sleep(120)
        async with measuring(measures, "closed"):
            await session.aclose()
    return measures


def longest_steps(rounds: int) -> Measures:
    """s of CPU, by case: the median of the rounds."""
    logging.disable(logging.CRITICAL)
    cases: list[Callable[[], Awaitable[Measures]]] = [partial(receive, name) for name in MESSAGES]
    cases += [partial(relist, method) for method in LISTS]
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        together: Measures = {}
        for case in cases:
            for name, seconds in trio.run(case, clock=MockClock(autojump_threshold=0)).items():
                together[name] = max(together.get(name, 0.0), seconds)
        for name, seconds in together.items():
            found.setdefault(name, []).append(seconds)
    return {name: statistics.median(values) for name, values in found.items()}
