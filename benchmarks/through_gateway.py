"""Clients → a gateway → backends: calls one after another and side by side, sessions, memory. For every gateway alike.

python through_gateway.py direct | relay | fastmcp_proxy | fastmcp_mounts | mcp_proxy

The gateway is a process of its own, of this environment, which begins and ends with every answer. Needs the standard
library only, as the load on every gateway must be the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gateway_client import Client
from memory import resident_of
from worker import Measures, serve
from workloads import TOOL

START_TIMEOUT = 60.0  # s
END_TIMEOUT = 10.0  # s
LISTENING = "listening on "
OPENING = 8  # sessions that open at the same time
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Gateway:
    """A running gateway.

    Attributes:
        urls: Where clients reach it; of `direct`, all backends.
        tools: Names that reach one backend after the other.
        process: None: there is no gateway between.
    """

    def __init__(self, urls: Sequence[str], tools: Sequence[str], process: int | None) -> None:
        self.urls = urls
        self.tools = tools
        self.process = process

    async def open(self, era: str) -> Caller:
        clients = [Client(url, era) for url in self.urls]
        for client in clients:
            await client.open()
        return Caller(clients, self.tools)

    def cpu(self) -> float:
        """s of CPU time of the process and its children so far; nan without Linux' /proc."""
        return sum(map(_cpu_of, self._processes()))

    def resident(self) -> float:
        return sum(map(resident_of, self._processes()))

    def _processes(self) -> list[int]:
        return [] if self.process is None else [self.process, *_children_of(self.process)]


class Caller:
    def __init__(self, clients: Sequence[Client], tools: Sequence[str]) -> None:
        self.clients = clients
        self.tools = tools

    async def call(self, index: int) -> float:
        """Call a tool of one backend; s that it took."""
        begun = time.perf_counter()
        await self.clients[index % len(self.clients)].call(self.tools[index % len(self.tools)])
        return time.perf_counter() - begun

    async def close(self) -> None:
        for client in self.clients:
            await client.close()


async def relayed(
    kind: str, urls: list[str], *, era: str, one: int, callers: int, each: int, sessions: int, warm: int = 2
) -> Measures:
    """Per call, in s. One after another: "wall_one", "p50_one", "p99_one"; `callers` side by side with `each` calls,
    after `warm` calls of each that do not count: "wall", "p50", "p99", and "cpu" of the gateway. For each of so many
    sessions: "session" s and "held" bytes. "rss": resident bytes of the gateway after the calls.
    """
    measures: Measures = {}
    async with GATEWAYS[kind](urls) as gateway:
        caller = await gateway.open(era)
        await _calls(caller, 1, 2)
        if warm:
            await _calls(caller, callers, warm)  # every connection is open
        measures |= {f"{name}_one": value for name, value in (await _calls(caller, 1, one)).items()}
        before = gateway.cpu()
        measures |= await _calls(caller, callers, each)
        if gateway.process is not None:
            measures["cpu"] = (gateway.cpu() - before) / (callers * each)
            measures["rss"] = gateway.resident()
            if sessions:
                measures |= await _sessions(gateway, era, sessions)
        await caller.close()
    return measures


async def _calls(caller: Caller, callers: int, each: int) -> Measures:
    taken: list[float] = []

    async def run(first: int) -> None:
        taken.extend([await caller.call(index) for index in range(first, first + each)])

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for first in range(callers):
            tasks.create_task(run(first))
    wall = (time.perf_counter() - begun) / (callers * each)
    taken.sort()
    return {"wall": wall, "p50": statistics.median(taken), "p99": taken[int(len(taken) * 0.99)]}


async def _sessions(gateway: Gateway, era: str, count: int) -> Measures:
    opened: list[Caller] = []
    left = iter(range(count))

    async def run() -> None:
        opened.extend([await gateway.open(era) for _ in left])

    before, begun = gateway.resident(), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(OPENING):
            tasks.create_task(run())
    measures = {"session": (time.perf_counter() - begun) / count, "held": (gateway.resident() - before) / count}
    for caller in opened:
        await caller.close()
    return measures


# --- the gateways


@asynccontextmanager
async def direct(urls: list[str]) -> AsyncIterator[Gateway]:
    yield Gateway(urls, [TOOL], None)


@asynccontextmanager
async def script(name: str, urls: list[str], *arguments: str) -> AsyncIterator[Gateway]:
    """A script that prints its URL once it serves, and ends when its stdin closes."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        name,
        *arguments,
        json.dumps(urls),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent,
    )
    assert process.stdin
    assert process.stdout
    try:
        async with asyncio.timeout(START_TIMEOUT):
            url = (await process.stdout.readline()).decode().strip()
        yield Gateway([url], [f"b{at}_{TOOL}" for at in range(len(urls))], process.pid)
    finally:
        process.stdin.close()
        await _end(process)


@asynccontextmanager
async def command(urls: list[str]) -> AsyncIterator[Gateway]:
    """`trio-vmcp serve`, with the backends in a file as most clients have it."""
    with TemporaryDirectory() as directory:
        file = _config_file(Path(directory), urls)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "trio_vmcp", "serve", "--config", file, "--port", "0",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout
        try:
            async with asyncio.timeout(START_TIMEOUT):
                listens, url = "", ""
                while not listens:
                    line = await process.stdout.readline()
                    assert line, "the command has ended"
                    _, listens, url = line.decode().strip().partition(LISTENING)
            yield Gateway([url], [f"b{at}_{TOOL}" for at in range(len(urls))], process.pid)
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await _end(process)


def _config_file(directory: Path, urls: list[str]) -> Path:
    file = directory / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {f"b{at}": {"url": url} for at, url in enumerate(urls)}}))
    return file


@asynccontextmanager
async def mcp_proxy(urls: list[str]) -> AsyncIterator[Gateway]:
    """A server over one program, which is mcp-proxy again, as the client of one backend: it has no way to many."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = Path(sys.executable).with_name("mcp-proxy")
    process = await asyncio.create_subprocess_exec(
        command, "--port", str(port), "--", command, "--transport", "streamablehttp", urls[0],
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await _until_reachable(port)
        yield Gateway([f"http://127.0.0.1:{port}/mcp"], [TOOL], process.pid)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await _end(process)


async def _until_reachable(port: int) -> None:
    async with asyncio.timeout(START_TIMEOUT):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def _end(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(END_TIMEOUT):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _children_of(pid: int) -> list[int]:
    found: list[int] = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, tasks.read_text().split()):
            found += [child, *_children_of(child)]
    return found


def _cpu_of(pid: int) -> float:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return float("nan")
    user, system = stat.rpartition(")")[2].split()[11:13]  # proc(5): utime and stime
    return (int(user) + int(system)) / TICKS


GATEWAYS: dict[str, Callable[[list[str]], Any]] = {
    "direct": direct,
    "library": command,
    "relay": partial(script, "gateway_relay.py"),
    "fastmcp_proxy": lambda urls: script("gateway_fastmcp.py", urls, "proxy"),
    "fastmcp_mounts": lambda urls: script("gateway_fastmcp.py", urls, "mounts"),
    "mcp_proxy": mcp_proxy,
}


def workload(kind: str) -> Callable[..., Awaitable[Measures]]:
    async def gateway(urls: list[str], spare: str, terms: dict[str, Any], **options: Any) -> Measures:
        return await relayed(kind, urls, **options)

    return gateway


if __name__ == "__main__":
    serve(lambda function: asyncio.run(function()), {"gateway": workload(sys.argv[1])})
