"""`trio-vmcp serve` as a process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from trio_vmcp import JSON

__all__ = ["SERVE", "serving", "write_servers"]

SERVE = (sys.executable, "-P", "-m", "trio_vmcp", "serve")
START_TIMEOUT = 60.0  # s; the machine may be busy
STOP_TIMEOUT = 15.0  # s; a server that has no request under way ends within one


def write_servers(place: Path, servers: Mapping[str, JSON]) -> str:
    """A file of the form that MCP clients share; its name."""
    file = place / "servers.json"
    file.write_text(json.dumps({"mcpServers": dict(servers)}))
    return str(file)


@asynccontextmanager
async def serving(place: Path, servers: Mapping[str, JSON], *options: str) -> AsyncIterator[str]:
    """The url of the endpoint over these servers, by their ids. Ended by SIGTERM, which must leave status 0.

    Args:
        place: A directory for the file of servers and the log.
    """
    command = [*SERVE, "--config", write_servers(place, servers), "--port", "0", *options]
    with (place / "serve.log").open("wb") as log:
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=log)
    try:
        with trio.fail_after(START_TIMEOUT):
            url = await _wait_listening(process, place)
        yield url
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(STOP_TIMEOUT):
            assert 0 == await process.wait(), (place / "serve.log").read_text()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        assert process.stdout is not None
        await process.stdout.aclose()


async def _wait_listening(process: trio.Process, place: Path) -> str:
    assert process.stdout is not None
    said = b""
    while b"listening on " not in said or not said.endswith(b"\n"):
        data = await process.stdout.receive_some()
        if not data:
            raise RuntimeError(f"serve has ended:\n{said.decode()}\n{(place / 'serve.log').read_text()}")
        said += data
    return said.rpartition(b"listening on ")[2].decode().strip()
