"""Child processes without an operating system: what Trio is asked to start while a history runs, in virtual time.

Only the two calls that the library makes of the outside are replaced, `trio.lowlevel.open_process` and `os.killpg`; who
starts, supervises and ends a process is the library as it is. Facts that the replacement keeps:

- A process starts in a thread that a cancel does not abandon: there is none, or whoever asked holds it.
- Its exit breaks its stdin for who writes to it. Its output ends when nobody holds the pipe any more, and whatever it
  has started holds it, too, until the whole group is killed.
- It is a zombie until somebody has waited for it, and the number of its group is not given to another one.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

import attrs
import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_one_way_pair

from simulation.history import Manners

__all__ = ["MemoryProcess", "ProcessTable", "Program", "memory_processes"]

LAST_WISH = 0.05  # s, that a process takes to end when it was asked to


@attrs.frozen(eq=False)
class Program:
    """What a command starts.

    Attributes:
        main: A whole run, over its stdin and stdout; returns its exit status. Cancelled when it is killed.
        manners: How it takes its end, as a rule.
        is_there: Whether it can be started at all.
        says: What it writes to stderr at its beginning, whatever its environment holds.
    """

    main: Callable[[MemoryProcess, trio.abc.Stream], Awaitable[int]]
    manners: Manners
    is_there: Callable[[], bool]
    says: Callable[[Mapping[str, str]], str]


@attrs.define(eq=False)
class MemoryProcess:
    """As much of a `trio.Process` as the library uses.

    Attributes:
        stdin, stdout, stderr: Our ends.
        manners: How it takes its end right now.
        returncode: None while it runs; below 0, the signal that ended it.
        was_reaped: Somebody has waited for it.
        has_helper: A process that it has started is left.
        ended_by_itself: Nobody had asked it to.
    """

    pid: int
    command: str
    stdin: trio.abc.SendStream
    stdout: trio.abc.ReceiveStream
    stderr: trio.abc.ReceiveStream
    program: Program
    _pipes: tuple[MemoryReceiveStream, MemorySendStream, MemorySendStream] = attrs.field(alias="pipes")
    manners: Manners = attrs.field(init=False)
    returncode: int | None = attrs.field(default=None, init=False)
    was_reaped: bool = attrs.field(default=False, init=False)
    has_helper: bool = attrs.field(init=False)
    ended_by_itself: bool = attrs.field(default=False, init=False)
    _status: int = attrs.field(default=-signal.SIGKILL, init=False)  # with which it ends when it is not asked
    _life: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _asked_to_end: trio.Event = attrs.field(factory=trio.Event, init=False)
    _over: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self.manners = self.program.manners
        self.has_helper = self.manners == "parent"

    @property
    def is_ending(self) -> bool:
        """It was asked to, and listens."""
        return self._asked_to_end.is_set()

    async def wait(self) -> int:
        await self._over.wait()
        assert self.returncode is not None
        self.was_reaped = True
        return self.returncode

    async def run(self, env: Mapping[str, str]) -> None:
        """Its whole life."""
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
        """Of itself, all at once."""
        self._status, self.ended_by_itself = status, True
        self._life.cancel(reason="it ends")

    def take(self, number: int) -> None:
        """A signal to the whole group.

        Raises:
            ProcessLookupError: Nobody is in it any more.
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
        """Processes that run, that nobody has waited for, or that have left one of theirs behind."""
        return tuple(p.pid for p in self.processes if not p.was_reaped or p.has_helper)

    @asynccontextmanager
    async def running_in_virtual_time(self, on_end: Callable[[MemoryProcess], None]) -> AsyncIterator[None]:
        """Where processes live. Leaving the block ends whatever is left of them.

        Args:
            on_end: Told of every process that ends.
        """
        self._on_end = on_end
        async with trio.open_nursery() as self._nursery:
            yield
            self._nursery.cancel_scope.cancel()

    def forget(self) -> None:
        """Hold nothing of a run any more: one that hangs for ever is left to the garbage collector."""
        self.programs.clear()
        self.processes.clear()
        self._nursery, self._on_end = None, lambda process: None

    def running(self, command: str | None) -> list[MemoryProcess]:
        """The processes of a command, oldest first."""
        program = self.programs.get(command or "")
        return [process for process in self.processes if process.program is program and process.returncode is None]

    async def open_process(self, command: Sequence[str], *, env: Mapping[str, str], **options: object) -> MemoryProcess:
        """`trio.lowlevel.open_process`, as far as the library asks for it."""
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
        process = MemoryProcess(next(self._pids), command[0], to_it, from_it, noise, program, pipes=pipes)
        self.processes.append(process)
        self._nursery.start_soon(self._run, process, dict(env))
        return process

    async def _run(self, process: MemoryProcess, env: Mapping[str, str]) -> None:
        try:
            await process.run(env)
        finally:
            self._on_end(process)

    def killpg(self, pid: int, number: int) -> None:
        """`os.killpg`."""
        next(process for process in self.processes if process.pid == pid).take(number)


@contextmanager
def memory_processes() -> Iterator[ProcessTable]:
    """A table that takes the place of the operating system's while the block lasts."""
    open_process, killpg = trio.lowlevel.open_process, os.killpg
    table = ProcessTable()
    trio.lowlevel.open_process, os.killpg = table.open_process, table.killpg  # type: ignore[assignment]  # as much as is used
    try:
        yield table
    finally:
        trio.lowlevel.open_process, os.killpg = open_process, killpg
        table.forget()
