"""The processes of a test: every child carries a mark in its environment, which its own children inherit."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from trio_vmcp import Backend

PROC = Path("/proc")
SERVER = Path(__file__).parent / "children" / "plain.py"
# -I -S: without `site`, Python starts in a third of the time.
PYTHON_OPTIONS = ("-I", "-S")


@attrs.define(eq=False)
class Children:
    """The processes of one test."""

    mark: str = attrs.field(factory=lambda: secrets.token_hex(8))

    def backend(self, *flags: str, backend_id: str = "b", **options: Any) -> Backend:
        """A backend that runs `children/plain.py`."""
        configured = {
            "command": sys.executable,
            "args": (*PYTHON_OPTIONS, str(SERVER), *flags),
            "era": "legacy",
            **options,
        }
        configured["env"] = {"TEST_MARK": self.mark, **configured.get("env", {})}
        return Backend(id=backend_id, transport="stdio", **configured)

    def alive(self) -> list[int]:
        """The running processes of this test, grandchildren included. A zombie's environment is empty."""
        return [pid for pid in _numbers() if self.mark.encode() in _read(pid, "environ")]

    async def all_gone(self) -> bool:
        """Whether all have ended; an orphan takes a moment after it is killed."""
        with trio.move_on_after(2):
            while self.alive():  # noqa: ASYNC110  # nothing tells when a process that is not our child ends
                await trio.sleep(0.005)
        return not self.alive() and not zombies()

    def kill_all(self) -> None:
        for pid in self.alive():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def zombies() -> list[int]:
    """Children of this process that have ended and were not waited for."""
    found = []
    for pid in _numbers():
        _, _, fields = _read(pid, "stat").rpartition(b") ")
        state, parent, *_ = [*fields.split(), b"", b""]
        if state == b"Z" and parent == str(os.getpid()).encode():
            found.append(pid)
    return found


def _numbers() -> Iterator[int]:
    yield from (int(entry) for entry in os.listdir(PROC) if entry.isdecimal())


def _read(pid: int, name: str) -> bytes:
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:  # the process has ended meanwhile
        return b""


@contextmanager
def marked_children() -> Iterator[Children]:
    """Kills the processes that are left at the end. A test has to check that none is."""
    children = Children()
    try:
        yield children
    finally:
        children.kill_all()
