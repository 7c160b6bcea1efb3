"""Servers by other authors: what they are, how they are started and stopped, and which calls are compared on them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeAlias

import attrs

from trio_vmcp import JSON, Backend

Era: TypeAlias = Literal["legacy", "modern"]
Transport: TypeAlias = Literal["streamable-http", "sse"]

START_TIMEOUT = 60.0  # s; the slowest takes 3 s here, to import pydantic and the rest
STOP_TIMEOUT = 5.0  # s from SIGTERM to SIGKILL
POLL_INTERVAL = 0.05  # s
# Below the range of ephemeral ports: while a server is down, no other process gets its port, and a client that retries
# the port does not connect to itself (TCP simultaneous open, which loopback allows).
PORTS = range(20_000, 30_000)
HERE = Path(__file__).parent


def tool(name: str, arguments: JSON) -> JSON:
    return {"method": "tools/call", "name": name, "arguments": arguments}


def resource(uri: str) -> JSON:
    return {"method": "resources/read", "uri": uri}


def prompt(name: str, arguments: JSON) -> JSON:
    return {"method": "prompts/get", "name": name, "arguments": arguments}


def completion(name: str, argument: str, value: str) -> JSON:
    return {"method": "completion/complete", "name": name, "argument": {"name": argument, "value": value}}


# Of servers/offer.py: text, structured, image, error, progress; text, blob, template, error.
PYTHON_CALLS = (
    tool("echo", {"message": "naïve ☕\u2028second line"}),
    tool("add", {"a": 2, "b": 40}),
    tool("city", {"name": "Łódź"}),
    tool("pixel", {}),
    tool("fail", {"why": "because"}),
    tool("add", {"a": "not a number"}),
    tool("count", {"to": 3}),
    resource("note://today"),
    resource("data://pixel"),
    resource("greeting://you"),
    resource("greeting://nobody"),
    prompt("review", {"code": "x = 1"}),
    prompt("review", {"code": "x = 1", "style": "strict"}),
)
COMPLETIONS = (completion("review", "style", "k"),)
EVERYTHING_CALLS = (
    tool("echo", {"message": "naïve ☕\u2028second line"}),
    tool("get-sum", {"a": 2, "b": 40}),
    tool("get-sum", {"a": "not a number"}),
    tool("get-structured-content", {"location": "New York"}),
    tool("get-tiny-image", {}),
    tool("get-annotated-message", {"messageType": "error", "includeImage": True}),
    tool("get-resource-links", {"count": 3}),
    tool("trigger-long-running-operation", {"duration": 0.5, "steps": 3}),
    resource("demo://resource/static/document/features.md"),
    resource("demo://resource/dynamic/text/not-a-number"),
    prompt("simple-prompt", {}),
    prompt("args-prompt", {"city": "Łódź"}),
    prompt("completable-prompt", {"department": "Engineering", "name": "Alice"}),
    completion("completable-prompt", "department", "E"),
)


@attrs.frozen(kw_only=True)
class Server:
    """One server and how to start it.

    Attributes:
        home: The environment that the nox session made for it, below `INTEROP_HOMES`.
        command: With `{home}`, `{here}` and `{port}` filled in; node's server takes its port from PORT.
        eras: What it speaks, the newest last: what a probe should find.
        stops_in: The eras in which giving a call up stops the tool.
        visit: A tool that fetches a page once, and its argument that names the page: so its executions can be counted.
        calls: The answers to these are compared, so they must not hold the time of day.
        transport, path: As in `Backend`, and of the url.
    """

    name: str
    home: str
    command: tuple[str, ...]
    eras: tuple[Era, ...]
    stops_in: tuple[Era, ...]
    visit: tuple[str, str] = ("visit", "url")
    calls: tuple[JSON, ...] = attrs.field(default=(), repr=False, hash=False)
    transport: Transport = "streamable-http"
    path: str = "/mcp"

    def command_line(self, port: int) -> list[str]:
        home = homes() / self.home
        return [part.format(home=home, here=HERE, port=port) for part in self.command]


BOTH: tuple[Era, ...] = ("legacy", "modern")
LEGACY: tuple[Era, ...] = ("legacy",)
PYTHON = "{home}/bin/python"
EVERYTHING = "{home}/node_modules/@modelcontextprotocol/server-everything/dist/index.js"

SERVERS = (
    Server(
        name="mcp2-sse",
        home="mcp2",
        command=(PYTHON, "{here}/servers/mcp2.py", "{port}", "sse"),
        eras=BOTH,
        stops_in=BOTH,
        calls=PYTHON_CALLS + COMPLETIONS,
    ),
    Server(
        name="mcp2-json",
        home="mcp2",
        command=(PYTHON, "{here}/servers/mcp2.py", "{port}", "json"),
        eras=BOTH,
        stops_in=LEGACY,  # answering JSON in the modern era, mcp 2.3 does not look whether its client is still there
        calls=PYTHON_CALLS + COMPLETIONS,
    ),
    Server(
        name="mcp1-sse",
        home="mcp1",
        command=(PYTHON, "{here}/servers/mcp1.py", "{port}", "sse"),
        eras=LEGACY,
        stops_in=LEGACY,
        calls=PYTHON_CALLS + COMPLETIONS,
    ),
    Server(
        name="mcp1-json",
        home="mcp1",
        command=(PYTHON, "{here}/servers/mcp1.py", "{port}", "json"),
        eras=LEGACY,
        stops_in=LEGACY,
        calls=PYTHON_CALLS + COMPLETIONS,
    ),
    Server(
        name="fastmcp",
        home="fastmcp",
        command=(PYTHON, "{here}/servers/fastmcp_pages.py", "{port}"),
        eras=BOTH,
        stops_in=BOTH,
        calls=PYTHON_CALLS,
    ),
    Server(
        name="everything",
        home="node",
        command=("node", EVERYTHING, "streamableHttp"),
        eras=LEGACY,
        stops_in=(),  # none of its tools waits for ever
        visit=("gzip-file-as-resource", "data"),
        calls=EVERYTHING_CALLS,
    ),
)


EVERYTHING_BESIDE = EVERYTHING.replace("{home}", "{home}/../node")
SUPERGATEWAY = ("{home}/node_modules/.bin/supergateway", "--stdio", f"node {EVERYTHING} stdio", "--port", "{port}")
FETCHES = ("gzip-file-as-resource", "data")
# Of other SDK generations, and gateways to programs.
MORE_SERVERS = (
    Server(
        name="fastmcp2",
        home="mcp1",
        command=(PYTHON, "{here}/servers/older.py", "{port}", "fastmcp", "streamable-http"),
        eras=LEGACY,
        stops_in=LEGACY,
    ),
    Server(
        name="mcp1-early",
        home="mcp1-early",
        command=(PYTHON, "{here}/servers/older.py", "{port}", "mcp", "sse"),
        eras=LEGACY,
        stops_in=LEGACY,
        transport="sse",
        path="/sse",
    ),
    Server(
        name="supergateway-sse",
        home="node",
        command=(*SUPERGATEWAY, "--outputTransport", "sse"),
        eras=LEGACY,
        stops_in=(),
        visit=FETCHES,
        transport="sse",
        path="/sse",
    ),
    Server(
        name="supergateway-http",
        home="node",
        command=(*SUPERGATEWAY, "--outputTransport", "streamableHttp", "--stateful"),
        eras=LEGACY,
        stops_in=(),
        visit=FETCHES,
    ),
    Server(
        name="mcp-proxy",
        home="mcp1",
        command=(
            "{home}/bin/mcp-proxy",
            "--port",
            "{port}",
            "--",
            "node",
            EVERYTHING_BESIDE,
            "stdio",
        ),
        eras=LEGACY,
        stops_in=(),
        visit=FETCHES,
        transport="sse",
        path="/sse",
    ),
)


def homes() -> Path:
    """Where the environments of the servers and of the official client are."""
    try:
        return Path(os.environ["INTEROP_HOMES"])
    except KeyError:
        raise RuntimeError("these tests need the environments that `nox -s interop` makes; run that") from None


def free_port() -> int:
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no port of {PORTS} is free")


@attrs.define(eq=False)
class Running:
    """A server on a port of loopback, which it keeps when it is started again. Blocking."""

    server: Server
    log: Path
    port: int = attrs.field(factory=free_port)
    _process: subprocess.Popen[bytes] | None = attrs.field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.server.path}"

    def backend(self, backend_id: str, era: Era | Literal["auto"] = "auto") -> Backend:
        return Backend(id=backend_id, url=self.url, transport=self.server.transport, era=era)

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command = self.server.command_line(self.port)
        if shutil.which(command[0]) is None:
            raise RuntimeError(
                f"{self.server.name} needs {command[0]!r}, which is not there; `nox -s interop` makes what it can"
            )
        with self.log.open("ab") as output:
            environment = os.environ | {"PORT": str(self.port)}
            self._process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        self._wait_until_listening(self._process)

    def kill(self) -> None:
        """End it without a warning, whatever it is at."""
        assert self._process is not None
        self._signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End it, politely at first."""
        if self._process is not None:
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.kill()

    def _signal(self, number: int) -> None:
        """To all processes of the server: a gateway has one more."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _wait_until_listening(self, process: subprocess.Popen[bytes]) -> None:
        """Poll for a TCP connection, at most START_TIMEOUT, and no longer than the process lives."""
        for _ in range(int(START_TIMEOUT / POLL_INTERVAL)):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=START_TIMEOUT).close()
            except OSError:
                try:
                    status = process.wait(POLL_INTERVAL)  # the pause between two tries, unless it died
                except subprocess.TimeoutExpired:
                    continue
                raise RuntimeError(f"{process.args!r} ended with status {status}:\n{self._last_words()}") from None
            else:
                return
        raise RuntimeError(f"{process.args!r} does not listen after {START_TIMEOUT} s:\n{self._last_words()}")

    def _last_words(self) -> str:
        return self.log.read_text()[-2000:]


@contextmanager
def running(server: Server, log: Path) -> Iterator[Running]:
    """Run a server, and whatever it is started again as, until the block ends."""
    it = Running(server, log)
    try:
        it.start()
        yield it
    finally:
        it.stop()
