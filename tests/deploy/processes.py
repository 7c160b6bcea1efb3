"""Instances as processes, and requests to them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import zip_longest
from pathlib import Path

import attrs
import httpx
import trio

INSTANCE = Path(__file__).parent / "instance.py"
LIMIT = 20.0  # s for a request: an opening is bounded by the settings of the factory, and the machine may be busy


@attrs.define(eq=False)
class Instance:
    """A process that runs instance.py.

    Attributes:
        port: 0: a free one, another after each start.
        is_up: It was started, and not killed since.
    """

    name: str
    redis: str
    backends: Sequence[tuple[str, str]]
    port: int = 0
    is_up: bool = False
    _process: trio.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, nursery: trio.Nursery, port: int = 0) -> None:
        """Returns when it accepts connections."""
        backends = [f"--backend={backend_id}={url}" for backend_id, url in self.backends]
        command = [sys.executable, "-P", str(INSTANCE), f"--name={self.name}", f"--port={port}"]
        command += [f"--redis={self.redis}", *backends]
        process: trio.Process = await nursery.start(
            partial(trio.run_process, command, stdin=None, stdout=subprocess.PIPE, check=False)
        )
        self._process = process
        assert process.stdout is not None
        line = b""
        with trio.fail_after(120):  # on a machine with nothing else to do it takes a second
            while not line.endswith(b"\n"):
                data = await process.stdout.receive_some()
                assert data, f"instance {self.name} did not start"
                line += data
        self.port, self.is_up = int(line.split()[1]), True

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        self.is_up = False
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            assert self._process.stdout is not None
            await self._process.stdout.aclose()
            self._process = None

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)


@asynccontextmanager
async def running(*instances: Instance, ports: Sequence[int] = ()) -> AsyncIterator[trio.Nursery]:
    """The instances, until the end of the block, and the nursery in which they can be started again."""
    async with trio.open_nursery() as nursery:
        try:
            async with trio.open_nursery() as starting:
                for instance, port in zip_longest(instances, ports, fillvalue=0):
                    assert isinstance(instance, Instance)
                    starting.start_soon(instance.start, nursery, port)
            yield nursery
        finally:
            with trio.CancelScope(shield=True):
                for instance in instances:
                    await instance.kill()


@attrs.define(eq=False)
class Client:
    """Requests of users to an instance, or to a balancer."""

    _http: httpx.AsyncClient

    async def create(self, base: str, user: str) -> str | None:
        """The id of a new session. None: it is not known whether there is one."""
        response = await self._ask("POST", f"{base}/sessions", user)
        return response.headers["mcp-session-id"] if response is not None and response.status_code == 201 else None

    async def call(self, base: str, user: str, session_id: str) -> int:
        """The status; 0: the connection broke."""
        return (await self.call_and_place(base, user, session_id))[0]

    async def call_and_place(self, base: str, user: str, session_id: str) -> tuple[int, str]:
        """The status, and which instance gave it ("": none, but the balancer)."""
        body = {"tool": "b0_echo", "arguments": {}}
        response = await self._ask("POST", f"{base}/call", user, session_id, json=body)
        return (0, "") if response is None else (response.status_code, response.headers.get("x-instance", ""))

    async def set_attributes(self, base: str, user: str, session_id: str, attributes: dict[str, str]) -> int:
        response = await self._ask("POST", f"{base}/attributes", user, session_id, json=attributes)
        return 0 if response is None else response.status_code

    async def terminate(self, base: str, user: str, session_id: str) -> int:
        response = await self._ask("DELETE", f"{base}/session", user, session_id)
        return 0 if response is None else response.status_code

    async def _ask(
        self, verb: str, url: str, user: str, session_id: str = "", json: object = None
    ) -> httpx.Response | None:
        headers = {"x-user": user, **({"mcp-session-id": session_id} if session_id else {})}
        try:
            return await self._http.request(verb, url, headers=headers, json=json)
        except httpx.TransportError:
            return None


@asynccontextmanager
async def open_client() -> AsyncIterator[Client]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # a killed instance leaves no connection
    async with httpx.AsyncClient(limits=limits, timeout=LIMIT, trust_env=False) as http:
        yield Client(http)
