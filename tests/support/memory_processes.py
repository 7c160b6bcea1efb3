"""Child processes without an operating system, in virtual time: what Trio starts while a test or a history runs.

Two calls are replaced, `trio.lowlevel.open_process` and `os.killpg`. The library starts, supervises and ends a process
with its own code. Facts that the replacement keeps:

- A process starts in a thread that a cancel does not abandon: there is no process, or the starting task has it.
- The exit of a process breaks its stdin for the writer. Its stdout ends when no process holds the pipe any more; a
  helper that it has started holds the pipe, too, until the whole group is killed.
- A process is a zombie until a task has waited for it, and the number of its group is not given to another process.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Literal, TypeAlias

import attrs
import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_one_way_pair

__all__ = ["Manners", "MemoryProcess", "ProcessTable", "Program", "memory_processes"]

Manners: TypeAlias = Literal["polite", "deaf", "stubborn", "parent"]
"""How a process takes its end.

polite    It leaves when its stdin ends.
deaf      It leaves on SIGTERM.
stubborn  It does not leave.
parent    As polite, and leaves behind a process that holds its output open.
"""

LAST_WISH = 0.05  # s from SIGTERM to the exit


@attrs.frozen(eq=False)
class Program:
    """What a command starts.

    Attributes:
        main: One run over stdin and stdout; returns the exit status, and is cancelled when the process is killed.
        manners: How its processes end, unless one is changed.
        is_there: Whether the command can be started.
        says: What a process writes to stderr when it starts, made of its environment.
    """

    main: Callable[[MemoryProcess, trio.abc.Stream], Awaitable[int]]
    manners: Manners
    is_there: Callable[[], bool]
    says: Callable[[Mapping[str, str]], str]


@attrs.define(eq=False)
class MemoryProcess:
    """The part of `trio.Process` that the library uses.

    Attributes:
        stdin, stdout, stderr: The ends of the pipes that the library holds.
        manners: How this process ends.
        returncode: None while the process runs; below 0, the signal that ended it.
        was_reaped: A task has waited for the process.
        opened_by: The task that has started the process.
        has_helper: A process that this one has started is left.
        ended_by_itself: The process ended without a signal and without the end of its stdin.
    """

    pid: int
    command: str
    stdin: trio.abc.SendStream
    stdout: trio.abc.ReceiveStream
    stderr: trio.abc.ReceiveStream
    program: Program
    opened_by: trio.lowlevel.Task
    _pipes: tuple[MemoryReceiveStream, MemorySendStream, MemorySendStream] = attrs.field(alias="pipes")
    manners: Manners = attrs.field(init=False)
    returncode: int | None = attrs.field(default=None, init=False)
    was_reaped: bool = attrs.field(default=False, init=False)
    has_helper: bool = attrs.field(init=False)
    ended_by_itself: bool = attrs.field(default=False, init=False)
    _status: int = attrs.field(default=-signal.SIGKILL, init=False)  # of a run that is cancelled
    _life: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _asked_to_end: trio.Event = attrs.field(factory=trio.Event, init=False)
    _over: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self.manners = self.program.manners
        self.has_helper = self.manners == "parent"

    @property
    def is_ending(self) -> bool:
        """A signal asked the process to end, and it listens to signals."""
        return self._asked_to_end.is_set()

    async def wait(self) -> int:
        await self._over.wait()
        assert self.returncode is not None
        self.was_reaped = True
        return self.returncode

    async def run(self, env: Mapping[str, str]) -> None:
        """Run the program from its start to its exit."""
        stdin, stdout, stderr = self._pipes
        status: int = -signal.SIGTERM
        try:
            with self._life:
                await stderr.send_all(self.program.says(env).encode())
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._end_when_asked, nursery.cancel_scope)
                    status = await self.program.main(self, trio.StapledStream(stdout, stdin))
                    if status == 0 and self.manners in ("deaf", "stubborn"):  # its stdin has ended
                        status = -signal.SIGTERM
                        await trio.sleep_forever()
                    nursery.cancel_scope.cancel()
            if self._life.cancelled_caught:
                status = self._status
        finally:
            self.returncode = status
            for pipe in self._pipes[:1] if self.has_helper else self._pipes:
                pipe.close()
            self._over.set()

    def end(self, status: int) -> None:
        """Exit at once, without having been asked to."""
        self._status, self.ended_by_itself = status, True
        self._life.cancel(reason="it ends")

    def vanish(self) -> None:
        """End with everything around it, as in a container that is removed."""
        self.has_helper, self.was_reaped = False, True
        self.end(-signal.SIGKILL)

    def take(self, number: int) -> None:
        """Deliver a signal to the whole group.

        Raises:
            ProcessLookupError: The group is empty.
        """
        if self.was_reaped and not self.has_helper:
            raise ProcessLookupError(errno.ESRCH, "No such process")
        if number == signal.SIGKILL:
            self._life.cancel(reason="SIGKILL")
            if self.has_helper:
                self.has_helper = False
                if self.returncode is not None:
                    for pipe in self._pipes[1:]:
                        pipe.close()
        elif self.manners != "stubborn":
            self._asked_to_end.set()

    async def _end_when_asked(self, scope: trio.CancelScope) -> None:
        await self._asked_to_end.wait()
        await trio.sleep(LAST_WISH)
        scope.cancel(reason="SIGTERM")


@attrs.define(eq=False)
class ProcessTable:
    """Every process that was started.

    Attributes:
        programs: By command.
    """

    programs: dict[str, Program] = attrs.field(factory=dict, init=False)
    processes: list[MemoryProcess] = attrs.field(factory=list, init=False)
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    _on_end: Callable[[MemoryProcess], None] = attrs.field(default=lambda process: None, init=False)
    _pids: Iterator[int] = attrs.field(factory=lambda: itertools.count(1000), init=False)

    @property
    def alive(self) -> tuple[int, ...]:
        """Processes that run, that are zombies, or that have left a helper behind."""
        return tuple(p.pid for p in self.processes if not p.was_reaped or p.has_helper)

    @asynccontextmanager
    async def running_in_virtual_time(self, on_end: Callable[[MemoryProcess], None]) -> AsyncIterator[None]:
        """Processes live in this block. Leaving the block ends those that are left.

        Args:
            on_end: Called with every process that ends.
        """
        self._on_end = on_end
        async with trio.open_nursery() as self._nursery:
            yield
            self._nursery.cancel_scope.cancel()

    def forget(self) -> None:
        """Drop all references to a run, so that one that hangs for ever can be collected."""
        self.programs.clear()
        self.processes.clear()
        self._nursery, self._on_end = None, lambda process: None

    def running(self, command: str | None) -> list[MemoryProcess]:
        """The processes of a command, oldest first."""
        program = self.programs.get(command or "")
        return [process for process in self.processes if process.program is program and process.returncode is None]

    async def open_process(self, command: Sequence[str], *, env: Mapping[str, str], **options: object) -> MemoryProcess:
        """Replace `trio.lowlevel.open_process`, with the options that the library uses."""
        assert self._nursery is not None
        assert options["start_new_session"]
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):  # the thread
            await trio.lowlevel.checkpoint()
        program = self.programs[command[0]]
        if not program.is_there():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
        to_it, stdin = memory_stream_one_way_pair()
        stdout, from_it = memory_stream_one_way_pair()
        stderr, noise = memory_stream_one_way_pair()
        pipes = (stdin, stdout, stderr)
        opened_by = trio.lowlevel.current_task()
        process = MemoryProcess(next(self._pids), command[0], to_it, from_it, noise, program, opened_by, pipes=pipes)
        self.processes.append(process)
        self._nursery.start_soon(self._run, process, dict(env))
        return process

    async def _run(self, process: MemoryProcess, env: Mapping[str, str]) -> None:
        try:
            await process.run(env)
        finally:
            self._on_end(process)

    def killpg(self, pid: int, number: int) -> None:
        """Replace `os.killpg`."""
        next(process for process in self.processes if process.pid == pid).take(number)


@contextmanager
def memory_processes(table: ProcessTable | None = None) -> Iterator[ProcessTable]:
    """Replace the process table of the operating system while the block lasts."""
    open_process, killpg = trio.lowlevel.open_process, os.killpg
    table = table or ProcessTable()
    trio.lowlevel.open_process, os.killpg = table.open_process, table.killpg  # type: ignore[assignment]  # as much as is used
    try:
        yield table
    finally:
        trio.lowlevel.open_process, os.killpg = open_process, killpg
        table.forget()
