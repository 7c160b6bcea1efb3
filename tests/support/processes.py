"""Which processes are whose: every child of a test carries a mark in its environment, and so does what it starts."""

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
# -I -S: without what site adds, a Python starts in a third of the time.
PYTHON_OPTIONS = ("-I", "-S")


@attrs.define(eq=False)
class Children:
    """The processes of one test."""

    mark: str = attrs.field(factory=lambda: secrets.token_hex(8))

    def backend(self, *flags: str, backend_id: str = "b", **options: Any) -> Backend:
        """One that runs `children/plain.py`."""
        configured = {
            "command": sys.executable,
            "args": (*PYTHON_OPTIONS, str(SERVER), *flags),
            "era": "legacy",
            **options,
        }
        configured["env"] = {"TEST_MARK": self.mark, **configured.get("env", {})}
        return Backend(id=backend_id, transport="stdio", **configured)

    def alive(self) -> list[int]:
        """Who runs, grandchildren included. A zombie has no environment any more."""
        return [pid for pid in _numbers() if self.mark.encode() in _read(pid, "environ")]

    async def all_gone(self) -> bool:
        """Whether nobody is left: killed, an orphan takes a moment to go."""
        with trio.move_on_after(2):
            while self.alive():  # noqa: ASYNC110  # nothing tells when a process that is not our child ends
                await trio.sleep(0.005)
        return not self.alive() and not zombies()

    def kill_all(self) -> None:
        for pid in self.alive():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def zombies() -> list[int]:
    """Our own children that have ended, and that nobody has waited for."""
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
    except OSError:  # it has ended meanwhile
        return b""


@contextmanager
def marked_children() -> Iterator[Children]:
    """At the end whoever is left is killed; that nobody is left is for the test to say."""
    children = Children()
    try:
        yield children
    finally:
        children.kill_all()
