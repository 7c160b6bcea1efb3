"""A child process that cannot outlive its owner: started, supervised and ended by one task.

On POSIX the child leads a session of its own, so that one signal reaches whatever it has started, and a Ctrl-C at the
terminal is ours alone to handle. Facts that this relies on:

- `trio.lowlevel.open_process` starts the child in a thread that a cancel does not abandon, and has no checkpoint behind
  it: either there is no child, or we hold it.
- `Process.wait` sees the child's own exit. The end of its output says less: a grandchild may hold the pipe for ever.
- The number of a group is not given to another process while any of its members lives or its leader is not reaped.
  So the group is killed in the very step in which the leader was.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping

import attrs
import trio

from trio_vmcp._client.channels.lines import LineChannel, LineFlood
from trio_vmcp._client.channels.stderr import StderrLog
from trio_vmcp._protocol.outcomes import Loss
from trio_vmcp.errors import MessageTooLarge
from trio_vmcp.models import Backend

__all__ = ["ChildProcess", "child_environment"]

logger = logging.getLogger("trio_vmcp.client.stdio")

# What a child inherits of our environment: enough to find programs and a home, and no secret. As in the official SDKs.
_INHERITED_POSIX = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "USER")
_INHERITED_WINDOWS = (
    *("APPDATA", "HOMEDRIVE", "HOMEPATH", "LOCALAPPDATA", "PATH", "PATHEXT", "PROCESSOR_ARCHITECTURE", "PROGRAMFILES"),
    *("SYSTEMDRIVE", "SYSTEMROOT", "TEMP", "TMP", "USERNAME", "USERPROFILE"),
)
_INHERITED_PREFIX = "LC_"

_KILL: signal.Signals = getattr(
    signal, "SIGKILL", signal.SIGTERM
)  # Windows knows one way to end a process, by any name

# Shares of the teardown time: for a child that has closed its stdout to exit, or one that has exited to be read out;
# until one that sees the end of its stdin has left; and until one that was asked to (SIGTERM) has.
LAST_WORDS_SHARE, EOF_SHARE, TERM_SHARE = 2 / 8, 3 / 8, 2 / 8
MOST_TEARDOWN = 10.0  # s, when the teardown itself is endless
REAP_TIMEOUT = 1.0  # s, for the kernel to end what was killed


def child_environment(environment: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child.

    Args:
        environment: This process's, of which only a safe list is inherited.
        own: The backend's, which wins.
    """
    safe = (
        _INHERITED_WINDOWS if sys.platform == "win32" else _INHERITED_POSIX
    )  # os.environ has them in upper case there
    inherited = {
        name: value for name, value in environment.items() if name in safe or name.startswith(_INHERITED_PREFIX)
    }
    return inherited | dict(own)


