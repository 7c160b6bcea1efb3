"""A server process and what can be seen of it from outside, and a world of clients that reach it over loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import h11
import trio
from support.front import FrontWorld, Received

__all__ = ["LoopbackWorld", "ServerProcess", "open_server"]

START = 20.0  # s
PIECE = 65536  # bytes


@attrs.define(eq=False)
class ServerProcess:
    process: trio.Process
    host: str
    port: int
    _lines: Lines

    async def tasks(self) -> int:
        self.process.send_signal(signal.SIGUSR1)
        with trio.fail_after(START):
            while not (line := await self._lines.next()).startswith("{"):
                pass
        found: int = json.loads(line)["tasks"]
        return found

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def resident(self) -> int:
        """MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


@attrs.define(eq=False)
class Lines:
    stream: trio.abc.ReceiveStream
    _held: bytes = b""

    async def next(self) -> str:
        while b"\n" not in self._held:
            data = await self.stream.receive_some()
            assert data, f"the server has ended: {self._held!r}"
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return line.decode()


@asynccontextmanager
async def open_server(urls: Mapping[str, str], directory: Path) -> AsyncIterator[ServerProcess]:
    """`trio-vmcp serve` over these backends, on a free port. What it logs goes to a file beside its configuration."""
    config = directory / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {name: {"url": url} for name, url in urls.items()}}))
    command = [sys.executable, str(Path(__file__).with_name("command.py")), "serve", "--config", str(config)]
    with (directory / "server.log").open("wb") as log:
        process = await trio.lowlevel.open_process(
            [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=log, env=dict(os.environ)
        )
    try:
        lines = Lines(process.stdout)  # type: ignore[arg-type]  # a pipe: see above
        with trio.fail_after(START):
            while not (line := await lines.next()).startswith("listening on "):
                pass
        host, _, port = line.removeprefix("listening on http://").partition("/")[0].rpartition(":")
        yield ServerProcess(process, host, int(port), lines)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()  # type: ignore[union-attr]  # a pipe


@attrs.define(eq=False, kw_only=True)
class LoopbackWorld(FrontWorld):
    """Clients that send over connections of loopback, one for each request.

    Attributes:
        statuses: Of all replies; 0: the connection ended before one.
        unexpected: Statuses 5xx that no documentation has.
    """

    host: str
    port: int
    statuses: Counter[int] = attrs.field(factory=Counter, init=False)
    unexpected: list[str] = attrs.field(factory=list, init=False)

    async def _run(self, verb: str, path: str, body: bytes, headers: Any, received: Received) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when, received.gone, nursery.cancel_scope)
            # The reply, as far as it came, is judged by the client.
            with suppress(OSError, trio.BrokenResourceError, h11.RemoteProtocolError):
                await self._exchange(verb, path, body, dict(headers), received)
            nursery.cancel_scope.cancel()
        self._note(received)
        received.done.set()
        received._news.set()

    def _note(self, received: Received) -> None:
        self.statuses[received.status] += 1
        is_documented = received.status == 503 and "retry-after" in received.headers
        if received.status >= 500 and not is_documented:
            self.unexpected.append(f"{received.status}: {received.body[:200]!r}")

    async def _exchange(self, verb: str, path: str, body: bytes, headers: dict[str, str], received: Received) -> None:
        connection = h11.Connection(h11.CLIENT)
        more = {"host": f"{self.host}:{self.port}", "content-length": str(len(body)), "connection": "close"}
        request = h11.Request(method=verb, target=path, headers=[*(headers | more).items()])
        async with await trio.open_tcp_stream(self.host, self.port) as stream:
            for event in (request, h11.Data(data=body), h11.EndOfMessage()):
                await stream.send_all(connection.send(event) or b"")
            while True:
                match connection.next_event():
                    case h11.NEED_DATA:
                        connection.receive_data(await stream.receive_some(PIECE))
                    case h11.Response(status_code=status, headers=found):
                        received.take({"type": "http.response.start", "status": status, "headers": [*found]})
                    case h11.Data(data=data):
                        received.take({"type": "http.response.body", "body": bytes(data), "more_body": True})
                    case _:
                        return


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