@attrs.define(eq=False, kw_only=True)
class ChildProcess:
    """One child and the lines to and from it.

    Attributes:
        started: Set when the child runs, or could not be started: then the `channel`'s inbox knows why.
        gone: Set when nothing of it is left.
    """

    backend: Backend
    channel: LineChannel
    teardown_timeout: float  # s
    started: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    gone: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _stderr: StderrLog = attrs.field(init=False, repr=False)
    _process: trio.Process | None = attrs.field(default=None, init=False)
    _is_connected: bool = attrs.field(default=False, init=False)  # a client relies on the child: its end is news
    _is_closing: bool = attrs.field(default=False, init=False)
    _end_begun: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _exited: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _stdout_ended: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _stderr_ended: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _flood: LineFlood | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._stderr = StderrLog(self.backend.id, self.backend.env)

    async def serve(self) -> None:
        """The child's whole life. Cancelled, it still ends the child in order, which is bounded.

        Raises:
            BackendUnavailable, MessageTooLarge: The child ended by itself, and a client relied on it.
        """
        try:
            process = await self._spawn()
            if process is not None:
                # No checkpoint from there to here, and the supervisor is shielded: it runs whatever happens to us.
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._supervise, process)
                    try:
                        await self.gone.wait()
                    finally:
                        self.close()
        finally:
            self.gone.set()
            self.started.set()
            self.channel.inbox.close(Loss("was not started"))
        loss = self.channel.inbox.loss
        if self._is_connected and not self._is_closing and loss is not None:
            raise loss.error(self.backend.id)

    def mark_connected(self) -> None:
        """From now on the child's end is an error of `serve`.

        Raises:
            BackendUnavailable: It has ended already.
        """
        if self.channel.inbox.loss is not None:
            raise self.channel.inbox.loss.error(self.backend.id)
        self._is_connected = True

    def close(self) -> None:
        """Ask the child to end; `gone` says when it has. At most the teardown time, and the time to be reaped."""
        if not self._end_begun.is_set():
            self._is_closing = True
            self._end_begun.set()

    def kill(self) -> None:
        """End it now."""
        self.close()
        if self._process is not None and not self._exited.is_set():
            _signal_group(self._process, _KILL)

    async def _spawn(self) -> trio.Process | None:
        backend = self.backend
        assert backend.command is not None  # Backend checks that
        try:
            return await trio.lowlevel.open_process(
                [backend.command, *backend.args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=backend.cwd,
                env=child_environment(os.environ, backend.env),
                start_new_session=True,
            )
        except OSError as exc:
            problem = os.strerror(exc.errno) if exc.errno else type(exc).__name__
            what = "directory" if exc.filename == backend.cwd else "command"
            loss = Loss(f"could not be started: {what} {exc.filename or backend.command!r}: {problem}")
        except ValueError:  # it quotes nothing, but its kind says nothing either
            loss = Loss("could not be started: its command, args or env hold what no process can be given")
        self.channel.inbox.close(loss)
        return None

    async def _supervise(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        with trio.CancelScope(shield=True):
            try:
                async with trio.open_nursery() as pumps:
                    pumps.start_soon(self._watch, process)
                    pumps.start_soon(self._write, process.stdin)
                    pumps.start_soon(self._read, process.stdout)
                    pumps.start_soon(self._listen, process.stderr)
                    self.started.set()
                    await self._end_begun.wait()
                    await self._end_process(process)
                    pumps.cancel_scope.cancel()
            finally:
                self.channel.inbox.close(Loss("crashed in its connection"))
                if not self._exited.is_set():  # a pump broke
                    self.kill()
                    with trio.move_on_after(REAP_TIMEOUT, shield=True):
                        await process.wait()
                for stream in (process.stdin, process.stdout, process.stderr):
                    await trio.aclose_forcefully(stream)
                self.gone.set()

    async def _end_process(self, process: trio.Process) -> None:
        """From the first sign of the end to the last."""
        budget = min(self.teardown_timeout, MOST_TEARDOWN)
        if not self._is_closing and self._flood is None:
            # One sign is followed by others, which say more: the status, and what stderr has on it. An answer may be
            # among what is still to be read.
            with trio.move_on_after(LAST_WORDS_SHARE * budget):
                await self._exited.wait()
                await self._stdout_ended.wait()
                await self._stderr_ended.wait()
        self.channel.inbox.close(self._find_loss(process))
        self.channel.retire_writer()
        for share, request in ((EOF_SHARE, signal.SIGTERM), (TERM_SHARE, _KILL)):
            with trio.move_on_after(share * budget):
                await self._exited.wait()
            if self._exited.is_set():
                return
            _signal_group(process, request)
        with trio.move_on_after(REAP_TIMEOUT):
            await self._exited.wait()
            return
        logger.warning("backend %r: its process %d survives SIGKILL", self.backend.id, process.pid)

    def _find_loss(self, process: trio.Process) -> Loss:
        if self._is_closing:
            return Loss("was closed")
        if self._flood is not None:
            return Loss(f"sent {self._flood}", kind=MessageTooLarge)
        status = process.returncode if self._exited.is_set() else None
        if status is None:
            what = f"closed its {'stdout' if self._stdout_ended.is_set() else 'stdin'}"
        elif status < 0:
            what = f"was ended by signal {_signal_name(-status)}"
        else:
            what = f"ended with status {status}"
        words = self._stderr.last_words()
        return Loss(what, f"; its last words on stderr: {words}" if words else "")

    async def _watch(self, process: trio.Process) -> None:
        await process.wait()
        _signal_group(process, _KILL)  # what the child has left behind
        self._exited.set()
        self._end_begun.set()

    async def _write(self, stream: trio.abc.SendStream) -> None:
        try:
            await self.channel.write(stream)
        except trio.BrokenResourceError:
            self._end_begun.set()

    async def _read(self, stream: trio.abc.ReceiveStream) -> None:
        try:
            await self.channel.read(stream)
        except LineFlood as flood:
            self._flood = flood
        self._stdout_ended.set()
        self._end_begun.set()

    async def _listen(self, stream: trio.abc.ReceiveStream) -> None:
        await self._stderr.drain(stream)
        self._stderr_ended.set()


def _signal_group(process: trio.Process, number: int) -> None:
    """To the child and whatever it has started, if any of that is left."""
    try:
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # macOS: not permitted is a group of zombies
        pass


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return str(number)
